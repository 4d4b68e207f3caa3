"""``python -m heliograph.services.sync``"""

from __future__ import annotations

import sys

from heliograph.runtime.process import run
from heliograph.services.sync.processes import serve
from heliograph.services.sync.settings import SyncSettings

if __name__ == "__main__":
    sys.exit(run("sync", SyncSettings, serve))
