"""Commands about what a change would break: schema check, policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from heliograph.cli import files, show
from heliograph.cli.exits import Exit
from heliograph.cli.options import ENVIRONMENT, TARGET
from heliograph.cli.session import Session
from heliograph.cli.target import Target
from heliograph.core.errors import Invalid


def check(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The schema, JSON.")],
    target: TARGET,
    document: Annotated[
        Path | None, typer.Option("--document", help="Together with this new value; otherwise with the current one.")
    ] = None,
) -> None:
    """Show whom a schema would break: current values, other environments of the namespace, connected instances. Publishes nothing.

    Ends with status 5 when it would break somebody.
    """
    at = Target.parse(target).with_config()
    change = {"name": at.config, "schema": files.read(file)} | ({"document": files.read(document)} if document else {})
    try:
        told = session.api.call("POST", f"{at.path}/schemas-check", json={"changes": [change]}).json()
    except Invalid as error:
        raise files.with_names(error, [change]) from None
    session.tell(told, lambda: _show(told))
    if not told["compatible"]:
        raise typer.Exit(Exit.CONFLICT)


def _show(told: dict[str, Any]) -> None:
    if told["compatible"]:
        show.done(f"it breaks nobody (the policy is {told['policy']})")
    show.compatibility(told)


def policy(
    session: Session,
    target: ENVIRONMENT,
    compatibility: Annotated[
        str | None, typer.Option("--compatibility", help="off, warn or refuse: when a change would break somebody.")
    ] = None,
) -> None:
    """Show what an environment does when a change would break somebody, or decide it."""
    path = f"{Target.environment_of(target).path}/policy"
    decided: dict[str, Any] = {"json": {"compatibility": compatibility}} if compatibility else {}
    told = session.api.call("PUT" if decided else "GET", path, **decided).json()
    session.tell(told, lambda: show.out.print(Text.assemble("compatibility: ", (told["compatibility"], "bold"))))
