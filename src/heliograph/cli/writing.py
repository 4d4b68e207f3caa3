"""Commands that change something: apply, set, publish, rollback, create."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import typer

from heliograph.cli import files, show
from heliograph.cli.exits import Exit
from heliograph.cli.options import BASE, ENVIRONMENT, MESSAGE, REBASE, TARGET, TIMEOUT, WAIT, seconds, share
from heliograph.cli.pointer import set_value
from heliograph.cli.session import Session
from heliograph.cli.target import Target, one_version
from heliograph.core import names
from heliograph.core.errors import AlreadyExists, Invalid, InvalidDocument, InvalidRequest, NotFound, StaleBase

ATTEMPTS: Final = 12
"""How often something is done again on top of a head that has moved."""
MAX_INPUT: Final = 24 << 20


@dataclass(frozen=True, slots=True)
class Writing:
    """How a version is published: why, on top of what, and how long its receipts are waited for."""

    session: Session
    message: str | None
    wait: str | None
    timeout: str
    base: str | None = None
    rebase: bool = False

    def send(self, method: str, path: str, *, base: str | None = None, rebase: bool = False, **request: Any) -> Any:
        """``rebase``: on top of what came since the base, when nothing overlaps."""
        from heliograph.cli.api import Wait  # noqa: PLC0415

        headers = {}
        if base or self.base:
            headers["If-Match"] = f'"{base or self.base}"'
        if self.message:
            headers["Heliograph-Message"] = quote(self.message)
        wait = Wait(share(self.wait), seconds(self.timeout)) if self.wait else None
        if rebase or self.rebase:
            headers["Prefer"] = ", ".join([*(wait.headers.values() if wait else ()), "rebase"])
        return self.session.api.write(method, path, headers=headers, wait=wait, **request)

    def publish(self, target: Target, changes: list[files.Change], *, base: str | None = None) -> Any:
        """Raises Invalid with faults that name configs."""
        try:
            return self.send("POST", f"{target.path}/versions", base=base, json={"changes": changes})
        except Invalid as error:
            raise files.with_names(error, changes) from None

    def tell(self, version: dict[str, Any]) -> None:
        """Shows a version; ends with REJECTED or TIMEOUT when the wanted share does not have it."""
        self.session.tell(version, lambda: show.version(version))
        waited = version.get("wait") or {}
        if waited.get("reached") is False:
            story = version.get("propagation")
            raise typer.Exit(Exit.REJECTED if story and _hopeless(story, waited["share"]) else Exit.TIMEOUT)


def _hopeless(story: dict[str, Any], wanted: float) -> bool:
    """Whether the share stays out of reach even when everybody who is missing applies it."""
    asked = story["instances"] - story["left"]
    return bool(asked and (asked - story["rejected"]) / asked < wanted)


# --- several configs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """What `apply` would do to one config."""

    change: Literal["add", "change", "delete", "same"]
    name: str


def apply(
    session: Session,
    target: TARGET,
    file: Annotated[
        Path, typer.Option("--file", "-f", exists=True, help="A .json file, or a folder: all of it is one version.")
    ],
    message: MESSAGE = None,
    prune: Annotated[bool, typer.Option("--prune", help="Also delete configs below TARGET that the folder lacks.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Prune without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    base: BASE = None,
    rebase: REBASE = False,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
) -> None:
    """Publish a file or a folder as one atomic version.

    [dim]limits.json[/] is the config [dim]limits[/], [dim]limits.schema.json[/] its JSON Schema, folders are folders. TARGET may name a folder
    ([dim]shop/production/checkout/[/]) or, for one file, the config.
    """
    at = Target.parse(target)
    asked = _asked(at, file)
    writing = Writing(session, message, wait, timeout, base, rebase)
    if dry_run:
        _preview(session, at, asked, prune=prune)
    elif prune:
        writing.tell(_prune(writing, at, asked, yes=yes))
    else:
        writing.tell(writing.publish(at, asked))


def _asked(at: Target, file: Path) -> list[files.Change]:
    if at.config and not at.config.endswith("/"):
        if file.is_dir():
            raise InvalidRequest(f"{at} names one config and {file} is a folder; for a folder of configs write {at}/")
        return [files.change(file, at.config)]
    return files.changes(file, at.config)


def _prune(writing: Writing, at: Target, asked: list[files.Change], *, yes: bool) -> Any:
    """On top of the very version whose list was read: what somebody adds meanwhile is not deleted unseen."""
    for attempt in range(ATTEMPTS):
        head = writing.session.api.get(at.of("heads"))["version"]
        gone = [step.name for step in _steps(writing.session, at, asked, head, prune=True) if step.change == "delete"]
        if gone and not yes:
            _confirm(gone)
        try:
            return writing.publish(at, asked + [{"name": name, "delete": True} for name in gone], base=head)
        except StaleBase:
            if writing.base or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _confirm(gone: list[str]) -> None:
    """Raises InvalidRequest where nobody can be asked, Abort when the answer is no."""
    if not sys.stdin.isatty():
        raise InvalidRequest(f"this deletes {', '.join(gone)}; say --yes if that is right, or look with --dry-run")
    typer.confirm(f"delete {', '.join(gone)}?", abort=True, err=True)


def _steps(session: Session, at: Target, asked: list[files.Change], version: str, *, prune: bool) -> list[Step]:
    """What would happen, from digests alone."""
    held = {each["name"]: each for each in _held(session, at, version)}
    steps = [_step(each, held.get(each["name"])) for each in asked]
    if prune:
        wanted = {each["name"] for each in asked}
        steps += [Step("delete", name) for name in sorted(held.keys() - wanted)]
    return steps


def _step(asked: files.Change, held: dict[str, Any] | None) -> Step:
    from heliograph.core.canonical import canonical  # noqa: PLC0415
    from heliograph.core.digest import digest  # noqa: PLC0415

    if held is None:
        return Step("add", asked["name"])
    kinds: tuple[Literal["document", "schema"], ...] = ("document", "schema")
    same = all(digest(kind, canonical(asked[kind])) == held[kind] for kind in kinds if kind in asked)
    return Step("same" if same else "change", asked["name"])


def _held(session: Session, at: Target, version: str) -> Iterator[dict[str, Any]]:
    """The configs that TARGET covers, as of one version."""
    folder = at.config[: at.config.rfind("/") + 1]
    listed = _below(session, at, version, folder) if folder == at.config else _listed(session, at, version, folder)
    return (each for each in listed if each["kind"] == "config" and names.inside(each["name"], at.config))


def _below(session: Session, at: Target, version: str, folder: str) -> Iterator[dict[str, Any]]:
    for each in _listed(session, at, version, folder):
        yield each
        if each["kind"] == "folder":
            yield from _below(session, at, version, each["name"])


def _listed(session: Session, at: Target, version: str, folder: str) -> Iterator[dict[str, Any]]:
    """Nothing of a folder that is not there yet. The version was read before, so it is not what is missing."""
    try:
        yield from session.api.pages(f"{at.path}/configs", folder=folder, at=version)
    except NotFound:
        if not folder:
            raise


def _preview(session: Session, at: Target, asked: list[files.Change], *, prune: bool) -> None:
    head = session.api.get(at.of("heads"))["version"]
    steps = _steps(session, at, asked, head, prune=prune)
    session.tell(
        [{"change": each.change, "name": each.name} for each in steps],
        lambda: _show_steps(session, at, steps, {each["name"]: each for each in asked}),
    )


def _show_steps(session: Session, at: Target, steps: Iterable[Step], asked: dict[str, files.Change]) -> None:
    colours = {"add": "green", "change": "yellow", "delete": "red", "same": "bright_black"}
    for step in steps:
        show.step(step.change, step.name, colours[step.change])
        if step.change == "change" and "document" in asked[step.name]:
            now = session.api.get(Target(at.namespace, at.environment, step.name).config_path)
            show.lines_between(now, asked[step.name]["document"])


# --- one config -------------------------------------------------------------------------------------------------------------------


def set_(
    session: Session,
    target: TARGET,
    pointer: Annotated[str, typer.Argument(help='JSON Pointer to the value, as in /max_items; "" for the whole document.')],
    value: Annotated[str, typer.Argument(help="The value as JSON; text that is not JSON is taken as a string.")],
    message: MESSAGE = None,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
) -> None:
    """Change one value of a config. Somebody else's change in between is kept: the value is set again on top of it."""
    at, new = Target.parse(target).with_config(), _value(value)
    writing = Writing(session, message, wait, timeout)
    writing.tell(_set(writing, at, pointer, new))


