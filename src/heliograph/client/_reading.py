"""What an application reads: plain memory, swapped by one reference for each version.

Reading never waits, never fails because the network does, and is allowed in any thread. Both clients read by the code here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from heliograph.client._bind import Fitter
from heliograph.client._forks import OfThisProcess
from heliograph.client._live import Live
from heliograph.client._state import Change, State, Update
from heliograph.client._values import ABSENT, Absent, resolve, thaw
from heliograph.core.errors import NotFound, SchemaViolation
from heliograph.core.pointer import pointer_tokens
from heliograph.core.records import Cursor

T = TypeVar("T")


class Reading(OfThisProcess, ABC):
    """One namespace and environment."""

    @property
    @abstractmethod
    def _live(self) -> Live: ...

    @property
    def cursor(self) -> Cursor | None:
        """The version this application runs on; None before the first."""
        state = self._live.state
        return state.cursor if state else None

    def names(self) -> frozenset[str]:
        """The configs of the view that exist now."""
        return self._live.current.names()


class ConfigReading(OfThisProcess, ABC):
    """One config: every read answers from the version the application runs on at that moment."""

    name: str

    @property
    @abstractmethod
    def _live(self) -> Live: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._live}/{self.name}, version {self._live.number})"

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

    def _missing(self) -> NotFound:
        return NotFound(f"{self.name} does not exist in {self._live}, version {self._live.number}")


class BoundReading(OfThisProcess, ABC, Generic[T]):
    """A config as an object. ``value`` stays the very same object until a version changes the config."""

    def __init__(self, name: str, fit: Fitter[T], default: T | Absent) -> None:
        self.name = name
        self._fit = fit
        self._default = default

    @property
    @abstractmethod
    def _live(self) -> Live: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._live}/{self.name}, version {self._live.number})"

    @property
    def value(self) -> T:
        found: T = self._live.current.bound[self]
        return found

    @property
    def version(self) -> Cursor:
        return self._live.current.cursor

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


def changed(update: Update) -> Update | None:
    """Only what changes something in the view."""
    return update if update.changed else None


def every(update: Update) -> Update:
    return update


def at(name: str, pointer: str) -> Callable[[Update], Change | None]:
    """One place in one config. Raises InvalidRequest for what is not a JSON Pointer."""
    tokens = pointer_tokens(pointer)
    return lambda update: update.change(name, tokens, pointer)
