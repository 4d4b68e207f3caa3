"""Commands that run something: serve, migrate, dev, demo. They need the server extra, and say so."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from heliograph.cli import show
from heliograph.cli.session import Session
from heliograph.core.errors import InvalidRequest

SERVICES: Final = ("registry", "relay", "sync", "ledger")


def _import(module: str) -> Any:
    """Raises InvalidRequest when the extra is not installed that brings what the module needs."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.startswith("heliograph"):
            raise
        raise InvalidRequest(
            f"this needs the server: pip install 'heliograph[server,embedded]' (no {missing.name} here)"
        ) from None


def serve(
    session: Session,
    service: Annotated[str, typer.Argument(help="registry, relay, sync or ledger")],
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, max=256, help="Of sync: processes that share its ports; 0: one for each core."),
    ] = None,
) -> None:
    """Run one service. Its settings are environment variables that begin with HELIOGRAPH_."""
    del session
    if service not in SERVICES:
        raise typer.BadParameter(f"there is no service {service!r}; there are {', '.join(SERVICES)}")
    if workers is not None and service != "sync":
        raise typer.BadParameter(f"{service} is always one process; --workers is for sync")
    process = _import("heliograph.runtime.process")
    room = _import(f"heliograph.services.{service}.{'processes' if service == 'sync' else 'app'}")
    settings = getattr(_import(f"heliograph.services.{service}.settings"), f"{service.capitalize()}Settings")
    given = {} if workers is None else {"workers": workers}
    raise typer.Exit(process.run(service, lambda: settings(**given), room.serve))


def edge(
    session: Session,
    parent: Annotated[
        str | None,
        typer.Option("--parent", metavar="URL", help="What feeds it: the API of a Heliograph, or another edge's HTTP port."),
    ] = None,
    edge_token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Edge token, in a file of mode 0600.")
    ] = None,
) -> None:
    """Run a hub that another Heliograph feeds over one connection: a site, an office, a factory. It goes on when its parent is away.

    Its settings are environment variables that begin with HELIOGRAPH_; HELIOGRAPH_PARENT_URL and HELIOGRAPH_EDGE_TOKEN_FILE stand for the options.
    """
    del session
    process = _import("heliograph.runtime.process")
    app = _import("heliograph.services.sync.edge.app")
    make = _import("heliograph.services.sync.edge.settings").EdgeSettings
    told = {name: each for name, each in (("parent_url", parent), ("edge_token_file", edge_token_file)) if each is not None}
    raise typer.Exit(process.run("edge", lambda: make(**told), app.serve))


def migrate(
    session: Session,
    database: Annotated[
        str | None, typer.Option("--database-url", envvar="HELIOGRAPH_DATABASE_URL", help="As a role that may create roles.")
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            envvar="HELIOGRAPH_SHARDS",
            min=1,
            max=256,
            help="Of the versions stream, for a database that is made now; stays as it is from then on. 16 by default.",
        ),
    ] = None,
) -> None:
    """Bring the database up to date. Once per release, before its services start."""
    if not database:
        raise typer.BadParameter("where? set HELIOGRAPH_DATABASE_URL or --database-url")
    import asyncio  # noqa: PLC0415  # slower to load than most commands to run

    applied = asyncio.run(_import("heliograph.runtime.migrate").migrate(database, shards=shards))
    session.tell({"applied": applied}, lambda: show.done(f"applied {', '.join(applied)}" if applied else "up to date"))


def dev(
    session: Session,
    stop_at_eof: Annotated[bool, typer.Option("--stop-at-eof", hidden=True, help="End when standard input does.")] = False,
) -> None:
    """Run every service in one process on an embedded PostgreSQL, with its data in ./.heliograph."""
    raise typer.Exit(_import("heliograph.cli.dev").run(session, stop_at_eof=stop_at_eof))


def demo(
    session: Session,
    once: Annotated[bool, typer.Option("--once", help="Run the whole story by itself, without a terminal, and end.")] = False,
    stack: Annotated[
        bool, typer.Option("--stack", help="On a stack that runs already (HELIOGRAPH_URL, HELIOGRAPH_TOKEN_FILE).")
    ] = False,
) -> None:
    """See it work: a sample namespace, eight client processes, every receipt with its milliseconds."""
    raise typer.Exit(_import("heliograph.demo.run").main(session, once=once, stack=stack))
