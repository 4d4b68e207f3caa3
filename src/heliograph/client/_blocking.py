"""The client for threads: the very same client in the background, and a thin way to it.

What is read is plain memory in whatever thread asks. Everything else is handed to the one event loop of `heliograph.client._portal` and waited
for. Nothing of the protocol, of trust or of dispatch is here.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from heliograph.client._background import Background, Callback, Inner, contained
from heliograph.client._bind import Fitter, fitter
from heliograph.client._client import DEFAULT_CACHE, Subscription
from heliograph.client._connection import Retry
from heliograph.client._dispatch import Feed
from heliograph.client._forks import OfThisProcess
from heliograph.client._live import Live, Validator
from heliograph.client._network import Network
from heliograph.client._reading import BoundReading, ConfigReading, Reading, at, changed, every
from heliograph.client._state import Change, Update
from heliograph.client._status import Alarm, Status
from heliograph.client._values import ABSENT, Absent
from heliograph.core.errors import InvalidRequest, NotReady, TimedOut
from heliograph.core.records import Cursor

T = TypeVar("T")
Translate = Callable[[Update], T | None]

CLOSE_S: Final = 10.0


class Place:
    """One subscription of a client, in whichever process it goes on."""

    def __init__(self, background: Background, number: int) -> None:
        self.background = background
        self._number = number

    @property
    def live(self) -> Live:
        return self.of(self.background.inner)

    def of(self, inner: Inner) -> Live:
        return inner.lives[self._number]

    def changes(self, translate: Translate[T], *, initial: bool, timeout: float | None) -> Changes[T]:
        feed = self.background.do(lambda: self.live.feed(translate, initial=initial))
        return Changes(self.background, feed, timeout)

    def follow(self, translate: Translate[T], callback: Callback[T], *, initial: bool = False) -> Watch[T]:
        watching = Watch(self, translate, self.background.in_thread(callback), initial=initial)
        self.background.follow(watching)
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
        self._place.background.unfollow(self, self._feed.cancel if self._feed else None)


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

    def __init__(self, background: Background, feed: Feed[Update, T], timeout: float | None) -> None:
        self._background = background
        self._inner = background.inner
        self._feed = feed
        self._timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._background.inner is not self._inner:
            raise InvalidRequest("this iterator was made before the fork; ask for a new one in the child")
        try:
            found = self._background.run(lambda: _step(self._feed, self._timeout), self._timeout)
        except NotReady:
            if not self._feed.ended:
                raise
            found = self._feed.take()
        if found is None:
            raise StopIteration
        return found

    def cancel(self) -> None:
        """Ends it at once, also for a thread that waits in it; what waits is dropped."""
        self._background.do(self._feed.cancel)


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
        self._place.background.do(lambda: self._live.bind(bound))
        return bound

    def validator(self, check: Validator) -> Validator:
        """Asks ``check`` about every version that changes the view, before it is applied; usable as a decorator.

        It gets an `Update`, runs on the client's own thread and must not block: while it runs, no client of this process hears anything.
        To reject the version raise `heliograph.client.Invalid` with a reason that holds no value; of any other exception only the type is
        told.
        """
        self._place.background.do(lambda: self._live.validators.append(contained(check)))
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
        return self._place.background.run(lambda: self._live.reached(number, timeout), timeout)


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

    **Fork.** A client that was open before a fork goes on in the child by itself, at the first use there: from what the parent held, brought
    up to date as a start would, and under an instance id of its own. What was bound stays bound, and callbacks are called in the child
    too. The parent notices nothing. (Inside an event loop the first use does not wait, and may see what the parent held.)

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
        ca_file: Path | str | None = None,
        retry: Retry = Retry(),  # noqa: B008  frozen
        network: Network | None = None,
    ) -> None:
        make = functools.partial(
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
            ca_file=ca_file,
            retry=retry,
            network=network,
        )
        self._background = Background(make, start_timeout_s=start_timeout)

    def __repr__(self) -> str:
        return repr(self._background)

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
        self._background.start()

    def close(self, timeout: float = CLOSE_S) -> None:
        """Sends what receipts it can, lets callbacks finish, writes the disk copy, ends its threads. Reading goes on working.

        ``timeout`` in seconds; TimedOut after that, and what is left is dropped. From a callback it only begins, and does not wait.
        """
        self._background.close(timeout)

    # --- looking ---------------------------------------------------------------------------------------------------------------

    def environment(self, namespace: str, environment: str) -> Environment:
        """One of the client's subscriptions. Raises InvalidRequest when there is none for it."""
        for number, live in enumerate(self._background.lives):
            if (live.namespace, live.environment) == (namespace, environment):
                return Environment(Place(self._background, number))
        raise InvalidRequest(f"this client has no subscription to {namespace}/{environment}")

    @property
    def status(self) -> Status:
        """This moment."""
        return self._background.inner.status

    def on_alarm(self, callback: Callback[Alarm]) -> Callback[Alarm]:
        """Calls ``callback`` when the server says something that does not verify; usable as a decorator. The last good state stays."""
        self._background.follow(_AlarmWatch(self._background.in_thread(callback)))
        return callback

    @property
    def _place(self) -> Place:
        if len(self._background.lives) != 1:
            raise InvalidRequest("this client has several subscriptions; say which: client.environment(namespace, environment)")
        return Place(self._background, 0)


async def _step(feed: Feed[Update, T], timeout_s: float | None) -> T | None:
    """The next notice; None at the end. What comes in the moment of the timeout waits for the next step."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(feed)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise TimedOut(f"no change within {timeout_s:g} s") from None
