"""What this process tells whoever started it, by systemd's protocol (sd_notify): that it is ready, that it stops, that its event loop turns.

The words go to the socket that `NOTIFY_SOCKET` names; without it there is nobody to tell. `WATCHDOG_USEC` asks for a sign of life within that time:
a process whose loop hangs gives none, and is started again.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import structlog

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Starter:
    """`socket`: a path, or an abstract name with ``@`` before it; empty: nobody listens. `watchdog_s`: 0 when no sign of life is asked for."""

    socket: str = ""
    watchdog_s: float = 0.0

    @classmethod
    def told_by(cls, environment: Mapping[str, str], pid: int) -> Self:
        asked = environment.get("WATCHDOG_USEC", "")
        for_us = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        return cls(environment.get("NOTIFY_SOCKET", ""), int(asked) / 1e6 if asked.isdecimal() and for_us else 0.0)

    def tell(self, state: str) -> None:
        """Never waits and never raises: who does not listen misses it."""
        if not self.socket:
            return
        address = "\0" + self.socket[1:] if self.socket.startswith("@") else self.socket
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.setblocking(False)
                sending.sendto(state.encode(), address)
        except OSError as error:
            log.warning("starter_not_told", state=state, error=error.strerror)

    @asynccontextmanager
    async def follows(self, ready: asyncio.Event, stop: asyncio.Event) -> AsyncIterator[None]:
        """Inside, it is told of each of the two, and that the loop turns."""
        tasks = [
            asyncio.create_task(self._tell_when(ready, f"READY=1\nMAINPID={os.getpid()}"), name="notify ready"),
            asyncio.create_task(self._tell_when(stop, "STOPPING=1"), name="notify stopping"),
            asyncio.create_task(self._keep_telling(), name="notify alive"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell_when(self, event: asyncio.Event, state: str) -> None:
        await event.wait()
        self.tell(state)

    async def _keep_telling(self) -> None:
        while self.socket and self.watchdog_s:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)
