"""Commands about dead letters: list, show, replay, discard."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from heliograph.cli import show
from heliograph.cli.exits import Exit
from heliograph.cli.options import seconds
from heliograph.cli.session import Session
from heliograph.cli.target import Target
from heliograph.core.errors import InvalidRequest

STREAM = Annotated[str | None, typer.Option("--stream", help="versions, receipts or deliveries")]
CONSUMER = Annotated[str | None, typer.Option("--consumer", help="Who could not take it: sync, ledger, instances.")]
PLACE = Annotated[str | None, typer.Option("--in", metavar="TARGET", help="Of this namespace, or namespace/environment.")]
KEY = Annotated[str | None, typer.Option("--key", help="With exactly this key.")]
MATCHING = Annotated[str | None, typer.Option("--matching", metavar="TEXT", help="Whose reason contains this.")]
OLDER = Annotated[str | None, typer.Option("--older-than", metavar="TIME", help="That failed last so long ago: 1h, 30d.")]
NUMBERS = Annotated[list[int] | None, typer.Argument(metavar="[ID]…", help="Which; or describe them by options.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Only count them.")]
YES = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before many are settled.")]
PATH: Final = "/v1/dead-letters"
STATES: Final = {"waiting": "red", "replaying": "yellow", "replayed": "green", "discarded": "bright_black"}
SHOWN: Final = (
    *(
        "state",
        "stream",
        "consumer",
        "key",
        "reason",
        "attempts",
        "replays",
        "number",
        "version",
        "instances",
        "sample",
        "trace",
    ),
    *("created_at", "failed_at", "settled_at", "settled_by", "note"),
)


def list_(
    session: Session,
    state: Annotated[str, typer.Option("--state", help="waiting, replaying, replayed, discarded, or all.")] = "waiting",
    stream: STREAM = None,
    consumer: CONSUMER = None,
    place: PLACE = None,
    key: KEY = None,
    matching: MATCHING = None,
    older_than: OLDER = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 100,
) -> None:
    """List what could not be handled, oldest first: with its reason, and how often it was tried."""
    asked = _described(stream, consumer, place, key, matching, older_than) | ({} if state == "all" else {"state": state})
    found = list(session.api.pages(PATH, limit=limit, **asked))
    columns = ("id", "state", "stream", "of", "about", "tries", "failed at", "reason")
    session.tell(found, lambda: show.table(columns, map(_row, found), empty="no dead letters"))


def _row(told: dict[str, Any]) -> tuple[Any, ...]:
    about = f"{told['key']} {told['number'] or ''}".strip()
    if told["instances"]:
        about += f", {show.count(told['instances'], 'instance')}"
    state = Text(told["state"], style=STATES[told["state"]])
    return (
        told["id"],
        state,
        told["stream"],
        told["consumer"],
        about,
        told["attempts"],
        show.clock(told["failed_at"]),
        told["reason"],
    )


def show_letter(
    session: Session,
    number: Annotated[int, typer.Argument(metavar="ID", min=1, help="Which, as list shows it.")],
    documents: Annotated[
        bool, typer.Option("--documents", help="With the documents in it; that you looked is written into the audit trail.")
    ] = False,
) -> None:
    """Show one dead letter with the event that could not be handled."""
    told = session.api.get(f"{PATH}/{number}", documents="true" if documents else None)
    session.tell(told, lambda: _show(told))


def _show(told: dict[str, Any]) -> None:
    show.facts((name, told[name]) for name in SHOWN if told[name] not in (None, [], 0))
    show.document(told["event"])


def replay(
    session: Session,
    numbers: NUMBERS = None,
    stream: STREAM = None,
    consumer: CONSUMER = None,
    place: PLACE = None,
    key: KEY = None,
    matching: MATCHING = None,
    older_than: OLDER = None,
    dry_run: DRY_RUN = False,
    yes: YES = False,
) -> None:
    """Have dead letters told again: by id, or all that wait and fit the options. What fails again waits again."""
    which = _which(numbers, _described(stream, consumer, place, key, matching, older_than))
    _settle(session, "replay", which, {}, dry_run=dry_run, yes=yes)


def discard(
    session: Session,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why nobody needs to look at them; kept with them.")],
    numbers: NUMBERS = None,
    stream: STREAM = None,
    consumer: CONSUMER = None,
    place: PLACE = None,
    key: KEY = None,
    matching: MATCHING = None,
    older_than: OLDER = None,
    dry_run: DRY_RUN = False,
    yes: YES = False,
) -> None:
    """Discard dead letters, with a reason: by id, or all that wait and fit the options."""
    which = _which(numbers, _described(stream, consumer, place, key, matching, older_than))
    _settle(session, "discard", which, {"reason": reason}, dry_run=dry_run, yes=yes)


def _described(
    stream: str | None, consumer: str | None, place: str | None, key: str | None, matching: str | None, older_than: str | None
) -> dict[str, Any]:
    """The options as the API's filter."""
    asked: dict[str, Any] = {"stream": stream, "consumer": consumer, "key": key, "reason": matching}
    if place:
        namespace, _, environment = place.rstrip("/").partition("/")
        if environment:
            Target.environment_of(place)
        asked |= {"namespace": namespace, "environment": environment or None}
    if older_than:
        asked["older_than_s"] = seconds(older_than)
    return {name: value for name, value in asked.items() if value is not None}


