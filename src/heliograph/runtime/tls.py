"""A server's certificate: loaded at the start, and again whenever its files change, without dropping a connection.

There is one `ssl.SSLContext` for the life of the process. What is loaded into it is used by every handshake that begins afterwards; open connections
keep what they began with. A pair that does not fit is tried out on another context first, so the one in use never suffers.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

import structlog
from cryptography import x509

from heliograph.core.errors import InvalidRequest
from heliograph.runtime.waiting import first_of
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

CHECK_S: Final = 3.0
"""Between looks at the files. A change is loaded when two looks in a row see the same: a new pair is seldom written in one moment."""
HANDSHAKE_S: Final = 5.0
MAX_FILE: Final = 1024 * 1024
_IN_MEMORY: Final = hasattr(os, "memfd_create")
_Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Tried out. ``file``: certificate and key; its owner closes it. ``expires_at_s``: Unix time."""

    file: IO[bytes]
    expires_at_s: float

    def load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(f"/proc/self/fd/{self.file.fileno()}" if _IN_MEMORY else self.file.name, password="")


class Certificate:
    """``context``: for servers of this process. Belongs to one event loop."""

    def __init__(self, certificate: Path, key: Path, metrics: Metrics) -> None:
        self.context = _context()
        self._files = (certificate, key)
        self._metrics = metrics
        self._loaded: _Signature = ()
        self._asked = asyncio.Event()

    @classmethod
    async def open(cls, certificate: Path, key: Path, metrics: Metrics) -> Self:
        """Raises InvalidRequest when the pair cannot be used."""
        opened = cls(certificate, key, metrics)
        opened._loaded = await asyncio.to_thread(opened._signature)
        opened._use(await asyncio.to_thread(_read, certificate, key))
        return opened

    def ask(self) -> None:
        """Has the files loaded now, changed or not; `run` does it."""
        self._asked.set()

    async def run(self) -> None:
        """Looks after the files until cancelled."""
        before = self._loaded
        while True:
            await first_of(self._asked, timeout_s=CHECK_S)
            asked = self._asked.is_set()
            self._asked.clear()
            now = await asyncio.to_thread(self._signature)
            if asked or now == before != self._loaded:
                await self.reload()
            before = now

    async def reload(self) -> bool:
        """Whether what the files hold is in use now. What cannot be used is logged, and the one before stays."""
        self._loaded = await asyncio.to_thread(self._signature)
        try:
            self._use(await asyncio.to_thread(_read, *self._files))
        except InvalidRequest as error:
            self._metrics.tls_reloads.labels("failed").inc()
            log.error("tls_certificate_not_loaded", detail=error.detail)
            return False
        self._metrics.tls_reloads.labels("loaded").inc()
        log.info("tls_certificate_loaded", file=str(self._files[0]))
        return True

    def _use(self, pair: _Pair) -> None:
        """What was tried out, whatever the files hold by now."""
        with pair.file:
            pair.load(self.context)
        self._metrics.tls_certificate_expires_at_seconds.set(pair.expires_at_s)

    def _signature(self) -> _Signature:
        return tuple(_looks(each) for each in self._files)


def _context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    return made


def _read(certificate: Path, key: Path) -> _Pair:
    """Blocks. Raises InvalidRequest, with nothing in it of what the files hold."""
    chain, secret = _content(certificate), _content(key)
    try:
        expires = x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()
    except ValueError:
        raise InvalidRequest(f"HELIOGRAPH_TLS_CERT_FILE ({certificate}) does not begin with a certificate in PEM") from None
    pair = _Pair(_private_file(chain + b"\n" + secret), expires)
    try:
        pair.load(_context())
    except (ssl.SSLError, ValueError) as error:
        pair.file.close()
        reason = getattr(error, "reason", None) or "the key is missing or encrypted"
        raise InvalidRequest(f"the certificate {certificate} and the key {key} cannot be used together: {reason}") from None
    return pair


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_FILE)
    except OSError as error:
        raise InvalidRequest(f"the TLS file {file} cannot be read: {error.strerror}") from None


def _private_file(content: bytes) -> IO[bytes]:
    """OpenSSL reads files only: this one has no name and reaches no disk, where there is such a thing."""
    memory = os.memfd_create("certificate") if _IN_MEMORY else None
    file: IO[bytes] = tempfile.NamedTemporaryFile() if memory is None else os.fdopen(memory, "w+b")  # noqa: SIM115  # the caller's
    file.write(content)
    file.flush()
    return file


def _looks(file: Path) -> tuple[int, int, int]:
    with suppress(OSError):
        told = file.stat()
        return told.st_ino, told.st_size, told.st_mtime_ns
    return 0, 0, 0
