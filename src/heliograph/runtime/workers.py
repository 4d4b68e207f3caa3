"""Several processes on the same ports: starts them, replaces those that die, renews them one after another, drains them all.

Each place has sockets of its own on the ports (SO_REUSEPORT; the kernel spreads connections over them). They stay open here while a worker is
replaced, so that who connects meanwhile waits in the queue instead of being refused. A worker is a fresh program, not a fork of this one: loops,
threads, librdkafka and OpenSSL begin in it, and a renewal runs the code and the settings' files as they are by then. That costs each worker some
tens of megabytes and a second of start; its clients cost more.

What passes between supervisor and worker are known protocols: sockets as systemd hands them over (`listening`), readiness as sd_notify tells it
(`place`), SIGTERM for a drain. The worker's standard input is a pipe that only the supervisor holds: its end tells a worker that it is alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from heliograph.core.errors import HeliographError, InvalidRequest, Unavailable
from heliograph.runtime.listening import handed_over, listening, start_with
from heliograph.runtime.place import Place
from heliograph.runtime.process import Exit
from heliograph.runtime.retry import delay
from heliograph.runtime.waiting import first_of

log = structlog.get_logger()

SETTLED_S: Final = 30.0
"""A worker that lived this long was a good one: its death is the first again."""
MAX_FAILURES: Final = 6
"""Starts in a row that come to nothing, while no worker serves, before the node gives up: some ten seconds."""
BACKOFF_CAP_S: Final = 30.0
RENEW_S: Final = 120.0
"""For a new worker to be ready beside the old one. Otherwise the old one stays."""
END_MARGIN_S: Final = 15.0
"""Beyond twice the drain: a worker drains its clients, then its receipts."""


@dataclass(frozen=True, slots=True)
class Door:
    """A port that every worker serves. ``name``: as the worker asks `listening` for it."""

    name: str
    host: str
    port: int


@dataclass(eq=False)
class Worker:
    """One process. ``lifeline``: its standard input's other end."""

    pid: int
    lifeline: int
    began_s: float
    told: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0

    def tell(self, which: signal.Signals) -> None:
        self.told = True
        if not self.over.is_set():  # until then the number is its own
            os.kill(self.pid, which)

    def ended(self, status: int) -> None:
        self.status = status
        os.close(self.lifeline)
        self.over.set()


class Slot:
    """A place, and who fills it."""

    def __init__(self, node: Workers, number: int, sockets: Sequence[tuple[str, socket.socket]], *, borrowed: bool) -> None:
        self.number = number
        self.worker: Worker | None = None
        self._node = node
        self._sockets = sockets
        self._borrowed = borrowed  # others use the sockets too
        self._starts = 0
        self._filling = asyncio.Lock()

    @property
    def serves(self) -> bool:
        return self.worker is not None and self.worker.ready.is_set() and not self.worker.over.is_set()

    async def keep(self) -> None:
        """Has one worker here until cancelled. Raises when none can be had."""
        failures = 0
        worker = self.worker = self._start()
        while True:
            await worker.over.wait()
            if not worker.told:
                failures = await self._died(worker, failures)
            async with self._filling:
                if self.worker is worker:
                    self.worker = await self._filled()
                worker = self.worker
                assert worker is not None

    async def _filled(self) -> Worker:
        """Tries on while the system has no process for it, if others serve meanwhile. Raises Unavailable if not."""
        failures = 0
        while True:
            try:
                return self._start()
            except Unavailable as error:
                if not self._node.serves:
                    raise
                log.error("worker_not_started", worker=self.number, detail=error.detail)
            await asyncio.sleep(delay(failures, base_s=0.5, cap_s=BACKOFF_CAP_S))
            failures += 1

    async def _died(self, worker: Worker, failures: int) -> int:
        """By itself. Returns how many came to nothing in a row, after the pause before the next."""
        lived_s = asyncio.get_running_loop().time() - worker.began_s
        failures = 0 if lived_s > SETTLED_S else failures + 1
        log.error("worker_died", worker=self.number, pid=worker.pid, status=worker.status, lived_s=round(lived_s, 1))
        if not worker.ready.is_set():
            self._shut()
            self._node.consider_giving_up(self.number, worker.status, failures)
        await asyncio.sleep(delay(failures - 2, base_s=0.5, cap_s=BACKOFF_CAP_S) if failures > 1 else 0)
        return failures

    def _shut(self) -> None:
        """Nobody will take what waits here soon: sockets that do not listen yet, so that the kernel sends new connections to the others."""
        if not self._borrowed:
            self._sockets = [(name, _anew(each)) for name, each in self._sockets]

    def close(self) -> None:
        for _, each in self._sockets:
            each.close()

    async def renew(self) -> None:
        """A new worker beside the old one, on the same sockets. When it is ready, the old one drains; when it does not get ready, it goes."""
        async with self._filling:
            new = self._start()
            await first_of(new.ready, new.over, timeout_s=RENEW_S)
            if not new.ready.is_set() or new.over.is_set():
                new.tell(signal.SIGKILL)
                log.error("worker_not_renewed", worker=self.number, status=new.status if new.over.is_set() else None)
                raise Unavailable(f"worker {self.number} was not renewed")
            old, self.worker = self.worker, new
        if old is not None:
            old.tell(signal.SIGTERM)
            await self._node.end(old)

    def _start(self) -> Worker:
        self._starts += 1
        return self._node.start(self.number, self._starts, self._sockets)


