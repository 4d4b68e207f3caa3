from __future__ import annotations

import asyncio
import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.client._disk import DiskWriter, read_copy, write_copy
from heliograph.client._identity import ephemeral, next_identity, take_slot
from heliograph.core.errors import Corrupt

DEADLINE_S = 20.0
HOLD = "import sys; from pathlib import Path; from heliograph.client._identity import take_slot; s = take_slot(Path(sys.argv[1])); print(s.folder.name, flush=True); sys.stdin.read()"


def test_an_instance_keeps_its_id_and_its_incarnation_grows(tmp_path: Path) -> None:
    first = next_identity(tmp_path, "a token")
    second = next_identity(tmp_path, "a token")
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", first.instance)
    assert second.instance == first.instance
    assert second.incarnation > first.incarnation


def test_another_token_is_another_instance(tmp_path: Path) -> None:
    first = next_identity(tmp_path, "a token")
    assert next_identity(tmp_path, "another").instance != first.instance
    assert "a token" not in (tmp_path / "identity.json").read_text()


def test_a_damaged_identity_costs_the_id_and_not_the_start(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_bytes(b"{half")
    assert next_identity(tmp_path, "t").instance == next_identity(tmp_path, "t").instance


def test_incarnations_grow_where_nothing_can_be_written() -> None:
    assert ephemeral("t").instance != ephemeral("t").instance


def test_two_processes_on_one_folder_get_a_slot_each(tmp_path: Path) -> None:
    mine = take_slot(tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert (mine.folder.name, other.stdout.readline().strip()) == ("slot-0", "slot-1")
    finally:
        other.kill()
        other.communicate()
    again = take_slot(tmp_path)
    assert again.folder.name == "slot-1", "a killed process frees its slot"
    mine.release()
    again.release()


@pytest.mark.skipif(sys.platform == "win32", reason="msvcrt locks there")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_taken_for_one_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match=os.strerror(code)):
        take_slot(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["slot-0"]


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(1, 255))
def test_a_copy_is_read_as_written_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, at: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("copy") / "state"
    assert read_copy(path) is None
    write_copy(path, body)
    assert read_copy(path) == body
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= flip
    path.write_bytes(data)
    with pytest.raises(Corrupt):
        read_copy(path)
    path.write_bytes(data[: at % len(data)])
    with pytest.raises(Corrupt):
        read_copy(path)


async def test_a_storm_of_marks_is_one_write_of_the_latest(tmp_path: Path) -> None:
    writer, encoded = DiskWriter(tmp_path, settle_s=0.01), []

    def encode(number: int) -> bytes:
        encoded.append(number)
        return b"%d" % number

    running = asyncio.create_task(writer.run())
    for number in range(100):
        writer.mark("state", lambda number=number: encode(number))
    async with asyncio.timeout(10):
        while not (tmp_path / "state").exists():
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await asyncio.to_thread(read_copy, tmp_path / "state") == b"99"
    assert encoded == [99]


class SlowDisk:
    """Holds up every `os.fsync` until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._fsync, self.entered, self._release = os.fsync, threading.Event(), threading.Event()
        monkeypatch.setattr(os, "fsync", self._slow)

    def let_go(self) -> None:
        self._release.set()

    def _slow(self, descriptor: int) -> None:
        self.entered.set()
        assert self._release.wait(DEADLINE_S)
        self._fsync(descriptor)


async def test_a_write_that_has_begun_is_waited_for_however_often_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the last flush finds nothing marked, and the slot is free for another process while a thread still writes into it."""
    disk = SlowDisk(monkeypatch)
    writer = DiskWriter(tmp_path, settle_s=0.01)
    writer.mark("state", lambda: b"1")
    running = asyncio.create_task(writer.run())
    await asyncio.to_thread(disk.entered.wait, DEADLINE_S)
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not running.done()
    disk.let_go()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await asyncio.to_thread(read_copy, tmp_path / "state") == b"1"


async def test_two_writes_of_one_name_never_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would share a temporary file, and leave a copy that matches no digest."""
    disk = SlowDisk(monkeypatch)
    writer = DiskWriter(tmp_path)
    writer.mark("state", lambda: b"A" * 100)
    first = asyncio.create_task(writer.flush())
    await asyncio.to_thread(disk.entered.wait, DEADLINE_S)
    disk.entered.clear()
    writer.mark("state", lambda: b"B" * 50)
    second = asyncio.create_task(writer.flush())
    assert not await asyncio.to_thread(disk.entered.wait, 0.1)
    disk.let_go()
    await asyncio.gather(first, second)
    assert await asyncio.to_thread(read_copy, tmp_path / "state") == b"B" * 50


async def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = DiskWriter(tmp_path / "gone")
    for _ in range(3):
        writer.mark("state", lambda: b"x")
        await writer.flush()
    assert writer.failure is not None
    assert len(caplog.records) == 1


async def test_a_copy_that_cannot_be_written_is_not_unsaid_by_another(tmp_path: Path) -> None:
    writer = DiskWriter(tmp_path)
    in_the_way = tmp_path / "first.tmp"
    in_the_way.mkdir()
    writer.mark("first", lambda: b"1")
    await writer.flush()
    writer.mark("second", lambda: b"2")
    await writer.flush()
    assert writer.failure is not None
    in_the_way.rmdir()
    writer.mark("first", lambda: b"1")
    await writer.flush()
    assert writer.failure is None


async def test_without_a_folder_nothing_is_encoded_or_written() -> None:
    writer = DiskWriter(None)
    writer.mark("state", lambda: pytest.fail("encoded"))
    await writer.flush()
