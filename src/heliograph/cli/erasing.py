"""Commands that take something away: delete, restore, purge, purges."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from heliograph.cli import show
from heliograph.cli.options import MESSAGE, TIMEOUT, WAIT, seconds
from heliograph.cli.session import Session
from heliograph.cli.target import Target, one_version
from heliograph.cli.writing import Writing
from heliograph.core import names
from heliograph.core.errors import InvalidRequest

PLACE = Annotated[
    str,
    typer.Argument(help="namespace/environment/config, namespace/environment, or a namespace", show_default=False),
]
YES = Annotated[bool, typer.Option("--yes", "-y", help="Without asking.")]


def delete(
    session: Session,
    target: PLACE,
    message: MESSAGE = None,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
    retain: Annotated[
        str | None, typer.Option("--retain", metavar="TIME", help="How long it can be restored: 12h, 7d; from an hour on.")
    ] = None,
    yes: YES = False,
) -> None:
    """Delete a config, an environment, or a namespace with all its environments.

    A config's history stays; a rollback brings it back. An environment or namespace can be restored until its time is over: see
    [bold]heliograph restore[/].
    """
    if target.strip("/").count("/") > 1:
        at = Target.parse(target).with_config()
        writing = Writing(session, message, wait, timeout)
        writing.tell(writing.send("DELETE", at.config_path))
        return
    if message or wait:
        raise InvalidRequest("--message and --wait are for configs; deleting an environment makes no version")
    path, name = _place(target)
    if not yes:
        confirm(f"this deletes {name} for all its clients", name)
    told = session.api.call("DELETE", path, params={"retain_s": int(seconds(retain))} if retain else {}).json()
    until = show.clock(told["deleted"]["erase_at"])
    session.tell(told, lambda: show.done(f"{name} is deleted; until {until} UTC it comes back by: heliograph restore {name}"))


def restore(session: Session, target: Annotated[str, typer.Argument(help="namespace/environment, or a namespace")]) -> None:
    """Bring back an environment or namespace that was deleted. What can be restored: heliograph get --deleted."""
    path, name = _place(target)
    told = session.api.call("POST", f"{path}/restore").json()
    at = f" at version {told['number']}" if "number" in told else ""
    session.tell(told, lambda: show.done(f"{name} is there again{at}"))


def purge(
    session: Session,
    target: Annotated[str, typer.Argument(help="namespace/environment/config with versions, or a namespace with --digest")],
    versions: Annotated[
        list[str] | None, typer.Argument(help="Versions whose document of that config goes: number, id, label:NAME, time.")
    ] = None,
    digest: Annotated[
        list[str] | None, typer.Option("--digest", metavar="SHA256", help="A document, schema or message; may be repeated.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in its place.")] = "",
    order: Annotated[str, typer.Option("--order", help="On whose order: a ticket, a ruling.")] = "",
    yes: YES = False,
) -> None:
    """Remove texts that must not stay, for good. Every hash, proof and signature still verifies.

    Refused while a head names one: publish other content first. The answer says where the text can still be.
    """
    namespace = target.split("/", 1)[0]
    body: dict[str, Any] = {"reason": reason, "order": order}
    if not reason or not order:
        raise InvalidRequest("say --reason and --order: both are kept, signed and audited")
    if digest:
        if "/" in target or versions:
            raise InvalidRequest("--digest goes with a namespace alone")
        body["digests"] = digest
    else:
        at = Target.parse(target).with_config()
        if not versions:
            raise InvalidRequest(
                f"say which versions of {at} hold it, as in: heliograph purge {at} 3 4; see heliograph log {at}"
            )
        body |= {"environment": at.environment, "config": at.config, "versions": [one_version(each) for each in versions]}
    if not yes:
        confirm("what is purged never comes back", names.namespace(namespace))
    told = session.api.call("POST", f"/v1/namespaces/{names.namespace(namespace)}/purges", json=body).json()
    session.tell(told, lambda: _show_purge(told))


def purges(session: Session, namespace: Annotated[str, typer.Argument(help="The namespace.")]) -> None:
    """Show what was purged, by whom, why and on whose order. With --json the signed statements, too."""
    found = list(session.api.pages(f"/v1/namespaces/{names.namespace(namespace)}/purges"))
    rows = ((show.clock(each["at"]), each["by"], len(each["digests"]), each["order"], each["reason"]) for each in found)
    session.tell(found, lambda: show.table(("at (UTC)", "by", "texts", "order", "reason"), rows, empty="nothing was purged"))


def _show_purge(told: dict[str, Any]) -> None:
    if not told["digests"]:
        show.say("all of it was purged before")
        return
    show.done(f"{show.count(len(told['digests']), 'text')} purged; where it can still be:")
    rows = ((each["where"], show.clock(each["until"] or "") or "?", each["what"]) for each in told["remains"])
    show.table(("where", "until (UTC)", ""), rows, empty="")


def _place(target: str) -> tuple[str, str]:
    """(path, name) of a namespace or environment. Raises InvalidName."""
    name = target.strip("/")
    if "/" not in name:
        return f"/v1/namespaces/{names.namespace(name)}", name
    return Target.environment_of(name).path, name


def confirm(what: str, name: str) -> None:
    """By typing the name. Raises InvalidRequest where nobody can be asked, and when another name is typed."""
    if not sys.stdin.isatty():
        raise InvalidRequest(f"{what}; say --yes if that is right")
    if typer.prompt(f"{what}; type {name} to go on", err=True) != name:
        raise InvalidRequest("that is another name; nothing was changed")
