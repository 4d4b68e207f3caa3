"""The tutorial, run as it stands: each of its commands in a shell, its program as a process, in the order in which a reader meets them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.conftest import free_port
from tests.end_to_end.processes import ROOT, Managed, heliograph

TUTORIAL = ROOT / "docs/tutorial.md"
DEADLINE_S = 60
PORTS = ("REGISTRY", "SYNC", "SYNC_HTTP", "LEDGER")
BY_OTHER_MEANS = ("make dev", "export PATH", "python app.py")
REFUSED = "/max_items 0"


def steps(text: str) -> Iterator[str]:
    """Each command line of its indented blocks; each of its programs, with the line of its fence."""
    for found in re.finditer(r"^(```python\n[\s\S]*?)^```$|^    (.+)$", text, re.MULTILINE):
        program, command = found.groups()
        if program or not command.startswith(BY_OTHER_MEANS):
            yield program or command


@dataclass
class Reader:
    """Somebody with a folder of their own and two terminals."""

    folder: Path
    env: dict[str, str]
    url: str
    outputs: dict[str, str] = field(default_factory=dict)

    async def do(self, command: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            child = await asyncio.create_subprocess_exec(
                *("bash", "-euc", command), cwd=self.folder, env=self.env, stdout=-1, stderr=asyncio.subprocess.STDOUT
            )
            out, _ = await child.communicate()
        assert (child.returncode != 0) == (REFUSED in command), f"{command}\n{out.decode()}"
        self.outputs[command] = out.decode()

    @asynccontextmanager
    async def running(self, program: str) -> AsyncIterator[asyncio.StreamReader]:
        (self.folder / "app.py").write_text(program.replace("http://127.0.0.1:7070", self.url))
        with (self.folder / "app.log").open("wb") as errors:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-u", "app.py"), cwd=self.folder, env=self.env, stdout=-1, stderr=errors
            )
        try:
            assert child.stdout
            yield child.stdout
        finally:
            child.kill()
            await child.communicate()


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    with tempfile.TemporaryDirectory(prefix="heliograph-test-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        ports = {f"HELIOGRAPH_{each}_PORT": str(free_port()) for each in PORTS}
        env = ports | {"HELIOGRAPH_DATA_DIR": str(folder / ".heliograph")}
        url = f"http://127.0.0.1:{ports['HELIOGRAPH_REGISTRY_PORT']}"
        dev = Managed("dev", heliograph("dev"), env, folder / "dev.log", f"{url}/readyz")
        await dev.start()
        try:
            await dev.ready()
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            yield Reader(folder, os.environ | env | {"PATH": path}, url)
        finally:
            await dev.stop()


async def line(out: asyncio.StreamReader) -> str:
    async with asyncio.timeout(DEADLINE_S):
        return (await out.readline()).decode().strip()


async def test_the_tutorial_works_as_it_stands(reader: Reader) -> None:
    in_order = list(steps(TUTORIAL.read_text()))
    at = next(index for index, step in enumerate(in_order) if "# app.py" in step)
    for command in in_order[:at]:
        await reader.do(command)
    async with reader.running(in_order[at].removeprefix("```python\n")) as out:
        assert await line(out) == "running on 25"
        for step in in_order[at + 1 :]:
            if not step.startswith("```"):
                await reader.do(step)
        assert [await line(out), await line(out)] == ["now 30", "now 20"]
    assert "minimum" in next(said for command, said in reader.outputs.items() if REFUSED in command)
