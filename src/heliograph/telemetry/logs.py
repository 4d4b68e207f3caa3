"""Structured logs: one JSON object per line on standard error, with constant event names.

    log = structlog.get_logger(__name__)
    log.info("version_committed", namespace="shop", number=42)

The event name is a constant snake_case string; everything that varies is a field. ERROR is for what someone must act on.
Whatever looks like a token of ours is masked in every field, message and traceback, however deep; other secrets must not be
passed at all. Records of the standard library's loggers (uvicorn, asyncpg, asyncio) come out in the same shape, named
``library_message``.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO, cast

import msgspec
import structlog

_TOKEN: Final = re.compile(r"hel_([a-z]+)_[0-9A-Za-z]+")
_ALWAYS_HIDDEN: Final = frozenset({"authorization", "token", "secret", "password", "cookie"})
_MAX_DEPTH: Final = 6  # fields are flat by custom; deeper than this is cut rather than searched
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logs(service: str, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Sends this process's logs to ``stream`` (default: standard error as it is at the time of each line).

    ``level``: debug, info, warning or error, in any case; KeyError for anything else.
    Calling again replaces the earlier set-up. In the all-in-one process it is called once, with the name of the whole.
    """
    number = _LEVELS[level.lower()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _named(service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            redact,
            _as_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=False,
    )
    logging.root.handlers = [_FromStandardLibrary()]
    logging.root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(capture=True)


def mask(text: str) -> str:
    """``text`` with everything that looks like one of our tokens replaced by its kind and ``***``."""
    return _TOKEN.sub(r"hel_\1_***", text)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor for structlog: masks tokens in every value, and whole fields whose name says that they are secret."""
    return {
        key: "***" if key.lower() in _ALWAYS_HIDDEN and value else _masked(value, _MAX_DEPTH) for key, value in event.items()
    }


def _masked(value: object, depth: int) -> object:
    if isinstance(value, str):
        return mask(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        return {
            mask(str(k)): "***" if str(k).lower() in _ALWAYS_HIDDEN and v else _masked(v, depth - 1) for k, v in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_masked(item, depth - 1) for item in value]
    return mask(repr(value))


def _named(service: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        return event

    return add


def _as_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    first = {key: event[key] for key in ("at", "level", "service", "event") if key in event}
    return msgspec.json.encode(first | cast("dict[str, Any]", event)).decode()


class _Lines:
    """The last step: one line, written at once so that a crash loses none, and as a whole, as workers share a stream: `print` writes a line and its
    end one after the other where nothing is buffered."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(line + "\n")
        stream.flush()

    debug = info = warning = error = critical = exception = log = msg


class _FromStandardLibrary(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        structlog.get_logger().log(min(record.levelno, logging.ERROR), "library_message", **fields)
