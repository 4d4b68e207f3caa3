"""The pages under docs/how-to: their programs run as they stand, and what they show of ``examples/`` is what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/how-to"
SHOWN = re.compile(r"^```python\n# examples/(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWS = {
    "celery.md": "celery_worker.py",
    "django.md": "django_app.py",
    "fastapi.md": "fastapi_app.py",
    "plain-script.md": "plain_script.py",
}
"""The example of each framework's page. No other page shows one."""

PROGRAMS = re.findall(r"^```python\n(.*?)^```$", (PAGES / "use-the-python-sdk.md").read_text(), re.MULTILINE | re.DOTALL)


def test_every_example_is_shown_as_it_is() -> None:
    found = {(page.name, name): text for page in PAGES.glob("*.md") for name, text in SHOWN.findall(page.read_text())}
    assert set(found) == set(SHOWS.items())
    shown = {name: text for (_, name), text in found.items()}
    assert shown == {path.name: path.read_text() for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.split("\n", 1)[0])
def test_the_programs_of_the_sdk_s_page_run(program: str, run: Any, shop: Any, tmp_path: Path) -> None:
    path = tmp_path / "test_shop.py"
    path.write_text(program)
    command = ["-m", "pytest", "-q", str(path)] if program.startswith("# test_") else [str(path)]
    with run(*command, HELIOGRAPH_TOKEN=shop.token) as running:
        out, _ = running.child.communicate(timeout=120)
        assert running.child.returncode == 0, out + running.log()
        assert "Traceback" not in running.log()


def test_links_lead_somewhere() -> None:
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
