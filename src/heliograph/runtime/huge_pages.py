"""This process's memory in huge pages.

A node's sessions lie scattered over tens of megabytes, and each is touched for a moment, seconds apart. With pages of 4 KiB most of that moment goes
into finding the memory: with ten thousand clients huge pages take a twentieth off the CPU of a fan-out and a half off that of idle connections
(docs/adr/0009-idle-costs-little.md, which also says why it is not the default). Interpreters do not ask for them, and most systems give them only to
who asks (``madvise``).

Only what is nearly full is gathered, so the process grows by an eighth at most; a page at a time with pauses, because the kernel stops whoever
touches the page that is being copied. Linux 6.1 or newer (MADV_COLLAPSE, madvise(2)); elsewhere nothing happens.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_COLLAPSE: Final = 25  # MADV_COLLAPSE, which module mmap does not name
_SYSTEM: Final = Path("/sys/kernel/mm/transparent_hugepage")
_OWN: Final = Path("/proc/self")
LOOK_S: Final = 5.0
PAUSE_S: Final = 0.01
COPIED_S: Final = 0.000_2
"""A call that takes longer has copied a page; one that has not took a few microseconds."""
FULL: Final = 7 / 8
"""Share of a huge page that must be in use already: the stacks of threads, for one, are mostly empty."""


async def gather(*, look_s: float = LOOK_S) -> None:
    """When the process has grown by a huge page, and stands still: not in the middle of a storm. Until cancelled; returns when the system has no
    huge pages, or its administrator wants none."""
    size = await asyncio.to_thread(_size)
    seen = before = 0
    while size:
        held = await asyncio.to_thread(_resident)
        if held >= seen + size and abs(held - before) < size:
            await _collapse(await asyncio.to_thread(_nearly_full, size), size)
            seen = held
        seen, before = min(seen, held), held
        await asyncio.sleep(look_s)


async def _collapse(pages: list[int], size: int) -> None:
    left = iter(pages)
    while await asyncio.to_thread(_collapse_next, left, size):  # noqa: ASYNC110  # a pause for the others, no wait for something
        await asyncio.sleep(PAUSE_S)


def _size() -> int:
    """Bytes of a huge page, 0: there are none for us."""
    try:
        if "[never]" in (_SYSTEM / "enabled").read_text():
            return 0
        return int((_SYSTEM / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int((_OWN / "statm").read_text().split()[1]) * mmap.PAGESIZE


def _nearly_full(size: int) -> list[int]:
    """Addresses of what could each be a huge page."""
    found = []
    for region in _regions((_OWN / "maps").read_text().splitlines(), size):
        present = _present(region)
        share = size // mmap.PAGESIZE
        found += [
            each for number, each in enumerate(region) if present.count(1, number * share, (number + 1) * share) >= FULL * share
        ]
    return found


def _regions(maps: Iterable[str], size: int) -> Iterator[range]:
    """Aligned addresses within each piece of private memory that is of no file (proc_pid_maps(5))."""
    for line in maps:
        addresses, mode, _, _, inode, *name = line.split(maxsplit=5)
        if mode == "rw-p" and inode == "0" and (not name or name[0].startswith(("[heap]", "[anon"))):
            begin, end = (int(each, 16) for each in addresses.split("-"))
            if region := range(-(-begin // size) * size, end - size + 1, size):
                yield region


def _present(region: range) -> bytes:
    """A byte for each small page: 1 when it is in memory (mincore(2)). In one call, for each has to wait for its turn among the threads."""
    length = len(region) * region.step
    present = ctypes.create_string_buffer(length // mmap.PAGESIZE)
    return present.raw if _library().mincore(region.start, length, present) == 0 else b""


def _collapse_next(pages: Iterator[int], size: int) -> bool:
    """Goes on to the next that has to be copied; False: there is none. What cannot be one page now, or is unmapped meanwhile, stays as it is."""
    library = _library()
    for address in pages:
        began = time.perf_counter()
        library.madvise(address, size, _COLLAPSE)
        if time.perf_counter() - began > COPIED_S:
            return True
    return False


def _library() -> ctypes.CDLL:
    """The C library; its calls let other threads run."""
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    library.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    return library
