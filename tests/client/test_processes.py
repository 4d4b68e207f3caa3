"""Forks, ends and neighbours: each a program of its own, as an application would write it, run with every warning an error.

But one: from Python 3.12 on it warns of every fork in a process that has threads.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.dev import DevStack, Place

DEADLINE_S = 60
# a client that hangs at the end is found by this; one that is merely slow is not
END_S = 60

START = """
import json, os, sys, time
from heliograph.blocking import Heliograph

def tell(**what):
    os.write(1, json.dumps(what).encode() + b"\\n")  # one write: lines of parent and child never mix

def until(reached):
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)

def open_client(**more):
    told = {"token": os.environ["TOKEN"], "namespace": os.environ["NAMESPACE"], "environment": "production"}
    return Heliograph(os.environ["URL"], **told, cache_dir=os.environ["CACHE"], **more)
"""
IN_MEMORY = """
import json, os, sys, time, threading
from heliograph.client.testing import InMemoryServer

server = InMemoryServer({"limits": {"max": 1}})

def tell(**what):
    os.write(1, json.dumps(what).encode() + b"\\n")
"""


class Program:
    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child

    def line(self) -> dict[str, Any]:
        """What it tells next; fails when it ends instead, or says nothing for a minute."""
        watch = threading.Timer(DEADLINE_S, self.child.kill)
        watch.start()
        try:
            assert self.child.stdout
            text = self.child.stdout.readline()
        finally:
            watch.cancel()
        assert text, self.errors()
        return dict(json.loads(text))

    def say(self) -> None:
        assert self.child.stdin
        self.child.stdin.write("\n")
        self.child.stdin.flush()

    def errors(self) -> str:
        assert self.child.stderr
        return self.child.stderr.read()

    def ends_in_silence(self, status: int = 0) -> None:
        out, errors = self.child.communicate(timeout=END_S)
        assert (self.child.returncode, out, errors) == (status, "", "")


Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    @contextmanager
    def running(program: str, place: Place | None = None) -> Iterator[Program]:
        env = {**os.environ, "CACHE": str(tmp_path)}
        if place:
            env |= {"URL": place.url, "TOKEN": place.token, "NAMESPACE": place.namespace}
        child = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-W",
                "ignore:This process:DeprecationWarning",
                "-c",
                (START if place else IN_MEMORY) + program,
            ],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield Program(child)
        finally:
            child.kill()
            child.communicate()

    return running


@pytest.fixture
def place(dev_stack: DevStack) -> Place:
    return dev_stack.place({"limits": {"max": 1, "twice": 2}})


# --- forks ---------------------------------------------------------------------------------------------------------------------

FORK = """
client = open_client(app="shop")
client.start()
limits = client.config("limits")
bound = client.bind("limits", dict[str, int])
seen = []
client.on_change(lambda update: seen.append(update.cursor.number))
pid = os.fork()
if pid == 0:
    first = (limits["max"], bound.value["max"])
    assert client.status.source == "network"
    tell(child=client.status.instance, incarnation=client.status.incarnation, first=first)
    client.wait_for_version(3, timeout=60)
    until(lambda: seen == [3])
    tell(child_runs_on=limits["max"], bound=bound.value["max"])
    sys.exit(0)
tell(parent=client.status.instance)
client.wait_for_version(3, timeout=60)
until(lambda: seen == [3])
_, status = os.waitpid(pid, 0)
client.wait_for_version(4, timeout=60)
tell(parent_runs_on=limits["max"], instance=client.status.instance, child_ended=status)
client.close()
"""


def test_a_child_goes_on_as_an_instance_of_its_own_and_its_parent_notices_nothing(run: Run, place: Place) -> None:
    with run(FORK, place) as program:
        both = {**program.line(), **program.line()}
        assert both["child"] != both["parent"]
        assert both["first"] == [1, 1]
        answer = place.publish({"limits": {"max": 2}}, prefer="wait=30")
        assert (answer["propagation"]["instances"], answer["propagation"]["applied"]) == (2, 2), "each answered for itself"
        assert program.line() == {"child_runs_on": 2, "bound": 2}
        place.publish({"limits": {"max": 3}})
        assert program.line() == {"parent_runs_on": 3, "instance": both["parent"], "child_ended": 0}
        program.ends_in_silence()


STORM = """
client = open_client()
client.start()
limits = client.config("limits")
bound = client.bind("limits", dict[str, int])
tell(ready=True)
children = []
while len(children) < 12:
    at = client.cursor.number
    client.wait_for_version(at + 2, timeout=60)
    pid = os.fork()
    if pid == 0:
        first, number = limits.value, client.cursor.number
        assert number >= at + 2, "never less than what the parent showed"
        seen = [number]
        client.on_version(lambda update: seen.append(update.cursor.number))
        client.wait_for_version(int(os.environ["LAST"]), timeout=60)
        until(lambda: seen[-1] == int(os.environ["LAST"]))
        assert seen == sorted(set(seen)), seen
        for value in (first, limits.value, bound.value):
            assert value["twice"] == 2 * value["max"], "of one version"
        until(lambda: client.status.source == "network")
        assert client.status.alarm is None
        os._exit(0)
    children.append(pid)
