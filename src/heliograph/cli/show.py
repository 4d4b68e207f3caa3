"""How results look to a person. With ``--json`` none of this runs: the services' own answers are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

STATES = {"applied": "green", "unaffected": "cyan", "superseded": "blue", "rejected": "red", "left": "dim", "missing": "yellow"}


def as_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def as_lines(values: Iterable[Any]) -> None:
    """One JSON value a line, for streams."""
    for value in values:
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def document(value: Any) -> None:
    out.print_json(json.dumps(value), indent=2)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    count = 0
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
        count += 1
    out.print(made if count else Text(empty, style="dim"))


def problem(told: dict[str, Any]) -> None:
    """To standard error: what is wrong, every fault, what to do."""
    err.print(Text.assemble(("✗ ", "red bold"), told.get("detail") or told.get("title") or "something went wrong"))
    faults = told.get("faults") or []
    if faults:
        made = Table("where", "rule", "what", box=None, pad_edge=False, header_style="bold")
        for fault in faults:
            made.add_row(fault["pointer"] or "(the whole)", fault["rule"], fault["message"])
        err.print(made)
    if "head" in told:
        err.print(Text(f"  the head is version {told.get('number')}, {short(told['head'])}", style="dim"))
    for label in ("changed", "overlap"):
        if told.get(label):
            err.print(Text(f"  {label}: {', '.join(told[label])}", style="dim"))


def version(told: dict[str, Any]) -> None:
    if told.get("unchanged"):
        out.print(f"nothing to change; {told['namespace']}/{told['environment']} stays at version {told['number']}")
        return
    out.print(
        Text.assemble(
            ("✓ ", "green bold"),
            f"{told['namespace']}/{told['environment']} is at ",
            (f"version {told['number']}", "bold"),
            f"  {short(told['version'])}  {told['kind']}, {told['change_count']} changed, {told['copies']} copy on disk",
        )
    )
    if told.get("propagation"):
        propagation(told["propagation"])
    if (told.get("wait") or {}).get("problem"):
        err.print(Text(f"  the propagation is not known: {told['wait']['problem']}", style="yellow"))


def propagation(told: dict[str, Any]) -> None:
    out.print(bar(told))
    times = told["times_ms"]["applied"]
    if times["count"]:
        out.print(
            f"  applied after ms: p50 {times['p50']:.1f}, p95 {times['p95']:.1f}, p99 {times['p99']:.1f}, max {times['max']:.1f}"
        )
    for rejection in told["rejections"]:
        out.print(Text.assemble(("  rejected ", "red"), f"by {rejection['instance']}: {rejection['reason']}"))


def bar(told: dict[str, Any], width: int = 40) -> Text:
    """Applied, rejected, missing … as coloured blocks with counts."""
    total = max(1, told["instances"])
    made = Text("  ")
    for state, colour in STATES.items():
        made.append("█" * round(width * told.get(state, 0) / total), style=colour)
    made.append(f"  {told['instances']} instances: ")
    made.append(", ".join(f"{told[state]} {state}" for state in STATES if told.get(state)) or "nobody is connected")
    return made


def short(digest: str | None) -> str:
    return (digest or "")[7:19]


def clock(text: str) -> str:
    return text[:19].replace("T", " ") if text else ""
