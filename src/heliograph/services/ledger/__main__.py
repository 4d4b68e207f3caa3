"""``python -m heliograph.services.ledger``: the ledger as a process of its own."""

from __future__ import annotations

import sys

from heliograph.runtime.process import run
from heliograph.services.ledger.app import serve
from heliograph.services.ledger.settings import LedgerSettings

if __name__ == "__main__":
    sys.exit(run("ledger", LedgerSettings, serve))
