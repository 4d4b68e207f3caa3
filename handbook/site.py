"""What the site needs beside mkdocs: pages of a folder in its navigation, links that leave `docs`, diagrams without another host.

A hook of mkdocs: it calls the functions that begin with ``on_``.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT: Final = Path(__file__).resolve().parents[1]
MERMAID: Final = Path(__file__).with_name("node_modules") / "@mermaid-js/tiny/dist/mermaid.tiny.js"
DRAWS: Final = "assets/mermaid.js"
BESIDE: Final = "repository"
"""Where files of the repository that pages link to are in the site."""

MEASURED: Final = "benchmarks.md"
"""The page whose pictures `make bench` makes: there are none before it has run."""

_PICTURE: Final = re.compile(r"!\[[^\]]*\]\((?P<file>[\w-]+\.svg)\)")
_LINK: Final = re.compile(r"(?P<text>\[[^\]]*\])\((?P<target>[^)\s]+)\)")
_CODE: Final = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
log = logging.getLogger("mkdocs.hooks")


# --- navigation -------------------------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = _expanded(config.nav, Path(config.docs_dir))
    return config


def _expanded(nav: Any, docs: Path) -> Any:
    if isinstance(nav, dict):
        return {title: _expanded(below, docs) for title, below in nav.items()}
    if isinstance(nav, list):
        return [each for entry in nav for each in _entries(entry, docs)]
    return nav


def _entries(entry: Any, docs: Path) -> list[Any]:
    if not (isinstance(entry, str) and entry.endswith("/*")):
        return [_expanded(entry, docs)]
    found = sorted((docs / entry[:-2]).glob("*.md"), key=lambda each: (each.name != "index.md", each.name))
    return [each.relative_to(docs).as_posix() for each in found]


# --- links that leave the pages ---------------------------------------------------------------------------------------------------


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Takes along what pages link to in the repository, and what draws diagrams."""
    wanted = {found for page in files.documentation_pages() for found in _outside(page).values() if found.is_file()}
    for path in sorted(wanted):
        files.append(File.generated(config, _beside(path), abs_src_path=str(path)))
    if MERMAID.exists():
        files.append(File.generated(config, DRAWS, abs_src_path=str(MERMAID)))
    else:
        log.info("diagrams are shown as text: npm ci --prefix handbook")
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """A link to a file of the repository leads to its copy; one to a folder of it is only its text."""
    outside = _outside(page.file)
    if page.file.src_uri == MEASURED:
        markdown = _PICTURE.sub(lambda found: found[0] if (ROOT / "docs" / found["file"]).exists() else "", markdown)

    def replaced(found: re.Match[str]) -> str:
        path = outside.get(found["target"])
        if path is None:
            return found[0]
        up = posixpath.relpath(_beside(path), posixpath.dirname(page.file.src_uri))
        return f"{found['text']}({up})" if path.is_file() else found["text"][1:-1]

    return "".join(each if each.startswith("`") else _LINK.sub(replaced, each) for each in _CODE.split(markdown))


def _outside(page: File) -> dict[str, Path]:
    """Targets of links on a page that are in the repository and not in docs."""
    assert page.abs_src_path
    here, docs = Path(page.abs_src_path), ROOT / "docs"
    found: dict[str, Path] = {}
    for target in (each["target"] for each in _LINK.finditer(_CODE.sub("", here.read_text()))):
        parts = urlsplit(target)
        path = (here.parent / parts.path).resolve()
        if not parts.scheme and parts.path and path.is_relative_to(ROOT) and not path.is_relative_to(docs) and path.exists():
            found[target] = path
    return found


def _beside(path: Path) -> str:
    """Markdown as text: it is no page of the site, and its own links start elsewhere."""
    place = path.relative_to(ROOT).as_posix()
    return f"{BESIDE}/{place}.txt" if path.suffix == ".md" else f"{BESIDE}/{place}"


# --- diagrams ---------------------------------------------------------------------------------------------------------------------


def on_page_content(html: str, *, page: Page, **_: Any) -> str:
    """Only pages with a diagram load what draws it. The theme would fetch it from another host if it were not there yet."""
    if 'class="mermaid"' not in html or not MERMAID.exists():
        return html
    return f'{html}\n<script src="{get_relative_url(DRAWS, page.url)}"></script>'
