"""The server's side of the protocol in memory, for any number of clients in any threads and event loops."""

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
from typing import Any, Final, Literal

import msgspec

from heliograph.client import _blocking
from heliograph.client._client import Heliograph
from heliograph.client._connection import Retry
from heliograph.client._disk import DiskWriter
from heliograph.client._forks import watch
from heliograph.client._link import Link, Take
from heliograph.client._network import Network, Reach, Wanted
from heliograph.client._options import Options
from heliograph.client._portal import refuse_in_a_loop
from heliograph.client._transport_polling import Reporter
from heliograph.client._transport_websocket import decode
from heliograph.client.testing._history import Frame, History, Keys
from heliograph.core import frames, names
from heliograph.core import token as token_text
from heliograph.core.errors import HeliographError, NotFound, TimedOut, Unauthenticated, Unavailable
from heliograph.core.records import Cursor
from heliograph.core.trust import Trust

ANSWERS_S: Final = 5.0
HEARTBEAT_S: Final = 10.0
QUICK: Final = Retry(first_s=0.01, cap_s=0.1)
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


class Publication:
    """A version, and what the clients that were connected when it was published answer. A client that leaves is not waited for."""

    def __init__(self, cursor: Cursor, asked: Iterable[str]) -> None:
        self.cursor = cursor
        self._missing = set(asked)
        self._answers: dict[str, Answer] = {}
        self._complete: Future[None] = Future()
        self._settle()

    def __repr__(self) -> str:
        return f"Publication(version {self.number}, {len(self._answers)} answers, {len(self._missing)} missing)"

    @property
    def number(self) -> int:
        return self.cursor.number

    @property
    def answers(self) -> tuple[Answer, ...]:
        """So far, in the order in which they came."""
        return tuple(self._answers.values())

    @property
    def complete(self) -> bool:
        return self._complete.done()

    async def answered(self, timeout: float = ANSWERS_S) -> tuple[Answer, ...]:  # noqa: ASYNC109
        """Every answer. Raises TimedOut after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(asyncio.wrap_future(self._complete))
        except TimeoutError:
            raise self._too_late(timeout) from None
        return self.answers

    def wait(self, timeout: float = ANSWERS_S) -> tuple[Answer, ...]:
        """As `answered`, for tests without an event loop."""
        refuse_in_a_loop()
        try:
            self._complete.result(timeout)
        except TimeoutError:
            raise self._too_late(timeout) from None
        return self.answers

    def answer(self, answer: Answer) -> None:
        """For the server."""
        if answer.instance in self._missing:
            self._missing.discard(answer.instance)
            self._answers[answer.instance] = answer
            self._settle()

    def leave(self, instance: str) -> None:
        """For the server."""
        self._missing.discard(instance)
        self._settle()

    def _settle(self) -> None:
        if not self._missing and not self._complete.done():
            self._complete.set_result(None)

    def _too_late(self, timeout_s: float) -> TimedOut:
        return TimedOut(f"version {self.number}: {len(self._missing)} clients did not answer within {timeout_s:g} s")


class InMemoryServer:
    """One or more environments in memory. Safe to use from any thread.

    Args:
        documents: the configs of the first version that clients see, name -> any JSON.
        namespace, environment: where they are, and what clients follow unless they say otherwise.
    """

    url: Final = "http://in-memory"

    def __init__(
        self, documents: Mapping[str, Any] | None = None, *, namespace: str = "test", environment: str = "test"
    ) -> None:
        self._lock = threading.RLock()
        self._keys = Keys()
        self.trust: Final = self._keys.trust()
        self._first = (namespace, environment)
        self._histories: dict[tuple[str, str], History] = {}
        self._publications: list[tuple[History, Publication]] = []
        self._latest: dict[History, Publication] = {}
        self._links: list[MemoryLink] = []
        self._stopped = False
        secret = "".join(secrets.choice(token_text.ALPHABET) for _ in range(token_text.SECRET_LENGTH))
        self.token: Final = token_text.mint("client", secret, self._keys.anchor)
        self.network: Final[Network] = _InMemory(self)
        self.create(namespace, environment, documents)
        watch(self, InMemoryServer._after_fork)

    def __repr__(self) -> str:
        return f"InMemoryServer({', '.join('/'.join(place) for place in self._histories)})"

    # --- clients ---------------------------------------------------------------------------------------------------------------

    def client(self, **options: Any) -> Heliograph:
        """An async client of this server. ``options`` as for `heliograph.client.Heliograph`; it keeps nothing on disk unless they say so."""
        return Heliograph(self.url, **self._options(options))

    def blocking_client(self, **options: Any) -> _blocking.Heliograph:
        """A blocking client of this server; see `client`."""
        return _blocking.Heliograph(self.url, **self._options(options))

    def _options(self, told: Mapping[str, Any]) -> dict[str, Any]:
        usual: dict[str, Any] = {"token": self.token, "cache_dir": None, "retry": QUICK, "network": self.network}
        if not {"namespace", "environment", "subscriptions"} & told.keys():
            usual["namespace"], usual["environment"] = self._first
        return usual | dict(told)

    # --- what an author does ---------------------------------------------------------------------------------------------------

    def create(self, namespace: str, environment: str, documents: Mapping[str, Any] | None = None) -> None:
        """Another environment. Raises InvalidName, InvalidDocument."""
        made = History(self._keys, namespace, environment)
        if documents:
            made.publish(documents)
        with self._lock:
            self._histories[namespace, environment] = made

    def publish(
        self, changes: Mapping[str, Any], *, namespace: str | None = None, environment: str | None = None
    ) -> Publication:
        """A new version: a document for each name; `heliograph.client.ABSENT` deletes. It is on its way when this returns.
        What would change nothing makes no version, and answers with the latest one.

        Raises InvalidName, InvalidDocument, InvalidRequest, NotFound; then nothing is published.
        """
        return self._move(namespace, environment, lambda history: history.publish(changes))

    def rollback(self, to: int, *, namespace: str | None = None, environment: str | None = None) -> Publication:
        """A new version with the content of version ``to``, unless that is what there is already. Raises NotFound."""
        return self._move(namespace, environment, lambda history: history.rollback(to))

    def head(self, *, namespace: str | None = None, environment: str | None = None) -> Cursor:
        """The latest version. Raises NotFound."""
        with self._lock:
            return self._history(namespace, environment).latest.cursor

    def _move(self, namespace: str | None, environment: str | None, commit: Callable[[History], Cursor]) -> Publication:
        with self._lock:
            history = self._history(namespace, environment)
            before = history.latest.cursor
            cursor = commit(history)
            if cursor == before:
                return self._latest.get(history) or Publication(cursor, ())
            readers = [link for link in self._links if link.follows(history)]
            publication = Publication(cursor, {link.instance for link in readers})
            self._publications = [(of, each) for of, each in self._publications if not each.complete]
            self._publications.append((history, publication))
            self._latest[history] = publication
            for link in readers:
                link.advance(history)
            return publication

    def _history(self, namespace: str | None, environment: str | None) -> History:
        place = (namespace or self._first[0], environment or self._first[1])
        if place not in self._histories:
            raise NotFound(f"this server has no environment {'/'.join(place)}; make it with create()")
        return self._histories[place]

    # --- being away ------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Cuts every client off, until `start`; they run on what they have."""
        with self._lock:
            self._stopped = True
            for link in tuple(self._links):
                link.cut(Unavailable("the in-memory server was stopped"))

    def start(self) -> None:
        """After `stop`: clients come back by themselves."""
        with self._lock:
            self._stopped = False

    def _after_fork(self) -> None:
        """A child has a server of its own, with the same past and no clients yet."""
        self._lock = threading.RLock()
        self._links, self._publications = [], []

    # --- for links -------------------------------------------------------------------------------------------------------------

    def reached(self) -> None:
        """Raises Unavailable while stopped."""
        if self._stopped:
            raise Unavailable("the in-memory server is stopped")

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
            for history, publication in self._publications:
                if link.follows(history):
                    publication.leave(link.instance)

    def _answered(self, link: MemoryLink, receipt: frames.Receipt) -> None:
        """Applied covers what came before it and was not answered for."""
        history = link.history_of(receipt.subscription)
        for of, publication in self._publications:
            if of is history and publication.number == receipt.number:
                publication.answer(link.answer(receipt, receipt.state))
            elif of is history and publication.number < receipt.number and receipt.state != "rejected":
                publication.answer(link.answer(receipt, "superseded", publication.number))
        link.push(frames.ReceiptAck(seq=receipt.seq))


class MemoryLink:
    """A client's connection. What a client's loop calls is async; the rest is called by the server under its lock."""

    transport: Literal["websocket", "polling"] = "websocket"

    def __init__(self, server: InMemoryServer) -> None:
        self._server = server
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
            self._server.hear(self, _encode(frame))

    async def close(self) -> None:
        self._server.left(self)

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


class _InMemory:
    """The network between one server and its clients."""

    def __init__(self, server: InMemoryServer) -> None:
        self._server = server

    @asynccontextmanager
    async def open(self, options: Options, folder: Path | None, disk: DiskWriter) -> AsyncIterator[Reach]:  # noqa: ARG002
        yield _Reach(self._server, options.token)


class _Reach:
    def __init__(self, server: InMemoryServer, token: str) -> None:
        self._server = server
        self._token = token

    async def recall(self) -> Trust | None:
        """As a client that was here before: the root alone opens nothing."""
        return self._server.trust

    async def trust(self) -> Trust:
        self._server.reached()
        return self._server.trust

    def doubt(self) -> None:
        """There is one trust root, and it stays."""

    async def websocket(self) -> Link:
        return self._server.connect(self._token)

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
