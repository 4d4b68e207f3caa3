"""The one connection to the parent. Opened again and again, with backoff and full jitter, until the edge stops.

Down it come the frames of what is followed, up go what is asked for and what clients said. It implements `Appender`, so the hub's outbox stands on it
as it does on the log: an append returns when the parent has the events in its own log, or in its parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.typing import Subprotocol

from heliograph import __version__
from heliograph.core import feed, frames
from heliograph.core.errors import HeliographError, InvalidRequest, MalformedFrame, TooLarge, Unavailable
from heliograph.eventlog.ports import NewRecord
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.runtime.retry import delay
from heliograph.services.sync.edge.parent import Parent
from heliograph.services.sync.edge.settings import EdgeSettings
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

OPEN_S: Final = 10.0
CLOSE_S: Final = 2.0
SILENCE_HEARTBEATS: Final = 3.0
BEAT_SHARE: Final = 0.7
RETRUST_S: Final = 5.0
STEADY_S: Final = 60.0
"""A connection that held for so long was a good one: the next pause is a short one again."""
MAX_FRAME: Final = 8 * 1024 * 1024  # a document of 1 MiB whose every character is escaped; larger states come in parts

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(feed.ToEdge).decode
# at DEBUG the library writes down the handshake's headers, and so the token
_quiet = logging.getLogger("heliograph.uplink")
_quiet.setLevel(logging.INFO)


class Listener(Protocol):
    """Who follows environments over it."""

    def connected(self, away_s: float | None) -> None:
        """The parent is there. ``away_s``: how long it was not; None: this is the first time."""
        ...

    def lost(self) -> None: ...

    async def take(self, frame: feed.ToEdge) -> None: ...


class Uplink:
    """Belongs to one event loop."""

    def __init__(self, settings: EdgeSettings, node: str, parent: Parent, metrics: Metrics, readiness: Readiness) -> None:
        self.listener: Listener
        self._settings = settings
        self._node = node
        self._parent = parent
        self._metrics = metrics
        self._readiness = readiness
        self._incarnation = now_us()
        self._up = asyncio.Event()
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._acks: dict[int, asyncio.Future[None]] = {}
        self._seq = 0
        self._leave_at: float | None = None
        self._patience: asyncio.Timeout | None = None  # with which the parent's next word is waited for
        self._complaint = ""
        self.lost_us = now_us()
        """Since when it has been away, if it is."""
        self.met = False
        """Whether it was ever there."""

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    def away_s(self) -> float:
        return 0.0 if self.connected else max(0.0, (now_us() - self.lost_us) / 1e6)

    async def met_once(self) -> None:
        await self._up.wait()

    def send(self, frame: frames.ClientFrame) -> None:
        """Nothing, while the parent is away: what is followed is asked for anew when it is back."""
        if self.connected:
            self._outgoing.put_nowait(_encode(frame))

    def reconnect_soon(self) -> None:
        """With the parent's trust root read again: its keys may be others now."""
        self._leave_within(RETRUST_S)

    # --- Appender ---

    async def append(self, records: Sequence[NewRecord]) -> None:
        """Waits while the parent is away, and while it is there for as long as its own log may be away: it keeps what it was told, and each time it
        came again would keep one more. Raises Unavailable when the connection was lost: some of the events may be there, and telling them again is
        harmless. Raises TooLarge, and tells nothing, when one cannot fit a frame: the parent would close the connection for it each time."""
        if any(len(each.body) > feed.MAX_EVENT_BYTES for each in records):
            raise TooLarge(f"an event has at most {feed.MAX_EVENT_BYTES:,} bytes")
        await self._up.wait()
        for batch in _batches(records):
            self._seq += 1
            self._outgoing.put_nowait(_encode({"type": "relay", "seq": self._seq, "events": batch}))
        acknowledged = self._acks[self._seq] = asyncio.get_running_loop().create_future()
        seq = self._seq
        try:
            await acknowledged
        finally:
            self._acks.pop(seq, None)

    async def close(self) -> None:
        """Nothing to close: `run` ends with its task."""

    def _acknowledged(self, upto: int) -> None:
        for seq, waiting in self._acks.items():
            if seq <= upto and not waiting.done():
                waiting.set_result(None)

    # --- the connection, again and again ---

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began, reason = loop.time(), ""
            try:
                await self._once()
                failures = 0  # as agreed: come back at once
            except HeliographError as error:
                reason = self._complaint or f"{error.code}: {error.detail}"
            except Exception as error:  # whatever a parent is or says, the clients here are served
                log.exception("edge_uplink_failed")
                reason = type(error).__name__
            if loop.time() - began > STEADY_S:
                failures = 0
            pause_s = delay(failures, base_s=0.2, cap_s=self._settings.edge_reconnect_cap_s)
            failures += 1
            self._say_away(reason, pause_s)
            await asyncio.sleep(pause_s)

    def _say_away(self, reason: str, pause_s: float) -> None:
        if reason:
            self._readiness.impaired("parent", f"away: {reason}")
            log.warning("edge_parent_away", reason=reason, away_s=round(self.away_s(), 1), retry_in_s=round(pause_s, 1))

    async def _once(self) -> None:
        """One connection: returns when the parent asked to leave, raises HeliographError when it is lost, or never came."""
        self._complaint = ""
        token = await asyncio.to_thread(self._settings.read_token)
        if token.parts != self._parent.token.parts:
            raise InvalidRequest("the new edge token is of another Heliograph: its anchor differs; start anew for that")
        self._parent.token = token
        socket = await self._open(await self._where(), token.text)
        try:
            await self._live(socket, await self._greet(socket))
        except ConnectionClosed as closed:
            raise _why_closed(closed) from None
        finally:
            self._down()
            with contextlib.suppress(OSError, WebSocketException):
                await socket.close()

    async def _where(self) -> str:
        """The stream's address. An API that is away need not keep an edge from a stream that is there."""
        try:
            return (await self._parent.refresh()).stream
        except Unavailable:
            if self._parent.endpoints is None or self._parent.trust is None:
                raise
            return self._parent.endpoints.stream

    async def _open(self, url: str, token: str) -> ClientConnection:
        tls = await asyncio.to_thread(ssl.create_default_context) if url.startswith("wss:") else None
        try:
            return await connect(
                url,
                subprotocols=[Subprotocol(frames.SUBPROTOCOL)],
                additional_headers={"Authorization": f"Bearer {token}"},
                user_agent_header=f"heliograph-edge/{__version__}",
                compression=None,
                logger=_quiet,
                ssl=tls,
                ping_interval=None,  # heartbeats tell
                open_timeout=OPEN_S,
                close_timeout=CLOSE_S,
                max_size=MAX_FRAME,
            )
        except InvalidURI:
            raise InvalidRequest("the parent's address of its stream is not a ws:// or wss:// URL") from None
        except InvalidStatus as refused:
            raise Unavailable(f"the parent refused the connection with HTTP {refused.response.status_code}") from None
        except (OSError, TimeoutError, EOFError, WebSocketException) as error:
            raise Unavailable(f"the stream cannot be opened ({type(error).__name__})") from None

    async def _greet(self, socket: ClientConnection) -> frames.Welcome:
        mark = frames.Fingerprint(sdk="heliograph-edge", sdk_version=__version__, host=self._settings.node[:100])
        hello = frames.Hello(
            instance=self._node, incarnation=self._incarnation, fingerprint=mark, subscriptions=(), sent_at_us=now_us()
        )
        await socket.send(_encode(hello), text=True)
        try:
            async with asyncio.timeout(OPEN_S):
                frame = _read(await socket.recv(decode=False))
        except TimeoutError:
            raise Unavailable("the parent does not welcome this edge") from None
        if isinstance(frame, frames.ErrorFrame):
            raise Unavailable(f"the parent says {frame.code}: {frame.detail}")
        if not isinstance(frame, frames.Welcome):
            raise Unavailable("the parent does not welcome this edge")
        return frame

    async def _live(self, socket: ClientConnection, welcome: frames.Welcome) -> None:
        self._come_up(welcome)
        beside = [
            asyncio.create_task(self._write(socket), name="uplink writer"),
            asyncio.create_task(self._beat(welcome.heartbeat_s), name="uplink heartbeat"),
        ]
        try:
            await self._listen(socket, SILENCE_HEARTBEATS * welcome.heartbeat_s)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _come_up(self, welcome: frames.Welcome) -> None:
        away_s = self.away_s() if self.met else None
        self._outgoing, self._leave_at, self.met = asyncio.Queue(), None, True
        self._up.set()
        self._metrics.edge_parent_connected.set(1)
        self._readiness.sound("parent")
        log.info("edge_parent_connected", parent=welcome.node, away_s=away_s)
        self.listener.connected(away_s)

    def _down(self) -> None:
        if not self.connected:
            return
        self._up.clear()
        self.lost_us = now_us()
        self._metrics.edge_parent_connected.set(0)
        for waiting in self._acks.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("the connection to the parent was lost"))
        self.listener.lost()

    # --- frames ---

    async def _write(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):  # whoever listens is told why
            while True:
                await socket.send(await self._outgoing.get(), text=True)

    async def _beat(self, heartbeat_s: float) -> None:
        while True:
            await asyncio.sleep(heartbeat_s * BEAT_SHARE)
            self.send(frames.Heartbeat(sent_at_us=now_us()))

    async def _listen(self, socket: ClientConnection, silence_s: float) -> None:
        """Until it is time to leave. Raises Unavailable when nothing was heard for too long."""
        loop = asyncio.get_running_loop()
        while self._leave_at is None or loop.time() < self._leave_at:
            until = min(loop.time() + silence_s, self._leave_at or float("inf"))
            patience = self._patience = asyncio.timeout_at(until)
            try:
                async with patience:
                    data = await socket.recv(decode=False)
            except TimeoutError:
                if patience.when() == self._leave_at:
                    return
                raise Unavailable("nothing was heard of the parent") from None
            await self._take(_read(data))

    async def _take(self, frame: feed.ToEdge) -> None:
        match frame:
            case frames.ReceiptAck(seq=seq):
                self._acknowledged(seq)
            case frames.Drain(within_s=within_s):
                self._leave_within(within_s)
            case frames.ErrorFrame(subscription=None):
                self._complaint = f"{frame.code}: {frame.detail}"
            case frames.HeartbeatAck() | frames.Ping() | frames.Welcome():
                pass
            case _:
                await self.listener.take(frame)

    def _leave_within(self, within_s: float) -> None:
        if self._leave_at is None:
            pause_s = random.uniform(0, max(0.0, min(within_s, STEADY_S)))  # noqa: S311  # spreads load, keeps no secret
            self._leave_at = asyncio.get_running_loop().time() + pause_s
            self._wait_until(self._leave_at)

    def _wait_until(self, at: float) -> None:
        """Whoever waits for the parent's next word may wait for long."""
        with contextlib.suppress(RuntimeError):  # nobody waits now, and whoever waits next looks at the time
            if self._patience is not None and at < (self._patience.when() or float("inf")):
                self._patience.reschedule(at)


def _batches(records: Sequence[NewRecord]) -> Iterator[list[msgspec.Raw]]:
    """Each fits a frame, as does each event alone."""
    batch: list[msgspec.Raw] = []
    size = 0
    for record in records:
        if batch and size + len(record.body) > feed.MAX_RELAYED_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(msgspec.Raw(record.body))
        size += len(record.body) + 1
    if batch:
        yield batch


def _read(data: bytes) -> feed.ToEdge:
    try:
        frame: feed.ToEdge = _decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise MalformedFrame("the parent sent something that is not a frame of heliograph.v1") from None
    return frame


def _why_closed(closed: ConnectionClosed) -> HeliographError:
    told = closed.rcvd or closed.sent
    if told is None:
        return Unavailable("the connection broke without a word")
    name, says = problems.CLOSE_CODES.get(told.code, (str(told.code), "no reason that is known"))
    return Unavailable(f"the parent closed the connection ({name}): {says}")
