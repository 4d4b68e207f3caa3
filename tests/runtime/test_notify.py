"""What systemd hears of a service."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from heliograph.runtime.notify import Starter

DEADLINE_S = 20


@pytest.fixture(params=["path", "abstract"])
def heard(request, tmp_path):
    """The socket as systemd makes one, and its name for the service."""
    name = f"@{tmp_path.name}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.setblocking(False)
        yield listening, name


async def next_word(listening):
    return (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(listening, 100), DEADLINE_S)).decode()


async def test_ready_and_stopping_are_told_when_they_are_so(heard):
    listening, name = heard
    ready, stop = asyncio.Event(), asyncio.Event()
    async with Starter(name).follows(ready, stop):
        ready.set()
        assert await next_word(listening) == f"READY=1\nMAINPID={os.getpid()}"
        stop.set()
        assert await next_word(listening) == "STOPPING=1"


async def test_signs_of_life_are_given_while_the_loop_turns(heard):
    listening, name = heard
    async with Starter(name, watchdog_s=0.02).follows(asyncio.Event(), asyncio.Event()):
        assert [await next_word(listening) for _ in range(3)] == ["WATCHDOG=1"] * 3


def test_nobody_listens_and_nothing_happens(tmp_path):
    Starter().tell("READY=1")
    Starter(str(tmp_path / "gone")).tell("READY=1")


def test_what_is_asked_for_in_the_environment():
    assert Starter.told_by({}, 7) == Starter("", 0.0)
    told = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}
    assert Starter.told_by(told, 7) == Starter("/run/x", 30.0)
    assert Starter.told_by(told | {"WATCHDOG_PID": "8"}, 7) == Starter("/run/x", 0.0)
