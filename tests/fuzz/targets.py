"""What is fuzzed, from which seeds, and what each parser promises. Plain functions of bytes, so that the ordinary tests run them, too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from picows.picows import _parse_http_request

from heliograph.access.principal import Principal, Scope
from heliograph.core import canonical, frames, names, token
from heliograph.core.digest import spell
from heliograph.core.errors import HeliographError, Invalid, Unauthenticated
from heliograph.core.records import Cursor
from heliograph.runtime.http import bearer_token
from heliograph.runtime.problems import CLOSE_CODES
from heliograph.services.sync import api, handshake
from heliograph.services.sync.fragments import Fragments, Violation, whole
from heliograph.services.sync.session import Close, Send, Session, Subscriber
from heliograph.services.sync.tickets import Tickets

ANCHOR = spell(b"\1" * 32)
TOKEN = token.mint("client", "0" * 30, ANCHOR)
PRINCIPAL = Principal(id="t", kind="client", name="t", scopes=(Scope("shop", "*"),))
HELLO = (
    b'{"type":"hello","instance":"i","incarnation":1,"fingerprint":{"sdk":"a","sdk_version":"1","labels":{"a":"b"}},"subscriptions":'
    b'[{"id":1,"namespace":"shop","environment":"production","view":["checkout/"],"have":{"epoch":1,"number":1,"version":"sha256:'
    + b"0" * 64
    + b'"},"declares":{"c":"{}"}}],"public_key":"k","sent_at_us":1}'
)
RECEIPT = (
    b'{"type":"receipt","seq":1,"subscription":1,"epoch":1,"number":1,"version":"sha256:'
    + b"0" * 64
    + b'","state":"applied","reason":"r","applied_at_us":1,"clock_offset_us":-1,"trace":"t"}'
)
HEARTBEAT = b'{"type":"heartbeat","views":{"1":"sha256:x"},"sent_at_us":1,"declares":{"1":{"c":"{}"}}}'
RESYNC = b'{"type":"resync","subscription":1,"have":{"epoch":1,"number":1,"version":"sha256:' + b"0" * 64 + b'"}}'
RENEW = b'{"type":"token","token":"hel_client_x"}'
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: heliograph.v1\r\nAuthorization: Bearer "
    + TOKEN.encode()
)


class History:
    """Knows one version, as far as a session asks."""

    def knows(self, namespace: str, environment: str, cursor: Cursor) -> bool:
        return cursor.number == 1

    def behind(self, namespace: str, environment: str, cursor: Cursor) -> bool:
        return cursor.number > 1

    def view_digest(self, subscriber: Subscriber) -> str:
        return "sha256:y"


def messages(data: bytes) -> None:
    """Messages of one connection, a line each. A session raises for none of them, and ends with a code that is known."""
    session = Session("c", "n", PRINCIPAL, History(), 0, 25_000_000)
    for text in data.split(b"\n"):
        for effect in session.take(text, 1):
            if isinstance(effect, Send):
                msgspec.json.encode(effect.frame)
            if isinstance(effect, Close):
                assert effect.code in CLOSE_CODES, effect
                assert len(effect.reason.encode()) <= 123, "a reason fits a control frame"
                return


def pieces(data: bytes) -> None:
    """A message in fragments is the message, or fails as the message does."""
    if not data:
        return
    size, data = data[0] % 16 + 1, data[1:]
    cut = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    if len(cut) > 200:
        return
    fragments = Fragments()
    told: list[bytes | None] = [None]
    with suppress(Violation):
        told = [fragments.add(each, last=number == len(cut) - 1) for number, each in enumerate(cut)]
    one = None
    with suppress(Violation):
        one = whole(data)
    assert told[-1] == one


TICKETS = Tickets("service")


def requests(data: bytes) -> None:
    """An upgrade request that the library understood gives a token or a refusal that can be sent."""
    try:
        request = _parse_http_request(data)
    except (RuntimeError, UnicodeDecodeError):  # the library answers by itself
        return
    try:
        token.parse(handshake.token_of(request, lambda ticket: TICKETS.redeem(ticket, 0)))
    except HeliographError as error:
        answer = handshake.refused(error).response.to_bytes()
        assert answer.startswith(b"HTTP/1.1 4")
        assert b"\r\n\r\n" in answer


def receipts(data: bytes) -> None:
    async def body() -> bytes:
        return data

    with suppress(Invalid):
        asyncio.run(api._read(cast("Any", SimpleNamespace(body=body))))


def texts(data: bytes) -> None:
    """Cursors, tokens, names, headers: each takes it or refuses it with its own error; what is taken is spelled the same again."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(ValueError):
        cursor = Cursor.parse(text)
        assert Cursor.parse(str(cursor)) == cursor
    with suppress(Unauthenticated):
        token.parse(text)
    with suppress(Unauthenticated):
        bearer_token(cast("Any", SimpleNamespace(headers={"authorization": text})))
    for parser in (names.namespace, names.environment, names.label, names.config, names.selector):
        with suppress(Invalid):
            assert parser(parser(text)) == text
    with suppress(Invalid):
        view = names.view(text.split(","))
        assert names.view(view) == view
    if (after := frames.retry_after(text)) is not None:
        assert after >= 0


