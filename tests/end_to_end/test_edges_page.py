"""The guide about edges, run as it stands: the centre is `heliograph dev`, the edge a process of its own, as is the client below it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from handbook.examples import DOCS, Step, steps
from tests.conftest import free_port
from tests.end_to_end.processes import Managed, heliograph
from tests.end_to_end.reader import Reader, reading
from tests.fixtures.dev import DevStack

PAGE = DOCS / "how-to" / "edges.md"
EDGE = "heliograph edge "


@pytest.fixture
def ports() -> dict[str, int]:
    return {"SYNC": free_port(), "SYNC_HTTP": free_port()}


@pytest.fixture
async def reader(tmp_path: Path, dev_stack: DevStack, ports: dict[str, int]) -> AsyncIterator[Reader]:
    places = {"http://127.0.0.1:7070": dev_stack.url, "edge.berlin:7072": f"127.0.0.1:{ports['SYNC_HTTP']}"}
    async with reading(tmp_path / "reader", dev_stack.data_dir, places, {}) as one:
        yield one


def edge_of(reader: Reader, step: Step, ports: dict[str, int]) -> Managed:
    """The command runs on; its files are the reader's."""
    arguments = reader.here(step.text).removeprefix("heliograph ").split()
    arguments = [str(reader.folder / each) if each.endswith(".token") else each for each in arguments]
    env = {f"HELIOGRAPH_{name}_PORT": str(port) for name, port in ports.items()}
    env |= {"HELIOGRAPH_DATA_DIR": str(reader.folder / "office"), "HELIOGRAPH_DRAIN_S": "1"}
    ready = f"http://127.0.0.1:{ports['SYNC_HTTP']}/readyz"
    return Managed("edge", heliograph(*arguments), env, reader.folder / "edge.log", ready)


async def test_the_page_about_edges_works_as_it_stands(reader: Reader, ports: dict[str, int]) -> None:
    edge: Managed | None = None
    said: list[str] = []
    try:
        for step in steps(PAGE.read_text()):
            if step.text.startswith(EDGE) and not step.not_run:
                edge = edge_of(reader, step, ports)
                await edge.start()
                await edge.ready()
            else:
                said.append(await reader.follow(step))
        program = reader.programs["app.py"]
        await program.line()
        assert program.lines == ["milk at 120", "milk now 130"]
        assert any("edge_" in each for each in said)
    finally:
        if edge is not None:
            await edge.stop()
