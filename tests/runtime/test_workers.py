"""What the supervisor does with workers that die, do not start, or do not stop. The workers are small programs that are broken on demand."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import structlog

from heliograph.core.errors import HeliographError, InvalidRequest
from heliograph.runtime import workers as module
from heliograph.runtime.workers import Door, Workers

DEADLINE_S = 60
WORKER = """
import asyncio, os, signal, sys
from pathlib import Path
from starlette.responses import PlainTextResponse
from heliograph.runtime.http_server import serve_http
from heliograph.runtime.leaving import Leave
from heliograph.runtime.notify import Starter
from heliograph.runtime.place import own_place

place, starter = own_place(), Starter.told_by(os.environ, os.getpid())
broken, deaf = (Path(sys.argv[1]) / f"{how}-{place.number}" for how in ("broken", "deaf"))
if broken.exists():
    sys.exit(int(broken.read_text()))

async def app(scope, receive, send):
    await PlainTextResponse(f"{place.number} {place.start} {os.getpid()}")(scope, receive, send)

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: deaf.exists() or stop.set())
    ready = lambda: starter.tell(f"READY=1\\nMAINPID={os.getpid()}")
    await serve_http(app, "name.invalid", 1, stop=stop, leave=Leave(drain_s=1), name="sync-http", on_started=ready)

asyncio.run(main())
"""


class Node:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.ready, self.stop, self.renewal = asyncio.Event(), asyncio.Event(), asyncio.Event()
        command = (sys.executable, "-c", WORKER, str(folder))
        self.workers = Workers(command, [Door("sync-http", "127.0.0.1", port)], 2, drain_s=1)
        self.task = asyncio.create_task(self.workers.run(ready=self.ready, stop=self.stop, renewal=self.renewal))

    async def ask(self) -> tuple[int, int, int]:
        """Number, start and process of whoever answered on a new connection."""
        async with httpx.AsyncClient(timeout=DEADLINE_S) as http:
            number, start, pid = (await http.get(self.url)).text.split()
        return int(number), int(start), int(pid)

    async def both(self) -> dict[int, tuple[int, int]]:
        """Start and process by number, once both have answered."""
        found: dict[int, tuple[int, int]] = {}
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < 2:
                number, start, pid = await self.ask()
                found[number] = start, pid
        return found

    def make(self, how: str, number: int, text: str = "1") -> Path:
        made = self.folder / f"{how}-{number}"
        made.write_text(text)
        return made


@pytest.fixture
async def node(tmp_path, free_port):
    made = Node(tmp_path, free_port())
    async with asyncio.timeout(DEADLINE_S):
        await made.ready.wait()
    yield made
    made.stop.set()
    async with asyncio.timeout(DEADLINE_S):
        await made.task


@asynccontextmanager
async def said(event: str):
    """What was logged meanwhile; left when it holds the event."""
    with structlog.testing.capture_logs() as logs:
        yield logs
        async with asyncio.timeout(DEADLINE_S):
            while event not in {each["event"] for each in logs}:
                await asyncio.sleep(0.02)


async def test_a_place_that_cannot_be_filled_takes_no_connections_until_it_can(node):
    """Its socket is replaced by one that does not listen, so that the kernel gives everybody to the other, until a worker starts at last."""
    before = await node.both()
    broken = node.make("broken", 1)
    async with said("worker_died") as logs:
        os.kill(before[1][1], signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_S):
            while not [each for each in logs if each["event"] == "worker_died" and each["status"] == 1]:
                await asyncio.sleep(0.02)
    assert {(await node.ask())[0] for _ in range(20)} == {2}
    broken.unlink()
    after = await node.both()
    assert after[2] == before[2]
    assert after[1][0] > 1


async def test_what_is_new_and_does_not_start_leaves_the_old_workers_in_place(node):
    before = await node.both()
    broken = node.make("broken", 1)
    async with said("worker_not_renewed"):
        node.renewal.set()
    assert await node.both() == before
    broken.unlink()
    async with said("workers_renewed"):
        node.renewal.set()
    after = await node.both()
    assert not {pid for _, pid in before.values()} & {pid for _, pid in after.values()}


async def test_a_system_that_has_no_process_for_us_is_asked_again_while_others_serve(node, monkeypatch):
    before = await node.both()
    start_with, refusals = module.start_with, iter([BlockingIOError(11, "Resource temporarily unavailable")])

    def reluctant(*arguments, **more):
        for refusal in refusals:
            raise refusal
        return start_with(*arguments, **more)

    monkeypatch.setattr(module, "start_with", reluctant)
    async with said("worker_not_started"):
        os.kill(before[1][1], signal.SIGKILL)
    after = await node.both()
    assert after[2] == before[2]
    assert after[1] != before[1]


async def test_a_worker_that_does_not_stop_is_killed(node, monkeypatch):
    node.make("deaf", 2)
    monkeypatch.setattr(node.workers, "_end_s", 0.5)
    async with said("worker_did_not_stop"):
        node.stop.set()
    async with asyncio.timeout(DEADLINE_S):
        await node.task


@pytest.mark.parametrize(("status", "error", "says"), [(1, HeliographError, "ended 2 times"), (2, InvalidRequest, "settings")])
async def test_a_node_whose_workers_cannot_start_gives_up(tmp_path, free_port, monkeypatch, status, error, says):
    monkeypatch.setattr(module, "MAX_FAILURES", 2)
    for number in (1, 2):
        (tmp_path / f"broken-{number}").write_text(str(status))
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await Node(tmp_path, free_port()).task
    assert caught.group_contains(error, match=says)
