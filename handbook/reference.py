"""Which reference pages there are, and what makes each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from handbook import audit, close_codes, command_line, errors, http_api, log_events, metrics, python_sdk, settings
from handbook.markdown import join, table

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "docs/reference"
NOTE: Final = "<!-- Made by `make reference` from the code. Change the declaration there, not this page. -->"

_PAGES: Final[dict[str, Callable[[], str]]] = {
    "command-line.md": command_line.page,
    "http-api.md": http_api.page,
    "python-sdk.md": python_sdk.page,
    "settings.md": settings.page,
    "errors.md": errors.page,
    "close-codes.md": close_codes.page,
    "metrics.md": metrics.page,
    "log-events.md": log_events.page,
    "audit.md": audit.page,
}


def pages() -> dict[str, str]:
    """File name -> content, the index among them."""
    made = {name: make() for name, make in _PAGES.items()}
    return {name: f"{NOTE}\n\n{text.rstrip()}\n" for name, text in {"index.md": _index(made), **made}.items()}


def _index(made: dict[str, str]) -> str:
    rows = [(f"[{_title(text)}]({name})", _first_sentence(text)) for name, text in made.items()]
    return join(
        "# Reference",
        "Each page is made from the one place in the code that declares what it lists.",
        table(("page", "tells"), rows),
    )


def _title(text: str) -> str:
    return text.splitlines()[0].removeprefix("# ")


def _first_sentence(text: str) -> str:
    paragraph = text.split("\n\n")[1]
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".")
