"""Commands that run something: serve, migrate, dev, demo. They need the server extra, and say so."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.cli import show
from heliograph.cli.context import speaking, surroundings
from heliograph.cli.exits import Exit
from heliograph.core.errors import HeliographError

SERVICES = ("registry", "relay", "sync", "ledger")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.startswith("heliograph"):
            raise
        show.problem(
            {"detail": f"this needs the server: pip install 'heliograph[server,embedded]' ({missing.name} is not installed)"}
        )
        raise typer.Exit(Exit.USAGE) from None


def serve(service: Annotated[str, typer.Argument(help="registry, relay, sync or ledger")]) -> None:
    """Run one service as this process. Its settings are environment variables that begin with HELIOGRAPH_."""
    if service not in SERVICES:
        raise typer.BadParameter(f"there is no service {service!r}; there are {', '.join(SERVICES)}")
    process = _import("heliograph.runtime.process")
    room = _import(f"heliograph.services.{service}.app")
    settings = getattr(_import(f"heliograph.services.{service}.settings"), f"{service.capitalize()}Settings")
    raise typer.Exit(process.run(service, settings, room.serve))


@speaking
def migrate(
    database: Annotated[
        str | None, typer.Option("--database-url", envvar="HELIOGRAPH_DATABASE_URL", help="As a role that may create roles.")
    ] = None,
) -> None:
    """Bring the database up to date. Once per release, before its services start."""
    import asyncio  # noqa: PLC0415

    if not database:
        raise typer.BadParameter("where? set HELIOGRAPH_DATABASE_URL or --database-url")
    applied = asyncio.run(_import("heliograph.runtime.migrate").migrate(database))
    if surroundings().json:
        show.as_json({"applied": applied})
    else:
        show.out.print(f"✓ applied {', '.join(applied)}" if applied else "✓ up to date")


def dev() -> None:
    """Run every service in one process on an embedded PostgreSQL, with its data in ./.heliograph."""
    process, allinone = _import("heliograph.runtime.process"), _import("heliograph.allinone")
    raise typer.Exit(process.run("dev", allinone.AllInOneSettings, allinone.serve))


def demo(
    once: Annotated[bool, typer.Option("--once", help="Run the whole story by itself, without a terminal, and end.")] = False,
    stack: Annotated[
        bool, typer.Option("--stack", help="On a stack that runs already (HELIOGRAPH_URL, HELIOGRAPH_TOKEN_FILE).")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data-dir", envvar="HELIOGRAPH_DATA_DIR", help="Where its data is kept.")
    ] = None,
) -> None:
    """See it work: sample namespace, eight client processes, every receipt with its milliseconds."""
    told = surroundings()
    try:
        raise typer.Exit(
            _import("heliograph.demo").run(once=once, stack=stack, data_dir=data, url=told.url, token_file=told.token_file)
        )
    except HeliographError as error:
        show.problem({"detail": error.detail})
        raise typer.Exit(Exit.FAILED) from None
