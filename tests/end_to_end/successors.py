"""A service whose address stays while its processes follow each other: what systemd's socket units, or a container's parent, make of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.processes import ROOT

from heliograph.runtime.listening import listening, start_with

START_S = 60
END_S = 90


@dataclass
class Process:
    name: str
    pid: int
    log: Path

    async def told(self, notices: socket.socket, word: str) -> None:
        """Until it has said so. Fails when it ends instead, or says nothing."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(START_S):
                while word not in (await loop.sock_recv(notices, 100)).decode().splitlines():
                    pass
        except TimeoutError:
            raise AssertionError(f"{self.name} does not say {word}:\n{self.tail()}") from None

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        os.kill(self.pid, how)
        try:
            _, status = await asyncio.wait_for(asyncio.to_thread(os.waitpid, self.pid, 0), END_S)
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"{self.name} did not end:\n{self.tail()}") from None
        return os.waitstatus_to_exitcode(status)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


@dataclass
class Service:
    """``doors``: its listening sockets, by the names under which they are handed over."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    folder: Path
    doors: Sequence[tuple[str, socket.socket]]
    generation: int = 0
    process: Process | None = field(default=None, repr=False)

    async def start(self) -> Process:
        """One more process on the same sockets; returns when it is ready."""
        self.generation += 1
        place = self.folder / f"{self.name}-{self.generation}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(f"{place}.notify")
            notices.setblocking(False)
            log = place.with_suffix(".log")
            environment = {**os.environ, **self.env, "NOTIFY_SOCKET": f"{place}.notify", "PYTHONPATH": str(ROOT / "src")}
            into_log = ["/bin/bash", "-c", 'exec "$@" >>"$0" 2>&1', str(log), *self.command]
            self.process = Process(self.name, start_with(self.doors, into_log, environment), log)
            await self.process.told(notices, "READY=1")
        return self.process

    async def replace(self) -> int:
        """A new process beside the old one, which is then asked to stop; the old one's exit status."""
        old = self.process
        assert old
        await self.start()
        return await old.end()


@asynccontextmanager
async def on_doors(
    name: str, command: Sequence[str], env: Mapping[str, str], folder: Path, ports: Mapping[str, int]
) -> AsyncIterator[Service]:
    """``ports``: of each of its sockets, by name."""
    doors = [(door, listening("", "127.0.0.1", port)) for door, port in ports.items()]
    for _, each in doors:
        each.listen(1024)
    service = Service(name, command, env, folder, doors)
    try:
        yield service
    finally:
        if service.process:
            await service.process.end(signal.SIGKILL)
        for _, each in doors:
            each.close()
