"""The tutorial and the guides, run as they stand: each command in a shell, each program as a process, in the order in which a reader meets them.

One server for all pages; each page uses a namespace of its own.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from handbook.examples import DOCS, Step, guides, steps
from tests.conftest import free_port
from tests.end_to_end.processes import ROOT, Managed, heliograph
from tests.end_to_end.reader import Reader, reading
from tests.fixtures.postgres import require

PORTS = {"REGISTRY": 7070, "SYNC": 7071, "SYNC_HTTP": 7072, "LEDGER": 7073}
NEEDS = ("curl", "jq")
SDK = ("celery.md", "django.md", "fastapi.md", "plain-script.md", "use-the-python-sdk.md")
ELSEWHERE = {
    "how-to/servers.md": "tests/end_to_end/test_moving.py",
    "how-to/edges.md": "tests/end_to_end/test_edges_page.py",
    **{f"how-to/{page}": "tests/examples/test_pages.py" for page in SDK},
}
"""Pages that need more than `heliograph dev`, and the test that runs them."""

SAID = {
    "tutorial.md": {"app.py": ["running on 25", "now 30", "now 20"]},
    "how-to/pipelines.md": {"app.py": ["running on 60", "now 90", "now 120", "now 90"]},
    "how-to/rejections.md": {"app.py": ["running on 2", "now 3"]},
}
"""What the programs of a page print until its end."""


SHOWS = {"tutorial.md": {"/max_items 0": "minimum", "health": "ready"}, "how-to/git.md": {"< /dev/null": "say --yes"}}
"""What a command of a page (by its end) shows, among other things."""


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


PAGES = {name_of(page): list(steps(page.read_text())) for page in guides() if name_of(page) not in ELSEWHERE}


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: free_port() for name in PORTS}


@pytest.fixture(scope="module")
def data(public_folder: Path, ports: dict[str, int]) -> Iterator[Path]:
    """The folder of a server that runs while this module does."""
    folder = public_folder / "pages"
    folder.mkdir(mode=0o755)
    env = {f"HELIOGRAPH_{name}_PORT": str(port) for name, port in ports.items()}
    env["HELIOGRAPH_DATA_DIR"] = str(folder / "data")
    dev = Managed("dev", heliograph("dev"), env, folder / "dev.log", f"http://127.0.0.1:{ports['REGISTRY']}/readyz")
    with asyncio.Runner() as runner:  # the tests have loops of their own, one each
        runner.run(dev.start())
        try:
            runner.run(dev.ready())
            yield folder / "data"
        finally:
            runner.run(dev.stop())


@pytest.fixture
async def reader(tmp_path: Path, data: Path, ports: dict[str, int]) -> AsyncIterator[Reader]:
    places = {f"127.0.0.1:{usual}": f"127.0.0.1:{ports[name]}" for name, usual in PORTS.items()}
    async with reading(tmp_path / "reader", data, places, {}) as one:
        yield one


@pytest.mark.parametrize("page", [name for name, found in PAGES.items() if any(step.kind != "other" for step in found)])
async def test_a_page_works_as_it_stands(page: str, reader: Reader) -> None:
    for tool in NEEDS:
        used = any(tool in step.text for step in PAGES[page])
        require(not used or shutil.which(tool) is not None, f"the page uses {tool} (make setup)")
    shown = {step.text.strip(): await reader.follow(step) for step in PAGES[page]}
    for end, words in SHOWS.get(page, {}).items():
        assert words in next(said for command, said in shown.items() if command.endswith(end))
    for program, lines in SAID.get(page, {}).items():
        found = reader.programs[program]
        while len(found.lines) < len(lines):
            await found.line()
        assert found.lines == lines


def test_every_program_of_a_page_has_its_lines_here() -> None:
    runs = {name for name, found in PAGES.items() if any(step.text.startswith("python ") for step in found)}
    assert runs == set(SAID)


def test_a_page_that_is_left_out_is_named_by_the_test_that_runs_it() -> None:
    for page, test in ELSEWHERE.items():
        assert (DOCS / page).exists()
        assert f'{Path(page).name}"' in (ROOT / test).read_text(), (page, test)


def test_the_tutorial_is_run() -> None:
    """Guards the reading of pages: a change of its rules must not make them empty."""
    kinds = [step.kind for step in PAGES["tutorial.md"] if not step.not_run]
    assert kinds.count("command") >= 15
    assert "file" in kinds
    assert {step.refused for step in PAGES["tutorial.md"]} == {0, 3}
    assert len(PAGES) >= 8


async def test_a_command_that_ends_otherwise_than_its_page_says_fails(reader: Reader) -> None:
    for step in (Step("command", "false"), Step("command", "true", refused="any"), Step("script", "exit 4", refused=3)):
        with pytest.raises(AssertionError):
            await reader.follow(step)


async def test_a_script_that_fails_in_the_middle_fails(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="ended with"):
        await reader.follow(Step("script", "false | cat\ntrue"))