def _which(numbers: list[int] | None, described: dict[str, Any]) -> dict[str, Any]:
    """Raises InvalidRequest unless letters are named in exactly one way."""
    if bool(numbers) == bool(described):
        raise InvalidRequest(
            "say which dead letters: their ids, or options that describe them, as in --stream versions; not both"
        )
    return {"ids": numbers} if numbers else {"filter": described}


def _settle(session: Session, verb: str, which: dict[str, Any], more: dict[str, Any], *, dry_run: bool, yes: bool) -> None:
    path = f"{PATH}/{verb}"
    if dry_run or not yes:
        counted = session.api.call("POST", path, json=which | more | {"dry_run": True}).json()
        if dry_run:
            session.tell(counted, lambda: show.say(f"{show.count(counted['matched'], 'dead letter')} would be {verb}ed"))
            return
        if counted["matched"] > 1:
            _confirm(session, f"{verb} {counted['matched']} dead letters")
    done = _all(session, path, which | more)
    session.tell(done, lambda: _show_settled(done, verb))
    if done["failed"] or not done["done"]:
        raise typer.Exit(Exit.CONFLICT)


def _confirm(session: Session, what: str) -> None:
    """Raises InvalidRequest where nobody can be asked."""
    if session.as_json or not sys.stdin.isatty():
        raise InvalidRequest(f"this would {what}; say --yes, or look first with --dry-run")
    if not typer.confirm(f"{what.capitalize()}?"):
        raise typer.Exit(Exit.FAILED)


def _all(session: Session, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Page by page, since the server takes some hundreds at a time."""
    done: dict[str, Any] = {"done": [], "skipped": [], "failed": []}
    after: int | None = 0
    while after is not None:
        told = session.api.call("POST", path, json=asked | ({"after": after} if after else {})).json()
        for name, items in done.items():
            items.extend(told[name])
        after = told["next"]
    return done


def _show_settled(done: dict[str, Any], verb: str) -> None:
    if done["done"]:
        show.done(f"{show.count(len(done['done']), 'dead letter')} {verb}ed: {_listed(done['done'])}")
    if done["skipped"]:
        show.note(f"not waiting any more, or not there: {_listed(done['skipped'])}")
    for each in done["failed"]:
        show.note(f"{each['id']} waits on: {each['detail']}", style="red")
    if verb == "replay" and done["done"]:
        show.note("one that fails again is listed again, with one more try: heliograph dead-letters list")


def _listed(numbers: list[int], at_most: int = 20) -> str:
    shown = ", ".join(map(str, numbers[:at_most]))
    return shown if len(numbers) <= at_most else f"{shown} and {len(numbers) - at_most} more"
