"""What an application runs on in one namespace and environment, and everybody who follows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from heliograph.client._dispatch import Feed, call_each
from heliograph.client._state import State, Update
from heliograph.client._status import Rejection
from heliograph.client._values import sayable
from heliograph.core import names
from heliograph.core.errors import HeliographError, Invalid, InvalidRequest, NotReady, TimedOut
from heliograph.core.records import Cursor
from heliograph.core.replica import Replica

T = TypeVar("T")
Validator = Callable[[Update], object]
Callback = Callable[[T], Awaitable[None] | None]
Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
MAX_REASON = 500


class Binding(Protocol):
    name: str

    def made_from(self, state: State) -> object:
        """Raises SchemaViolation."""


class Proposal(NamedTuple):
    """A version that the application accepts, not shown yet."""

    update: Update
    state: State


class Inherited(NamedTuple):
    """What the client of the parent process held when this process was forked. ``applied_at_us``: its wall clock when it began to run on it."""

    replica: Replica
    applied_at_us: int


class Live:
    """``spawn`` owns the tasks that callbacks run in."""

    def __init__(self, namespace: str, environment: str, view: tuple[str, ...], spawn: Spawn) -> None:
        self.namespace = names.namespace(namespace)
        self.environment = names.environment(environment)
        self.view = names.view(view)
        self.bindings: list[Binding] = []
        self.validators: list[Validator] = []
        self.declares: dict[str, str] = {}
        self.state: State | None = None
        self.inherited: Inherited | None = None
        self._spawn = spawn
        self._feeds: list[Feed[Update, Any]] = []
        self._moved = asyncio.Event()
        self._failure: HeliographError | None = None
        self._lost: HeliographError | None = None
        self._rejection: Rejection | None = None
        self._closed = False

    def __str__(self) -> str:
        return f"{self.namespace}/{self.environment}"

    @property
    def number(self) -> int | None:
        return self.state.cursor.number if self.state else None

    @property
    def current(self) -> State:
        if self.state is None:
            raise self._lost or NotReady(f"nothing of {self} is here yet; read inside `with` or `async with`")
        return self.state

    def in_view(self, name: str) -> str:
        """Raises InvalidName, InvalidRequest."""
        found = names.config(name)
        if not any(names.inside(found, selector) for selector in self.view):
            raise InvalidRequest(f"{found} is outside the view of this subscription ({', '.join(self.view)}); widen the view")
        return found

    def bind(self, binding: Binding) -> None:
        """From now on every version must fit. Raises SchemaViolation when what is there now does not."""
        if self.state is not None:
            self.state.bound[binding] = binding.made_from(self.state)
        self.bindings.append(binding)

    def declare(self, name: str, schema: str | None) -> None:
        """What the server is to know about how this config is read. The first binding of a config counts."""
        if schema is not None and name not in self.declares:
            self.declares = self.declares | {name: schema}

    # --- a version comes -------------------------------------------------------------------------------------------------------

    def propose(
        self, cursor: Cursor, texts: Mapping[str, bytes], changed: frozenset[str], *, restarted: bool = False
    ) -> Proposal:
        """Made and checked, shown to nobody. Raises Invalid with the reason of a rejection."""
        before = self.state
        after = State(cursor, texts) if before is None else before.after(cursor, texts, changed)
        self._bind(before, after, changed)
        update = Update(
            namespace=self.namespace,
            environment=self.environment,
            previous=before.cursor if before else None,
            cursor=cursor,
            changed=tuple(sorted(changed)),
            restarted=restarted,
            _before=before,
            _after=after,
        )
        if changed or before is None:
            self._validate(update)
        return Proposal(update, after)

    def swap(self, proposal: Proposal) -> None:
        """It is the state now. Everybody who follows is told, unless it is the first."""
        self.state = proposal.state
        self._rejection = None
        if proposal.update.previous is not None:
            for feed in tuple(self._feeds):
                feed.mailbox.put(proposal.update)
        self._wake()

    def _bind(self, before: State | None, after: State, changed: frozenset[str]) -> None:
        for bound in self.bindings:
            if before is not None and bound.name not in changed and bound in before.bound:
                after.bound[bound] = before.bound[bound]
            else:
                after.bound[bound] = bound.made_from(after)

    def _validate(self, update: Update) -> None:
        for check in self.validators:
            try:
                check(update)
            except Invalid:
                raise
            except (Exception, asyncio.CancelledError) as error:  # nothing is awaited here: the cancel is not ours
                raise validator_failed(error) from error

    # --- following -------------------------------------------------------------------------------------------------------------

    def feed(self, translate: Callable[[Update], T | None], *, initial: bool = False) -> Feed[Update, T]:
        feed: Feed[Update, T] = Feed(translate, self._forget)
        if initial and self.state is not None:
            feed.mailbox.put(self._first(self.state))
        if self._closed:
            feed.mailbox.close()
        self._feeds.append(feed)
        return feed

    def follow(
        self, translate: Callable[[Update], T | None], callback: Callback[T], *, initial: bool = False
    ) -> Feed[Update, T]:
        feed = self.feed(translate, initial=initial)
        self._spawn(lambda: call_each(feed, callback))
        return feed

    def _first(self, state: State) -> Update:
        return Update(self.namespace, self.environment, None, state.cursor, tuple(sorted(state.names())), _after=state)

    def _forget(self, feed: Feed[Update, Any]) -> None:
        if feed in self._feeds:
            self._feeds.remove(feed)

    # --- waiting ---------------------------------------------------------------------------------------------------------------

    async def reached(self, number: int, timeout_s: float | None) -> Cursor:
        """Raises TimedOut, or what stopped the client."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reached(number)
        except TimeoutError:
            raise TimedOut(f"version {number} of {self} was not applied in time: {self.where()}") from None

    def where(self) -> str:
        at = "it has no version yet" if self.state is None else f"it runs on version {self.state.cursor.number}"
        refused = self._rejection
        return f"{at} and rejected version {refused.cursor.number} ({refused.reason})" if refused else at

    def rejected(self, rejection: Rejection) -> None:
        self._rejection = rejection

    def failed(self, error: HeliographError) -> None:
        """No further version will come."""
        self._failure = error
        self._wake()

    def lose(self, error: HeliographError) -> None:
        """Nothing may be read here any more. Wakes nobody: whoever waited did so in another process."""
        self.state, self._lost, self._failure = None, error, error

    def inherit(self, parent: Live, held: Inherited | None) -> None:
        """Goes on, in a child process, from where the parent's was: with what the application bound and asked for, and with its state.

        A fork may fall between the moment when a version is held and the moment when it is shown; then it is shown now.
        """
        self.bindings, self.validators, self.declares = parent.bindings, parent.validators, parent.declares
        if parent.state is None or held is None:
            return
        if held.replica.cursor == parent.state.cursor:
            self.state, self.inherited = parent.state, held
            return
        assert held.replica.cursor is not None
        with contextlib.suppress(Invalid):  # then this one starts like any other
            self.state = self.propose(held.replica.cursor, held.replica.texts, frozenset(held.replica.texts)).state
            self.inherited = held

    def close(self) -> None:
        self._closed = True
        for feed in tuple(self._feeds):
            feed.mailbox.close()
        self._wake()

    async def _reached(self, number: int) -> Cursor:
        while self.state is None or self.state.cursor.number < number:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise NotReady("the client is closed")
            await self._moved.wait()
        return self.state.cursor

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def validator_failed(error: BaseException) -> Invalid:
    """What it says may hold a value: only its type is told."""
    return Invalid(f"the application's validator failed with {type(error).__name__}")


def reason_of(error: Invalid) -> str:
    """A rejection in one line for the receipt: what does not fit and where, never the value."""
    faults = "; ".join(f"{fault.pointer or '/'} {fault.message}" for fault in error.faults[:5])
    more = f"; and {len(error.faults) - 5} more" if len(error.faults) > 5 else ""
    return sayable(f"{error.detail}{': ' + faults if faults else ''}{more}"[:MAX_REASON])
