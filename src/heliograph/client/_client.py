"""The client itself: what an application opens, reads and closes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlsplit

import msgspec

from heliograph.client._codes import error_of
from heliograph.client._connection import Retry
from heliograph.client._dispatch import Feed, call_each
from heliograph.client._engine import Engine, Listeners, open_engine, unknown
from heliograph.client._environment import Environment, Reader
from heliograph.client._forks import watch
from heliograph.client._hello import require_room
from heliograph.client._live import Callback, Live
from heliograph.client._network import Network, OverHttp
from heliograph.client._options import Options
from heliograph.client._status import Alarm, Phase, Status
from heliograph.client._values import sayable
from heliograph.core import token as token_text
from heliograph.core.digest import Digest, unspell
from heliograph.core.errors import HeliographError, Invalid, InvalidRequest, NotReady, TimedOut
from heliograph.core.frames import MAX_SELECTORS, MAX_SUBSCRIPTIONS

DEFAULT_CACHE: Final = Path("~/.cache/heliograph")
MAX_LABELS: Final = 32
MAX_LABEL_TEXT: Final = 200
DISK_GRACE_S: Final = 2.0  # a start from the disk waits this long for the network, unless it fails before
REPORT_GRACE_S: Final = 1.0  # a closing client waits this long for its receipts to be durable
CALLBACK_GRACE_S: Final = 5.0  # and this long for callbacks that are running
CUT_SHORT_S: Final = 2.0  # a close that is cancelled waits this long for what it cancels
_log = logging.getLogger("heliograph")


@dataclass(frozen=True, slots=True)
class Subscription:
    """One namespace and environment, and what of it is wanted: config names, folders (``checkout/``), or ``""`` for everything."""

    namespace: str
    environment: str
    view: Sequence[str] = ("",)


class Heliograph(Reader):
    """Live configuration from a Heliograph server: verified, kept on disk, and answered for with a receipt for every version.

        async with Heliograph("https://config.example", token=token, namespace="shop", environment="production") as client:
            limits = client.config("checkout/limits")
            print(limits["max_items"])

    Entering returns when every subscription has its state: from the network or, when that is down, from the disk copy, which
    `status` then says. A client of several subscriptions reads by `environment`; the methods of `Reader` are for a client of one.

    Args:
        url: the API's address; everything else is discovered there.
        token: a client token. It carries the trust anchor; of any other token pass ``trust``.
        namespace, environment, view: the one subscription; or ``subscriptions`` for several.
        trust: the trust anchor (``sha256:…``), instead of the token's.
        app, labels: what operators see of this instance and group it by; never secret.
        cache_dir: where the disk copy and the instance id are kept; None for neither. Processes may share it.
        start_timeout: seconds to wait at most for the first state.
        require_network: entering fails with `TimedOut` rather than start from the disk copy.
        proxy: an HTTP proxy's address; the environment's proxy variables are not read.
        ca_file: certificates in PEM of the authorities to trust for https and wss, instead of the system's.
        tls: an `ssl.SSLContext`, for everything that `ca_file` is too little for.
        retry: how a lost connection is opened again.
        network: another way to a server, from `heliograph.client.testing`.

    A client belongs to the process and the event loop that started it. In a child made by fork everything raises InvalidRequest; open one
    there, or use `heliograph.blocking`, which goes on in the child by itself.

    Raises InvalidName, InvalidRequest and Unauthenticated for arguments that cannot work.
    """

    _goes_on_in_child: ClassVar[bool] = False

    def __init__(
        self,
        url: str,
        *,
        token: str,
        namespace: str | None = None,
        environment: str | None = None,
        view: Sequence[str] = ("",),
        subscriptions: Iterable[Subscription] = (),
        trust: str | None = None,
        app: str = "",
        labels: Mapping[str, str] | None = None,
        cache_dir: Path | str | None = DEFAULT_CACHE,
        start_timeout: float = 10.0,
        require_network: bool = False,
        proxy: str | None = None,
        tls: ssl.SSLContext | None = None,
        ca_file: Path | str | None = None,
        retry: Retry = Retry(),  # noqa: B008  frozen
        network: Network | None = None,
    ) -> None:
        wanted = _wanted(namespace, environment, view, subscriptions)
        if tls is not None and ca_file is not None:
            raise InvalidRequest("pass tls or ca_file, not both: a context has its authorities already")
        app = _short(app)
        self._options = Options(
            url=_http_address(url),
            token=token,
            anchor=_anchor(token, trust),
            app=app,
            labels=_labels(labels or {}),
            folder=None if cache_dir is None else Path(cache_dir).expanduser() / _place(url, app),
            proxy=proxy,
            tls=tls,
            ca_file=None if ca_file is None else Path(ca_file).expanduser(),
            retry=retry,
        )
        self._network = network or OverHttp()
        self._start_timeout = start_timeout
        self._require_network = require_network
        self._lives = tuple(Live(one.namespace, one.environment, tuple(one.view), self._spawn) for one in wanted)
        require_room(self._options.fingerprint(), self._lives)
        self._phase: Phase = "new"
        self._fatal: HeliographError | None = None
        self._engine: Engine | None = None
        self._owner: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._callbacks: set[asyncio.Task[None]] = set()
        self._unstarted: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._alarm_feeds: list[Feed[Alarm, Alarm]] = []
        self._progress = asyncio.Event()
        self._closing = asyncio.Event()
        self._forked = False

    def __repr__(self) -> str:
        return f"Heliograph({self._options.url!r}, {', '.join(str(live) for live in self._lives)}, {self._phase})"

    # --- opening and closing ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """What ``async with`` does on entering. Once only.

        Raises TimedOut or Unavailable when no state came in time, what the server refuses us with (Unauthenticated, Forbidden, NotFound …),
        UntrustedRoot when it is not the server of this token, SchemaViolation or Invalid when the application rejects the first state.
        """
        if self._phase != "new":
            raise InvalidRequest("a client starts once; make a new one")
        self._phase = "starting"
        watch(self, Heliograph._after_fork)
        self._owner = asyncio.create_task(self._own(), name="heliograph")
        self._owner.add_done_callback(self._ended)
        try:
            await self._started(self._owner)
        except BaseException:
            await self.close()
            raise
        if self._phase == "starting":
            self._phase = "running"

    async def close(self) -> None:
        """Sends what receipts it can, lets callbacks finish, writes the disk copy, and leaves no task behind. Reading goes on working.

        From a callback of this client it only begins: it waits for callbacks, and one that waited for it would wait for itself.
        """
        self._closing.set()
        if self._owner is None or self._forked:
            self._phase = "closed"
            return
        self._progress.set()
        if asyncio.current_task() not in self._callbacks:
            await self._until_ended(self._owner)

    async def _until_ended(self, owner: asyncio.Task[None]) -> None:
        """Cut short, it cuts the owner short too. It waits for that, but not for ever: the owner may be waiting for a callback that waits for us.

        That another close was cut short is no cancel of ours.
        """
        try:
            if not owner.done():
                await asyncio.shield(asyncio.gather(owner, return_exceptions=True))
        except asyncio.CancelledError:
            owner.cancel()
            await asyncio.wait({owner}, timeout=CUT_SHORT_S)
            raise
        finally:
            self._phase = "closed"
        if not owner.cancelled():
            owner.result()

    def _after_fork(self) -> None:
        """Its loop, its tasks and its connection are the parent's, and go on there."""
        if self._phase == "closed" or self._goes_on_in_child:
            return  # what was there stays readable
        self._forked = True
        self._phase, self._engine = "stopped", None
        self._fatal = InvalidRequest(
            "this client was opened before this process was forked, and belongs to its parent; open one here, after the fork, or use "
            "heliograph.blocking, which goes on in the child by itself"
        )
        for live in self._lives:
            live.lose(self._fatal)

    # --- looking ---------------------------------------------------------------------------------------------------------------

    def environment(self, namespace: str, environment: str) -> Environment:
        """One of the client's subscriptions. Raises InvalidRequest when there is none for it."""
        for live in self._lives:
            if (live.namespace, live.environment) == (namespace, environment):
                return Environment(live)
        raise InvalidRequest(f"this client has no subscription to {namespace}/{environment}")

    @property
    def status(self) -> Status:
        """This moment."""
        engine, transport = self._engine, self._engine.connection.transport if self._engine else "disk"
        region, node = engine.server if engine else (None, None)
        return Status(
            phase=self._phase,
            connected=transport != "disk",
            transport=transport,
            instance=engine.identity.instance if engine else None,
            incarnation=engine.identity.incarnation if engine else None,
            region=region,
            node=node,
            subscriptions=engine.subscriptions() if engine else tuple(unknown(live) for live in self._lives),
            last_error=self._fatal or (engine.connection.last_error if engine else None),
            receipts_pending=engine.pending if engine else 0,
            clock_offset_ms=engine.clock_offset_ms if engine else None,
            disk=engine.disk_state if engine else "off",
        )

    def on_alarm(self, callback: Callback[Alarm]) -> Callback[Alarm]:
        """Calls ``callback`` when the server says something that does not verify; usable as a decorator. The last good state stays."""
        feed: Feed[Alarm, Alarm] = Feed(lambda alarm: alarm, self._alarm_feeds.remove)
        if self._closing.is_set():
            feed.mailbox.close()
        self._alarm_feeds.append(feed)
        self._spawn(lambda: call_each(feed, callback))
        return callback

    @property
    def _live(self) -> Live:
        if len(self._lives) != 1:
            raise InvalidRequest("this client has several subscriptions; say which: client.environment(namespace, environment)")
        return self._lives[0]

    # --- starting --------------------------------------------------------------------------------------------------------------

    async def _started(self, owner: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self._ready(loop.time() - began):
            self._progress.clear()
            until = DISK_GRACE_S if self._startable else self._start_timeout
            left = began + min(until, self._start_timeout) - loop.time()
            if left <= 0:
                raise self._why_not_started()
            await _wait_for_either(self._progress, owner, left)
            if owner.done():
                owner.result()
                raise NotReady("the client was closed while it started")

    def _ready(self, elapsed_s: float) -> bool:
        """Raises what makes waiting pointless."""
        if self._fatal is not None:
            raise self._fatal
        engine = self._engine
        if engine is None:
            return False
        if engine.unserved is not None:
            raise engine.unserved
        self._raise_first_rejection(engine)
        return engine.settled or (self._startable and (engine.connection.failed_once or elapsed_s >= DISK_GRACE_S))

    @property
    def _startable(self) -> bool:
        """The disk had everything, and that is enough."""
        return not self._require_network and self._engine is not None and all(live.state is not None for live in self._lives)

    def _raise_first_rejection(self, engine: Engine) -> None:
        for live, status in zip(self._lives, engine.subscriptions(), strict=True):
            if live.state is None and status.rejected is not None:
                raise Invalid(
                    f"version {status.rejected.cursor.number} of {live} is rejected by this application: {status.rejected.reason}"
                )

    def _why_not_started(self) -> HeliographError:
        status = self.status
        if status.alarm is not None:
            return error_of(status.alarm.code, status.alarm.detail)
        cause = f"; {status.last_error}" if status.last_error else ""
        return TimedOut(
            f"no configuration within {self._start_timeout:g} s from {self._options.url}{cause}. Check the address and that the server "
            "runs; a client that ran here before would start from its disk copy (cache_dir)"
        )

    # --- the owner of everything -----------------------------------------------------------------------------------------------

    async def _own(self) -> None:
        async with open_engine(
            self._options, self._network, self._lives, Listeners(self._raise_alarm, self._progress.set)
        ) as engine:
            self._engine = engine
            self._progress.set()
            try:
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    await self._follow(engine, group)
            finally:
                self._group = None

    async def _follow(self, engine: Engine, group: asyncio.TaskGroup) -> None:
        """Until it is to close."""
        while self._unstarted:
            self._call(group, self._unstarted.pop(0))
        disk = group.create_task(engine.disk.run())
        connection = group.create_task(self._connect(engine))
        await self._closing.wait()
        await self._report_last(engine)
        await self._let_callbacks_finish()
        disk.cancel()
        connection.cancel()

    async def _connect(self, engine: Engine) -> None:
        try:
            await engine.connection.run()
        except HeliographError as error:
            self._stop(error)

    def _ended(self, owner: asyncio.Task[None]) -> None:
        """Loudly, when it was not asked to: a fault of ours must not look like calm."""
        fault = None if owner.cancelled() else owner.exception()
        if self._phase == "running" and fault is not None:
            _log.critical("the client ended unexpectedly", exc_info=fault)
            self._stop(HeliographError("the client ended unexpectedly; see the log of `heliograph`"))
        elif self._phase == "running" and not self._closing.is_set():
            self._stop(HeliographError("the client's event loop ended, or cancelled what was not its own"))
        if self._closing.is_set():
            self._phase = "closed"

    def _stop(self, error: HeliographError) -> None:
        _log.error("the client stops following the server, the last good version stays: %s", error)
        self._fatal = error
        self._phase = "stopped" if self._phase == "running" else self._phase
        for live in self._lives:
            live.failed(error)
        self._progress.set()

    async def _report_last(self, engine: Engine) -> None:
        """A short life has its receipts, too."""
        engine.hurry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPORT_GRACE_S):
                while engine.pending and engine.connection.transport != "disk":
                    self._progress.clear()
                    await self._progress.wait()

    async def _let_callbacks_finish(self) -> None:
        for live in self._lives:
            live.close()
        for feed in tuple(self._alarm_feeds):
            feed.mailbox.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALLBACK_GRACE_S):
                while self._callbacks:  # one that runs may add another
                    await asyncio.wait(self._callbacks)
        self._group = None  # none begins any more, whatever those that end now ask for
        for task in tuple(self._callbacks):
            task.cancel()

    def _spawn(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A callback's task; before the client starts, it waits for that."""
        if self._group is not None:
            self._call(self._group, start)
        elif not self._closing.is_set():
            self._unstarted.append(start)

    def _call(self, group: asyncio.TaskGroup, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = group.create_task(start())
        self._callbacks.add(task)
        task.add_done_callback(self._callbacks.discard)

    def _raise_alarm(self, alarm: Alarm) -> None:
        for feed in tuple(self._alarm_feeds):
            feed.mailbox.put(alarm)


async def _wait_for_either(event: asyncio.Event, task: asyncio.Task[None], timeout_s: float) -> None:
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, task}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def _wanted(
    namespace: str | None, environment: str | None, view: Sequence[str], subscriptions: Iterable[Subscription]
) -> list[Subscription]:
    several = list(subscriptions)
    if isinstance(view, str):
        raise InvalidRequest("a view is a list of selectors, such as ['checkout/']")
    if namespace is not None and environment is not None:
        several.insert(0, Subscription(namespace, environment, view))
    elif namespace is not None or environment is not None or not several:
        raise InvalidRequest("say what to follow: namespace=… and environment=…, or subscriptions=[Subscription(…), …]")
    if any(len(one.view) > MAX_SELECTORS for one in several):
        raise InvalidRequest(f"a view has at most {MAX_SELECTORS} selectors; use folders, such as 'checkout/'")
    if len({(one.namespace, one.environment) for one in several}) != len(several) or len(several) > MAX_SUBSCRIPTIONS:
        raise InvalidRequest(
            f"at most {MAX_SUBSCRIPTIONS} subscriptions, one for each namespace and environment; put selectors into one view"
        )
    return several


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(f"an instance has at most {MAX_LABELS} labels")
    return {_short(name): _short(value) for name, value in labels.items()}


def _short(text: str) -> str:
    if len(text) > MAX_LABEL_TEXT:
        raise InvalidRequest(f"the app and the labels of an instance have at most {MAX_LABEL_TEXT} characters each")
    return sayable(text)


def _http_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise InvalidRequest("the server's address begins with http:// or https://, such as http://localhost:7070")
    return url.rstrip("/")


def _anchor(token: str, trust: str | None) -> Digest:
    """Raises Unauthenticated for what is no token, InvalidRequest without an anchor."""
    anchor = trust or token_text.parse(token).anchor
    if anchor is None:
        raise InvalidRequest("this token carries no trust anchor; use a client token, or pass trust='sha256:…'")
    try:
        unspell(anchor)
    except ValueError:
        raise InvalidRequest("trust is the fingerprint of the signing root: sha256: and 64 hex digits") from None
    return Digest(anchor)


def _place(url: str, app: str) -> str:
    """One folder for each server and application, so that an instance id stays with its application."""
    return hashlib.sha256(msgspec.json.encode([url.rstrip("/"), app])).hexdigest()[:16]
