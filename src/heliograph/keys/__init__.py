"""Signing keys: the port and its local provider."""
