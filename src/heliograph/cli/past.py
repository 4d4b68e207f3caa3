"""Commands that look at the past of one config: log of a config, blame."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from heliograph.cli import show
from heliograph.cli.options import AT, TARGET
from heliograph.cli.session import Session
from heliograph.cli.target import Target

VERSIONS: Final = 500
"""Looked at in one answer."""


def show_history(session: Session, where: Target, limit: int) -> None:
    """The versions that changed one config, newest first."""
    path = f"{where.path}/history/{where.with_config().config}"
    found = list(session.api.pages(path, limit=limit))
    columns = ("number", "id", "kind", "at (UTC)", "author", "", "message")
    session.tell(found, lambda: show.table(columns, map(_row, found), empty=f"no version changed {where}"))


def _row(told: dict[str, Any]) -> tuple[Any, ...]:
    change = "purged" if told["purged"] else told["change"]
    if told["schema_changed"]:
        change += ", schema"
    at = show.clock(told["at"])
    return told["number"], show.short(told["version"]), told["kind"], at, told["author"], change, told["message"] or ""


def blame(
    session: Session,
    target: TARGET,
    pointer: Annotated[str, typer.Argument(help="JSON Pointer: only what is there and below.")] = "",
    at: AT = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Versions of the config to look back through.")] = VERSIONS,
) -> None:
    """Show who last changed each value of a config, when, and in which version."""
    where = Target.parse(target).with_config()
    told = _blamed(session, f"{where.path}/blame/{where.config}", at, limit)
    told["items"] = [each for each in told["items"] if _inside(each["pointer"], pointer)]
    session.tell(told, lambda: _show_blame(told))


def _blamed(session: Session, path: str, at: str | None, limit: int) -> dict[str, Any]:
    """All answers together. What a later one tells again keeps what the earlier one said."""
    told: dict[str, Any] = session.api.get(path, at=at, limit=min(limit, VERSIONS))
    said = {each["pointer"]: each for each in told["items"]}
    versions = {each["number"]: each for each in told["versions"]}
    looked = VERSIONS
    while told["next"] and looked < limit:
        told = session.api.get(path, at=told["number"], cursor=told["next"], limit=min(limit - looked, VERSIONS))
        said = {each["pointer"]: each for each in told["items"]} | said
        versions |= {each["number"]: each for each in told["versions"]}
        looked += VERSIONS
    return told | {"items": list(said.values()), "versions": list(versions.values())}


def _inside(pointer: str, above: str) -> bool:
    return pointer == above or pointer.startswith(f"{above}/")


def _show_blame(told: dict[str, Any]) -> None:
    versions = {each["number"]: each for each in told["versions"]}
    rows = (
        (
            each["pointer"] or "(the whole)",
            each["number"] if each["certain"] else f"≤ {each['number']}",
            show.clock(versions[each["number"]]["at"]),
            versions[each["number"]]["author"],
            versions[each["number"]]["message"] or "",
        )
        for each in told["items"]
    )
    show.table(("value", "version", "at (UTC)", "author", "message"), rows, empty="nothing is there")
    if told["open"]:
        show.note(f"{show.count(told['open'], 'value')} changed earlier; look further back with --limit")
