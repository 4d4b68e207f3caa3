"""Files and folders as changes: ``limits.json`` is the config ``limits``, ``limits.schema.json`` its schema, folders are folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from heliograph.core import names
from heliograph.core.canonical import Json, parse
from heliograph.core.errors import Invalid, InvalidRequest

DOCUMENT: Final = ".json"
SCHEMA: Final = ".schema.json"
MAX_FILES: Final = 10_000


def changes(path: Path, folder: str = "") -> list[dict[str, Any]]:
    """The changes of a file or of everything below a folder, in order of their names. Raises Invalid with the file's name in it."""
    if path.is_dir():
        files = sorted(each for each in path.rglob("*" + DOCUMENT) if each.is_file() and not _hidden(each.relative_to(path)))
        if len(files) > MAX_FILES:
            raise InvalidRequest(f"{path} has {len(files):,} files; at most {MAX_FILES:,} are read")
        found = [(each, folder + each.relative_to(path).as_posix()) for each in files]
    else:
        found = [(path, folder + path.name)]
    merged: dict[str, dict[str, Any]] = {}
    for file, relative in found:
        member, suffix = ("schema", SCHEMA) if relative.endswith(SCHEMA) else ("document", DOCUMENT)
        name = names.config(relative.removesuffix(suffix))
        merged.setdefault(name, {"name": name})[member] = read(file)
    if not merged:
        raise InvalidRequest(f"there is no {DOCUMENT} file in {path}")
    return list(merged.values())


def read(path: Path) -> Json:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    except Invalid as error:
        raise type(error)(f"{path}: {error.detail}", error.faults) from None


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
