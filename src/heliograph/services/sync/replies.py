"""What a GET is answered with: status, headers and shared bytes, whoever asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

from heliograph.core.dsse import to_envelope
from heliograph.core.errors import NotReady
from heliograph.core.names import View
from heliograph.core.records import HEAD_TYPE, Cursor
from heliograph.services.sync.environment import Environment, is_beyond

BUNDLE_AGE_S: Final = 5
HEAD_AGE_S: Final = 1
SUBSCRIPTION: Final = 0
"""Of every frame that is asked for over HTTP: all who ask for the same view share it."""


Headers = tuple[tuple[bytes, bytes], ...]
_JSON: Final = (b"content-type", b"application/json")
_NO_STORE: Final = (b"cache-control", b"no-store")


@dataclass(frozen=True, slots=True)
class Reply:
    """Headers as they travel; the length is among them."""

    headers: Headers
    body: bytes = b""
    status: int = HTTPStatus.OK


def head(environment: Environment) -> Reply:
    """The signed head, as a DSSE envelope."""
    age = (b"cache-control", b"private, max-age=%d" % HEAD_AGE_S)
    return _json(msgspec.json.encode(to_envelope(environment.signed_head, HEAD_TYPE)), age)


def unchanged(environment: Environment, view: View, known: str) -> Reply | None:
    """304 for who knows the ETag, which stays the same until something in the view changes."""
    reply, tag = _tagged(environment.view_digest(view), environment.head.number)
    if known and (known == tag or tag in {each.strip().removeprefix("W/") for each in known.split(",")}):
        return reply
    return None


def bundle(environment: Environment, view: View) -> Reply:
    """A snapshot of the view."""
    unchanged, _ = _tagged(environment.view_digest(view), environment.head.number)
    return _json(_whole(environment.frames(SUBSCRIPTION, view, None)), *unchanged.headers)


def frame(environment: Environment, view: View, have: Cursor) -> Reply:
    """The frame that the stream would send to a client at `have`. Raises NotReady for one that was served by a node that is ahead of this one."""
    if is_beyond(have, environment.cursor):
        raise NotReady(f"version {have.number} is not here yet", retry_after=1)
    if environment.cursor == have:
        return _json(environment.current(SUBSCRIPTION), _NO_STORE)
    return _json(_whole(environment.frames(SUBSCRIPTION, view, have)), _NO_STORE)


@lru_cache(maxsize=4096)
def _tagged(view_digest: str, number: int) -> tuple[Reply, str]:
    tag = f'"{view_digest}"'
    headers = (
        (b"etag", tag.encode()),
        (b"cache-control", b"private, max-age=%d" % BUNDLE_AGE_S),
        (b"heliograph-version", b"%d" % number),
    )
    return Reply(headers, status=HTTPStatus.NOT_MODIFIED), tag


def _json(body: bytes, *headers: tuple[bytes, bytes]) -> Reply:
    return Reply((*headers, _JSON, (b"content-length", b"%d" % len(body))), body)


def _whole(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"[" + b",".join(parts) + b"]"
