"""Heliograph: configuration that reaches every client in milliseconds, and a receipt from each that it did."""

__version__ = "0.1.0"
