"""Somebody who follows a page to the letter: with a folder of their own, a shell, and a second terminal for programs that run on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from handbook.examples import Step
from tests.end_to_end.processes import ROOT

from heliograph.runtime.children import DEVNULL, PIPE, STDOUT, Child, start

DEADLINE_S = 120
PROGRAM = "python "


@dataclass
class Program:
    """One that runs on beside the commands."""

    child: Child
    log: Path
    lines: list[str] = field(default_factory=list)

    async def line(self) -> str:
        try:
            async with asyncio.timeout(DEADLINE_S):
                said = (await self.child.stdout.readline()).decode().strip()
        except TimeoutError:
            said = ""
        assert said, f"it said no more than {self.lines}:\n{self.log.read_text()[-2000:]}"
        self.lines.append(said)
        return said

    async def end(self) -> None:
        if self.child.returncode is None:
            self.child.kill()
        await self.child.output()


@dataclass
class Reader:
    """``places``: what a page calls a place, and what it is here: addresses with ports of our own."""

    folder: Path
    env: Mapping[str, str]
    places: Mapping[str, str]
    programs: dict[str, Program] = field(default_factory=dict)

    async def follow(self, step: Step) -> str:
        """What the shell said. Fails unless it ends as the page says."""
        if step.not_run or step.kind == "other":
            return ""
        if step.kind == "file":
            (self.folder / step.file).write_text(self.here(step.text))
            return ""
        if step.text.startswith(PROGRAM):
            return await self._begin(step.text.removeprefix(PROGRAM))
        return await self._do(step)

    def here(self, text: str) -> str:
        for place, ours in self.places.items():
            text = text.replace(place, ours)
        return text

    async def _do(self, step: Step) -> str:
        command = ("bash", "-euo", "pipefail", "-c", self.here(step.text))
        child = await start(
            *command, cwd=self.folder, env=self.env, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, start_new_session=True
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                out = await child.output()
        finally:
            if child.returncode is None:  # a script that hangs takes its children along
                os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        said = out.decode()
        wanted = child.returncode != 0 if step.refused == "any" else child.returncode == step.refused
        assert wanted, f"{step.text}\nended with {child.returncode}, not {step.refused}:\n{said}"
        return said

    async def _begin(self, file: str) -> str:
        """Returns with the first line that it prints."""
        log = self.folder / f"{file}.log"
        with log.open("wb") as errors:
            child = await start(sys.executable, "-u", file, cwd=self.folder, env=self.env, stdout=PIPE, stderr=errors)
        program = self.programs[file] = Program(child, log)
        return await program.line()


@asynccontextmanager
async def reading(folder: Path, data: Path, places: Mapping[str, str], env: Mapping[str, str]) -> AsyncIterator[Reader]:
    """In a new folder, where ``.heliograph`` is the data of a server that runs."""
    folder.mkdir()
    (folder / ".heliograph").symlink_to(data)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ours = {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT / "src")}  # of this checkout, from any folder
    reader = Reader(folder, {**os.environ, **ours, **env}, places)
    try:
        yield reader
    finally:
        for program in reader.programs.values():
            await program.end()
