"""Files and folders as changes: ``limits.json`` is the config ``limits``, ``limits.schema.json`` its schema, folders are folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from heliograph.core import names
from heliograph.core.canonical import Json, parse
from heliograph.core.errors import Fault, Invalid, InvalidDocument, InvalidRequest

DOCUMENT: Final = ".json"
SCHEMA: Final = ".schema.json"
MAX_FILES: Final = 10_000

Change = dict[str, Any]


def changes(path: Path, folder: str = "") -> list[Change]:
    """What a file, or everything below a folder, asks for, in order of names. Hidden files are left out.

    Raises InvalidName, InvalidRequest, and InvalidDocument with every fault of every file.
    """
    if path.is_dir():
        files = sorted(each for each in path.rglob("*" + DOCUMENT) if each.is_file() and not _hidden(each.relative_to(path)))
        if len(files) > MAX_FILES:
            raise InvalidRequest(f"{path} has {len(files):,} files; at most {MAX_FILES:,} are read")
        return _merged([(each, folder + each.relative_to(path).as_posix()) for each in files], path)
    return _merged([(path, folder + path.name)], path)


def change(path: Path, name: str) -> Change:
    """One file for a config of another name."""
    return {"name": name, _member(path.name)[0]: read(path)}


def read(path: Path) -> Json:
    """Raises InvalidDocument, TooLarge, InvalidRequest when there is nothing to read."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None


def with_names(error: Invalid, asked: list[Change]) -> Invalid:
    """A refusal of several changes, with ``/changes/3/document/limits`` as ``checkout/limits#/limits``."""
    return type(error)(error.detail, [replace(each, pointer=_named(each.pointer, asked)) for each in error.faults])


def _merged(found: list[tuple[Path, str]], path: Path) -> list[Change]:
    merged: dict[str, Change] = {}
    faults: list[Fault] = []
    for file, relative in found:
        member, suffix = _member(relative)
        name = names.config(relative.removesuffix(suffix))
        try:
            merged.setdefault(name, {"name": name})[member] = read(file)
        except InvalidDocument as error:
            faults += [replace(each, pointer=f"{file}#{each.pointer}") for each in error.faults]
    if faults:
        raise InvalidDocument("nothing was published: not every file is strict JSON", faults)
    if not merged:
        raise InvalidRequest(f"there is no {DOCUMENT} file in {path}")
    return list(merged.values())


def _member(name: str) -> tuple[str, str]:
    return ("schema", SCHEMA) if name.endswith(SCHEMA) else ("document", DOCUMENT)


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _named(pointer: str, asked: list[Change]) -> str:
    _, top, place, *rest = [*pointer.split("/", 4), "", "", ""]
    if top != "changes" or not place.isdigit() or int(place) >= len(asked):
        return pointer
    member, _, inside = "/".join(rest).rstrip("/").partition("/")
    name = asked[int(place)]["name"]
    return f"{name}{' (schema)' if member == 'schema' else ''}#{'/' + inside if inside else ''}"
