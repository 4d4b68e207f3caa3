"""The copy on disk: what was verified and adopted, kept for the day when everything else is down.

A file is one line with the digest of the rest, then the rest; it is replaced atomically and synced. What does not match its digest is not
used. Whoever reads a copy still verifies signatures and proofs: the digest finds accidents, not attackers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from heliograph.core.errors import Corrupt

SETTLE_S: Final = 2.0
"""On average, up to half more or less: a storm of versions costs one write in that time, not one a version, and the many clients of a machine, who
all got the version in the same moment, do not sync its disk in the same moment too."""
_MAGIC: Final = b"heliograph-copy/1 "
_log = logging.getLogger("heliograph")


def write_atomically(path: Path, data: bytes) -> None:
    """Either the old bytes or the new ones are there, whatever dies when. Blocks for an fsync."""
    temporary = path.with_name(path.name + ".tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def write_copy(path: Path, body: bytes) -> None:
    write_atomically(path, _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read_copy(path: Path) -> bytes | None:
    """None when there is no copy. Raises Corrupt when it is not what was written, OSError when it cannot be read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    line, _, body = data.partition(b"\n")
    if line != _MAGIC + hashlib.sha256(body).hexdigest().encode():
        raise Corrupt(f"the copy in {path} is damaged")
    return body


def kept(folder: Path, name: str) -> list[Path]:
    """Where copies of a name may be: our own slot first, then those of other processes, newest first; a new slot starts from theirs."""
    others = [path for path in folder.parent.glob(f"slot-*/{name}") if path.parent != folder]
    return [folder / name, *sorted(others, key=_age)]


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DiskWriter:
    """Writes copies off the loop, the latest of each name only. `run` owns the writing; without a folder nothing is ever written."""

    def __init__(self, folder: Path | None, *, settle_s: float = SETTLE_S) -> None:
        self._folder = folder
        self._settle_s = settle_s
        self._dirty: dict[str, Callable[[], bytes]] = {}
        self._wanted = asyncio.Event()
        self._writing = asyncio.Lock()  # two threads that write one name would mix their bytes
        self._failures: dict[str, str] = {}

    @property
    def failure(self) -> str | None:
        """Why a copy is older than what was marked; None when none is. May be asked in any thread."""
        return next(iter(tuple(self._failures.values())), None)

    def mark(self, name: str, encode: Callable[[], bytes]) -> None:
        """``encode`` is called on the loop, shortly before the write, so it sees the state of that moment."""
        if self._folder is not None:
            self._dirty[name] = encode
            self._wanted.set()

    async def run(self) -> None:
        """Until cancelled; then call `flush` for what is left."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._settle_s * random.uniform(0.5, 1.5))  # noqa: S311
            await self.flush()

    async def flush(self) -> None:
        """Everything marked is on disk, or the failure is said in the log and in `failure`.

        A cancel ends it after the write that has begun, which no cancel takes out of its thread.
        """
        async with self._writing:
            self._wanted.clear()
            while self._folder is not None and self._dirty:
                name, encode = self._dirty.popitem()
                await self._write(self._folder / name, encode())

    async def _write(self, path: Path, body: bytes) -> None:
        writing = asyncio.get_running_loop().run_in_executor(None, write_copy, path, body)
        try:
            await _outlasting(writing)
        finally:
            self._note(path.name, writing)

    def _note(self, name: str, written: asyncio.Future[None]) -> None:
        """Raises what is no failure of the disk."""
        try:
            written.result()
        except OSError as error:
            if name not in self._failures:
                _log.warning("cannot write the disk copy %s: %s", name, error)
            self._failures[name] = str(error)
        else:
            self._failures.pop(name, None)


async def _outlasting(work: asyncio.Future[None]) -> None:
    """Until it is done, however often we are cancelled, and then a cancel that came meanwhile is raised."""
    cancel: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        raise cancel
