"""One service as one process: uvloop, logs, signals, exit codes."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from enum import IntEnum
from typing import Protocol, TypeVar

import structlog
import uvloop
from pydantic import ValidationError

from heliograph.core.errors import HeliographError, Invalid, Unavailable
from heliograph.runtime.settings import ServiceSettings
from heliograph.telemetry.logs import configure_logs

log = structlog.get_logger()
S = TypeVar("S", bound=ServiceSettings)
S_contra = TypeVar("S_contra", bound=ServiceSettings, contravariant=True)


class Exit(IntEnum):
    """What a service's process ends with; 75 is sysexits' "try again later"."""

    OK = 0
    FAILED = 1
    BAD_SETTINGS = 2
    UNAVAILABLE = 75


class ServeWith(Protocol[S_contra]):
    def __call__(self, settings: S_contra, *, ready: asyncio.Event, stop: asyncio.Event) -> Awaitable[None]: ...


def run(name: str, make_settings: Callable[[], S], serve: ServeWith[S]) -> int:
    """Runs a service until SIGTERM or SIGINT (a second signal ends at once). Returns the exit code; never a traceback for expected errors."""
    try:
        settings = make_settings()
    except ValidationError as error:
        for fault in error.errors(include_input=False, include_url=False):
            variable = "HELIOGRAPH_" + "_".join(str(each) for each in fault["loc"]).upper()
            print(f"heliograph {name}: {variable}: {fault['msg']}", file=sys.stderr)  # noqa: T201
        return Exit.BAD_SETTINGS
    configure_logs(name, level=settings.log_level.lower())
    gc.set_threshold(50_000, 20, 100)  # full collections of a large heap stop the loop; see docs/architecture.md
    try:
        uvloop.run(_until_signal(name, settings, serve))
    except HeliographError as error:
        return _ended(error)
    except BaseExceptionGroup as group:
        expected = [each for each in _leaves(group) if isinstance(each, HeliographError)]
        if expected:
            return _ended(expected[0])
        log.error("service_ended", exc_info=group)
        return Exit.FAILED
    return Exit.OK


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def _ended(error: HeliographError) -> Exit:
    log.error("service_ended", code=error.code, detail=error.detail)
    if isinstance(error, Invalid):
        return Exit.BAD_SETTINGS
    return Exit.UNAVAILABLE if isinstance(error, Unavailable) else Exit.FAILED


async def _until_signal(name: str, settings: S, serve: ServeWith[S]) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    handle_signals(stop)
    log.info("service_starting", service=name)
    await serve(settings, ready=ready, stop=stop)
    log.info("service_stopped", service=name)


def handle_signals(stop: asyncio.Event) -> None:
    """The first SIGTERM or SIGINT sets `stop`; the second ends the process as the signal would have."""
    loop = asyncio.get_running_loop()

    def on_signal(which: signal.Signals) -> None:
        if stop.is_set():
            signal.signal(which, signal.SIG_DFL)
            signal.raise_signal(which)
        stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal, each)