def _set(writing: Writing, at: Target, pointer: str, new: Any) -> Any:
    """Reads again only when this very config has changed; what happens beside it moves the base alone."""
    from heliograph.runtime.retry import delay  # noqa: PLC0415

    document, base = _current(writing.session, at)
    for attempt in range(ATTEMPTS):
        body = json.dumps(set_value(document, pointer, new)).encode()
        try:
            return writing.send("PUT", at.config_path, base=base, content=body)
        except StaleBase as moved:
            if attempt == ATTEMPTS - 1:
                raise
            base = moved.head
            if moved.more.get("overlap"):
                document, base = _current(writing.session, at)
            time.sleep(delay(attempt, base_s=0.01, cap_s=0.5))
    raise AssertionError("unreachable")


def _current(session: Session, at: Target) -> tuple[Any, str]:
    """The document (None when there is none) and the id of the version it was read at."""
    head = session.api.get(at.of("heads"))["version"]
    try:
        return session.api.get(at.config_path, at=head), head
    except NotFound:
        return None, head


def _value(text: str) -> Any:
    """Raises InvalidDocument for what looks like JSON and is not."""
    from heliograph.core.canonical import parse  # noqa: PLC0415

    try:
        return parse(text)
    except InvalidDocument:
        if text[:1] in '{["-0123456789':
            raise
        return text


