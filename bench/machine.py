"""What processes cost, read from the kernel: CPU of all threads, memory of their own, and what others do meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FOREIGN = 0.2
"""Cores that others may use while something is measured; with more it is measured again."""
CALM_S = 5.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def family(*pids: int) -> list[int]:
    """These processes and all that came from them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = list(pids)
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_us(pids: Iterable[int]) -> float:
    """Time that all threads of these have run, as the scheduler counts it."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                continue
    return total / 1000


def private_kb(pids: Iterable[int]) -> int:
    """Proportional set size: what these processes add to the machine's use of memory, apart from the kernel's."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total


def busy_us() -> float:
    """Time that all cores together have been at work since the start of the machine."""
    values = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) * 1e6 / TICKS


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """This process, and what it starts, on one core; None leaves it where it may be."""
    before = os.sched_getaffinity(0)
    if cpu is not None and cpu in before:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pids: Iterable[int], cpu: int) -> None:
    """Running processes with all their threads."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cpu})


async def calm(ours: Iterable[int]) -> None:
    """Waits, a little while at most, until others leave the machine to us."""
    mine = list(ours)
    for _ in range(int(CALM_S / 0.25)):
        watch = Watch(mine)
        await asyncio.sleep(0.25)
        if watch.foreign() < FOREIGN:
            return


class Watch:
    """How many cores others used since it was made. `ours`: processes that belong to the measurement, beside this one's family."""

    def __init__(self, ours: Iterable[int]) -> None:
        self._ours = list(ours)
        self._loop = asyncio.get_running_loop()
        self._since, self._busy, self._own = self._loop.time(), busy_us(), self._own_us()

    def _own_us(self) -> float:
        return cpu_us(set(family(os.getpid(), *self._ours)))

    def foreign(self) -> float:
        spent = busy_us() - self._busy - (self._own_us() - self._own)
        return max(0.0, spent / 1e6 / max(1e-6, self._loop.time() - self._since))
