"""Commands that look at configs and versions: get, diff, log, show, watch."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.text import Text

from heliograph.cli import past, show
from heliograph.cli.options import AT, ENVIRONMENT, TARGET, TRUST
from heliograph.cli.pointer import get_value
from heliograph.cli.session import Session
from heliograph.cli.target import Target
from heliograph.core import names
from heliograph.core.errors import InvalidRequest, NotFound

SHOWN: Final = ("version", "number", "epoch", "kind", "author", "at", "message", "parent", "root", "source", "safe", "copies")


# --- configs ----------------------------------------------------------------------------------------------------------------------


def get(
    session: Session,
    target: Annotated[str, typer.Argument(help="namespace/environment/config; less of it lists what is there.")] = "",
    pointer: Annotated[str, typer.Argument(help="JSON Pointer to one value in it.")] = "",
    at: AT = None,
    schema: Annotated[bool, typer.Option("--schema", help="Its JSON Schema instead of the document.")] = False,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Environments or namespaces that can be restored, instead.")
    ] = False,
) -> None:
    """Print a config, or one value of it. Of a folder, environment or namespace: what is in it."""
    if "/" not in target.strip("/"):
        _list_names(session, target.strip("/"), deleted=deleted)
        return
    where = Target.parse(target)
    if not where.config or where.config.endswith("/"):
        _list_folder(session, where, at)
        return
    path = f"{where.path}/{'schemas' if schema else 'configs'}/{where.with_config().config}"
    value = get_value(session.api.get(path, at=at), pointer)
    session.tell(value, lambda: typer.echo(value) if isinstance(value, str) else show.document(value))


def _list_names(session: Session, namespace: str, *, deleted: bool) -> None:
    """Environments of a namespace, or all namespaces. ``deleted``: those that can be restored."""
    path = f"/v1/namespaces/{namespace}/environments" if namespace else "/v1/namespaces"
    found = list(session.api.pages(path, deleted=deleted or None))
    rows = (
        (each["name"], each.get("number", ""), each.get("configs", ""), show.clock(each.get("deleted", {}).get("erase_at", "")))
        for each in found
    )
    columns = (
        *(("environment", "version", "configs") if namespace else ("namespace", "", "")),
        "until (UTC)" if deleted else "",
    )
    session.tell(found, lambda: show.table(columns, rows, empty="nothing is here yet; see heliograph create"))


def _list_folder(session: Session, where: Target, at: str | None) -> None:
    found = list(session.api.pages(f"{where.path}/configs", folder=where.config, at=at))
    rows = ((each["name"], each["kind"], "schema" if each.get("schema") else "", show.short(each["digest"])) for each in found)
    session.tell(found, lambda: show.table(("name", "kind", "", "digest"), rows, empty="there is nothing here yet"))


# --- versions ---------------------------------------------------------------------------------------------------------------------


def diff(
    session: Session,
    target: TARGET,
    old: Annotated[
        str,
        typer.Argument(help="Number, id, label:NAME or time; the one before NEW, if not given. Or another environment."),
    ] = "",
    new: Annotated[str, typer.Argument(help="Number, id, label:NAME or time; the head, if not given.")] = "",
) -> None:
    """Show what changed between two versions, config by config; or what another environment has that TARGET has not.

    [dim]heliograph diff shop/staging shop/production@41[/] shows what leads from the one to the other; a version may follow either.
    """
    if "/" in old:
        where, ends = _between(target, old)
    else:
        where, ends = Target.parse(target), {"from": old or None, "to": new or None}
    found = [each for each in session.api.pages(f"{where.path}/diff", **ends) if names.inside(each["name"], where.config)]
    session.tell(found, lambda: _show_diff(found))


def _between(old: str, new: str) -> tuple[Target, dict[str, Any]]:
    """Two environments of a namespace; the first may name a config or folder, which the second then need not."""
    before, was = Target.at_version(old)
    after, now = Target.at_version(new)
    if before.namespace != after.namespace:
        raise InvalidRequest(f"{old} and {new} are of two namespaces; environments are compared within one")
    where = Target(after.namespace, after.environment, after.config or before.config)
    return where, {"from_environment": before.environment, "from": was, "to": now}


def _show_diff(found: list[dict[str, Any]]) -> None:
    for each in found:
        show.difference(each)
    if not found:
        show.out.print(Text("no difference", style="bright_black"))


def log(
    session: Session,
    target: TARGET,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many versions.")] = 20,
) -> None:
    """Show the history of an environment, or the versions that changed one config; newest first."""
    where = Target.parse(target)
    if where.config:
        past.show_history(session, where, limit)
        return
    found = list(session.api.pages(f"{where.path}/versions", limit=limit))
    columns = ("number", "id", "kind", "at (UTC)", "author", "changed", "message")
    session.tell(found, lambda: show.table(columns, map(_log_row, found), empty="no versions"))


def _log_row(told: dict[str, Any]) -> tuple[Any, ...]:
    return (
        told["number"],
        show.short(told["version"]),
        told["kind"],
        show.clock(told["at"]),
        told["author"],
        f"from version {told['source']['number']}" if told["source"] else _changes(told),
        " ".join([*(f"[{label}]" for label in told.get("labels", ())), told["message"] or ""]).strip(),
    )


def _changes(told: dict[str, Any], most: int = 3) -> str:
    listed = (told.get("changes") or [])[:most]
    more = told["change_count"] - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")


def show_version(
    session: Session,
    target: ENVIRONMENT,
    version: Annotated[str | None, typer.Argument(help="Number, id, label:NAME or time; the head, if not given.")] = None,
) -> None:
    """Show one version: its record, who signed it, and what it changed."""
    where, which = Target.version_of(target, version)
    if which is None:
        which = session.api.get(where.of("heads"))["version"]
    told = session.api.get(f"{where.path}/versions/{which}")
    session.tell(told, lambda: _show_version(told))


def _show_version(told: dict[str, Any]) -> None:
    rows = [(member, told[member]) for member in SHOWN if told.get(member) is not None]
    rows.append(("signed by", ", ".join(each["keyid"] for each in told["envelope"]["signatures"])))
    show.facts(rows)
    for name in told.get("changes", ()):
        show.out.print(Text(f"  {name}"))


# --- as it happens ----------------------------------------------------------------------------------------------------------------


def watch(
    session: Session,
    target: TARGET,
    pointer: Annotated[str, typer.Argument(help="JSON Pointer: print only what is there, whenever it changes.")] = "",
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="End after so many lines; 0: never.")] = 0,
    trust: TRUST = None,
) -> None:
    """Print each new version as it comes, verified, until Ctrl-C. TARGET may be a folder or a config; of a config, its value.

    It looks on: it sends no receipts and is not one of the instances.
    """
    from heliograph.cli.following import Follower  # noqa: PLC0415
    from heliograph.cli.trusting import trusted  # noqa: PLC0415

    where = Target.parse(target)
    follower = Follower(session.api, trusted(session, trust, or_server=True), where)
    show.note(f"watching {where} from version {follower.number}")
    one = where.config if where.config and not where.config.endswith("/") else ""
    seen, last = 0, _value_at(follower.configs, one, pointer)
    for step in follower.steps():
        value = _value_at(follower.configs, one, pointer)
        if pointer and value == last:
            continue
        last, seen = value, seen + 1
        told = {"number": step.number, "version": step.version, "changed": step.changed} | ({"value": value} if one else {})
        if session.as_json:
            show.as_line(told)
        else:
            what = show.on_one_line(value) if one else ", ".join(step.changed) or "nothing in this view"
            show.out.print(Text.assemble((f"version {step.number}", "bold"), f"  {what}"))
        if seen == count:
            return


def _value_at(configs: dict[str, Any], name: str, pointer: str) -> Any:
    """None where nothing is."""
    try:
        return get_value(configs[name], pointer) if name in configs else None
    except NotFound:
        return None
