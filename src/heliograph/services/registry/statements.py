"""The registry's SQL by name, read once from ``queries.sql``."""

from __future__ import annotations

import re
from importlib import resources
from types import MappingProxyType
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def _read(text: str) -> dict[str, str]:
    _, *parts = _NAME.split(text)
    return {name: sql.strip().removesuffix(";") for name, sql in zip(parts[::2], parts[1::2], strict=True)}


SQL: Final = MappingProxyType(_read(resources.files("heliograph.services.registry").joinpath("queries.sql").read_text()))
