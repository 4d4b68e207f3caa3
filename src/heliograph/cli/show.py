"""How results look to a person. With ``--json`` none of this runs: the services' own answers are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heliograph.core.errors import HeliographError, Incompatible, Invalid, MergeConflict, StaleBase

WIDE: Final = 250
"""Columns where nobody looks at a screen: a log or a pipe has no edge to cut at."""
STATES: Final = {
    "applied": "green",
    "unaffected": "cyan",
    "superseded": "blue",
    "rejected": "red",
    "left": "bright_black",
    "missing": "yellow",
}


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else WIDE)


out = _console()
err = _console(stderr=True)


def as_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def as_line(value: Any) -> None:
    """One JSON value on one line, at once: for streams."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def document(value: Any) -> None:
    """A JSON value; coloured on a terminal only."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if out.is_terminal:
        out.print_json(text)
    else:
        sys.stdout.write(text + "\n")


def note(text: str, style: str = "bright_black") -> None:
    """To standard error: what is not the result."""
    err.print(Text(text, style=style))


def say(text: str) -> None:
    """Plain, and never broken into lines: it may be copied."""
    out.print(text, soft_wrap=True, highlight=False, markup=False)


def done(text: str) -> None:
    out.print(Text.assemble(("✓ ", "green bold"), text))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    out.print(made if made.row_count else Text(empty, style="bright_black"))


def problem(error: HeliographError) -> None:
    """To standard error: what is wrong, every fault, where things are now."""
    err.print(Text.assemble(("✗ ", "red bold"), error.detail), soft_wrap=True)
    if isinstance(error, Invalid) and error.faults:
        made = Table("where", "rule", "what", box=None, padding=(0, 2, 0, 2), header_style="bold")
        for fault in error.faults:
            made.add_row(Text(fault.pointer or "(the whole)"), Text(fault.rule), Text(fault.message))
        err.print(made)
    if isinstance(error, Incompatible) and isinstance(report := error.more.get("compatibility"), dict):
        compatibility(report)
    if isinstance(error, StaleBase):
        _stale(error)
    if isinstance(error, MergeConflict):
        for each in cast("list[dict[str, Any]]", error.more.get("conflicts", ())):
            conflict(each, stderr=True)


def _stale(error: StaleBase) -> None:
    note(f"  the head is version {error.number}, {error.head}")
    for label in ("changed", "overlap"):
        if names := error.more.get(label):
            note(f"  {label}: {', '.join(map(str, cast('list[str]', names)))}")
    for each in cast("list[dict[str, Any]]", error.more.get("differences", ())):
        if each["conflicts"]:
            note(f"  conflicts in {each['name']}: {', '.join(pointer or '(the whole)' for pointer in each['conflicts'])}")


def conflict(told: dict[str, Any], *, stderr: bool = False, names: tuple[str, str] = ("ours", "theirs")) -> None:
    """A place, and what each side has there. ``names``: what the sides are called."""
    to = err if stderr else out
    to.print(Text.assemble(("  conflict ", "red"), (f"{told['config']} ", "bold"), place(told["pointer"])))
    for side, name in (("base", "base"), ("ours", names[0]), ("theirs", names[1])):
        value = on_one_line(told[side]) if side in told else "(nothing)" if side in told.get("absent", ()) else "(not shown)"
        to.print(Text(f"    {name:8} {value}"), soft_wrap=True)


def place(pointer: str) -> str:
    """A JSON Pointer, or what stands for one, in words."""
    return {"": "(the whole document)", "schema": "(its schema)"}.get(pointer, pointer)


def on_one_line(value: Any, most: int = 100) -> str:
    """JSON of at most so many characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 1] + "…"


def difference(each: dict[str, Any]) -> None:
    """One config between two versions."""
    colours = {"added": "green", "removed": "red", "changed": "yellow"}
    schema = "  schema changed" if each["schema_changed"] else ""
    out.print(Text.assemble((f"{each['change']:8}", colours[each["change"]]), " ", (each["name"], "bold"), schema))
    for operation in each["operations"] if each["change"] == "changed" else ():
        value = on_one_line(operation["value"]) if "value" in operation else ""
        out.print(Text(f"  {operation['op']:8}{operation['path'] or '(the whole)'} {value}".rstrip()))


