"""What a client was asked for."""

from __future__ import annotations

import platform
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import heliograph
from heliograph.client._connection import Retry
from heliograph.client._values import sayable
from heliograph.core.digest import Digest
from heliograph.core.frames import Fingerprint

SDK: Final = "heliograph-python"


@dataclass(frozen=True, kw_only=True)
class Options:
    """``folder``: where slots are, None for no disk copy. The token is not in the repr."""

    url: str
    token: str = field(repr=False)
    anchor: Digest
    app: str
    labels: Mapping[str, str]
    folder: Path | None
    proxy: str | None
    tls: ssl.SSLContext | None
    ca_file: Path | None
    retry: Retry

    @property
    def agent(self) -> str:
        return f"{SDK}/{heliograph.__version__}"

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            sdk=SDK,
            sdk_version=heliograph.__version__,
            language=f"python {platform.python_version()}",
            host=sayable(socket.gethostname()[:200]),
            app=self.app,
            labels=dict(self.labels),
        )
