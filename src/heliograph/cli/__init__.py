"""The heliograph command."""
