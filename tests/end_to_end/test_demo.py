"""The demo, as the README promises it: the whole story by itself, a second start that finds its data, the live view until Ctrl-C, the real servers."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.conftest import free_port
from tests.end_to_end.processes import ROOT
from tests.fixtures.postgres import require

from heliograph.runtime.children import DEVNULL, PIPE, STDOUT, start

DEADLINE_S = 240
PORTS = ("REGISTRY", "SYNC", "SYNC_HTTP", "LEDGER", "RELAY")
COMMAND = (sys.executable, "-m", "heliograph.cli", "demo")


@dataclass
class Demo:
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    async def run(self, *command: str) -> str:
        """Its output; fails unless it ends well."""
        child = await start(*command, cwd=ROOT, env=self.env, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
        try:
            async with asyncio.timeout(DEADLINE_S):
                out = await child.output()
        except TimeoutError:
            child.terminate()
            await child.wait()
            raise
        assert child.returncode == 0, out.decode()[-4000:]
        return out.decode()

    def left_behind(self) -> list[str]:
        """Command lines of processes that still work in the demo's folder."""
        return [line for each in Path("/proc").glob("[0-9]*") if str(self.folder) in (line := _command_line(each))]


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def demo() -> Iterator[Demo]:
    with tempfile.TemporaryDirectory(prefix="heliograph-test-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        ports = {f"HELIOGRAPH_{each}_PORT": str(free_port()) for each in PORTS}
        yield Demo(Path(name), {**os.environ, **ports, "HELIOGRAPH_DATA_DIR": f"{name}/data", "TERM": "xterm-256color"})


def number_at_start(out: str) -> int:
    found = re.search(r"8 clients run on version (\d+)", out)
    assert found, out
    return int(found[1])


def check(out: str) -> None:
    assert len(re.findall(r"8 of 8 applied, 0 rejected, 0 missing", out)) == 2, out  # the publish and the rollback
    assert len(re.findall(r"^    \S+ +applied +[\d.]+ ms", out, re.MULTILINE)) == 16, out
    assert "nothing moved" in out
    assert "the end: everything was there" in out


@pytest.mark.timeout(DEADLINE_S * 2 + 60)
async def test_once_tells_the_whole_story_and_a_second_start_finds_its_data(demo):
    first = await demo.run(*COMMAND, "--once")
    check(first)
    assert "hel_" not in first
    second = await demo.run(*COMMAND, "--once")
    check(second)
    assert "is there already" in second
    assert number_at_start(second) == number_at_start(first) + 2
    assert demo.left_behind() == []


@pytest.mark.timeout(DEADLINE_S + 60)
async def test_the_live_view_prints_what_to_paste_and_ctrl_c_stops_everything(demo):
    ours, theirs = pty.openpty()
    child = await start(*COMMAND, cwd=ROOT, env=demo.env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = _Shown(ours)
    try:
        async with asyncio.timeout(DEADLINE_S):
            command = await shown.until(r"(\S*heliograph set \S+ /max_items (\d+) --url \S+ --token hel_author_\w+)")
            pasted = command[1].replace("\n", "")
            await demo.run(
                "bash", "-euc", f"export PATH={Path(sys.executable).parent}:$PATH; {pasted} --wait 100% --timeout 30s"
            )
            await shown.until(rf"\b{command[2]}\b[\s\S]*applied")
            child.send_signal(signal.SIGINT)
            assert await child.wait() == 0
    finally:
        shown.close()
        if child.returncode is None:
            child.terminate()
            await child.wait()
    assert "stopped; the data stays for the next start" in shown.text
    assert demo.left_behind() == []


class _Shown:
    """What the terminal was told, without its colours and moves."""

    def __init__(self, terminal: int) -> None:
        self.text = ""
        self._terminal = terminal
        self._more = asyncio.Event()
        os.set_blocking(terminal, False)
        asyncio.get_running_loop().add_reader(terminal, self._read)

    def _read(self) -> None:
        try:
            told = os.read(self._terminal, 65536)
        except OSError:  # its last writer has gone
            told = b""
        if not told:
            asyncio.get_running_loop().remove_reader(self._terminal)
        self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", told.decode(errors="replace"))
        self._more.set()

    async def until(self, pattern: str) -> re.Match[str]:
        while not (found := re.search(pattern, self.text)):
            self._more.clear()
            await self._more.wait()
        return found

    def close(self) -> None:
        self._read()
        asyncio.get_running_loop().remove_reader(self._terminal)
        os.close(self._terminal)


@pytest.mark.postgres
@pytest.mark.kafka
@pytest.mark.timeout(DEADLINE_S + 60)
async def test_the_same_on_postgresql_and_kafka_with_each_service_as_its_own_process(demo):
    require(list(Path("/usr/lib/postgresql").glob("*/bin/postgres")), "Debian's PostgreSQL is not installed (make setup)")
    demo.env |= {
        "STACK_DIR": str(demo.folder / "stack"),
        "POSTGRES_PORT": str(free_port()),
        "KAFKA_PORT": str(free_port()),
        "KAFKA_CONTROLLER_PORT": str(free_port()),
        "VENV": str(Path(sys.executable).parent.parent),
    }
    check(await demo.run("bash", str(ROOT / "deploy/stack.sh"), "run", *COMMAND, "--stack", "--once"))
    assert demo.left_behind() == []