tell(ended=[os.waitpid(pid, 0)[1] for pid in children])
client.wait_for_version(int(os.environ["LAST"]), timeout=60)
tell(alarm=client.status.alarm, value=limits["max"])
client.close()
"""
VERSIONS = 60


def test_forks_in_the_middle_of_a_storm(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a fork catches the parent's thread, the child goes on from a whole version."""
    monkeypatch.setenv("LAST", str(2 + VERSIONS))
    with run(STORM, place) as program:
        assert program.line() == {"ready": True}
        for number in range(VERSIONS):
            place.publish({"limits": {"max": 100 + number, "twice": 2 * (100 + number)}})
        assert program.line() == {"ended": [0] * 12}, program.errors()
        assert program.line() == {"alarm": None, "value": 99 + VERSIONS}
        program.ends_in_silence()


POOL = """
import multiprocessing
client = open_client()
client.start()

def work(_):
    client.wait_for_version(3, timeout=60)
    return client.config("limits")["max"], client.status.instance

if __name__ == "__main__":
    tell(parent=client.status.instance)
    sys.stdin.readline()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(work, range(2), chunksize=1)
    tell(found=sorted(found))
    process = multiprocessing.get_context("fork").Process(target=work, args=(0,))
    process.start()
    process.join()
    tell(status=process.exitcode)
"""


def test_multiprocessing(run: Run, place: Place) -> None:
    with run(POOL, place) as program:
        parent = program.line()["parent"]
        place.publish({"limits": {"max": 2}})
        program.say()
        found = program.line()["found"]
        assert {value for value, _ in found} == {2}
        assert parent not in {instance for _, instance in found}
        assert program.line() == {"status": 0}
        program.ends_in_silence()


IDLE = """
client = server.blocking_client()
client.start()
limits = client.config("limits")
pid = os.fork()
if pid == 0:
    server.publish({"limits": {"max": 2}})  # while this child does not use its client
    tell(first=limits["max"])
    os._exit(0)
os.waitpid(pid, 0)
pid = os.fork()
if pid == 0:
    server.stop()
    tell(cut_off=limits["max"], source=client.status.source)
    server.start()
    client.close()
    os._exit(0)
os.waitpid(pid, 0)
pid = os.fork()
if pid == 0:
    async def main():
        return limits["max"], client.config("limits")["max"]
    tell(in_a_loop=__import__("asyncio").run(main()))
    server.publish({"limits": {"max": 3}}).wait()
    client.wait_for_version(3, timeout=60)
    tell(then=limits["max"])
    os._exit(0)
os.waitpid(pid, 0)
client.close()
"""


def test_the_first_use_in_a_child_is_up_to_date_if_it_can_be(run: Run) -> None:
    with run(IDLE) as program:
        assert program.line() == {"first": 2}
        assert program.line() == {"cut_off": 1, "source": "parent"}
        assert program.line() == {"in_a_loop": [1, 1]}
        assert program.line() == {"then": 3}
        program.ends_in_silence()


FORKED_ASYNC = """
import asyncio
from heliograph.client import Heliograph as Async
from heliograph.core.errors import InvalidRequest

async def main():
    async with server.client() as client:
        limits = client.config("limits")
        pid = os.fork()
        if pid == 0:
            try:
                limits["max"]
            except InvalidRequest as error:
                tell(child=str(error), phase=client.status.phase, connected=client.status.connected)
            os._exit(0)
        os.waitpid(pid, 0)
        await server.publish({"limits": {"max": 2}}).answered()
        tell(parent=limits["max"], phase=client.status.phase)
    pid = os.fork()
    if pid == 0:
        tell(closed=limits["max"])
        os._exit(0)
    os.waitpid(pid, 0)

asyncio.run(main())
"""


def test_the_async_client_says_in_the_child_that_it_belongs_to_the_parent(run: Run) -> None:
    with run(FORKED_ASYNC) as program:
        told = program.line()
        assert "before this process was forked" in told["child"]
        assert "heliograph.blocking" in told["child"]
        assert (told["phase"], told["connected"]) == ("stopped", False)
        assert program.line() == {"parent": 2, "phase": "running"}
        assert program.line() == {"closed": 2}, "what a closed client had is only memory"
        program.ends_in_silence()


ORPHAN = """
client = open_client()
client.start()
pid = os.fork()
if pid == 0:
    sys.stdin.readline()
    tell(child=client.config("limits")["max"])
    until(lambda: client.status.source == "network")
    tell(instance=client.status.instance)
    sys.stdin.readline()
    os._exit(0)
tell(parent=client.status.instance, pid=os.getpid())
os.waitpid(pid, 0)
"""
NEXT = """
client = open_client()
client.start()
tell(instance=client.status.instance)
client.close()
"""


