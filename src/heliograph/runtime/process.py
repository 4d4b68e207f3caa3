"""One service as one process: uvloop, logs, signals, exit codes."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final, Protocol, TypeVar

import structlog
import uvloop
from pydantic import ValidationError

from heliograph.core.errors import HeliographError, Invalid, Unavailable
from heliograph.runtime import huge_pages
from heliograph.runtime.notify import Starter
from heliograph.runtime.place import own_place
from heliograph.runtime.settings import ServiceSettings
from heliograph.telemetry.logs import configure_logs

log = structlog.get_logger()
S = TypeVar("S", bound=ServiceSettings)
S_contra = TypeVar("S_contra", bound=ServiceSettings, contravariant=True)

OPEN_FILES: Final = 131_072  # a connection is an open file; the usual soft limit is 1,024


class Exit(IntEnum):
    """What a service's process ends with; 75 is sysexits' "try again later"."""

    OK = 0  # it was told to stop
    FAILED = 1  # something unexpected, or stored data that contradicts itself; the log says what
    BAD_SETTINGS = 2  # a setting, a key file or a token file does not fit; starting it again cannot help
    UNAVAILABLE = 75  # something that it needs is away; starting it again may help


class ServeWith(Protocol[S_contra]):
    def __call__(self, settings: S_contra, *, ready: asyncio.Event, stop: asyncio.Event) -> Awaitable[None]: ...


def run(name: str, make_settings: Callable[[], S], serve: ServeWith[S]) -> int:
    """Runs a service until SIGTERM or SIGINT (a second signal ends at once). Returns the exit code; a traceback only for what nobody expected."""
    try:
        settings = make_settings()
    except ValidationError as error:
        _explain(name, error)
        return Exit.BAD_SETTINGS
    configure_logs(name, level=settings.log_level.lower())
    if place := own_place():
        structlog.contextvars.bind_contextvars(worker=place.number)
    gc.set_threshold(50_000, 20, 100)  # full collections of a large heap stop the loop; see docs/architecture.md
    _allow_open_files()
    try:
        uvloop.run(_until_signal(name, settings, serve))
    except Exception as error:
        return _ended(error)
    return Exit.OK


def _explain(name: str, error: ValidationError) -> None:
    """One line per variable, to a person: there are no logs yet. Never the value, it may be a secret."""
    for fault in error.errors(include_input=False, include_url=False):
        variable = "".join(f"HELIOGRAPH_{each}: ".upper() for each in fault["loc"][:1])
        print(f"heliograph {name}: {variable}{fault['msg'].removeprefix('Value error, ')}", file=sys.stderr)  # noqa: T201


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _ended(error: BaseException) -> Exit:
    leaves = list(_leaves(error))
    expected = [each for each in leaves if isinstance(each, (HeliographError, OSError))]
    if len(expected) < len(leaves):
        log.error("service_ended", exc_info=error)
        return Exit.FAILED
    first = expected[0]
    if isinstance(first, OSError):  # a full disk, a folder that may not be written to
        log.error("service_ended", code="os", detail=f"{first.strerror or type(first).__name__}: {first.filename or 'no file'}")
        return Exit.FAILED
    log.error("service_ended", code=first.code, detail=first.detail)
    if isinstance(first, Invalid):
        return Exit.BAD_SETTINGS
    return Exit.UNAVAILABLE if isinstance(first, Unavailable) else Exit.FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


async def _until_signal(name: str, settings: S, serve: ServeWith[S]) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    handle_signals(stop)
    log.info("service_starting", service=name)
    async with Starter.told_by(os.environ, os.getpid()).follows(ready, stop):
        beside = [asyncio.create_task(work) for work in _beside(settings)]
        try:
            await serve(settings, ready=ready, stop=stop)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
    log.info("service_stopped", service=name)


def _beside(settings: ServiceSettings) -> Iterator[Coroutine[Any, Any, None]]:
    if own_place():
        yield _end_when_alone()
    if settings.huge_pages:
        yield huge_pages.gather()


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


@contextmanager
def on_hangup(call: Callable[[], object]) -> Iterator[None]:
    """SIGHUP, which would end the process, calls this instead."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, call)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _end_when_alone() -> None:
    """A worker whose supervisor is gone must not linger: as if it had been told to stop, or, if it had been told already, to make it quick."""
    await standard_input_ended()
    log.warning("supervisor_gone")
    signal.raise_signal(signal.SIGTERM)


async def standard_input_ended() -> None:
    """For a parent process that may be killed: its death closes the pipe."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while await reader.read(4096):
            pass
    finally:
        transport.close()
