"""What a promotion asks for, read from requests and checked as far as that goes without the environments. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from heliograph.core import names
from heliograph.core.canonical import parse
from heliograph.core.errors import Fault, InvalidName, InvalidRequest, TooLarge
from heliograph.core.merge import Choice, Value
from heliograph.core.names import Environment
from heliograph.core.pointer import pointer_text, pointer_tokens
from heliograph.services.registry.changes import message
from heliograph.services.registry.merging import SCHEMA

MAX_SELECTORS: Final = 1_000
MAX_CHOICES: Final = 5_000
MAX_BODY: Final = 4 << 20

Choices = Mapping[str, Mapping[str, Choice]]
"""By config and place: a JSON Pointer, or ``schema``."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """``at``: the source's version, by default its head. ``selectors`` None: everything. ``change``: of this one version only what it changed."""

    source: Environment
    at: int | str | None = None
    selectors: tuple[str, ...] | None = None
    change: int | None = None
    choices: Choices = field(default_factory=dict)
    message: str | None = None


class _Value(msgspec.Struct, forbid_unknown_fields=True):
    value: msgspec.Raw


class _Asked(msgspec.Struct, forbid_unknown_fields=True, rename={"source": "from"}):
    source: str
    version: int | str | None = None
    configs: list[str] | None = None
    change: int | None = None
    resolve: dict[str, dict[str, msgspec.Raw]] = {}
    message: str | None = None


def read_promotion(body: bytes) -> Promotion:
    """Raises InvalidRequest, InvalidName, InvalidDocument, TooLarge."""
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except (msgspec.DecodeError, RecursionError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequest(f'expected {{"from": "staging", "configs"?, "version"?, "change"?, "resolve"?}}: {said}') from None
    if asked.change is not None and asked.version is not None:
        raise InvalidRequest("change names the version itself; give version or change, not both")
    if asked.change is not None and asked.change < 2:
        raise InvalidRequest("change takes the number of a version from 2 on; version 1 has nothing before it")
    return Promotion(
        names.environment(asked.source),
        asked.version,
        _selectors(asked.configs),
        asked.change,
        _choices(asked.resolve),
        message(asked.message),
    )


def _selectors(given: list[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    if len(given) > MAX_SELECTORS:
        raise TooLarge(
            f"{len(given):,} configs and folders in one promotion; the limit is {MAX_SELECTORS:,}: name folders, or all"
        )
    wanted = names.view(given)
    return None if wanted == ("",) else wanted


def _choices(given: dict[str, dict[str, msgspec.Raw]]) -> Choices:
    if sum(map(len, given.values())) > MAX_CHOICES:
        raise TooLarge(f"more than {MAX_CHOICES:,} resolutions in one request")
    return {
        names.config(name): {_place(name, place): _choice(name, place, told) for place, told in places.items()}
        for name, places in given.items()
    }


def _place(name: str, place: str) -> str:
    if place != SCHEMA:
        try:
            pointer_tokens(place)
        except InvalidRequest:
            raise InvalidName(f'resolve: {name}: a place is a JSON Pointer as the conflict names it, or "{SCHEMA}"') from None
    return place


def _choice(name: str, place: str, told: msgspec.Raw) -> Choice:
    text = bytes(told)
    if text.strip() == b'"ours"':
        return "ours"
    if text.strip() == b'"theirs"':
        return "theirs"
    try:
        return Value(parse(bytes(msgspec.json.decode(text, type=_Value).value)))
    except msgspec.DecodeError:
        where = pointer_text(["resolve", name, place])
        fault = Fault(where, "choice", 'one of "ours", "theirs" and {"value": …}')
        raise InvalidRequest('resolve takes "ours", "theirs" or {"value": …} for each place', [fault]) from None
