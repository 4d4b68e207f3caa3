"""Commands that change something: apply, set, publish, rollback, create, token."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.cli import files, show
from heliograph.cli.api import Api, Problem, Wait
from heliograph.cli.context import MESSAGE, TARGET, TIMEOUT, WAIT, parse_seconds, parse_wait, speaking, surroundings
from heliograph.cli.exits import Exit
from heliograph.cli.pointer import set_value
from heliograph.cli.target import Target
from heliograph.core.canonical import parse
from heliograph.core.errors import InvalidDocument, InvalidRequest

RETRIES = 5


def _told(version: dict[str, Any]) -> None:
    """Prints a version, and ends with TIMEOUT when a wanted share was not reached."""
    if surroundings().json:
        show.as_json(version)
    else:
        show.version(version)
    if (version.get("wait") or {}).get("reached") is False:
        raise typer.Exit(Exit.TIMEOUT)


def _publish(
    api: Api, target: Target, changes: list[dict[str, Any]], message: str | None, wait: Wait | None, base: str | None
) -> Any:
    body: dict[str, Any] = {"changes": changes}
    if message:
        body["message"] = message
    headers = {"If-Match": f'"{base}"'} if base else None
    return api.write("POST", f"{target.path}/versions", json=body, wait=wait, headers=headers)


@speaking
def apply(
    target: TARGET,
    file: Annotated[
        Path, typer.Option("--file", "-f", exists=True, help="A .json file, or a folder: all of it is one version.")
    ],
    message: MESSAGE = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also delete configs below TARGET that the folder does not have.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    base: Annotated[str | None, typer.Option("--if-match", help="Only on top of this version id.")] = None,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
) -> None:
    """Publish a file or a folder as one atomic version.

    [dim]limits.json[/] is the config [dim]limits[/], [dim]limits.schema.json[/] its JSON Schema, folders are folders.
    TARGET may name a folder ([dim]shop/production/checkout/[/]) or, for one file, the config.
    """
    api, at = surroundings().api(), Target.parse(target)
    if at.config and not at.config.endswith("/") and file.is_file():
        changes = [{"name": at.config, ("schema" if file.name.endswith(files.SCHEMA) else "document"): files.read(file)}]
    else:
        changes = files.changes(file, at.config)
    held = {each["name"]: each for each in _held(api, at)} if prune or dry_run else {}
    if prune:
        changes += [{"name": name, "delete": True} for name in sorted(held.keys() - {each["name"] for each in changes})]
    if dry_run:
        _preview(api, at, changes, held)
        return
    _told(_publish(api, at, changes, message, parse_wait(wait, timeout), base))


def _held(api: Api, at: Target, folder: str | None = None) -> list[dict[str, Any]]:
    """All configs below a folder."""
    found = []
    for each in api.pages(f"{at.path}/configs", folder=at.config if folder is None else folder):
        if each["kind"] == "folder":
            found += _held(api, at, each["name"])
        else:
            found.append(each)
    return found


def _preview(api: Api, at: Target, changes: list[dict[str, Any]], held: dict[str, Any]) -> None:
    rows = []
    for change in changes:
        name = change["name"]
        if change.get("delete"):
            what = "delete"
        elif name not in held:
            what = "add"
        else:
            now = api.get(Target(at.namespace, at.environment, name).config_path())
            what = "change" if "document" in change and now != change["document"] else "same"
        rows.append((what, name))
    if surroundings().json:
        show.as_json([{"change": what, "name": name} for what, name in rows])
    else:
        show.table(("change", "config"), rows, empty="nothing")


@speaking
def set_(
    target: TARGET,
    pointer: Annotated[str, typer.Argument(help='JSON Pointer to the value, as in /max_items; "" for the whole document.')],
    value: Annotated[str, typer.Argument(help="The value as JSON; text that is not JSON is taken as a string.")],
    message: MESSAGE = None,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
) -> None:
    """Change one value of a config. Somebody else's change in between is kept: the value is set again on top of it."""
    api, at = surroundings().api(), Target.parse(target).of_config()
    new, held = _value(value), parse_wait(wait, timeout)
    for attempt in range(RETRIES):
        document, base = _read_config(api, at)
        body = json.dumps(set_value(document, pointer, new))
        headers = {"If-Match": f'"{base}"', "Content-Type": "application/json"}
        if message:
            headers["Heliograph-Message"] = _percent(message)
        try:
            _told(api.write("PUT", at.config_path(), content=body, headers=headers, wait=held))
            return
        except Problem as problem:
            if problem.code != "stale-base" or attempt == RETRIES - 1:
                raise


def _read_config(api: Api, at: Target) -> tuple[Any, str]:
    """The document (None when there is none) and the head it was read at."""
    try:
        answer = api.call("GET", at.config_path())
        return answer.json(), answer.headers["etag"].strip('"')
    except Problem as problem:
        if problem.code != "not-found":
            raise
    return None, api.get(f"/v1/heads/{at.namespace}/{at.environment}")["version"]