def documents(data: bytes) -> None:
    """Strict JSON: what is taken has one spelling, and reading that gives the same."""
    with suppress(Invalid):
        value = canonical.parse(data)
        text = canonical.canonical(value)
        assert canonical.canonical_text(text) == text
        assert canonical.canonical(canonical.parse(text)) == text
        json.loads(text)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "messages": messages,
    "pieces": pieces,
    "requests": requests,
    "receipts": receipts,
    "texts": texts,
    "documents": documents,
}
POLLED = (
    b'{"instance":"i","incarnation":1,"fingerprint":{"sdk":"a","sdk_version":"1"},"receipts":[{"namespace":"shop","environment":"p","view":[""],'
    b'"receipt":{"seq":1,"subscription":1,"epoch":1,"number":1,"version":"v","state":"applied"}}]}'
)
SEEDS: dict[str, list[bytes]] = {
    "messages": [
        HELLO,
        b"\n".join([HELLO, RECEIPT, HEARTBEAT, RESYNC, RENEW]),
        HEARTBEAT,
        b"[" * 3000,
        b'{"type":"heartbeat","x":"\xff"}',
    ],
    "pieces": [b"\1" + "aé€😀".encode(), b"\2\xed\xa0\x80", b"\0" + b"\xf4\x90\x80\x80"],
    "requests": [UPGRADE, UPGRADE.replace(b"13", b"8"), UPGRADE.replace(b"Bearer", b"Basic"), b"GET / HTTP/1.1\r\nHost: \xff"],
    "receipts": [POLLED, b"[" * 5000, b'{"a":' * 5000, b'{"instance":"\xff"}', b'{"instance":"\\ud800"}'],
    "texts": [
        b"1.2.sha256:" + b"0" * 64,
        TOKEN.encode(),
        b"Bearer " + TOKEN.encode(),
        b"checkout/limits",
        b"checkout/,a,b.c/d",
        b"overloaded; retry-after=5",
    ],
    "documents": [
        b'{"a":[1,2.5,true,null,"x"],"b":{"c":"\\u00e9"}}',
        b"1e400",
        b'{"a":1,"a":2}',
        b'"\\ud800"',
        b"[" * 2000,
        b"-0",
        b"1" * 400,
    ],
}
DICTIONARY = "\n".join(
    json.dumps(word)
    for word in [
        '"type":', "hello", "receipt", "heartbeat", "resync", '"subscriptions":', '"view":', '"have":', '"declares":', "sha256:", "Bearer ",
        "hel_client_", "; retry-after=", "1e999", "9007199254740993",
    ]
)  # fmt: skip
