"""Keeps one session connected: the WebSocket when it can be had, polling while it cannot, and a growing, random pause between tries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

from heliograph.client._backoff import Backoff
from heliograph.client._clock import Moment
from heliograph.client._link import Link
from heliograph.client._session import Effect, Session, Unserved
from heliograph.client._status import Transport
from heliograph.core.errors import HeliographError, Unavailable
from heliograph.core.frames import FromServer

SETTLED_US: Final = 10_000_000  # a connection that lived this long was a good one: the next pause is short again
_log = logging.getLogger("heliograph")


@dataclass(frozen=True, slots=True)
class Retry:
    """How a client comes back.

    Attributes:
        first_s: upper bound of the first random pause in seconds; it doubles with every failure in a row. A node that dies takes thousands of
            clients with it, which must not meet again at the next one in the same moment; a single one is back after half of it.
        cap_s: the bound never grows beyond this.
        poll_after: failures of the WebSocket in a row before polling begins beside the tries.
    """

    first_s: float = 2.0
    cap_s: float = 30.0
    poll_after: int = 3


class Dial(Protocol):
    """How links are made; every call may ask the server anew where its services are. Raises Unavailable, or what ends the client."""

    async def session(self) -> Session:
        """The session, once the trust root is known."""

    async def websocket(self) -> Link: ...

    def polling(self) -> Link: ...


class Connection:
    """`run` is the whole life: it returns never, and raises what ends the client for good. Everything else is retried for ever."""

    def __init__(
        self,
        dial: Dial,
        apply: Callable[[Effect], None],
        progress: Callable[[], None],
        *,
        random: Random,
        retry: Retry,
    ) -> None:
        self.transport: Transport = "disk"
        self.last_error: HeliographError | None = None
        self.failed_once = False
        self._dial = dial
        self._apply = apply
        self._progress = progress
        self._retry = retry
        self._backoff = Backoff(random, first_s=retry.first_s, cap_s=retry.cap_s)
        self._polling_backoff = Backoff(random, first_s=retry.first_s, cap_s=retry.cap_s)
        self._due = asyncio.Event()
        self._alarm: tuple[int, asyncio.TimerHandle] | None = None  # steady microseconds
        self._session: Session | None = None
        self._answered = False  # whether anything came since polling began

    async def run(self) -> None:
        pause = 0.0
        while True:
            try:
                await self._serve(await self._open(pause))
                pause = 0.0
            except Unavailable as error:
                pause = self._failed(error)
            except HeliographError:
                raise
            except Exception:  # a fault of ours must not take the last good state from the application
                _log.exception("an unexpected error in the connection to the server")
                pause = self._failed(Unavailable("an unexpected error; see the log of `heliograph`"))

    # --- getting a socket ------------------------------------------------------------------------------------------------------

    async def _open(self, pause: float) -> Link:
        """An open WebSocket, after a pause. After enough failures polling runs beside the tries: also where a socket can be had again and again, but
        something in between never lets it live."""
        polling: asyncio.Task[None] | None = None
        try:
            while True:
                if polling is None and self._backoff.failures >= self._retry.poll_after:
                    polling = asyncio.create_task(self._poll())
                await _pause(pause, polling)
                try:
                    return await self._dialled()
                except Unavailable as error:
                    pause = self._failed(error)
        finally:
            if polling is not None:
                await _ended(polling)
                self._left()

    async def _dialled(self) -> Link:
        self._session = await self._dial.session()
        return await self._dial.websocket()

    async def _poll(self) -> None:
        """Until cancelled, or until polling shows that nothing will help."""
        while True:
            try:
                self._session = await self._dial.session()
                await self._follow_by_polling(self._session)
            except Unavailable as error:
                self._left()
                self.last_error = error
                await asyncio.sleep(self._polling_backoff.delay(error.retry_after or 0.0))

    async def _follow_by_polling(self, session: Session) -> None:
        since, self._answered = Moment.now(), False
        session.poll(since)
        self.transport = "polling"
        try:
            await self._pump(self._dial.polling(), session)
        finally:
            if self._answered and _is_settled(since):
                self._polling_backoff.succeeded()

    # --- being connected -------------------------------------------------------------------------------------------------------

    async def _serve(self, link: Link) -> None:
        """Until the link is lost (Unavailable), or the moment to leave has come (returns)."""
        session = self._session
        assert session is not None
        since = Moment.now()
        try:
            await link.send([session.greet(since)])
            self.transport = "websocket"
            await self._pump(link, session)
        finally:
            # a box that lets the upgrade through and swallows the rest is no server, however long it takes
            settled = session.welcome is not None and _is_settled(since)
            self._left()
            await link.close()
            if settled:
                self._backoff.succeeded()
        if not settled:  # a server that sends everybody away at once must not be asked in a tight circle
            await asyncio.sleep(self._backoff.delay())

    async def _pump(self, link: Link, session: Session) -> None:
        try:
            await self._exchange(link, session)
        except HeliographError as error:
            complaint = session.complaint
            if complaint is None or isinstance(error, Unavailable):
                raise
            raise type(error)(f"{error}; the server said: {complaint}") from None

    async def _exchange(self, link: Link, session: Session) -> None:
        await _first_to_end(link.run(lambda frame: self._take(session, frame)), self._send_due(link, session))

    def _take(self, session: Session, frame: FromServer) -> None:
        self._answered = True
        for effect in session.take(frame, Moment.now()):
            self._apply(effect)
            self._note(effect)
        self._wake_for(session)
        self._progress()

    def _note(self, effect: Effect) -> None:
        if isinstance(effect, Unserved):
            self.last_error = effect.error
        elif self.transport != "disk":
            self.last_error = None

    async def _send_due(self, link: Link, session: Session) -> None:
        """Returns when it is time to leave; raises Unavailable when the server has gone silent."""
        try:
            while True:
                self._due.clear()
                now = Moment.now()
                if due := session.due(now):
                    await link.send(due)
                if session.leaving(now):
                    return
                if session.silent(now):
                    raise Unavailable("nothing was heard from the server for several heartbeats")
                self._wake_for(session)
                await self._due.wait()
        finally:
            self._disarm()

    def _wake_for(self, session: Session) -> None:
        """Wakes `_send_due` when the session next has something to say, and not for every frame: most are answered later, at a random moment."""
        wake_us = session.wake_us()
        if wake_us is None:
            return
        if self._alarm is None or wake_us < self._alarm[0]:
            self._disarm()
            pause = max(0.0, (wake_us - Moment.now().steady_us) / 1e6)
            self._alarm = wake_us, asyncio.get_running_loop().call_later(pause, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._due.set()

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm[1].cancel()
            self._alarm = None

    def hurry(self) -> None:
        """Something is due earlier than it was."""
        self._due.set()

    def _left(self) -> None:
        self.transport = "disk"
        if self._session is not None:
            self._session.lost()

    def _failed(self, error: Unavailable) -> float:
        """Seconds to wait now."""
        self.last_error = error
        self.failed_once = True
        self._progress()
        pause = self._backoff.delay(error.retry_after or 0.0)
        _log.info("not connected, trying again in %.1f s: %s", pause, error)
        return pause


def _is_settled(since: Moment) -> bool:
    return Moment.now().steady_us - since.steady_us > SETTLED_US


async def _pause(seconds: float, watched: asyncio.Task[None] | None) -> None:
    """Sleeps, unless the watched task ends with an error before."""
    if watched is None:
        await asyncio.sleep(seconds)
        return
    await asyncio.wait({watched}, timeout=seconds)
    if watched.done():
        watched.result()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _first_to_end(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs all until one ends; that one's result or error is the answer, the others are cancelled and awaited."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
