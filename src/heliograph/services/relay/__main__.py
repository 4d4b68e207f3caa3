"""``python -m heliograph.services.relay``"""

from __future__ import annotations

import sys

from heliograph.runtime.process import run
from heliograph.services.relay.app import serve
from heliograph.services.relay.settings import RelaySettings

if __name__ == "__main__":
    sys.exit(run("relay", RelaySettings, serve))
