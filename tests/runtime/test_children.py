"""Child processes: started without Python in the fork, heard, told, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from heliograph.runtime.children import PIPE, start

DEADLINE_S = 60
ECHO = "import sys; sys.stdout.write(sys.stdin.read().upper())"
SLEEP = "import time; print('here', flush=True); time.sleep(3600)"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of the fork here
async def test_no_hook_of_a_fork_runs_before_the_program() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    hooked = [writing]
    os.register_at_fork(after_in_child=lambda: [os.write(each, b"x") for each in hooked])  # cannot be taken back
    try:
        assert await (await start("true")).wait() == 0
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        child = os.fork()  # the hook itself works
        if child == 0:
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        assert os.read(reading, 1) == b"x"
    finally:
        hooked.clear()
        os.close(reading)
        os.close(writing)


async def test_it_is_asked_answers_and_ends() -> None:
    child = await start(sys.executable, "-c", ECHO, stdin=PIPE, stdout=PIPE)
    assert child.returncode is None
    child.stdin.write(b"well ")
    await child.stdin.drain()
    child.stdin.write(b"then")
    child.stdin.close()
    async with asyncio.timeout(DEADLINE_S):
        assert await child.output() == b"WELL THEN"
    assert child.returncode == 0


async def test_what_it_writes_may_be_more_than_the_pipes_hold() -> None:
    child = await start(sys.executable, "-c", "print('x' * 5_000_000)", stdout=PIPE)
    async with asyncio.timeout(DEADLINE_S):
        assert len(await child.output()) == 5_000_001


async def test_a_signal_ends_it_and_a_second_one_finds_nobody() -> None:
    child = await start(sys.executable, "-c", SLEEP, stdin=PIPE, stdout=PIPE)
    async with asyncio.timeout(DEADLINE_S):
        assert await child.stdout.readline() == b"here\n"
        child.kill()
        assert await child.wait() == -signal.SIGKILL
    child.terminate()
    assert child.returncode == -signal.SIGKILL


async def test_who_waits_may_go_and_it_lives_on() -> None:
    child = await start(sys.executable, "-c", SLEEP, stdout=PIPE)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await child.wait()
    assert child.returncode is None
    child.kill()
    async with asyncio.timeout(DEADLINE_S):
        await child.output()


async def test_a_start_that_is_cancelled_leaves_nobody(tmp_path: Path) -> None:
    program = f"import os, time; open({str(tmp_path)!r} + '/' + str(os.getpid()), 'w'); time.sleep(3600)"
    for turns in range(4):
        starting = asyncio.create_task(start(sys.executable, "-c", program, stdin=PIPE, stdout=PIPE))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    async with asyncio.timeout(DEADLINE_S):
        while any(program in line for line in _children()):
            await asyncio.sleep(0.01)


def _children() -> list[str]:
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(each.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # gone meanwhile
            continue
    return found


async def test_a_program_that_is_not_there_is_said() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        await start("no-such-program")
