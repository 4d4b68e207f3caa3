"""Anything at all, said to the real stream: it may close the connection, and that is all it may do.

After each example there is no connection, no task and no descriptor left, nothing was logged as our fault, and a good client is served as ever.
`HYPOTHESIS_PROFILE=deep` tries some thousands; `make fuzz` goes on from there with coverage for a guide.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import structlog
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from tests.sync.bare import Node, Raw, frame, running

# --- what a client may say -----------------------------------------------------------------------------------------------------------

CURSOR = {"epoch": 1, "number": 1, "version": "sha256:" + "0" * 64}
SUBSCRIPTION = {"id": 1, "namespace": "shop", "environment": "production", "view": [""], "have": None}
HELLO = {
    "type": "hello",
    "instance": "i-1",
    "incarnation": 1,
    "fingerprint": {"sdk": "fuzz", "sdk_version": "1", "labels": {"a": "b"}},
    "subscriptions": [SUBSCRIPTION],
    "public_key": None,
    "sent_at_us": 1,
}
OTHERS = [
    {"type": "receipt", "seq": 1, "subscription": 1, **CURSOR, "state": "applied", "applied_at_us": 1, "clock_offset_us": 0},
    {"type": "heartbeat", "views": {"1": "sha256:" + "1" * 64}, "sent_at_us": 1, "declares": {"1": {"c": "{}"}}},
    {"type": "resync", "subscription": 1, "have": CURSOR},
    {"type": "token", "token": "hel_client_cut"},
]
NASTY_TEXTS = ["", "\ud800", "\udfff\ud800", "\0", "../..", "a" * 300, "é" * 100, "1e999", "shop", "production", "1", "-1", "٣"]
NASTY_NUMBERS = [0, -1, 1 << 31, 1 << 53, 1 << 63, -(1 << 63), 1 << 64, 10**400, 0.5, 1e308, float("inf"), float("nan"), -0.0]
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(NASTY_NUMBERS),
        st.sampled_from(NASTY_TEXTS),
        st.integers(),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["id", "1", "view", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, good: Any) -> Any:
    """A good value with something in it replaced, taken out or added, at any depth."""
    if isinstance(good, dict) and good and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(good)))
        if not draw(st.integers(0, 5)):
            return {name: value for name, value in good.items() if name != key}
        return good | {key: draw(changed(good[key]))}
    if isinstance(good, list) and good and draw(st.booleans()):
        return [draw(changed(each)) for each in good] * draw(st.sampled_from([1, 1, 2, 70]))
    return draw(anything)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """One message: right, nearly right, or nothing of the kind."""
    kind = draw(st.integers(0, 9))
    if kind < 2:
        return spelled(HELLO)
    if kind < 4:
        return spelled(draw(st.sampled_from(OTHERS)))
    if kind < 7:
        return spelled(draw(changed(draw(st.sampled_from([HELLO, *OTHERS])))))
    if kind == 7:
        return draw(st.binary(max_size=64))
    if kind == 8:
        return spelled(draw(anything))
    return draw(st.sampled_from(ODD))


def spelled(value: Any) -> bytes:
    """With lone surrogates as escapes, or as the bytes that they must never be."""
    text = json.dumps(value, ensure_ascii=len(str(value)) % 2 == 0)
    return text.encode("utf-8", "surrogatepass")


ODD = [
    b"[" * 60_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    b'{"type":"hello","type":"heartbeat"}',
    b'{"type":"heartbeat","views":{"1":"a","1":"b"}}',
    b'{"type":"heartbeat","sent_at_us":1' + b"0" * 5_000 + b"}",
    b'{"type":"heartbeat","sent_at_us":1e400}',
    b'{"type":"heartbeat","x":"\\ud800"}',
    b'{"type":"heartbeat","views":{"\\ud800":"\\udc00"}}',
    b'{"type":"heartbeat","views":{"4294967296":"x"}}',
    b'\xef\xbb\xbf{"type":"heartbeat"}',
    b'{"type":"heartbeat"} trailing',
    b"",
    b"null",
]

opcodes = st.sampled_from([0x1] * 12 + [0x0, 0x0, 0x2, 0x3, 0x7, 0x8, 0x9, 0xA, 0xB, 0xF])
masks = st.sampled_from([None] * 8 + [b"", bytes(4), b"\xff\0\xff\0"])
lengths = st.sampled_from(
    [None] * 20
    + [
        b"\x00",
        b"\x7d",
        b"\x7e\0\1",
        b"\x7e\xff\xff",
        b"\x7f" + bytes(8),
        b"\x7f\xff" + bytes(7),
        b"\x7f" + bytes(5) + b"\2\0\0",
    ]
)
whole_frames = st.builds(
    frame,
    opcodes,
    texts(),
    fin=st.sampled_from([True] * 6 + [False]),
    rsv=st.sampled_from([0] * 12 + [1, 2, 4, 7]),
    mask=masks,
    length=lengths,
)
plain_frames = st.builds(frame, st.just(0x1), texts())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Frames with bytes changed, lost, doubled."""
    data = bytearray(b"".join(draw(st.lists(plain_frames, min_size=1, max_size=3)))[:4096])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.integers(0, 2))
        if how == 0:
            data[at] = draw(st.integers(0, 255))
        elif how == 1:
            del data[at : at + draw(st.integers(1, 8))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 8))]
        if not data:
            break
    return bytes(data)


