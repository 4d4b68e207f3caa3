"""Commands that look: get, list, diff, log, show, watch, receipts, instances, drift, verify, health."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.text import Text

from heliograph.cli import show
from heliograph.cli import verify as verifying
from heliograph.cli.api import Api, Problem
from heliograph.cli.context import TARGET, parse_seconds, speaking, surroundings
from heliograph.cli.exits import Exit
from heliograph.cli.pointer import get_value
from heliograph.cli.target import Target
from heliograph.core import names
from heliograph.core import token as token_text
from heliograph.core.errors import InvalidRequest

REFRESH_S = 0.15
KINDS = {"added": "green", "removed": "red", "changed": "yellow"}


@speaking
def get(
    target: TARGET,
    pointer: Annotated[str, typer.Argument(help="JSON Pointer to one value in it.")] = "",
    at: Annotated[str | None, typer.Option("--at", help="As of this version, by number or id.")] = None,
) -> None:
    """Print a config, or one value of it; of a folder or environment, the names in it."""
    api, where = surroundings().api(), Target.parse(target)
    if not where.config or where.config.endswith("/"):
        _list(api, where, at)
        return
    document = api.get(where.of_config().config_path(), at=at)
    value = get_value(document, pointer)
    if surroundings().json or not isinstance(value, str):
        show.document(value)
    else:
        typer.echo(value)


def _list(api: Api, where: Target, at: str | None) -> None:
    found = list(api.pages(f"{where.path}/configs", folder=where.config, at=at))
    if surroundings().json:
        show.as_json(found)
        return
    rows = [(each["name"], each["kind"], "schema" if each.get("schema") else "", show.short(each["digest"])) for each in found]
    show.table(("name", "kind", "", "digest"), rows, empty="there is nothing here yet")


@speaking
def diff(
    target: TARGET,
    old: Annotated[str, typer.Argument(help="Version number or id.")],
    new: Annotated[str | None, typer.Argument(help="Version number or id; the head, if not given.")] = None,
) -> None:
    """Show what changed between two versions, config by config."""
    api, where = surroundings().api(), Target.parse(target)
    params: dict[str, Any] = {"from": old, "to": new}
    found = list(api.pages(f"{where.path}/diff", **params))
    if where.config:
        found = [each for each in found if names.inside(each["name"], where.config)]
    if surroundings().json:
        show.as_json(found)
        return
    for each in found:
        show.out.print(
            Text.assemble(
                (f"{each['change']:8}", KINDS[each["change"]]),
                (each["name"], "bold"),
                "  schema changed" * each["schema_changed"],
            )
        )
        for operation in each["operations"] if each["change"] == "changed" else ():
            value = "" if "value" not in operation else f" {_brief(operation['value'])}"
            show.out.print(Text(f"  {operation['op']:8}{operation['path'] or '(the whole)'}{value}"))
    if not found:
        show.out.print(Text("no difference", style="dim"))


def _brief(value: Any, limit: int = 100) -> str:
    import json  # noqa: PLC0415

    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@speaking
def log(target: TARGET, limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many versions.")] = 20) -> None:
    """Show the history of an environment, newest first."""
    where = Target.parse(target)
    found = list(surroundings().api().pages(f"{where.path}/versions", limit=limit))
    if surroundings().json:
        show.as_json(found)
        return
    rows = [
        (
            each["number"],
            show.short(each["version"]),
            each["kind"],
            show.clock(each["at"]),
            each["author"],
            _changes(each),
            each["message"] or "",
        )
        for each in found
    ]
    show.table(("number", "id", "kind", "at (UTC)", "author", "changed", "message"), rows, empty="no versions")


def _changes(told: dict[str, Any], limit: int = 3) -> str:
    listed = told.get("changes") or []
    if told["source"]:
        return f"from version {told['source']['number']}"
    more = told["change_count"] - len(listed[:limit])
    return ", ".join(listed[:limit]) + (f" and {more} more" if more > 0 else "")


@speaking
def show_version(target: TARGET, version: Annotated[str, typer.Argument(help="Number or id.")]) -> None:
    """Show one version: its record, its changes, its signature."""
    where = Target.parse(target)
    told = surroundings().api().get(f"{where.path}/versions/{version}")
    if surroundings().json:
        show.as_json(told)
        return
    for member in (
        "version",
        "number",
        "epoch",
        "kind",
        "author",
        "at",
        "message",
        "parent",
        "root",
        "source",
        "safe",
        "copies",
    ):
        if told.get(member) is not None:
            show.out.print(Text.assemble((f"{member:9}", "bold"), str(told[member])))
    for name in told.get("changes", ()):
        show.out.print(f"  {name}")


@speaking
def watch(
    target: TARGET,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="End after so many versions; 0: never.")] = 0,
) -> None:
    """Print each new version as it comes, verified, until Ctrl-C."""
    where = Target.parse(target)
    asyncio.run(_watch(where, count))


async def _watch(where: Target, count: int) -> None:
    from heliograph.client import Heliograph  # noqa: PLC0415

    api, as_json = surroundings().api(), surroundings().json
    updates: asyncio.Queue[Any] = asyncio.Queue()
    async with Heliograph(
        api.url,
        token=api.token,
        trust=_anchor(api, None),
        namespace=where.namespace,
        environment=where.environment,
        view=[where.config],
        app="heliograph watch",
        cache_dir=None,
    ) as client:
        client.on_version(updates.put_nowait)
        if not as_json:
            show.err.print(Text(f"watching {where} from version {client.cursor.number if client.cursor else 0}", style="dim"))
        seen = 0
        while not count or seen < count:
            update = await updates.get()
            seen += 1
            if as_json:
                show.as_lines(
                    [{"number": update.cursor.number, "version": update.cursor.version, "changed": list(update.changed)}]
                )
            else:
                show.out.print(f"version {update.cursor.number}  {', '.join(update.changed) or '(nothing in this view)'}")


@speaking
def receipts(
    target: TARGET,
    version: Annotated[int | None, typer.Argument(help="Its number; the head, if not given.", min=1)] = None,
    follow: Annotated[bool, typer.Option("--follow/--once", help="Watch until all have answered.")] = True,
    timeout: Annotated[str, typer.Option("--timeout", help="Stop watching after this long.")] = "60s",
    every: Annotated[bool, typer.Option("--all", help="List each receipt.")] = False,
) -> None:
    """Show who has applied a version, who refused it and why, and how long it took."""
    api, where = surroundings().api(), Target.parse(target)
    number = version or api.get(f"/v1/heads/{where.namespace}/{where.environment}")["number"]
    told = _story(api, where, number)
    if follow and not surroundings().json and show.out.is_terminal:
        told = _follow(api, where, number, told, parse_seconds(timeout))
    if surroundings().json:
        listed = (
            {"receipts": list(api.pages(f"{where.ledger_path('propagations')}/{number}/receipts", ledger=True))}
            if every
            else {}
        )
        show.as_json(told | listed)
        return
    show.out.print(Text.assemble((f"version {number}", "bold"), f" of {where.namespace}/{where.environment}, {told['state']}"))
    show.propagation(told)
    if every:
        _each_receipt(api, where, number)


def _story(api: Api, where: Target, number: int) -> Any:
    return api.ledger(f"{where.ledger_path('propagations')}/{number}")


def _follow(api: Api, where: Target, number: int, told: Any, timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    with Live(show.bar(told), console=show.out, refresh_per_second=10, transient=True) as live:
        while told["missing"] and told["state"] == "open" and time.monotonic() < deadline:
            time.sleep(REFRESH_S)
            told = _story(api, where, number)
            live.update(show.bar(told))
    return told


def _each_receipt(api: Api, where: Target, number: int) -> None:
    found = api.pages(f"{where.ledger_path('propagations')}/{number}/receipts", ledger=True)
    rows = ((each["instance"], each["state"], each["node"], each["reason"] or "") for each in found)
    show.table(("instance", "state", "node", "reason"), rows, empty="no receipts")


@speaking
def instances(target: TARGET) -> None:
    """Show the clients of an environment: who they are and what they run."""
    where = Target.parse(target)
    found = list(surroundings().api().pages(where.ledger_path("instances"), ledger=True))
    if surroundings().json:
        show.as_json(found)
        return
    rows = [
        (
            each["instance"][-12:],
            each["fingerprint"].get("app", ""),
            each["fingerprint"].get("host", ""),
            f"{each['fingerprint']['sdk']} {each['fingerprint']['sdk_version']}",
            each["region"],
            Text("connected", style="green")
            if each["connected"]
            else Text("unknown" if each["unknown"] else "gone", style="yellow"),
            each["runs"]["number"] if each["runs"] else "-",
        )
        for each in found
    ]
    show.table(("instance", "app", "host", "sdk", "region", "", "runs"), rows, empty="nobody is connected")


@speaking
def drift(target: TARGET) -> None:
    """Show who runs something else than the head for longer than the grace period, and why."""
    where = Target.parse(target)
    found = list(surroundings().api().pages(where.ledger_path("drift"), ledger=True))
    if surroundings().json:
        show.as_json(found)
        return
    rows = [
        (
            each["instance"][-12:],
            each["fingerprint"].get("host", ""),
            each["runs"]["number"] if each["runs"] else "-",
            each["desired"]["number"],
            f"{each['age_s']:.0f} s",
            each["cause"],
            each["reason"] or "",
        )
        for each in found
    ]
    show.table(
        ("instance", "host", "runs", "should run", "for", "cause", "reason"), rows, empty="no drift: everybody runs the head"
    )


@speaking
def verify(
    what: Annotated[
        str,
        typer.Argument(help="A history (NDJSON) or a bundle (JSON) as a file, or namespace/environment with --from-server."),
    ],
    trust: Annotated[
        str | None, typer.Option("--trust", envvar="HELIOGRAPH_TRUST", help="The trust anchor, sha256:…, or a client token.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", exists=True, help="The trust root's file, as GET /v1/trust gives it.")
    ] = None,
    from_server: Annotated[
        bool, typer.Option("--from-server", help="Download history and bundle, then verify them here.")
    ] = False,
    view: Annotated[list[str] | None, typer.Option("--view", help="Selectors the bundle was asked for with.")] = None,
) -> None:
    """Check signatures, digests and descent without trusting the server."""
    wanted = names.view(view or [""])
    if from_server:
        told = _verify_server(Target.parse(what), trust, wanted)
    else:
        if root is None:
            raise InvalidRequest("offline, the trust root is needed: --root FILE, made with `curl …/v1/trust`")
        import json  # noqa: PLC0415

        trusted = verifying.trust_of(json.loads(verifying.read(root)), _anchor(None, trust))
        told = _verify_text(verifying.read(Path(what)), trusted, wanted)
    if surroundings().json:
        show.as_json(told)
    else:
        show.out.print(Text.assemble(("✓ ", "green bold"), "; ".join(f"{key} {value}" for key, value in told.items())))


def _verify_server(where: Target, trust: str | None, view: names.View) -> dict[str, Any]:
    api = surroundings().api()
    trusted = verifying.trust_of(api.get("/v1/trust"), _anchor(api, trust))
    lines = api.call("GET", f"{where.path}/history").text.splitlines()
    last = verifying.check_history(lines, trusted)
    bundle = api.call(
        "GET", f"/v1/bundles/{where.namespace}/{where.environment}", base=api.endpoints["bundles"], params={"view": list(view)}
    ).text
    replica = verifying.check_bundle(bundle, trusted, view)
    return {"versions": last.number, "configs": len(replica.texts), "root": last.root}


def _verify_text(text: str, trusted: Any, view: names.View) -> dict[str, Any]:
    first = text.lstrip()[:200]
    if '"snapshot"' in first or first.startswith("["):
        replica = verifying.check_bundle(text, trusted, view)
        assert replica.head
        return {"version": replica.head.number, "configs": len(replica.texts), "root": replica.head.root}
    last = verifying.check_history(text.splitlines(), trusted)
    return {"versions": last.number, "root": last.root}


def _anchor(api: Api | None, given: str | None) -> str:
    """From --trust, a client token, or (said aloud) the server itself."""
    for text in (given, api.token if api else None):
        if text and text.startswith("sha256:"):
            return text
        if text and text.startswith("hel_client_") and (anchor := token_text.parse(text).anchor):
            return anchor
    if api is None:
        raise InvalidRequest(
            "the trust anchor is needed: --trust sha256:… (it is part of every client token, which will do too)"
        )
    show.err.print(
        Text(
            "! the trust anchor comes from the server itself; give --trust to check that it is the right server", style="yellow"
        )
    )
    return _own_anchor(api)


def _own_anchor(api: Api) -> str:
    import base64  # noqa: PLC0415
    import json  # noqa: PLC0415

    from heliograph.core.trust import anchor_of  # noqa: PLC0415

    statement = json.loads(base64.b64decode(api.get("/v1/trust")["payload"]))
    keyid = statement["roles"]["root"]["keyids"][0]
    return anchor_of(base64.b64decode(statement["keys"][keyid]))


@speaking
def health() -> None:
    """Ask every service whether it is ready."""
    api = surroundings().api()
    found = {}
    for name, base in {"registry": api.url, "sync": None, "ledger": None}.items():
        try:
            address = base or api.endpoints[{"sync": "bundles", "ledger": "ledger"}[name]]
            found[name] = _readiness(api, address)
        except Problem as problem:
            found[name] = {"status": "unreachable", "detail": str(problem)}
    if surroundings().json:
        show.as_json(found)
    else:
        for name, told in found.items():
            good = told["status"] == "ready"
            reasons = told.get("detail") or ", ".join(f"{key}: {value}" for key, value in told.get("missing", {}).items())
            show.out.print(
                Text.assemble(
                    ("✓ " if good else "✗ ", "green" if good else "red"), f"{name:9}{told['status']}  {reasons or ''}"
                )
            )
    if any(told["status"] != "ready" for told in found.values()):
        raise typer.Exit(Exit.UNAVAILABLE)


def _readiness(api: Api, base: str) -> dict[str, Any]:
    try:
        return dict(api.http.get(f"{base}/readyz").json())
    except (OSError, ValueError) as error:
        raise Problem({"code": "unavailable", "detail": str(error)}) from None
    except Exception as error:
        raise Problem({"code": "unavailable", "detail": f"{base} does not answer: {type(error).__name__}"}) from None