def publish(
    session: Session,
    target: TARGET,
    file: Annotated[
        Path, typer.Option("--file", "-f", help="The document, or a list of changes; - for standard input.")
    ] = Path("-"),
    message: MESSAGE = None,
    base: BASE = None,
    rebase: REBASE = False,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
) -> None:
    """Publish JSON as it is: a config's document, or (TARGET an environment) a list of changes as one version.

    Changes are [dim]\\[{"name": …, "document"?: …, "schema"?: … or null, "delete"?: true}, …][/].
    """
    at, told = Target.parse(target), _input(file)
    writing = Writing(session, message, wait, timeout, base, rebase)
    if at.config:
        writing.tell(writing.publish(at, [{"name": at.with_config().config, "document": told}]))
    elif isinstance(told, list) and all(isinstance(each, dict) and "name" in each for each in told):
        writing.tell(writing.publish(at, told))
    else:
        raise InvalidRequest('changes are a JSON list: [{"name": "checkout/limits", "document": {…}}, …]')


def _input(file: Path) -> Any:
    from heliograph.core.canonical import parse  # noqa: PLC0415

    try:
        text = sys.stdin.buffer.read(MAX_INPUT + 1) if file == Path("-") else file.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from None
    return parse(text, limit=MAX_INPUT)


# --- environments -----------------------------------------------------------------------------------------------------------------


def rollback(
    session: Session,
    target: ENVIRONMENT,
    to: Annotated[str, typer.Argument(help="Number, id, label:NAME or time of the version whose content comes back.")],
    message: MESSAGE = None,
    base: BASE = None,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
) -> None:
    """Bring back the content of an earlier version, as a new version; all configs at once."""
    at = Target.environment_of(target)
    writing = Writing(session, message, wait, timeout, base)
    writing.tell(writing.send("POST", f"{at.path}/rollback", json={"to": one_version(to)}))


def create(session: Session, target: Annotated[str, typer.Argument(help="namespace, or namespace/environment")]) -> None:
    """Create a namespace, or an environment (and its namespace, if need be)."""
    namespace, _, environment = target.strip("/").partition("/")
    try:
        answer = session.api.write("POST", "/v1/namespaces", json={"name": namespace})
    except AlreadyExists:
        if not environment:
            raise
    if environment:
        answer = session.api.write("POST", f"/v1/namespaces/{namespace}/environments", json={"name": environment})
    session.tell(answer, lambda: show.done(f"created {target}"))