heads = st.one_of(
    st.just(None),
    st.just(None),
    st.just(None),
    st.just(None),
    st.binary(max_size=200),
    st.dictionaries(
        st.sampled_from(
            [
                "host",
                "upgrade",
                "connection",
                "sec_websocket_key",
                "sec_websocket_version",
                "sec_websocket_protocol",
                "authorization",
                "content_length",
            ]
        ),
        st.one_of(
            st.none(), st.text(st.characters(max_codepoint=255), max_size=30), st.just("a\r\nb: c"), st.just("x" * 20_000)
        ),
        min_size=1,
        max_size=3,
    ),
)


@dataclass
class Caller:
    """One connection: how it asks, what it sends, in which pieces, and how it goes."""

    head: bytes | dict[str, Any] | None
    parts: list[bytes]
    cut: int
    reads: bool
    end: str


callers = st.builds(
    Caller,
    head=heads,
    parts=st.lists(st.one_of(plain_frames, plain_frames, whole_frames, damaged()), max_size=8),
    cut=st.sampled_from([0, 0, 1, 7, 500]),
    reads=st.booleans(),
    end=st.sampled_from(["close", "abort", "half", "wait"]),
)

# --- what must hold ------------------------------------------------------------------------------------------------------------------


async def call(node: Node, caller: Caller, turn: asyncio.Event) -> None:
    raw = await node.dial()
    with suppress(OSError, RuntimeError):  # it may be closed on us at any point
        if caller.head is None:
            raw.write(node.request())
        elif isinstance(caller.head, bytes):
            raw.write(caller.head)
        else:
            raw.write(node.request(**caller.head))
        for part in caller.parts:
            for piece in pieces(part, caller.cut):
                raw.write(piece)
                await asyncio.sleep(0)
            if caller.reads:
                raw.reader._buffer.clear()  # whatever it was
        await turn.wait()
        await go(raw, caller.end)


def pieces(data: bytes, size: int) -> list[bytes]:
    if not size or len(data) > size * 400:
        return [data]
    return [data[at : at + size] for at in range(0, len(data), size)]


async def go(raw: Raw, how: str) -> None:
    if how == "half":
        raw.writer.write_eof()
        await asyncio.sleep(0.001)
    elif how == "wait":
        await asyncio.sleep(0.01)
    if how == "close":
        raw.writer.close()
    else:
        raw.writer.transport.abort()


class Listening(logging.Handler):
    """What libraries log as errors: of ours, for a client's they are told not to."""

    def __init__(self, found: list[Any]) -> None:
        super().__init__(logging.ERROR)
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


async def survives(told: list[Caller]) -> None:
    ours = asyncio.all_tasks()
    failures: list[Any] = []
    listening = Listening(failures)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    with structlog.testing.capture_logs() as logged, listening:
        async with running(hello_s=5, heartbeat_s=5) as node:
            beside = asyncio.all_tasks()
            turn = asyncio.Event()
            calls = [asyncio.create_task(call(node, caller, turn)) for caller in told]
            await asyncio.sleep(0.002)
            node.publish(meanwhile={"text": "x" * 100})
            await asyncio.sleep(0.002)
            turn.set()
            await asyncio.gather(*calls)
            await node.empty()
            await node.until(lambda: not asyncio.all_tasks() - beside)
            left = (node.hub._instances, node.hub._slow, node.stream._tokens, node.admission._places, node.admission._tokens)
            assert [each for each in left if each] == []
            await node.serves()
    assert [each for each in logged if each["log_level"] in ("error", "critical", "exception")] == []
    assert failures == []
    assert asyncio.all_tasks() == ours


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def run(told: list[Caller]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(survives(told))


@cache
def warm() -> None:
    """What a process opens once and keeps."""
    run([])


@given(st.lists(callers, min_size=1, max_size=3))
def test_whatever_is_said_only_its_own_connection_can_end(told: list[Caller]) -> None:
    warm()
    before = descriptors()
    run(told)
    assert descriptors() == before