def facts(rows: Iterable[tuple[str, Any]]) -> None:
    """Names and values, a line each."""
    made = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows:
        made.add_row(Text(name, style="bold"), Text(str(value)))
    out.print(made)


def version(told: dict[str, Any]) -> None:
    """The answer to something that publishes."""
    where = f"{told['namespace']}/{told['environment']}"
    if told.get("rebased"):
        note(f"  put on top of what came after version {told['rebased']['number']}")
    if told.get("unchanged"):
        out.print(Text(f"nothing to change; {where} stays at version {told['number']}"))
        return
    out.print(
        Text.assemble(
            ("✓ ", "green bold"),
            f"{where} is at ",
            (f"version {told['number']}", "bold"),
            f"  {short(told['version'])}  {told['kind']}, {count(told['change_count'], 'config')} changed",
        )
    )
    if "compatibility" in told:
        compatibility(told["compatibility"])
    if "propagation" in told:
        propagation(told["propagation"])
    if (told.get("wait") or {}).get("problem"):
        note(f"  it is not known how far it has come: {told['wait']['problem']}", "yellow")


def compatibility(told: dict[str, Any]) -> None:
    """Whom a change breaks, and why."""
    for each in told["instances"]:
        who = f"  breaks {count(each['instances'], 'connected instance')} ({', '.join(each['apps'] or each['sample'][:3])})"
        _broken(f"{who} by {each['config']}", each["faults"])
    for each in (*told["values"], *told["downstream"]):
        _broken(f"  breaks the value of {each['environment']}/{each['config']}", each["faults"])
    for each in told["unchecked"]:
        note(f"  not looked at: {each}", "yellow")


def _broken(what: str, faults: list[dict[str, Any]]) -> None:
    out.print(Text(what, style="yellow"), soft_wrap=True)
    for fault in faults:
        out.print(Text(f"    {fault['pointer'] or '(the whole)'} {fault['message']}"), soft_wrap=True)


def propagation(told: dict[str, Any]) -> None:
    out.print(bar(told))
    for line in times(told):
        out.print(line)
    for rejection in told["rejections"]:
        out.print(Text.assemble(("  rejected ", "red"), f"by {rejection['instance']}: {rejection['reason']}"))


def bar(told: dict[str, Any], width: int = 40) -> Text:
    """Applied, rejected, missing … as coloured blocks, then their counts."""
    made = Text("  ")
    for colour, cells in zip(STATES.values(), shares([told.get(state, 0) for state in STATES], width), strict=True):
        made.append("█" * cells, style=colour)
    made.append(f"  {count(told['instances'], 'instance')}")
    made.append(": " + (", ".join(f"{told[state]} {state}" for state in STATES if told.get(state)) or "nobody is connected"))
    return made


def shares(counts: Sequence[int], width: int) -> list[int]:
    """Cells of a bar for each count: `width` in all, and at least one for whatever is not nothing."""
    total = sum(counts)
    if not total:
        return [0] * len(counts)
    cells = [max(1, width * each // total) if each else 0 for each in counts]
    cells[counts.index(max(counts))] += width - sum(cells)
    return cells


def times(told: dict[str, Any]) -> Iterable[Text]:
    """Milliseconds since the first byte of the publish."""
    spent = told["times_ms"]
    applied = spent["applied"]
    if applied["count"]:
        yield Text("  applied after  " + "  ".join(f"{name} {ms(applied[name])}" for name in ("p50", "p95", "p99", "max")))
    yield Text(
        f"  committed {ms(spent['commit'])}, read from the log {ms(spent['log'])}, sent to all {ms(spent['fan_out'])}",
        style="bright_black",
    )


def ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(digest: str | None) -> str:
    """Enough of a digest for the eye; never for a machine."""
    return (digest or "")[7:19]


def clock(text: str) -> str:
    return text[:19].replace("T", " ") if text else ""


def step(change: str, name: str, style: str) -> None:
    out.print(Text.assemble((f"{change:8}", style), (name, "bold")))


def lines_between(old: Any, new: Any) -> None:
    """What differs, line by line of the indented texts."""
    import difflib  # noqa: PLC0415

    before, after = (json.dumps(each, indent=2, ensure_ascii=False, sort_keys=True).splitlines() for each in (old, new))
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in list(difflib.unified_diff(before, after, lineterm="", n=2))[2:]:
        out.print(Text("  " + line, style=colours.get(line[:1], "")))
