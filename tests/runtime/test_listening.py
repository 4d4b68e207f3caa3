"""Sockets that are handed over: who gets which, and that nobody is refused while a process is started again on one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from heliograph.core.errors import InvalidRequest
from heliograph.runtime.listening import HandedOver, listening, start_with

DEADLINE_S = 60
SERVER = """
import asyncio, os, signal
from starlette.responses import PlainTextResponse
from heliograph.runtime.http_server import serve_http

async def app(scope, receive, send):
    await PlainTextResponse(str(os.getpid()))(scope, receive, send)

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve_http(app, "name.invalid", 1, stop=stop, drain_s=1, name="registry")

asyncio.run(main())
"""


def start(door: socket.socket) -> int:
    return start_with([("registry", door)], [sys.executable, "-c", SERVER], os.environ)


async def end(pid: int, how: signal.Signals = signal.SIGTERM) -> None:
    os.kill(pid, how)
    await asyncio.wait_for(asyncio.to_thread(os.waitpid, pid, 0), DEADLINE_S)


async def ask(address: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.wait_for(asyncio.open_connection(*address), DEADLINE_S)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return reader, writer


async def answer(asked: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> int:
    reader, writer = asked
    text = await asyncio.wait_for(reader.read(), DEADLINE_S)
    writer.close()
    assert text.startswith(b"HTTP/1.1 200"), text
    return int(text.rpartition(b"\r\n")[2])


@pytest.fixture
def door():
    with listening("", "127.0.0.1", 0) as made:
        made.listen(64)
        yield made


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_connections_wait_while_the_process_is_started_again(door, how):
    """The one that was handed the socket stops, or dies: who comes then is neither refused nor reset, the next process serves them all."""
    address = door.getsockname()
    first = start(door)
    assert await answer(await ask(address)) == first
    await end(first, how)
    waiting = [await ask(address) for _ in range(20)]
    second = start(door)
    assert {await answer(each) for each in waiting} == {second}
    await end(second)


async def test_an_old_and_a_new_process_serve_side_by_side(door):
    address = door.getsockname()
    old = start(door)
    assert await answer(await ask(address)) == old
    new = start(door)
    async with asyncio.timeout(DEADLINE_S):
        while await answer(await ask(address)) != new:
            pass
    await end(old)
    assert await answer(await ask(address)) == new
    await end(new)


def test_nothing_is_handed_over_by_default_and_what_is_for_another_process_is_not_ours():
    assert HandedOver.told_by({}, 1).take("sync") is None
    told = {"LISTEN_PID": "2", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "sync"}
    assert HandedOver.told_by(told, 1).take("sync") is None


@pytest.mark.parametrize(
    "told",
    [
        {"LISTEN_FDS": "one", "LISTEN_FDNAMES": "sync"},
        {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "sync"},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "heliograph-sync.socket"},
        {"LISTEN_FDS": "100000", "LISTEN_FDNAMES": "sync"},
    ],
)
def test_what_does_not_fit_together_is_said(told):
    with pytest.raises(InvalidRequest, match="LISTEN_FD"):
        HandedOver.told_by(told, 1)


def test_a_socket_is_given_out_once_and_not_to_our_own_children(door):
    given = HandedOver({"sync": [os.dup(door.fileno())]})
    os.set_inheritable(door.fileno(), False)
    with given.take("sync") as taken:
        assert taken.getsockname() == door.getsockname()
        assert not taken.get_inheritable()
    assert given.take("sync") is None


def test_a_descriptor_that_is_no_listening_socket_is_said(tmp_path: Path):
    with (tmp_path / "file").open("w") as file, pytest.raises(InvalidRequest, match="'sync'"):
        HandedOver({"sync": [os.dup(file.fileno())]}).take("sync")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(InvalidRequest, match="takes no"):
        HandedOver({"sync": [os.dup(datagrams.fileno())]}).take("sync")


def test_two_of_one_name_are_for_workers(door):
    with pytest.raises(InvalidRequest, match="--workers"):
        HandedOver({"sync": [door.fileno(), door.fileno()]}).take("sync")


def test_an_address_can_be_shared_if_all_say_so():
    with listening("", "127.0.0.1", 0, reuse_port=True) as one:
        one.listen()
        port = one.getsockname()[1]
        with listening("", "127.0.0.1", port, reuse_port=True) as other:
            assert other.getsockname() == one.getsockname()
        with pytest.raises(InvalidRequest, match="cannot listen"):
            listening("", "127.0.0.1", port)
