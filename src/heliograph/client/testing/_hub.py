"""The server's side of the protocol in memory: links of any number of clients in any threads and event loops, and what they answer."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal

import msgspec

from heliograph.client._disk import DiskWriter
from heliograph.client._forks import watch
from heliograph.client._link import Link, Take
from heliograph.client._network import Reach, Wanted
from heliograph.client._options import Options
from heliograph.client._transport_polling import Reporter
from heliograph.client._transport_websocket import decode
from heliograph.client.testing._history import Frame, History, Keys
from heliograph.core import frames, names
from heliograph.core import token as token_text
from heliograph.core.errors import HeliographError, NotFound, Unauthenticated, Unavailable
from heliograph.core.records import Cursor
from heliograph.core.trust import Trust

HEARTBEAT_S: Final = 10.0
_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], frames.FromClient] = msgspec.json.Decoder(frames.FromClient).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one client did with one version: its receipt.

    Attributes:
        instance: as in the client's ``status.instance``. ``app``: what the client was called.
        state: ``applied``; ``rejected`` by a binding or a validator; ``unaffected`` when nothing in its view changed; ``superseded`` when
            it runs on a later one and did not answer for this one.
        reason: of a rejection: what does not fit and where, never the value.
    """

    instance: str
    app: str
    number: int
    state: frames.State
    reason: str | None = None


class Ballot:
    """Who is asked about one version, and what they answered. ``complete`` is done when nobody is missing. Under the lock of its `Hub`."""

    def __init__(self, cursor: Cursor, asked: Iterable[str]) -> None:
        self.cursor = cursor
        self.missing = set(asked)
        self.answers: dict[str, Answer] = {}
        self.complete: Future[None] = Future()
        self._settle()

    def answer(self, answer: Answer) -> None:
        """The first one of each counts."""
        if answer.instance in self.missing:
            self.answers[answer.instance] = answer
            self.leave(answer.instance)

    def leave(self, instance: str) -> None:
        """It is not waited for."""
        self.missing.discard(instance)
        self._settle()

    def _settle(self) -> None:
        if not self.missing and not self.complete.done():
            self.complete.set_result(None)


class Hub:
    """Environments, and everybody who follows them. Safe in any thread."""

    def __init__(self) -> None:
        self.keys: Final = Keys()
        self.trust: Final = self.keys.trust()
        secret = "".join(secrets.choice(token_text.ALPHABET) for _ in range(token_text.SECRET_LENGTH))
        self.token: Final = token_text.mint("client", secret, self.keys.anchor)
        self._lock = threading.RLock()
        self._histories: dict[tuple[str, str], History] = {}
        self._ballots: list[tuple[History, Ballot]] = []
        self._latest: dict[History, Ballot] = {}
        self._links: list[MemoryLink] = []
        self._stopped = False
        watch(self, Hub._after_fork)

    # --- what an author does ---------------------------------------------------------------------------------------------------

    @property
    def places(self) -> list[str]:
        return ["/".join(place) for place in self._histories]

    def add(self, history: History) -> None:
        with self._lock:
            self._histories[history.namespace, history.environment] = history

    def head(self, place: tuple[str, str]) -> Cursor:
        """Raises NotFound."""
        with self._lock:
            return self._history(place).latest.cursor

    def move(self, place: tuple[str, str], commit: Callable[[History], Cursor]) -> Ballot:
        """A new version is on its way when this returns; the latest one's ballot when ``commit`` changed nothing. Raises NotFound."""
        with self._lock:
            history = self._history(place)
            before = history.latest.cursor
            cursor = commit(history)
            if cursor == before:
                return self._latest.get(history) or Ballot(cursor, ())
            readers = [link for link in self._links if link.follows(history)]
            ballot = Ballot(cursor, {link.instance for link in readers})
            self._ballots = [(of, each) for of, each in self._ballots if not each.complete.done()]
            self._ballots.append((history, ballot))
            self._latest[history] = ballot
            for link in readers:
                link.advance(history)
            return ballot

    def _history(self, place: tuple[str, str]) -> History:
        if place not in self._histories:
            raise NotFound(f"this server has no environment {'/'.join(place)}; make it with create()")
        return self._histories[place]

    # --- being away ------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for link in tuple(self._links):
                link.cut(Unavailable("the in-memory server was stopped"))

    def start(self) -> None:
        with self._lock:
            self._stopped = False

    def reached(self) -> None:
        """Raises Unavailable while stopped."""
        if self._stopped:
            raise Unavailable("the in-memory server is stopped")

    def _after_fork(self) -> None:
        """A child has a server of its own, with the same past and no clients yet."""
        self._lock = threading.RLock()
        self._links, self._ballots = [], []

    # --- clients ---------------------------------------------------------------------------------------------------------------

    def connect(self, token: str) -> MemoryLink:
        """Raises Unavailable, Unauthenticated."""
        self.reached()
        if token != self.token:
            raise Unauthenticated("the in-memory server knows one token, InMemoryServer.token; pass that one")
        return MemoryLink(self)

    def hear(self, link: MemoryLink, data: bytes) -> None:
        """One frame of a client."""
        with self._lock:
            match _decode(data):
                case frames.Hello() as hello if not self._stopped:
                    self._links.append(link)
                    link.welcome(hello, self._histories)
                case frames.Receipt() as receipt:
                    self._answered(link, receipt)
                case frames.Resync() as resync:
                    link.resync(resync)
                case frames.Heartbeat() as heartbeat:
                    link.push(frames.HeartbeatAck(echo_us=heartbeat.sent_at_us, received_at_us=_now_us()))

    def left(self, link: MemoryLink) -> None:
        with self._lock:
            if link not in self._links:
                return
            self._links.remove(link)
            for history, ballot in self._ballots:
                if link.follows(history):
                    ballot.leave(link.instance)

    def _answered(self, link: MemoryLink, receipt: frames.Receipt) -> None:
        """Applied covers what came before it and was not answered for."""
        history = link.history_of(receipt.subscription)
        for of, ballot in self._ballots:
            number = ballot.cursor.number
            if of is history and number == receipt.number:
                ballot.answer(link.answer(receipt, receipt.state))
            elif of is history and number < receipt.number and receipt.state != "rejected":
                ballot.answer(link.answer(receipt, "superseded", number))
        link.push(frames.ReceiptAck(seq=receipt.seq))


