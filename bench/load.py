"""Runs load.c: many clients of one server, and rounds in which one message goes to all of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.stacks import ROOT

LIVE_S = 120
ANSWER_S = 60


class Failed(RuntimeError):
    """A row cannot be measured; the text says why."""


@dataclass(frozen=True)
class Round:
    """Moments in Unix microseconds. `published_us` and `acked_us` are 0 where the load does not publish, and where nobody answers."""

    expected: int
    got: int
    published_us: int
    first_us: int
    p50_us: int
    p99_us: int
    last_us: int
    acked: int
    acked_us: int
    bytes: int
    own_cpu_us: int
    dropped: int


def build(name: str, *libraries: str) -> Path:
    """Compiles bench/NAME.c when it is newer than what was made of it."""
    source, binary = ROOT / f"bench/{name}.c", ROOT / f"bench/out/{name}"
    binary.parent.mkdir(exist_ok=True)
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        done = subprocess.run(
            ["cc", "-O2", "-Wall", "-Wextra", "-o", binary, source, *libraries], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise Failed(f"{source.name} does not compile (bench/rivals.sh installs what it needs): {done.stderr[-300:]}")
    return binary


class Load:
    """One running load. Rounds are asked for one after another."""

    def __init__(self, process: asyncio.subprocess.Process, clients: int) -> None:
        self._process = process
        self.clients = clients
        self.seconds = 0.0
        self.files = 0
        self._sequence = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    async def live(self) -> None:
        told = await self._read(LIVE_S)
        self.seconds, self.files = told["seconds"], told["files"]

    async def publish(self, size: int, expected: int | None = None) -> Round:
        """The load's own publisher sends `size` bytes; until all have them, and their answers are counted where they answer."""
        self._sequence += 1
        await self._say(f"publish {self._sequence} {size} {expected or self.clients}")
        return self._complete(Round(**await self._read(ANSWER_S)))

    async def arm(self, expected: int | None = None) -> None:
        """After this, a version that somebody publishes is waited for by `arrived`."""
        await self._say(f"await {expected or self.clients}")
        await self._read(ANSWER_S)

    async def arrived(self) -> Round:
        return self._complete(Round(**await self._read(ANSWER_S)))

    async def serve(self, milliseconds: int) -> tuple[int, int]:
        """Lets clients answer; how many of their receipts have been acknowledged since the last round began, and when the last was."""
        await self._say(f"serve {milliseconds}")
        told = await self._read(ANSWER_S)
        return told["acked"], told["acked_us"]

    async def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self, within_s: float) -> dict:
        assert self._process.stdout
        line = await asyncio.wait_for(self._process.stdout.readline(), within_s)
        if not line:
            assert self._process.stderr
            raise Failed((await self._process.stderr.read()).decode(errors="replace").strip()[-400:] or "the load ended")
        return json.loads(line)

    def _complete(self, round_: Round) -> Round:
        if round_.got < round_.expected:
            raise Failed(f"{round_.got:,} of {round_.expected:,} clients got a message, {round_.dropped:,} were dropped")
        return round_

    async def end(self) -> None:
        assert self._process.stdin
        if self._process.returncode is None:
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), 10)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


@asynccontextmanager
async def load(protocol: str, port: int, clients: int, **options: object) -> AsyncIterator[Load]:
    """With all clients live. Raises Failed."""
    binary = build("load", "-lssl", "-lcrypto")
    told = [
        text for name, value in options.items() if value for text in (f"--{name}", str(int(value) if value is True else value))
    ]
    command = [str(binary), protocol, "127.0.0.1", str(port), str(clients), *told]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    running = Load(process, clients)
    try:
        await running.live()
        yield running
    finally:
        await running.end()
