"""The heliograph command."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point. Imports what a command needs only when it runs, so that help and completion are quick."""
    from heliograph.cli.commands import app  # noqa: PLC0415

    sys.exit(app())
