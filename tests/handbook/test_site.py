"""The site builds without a broken link, and a reader's browser asks no other host for anything."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from handbook.examples import DOCS
from handbook.reference import ROOT

MERMAID = ROOT / "handbook/node_modules/@mermaid-js/tiny/dist/mermaid.tiny.js"
ASSET = re.compile(r'<(?:script|img|iframe)\b[^>]*\bsrc="?([^"\s>]+)|<link\b[^>]*\bhref="?([^"\s>]+)')
BUILD_S = 240


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        assert os.environ.get("CI") != "true", "make setup installs requirements/docs.txt"
        pytest.skip("mkdocs is not installed; make docs installs it")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_page_is_in_the_site(site: Path) -> None:
    made = {each.relative_to(site).as_posix() for each in pages(site)}
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS).with_suffix("")
        assert (place.parent if place.name == "index" else place).joinpath("index.html").as_posix() in made


def test_nothing_comes_from_another_host(site: Path) -> None:
    for page in pages(site):
        for found in ASSET.finditer(page.read_text()):
            target = found[1] or found[2]
            assert not re.match(r"(\w+:)?//", target), (page, target)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text()), style


def test_assets_are_there(site: Path) -> None:
    for page in pages(site):
        for found in ASSET.finditer(page.read_text()):
            target = (found[1] or found[2]).split("?")[0]
            base = site if target.startswith("/") else page.parent
            assert (base / target.lstrip("/")).exists(), (page, target)


def test_the_search_finds_what_the_reference_says(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    found = {each["location"] for each in index["docs"] if "HELIOGRAPH_DRAIN_S" in each["text"]}
    assert any(each.startswith("reference/settings/") for each in found)


@pytest.mark.node
def test_diagrams_are_drawn_by_a_script_of_the_site(site: Path) -> None:
    if not MERMAID.exists():
        assert os.environ.get("CI") != "true", "make setup installs what handbook/package.json names"
        pytest.skip("npm ci --prefix handbook")
    text = (site / "architecture/index.html").read_text()
    assert 'class="mermaid"' in text
    assert "../assets/mermaid.js" in text
    assert "assets/mermaid.js" not in (site / "tutorial/index.html").read_text()


def test_a_linked_file_of_the_repository_is_in_the_site(site: Path) -> None:
    text = (site / "operations/index.html").read_text()
    assert re.search(r'href="?\.\./repository/deploy/compose\.yml', text)
    assert (site / "repository/deploy/compose.yml").read_bytes() == (ROOT / "deploy/compose.yml").read_bytes()
