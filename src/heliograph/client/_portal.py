"""One event loop on one thread, for every blocking client of this process.

Promises:

- the thread starts with the first client that opens and ends with the last that closes;
- it never keeps the interpreter from ending: at exit the clients that are open get `EXIT_GRACE_S` in all to send their receipts and to write
  their disk copy, and nothing is printed. So every thread here is a daemon, and the loop's executor is our own: the standard one refuses work
  from the moment when the interpreter begins to end;
- a child made by fork has neither the thread nor the loop: it begins with none, and starts its own when a client asks.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

from heliograph.client._forks import watch
from heliograph.core.errors import InvalidRequest, NotReady, TimedOut

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]

EXIT_GRACE_S: Final = 3.0
END_S: Final = 2.0  # a loop with nothing left to do ends within this
SLACK_S: Final = (
    5.0  # what is bounded inside the loop is given up outside it this much later; never reached while the loop lives
)
LOOP_WORKERS: Final = 2  # for name look-ups and the disk
_log = logging.getLogger("heliograph")
_Job = tuple["Future[Any]", Callable[[], Any]]


class Workers(ThreadPoolExecutor):
    """Daemon threads, all started at once: none may be started any more while the interpreter ends."""

    def __init__(self, count: int, name: str) -> None:
        super().__init__(1)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._started:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """The threads end after what was submitted. Never waits for them: a job of the application may take as long as it likes."""
        for _ in self._started:
            self._jobs.put(None)

    def join(self, timeout_s: float) -> None:
        """After `shutdown`. Bounded for each thread."""
        for thread in self._started:
            thread.join(timeout_s)

    @property
    def is_here(self) -> bool:
        """Whether one of these threads is asking."""
        return threading.current_thread() in self._started

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, call  # not to be kept alive by a thread that waits


class LoopThread:
    """A running event loop. Its users are counted by `Portal`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._workers = Workers(LOOP_WORKERS, "heliograph-worker")
        self._loop.set_default_executor(self._workers)
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="heliograph", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work(), self._loop)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        """What still runs is cancelled. Bounded; does not wait when the loop's own thread asks."""
        self._ending = True
        with contextlib.suppress(RuntimeError):  # it is closed: it ended by itself
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(END_S)
            self._workers.join(END_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._run_on()
        finally:
            self._loop.run_until_complete(_cancelled(asyncio.all_tasks(self._loop)))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _run_on(self) -> None:
        """What ends a program, such as SystemExit, asyncio hands to whoever runs the loop. Here it ends the task that raised it, and no other."""
        while not self._ending:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                _log.critical("code of the application raised what ends programs; here it ends a task", exc_info=True)
            else:
                return


async def _cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Portal:
    """The way from threads into the loop. ``enter`` and ``leave`` come in pairs, one for each open client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._open: dict[object, Work[None]] = {}
        self._left_behind: list[LoopThread] = []
        self._watching_exit = False
        watch(self, Portal._after_fork)

    def enter(self, client: object, close: Work[None]) -> None:
        """``close`` is what the client wants done when the interpreter ends while it is open."""
        with self._lock:
            self._watch_exit()
            self._replace_dead()
            if self._thread is None:
                self._thread = LoopThread()
            self._open[client] = close

    def leave(self, client: object) -> None:
        with self._lock:
            ended = None
            if self._open.pop(client, None) is not None and not self._open:
                ended, self._thread = self._thread, None
        if ended is not None:
            ended.end()

    def start(self, work: Work[T]) -> Future[T]:
        """Begins it in the loop and does not wait. Raises NotReady when no client is open."""
        with self._lock:
            if self._thread is None:
                raise NotReady("the client is closed, or was not opened yet: use it inside `with`")
            self._replace_dead()
            return self._thread.submit(work)

    def run(self, work: Work[T], timeout_s: float | None) -> T:
        """Waits for the result. ``timeout_s``: when the work itself gives up, at the latest; None: as long as it takes.

        What interrupts the waiting (Ctrl-C) cancels the work. Raises InvalidRequest inside a running event loop, which it would block.
        """
        refuse_in_a_loop()
        future = self.start(work)
        try:
            return future.result(None if timeout_s is None else timeout_s + SLACK_S)
        except CancelledError:
            raise NotReady("the client was closed meanwhile") from None
        except BaseException as error:
            if isinstance(error, TimeoutError) and not future.done():
                future.cancel()
                raise TimedOut("the client's own thread did not answer in time") from None
            future.cancel()
            raise

    def _replace_dead(self) -> None:
        """What ran in a loop that died is lost; but its clients can be closed, and others opened."""
        if self._thread is not None and not self._thread.alive:
            self._thread = LoopThread()

    def _watch_exit(self) -> None:
        """`multiprocessing` ends its children without `atexit`, and has a list of its own."""
        if not self._watching_exit:
            self._watching_exit = True
            atexit.register(self._at_exit)
            if (ends := sys.modules.get("multiprocessing.util")) is not None:
                ends.Finalize(None, self._at_exit, exitpriority=0)

    def _at_exit(self) -> None:
        """The second time, where both lists are used, there is nothing left to do."""
        thread, self._thread = self._thread, None
        closes = list(self._open.values())
        if thread is not None:
            with contextlib.suppress(Exception):
                thread.submit(lambda: _all(closes)).result(EXIT_GRACE_S)
                thread.end()

    def _after_fork(self) -> None:
        """What the dead thread was in the middle of is never touched again, and never freed: that might act on what the parent owns."""
        if self._thread is not None:
            self._left_behind.append(self._thread)
        self._lock = threading.Lock()
        self._thread = None
        self._open = {}
        self._watching_exit = False


async def _all(closes: Iterable[Work[None]]) -> None:
    await asyncio.gather(*(close() for close in closes), return_exceptions=True)


def in_a_loop() -> bool:
    """Whether waiting here would stop an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def refuse_in_a_loop() -> None:
    """Raises InvalidRequest where waiting would stop an event loop."""
    if in_a_loop():
        raise InvalidRequest(
            "this call would block the event loop that runs in this thread; use the async client (from heliograph import Heliograph), "
            "or call it with asyncio.to_thread"
        )
