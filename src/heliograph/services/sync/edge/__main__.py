"""``python -m heliograph.services.sync.edge``"""

from __future__ import annotations

import sys

from heliograph.runtime.process import run
from heliograph.services.sync.edge.app import serve
from heliograph.services.sync.edge.settings import EdgeSettings

if __name__ == "__main__":
    sys.exit(run("edge", EdgeSettings, serve))
