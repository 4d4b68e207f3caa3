"""Close codes of the stream: from `contracts/close-codes.json`, with what the Python SDK tells its user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from handbook.errors import every
from handbook.markdown import code, codes, join, table
from heliograph.client import _codes
from heliograph.runtime.problems import CLOSE

CONTRACT: Final = Path(__file__).resolve().parents[1] / "contracts/close-codes.json"


def page() -> str:
    told = json.loads(CONTRACT.read_text())
    return join(
        "# Close codes",
        "How a sync node ends a WebSocket, and what a client does then. Any other way in which a connection ends is a lost one: come back.",
        f"The same table for programs: [contracts/close-codes.json](../../contracts/close-codes.json). Errors that lead to each are in {_LINK}.",
        *(_section(title, advice, told[group], told["codes"]) for group, title, advice in _GROUPS),
    )


_LINK: Final = "[Errors](errors.md)"
_GROUPS: Final = (
    (
        "reconnect",
        "Connect again",
        "The client connects again, after a pause that grows and is jittered, and resumes from its cursor.",
    ),
    (
        "stop",
        "Stop",
        "Trying the same again cannot succeed. The client keeps its last good state, stops, and tells the application.",
    ),
)


def _section(title: str, advice: str, within: dict[str, int], found: list[dict[str, Any]]) -> str:
    rows = [_row(each) for each in found if within["from"] <= each["code"] <= within["to"]]
    return join(
        f"## {title}: {within['from']} to {within['to']}",
        advice,
        table(("code", "name", "meaning", "the SDK's advice", "errors"), rows),
    )


def _row(told: dict[str, Any]) -> tuple[object, ...]:
    number = int(told["code"])
    return (
        number,
        code(told["name"]),
        told["meaning"],
        _advice(number),
        codes(each.code for each in every() if CLOSE.get(each) == number),
    )


def _advice(number: int) -> str:
    """Without the close code that the SDK adds in brackets."""
    return _codes.error_for(number).detail.rpartition(" (close code")[0] if _codes.is_terminal(number) else "none is needed"