class MemoryLink:
    """A client's connection. What a client's loop calls is async; the rest is called by the server under its lock."""

    transport: Literal["websocket", "polling"] = "websocket"

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[bytes | HeliographError] = asyncio.Queue()
        self._hello: frames.Hello | None = None
        self._followed: dict[int, tuple[History, frames.Subscription]] = {}

    # --- the client's side -----------------------------------------------------------------------------------------------------

    async def run(self, take: Take) -> None:
        while True:
            told = await self._inbox.get()
            if isinstance(told, HeliographError):
                raise told
            take(decode(told))

    async def send(self, frames: Sequence[frames.FromClient]) -> None:
        for frame in frames:
            self._hub.hear(self, _encode(frame))

    async def close(self) -> None:
        self._hub.left(self)

    # --- the server's side -----------------------------------------------------------------------------------------------------

    @property
    def instance(self) -> str:
        return self._hello.instance if self._hello else ""

    def follows(self, history: History) -> bool:
        return any(followed is history for followed, _ in self._followed.values())

    def history_of(self, subscription: int) -> History | None:
        found = self._followed.get(subscription)
        return found[0] if found else None

    def welcome(self, hello: frames.Hello, histories: Mapping[tuple[str, str], History]) -> None:
        self._hello = hello
        now = _now_us()
        limits = frames.Limits(max_frame_bytes=frames.MAX_CLIENT_FRAME, max_subscriptions=frames.MAX_SUBSCRIPTIONS)
        self.push(
            frames.Welcome(
                connection=secrets.token_hex(8),
                node="in-memory",
                region="in-memory",
                received_at_us=now,
                sent_at_us=now,
                heartbeat_s=HEARTBEAT_S,
                receipt_jitter_ms=0,
                sample=True,
                limits=limits,
            )
        )
        for wanted in hello.subscriptions:
            self._subscribe(wanted, histories.get((wanted.namespace, wanted.environment)))

    def _subscribe(self, wanted: frames.Subscription, history: History | None) -> None:
        if history is None:
            missing = f"there is no environment {wanted.namespace}/{wanted.environment}"
            self.push(frames.ErrorFrame(code=NotFound.code, detail=missing, subscription=wanted.id))
            return
        self._followed[wanted.id] = (history, wanted)
        self._bring(history.bring(names.view(wanted.view), wanted.have), wanted, history)

    def advance(self, history: History) -> None:
        for of, wanted in tuple(self._followed.values()):
            if of is history:
                self._bring(history.bring(names.view(wanted.view), wanted.have), wanted, history)

    def resync(self, asked: frames.Resync) -> None:
        if (followed := self._followed.get(asked.subscription)) is not None:
            history, wanted = followed
            self._bring(history.snapshot(names.view(wanted.view), asked.have), wanted, history)

    def answer(self, receipt: frames.Receipt, state: frames.State, number: int | None = None) -> Answer:
        app = self._hello.fingerprint.app if self._hello else ""
        return Answer(
            instance=self.instance,
            app=app,
            number=number or receipt.number,
            state=state,
            reason=receipt.reason if state == receipt.state else None,
        )

    def push(self, frame: frames.FromServer) -> None:
        self._put(_encode(frame))

    def cut(self, why: HeliographError) -> None:
        self._put(why)

    def _bring(self, frame: Frame, wanted: frames.Subscription, history: History) -> None:
        self._followed[wanted.id] = (history, msgspec.structs.replace(wanted, have=history.latest.cursor))
        self.push(msgspec.structs.replace(frame, subscription=wanted.id))

    def _put(self, told: bytes | HeliographError) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended, and it with it
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, told)


class InMemory:
    """The network between one hub and its clients."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @asynccontextmanager
    async def open(self, options: Options, folder: Path | None, disk: DiskWriter) -> AsyncIterator[Reach]:  # noqa: ARG002
        yield _Reach(self._hub, options.token)


class _Reach:
    def __init__(self, hub: Hub, token: str) -> None:
        self._hub = hub
        self._token = token

    async def recall(self) -> Trust | None:
        """As a client that was here before: the root alone opens nothing."""
        return self._hub.trust

    async def trust(self) -> Trust:
        self._hub.reached()
        return self._hub.trust

    def doubt(self) -> None:
        """There is one trust root, and it stays."""

    async def websocket(self) -> Link:
        return self._hub.connect(self._token)

    def polling(self, reporter: Reporter, wanted: Wanted, *, random: Random) -> Link:  # noqa: ARG002
        return _Nothing()


class _Nothing:
    """What polling finds where no socket can be had either."""

    transport: Literal["websocket", "polling"] = "polling"

    async def run(self, take: Take) -> None:  # noqa: ARG002
        raise Unavailable("the in-memory server is stopped")

    async def send(self, frames: Sequence[frames.FromClient]) -> None: ...

    async def close(self) -> None: ...


def _now_us() -> int:
    return time.time_ns() // 1000
