"""Memory in huge pages: which addresses are looked at, and that what is full is gathered and what is empty is not."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from pathlib import Path

import pytest

from heliograph.runtime import huge_pages, process
from heliograph.runtime.settings import ServiceSettings

SIZE = 2 * 1024 * 1024
DEADLINE_S = 60
LINES = [
    "560000000000-560000400000 rw-p 00000000 00:00 0                          [heap]",
    "7f0000100000-7f0000700000 rw-p 00000000 00:00 0 ",
    "7f0001000000-7f0001100000 rw-p 00000000 00:00 0 ",  # smaller than a huge page
    "7f0002000000-7f0002400000 r-xp 00000000 fe:00 42                         /usr/lib/libc.so.6",
    "7f0003000000-7f0003400000 rw-p 00000000 fe:00 42                         /usr/lib/libc.so.6",
    "7f0004000000-7f0004400000 rw-s 00000000 00:01 7                          /dev/zero (deleted)",
    "7f0005000000-7f0005400000 ---p 00000000 00:00 0 ",
    "7ffc00000000-7ffc00400000 rw-p 00000000 00:00 0                          [stack]",
]


def test_private_memory_of_no_file_is_looked_at_in_whole_aligned_pages() -> None:
    found = [list(each) for each in huge_pages._regions(LINES, SIZE)]
    assert found == [[0x560000000000, 0x560000200000], [0x7F0000200000, 0x7F0000400000]]


needs_huge_pages = pytest.mark.skipif(not huge_pages._size(), reason="this system has no transparent huge pages, or wants none")


def held_in_huge_pages(address: int) -> int:
    """KiB of the mapping that holds this address."""
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            begin, end = (int(each, 16) for each in first.split("-"))
            within = begin <= address < end
        elif within and first == "AnonHugePages:":
            return int(line.split()[1])
    raise AssertionError("the address is not mapped")


def whole_pages(memory: mmap.mmap, count: int, size: int) -> int:
    """The address of `count` aligned pages in this mapping."""
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    aligned = -(-begin // size) * size
    assert aligned + count * size <= begin + len(memory)
    return aligned


@needs_huge_pages
async def test_what_is_full_is_gathered_and_keeps_what_it_holds() -> None:
    size = await asyncio.to_thread(huge_pages._size)
    memory = mmap.mmap(-1, 6 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    content = bytes(range(251)) * (len(memory) // 251)
    memory[: len(content)] = content
    address = whole_pages(memory, 5, size)
    assert await asyncio.to_thread(held_in_huge_pages, address) == 0

    gathering = asyncio.create_task(huge_pages.gather(look_s=0.05))
    async with asyncio.timeout(DEADLINE_S):
        while await asyncio.to_thread(held_in_huge_pages, address) < 5 * size // 1024:  # the kernel rings no bell
            await asyncio.sleep(0.05)
    gathering.cancel()
    await asyncio.gather(gathering, return_exceptions=True)
    assert memory[: len(content)] == content


@needs_huge_pages
def test_what_is_mostly_empty_is_left_alone() -> None:
    size = huge_pages._size()
    memory = mmap.mmap(-1, 6 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:: mmap.PAGESIZE * 2] = b"x" * len(memory[:: mmap.PAGESIZE * 2])  # every other one
    address = whole_pages(memory, 5, size)
    nearly_full = huge_pages._nearly_full(size)
    assert not {address + number * size for number in range(5)} & set(nearly_full)
    memory[:: mmap.PAGESIZE] = b"x" * len(memory[:: mmap.PAGESIZE])
    assert {address + number * size for number in range(5)} <= set(huge_pages._nearly_full(size))


def test_a_process_gathers_when_it_is_told_to() -> None:
    def work(**settings: bool) -> list[str]:
        beside = list(process._beside(ServiceSettings(**settings)))
        for each in beside:
            each.close()
        return [each.__qualname__ for each in beside]

    assert work() == []
    assert work(huge_pages=True) == ["gather"]


def test_where_there_are_none_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    asyncio.run(asyncio.wait_for(huge_pages.gather(), DEADLINE_S))
    (tmp_path / "hpage_pmd_size").write_text(f"{SIZE}\n")
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    asyncio.run(asyncio.wait_for(huge_pages.gather(), DEADLINE_S))
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert huge_pages._size() == SIZE
