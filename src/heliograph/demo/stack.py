"""The services that the demo runs on: its own, or a stack that runs already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from heliograph.core.errors import HeliographError, InvalidRequest, TimedOut, Unavailable
from heliograph.demo.processes import last_lines, python

START_S: Final = 120.0


class _Ready(msgspec.Struct):
    """What `heliograph dev --json` says when it is ready."""

    url: str
    token_file: str


class _Ended(msgspec.Struct):
    """The log record with which a service ends on purpose."""

    detail: str


@dataclass(frozen=True, slots=True)
class Stack:
    """``folder``: where the demo keeps its own files."""

    url: str
    folder: Path
    admin_token: str = field(repr=False)


@asynccontextmanager
async def own(data_dir: Path) -> AsyncIterator[Stack]:
    """Every service in one child process, with its data in ``data_dir``. Raises Unavailable, TimedOut when it does not start."""
    await asyncio.to_thread(data_dir.mkdir, parents=True, exist_ok=True)
    log = data_dir / "dev.log"
    arguments = ["dev", "--json", "--stop-at-eof", "--data-dir", str(data_dir)]
    async with python("heliograph.cli", arguments, log) as child:
        try:
            async with asyncio.timeout(START_S):
                line = await child.stdout.readline()
        except TimeoutError:
            raise TimedOut(f"the services were not ready after {START_S:.0f} s; see {log}") from None
        if not line:
            await child.wait()
            raise _why(await asyncio.to_thread(last_lines, log))
        ready = msgspec.json.decode(line, type=_Ready)
        yield await asyncio.to_thread(_stack, ready.url, Path(ready.token_file), data_dir)


@asynccontextmanager
async def running(url: str, token_file: Path, data_dir: Path) -> AsyncIterator[Stack]:
    """One that somebody else started."""
    yield await asyncio.to_thread(_stack, url, token_file, data_dir)


def _stack(url: str, token_file: Path, data_dir: Path) -> Stack:
    folder = data_dir.absolute() / "demo"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return Stack(url, folder, token_file.read_text().strip())
    except OSError as error:
        raise InvalidRequest(f"the admin token cannot be read from {token_file}: {error.strerror}") from None


def _why(log: str) -> HeliographError:
    """The services' own last words."""
    for line in reversed(log.splitlines()):
        try:
            return Unavailable(f"the services did not start: {msgspec.json.decode(line, type=_Ended).detail}")
        except msgspec.DecodeError:
            continue
    return Unavailable(f"the services did not start:\n{log}")
