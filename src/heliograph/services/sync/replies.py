"""What a GET is answered with: status, headers and shared bytes, whoever asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from heliograph.core.dsse import to_envelope
from heliograph.core.names import View
from heliograph.core.records import HEAD_TYPE, Cursor
from heliograph.services.sync.environment import Environment

BUNDLE_AGE_S: Final = 5
HEAD_AGE_S: Final = 1
SUBSCRIPTION: Final = 0
"""Of every frame that is asked for over HTTP: all who ask for the same view share it."""


@dataclass(frozen=True, slots=True)
class Reply:
    headers: dict[str, str]
    body: bytes
    status: int = 200


def head(environment: Environment) -> Reply:
    """The signed head, as a DSSE envelope."""
    headers = {"Content-Type": "application/json", "Cache-Control": f"private, max-age={HEAD_AGE_S}"}
    return Reply(headers, msgspec.json.encode(to_envelope(environment.signed_head, HEAD_TYPE)))


def bundle(environment: Environment, view: View, known: str) -> Reply:
    """A snapshot of the view, or 304 for who knows its ETag, which stays the same until something in the view changes."""
    tag = f'"{environment.view_digest(view)}"'
    headers = {
        "ETag": tag,
        "Cache-Control": f"private, max-age={BUNDLE_AGE_S}",
        "Heliograph-Version": str(environment.head.number),
    }
    if known and tag in {each.strip().removeprefix("W/") for each in known.split(",")}:
        return Reply(headers, b"", 304)
    return Reply(headers | {"Content-Type": "application/json"}, _whole(environment.frames(SUBSCRIPTION, view, None)))


def frame(environment: Environment, view: View, have: Cursor) -> Reply:
    """The frame that the stream would send to a client at `have`."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if environment.cursor == have:
        return Reply(headers, environment.current(SUBSCRIPTION))
    return Reply(headers, _whole(environment.frames(SUBSCRIPTION, view, have)))


def _whole(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"[" + b",".join(parts) + b"]"
