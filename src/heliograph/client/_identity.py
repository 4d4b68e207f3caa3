"""Who this process is to the server: an instance id that outlives restarts and an incarnation that grows with each of them.

Both live in a *slot*, a folder beside the disk copy that one process holds at a time by a file lock; the second process on one cache
folder takes the next slot, so two processes never speak with one voice. An instance id belongs to the token that first used it: with
another token a slot gets a new id. Incarnations are milliseconds of the wall clock, pushed beyond the last one used, so they grow even
where nothing could be written.

Everything here touches files: call it off the event loop.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import secrets
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec

from heliograph.client._disk import write_atomically
from heliograph.client._forks import watch
from heliograph.core.errors import Overloaded

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


MAX_SLOTS: Final = 1024
_HELD: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # the last two on Windows
_log = logging.getLogger("heliograph")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """``owner``: first half of the SHA-256 of the token that uses this id; a fingerprint, not the token."""

    instance: str
    incarnation: int
    owner: str = ""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Slot:
    """A folder that is ours until `release`."""

    folder: Path
    _lock_file: IO[bytes]

    def release(self) -> None:
        """Also in a child made by fork: the lock belongs to the open file, which the parent keeps. Were the child to keep it too, the parent's
        successor would not get it."""
        self._lock_file.close()


def take_slot(parent: Path) -> Slot:
    """The first slot that no living process holds. Raises OSError when the folder cannot be used, Overloaded when all are taken."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(MAX_SLOTS):
        folder = parent / f"slot-{number}"
        folder.mkdir(mode=0o700, exist_ok=True)
        file = (folder / "lock").open("ab")
        if _locked(file):
            slot = Slot(folder, file)
            watch(slot, Slot.release)
            return slot
    raise Overloaded(f"{MAX_SLOTS} processes use {parent} already; give this one another cache_dir")


def _locked(file: IO[bytes]) -> bool:
    """False when another process holds it; then, and when no lock can be had at all (OSError), the file is closed."""
    try:
        _lock(file)
    except OSError as error:
        file.close()
        if error.errno not in _HELD:
            raise
        return False
    return True


def ephemeral(token: str) -> Identity:
    """For a client without a disk copy: a new instance each time."""
    return Identity(instance=_uuid7(), incarnation=_now_ms(), owner=_owner(token))


def next_identity(folder: Path, token: str) -> Identity:
    """The slot's identity in its next incarnation, already on disk. A file that cannot be read or written costs the id, never the start."""
    path = folder / "identity.json"
    last = _read(path)
    if last is None or last.owner != _owner(token):
        found = ephemeral(token)
    else:
        found = Identity(instance=last.instance, incarnation=max(last.incarnation + 1, _now_ms()), owner=last.owner)
    try:
        write_atomically(path, msgspec.json.encode(found))
    except OSError as error:
        _log.warning("cannot keep the instance id in %s: %s", path, error)
    return found


def _read(path: Path) -> Identity | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("%s is unreadable, starting as a new instance: %s", path, type(error).__name__)
        return None


def _owner(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:32]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _uuid7() -> str:
    """RFC 9562: 48 bits of milliseconds, version, 74 random bits."""
    number = (_now_ms() << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    return str(uuid.UUID(int=number))
