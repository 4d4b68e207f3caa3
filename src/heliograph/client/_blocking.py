"""The client for threads: the very same client in the background, and a thin way to it.

What is read is plain memory in whatever thread asks. Everything else is handed to the one event loop of `heliograph.client._portal` and waited
for. Nothing of the protocol, of trust or of dispatch is here.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import ssl
import threading
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from heliograph.client import _client
from heliograph.client._bind import Fitter, fitter
from heliograph.client._client import DEFAULT_CACHE, Subscription
from heliograph.client._connection import Retry
from heliograph.client._dispatch import Feed
from heliograph.client._forks import OfThisProcess, watch
from heliograph.client._live import Live, Validator
from heliograph.client._network import Network
from heliograph.client._portal import Portal, Work, Workers, refuse_in_a_loop
from heliograph.client._reading import BoundReading, ConfigReading, Reading, at, changed, every
from heliograph.client._state import Change, Update
from heliograph.client._status import Alarm, Status
from heliograph.client._values import ABSENT, Absent
from heliograph.core.errors import InvalidRequest, NotReady, TimedOut
from heliograph.core.records import Cursor

T = TypeVar("T")
N_contra = TypeVar("N_contra", contravariant=True)
Callback = Callable[[T], object]
Translate = Callable[[Update], T | None]

CLOSE_S: Final = 10.0
CALL_S: Final = 5.0  # what only hands something to the loop
START_SLACK_S: Final = 10.0  # beyond start_timeout: a start that failed also closes
_log = logging.getLogger("heliograph")
_portal: Final = Portal()


class Inner(_client.Heliograph):
    """The client in the loop. After a fork the child keeps it only to go on from what it held."""

    @property
    def lives(self) -> Sequence[Live]:
        return self._lives

    def inherit(self, parent: Inner) -> None:
        """Before the start. A parent that had its state proves enough: the child starts without waiting for the network."""
        engine = parent._engine
        for mine, theirs in zip(self._lives, parent._lives, strict=True):
            mine.inherit(theirs, engine.held(theirs) if engine else None)
        self._require_network = False

    def _after_fork(self) -> None:
        """Left as it was for `inherit`; nobody runs it any more."""


class Follower(Protocol):
    """A callback, attached anew to the client of each process."""

    def attach(self, inner: Inner) -> None: ...


class Place:
    """One subscription of a client, in whichever process it goes on."""

    def __init__(self, client: Heliograph, number: int) -> None:
        self.client = client
        self._number = number

    @property
    def live(self) -> Live:
        return self.of(self.client.inner)

    def of(self, inner: Inner) -> Live:
        return inner.lives[self._number]

    def changes(self, translate: Translate[T], *, initial: bool, timeout: float | None) -> Changes[T]:
        feed = self.client.do(lambda: self.live.feed(translate, initial=initial))
        return Changes(self.client, feed, timeout)

    def follow(self, translate: Translate[T], callback: Callback[T], *, initial: bool = False) -> Watch[T]:
        watching = Watch(self, translate, self.client.in_thread(callback), initial=initial)
        self.client.follow(watching)
        return watching


class Watch(OfThisProcess, Generic[T]):
    """A callback that is called until `cancel`."""

    def __init__(
        self, place: Place, translate: Translate[T], callback: Callable[[T], Awaitable[None]], *, initial: bool
    ) -> None:
        self._place = place
        self._translate = translate
        self._callback = callback
        self._initial = initial
        self._feed: Feed[Update, T] | None = None

    def attach(self, inner: Inner) -> None:
        self._feed = self._place.of(inner).follow(self._translate, self._callback, initial=self._initial)
        self._initial = False  # what is there after a fork is not news

    def cancel(self) -> None:
        """No call begins any more; what waits is dropped. One that runs goes on."""
        self._place.client.unfollow(self, self._feed.cancel if self._feed else None)


class _AlarmWatch:
    def __init__(self, callback: Callable[[Alarm], Awaitable[None]]) -> None:
        self._callback = callback

    def attach(self, inner: Inner) -> None:
        inner.on_alarm(self._callback)


class Changes(OfThisProcess, Generic[T]):
    """An iterator that blocks until something changes, and ends when the client closes or `cancel` is called.

    It works from the moment it is made. A step raises TimedOut after ``timeout`` seconds without a change, and the next step goes on from
    there. A reader that falls more than 64 changes behind gets the rest merged. It does not survive a fork: ask for a new one in the child.
    """

    def __init__(self, client: Heliograph, feed: Feed[Update, T], timeout: float | None) -> None:
        self._client = client
        self._inner = client.inner
        self._feed = feed
        self._timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._client.inner is not self._inner:
            raise InvalidRequest("this iterator was made before the fork; ask for a new one in the child")
        try:
            found = self._client.run(lambda: _step(self._feed, self._timeout), self._timeout)
        except NotReady:
            if not self._feed.ended:
                raise
            found = self._feed.take()
        if found is None:
            raise StopIteration
        return found

    def cancel(self) -> None:
        """Ends it at once, also for a thread that waits in it; what waits is dropped."""
        self._client.do(self._feed.cancel)


class Reader(Reading):
    """Everything an application does with one namespace and environment, from any thread.

    What is read is always the last version that verified and that the application accepted. Reading never waits and never fails because
    the network does. The other methods hand something to the client's own thread; they raise InvalidRequest inside a running event loop.
    """

    @property
    @abstractmethod
    def _place(self) -> Place: ...

    @property
    def _live(self) -> Live:
        return self._place.live

    def config(self, name: str) -> Config:
        """A live handle; the config need not exist yet. Raises InvalidName, and InvalidRequest when the view does not cover it."""
        return Config(self._place, self._live.in_view(name))

    def bind(self, name: str, kind: type[T], *, default: T | Absent = ABSENT) -> Bound[T]:
        """The config as an object of a dataclass, a `msgspec.Struct` or a pydantic model, made anew for each version that changes it.

        From now on a version whose document does not fit is rejected as a whole: the last good one stays, and the receipt says why. A
        version without the config is rejected too, unless there is a ``default``. Raises SchemaViolation when what is there now does not
        fit, InvalidRequest when nothing can be bound to the type.
        """
        bound = Bound(self._place, self._live.in_view(name), fitter(kind), default)
        self._place.client.do(lambda: self._live.bind(bound))
        return bound

    def validator(self, check: Validator) -> Validator:
        """Asks ``check`` about every version that changes the view, before it is applied; usable as a decorator.

        It gets an `Update`, runs on the client's own thread and must not block: while it runs, no client of this process hears anything.
        To reject the version raise `heliograph.client.Invalid` with a reason that holds no value; of any other exception only the type is
        told.
        """
        self._place.client.do(lambda: self._live.validators.append(check))
        return check

    def on_change(self, callback: Callback[Update]) -> Callback[Update]:
        """Calls ``callback``, a plain function, for every version that changes something in the view; usable as a decorator.

        Each version at most once, in order, never an older one, over any number of reconnects. The state that the client starts with, from
        the disk or the network, is not a change. All callbacks of a client run on one thread of its own, never two at once; they may block,
        and then the others wait. One that falls more than 64 updates behind gets the rest merged into one. What a callback raises is
        logged and ends nothing.
        """
        self._place.follow(changed, callback)
        return callback

    def on_version(self, callback: Callback[Update]) -> Callback[Update]:
        """As `on_change`, also for versions that change nothing in the view."""
        self._place.follow(every, callback)
        return callback

    def subscribe(self, name: str, callback: Callback[Change], *, pointer: str = "", initial: bool = False) -> Watch[Change]:
        """Calls ``callback`` when the value at ``pointer`` of a config becomes another one. ``initial``: and once with what is there now.

        ``cancel()`` on the answer ends it. Raises InvalidRequest for what is not a JSON Pointer.
        """
        return self.config(name).subscribe(callback, pointer=pointer, initial=initial)

    def wait_for_version(self, number: int, timeout: float | None = None) -> Cursor:
        """Until this application runs on version ``number`` or a later one. ``timeout`` in seconds; None: as long as it takes.

        Raises TimedOut, or what stopped the client for good.
        """
        return self._place.client.run(lambda: self._live.reached(number, timeout), timeout)


class Config(ConfigReading):
    """A live view of one config: every read answers from the version the application runs on at that moment."""

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self.name = name

    @property
    def _live(self) -> Live:
        return self._place.live

    def changes(self, pointer: str = "", *, initial: bool = False, timeout: float | None = None) -> Changes[Change]:
        """``for change in config.changes():`` from now on, until the client closes. ``timeout``: of each step, in seconds."""
        return self._place.changes(at(self.name, pointer), initial=initial, timeout=timeout)

    def subscribe(self, callback: Callback[Change], *, pointer: str = "", initial: bool = False) -> Watch[Change]:
        """See `Environment.subscribe`."""
        return self._place.follow(at(self.name, pointer), callback, initial=initial)


class Bound(BoundReading[T]):
    """A config as an object. ``value`` stays the very same object until a version changes the config."""

    def __init__(self, place: Place, name: str, fit: Fitter[T], default: T | Absent) -> None:
        super().__init__(name, fit, default)
        self._place = place

    @property
    def _live(self) -> Live:
        return self._place.live

    def changes(self, *, initial: bool = False, timeout: float | None = None) -> Changes[Change]:
        """As `Config.changes`; ``before`` and ``value`` are objects of the bound type."""
        return self._place.changes(self._change, initial=initial, timeout=timeout)

    def subscribe(self, callback: Callback[Change], *, initial: bool = False) -> Watch[Change]:
        """As `Config.subscribe`; ``before`` and ``value`` are objects of the bound type."""
        return self._place.follow(self._change, callback, initial=initial)


class Environment(Reader):
    """One of several subscriptions of a client; see `Heliograph.environment`."""

    def __init__(self, place: Place) -> None:
        self.__place = place

    @property
    def _place(self) -> Place:
        return self.__place

    def __repr__(self) -> str:
        return f"Environment({self._live}, version {self._live.number})"


class Heliograph(Reader):
    """Live configuration for programs without an event loop: verified, kept on disk, and answered for with a receipt for every version.

        with Heliograph("https://config.example", token=token, namespace="shop", environment="production") as client:
            limits = client.config("checkout/limits")
            print(limits["max_items"])

    The arguments, and what is read, are those of the async client, `heliograph.client.Heliograph`, which runs here in a background thread
    that all blocking clients of a process share. Every method may be called from any thread.

    **Fork.** A client that was open before a fork goes on in the child by itself, from the first use there: first with what the parent
    held, and at once under an instance id of its own. What was bound stays bound, and callbacks are called in the child too. The parent
    notices nothing.

    **Exit.** A client that is not closed when the interpreter ends is closed then, in silence and within seconds.
    """

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
        retry: Retry = Retry(),  # noqa: B008  frozen
        network: Network | None = None,
    ) -> None:
        self._make = functools.partial(
            Inner,
            url,
            token=token,
            namespace=namespace,
            environment=environment,
            view=view,
            subscriptions=tuple(subscriptions),
            trust=trust,
            app=app,
            labels=labels,
            cache_dir=cache_dir,
            start_timeout=start_timeout,
            require_network=require_network,
            proxy=proxy,
            tls=tls,
            retry=retry,
            network=network,
        )
        self._start_timeout = start_timeout
        self._inner = self._make()
        self._lock = threading.RLock()
        self._open = False
        self._forked = False
        self._parents: list[Inner] = []
        self._followers: list[Follower] = []
        self._callbacks: Workers | None = None
        watch(self._after_fork)

    def __repr__(self) -> str:
        return repr(self._inner)

    # --- opening and closing ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """What ``with`` does on entering: returns when every subscription has its state, after ``start_timeout`` seconds at most.

        Once only. Raises as `heliograph.client.Heliograph.start` does.
        """
        refuse_in_a_loop()
        with self._lock:
            if self._open or self._inner.status.phase != "new":
                raise InvalidRequest("a client starts once; make a new one")
            _portal.enter(self, self._inner.close)
            self._open = True
        try:
            _portal.run(self._inner.start, self._start_timeout + START_SLACK_S)
        except BaseException:
            self._left()
            raise

    def close(self, timeout: float = CLOSE_S) -> None:
        """Sends what receipts it can, lets callbacks finish, writes the disk copy, ends its threads. Reading goes on working.

        ``timeout`` in seconds; TimedOut after that, and what is left is dropped. From a callback it only begins, and does not wait.
        """
        if not self._open or self._forked:
            self._open = self._forked = False
            return
        if self._callbacks is not None and self._callbacks.is_here:
            threading.Thread(target=self.close, name="heliograph-close", daemon=True).start()
            return
        refuse_in_a_loop()
        try:
            _portal.run(lambda: _within(self._inner.close(), timeout), timeout)
        finally:
            self._left()

    def _left(self) -> None:
        with self._lock:
            self._open = False
            if self._callbacks is not None:
                self._callbacks.shutdown()
                self._callbacks = None
        _portal.leave(self)

    # --- looking ---------------------------------------------------------------------------------------------------------------

    def environment(self, namespace: str, environment: str) -> Environment:
        """One of the client's subscriptions. Raises InvalidRequest when there is none for it."""
        for number, live in enumerate(self._inner.lives):
            if (live.namespace, live.environment) == (namespace, environment):
                return Environment(Place(self, number))
        raise InvalidRequest(f"this client has no subscription to {namespace}/{environment}")

    @property
    def status(self) -> Status:
        """This moment. Never waits."""
        return self.inner.status

    def on_alarm(self, callback: Callback[Alarm]) -> Callback[Alarm]:
        """Calls ``callback`` when the server says something that does not verify; usable as a decorator. The last good state stays."""
        self.follow(_AlarmWatch(self.in_thread(callback)))
        return callback

    @property
    def _place(self) -> Place:
        if len(self._inner.lives) != 1:
            raise InvalidRequest("this client has several subscriptions; say which: client.environment(namespace, environment)")
        return Place(self, 0)

    # --- the way into the loop, for the handles --------------------------------------------------------------------------------

    @property
    def inner(self) -> Inner:
        """The client of this process."""
        if self._forked:
            self._go_on()
        return self._inner

    def run(self, work: Work[T], timeout_s: float | None) -> T:
        """Raises NotReady while the client is not open, InvalidRequest inside a running event loop."""
        refuse_in_a_loop()
        _ = self.inner
        if not self._open:
            raise NotReady("the client is closed, or was not opened yet: use it inside `with`")
        return _portal.run(work, timeout_s)

    def do(self, call: Callable[[], T]) -> T:
        """In the loop while there is one."""

        async def calling() -> T:
            return call()

        _ = self.inner
        if not self._open:
            return call()
        return self.run(calling, CALL_S)

    def follow(self, follower: Follower) -> None:
        self.do(lambda: follower.attach(self._inner))
        self._followers.append(follower)

    def unfollow(self, follower: Follower, cancel: Callable[[], None] | None) -> None:
        if follower in self._followers:
            self._followers.remove(follower)
        if cancel is not None:
            self.do(cancel)

    def in_thread(self, callback: Callback[T]) -> Callable[[T], Awaitable[None]]:
        """The callback for the loop, which never runs it itself."""
        if inspect.iscoroutinefunction(callback):
            raise InvalidRequest("the blocking client calls plain functions; for async ones use the async client")

        @functools.wraps(callback)
        async def call(notice: T) -> None:
            await asyncio.wrap_future(self._callback_thread().submit(_called, callback, notice))

        self._callback_thread()
        return call

    def _callback_thread(self) -> Workers:
        with self._lock:
            if self._callbacks is None:
                self._callbacks = Workers(1, "heliograph-callbacks")
            return self._callbacks

    # --- forks -----------------------------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._callbacks = None
        self._forked = self._open

    def _go_on(self) -> None:
        """In a child, at the first use: as a new instance, from what the parent held."""
        with self._lock:
            if not self._forked:
                return
            inner = self._make()
            inner.inherit(self._inner)
            for follower in self._followers:
                follower.attach(inner)
            self._parents.append(self._inner)  # never freed: that might act on what the parent owns
            self._inner = inner
            _portal.enter(self, inner.close)
            _portal.start(inner.start).add_done_callback(_say_if_it_failed)
            self._forked = False


def _called(callback: Callback[T], notice: T) -> None:
    try:
        answer = callback(notice)
    except Exception:
        raise
    except BaseException as error:  # such as SystemExit, which would end the thread that serves every client
        raise RuntimeError(f"a callback raised {type(error).__name__}, which ends nothing here") from error
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("the blocking client calls plain functions; for async ones use the async client")


def _say_if_it_failed(starting: Future[None]) -> None:
    error = None if starting.cancelled() else starting.exception()
    if error is not None:
        _log.error("the client does not follow the server in this child process, the parent's version stays: %s", error)


async def _within(work: Awaitable[T], timeout_s: float) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise TimedOut(f"closing took longer than {timeout_s:g} s; a callback may be running") from None


async def _step(feed: Feed[Update, T], timeout_s: float | None) -> T | None:
    """The next notice; None at the end. What comes in the moment of the timeout waits for the next step."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(feed)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise TimedOut(f"no change within {timeout_s:g} s") from None
