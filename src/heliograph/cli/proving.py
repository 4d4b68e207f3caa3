"""Commands that prove: receipts, instances, drift, verify, trust, health."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from heliograph.cli import show
from heliograph.cli.exits import Exit
from heliograph.cli.options import ENVIRONMENT, TRUST, seconds
from heliograph.cli.session import Session
from heliograph.cli.target import Target
from heliograph.core import names
from heliograph.core.errors import Forked, HeliographError, InvalidRequest
from heliograph.core.times import to_text

LOOK_S: Final = 0.15
SAVED: Final = ("trust.json", "history.ndjson", "bundle.json")


# --- receipts ---------------------------------------------------------------------------------------------------------------------


def receipts(
    session: Session,
    target: ENVIRONMENT,
    version: Annotated[str | None, typer.Argument(help="Its number, id, label:NAME or time; the head, if not given.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Do not wait for those who have not answered.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", metavar="TIME", help="How long to wait for them.")] = "60s",
    every: Annotated[bool, typer.Option("--all", help="List each receipt.")] = False,
) -> None:
    """Show who has applied a version, who refused it and why, and how long it took."""
    where, number = Target.version_of(target, version)
    path = f"{where.of('propagations')}/{_number(session, where, number)}"
    told = session.api.ledger(path)
    if not once and show.out.is_terminal and not session.as_json:
        told = _followed(lambda: session.api.ledger(path), told, seconds(timeout))
    if every:
        told |= {"receipts": list(session.api.pages(f"{path}/receipts", of_ledger=True))}
    session.tell(told, lambda: _show_receipts(told))


def _number(session: Session, where: Target, version: str | None) -> int:
    """Asks only for what is no number: whoever may observe may not read."""
    if version and version.isdigit():
        return int(version)
    told = session.api.get(f"{where.path}/versions/{version}" if version else where.of("heads"))
    return int(told["number"])


def _followed(look: Callable[[], Any], told: Any, timeout_s: float) -> Any:
    """The story when all have answered, or the time is over; until then a bar that fills."""
    from rich.live import Live  # noqa: PLC0415

    deadline = time.monotonic() + timeout_s
    with Live(show.bar(told), console=show.out, refresh_per_second=10, transient=True) as live:
        while told["missing"] and told["state"] == "open" and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            told = look()
            live.update(Text("\n").join([show.bar(told), *show.times(told)]))
    return told


def _show_receipts(told: dict[str, Any]) -> None:
    where = f"{told['namespace']}/{told['environment']}"
    show.out.print(Text.assemble((f"version {told['number']}", "bold"), f" of {where}, {told['state']}"))
    show.propagation(told)
    if "receipts" in told:
        rows = (_receipt(each, told["received_at_us"]) for each in told["receipts"])
        show.table(("instance", "state", "after", "node", "reason"), rows, empty="no receipts")


def _receipt(told: dict[str, Any], since_us: int) -> tuple[Any, ...]:
    state = Text(told["state"], style=show.STATES[told["state"]])
    after = show.ms(max(0, told["applied_at_us"] - since_us) / 1000)
    return told["instance"], state, after, told["node"], told["reason"] or ""


# --- who runs what ----------------------------------------------------------------------------------------------------------------


def instances(
    session: Session,
    target: ENVIRONMENT,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Who was there then, and what each ran: 2026-11-01T12:00:00Z.")
    ] = None,
    instance: Annotated[str | None, typer.Option("--instance", metavar="ID", help="With --at: only this one.")] = None,
) -> None:
    """Show the clients of an environment: who they are and what they run, or ran at a time."""
    path = Target.environment_of(target).of("instances")
    if at:
        then = list(session.api.pages(path, of_ledger=True, at=at, instance=instance))
        told = ("instance", "app", "host", "labels", "sdk", "region", "ran")
        session.tell(then, lambda: show.table(told, map(_instance_then, then), empty="nobody was connected then"))
        return
    found = list(session.api.pages(path, of_ledger=True, instance=instance))
    columns = ("instance", "app", "host", "labels", "sdk", "region", "", "runs")
    session.tell(found, lambda: show.table(columns, map(_instance, found), empty="nobody is connected"))


def _instance(told: dict[str, Any]) -> tuple[Any, ...]:
    state = (
        ("connected", "green") if told["connected"] else ("unknown", "yellow") if told["unknown"] else ("gone", "bright_black")
    )
    return *_who(told), Text(*state), _runs(told)


def _instance_then(told: dict[str, Any]) -> tuple[Any, ...]:
    ran = told["ran"]
    return *_who(told), f"{ran['number']} since {_at(ran['since_us'])}" if ran else "not known"


def _who(told: dict[str, Any]) -> tuple[Any, ...]:
    said = told["fingerprint"]
    labels = " ".join(f"{key}={value}" for key, value in sorted(said.get("labels", {}).items()))
    return (
        _short(told),
        said.get("app", ""),
        said.get("host", ""),
        labels,
        f"{said['sdk']} {said['sdk_version']}",
        told["region"],
    )


def _at(us: int) -> str:
    return show.clock(to_text(us))


def drift(session: Session, target: ENVIRONMENT) -> None:
    """Show who has run something else than the head for longer than the grace period, and why."""
    found = list(session.api.pages(Target.environment_of(target).of("drift"), of_ledger=True))
    columns = ("instance", "app", "host", "runs", "should run", "for", "cause", "reason")
    session.tell(found, lambda: show.table(columns, map(_drifting, found), empty="no drift: everybody runs the head"))


def _drifting(told: dict[str, Any]) -> tuple[Any, ...]:
    said = told["fingerprint"]
    return (
        _short(told),
        said.get("app", ""),
        said.get("host", ""),
        _runs(told),
        told["desired"]["number"],
        f"{told['age_s']:.0f} s",
        told["cause"],
        told["reason"] or "",
    )


def _short(told: dict[str, Any]) -> str:
    return str(told["instance"])[-12:]


def _runs(told: dict[str, Any]) -> str:
    return str(told["runs"]["number"]) if told["runs"] else "-"


# --- without trust in the server --------------------------------------------------------------------------------------------------


def verify(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(help="A history (NDJSON) or a bundle (JSON) as a file; namespace/environment with --from-server."),
    ],
    trust: TRUST = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", exists=True, help="The trust root, as GET /v1/trust gives it; trust.json beside the file by default."
        ),
    ] = None,
    view: Annotated[
        list[str] | None, typer.Option("--view", help="What the bundle was asked for with; everything by default.")
    ] = None,
    from_server: Annotated[
        bool, typer.Option("--from-server", help="Download trust root, history and bundle, then check.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="Keep what was downloaded in this folder, for checking offline.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="VERSION", help="With --from-server: every text of this version, too. Needs to read configs."
        ),
    ] = None,
) -> None:
    """Check signatures, digests, descent, and that nothing was withheld, without trusting the server.

    A text that was purged may be missing, if a signed statement says so.
    """
    wanted = names.view(view or [""])
    if at and not from_server:
        raise InvalidRequest("--at goes with --from-server")
    if at:
        told = _verify_contents(session, Target.environment_of(what), trust, at)
    elif from_server:
        told = _verify_server(session, Target.environment_of(what), trust, wanted, save)
    else:
        told = _verify_file(session, Path(what), trust, root, wanted)
    session.tell(told, lambda: show.done("; ".join(f"{key} {value}" for key, value in told.items())))


def _verify_server(session: Session, where: Target, trust: str | None, view: names.View, save: Path | None) -> dict[str, Any]:
    from heliograph.cli import verify as checks  # noqa: PLC0415
    from heliograph.cli.trusting import trusted  # noqa: PLC0415

    api = session.api
    bundle = api.bundle(where.of("bundles"), view)
    history = api.call("GET", f"{where.path}/history").content
    if save:
        _save(save, (api.call("GET", "/v1/trust").content, history, bundle))
    trust_root = trusted(session, trust)
    replica = checks.check_bundle(bundle, trust_root, view)
    assert replica.head, "a checked bundle has a head"
    every = checks.check_history(history, trust_root)
    checks.check_head(replica.head, every)  # what was committed since the bundle is checked all the same
    return {"versions": len(every), "head": replica.head.number, "configs": len(replica.texts), "root": replica.head.root}


def _verify_contents(session: Session, where: Target, trust: str | None, at: str) -> dict[str, Any]:
    """An old version as a whole: the history up to it, and each of its texts."""
    from heliograph.cli import verify as checks  # noqa: PLC0415
    from heliograph.cli.contents import check_contents  # noqa: PLC0415
    from heliograph.cli.trusting import trusted  # noqa: PLC0415

    trust_root = trusted(session, trust)
    every = checks.check_history(session.api.call("GET", f"{where.path}/history").content, trust_root)
    named = session.api.get(f"{where.path}/versions/{at}")
    found = next((each for each in every if each.identity == named["version"]), None)
    if found is None:
        raise Forked(f"version {named['number']} is not in the history")
    checked = check_contents(session, where, found.version, found.identity, trust_root)
    told = {"version": found.version.number, "configs": checked.configs, "root": found.version.root}
    return told | ({"purged": checked.purged} if checked.purged else {})


def _verify_file(session: Session, path: Path, trust: str | None, root: Path | None, view: names.View) -> dict[str, Any]:
    from heliograph.cli import verify as checks  # noqa: PLC0415
    from heliograph.cli.trusting import read, trusted  # noqa: PLC0415

    root = root or path.with_name(SAVED[0])
    if not root.exists():
        raise InvalidRequest(
            "offline, the trust root is needed too: --root FILE, saved from GET /v1/trust or by --from-server --save"
        )
    trust_root, body = trusted(session, trust, root=root), read(path)
    if checks.is_history(body):
        last = checks.check_history(body, trust_root)[-1]
        return {"versions": last.version.number, "last": last.identity, "root": last.version.root}
    replica = checks.check_bundle(body, trust_root, view)
    assert replica.head, "a checked bundle has a head"
    return {"version": replica.head.number, "configs": len(replica.texts), "root": replica.head.root}


def _save(folder: Path, bodies: tuple[bytes, bytes, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, body in zip(SAVED, bodies, strict=True):
            (folder / name).write_bytes(body)
    except OSError as error:
        raise InvalidRequest(f"{folder} cannot be written: {error.strerror}") from None


def trust(session: Session, context: typer.Context) -> None:
    """Show the server's trust root: its anchor, for --trust, and its keys. Compare the anchor with what your operator says.

    `trust next` makes the next one.
    """
    if context.invoked_subcommand:
        return
    from heliograph.cli.trusting import server_root  # noqa: PLC0415

    root, anchor = server_root(session)
    told = {"anchor": anchor, "number": root.number, "expires_at": root.expires_at, "keys": sorted(root.keys)}
    rows = [(key, ", ".join(value) if isinstance(value, list) else value) for key, value in told.items()]
    session.tell(told, lambda: show.facts(rows))


def next_trust(
    session: Session,
    keys: Annotated[Path, typer.Option("--keys", help="The registry's key folder.", file_okay=False)] = Path(
        ".heliograph/keys"
    ),
    root_key: Annotated[
        Path | None,
        typer.Option("--root-key", help="The root key's file, where it is kept offline; root.pem in --keys by default."),
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="How long the next root is good for.")] = 3650,
    new_commit_key: Annotated[
        bool, typer.Option("--new-commit-key", help="A new key for versions; what the old one signed still verifies.")
    ] = False,
    new_head_key: Annotated[
        bool, typer.Option("--new-head-key", help="A new key for heads; the old one is out at once.")
    ] = False,
    distrust: Annotated[
        list[str] | None,
        typer.Option("--distrust", metavar="KEYID", help="An old commit key that leaked: what it signed no longer verifies."),
    ] = None,
) -> None:
    """Make the next trust root, in the registry's key folder: a later expiry, and new keys where they are wanted.

    The registry takes it within seconds, without a restart; clients ask for it when a signature is not by a key that they know.
    """
    import time  # noqa: PLC0415

    from heliograph.keys.next_root import Wanted, make_next  # noqa: PLC0415

    expires_at_us = int((time.time() + days * 86400) * 1e6)
    wanted = Wanted(expires_at_us, new_commit_key, new_head_key, tuple(distrust or ()))
    root = make_next(keys, root_key or keys / "root.pem", wanted)
    told = {
        "number": root.number,
        "expires_at": root.expires_at,
        "commit": root.roles.commit.keyids[0],
        "head": root.roles.head.keyids[0],
    }
    session.tell(told, lambda: show.facts(list(told.items())))


# --- the services -----------------------------------------------------------------------------------------------------------------


def health(
    session: Session,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="URL", help="Ask this service too: a relay, another node. May be repeated."),
    ] = None,
) -> None:
    """Ask every service whether it is ready."""
    found = {"registry": _readiness(session, lambda: session.api.url)}
    found["sync"] = _readiness(session, lambda: session.api.endpoints.bundles)
    found["ledger"] = _readiness(session, lambda: session.api.endpoints.ledger)
    for url in also or ():
        found[url] = _readiness(session, partial(url.rstrip, "/"))
    session.tell(found, lambda: _show_health(found))
    if any(told["status"] != "ready" for told in found.values()):
        raise typer.Exit(Exit.UNAVAILABLE)


def _readiness(session: Session, address: Callable[[], str]) -> dict[str, Any]:
    try:
        return session.api.readiness(address())
    except HeliographError as error:
        return {"status": "unreachable", "detail": error.detail}


def _show_health(found: dict[str, dict[str, Any]]) -> None:
    width = max(map(len, found))
    for name, told in found.items():
        good = told["status"] == "ready"
        missing = told.get("missing", {})
        reasons = told.get("detail") or ", ".join(f"{key}: {value}" for key, value in missing.items())
        mark = ("✓ ", "green") if good else ("✗ ", "red")
        show.out.print(Text.assemble(mark, f"{name:{width}}  {told['status']}  {reasons}"))
