"""``python -m heliograph.services.registry``: the registry as a process of its own."""

from __future__ import annotations

import sys

from heliograph.runtime.process import run
from heliograph.services.registry.app import serve
from heliograph.services.registry.settings import RegistrySettings

if __name__ == "__main__":
    sys.exit(run("registry", RegistrySettings, serve))
