"""The async client in the background, as threads see it: opened, asked, followed, closed, and gone on with in a child made by fork."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Final, Protocol, TypeVar

from heliograph.client._client import Heliograph
from heliograph.client._forks import watch
from heliograph.client._live import Live, Validator, validator_failed
from heliograph.client._portal import Portal, Work, Workers, in_a_loop, refuse_in_a_loop
from heliograph.client._state import Update
from heliograph.core.errors import HeliographError, InvalidRequest, NotReady, TimedOut

T = TypeVar("T")
R = TypeVar("R")
Callback = Callable[[T], object]

CALL_S: Final = 5.0  # what only hands something to the loop
START_SLACK_S: Final = 10.0  # beyond start_timeout: a start that failed also closes
_log = logging.getLogger("heliograph")
_portal: Final = Portal()


class Inner(Heliograph):
    """The client in the loop. After a fork the child keeps it as it was, to go on from what it held."""

    _goes_on_in_child = True

    @property
    def lives(self) -> Sequence[Live]:
        return self._lives

    def inherit(self, parent: Inner) -> None:
        """Before the start. A parent that had its state proves enough: the child starts without waiting for the network."""
        engine = parent._engine
        for mine, theirs in zip(self._lives, parent._lives, strict=True):
            mine.inherit(theirs, engine.held(theirs) if engine else None)
        self._require_network = False


class Follower(Protocol):
    """A callback, attached anew to the client of each process."""

    def attach(self, inner: Inner) -> None: ...


class Background:
    """``make`` gives a client that was not started; it is called again in each child process that goes on.

    Safe in any thread. Whatever waits raises InvalidRequest inside a running event loop.
    """

    def __init__(self, make: Callable[[], Inner], *, start_timeout_s: float) -> None:
        self._make = make
        self._start_timeout_s = start_timeout_s
        self._inner = make()
        self._lock = threading.RLock()
        self._open = False
        self._forked = False
        self._opening: Future[None] | None = None  # in a child that goes on
        self._parents: list[Inner] = []
        self._followers: list[Follower] = []
        self._callbacks: Workers | None = None
        watch(self, Background._after_fork)

    def __repr__(self) -> str:
        return repr(self._inner)

    # --- opening and closing ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Once only."""
        refuse_in_a_loop()
        with self._lock:
            if self._open or self._inner.status.phase != "new":
                raise InvalidRequest("a client starts once; make a new one")
            _portal.enter(self, self._inner.close)
            self._open = True
        try:
            _portal.run(self._inner.start, self._start_timeout_s + START_SLACK_S)
        except BaseException:
            self._left()
            raise

    def close(self, timeout_s: float) -> None:
        """Any number of times. In a child that never used the client there is nothing to close. From a callback it does not wait."""
        if not self._open or (self._forked and self._opening is None):
            self._open = self._forked = False
            self._end_callbacks()
            return
        if self._callbacks is not None and self._callbacks.is_here:
            threading.Thread(target=self.close, args=(timeout_s,), name="heliograph-close", daemon=True).start()
            return
        refuse_in_a_loop()
        try:
            _portal.run(lambda: _within(self._inner.close(), timeout_s), timeout_s)
        finally:
            self._left()

    def _left(self) -> None:
        with self._lock:
            self._open = False
        self._end_callbacks()
        _portal.leave(self)

    def _end_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, None
        if callbacks is not None:
            callbacks.shutdown()

    # --- asking ----------------------------------------------------------------------------------------------------------------

    @property
    def inner(self) -> Inner:
        """The client of this process. Waits at the first use in a child only, as long as opening takes, and not in an event loop."""
        if self._forked:
            self._go_on()
        return self._inner

    @property
    def lives(self) -> Sequence[Live]:
        """Without going on after a fork: for what is the same in every process."""
        return self._inner.lives

    def run(self, work: Work[T], timeout_s: float | None) -> T:
        """Raises NotReady while the client is not open."""
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
        return self.run(calling, CALL_S) if self._open else call()

    # --- callbacks -------------------------------------------------------------------------------------------------------------

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

        self._callback_thread()  # now: none may be started any more while the interpreter ends
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
        self._opening = None

    def _go_on(self) -> None:
        """In a child, at the first use. What the parent held may be old by now, so this waits for the network as a start does: until it
        answers, or cannot be had."""
        with self._lock:
            if self._opening is None:
                self._opening = self._open_here()
        opening = self._opening
        if not in_a_loop():
            with contextlib.suppress(
                HeliographError, TimeoutError, CancelledError
            ):  # said in the log; what the parent held stays
                opening.result(self._start_timeout_s + START_SLACK_S)
        if opening.done():
            self._forked = False

    def _open_here(self) -> Future[None]:
        """As a new instance, from what the parent held."""
        inner = self._make()
        inner.inherit(self._inner)
        for follower in self._followers:
            follower.attach(inner)
        if self._followers:
            self._callback_thread()
        self._parents.append(self._inner)  # never freed: that might act on what the parent owns
        self._inner = inner
        _portal.enter(self, inner.close)
        opening = _portal.start(inner.start)
        opening.add_done_callback(_say_if_it_failed)
        return opening


def contained(check: Validator) -> Validator:
    """Rejects where ``check`` would end the thread that serves every client, as with SystemExit."""

    def checking(update: Update) -> object:
        try:
            return check(update)
        except Exception:
            raise
        except BaseException as error:
            raise validator_failed(error) from error

    return checking


def _called_safely(what: str, call: Callable[[T], R], argument: T) -> R:
    """Raises RuntimeError for what would mean something else to the loop: an end of the thread that serves every client, or of a future."""
    try:
        return call(argument)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration | CancelledError):
            raise
        raise RuntimeError(f"a {what} raised {type(error).__name__}, which ends nothing here") from error


def _called(callback: Callback[T], notice: T) -> None:
    answer = _called_safely("callback", callback, notice)
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("the blocking client calls plain functions; for async ones use the async client")


def _say_if_it_failed(starting: Future[None]) -> None:
    error = None if starting.cancelled() else starting.exception()
    if error is not None and not isinstance(error, NotReady):  # closed meanwhile: nothing failed
        _log.error("the client does not follow the server in this child process, the parent's version stays: %s", error)


async def _within(work: Awaitable[T], timeout_s: float) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise TimedOut(f"closing took longer than {timeout_s:g} s; a callback may be running") from None