def _value(text: str) -> Any:
    try:
        return parse(text)
    except InvalidDocument:
        if text[:1] in '{["-0123456789':
            raise
        return text


def _percent(text: str) -> str:
    from urllib.parse import quote  # noqa: PLC0415

    return quote(text)


@speaking
def delete(target: TARGET, message: MESSAGE = None, wait: WAIT = None, timeout: TIMEOUT = "2s") -> None:
    """Delete a config. Its history stays; a rollback brings it back."""
    at = Target.parse(target).of_config()
    headers = {"Heliograph-Message": _percent(message)} if message else None
    _told(surroundings().api().write("DELETE", at.config_path(), headers=headers, wait=parse_wait(wait, timeout)))


@speaking
def publish(
    target: TARGET,
    changes: Annotated[
        str, typer.Argument(help='A JSON list of changes, or - for standard input: [{"name": …, "document": …}, …]')
    ] = "-",
    message: MESSAGE = None,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
    base: Annotated[str | None, typer.Option("--if-match", help="Only on top of this version id.")] = None,
) -> None:
    """Publish several changes as one atomic version, from JSON."""
    told = parse(sys.stdin.read() if changes == "-" else changes, limit=32 * 1024 * 1024)
    if not isinstance(told, list):
        raise InvalidRequest('changes are a JSON list: [{"name": "limits", "document": {…}}, …]')
    at = Target.parse(target)
    _told(_publish(surroundings().api(), at, told, message, parse_wait(wait, timeout), base))  # type: ignore[arg-type]  # the API says what is wrong


@speaking
def rollback(
    target: TARGET,
    to: Annotated[str, typer.Argument(help="Number or id of the version whose content comes back.")],
    message: MESSAGE = None,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
) -> None:
    """Bring back the content of an earlier version, as a new version; all configs at once."""
    at = Target.parse(target)
    body: dict[str, Any] = {"to": int(to) if to.isdigit() else to}
    if message:
        body["message"] = message
    _told(surroundings().api().write("POST", f"{at.path}/rollback", json=body, wait=parse_wait(wait, timeout)))


@speaking
def create(target: Annotated[str, typer.Argument(help="namespace, or namespace/environment")]) -> None:
    """Create a namespace, or an environment (and its namespace, if need be)."""
    api = surroundings().api()
    namespace, _, environment = target.partition("/")
    try:
        answer = api.write("POST", "/v1/namespaces", json={"name": namespace})
    except Problem as problem:
        if not environment or problem.code != "already-exists":
            raise
    if environment:
        answer = api.write("POST", f"/v1/namespaces/{namespace}/environments", json={"name": environment})
    if surroundings().json:
        show.as_json(answer)
    else:
        show.out.print(f"✓ created {target}")


token = typer.Typer(help="Create, list and revoke tokens.", no_args_is_help=True)


@token.command("create")
@speaking
def token_create(
    kind: Annotated[str, typer.Argument(help="admin, author, client or service")],
    name: Annotated[str, typer.Argument(help="What or whom it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", "-s", help="namespace/environment, with * for all; may be repeated.")
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="After 30d, 12h …; never, if not given.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it to this file (mode 0600) instead of showing it.")
    ] = None,
) -> None:
    """Make a token. Its text is shown once and stored nowhere."""
    scopes = [dict(zip(("namespace", "environment"), (*each.split("/", 1), "*"), strict=False)) for each in scope or ["*/*"]]
    body: dict[str, Any] = {"kind": kind, "name": name, "scopes": scopes}
    if expires:
        body["expires_in_s"] = parse_seconds(expires)
    made = surroundings().api().write("POST", "/v1/tokens", json=body)
    if output:
        _write_private(output, made.pop("token"))
    if surroundings().json:
        show.as_json(made)
    elif output:
        show.out.print(f"✓ {made['id']} written to {output}")
    else:
        show.err.print(f"✓ {made['id']}; this is the only time it is shown:")
        sys.stdout.write(made["token"] + "\n")


def _write_private(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")


@token.command("list")
@speaking
def token_list() -> None:
    """Show all tokens; never their text."""
    found = list(surroundings().api().pages("/v1/tokens"))
    if surroundings().json:
        show.as_json(found)
        return
    rows = [
        (
            each["id"],
            each["kind"],
            each["name"],
            ", ".join(f"{s['namespace']}/{s['environment']}" for s in each["scopes"]),
            "revoked" if each["revoked_at"] else show.clock(each["expires_at"] or "") or "valid",
        )
        for each in found
    ]
    show.table(("id", "kind", "name", "scopes", "until"), rows, empty="there are no tokens")


@token.command("revoke")
@speaking
def token_revoke(identity: Annotated[str, typer.Argument(help="Its id, tok_…")]) -> None:
    """Revoke a token: connections that use it are closed within a second."""
    told = surroundings().api().call("DELETE", f"/v1/tokens/{identity}").json()
    if surroundings().json:
        show.as_json(told)
    else:
        show.out.print(f"✓ {identity} is revoked")
