"""What an edge keeps on disk, so that it serves after a restart without its parent: states, recover versions, the trust root, addresses, tokens'
digests.

Documents are in it: the folder is closed to others (0700, files 0600). A file is one line with a digest over the rest; it is replaced atomically and
synced. The digest finds accidents. Whoever reads a state verifies signatures and proofs as if the parent had sent it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from heliograph.core.errors import InvalidRequest
from heliograph.keys.local import write_private

log = structlog.get_logger()

SETTLE_S: Final = 1.0  # a storm of versions costs one write a second, not one a version
_MAGIC: Final = b"heliograph-edge/1 sha256:"
_SUFFIX: Final = ".copy"

Encode = Callable[[], bytes]


class Copies:
    """`run` writes, off the loop, the latest of each name only. Reads block, and are for the start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dirty: dict[str, Encode | None] = {}
        self._wanted = asyncio.Event()
        self._writing = asyncio.Lock()

    def open(self) -> None:
        """Makes the folder. Raises InvalidRequest when it cannot, or when others may look into it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._folder.stat().st_mode & 0o077:
                raise InvalidRequest(f"others may look into {self._folder}, where documents are kept: chmod 700 {self._folder}")
        except OSError as error:
            raise InvalidRequest(f"the folder {self._folder} cannot be made: {error.strerror}") from None

    def names(self, prefix: str) -> list[str]:
        return sorted(each.name.removesuffix(_SUFFIX) for each in self._folder.glob(f"{prefix}*{_SUFFIX}"))

    def read(self, name: str) -> bytes | None:
        """None for what is not there, or is not what was written: that is said in the log."""
        path = self._path(name)
        try:
            line, _, body = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("edge_copy_unusable", file=path.name, reason=error.strerror)
            return None
        if line != _first_line(body):
            log.warning("edge_copy_unusable", file=path.name, reason="damaged")
            return None
        return body

    def mark(self, name: str, encode: Encode) -> None:
        """To be written soon. ``encode`` is called in a thread: what it reads must not change."""
        self._dirty[name] = encode
        self._wanted.set()

    def drop(self, name: str) -> None:
        """To be deleted soon."""
        self._dirty[name] = None
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled; then call `flush` for what is left."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(SETTLE_S)
            await self.flush()

    async def flush(self) -> None:
        """Everything marked is on disk, or the failure is in the log."""
        async with self._writing:
            self._wanted.clear()
            while self._dirty:
                name, encode = self._dirty.popitem()
                await asyncio.to_thread(self._put, name, encode)

    def _put(self, name: str, encode: Encode | None) -> None:
        path = self._path(name)
        try:
            if encode is None:
                path.unlink(missing_ok=True)
            else:
                body = encode()
                write_private(path, _first_line(body) + b"\n" + body)
        except OSError as error:
            log.error("edge_copy_not_written", file=path.name, reason=error.strerror)

    def _path(self, name: str) -> Path:
        return self._folder / (name + _SUFFIX)


def _first_line(body: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(body).hexdigest().encode()
