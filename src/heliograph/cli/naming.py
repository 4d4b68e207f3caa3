"""Commands about labels: set, list, remove."""

from __future__ import annotations

from typing import Annotated

import typer

from heliograph.cli import show
from heliograph.cli.options import ENVIRONMENT
from heliograph.cli.session import Session
from heliograph.cli.target import Target, one_version
from heliograph.core import names

LABEL = Annotated[str, typer.Argument(help="The label, as in release-7.", show_default=False)]


def set_(
    session: Session,
    target: ENVIRONMENT,
    label: LABEL,
    version: Annotated[
        str | None, typer.Argument(help="Number, id, label:NAME or time of the version; the head, if not given.")
    ] = None,
    move: Annotated[bool, typer.Option("--move", help="Also when it names another version.")] = False,
) -> None:
    """Name a version. Wherever a version is asked for it can then be given as label:NAME."""
    where, name = Target.environment_of(target), names.label(label)
    to = session.api.get(where.of("heads"))["version"] if version is None else one_version(version)
    told = session.api.call("PUT", f"{where.path}/labels/{name}", json={"version": to, "move": move}).json()
    session.tell(told, lambda: show.done(f"label:{name} is version {told['number']} of {where}"))


def list_(session: Session, target: ENVIRONMENT) -> None:
    """Show the labels of an environment."""
    found = list(session.api.pages(f"{Target.environment_of(target).path}/labels"))
    rows = (
        (each["name"], each["number"], show.short(each["version"]), show.clock(each["set_at"]), each["set_by"])
        for each in found
    )
    session.tell(found, lambda: show.table(("label", "version", "id", "set (UTC)", "by"), rows, empty="no labels"))


def remove(session: Session, target: ENVIRONMENT, label: LABEL) -> None:
    """Take a label away. The version stays."""
    where, name = Target.environment_of(target), names.label(label)
    session.api.call("DELETE", f"{where.path}/labels/{name}")
    session.tell({"removed": name}, lambda: show.done(f"label:{name} names no version of {where} any more"))