def test_a_killed_parent_s_name_is_free_although_its_child_lives(run: Run, place: Place) -> None:
    """A child that held on to the lock or the socket would keep the parent's instance alive, and its successor would be a stranger."""
    with run(ORPHAN, place) as program:
        parent = program.line()
        os.kill(parent["pid"], signal.SIGKILL)
        program.child.wait(END_S)
        with run(LIVING, place) as successor:
            assert successor.line()["instance"] == parent["parent"]
            program.say()
            assert program.line() == {"child": 1}
            assert program.line()["instance"] != parent["parent"]
            successor.say()
            successor.ends_in_silence()
        program.say()


# --- the end of the interpreter ------------------------------------------------------------------------------------------------

UNCLOSED = """
client = open_client()
client.start()
client.on_change(print)
client.wait_for_version(3, timeout=60)
tell(instance=client.status.instance)
"""


def test_an_end_without_close_is_silent_and_loses_no_receipt(run: Run, place: Place) -> None:
    place.publish({"limits": {"max": 2}})
    with run(UNCLOSED, place) as program:
        instance = program.line()["instance"]
        program.ends_in_silence()
    receipts = eventually(lambda: place.receipts(3))
    assert receipts[instance]["state"] == "applied"
    with run(NEXT, place) as again:
        assert again.line() == {"instance": instance}, "its name was kept"


HANGING = """
client = server.blocking_client()
client.start()
stuck = threading.Event()

@client.on_change
def hangs(update):
    stuck.set()
    threading.Event().wait()

server.publish({"limits": {"max": 2}}).wait()
stuck.wait()
threading.Thread(target=list, args=(client.config("limits").changes(),), daemon=True).start()
tell(ready=True)
"""


def test_an_end_does_not_wait_for_a_callback_that_hangs(run: Run) -> None:
    with run(HANGING) as program:
        assert program.line() == {"ready": True}
        program.ends_in_silence()


FAILING = """
client = server.blocking_client()
client.start()
server.stop()
tell(ready=True)
sys.exit(7)
"""


def test_an_end_while_the_server_is_away(run: Run) -> None:
    with run(FAILING) as program:
        assert program.line() == {"ready": True}
        program.ends_in_silence(7)


INTERRUPTED = """
with server.blocking_client() as client:
    for wait in (lambda: client.wait_for_version(99), lambda: next(client.config("limits").changes())):
        try:
            tell(waiting=True)
            wait()
        except KeyboardInterrupt:
            tell(interrupted=True)
    [answer] = server.publish({"limits": {"max": 2}}).wait()
    tell(goes_on=client.config("limits")["max"])
"""


def test_ctrl_c_ends_a_call_that_waits_and_nothing_else(run: Run) -> None:
    with run(INTERRUPTED) as program:
        for _ in range(2):
            assert program.line() == {"waiting": True}
            program.child.send_signal(signal.SIGINT)
            assert program.line() == {"interrupted": True}
        assert program.line() == {"goes_on": 2}
        program.ends_in_silence()


STARTING = """
server.stop()
client = server.blocking_client(start_timeout=60)

def say_when_it_starts():
    while client.status.phase != "starting":
        time.sleep(0.01)
    tell(starting=True)

threading.Thread(target=say_when_it_starts).start()
try:
    client.start()
except KeyboardInterrupt:
    tell(interrupted=True, phase=client.status.phase, threads=[t.name for t in threading.enumerate() if t.name == "heliograph"])
server.start()
with server.blocking_client() as other:
    tell(another=other.config("limits")["max"])
"""


def test_ctrl_c_ends_a_start(run: Run) -> None:
    with run(STARTING) as program:
        assert program.line() == {"starting": True}
        program.child.send_signal(signal.SIGINT)
        assert program.line() == {"interrupted": True, "phase": "closed", "threads": []}
        assert program.line() == {"another": 1}
        program.ends_in_silence()


# --- neighbours ----------------------------------------------------------------------------------------------------------------

LIVING = """
with open_client() as client:
    tell(instance=client.status.instance, incarnation=client.status.incarnation)
    sys.stdin.readline()
"""


def test_reloading_two_processes_share_a_folder_for_a_while(run: Run, place: Place) -> None:
    with run(LIVING, place) as old, run(LIVING, place) as new:
        first, second = old.line(), new.line()
        assert first["instance"] != second["instance"]
        answer = place.publish({"limits": {"max": 2}}, prefer="wait=30")
        assert answer["propagation"]["applied"] == 2
        old.say()
        old.ends_in_silence()
        with run(LIVING, place) as third:
            again = third.line()
            assert again["instance"] == first["instance"]
            assert again["incarnation"] > first["incarnation"]


def eventually(reached: Callable[[], Any]) -> Any:
    import time

    end = time.monotonic() + DEADLINE_S
    while not (found := reached()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found
