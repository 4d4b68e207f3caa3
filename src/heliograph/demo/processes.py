"""Child processes that are never left behind.

Each is told to end by the end of its standard input, so it also ends when this process is killed; it runs in a session of its own, so that Ctrl-C
reaches only us and we stop them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from heliograph.runtime.children import PIPE, Child, start

MAX_LINE: Final = 4 << 20
"""Bytes of one line of a child's output: a report holds documents."""
STOP_S: Final = 20.0


@asynccontextmanager
async def python(module: str, arguments: Sequence[str], log: Path) -> AsyncIterator[Child]:
    """``python -m module …`` with pipes to its standard input and output; its standard error is appended to ``log``."""
    command = (sys.executable, "-m", module, *arguments)
    with log.open("ab") as errors:
        child = await start(*command, stdin=PIPE, stdout=PIPE, stderr=errors, start_new_session=True, limit=MAX_LINE)
    try:
        yield child
    finally:
        await _end(child)


async def _end(child: Child) -> None:
    """Asks, then insists, by its own pid."""
    child.stdin.close()
    for insist in (child.terminate, child.kill):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await child.wait()
            return
        insist()
    await child.wait()


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a child's log, for an error that says why it ended."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
    return ""
