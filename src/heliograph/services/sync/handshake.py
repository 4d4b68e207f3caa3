"""What the upgrade request of the stream must be (RFC 6455 section 4.2.1), checked here because the library's own answers say less."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import parse_qs

import msgspec
from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from heliograph.core import token
from heliograph.core.errors import HeliographError, InvalidRequest, Unauthenticated
from heliograph.core.frames import SUBPROTOCOL
from heliograph.runtime import problems

_encode = msgspec.json.Encoder().encode

PATH: Final = b"/v1/stream"
VERSION: Final = "13"
KEY_BYTES: Final = 16
UPGRADE_REQUIRED: Final = 426
_ONCE: Final = ("Host", "Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Authorization")


class WrongVersion(InvalidRequest):
    """The client speaks another version of WebSocket; the answer names the one that is spoken here."""


def token_of(request: WSUpgradeRequest, redeemed: Callable[[str], str]) -> str:
    """The token of a request that may be upgraded, after its checksum; `redeemed`: the one that a ticket stands for. Raises Unauthenticated,
    InvalidRequest, WrongVersion."""
    if request.path.split(b"?", 1)[0] != PATH:
        raise InvalidRequest(f"the stream is at {PATH.decode()}")
    _check_upgrade(request)
    if SUBPROTOCOL not in _listed(request, "Sec-WebSocket-Protocol"):
        raise InvalidRequest(f"the subprotocol {SUBPROTOCOL} must be offered: Sec-WebSocket-Protocol: {SUBPROTOCOL}")
    ticket = _ticket(request)
    text = redeemed(ticket) if ticket else _bearer(request)
    token.parse(text)
    return text


def refused(error: HeliographError) -> WSUpgradeResponseWithListener:
    """The problem document that says why, and when to come back."""
    status, headers, told = problems.status_of(error), problems.headers(error), problems.problem(error)
    if isinstance(error, WrongVersion):
        status, headers = UPGRADE_REQUIRED, headers | {"Upgrade": "websocket", "Sec-WebSocket-Version": VERSION}
    response = WSUpgradeResponse.create_error_response(status, _encode(told | {"status": status}), headers)
    return WSUpgradeResponseWithListener(response, None)


def _check_upgrade(request: WSUpgradeRequest) -> None:
    for name in _ONCE:
        if len(request.headers.getall(name, ())) > 1:
            raise InvalidRequest(f"the header {name} must come once")
    if "Host" not in request.headers:
        raise InvalidRequest("the header Host is missing")
    if not _says(request, "Upgrade", "websocket") or not _says(request, "Connection", "upgrade"):
        raise InvalidRequest("this is the WebSocket stream: send Upgrade: websocket and Connection: Upgrade")
    # the library takes neither Firefox's `keep-alive, Upgrade` nor a list of protocols
    request.headers["Connection"] = "Upgrade"
    request.headers["Upgrade"] = "websocket"
    if request.headers.get("Sec-WebSocket-Version") != VERSION:
        raise WrongVersion(f"WebSocket version {VERSION} is spoken here: Sec-WebSocket-Version: {VERSION}")
    if not _is_key(request.headers.get("Sec-WebSocket-Key", "")):
        raise InvalidRequest(f"Sec-WebSocket-Key must be {KEY_BYTES} bytes in base64")


def _says(request: WSUpgradeRequest, name: str, word: str) -> bool:
    return any(word in map(str.strip, line.lower().split(",")) for line in request.headers.getall(name, ()))


def _listed(request: WSUpgradeRequest, name: str) -> Iterator[str]:
    """The elements of a list header, whose lines count as one."""
    for line in request.headers.getall(name, []):
        yield from (each.strip() for each in line.split(","))


def _is_key(text: str) -> bool:
    try:
        return len(b64decode(text.encode("ascii"), validate=True)) == KEY_BYTES
    except (UnicodeEncodeError, binascii.Error):
        return False


def _ticket(request: WSUpgradeRequest) -> str:
    """Of ``?ticket=``, for browsers; else empty."""
    query = request.path.partition(b"?")[2].decode("latin-1")
    return parse_qs(query).get("ticket", [""])[0] if query else ""


def _bearer(request: WSUpgradeRequest) -> str:
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not text.isascii() or not text.strip():
        raise Unauthenticated("send a token: Authorization: Bearer hel_…")
    return str(text.strip())