class Workers:
    """``command``: the worker's program and arguments. ``drain_s``: what each takes for its drain, and for its receipts after it."""

    def __init__(self, command: Sequence[str], doors: Sequence[Door], count: int, *, drain_s: float) -> None:
        self._command = command
        self._doors = doors
        self._count = count
        self._end_s = 2 * drain_s + END_MARGIN_S
        self._slots: list[Slot] = []
        self._living: dict[int, Worker] = {}
        self._folder = Path()

    async def run(self, *, ready: asyncio.Event, stop: asyncio.Event, renewal: asyncio.Event) -> None:
        """Until `stop` is set: then all drain at once. `renewal`, set at any time: one after another.

        Sets `ready` when all workers are for the first time. Raises when workers cannot start at all. Leaves no worker behind.
        """
        if not hasattr(os, "pidfd_open"):
            raise InvalidRequest("several workers need Linux; elsewhere HELIOGRAPH_WORKERS must be 1")
        self._slots = self._open()
        async with self._meeting_place():
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(each.keep(), name=f"worker {each.number}") for each in self._slots]
                    tasks.append(group.create_task(self._announce(ready)))
                    tasks.append(group.create_task(self._renew_whenever(renewal)))
                    await stop.wait()
                    for task in tasks:
                        task.cancel()
            finally:
                for slot in self._slots:
                    slot.close()
                await self._end_all()

    @property
    def serves(self) -> bool:
        """At least one worker does."""
        return any(slot.serves for slot in self._slots)

    def start(self, number: int, start: int, sockets: Sequence[tuple[str, socket.socket]]) -> Worker:
        place = Place(number, self._count, self._folder, start)
        theirs, ours = os.pipe()
        try:
            environment = {**os.environ, **place.told, "NOTIFY_SOCKET": str(self._folder / "notify")}
            pid = start_with(sockets, self._command, environment, stdin=theirs)
        except OSError as error:
            os.close(ours)
            raise Unavailable(f"the system starts no more processes now: {error.strerror}") from None
        finally:
            os.close(theirs)
        log.info("worker_started", worker=number, pid=pid, start=start)
        loop = asyncio.get_running_loop()
        worker = self._living[pid] = Worker(pid, ours, loop.time())
        ending = os.pidfd_open(pid)  # can be read from once it has ended; until it is reaped its number is nobody else's
        loop.add_reader(ending, self._reap, worker, ending)
        return worker

    def consider_giving_up(self, number: int, status: int, failures: int) -> None:
        """Raises when workers cannot start: at once for settings that do not fit, unless others serve."""
        if self.serves:
            return
        if status == Exit.BAD_SETTINGS:
            raise InvalidRequest(f"worker {number} cannot start with these settings; what it said stands above")
        if failures >= MAX_FAILURES:
            kind = Unavailable if status == Exit.UNAVAILABLE else HeliographError
            raise kind(f"worker {number} ended {failures} times before it was ready, last with status {status}")

    async def end(self, *workers: Worker) -> None:
        """They were told to stop; who does not in time is killed."""
        try:
            async with asyncio.timeout(self._end_s):
                for each in workers:
                    await each.over.wait()
        except TimeoutError:
            for each in workers:
                if not each.over.is_set():
                    log.error("worker_did_not_stop", pid=each.pid, after_s=self._end_s)
                    each.tell(signal.SIGKILL)
            for each in workers:
                await each.over.wait()

    # --- parts of a life ---

    def _open(self) -> list[Slot]:
        sockets: list[list[tuple[str, socket.socket]]] = [[] for _ in range(self._count)]
        borrowed = False
        for door in self._doors:
            given = handed_over().take_all(door.name)
            borrowed = borrowed or bool(given)
            for index, each in enumerate(sockets):
                mine = given[index % len(given)].dup() if given else self._bound(door, sockets[0] if index else [])
                each.append((door.name, mine))
            for one in given:
                one.close()
        return [Slot(self, number, each, borrowed=borrowed) for number, each in enumerate(sockets, 1)]

    @staticmethod
    def _bound(door: Door, first: Sequence[tuple[str, socket.socket]]) -> socket.socket:
        """Port 0 stands for one that is free: the same for all."""
        chosen = next((each.getsockname()[1] for name, each in first if name == door.name), door.port)
        return listening("", door.host, chosen, reuse_port=True)

    @asynccontextmanager
    async def _meeting_place(self) -> AsyncIterator[None]:
        """A folder for their sockets, and an ear for what they tell."""
        loop = asyncio.get_running_loop()
        folder = await asyncio.to_thread(tempfile.TemporaryDirectory[str], prefix="heliograph-")
        self._folder = Path(folder.name)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
                ear.bind(str(self._folder / "notify"))
                ear.setblocking(False)
                loop.add_reader(ear, self._listen, ear)
                try:
                    yield
                finally:
                    loop.remove_reader(ear)
        finally:
            await asyncio.to_thread(folder.cleanup)

    def _listen(self, ear: socket.socket) -> None:
        told = dict(line.partition("=")[::2] for line in ear.recv(4096).decode(errors="replace").splitlines())
        worker = self._living.get(int(told.get("MAINPID", "0")))
        if worker is not None and told.get("READY") == "1":
            worker.ready.set()

    def _reap(self, worker: Worker, ending: int) -> None:
        asyncio.get_running_loop().remove_reader(ending)
        os.close(ending)
        _, status = os.waitpid(worker.pid, 0)
        del self._living[worker.pid]
        worker.ended(os.waitstatus_to_exitcode(status))

    async def _announce(self, ready: asyncio.Event) -> None:
        for slot in self._slots:
            while not slot.serves:  # noqa: ASYNC110  # whoever fills the place by then
                await asyncio.sleep(0.05)
        log.info("workers_ready", workers=self._count)
        ready.set()

    async def _renew_whenever(self, renewal: asyncio.Event) -> None:
        while True:
            await renewal.wait()
            renewal.clear()
            log.info("workers_renewing", workers=self._count)
            try:
                for slot in self._slots:
                    await slot.renew()
            except HeliographError:
                continue  # what is new does not work: the others stay as they are
            log.info("workers_renewed", workers=self._count)

    async def _end_all(self) -> None:
        living = list(self._living.values())
        for each in living:
            each.tell(signal.SIGTERM)
        await self.end(*living)


def _anew(door: socket.socket) -> socket.socket:
    """Another one at the same address; closes this one. (One that was shut and listens again gives connections that are at their end.)"""
    host, port = door.getsockname()[:2]
    with door:
        return listening("", host, port, reuse_port=True)
