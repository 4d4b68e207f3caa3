"""The two kinds of clients that are measured: the crowd (C, does not verify) and real SDK processes (verify and apply)."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.stacks import ROOT, Stack

READY_S = 180
Arrivals = dict[int, list[int]]  # version number -> moments in Unix microseconds, one a client


def build_crowd() -> Path:
    binary = ROOT / "bench/out/crowd"
    binary.parent.mkdir(exist_ok=True)
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", binary, ROOT / "bench/crowd.c"], check=True)
    return binary


@asynccontextmanager
async def crowd(stack: Stack, token: str, target: tuple[str, str], clients: int, out: Path) -> AsyncIterator[None]:
    stream = urlsplit(stack.endpoints["stream"])
    command = [str(build_crowd()), str(stream.hostname), str(stream.port), token, *target, str(clients), str(out)]
    async with _children([command]):
        yield


@asynccontextmanager
async def sdks(stack: Stack, token: str, target: tuple[str, str], processes: int, folder: Path) -> AsyncIterator[None]:
    script = ROOT / "bench/sdk_process.py"
    commands = [[sys.executable, str(script), stack.url, *target, str(folder / f"sdk-{i}")] for i in range(processes)]
    async with _children(commands, token):
        yield


@asynccontextmanager
async def _children(commands: list[list[str]], secret: str = "") -> AsyncIterator[None]:
    """Starts all, waits until each has said READY, ends them by closing their standard input."""
    children = [
        await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for command in commands
    ]
    try:
        for child in children:
            assert child.stdin
            assert child.stdout
            if secret:
                child.stdin.write(secret.encode() + b"\n")
            line = await asyncio.wait_for(child.stdout.readline(), READY_S)
            if not line.startswith(b"READY"):
                raise RuntimeError(f"a client did not become ready: {line!r}")
        yield
    finally:
        for child in children:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                child.stdin.close()
        codes = [await asyncio.wait_for(child.wait(), 60) for child in children]
    if any(codes):
        raise RuntimeError(f"clients ended with {codes}: the figures would not be about all of them")


def read_arrivals(*files: Path) -> Arrivals:
    out: Arrivals = defaultdict(list)
    for file in files:
        for line in file.read_text().splitlines():
            number, _, moment = line.split()
            out[int(number)].append(int(moment))
    return out
