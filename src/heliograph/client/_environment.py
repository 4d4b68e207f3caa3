"""The handles that applications hold: an environment, a config, a config bound to a type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from heliograph.client._bind import Fitter, fitter, schema_of
from heliograph.client._dispatch import Feed
from heliograph.client._live import Callback, Live, Validator
from heliograph.client._state import Change, State, Update
from heliograph.client._values import ABSENT, Absent, resolve, thaw
from heliograph.core.errors import NotFound, SchemaViolation
from heliograph.core.pointer import pointer_tokens
from heliograph.core.records import Cursor

T = TypeVar("T")


class Reader(ABC):
    """Everything an application does with one namespace and environment.

    What is read is always the last version that verified and that the application accepted. Reading never waits and never fails because
    the network does. Call everything from the client's event loop.
    """

    @property
    @abstractmethod
    def _live(self) -> Live: ...

    @property
    def cursor(self) -> Cursor | None:
        """The version this application runs on; None before the first."""
        return self._live.state.cursor if self._live.state else None

    def names(self) -> frozenset[str]:
        """The configs of the view that exist now."""
        return self._live.current.names()

    def config(self, name: str) -> Config:
        """A live handle; the config need not exist yet. Raises InvalidName, and InvalidRequest when the view does not cover it."""
        return Config(self._live, self._live.in_view(name))

    def bind(self, name: str, kind: type[T], *, default: T | Absent = ABSENT) -> Bound[T]:
        """The config as an object of a dataclass, a `msgspec.Struct` or a pydantic model, made anew for each version that changes it.

        From now on a version whose document does not fit is rejected as a whole: the last good one stays, and the receipt says why. A
        version without the config is rejected too, unless there is a ``default``. Raises SchemaViolation when what is there now does not
        fit, InvalidRequest when nothing can be bound to the type.
        """
        live = self._live
        bound = Bound(live, live.in_view(name), fitter(kind), default)
        if live.state is not None:
            live.state.bound[bound] = bound.made_from(live.state)
        live.bindings.append(bound)
        live.declare(bound.name, schema_of(kind))
        return bound

    def validator(self, check: Validator) -> Validator:
        """Asks ``check`` about every version that changes the view, before it is applied; usable as a decorator.

        It gets an `Update`, runs on the event loop and must not block. To reject the version raise `heliograph.client.Invalid` with a
        reason that holds no value; of any other exception only the type is told.
        """
        self._live.validators.append(check)
        return check

    def on_change(self, callback: Callback[Update]) -> Callback[Update]:
        """Calls ``callback`` for every version that changes something in the view; usable as a decorator.

        Each version at most once, in order, never an older one, over any number of reconnects. The state that the client starts with, from
        the disk or the network, is not a change. Callbacks run one after the other in a task of their own; async ones are awaited. One
        that falls more than 64 updates behind gets the rest merged into one.
        """
        self._live.follow(lambda update: update if update.changed else None, callback)
        return callback

    def on_version(self, callback: Callback[Update]) -> Callback[Update]:
        """As `on_change`, also for versions that change nothing in the view."""
        self._live.follow(lambda update: update, callback)
        return callback

    def subscribe(
        self, name: str, callback: Callback[Change], *, pointer: str = "", initial: bool = False
    ) -> Feed[Update, Change]:
        """Calls ``callback`` when the value at ``pointer`` of a config becomes another one. ``initial``: and once with what is there now.

        ``cancel()`` on the answer ends it. Raises InvalidRequest for what is not a JSON Pointer.
        """
        return self.config(name).subscribe(callback, pointer=pointer, initial=initial)

    async def wait_for_version(self, number: int, timeout: float | None = None) -> Cursor:  # noqa: ASYNC109
        """Until this application runs on version ``number`` or a later one. ``timeout`` in seconds; None: as long as it takes.

        Raises TimedOut, or what stopped the client for good.
        """
        return await self._live.reached(number, timeout)


class Environment(Reader):
    """One of several subscriptions of a client; see `Heliograph.environment`."""

    def __init__(self, live: Live) -> None:
        self.__live = live

    @property
    def _live(self) -> Live:
        return self.__live

    def __repr__(self) -> str:
        return f"Environment({self._live}, version {self._live.number})"


class Config:
    """A live view of one config: every read answers from the version the application runs on at that moment."""

    def __init__(self, live: Live, name: str) -> None:
        self._live = live
        self.name = name

    def __repr__(self) -> str:
        return f"Config({self._live}/{self.name}, version {self._live.number})"

    @property
    def exists(self) -> bool:
        return self._live.current.text(self.name) is not None

    @property
    def value(self) -> Any:
        """The document, deeply immutable: a read-only mapping for an object, a tuple for an array. Raises NotFound when there is none.

        Take it once for several reads that must agree with each other: it is of one version.
        """
        found = self._live.current.value(self.name)
        if found is ABSENT:
            raise self._missing()
        return found

    @property
    def text(self) -> str:
        """The exact canonical text (RFC 8785) that was hashed and signed. Raises NotFound."""
        found = self._live.current.text(self.name)
        if found is None:
            raise self._missing()
        return found.decode()

    @property
    def version(self) -> Cursor:
        """The version of the environment that is read here; it grows with every version, also those that leave this config alone."""
        return self._live.current.cursor

    def __getitem__(self, key: str) -> Any:
        return self.value[key]

    def get(self, pointer: str, default: Any = None) -> Any:
        """What lies at a JSON Pointer (``/limits/0``); ``default`` when the config or the place is not there."""
        found = resolve(self._live.current.value(self.name), pointer_tokens(pointer))
        return default if found is ABSENT else found

    def copy(self) -> Any:
        """The document as plain dicts and lists of your own."""
        return thaw(self.value)

    def changes(self, pointer: str = "", *, initial: bool = False) -> Feed[Update, Change]:
        """``async for change in config.changes():`` from now on, until the client closes. See `Environment.subscribe`."""
        return self._live.feed(_at(self.name, pointer), initial=initial)

    def subscribe(self, callback: Callback[Change], *, pointer: str = "", initial: bool = False) -> Feed[Update, Change]:
        """See `Environment.subscribe`."""
        return self._live.follow(_at(self.name, pointer), callback, initial=initial)

    def _missing(self) -> NotFound:
        return NotFound(f"{self.name} does not exist in {self._live}, version {self._live.number}")


class Bound(Generic[T]):
    """A config as an object. ``value`` stays the very same object until a version changes the config."""

    def __init__(self, live: Live, name: str, fit: Fitter[T], default: T | Absent) -> None:
        self._live = live
        self.name = name
        self._fit = fit
        self._default = default

    def __repr__(self) -> str:
        return f"Bound({self._live}/{self.name}, version {self._live.number})"

    @property
    def value(self) -> T:
        found: T = self._live.current.bound[self]
        return found

    @property
    def version(self) -> Cursor:
        return self._live.current.cursor

    def changes(self, *, initial: bool = False) -> Feed[Update, Change]:
        """As `Config.changes`; ``before`` and ``value`` are objects of the bound type."""
        return self._live.feed(self._change, initial=initial)

    def subscribe(self, callback: Callback[Change], *, initial: bool = False) -> Feed[Update, Change]:
        """As `Config.subscribe`; ``before`` and ``value`` are objects of the bound type."""
        return self._live.follow(self._change, callback, initial=initial)

    def made_from(self, state: State) -> T:
        """Raises SchemaViolation, whose text names the config; its faults the place and the rule."""
        text = state.text(self.name)
        if text is None:
            if isinstance(self._default, Absent):
                raise SchemaViolation(f"{self.name} is not there, and this application needs it")
            return self._default
        try:
            return self._fit(text)
        except SchemaViolation as error:
            raise SchemaViolation(f"{self.name}: {error}", error.faults) from None

    def _change(self, update: Update) -> Change | None:
        return update.bound_change(self.name, self)


def _at(name: str, pointer: str) -> Callable[[Update], Change | None]:
    tokens = pointer_tokens(pointer)
    return lambda update: update.change(name, tokens, pointer)
