"""The command that opens a config in an editor: edit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import typer

from heliograph.cli import choosing, show
from heliograph.cli.options import MESSAGE, TARGET, TIMEOUT, WAIT
from heliograph.cli.session import Session
from heliograph.cli.target import Target
from heliograph.cli.writing import ATTEMPTS, Writing
from heliograph.core.canonical import Json, parse
from heliograph.core.errors import HeliographError, Invalid, InvalidRequest, NotFound, StaleBase
from heliograph.core.merge import ABSENT, Absent, Choice, Side, Value, alike, merge

EDITORS: Final = ("VISUAL", "EDITOR")
SIDES: Final = ("theirs", "yours")
"""What stands in the environment meanwhile, and what was edited: ours and theirs of the merge."""


def edit(session: Session, target: TARGET, message: MESSAGE = None, wait: WAIT = None, timeout: TIMEOUT = "2s") -> None:
    """Open a config in $VISUAL or $EDITOR and publish what you make of it. A config that is not there yet begins as {}.

    The text is checked before it leaves this machine: strict JSON, and the config's schema. What others change meanwhile is kept; where they
    changed the same place you are asked. A text that was refused stays in a file, which is named.
    """
    at = Target.parse(target).with_config()
    editing = _Editing(Writing(session, message, wait, timeout), at)
    editing.run()


class _Editing:
    def __init__(self, writing: Writing, at: Target) -> None:
        self._writing = writing
        self._session = writing.session
        self._at = at
        self._base, self._document = self._read()
        self._schema = self._read_schema()
        self._file = _file_for(at, self._document)

    def run(self) -> None:
        while True:
            self._open()
            try:
                value = self._value()
                if alike(value, {} if isinstance(self._document, Absent) else self._document):
                    self._done({"unchanged": True}, "nothing was changed")
                    return
                made = self._publish(value)
            except (Invalid, StaleBase) as error:
                self._again_or_raise(error)
                continue
            except (HeliographError, typer.Abort):
                show.note(f"your text is kept in {self._file}")
                raise
            self._file.unlink(missing_ok=True)
            self._writing.tell(made)
            return

    # --- the text -----------------------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[str, Side]:
        """The head's id, and the document there."""
        head = str(self._session.api.get(self._at.of("heads"))["version"])
        return head, self._document_at(head)

    def _document_at(self, version: str) -> Side:
        try:
            document: Side = self._session.api.get(self._at.config_path, at=version)
        except NotFound:
            return ABSENT
        return document

    def _read_schema(self) -> Json | None:
        try:
            schema: Json = self._session.api.get(f"{self._at.path}/schemas/{self._at.config}")
        except NotFound:
            return None
        return schema

    def _open(self) -> None:
        editor = next((os.environ[each] for each in EDITORS if os.environ.get(each)), "vi")
        try:
            status = subprocess.call([*shlex.split(editor), str(self._file)])  # noqa: S603  # the person's own editor
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"the editor {editor!r} cannot be run ({type(error).__name__}); set VISUAL or EDITOR"
            ) from None
        if status:
            raise InvalidRequest(
                f"the editor ended with status {status}, so nothing was published; the text is in {self._file}"
            )

    def _value(self) -> Json:
        """Raises InvalidDocument, TooLarge, SchemaViolation."""
        value = parse(self._file.read_bytes())
        if self._schema is not None:
            _check(self._schema, value)
        return value

    def _done(self, told: dict[str, Any], text: str) -> None:
        self._file.unlink(missing_ok=True)
        self._session.tell(told, lambda: typer.echo(text))

    # --- publishing it ------------------------------------------------------------------------------------------------------------

    def _publish(self, value: Json) -> Any:
        """What came meanwhile is kept. Raises StaleBase where it overlaps and nobody can be asked, Abort."""
        for attempt in range(ATTEMPTS):
            body = json.dumps(value).encode()
            try:
                return self._writing.send("PUT", self._at.config_path, base=self._base, rebase=True, content=body)
            except StaleBase as moved:
                if not choosing.somebody_there() or self._session.as_json or attempt == ATTEMPTS - 1:
                    raise
                value = self._merged(value, moved)
        raise AssertionError("unreachable")

    def _merged(self, value: Json, moved: StaleBase) -> Json:
        """With the head's document, place by place as the person wants it; on top of that head from now on."""
        show.note(f"{self._at} has changed meanwhile, to version {moved.number}", "yellow")
        now = self._document_at(moved.head)
        choices = {each.pointer: self._choice(each) for each in merge(self._document, now, value).conflicts}
        merged = merge(self._document, now, value, choices).value
        self._base, self._document = moved.head, now
        if isinstance(merged, Absent):
            raise StaleBase(f"{self._at} was deleted meanwhile, and you left it so", head=moved.head, number=moved.number)
        self._file.write_text(_text(merged))
        return merged

    def _choice(self, each: Any) -> Choice:
        sides = {"base": each.base, "ours": each.ours, "theirs": each.theirs}
        told = {side: value for side, value in sides.items() if not isinstance(value, Absent)}
        absent = [side for side, value in sides.items() if isinstance(value, Absent)]
        taken = choosing.settle({"config": self._at.config, "pointer": each.pointer, "absent": absent, **told}, SIDES)
        return Value(taken["value"]) if isinstance(taken, dict) else taken

    def _again_or_raise(self, error: Invalid | StaleBase) -> None:
        """Returns when the person wants to go on editing. Raises the error, which then names the file that keeps the text."""
        if choosing.somebody_there() and not self._session.as_json and not isinstance(error, StaleBase):
            show.problem(error)
            if typer.confirm("edit again?", default=True, err=True):
                return
        kept = f"{error.detail}; your text is kept in {self._file}"
        if isinstance(error, StaleBase):
            raise StaleBase(kept, head=error.head, number=error.number, more=error.more) from None
        raise type(error)(kept, error.faults) from None


def _file_for(at: Target, document: Side) -> Path:
    """A new file that only this user may read."""
    handle, name = tempfile.mkstemp(prefix=f"{at.environment}-{at.config.replace('/', '-')[-80:]}-", suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(_text({} if isinstance(document, Absent) else document))
    return Path(name)


def _text(value: Json) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _check(schema: Json, value: Json) -> None:
    """Raises SchemaViolation. Without the server extra the registry alone checks."""
    try:
        from heliograph.services.registry import schemas  # noqa: PLC0415
    except ModuleNotFoundError:
        return
    schemas.check(schemas.compiled(schema), value)
