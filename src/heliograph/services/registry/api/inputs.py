"""Reads what requests say in headers, queries and paths. Everything wrong is InvalidRequest."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Query, Request

from heliograph.core import which as naming
from heliograph.core.digest import unspell
from heliograph.core.errors import InvalidRequest
from heliograph.core.which import MAX_LENGTH, Which, which
from heliograph.services.registry.changes import message

T = TypeVar("T")

BESIDE_THE_LOOP: Final = 64 * 1024
"""Bytes of body from which on reading it is work for a thread: some milliseconds."""
MAX_NUMBER: Final = naming.MAX_NUMBER
MAX_KEY: Final = 200
_KEY: Final = re.compile(r"[\x21-\x7e]+")
_PREFERENCE: Final = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)\s*(?:=\s*\"?([^\",;]*)\"?)?\s*")

Limit = Annotated[int, Query(ge=1, le=500, description="items in one page")]
Cursor = Annotated[str, Query(max_length=600, description="`next` of the page before; opaque")]
Deleted = Annotated[bool, Query(description="those that were deleted and can be restored, instead")]
NAMED: Final = "a number, an id, `label:release-7`, or a time as in 2026-11-01T12:00:00Z: what was the head then"
At = Annotated[str, Query(max_length=MAX_LENGTH, description=f"which version: {NAMED}; the head by default")]


async def read(body: bytes, work: Callable[[bytes], T]) -> T:
    """What ``work`` makes of the body, in a thread when it is large."""
    return await asyncio.to_thread(work, body) if len(body) > BESIDE_THE_LOOP else work(body)


def which_version(text: str) -> Which:
    """A number, an id, a label or a time."""
    return which(text)


def if_match(request: Request) -> bytes | None:
    """The version id that the head must have; None: any (`*` asks for the same)."""
    given = request.headers.get("if-match", "").strip()
    if given in ("", "*"):
        return None
    try:
        if not (given.startswith('"') and given.endswith('"')):
            raise ValueError
        return unspell(given[1:-1])
    except ValueError:
        raise InvalidRequest('If-Match takes one version id in quotes: If-Match: "sha256:…"') from None


def idempotency_key(request: Request) -> str | None:
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    if len(given) > MAX_KEY or not _KEY.fullmatch(given):
        raise InvalidRequest(f"Idempotency-Key takes 1 to {MAX_KEY} printable ASCII characters without spaces")
    return given


def fingerprint(request: Request, body: bytes) -> bytes:
    """What an idempotency key stands for: method, path, condition, message, body, and of a patch its kind."""
    told = [
        request.method,
        request.url.path,
        request.headers.get("if-match", ""),
        request.headers.get("heliograph-message", ""),
    ]
    if request.method == "PATCH":
        told.append(request.headers.get("content-type", ""))
    hashed = hashlib.sha256()
    for part in (*(each.encode() for each in told), body):
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.digest()


def message_header(request: Request) -> str | None:
    """Heliograph-Message, percent-encoded UTF-8."""
    given = request.headers.get("heliograph-message")
    if not given:
        return None
    try:
        return message(unquote_to_bytes(given).decode())
    except UnicodeDecodeError:
        raise InvalidRequest("Heliograph-Message is percent-encoded UTF-8") from None


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold the answer until ``share`` of the instances has applied, ``seconds`` at most."""

    seconds: float
    share: float


def wait(request: Request, longest_s: float) -> Wait | None:
    """Of ``Prefer: wait=2, share=0.95`` (the share may stand in the query as well; 1 by default). A longer wait than allowed is cut."""
    asked = _preferences(request)
    if "wait" not in asked:
        return None
    seconds = _number(asked["wait"], "Prefer: wait")
    share = _number(asked.get("share", request.query_params.get("share", "1")), "share")
    if not 0 < share <= 1 or seconds < 0:
        raise InvalidRequest("Prefer: wait takes seconds from 0, share a number above 0 and up to 1")
    return Wait(min(seconds, longest_s), share)


def rebase(request: Request) -> bool:
    """Of ``Prefer: rebase``: publish on top of a head that is not the one in If-Match, when nothing overlaps."""
    return "rebase" in _preferences(request)


def _preferences(request: Request) -> dict[str, str]:
    """RFC 7240; what is not understood is ignored."""
    found: dict[str, str] = {}
    for part in re.split("[,;]", ",".join(request.headers.getlist("prefer"))):
        if told := _PREFERENCE.fullmatch(part):
            found.setdefault(told[1].lower(), told[2] or "")
    return found


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRequest(f"{what} takes a number")
    return number


# --- cursors ----------------------------------------------------------------------------------------------------------------------


def cursor_of(*keys: str) -> str:
    """Opaque to clients: where the next page begins."""
    return base64.urlsafe_b64encode("\n".join(keys).encode()).decode().rstrip("=")


def keys_of(cursor: str, count: int = 1) -> list[str]:
    """Inverse of `cursor_of`; empty strings for the first page."""
    if not cursor:
        return [""] * count
    try:
        keys = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode().split("\n")
    except (binascii.Error, ValueError):
        keys = []
    if len(keys) != count or "\0" in cursor or any("\0" in key for key in keys):
        raise InvalidRequest("not a cursor that this API gave")
    return keys


def number_of(cursor: str, first: int) -> int:
    """A cursor that holds a number."""
    if not cursor:
        return first
    key = keys_of(cursor)[0]
    if not (key.isascii() and key.isdigit() and len(key) <= 18):
        raise InvalidRequest("not a cursor that this API gave")
    return int(key)
