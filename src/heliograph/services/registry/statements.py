"""The registry's SQL by name, read once from its ``.sql`` files."""

from __future__ import annotations

import re
from importlib import resources
from types import MappingProxyType
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def _read(text: str) -> dict[str, str]:
    _, *parts = _NAME.split(text)
    return {name: sql.strip().removesuffix(";") for name, sql in zip(parts[::2], parts[1::2], strict=True)}


_FILES: Final = ("queries.sql", "looking_back.sql", "erasing.sql")
_HERE: Final = resources.files("heliograph.services.registry")
SQL: Final = MappingProxyType({name: sql for file in _FILES for name, sql in _read(_HERE.joinpath(file).read_text()).items()})
