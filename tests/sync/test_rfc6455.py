"""RFC 6455, case by case, spoken by hand to the real stream. Each row names the section that it is about.

Where the library answers before we are asked, the row says what it does instead. After every refused frame the node still serves a good client, and
nobody is left.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

import msgspec
import pytest
from tests.sync.bare import KEY, Node, frame, running

from heliograph.core import frames

TEXT, BINARY, CLOSE, PING, PONG, MORE = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BEAT = msgspec.json.encode(frames.Heartbeat(sent_at_us=7))
PROTOCOL, DATA, UTF8, BIG = 1002, 4102, 1007, 1009
LIMITS = 4104


@pytest.fixture
async def node():
    async with running() as node:
        yield node


def beat(text: str) -> bytes:
    """A heartbeat that says `text` somewhere, in a member that the server does not know."""
    return f'{{"type":"heartbeat","sent_at_us":7,"note":"{text}"}}'.encode()


# --- messages that are right -------------------------------------------------------------------------------------------------------

GOOD: dict[str, list[bytes]] = {
    "5.2 a message of one frame": [frame(TEXT, BEAT)],
    "5.2 a length that needs 16 bits": [frame(TEXT, beat("x" * 1000))],
    "5.2 the longest that is taken": [frame(TEXT, beat("x" * (frames.MAX_CLIENT_FRAME - len(beat("")))))],
    "5.3 a mask of zeros is one": [frame(TEXT, BEAT, mask=bytes(4))],
    "5.4 two fragments": [frame(TEXT, BEAT[:9], fin=False), frame(MORE, BEAT[9:])],
    "5.4 a byte a fragment": [
        frame(TEXT, BEAT[:1], fin=False),
        *(frame(MORE, BEAT[i : i + 1], fin=False) for i in range(1, len(BEAT))),
        frame(MORE),
    ],
    "5.4 fragments of nothing between": [frame(TEXT, fin=False), frame(MORE, BEAT, fin=False), frame(MORE)],
    "5.4 a control frame between fragments": [frame(TEXT, BEAT[:9], fin=False), frame(PONG, b"x"), frame(MORE, BEAT[9:])],
    "5.5.3 a pong that nobody asked for": [frame(PONG, b"unsolicited"), frame(PONG), frame(TEXT, BEAT)],
    "5.6 UTF-8 of every length": [frame(TEXT, beat("aé€😀"))],
    "5.6 a character cut between fragments": [
        frame(TEXT, beat("€")[: beat("€").index(b"\xe2") + 1], fin=False),
        frame(MORE, beat("€")[beat("€").index(b"\xe2") + 1 :]),
    ],
}


@pytest.mark.parametrize("sent", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("pieces", ["whole", "bytes"])
async def test_a_message_is_understood(node, sent, pieces):
    """Also when each byte comes by itself."""
    data = b"".join(sent)
    async with node.open() as raw:
        if pieces == "bytes" and len(data) < 2000:
            for byte in data:
                raw.write(bytes([byte]))
                await asyncio.sleep(0)
        else:
            raw.write(data)
        assert (await raw.until(frames.HeartbeatAck)).echo_us == 7
        await raw.alive()


@pytest.mark.parametrize("payload", [b"", b"hello", bytes(range(125))], ids=["nothing", "text", "125 bytes of anything"])
async def test_5_5_2_a_ping_is_answered_with_its_payload(node, payload):
    async with node.open() as raw:
        raw.write(frame(PING, payload))
        while (told := await raw.next())[0] == TEXT:
            pass
        assert told == (PONG, payload)


async def test_5_5_2_pings_between_fragments_are_answered_at_once(node):
    async with node.open() as raw:
        raw.write(frame(TEXT, BEAT[:5], fin=False) + frame(PING, b"1") + frame(MORE, BEAT[5:9], fin=False) + frame(PING, b"2"))
        told = [await raw.next() for _ in range(3)]
        assert [each for each in told if each[0] == PONG] == [(PONG, b"1"), (PONG, b"2")]
        raw.write(frame(MORE, BEAT[9:]))
        assert (await raw.until(frames.HeartbeatAck)).echo_us == 7


# --- what fails the connection -----------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes, int]] = {
    "5.1 a frame without a mask": (frame(TEXT, BEAT, mask=b""), PROTOCOL),
    "5.1 a close without a mask": (frame(CLOSE, b"\x03\xe8", mask=b""), PROTOCOL),
    "5.2 RSV1 without an extension": (frame(TEXT, BEAT, rsv=4), PROTOCOL),
    "5.2 RSV2": (frame(TEXT, BEAT, rsv=2), PROTOCOL),
    "5.2 RSV3": (frame(TEXT, BEAT, rsv=1), PROTOCOL),
    "5.2 all of them on a ping": (frame(PING, b"", rsv=7), PROTOCOL),
    "5.2 RSV1 on a fragment": (frame(TEXT, b"{", fin=False) + frame(MORE, b"}", rsv=4), PROTOCOL),
    **{f"5.2 reserved opcode {code:#x}": (frame(code, b""), PROTOCOL) for code in (*range(0x3, 0x8), *range(0xB, 0x10))},
    "5.2 a 16-bit length that fits 7 bits": (frame(TEXT, b"x" * 5, length=b"\x7e\x00\x05"), PROTOCOL),
    "5.2 a 64-bit length that fits 16 bits": (frame(TEXT, b"x" * 5, length=b"\x7f" + (5).to_bytes(8, "big")), PROTOCOL),
    "5.2 a 64-bit length with the top bit": (frame(TEXT, b"", length=b"\x7f" + (1 << 63).to_bytes(8, "big")), PROTOCOL),
    "5.2 a length of 2^62": (frame(TEXT, b"", length=b"\x7f" + (1 << 62).to_bytes(8, "big")), BIG),
    "5.4 a continuation of nothing": (frame(MORE, BEAT), PROTOCOL),
    "5.4 a continuation after the end": (frame(TEXT, BEAT) + frame(MORE, BEAT), PROTOCOL),
    "5.4 a message inside a fragmented one": (frame(TEXT, b"{", fin=False) + frame(TEXT, BEAT), PROTOCOL),
    "5.4 a binary message inside one": (frame(TEXT, b"{", fin=False) + frame(BINARY, BEAT), PROTOCOL),
    "5.4 a fragmented one inside one": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"{", fin=False), PROTOCOL),
    "5.4 too many fragments (ours)": (frame(TEXT, fin=False) + frame(MORE, fin=False) * 300, LIMITS),
    "5.4 too much in fragments (ours)": (frame(TEXT, b"x" * 40_000, fin=False) + frame(MORE, b"x" * 40_000), LIMITS),
    "5.5 a fragmented ping": (frame(PING, b"x", fin=False), PROTOCOL),
    "5.5 a fragmented close": (frame(CLOSE, b"\x03\xe8", fin=False), PROTOCOL),
    "5.5 a ping of 126 bytes": (frame(PING, b"x" * 126), PROTOCOL),
    "5.5 a pong of 70,000 bytes": (frame(PONG, b"x" * 70_000), PROTOCOL),
    "5.5 a close of 126 bytes": (frame(CLOSE, b"\x03\xe8" + b"x" * 124), PROTOCOL),
    "5.5.1 a close of one byte": (frame(CLOSE, b"\x03"), PROTOCOL),
    "5.5.1 a close whose reason is no UTF-8": (frame(CLOSE, b"\x03\xe8\xff\xfe"), UTF8),
    "5.5.1 a close whose reason is a surrogate": (frame(CLOSE, b"\x03\xe8\xed\xa0\x80"), UTF8),
    "5.6 a binary message (heliograph.v1 has none)": (frame(BINARY, BEAT), DATA),
    "5.6 a binary fragment": (frame(BINARY, b"{", fin=False), DATA),
    "8.1 bytes that are no UTF-8": (frame(TEXT, b'{"type":"heartbeat","note":"\xff"}'), UTF8),
    "8.1 an overlong form": (frame(TEXT, b'{"type":"heartbeat","note":"\xc0\xaf"}'), UTF8),
    "8.1 a surrogate": (frame(TEXT, b'{"type":"heartbeat","note":"\xed\xa0\x80"}'), UTF8),
    "8.1 above the last code point": (frame(TEXT, b'{"type":"heartbeat","note":"\xf4\x90\x80\x80"}'), UTF8),
    "8.1 a character cut at the end": (frame(TEXT, b'{"type":"heartbeat","note":"\xe2\x82'), UTF8),
    "8.1 at once, with the message still open": (frame(TEXT, b'{"type":"\xff', fin=False), UTF8),
    "8.1 in the second fragment, with more to come": (frame(TEXT, b"\xe2", fin=False) + frame(MORE, b"\x28", fin=False), UTF8),
    "10.4 a frame larger than is taken (ours)": (frame(TEXT, b"x" * (frames.MAX_CLIENT_FRAME + 1)), BIG),
}


@pytest.mark.parametrize(("sent", "code"), BAD.values(), ids=BAD)
async def test_what_is_wrong_fails_the_connection_and_nothing_else(node, sent, code):
    async with node.open() as raw:
        raw.write(sent)
        assert (await raw.closed())[0] == code
    await node.empty()
    await node.serves()


@pytest.mark.parametrize(("sent", "code"), BAD.values(), ids=BAD)
async def test_the_same_is_wrong_before_hello(node, sent, code):
    """Or it is not looked at any more, because what came before it was no hello."""
    async with node.open(hello=False) as raw:
        raw.write(sent)
        assert (await raw.closed())[0] in (code, 4106)
    await node.empty()


# --- the closing handshake ---------------------------------------------------------------------------------------------------------

MAY = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
MAY_NOT = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


@pytest.mark.parametrize("code", MAY)
async def test_7_1_a_close_is_answered_with_its_code(node, code):
    async with node.open() as raw:
        raw.write(frame(CLOSE, code.to_bytes(2, "big") + "good-bye €".encode()))
        assert (await raw.closed())[0] == code
    await node.empty()


@pytest.mark.parametrize("code", MAY_NOT)
async def test_7_4_a_code_that_nobody_may_send_is_an_error(node, code):
    async with node.open() as raw:
        raw.write(frame(CLOSE, code.to_bytes(2, "big")))
        assert (await raw.closed())[0] == PROTOCOL
    await node.empty()


async def test_5_5_1_a_close_without_a_code_is_answered(node):
    async with node.open() as raw:
        raw.write(frame(CLOSE))
        assert (await raw.closed())[0] == 1000


async def test_5_5_1_what_comes_after_a_close_is_not_looked_at(node):
    async with node.open() as raw:
        raw.write(frame(CLOSE, b"\x03\xe8") + frame(TEXT, BEAT) + frame(PING, b"x") + frame(0x3))
        kinds = []
        try:
            while True:
                opcode, payload = await raw.next()
                kinds.append(opcode)
                if opcode == CLOSE:
                    assert payload == b"\x03\xe8"
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        assert kinds.count(CLOSE) == 1
        assert PONG not in kinds
        assert kinds[-1] == CLOSE
    await node.empty()


async def test_7_1_1_the_server_closes_tcp_first_and_waits_for_the_answer(node):
    """So that its code arrives: closed on unread bytes, TCP would be reset, and the code lost."""
    async with node.open() as raw:
        [connection] = node.hub._connections.values()
        node.hub.close(connection, 4105, "the token was revoked")
        assert node.stream.ending
        raw.write(frame(TEXT, BEAT) * 100)
        assert await raw.closed() == (4105, "the token was revoked")
    await node.empty()


async def test_7_1_1_a_client_that_never_answers_a_close_is_left(node):
    async with node.open() as raw:
        [connection] = node.hub._connections.values()
        node.hub.close(connection, 4105, "the token was revoked")
        await node.empty()
        assert (await raw.closed())[0] == 4105


async def test_7_1_5_a_connection_that_just_ends_is_forgotten(node):
    async with node.open(), node.open(hello=False):
        await node.until(lambda: len(node.hub) == 2)
    await node.empty()


# --- the opening handshake ---------------------------------------------------------------------------------------------------------

OPENS: dict[str, dict[str, Any]] = {
    "4.1 as it is written": {},
    "4.2.1 Firefox's Connection": {"connection": "keep-alive, Upgrade"},
    "4.2.1 tokens in any case": {"connection": "UPGRADE", "upgrade": "WebSocket"},
    "4.2.1 a list of protocols to upgrade to": {"upgrade": "h2c, websocket"},
    "4.2.1 several subprotocols": {"sec_websocket_protocol": "chat, heliograph.v1 ,superchat"},
    "4.2.1 extensions are offered and not taken": {
        "sec_websocket_extensions": "permessage-deflate; client_max_window_bits, x-y"
    },
    "4.2.1 headers that mean nothing here": {"origin": "https://example.org", "cookie": "a=b", "x-any": "ü"},
    "RFC 9112 a body of no bytes": {"content_length": "0"},
}


def accepted(answer: str) -> bool:
    expected = base64.b64encode(hashlib.sha1(KEY + GUID).digest()).decode()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in answer.split("\r\n")[1:] if line)}
    assert headers["upgrade"].lower() == "websocket"
    assert headers["connection"].lower() == "upgrade"
    assert headers["sec-websocket-protocol"] == "heliograph.v1"
    assert "sec-websocket-extensions" not in headers
    return headers["sec-websocket-accept"] == expected


@pytest.mark.parametrize("changed", OPENS.values(), ids=OPENS)
@pytest.mark.parametrize("pieces", ["whole", "bytes"])
async def test_an_upgrade_is_taken(node, changed, pieces):
    raw = await node.dial()
    request = node.request(**changed)
    for part in [request] if pieces == "whole" else [request[i : i + 1] for i in range(len(request))]:
        raw.write(part)
        await asyncio.sleep(0)
    answer = await raw.head()
    assert answer.startswith("HTTP/1.1 101 ")
    assert accepted(answer)
    raw.text(raw.hello())
    await raw.until(frames.Welcome)
    await raw.leave()
    await node.empty()


async def test_4_1_header_names_are_in_any_case(node):
    raw = await node.dial()
    head, _, headers = node.request().partition(b"\r\n")
    raw.write(
        head
        + b"\r\n"
        + b"\r\n".join(
            line.partition(b":")[0].upper() + b":" + line.partition(b":")[2] for line in headers.split(b"\r\n") if line
        )
        + b"\r\n\r\n"
    )
    assert (await raw.head()).startswith("HTTP/1.1 101 ")
    await raw.leave()


async def test_4_1_frames_sent_with_the_request_are_not_lost(node):
    raw = await node.dial()
    raw.write(node.request() + frame(TEXT, raw.hello()) + frame(TEXT, BEAT))
    assert (await raw.head()).startswith("HTTP/1.1 101 ")
    await raw.until(frames.Welcome)
    assert (await raw.until(frames.HeartbeatAck)).echo_us == 7
    await raw.leave()


REFUSED: dict[str, tuple[dict[str, Any], int]] = {
    "4.2.1 no key": ({"sec_websocket_key": None}, 400),
    "4.2.1 a short key": ({"sec_websocket_key": "c2hvcnQ="}, 400),
    "4.2.1 a long key": ({"sec_websocket_key": base64.b64encode(bytes(17)).decode()}, 400),
    "4.2.1 a key that is not base64": ({"sec_websocket_key": "!" * 24}, 400),
    "4.2.1 a key of other letters": ({"sec_websocket_key": "ü" * 24}, 400),
    "11.3.1 two keys": ({"sec_websocket_key": f"{KEY.decode()}\r\nSec-WebSocket-Key: {KEY.decode()}"}, 400),
    "4.2.1 no upgrade": ({"upgrade": None}, 400),
    "4.2.1 an upgrade to something else": ({"upgrade": "h2c"}, 400),
    "4.2.1 no connection": ({"connection": None}, 400),
    "4.2.1 a connection that only sounds like it": ({"connection": "no-upgrade"}, 400),
    "4.2.1 no host": ({"host": None}, 400),
    "4.4 version 8": ({"sec_websocket_version": "8"}, 426),
    "4.4 version 14": ({"sec_websocket_version": "14"}, 426),
    "4.4 no version": ({"sec_websocket_version": None}, 426),
    "4.2.2 no subprotocol (ours)": ({"sec_websocket_protocol": None}, 400),
    "4.2.2 only others": ({"sec_websocket_protocol": "chat, mqtt"}, 400),
    "11.3.4 another case is another name": ({"sec_websocket_protocol": "Heliograph.V1"}, 400),
    "10.5 no token": ({"authorization": None}, 401),
    "10.5 a token of other letters": ({"authorization": "Bearer ünknown"}, 401),
    "10.5 two tokens": ({"authorization": "Bearer a\r\nAuthorization: Bearer b"}, 400),
}


@pytest.mark.parametrize(("changed", "status"), REFUSED.values(), ids=REFUSED)
async def test_an_upgrade_is_refused_with_a_problem_that_says_why(node, changed, status):
    raw = await node.dial()
    raw.write(node.request(**changed) + frame(TEXT, BEAT))
    answer = await raw.head()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert ("Sec-WebSocket-Version: 13" in answer) == (status == 426)
    told = msgspec.json.decode(await raw.reader.read())
    assert told["status"] == status
    assert len(told["detail"]) > 10
    await raw.leave()
    await node.empty()


BY_THE_LIBRARY: dict[str, tuple[bytes, str]] = {
    "4.1 HTTP/1.0": (b"GET /v1/stream HTTP/1.0\r\n\r\n", "HTTP/1.1 400 "),
    "4.1 POST": (b"POST /v1/stream HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 400 "),
    "4.1 a body": (b"GET /v1/stream HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 400 "),
    "4.1 a body in chunks": (b"GET /v1/stream HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    "RFC 9112 no request line": (b"\r\n\r\n", "HTTP/1.1 400 "),
    "RFC 9112 not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "HTTP/1.1 400 "),
    "RFC 9112 a folded header": (b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n y\r\n\r\n", "HTTP/1.1 400 "),
    "RFC 9112 a header with a NUL": (b"GET /v1/stream HTTP/1.1\r\nHost: x\0y\r\n\r\n", "HTTP/1.1 400 "),
    "RFC 9112 a name with a blank": (b"GET /v1/stream HTTP/1.1\r\nHo st: x\r\n\r\n", "HTTP/1.1 400 "),
    "10.4 more than 128 headers": (b"GET /v1/stream HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", "HTTP/1.1 400 "),
    "10.4 more than 16 KB of headers: closed without an answer": (
        b"GET /v1/stream HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
        "",
    ),
    "10.4 a request line without an end: closed without an answer": (b"GET /" + b"x" * 100_000, ""),
}


@pytest.mark.parametrize(("sent", "begins"), BY_THE_LIBRARY.values(), ids=BY_THE_LIBRARY)
async def test_what_is_no_request_is_answered_by_the_library_and_harms_nobody(node, sent, begins):
    raw = await node.dial()
    raw.write(sent)
    try:
        answer = await raw.reader.read()
    except ConnectionError:  # reset on what was not read
        answer = b""
    assert answer.startswith(begins.encode())
    assert b" 101 " not in answer
    await raw.leave()
    await node.empty()
    await node.serves()


async def test_4_2_2_one_connection_is_upgraded_once(node: Node):
    """A second request is no frame."""
    async with node.open() as raw:
        raw.write(node.request())
        assert (await raw.closed())[0] == PROTOCOL


async def test_nothing_of_a_client_s_faults_is_in_the_log(node, caplog):
    """A log that a client can fill hides what matters."""
    for sent, code in [*BAD.values()][:10]:
        async with node.open() as raw:
            raw.write(sent)
            assert (await raw.closed())[0] == code
    await node.empty()
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")] == []
