"""Errors: from the tree in `core/errors.py` and the tables that map it to HTTP, close codes and exit statuses."""

from __future__ import annotations

from handbook.markdown import code, join, table
from heliograph.cli.exits import exit_of
from heliograph.core.errors import HeliographError, Refused
from heliograph.runtime.problems import CLOSE, CLOSE_CODES, close_code_of, status_of


def page() -> str:
    return join(
        "# Errors",
        "Every refusal and failure has a stable code, which the API, the SDKs and the command line share. In HTTP it is the `code` of a problem "
        "document (RFC 9457); in a stream it is the close code and the `error` frame before it; of the command it is the exit status. "
        "Programs may rely on the code; the detail beside it is for people and never holds a document's value or a secret.",
        "*Again* says whether the very same request may succeed later. A code that you do not know is to be treated like its kind.",
        *(join(f"## {kind.title}", _table(every(kind))) for kind in _kinds()),
        join("## Anything else", _table([HeliographError])),
    )


def _kinds() -> list[type[HeliographError]]:
    return [each for each in HeliographError.__subclasses__() if each.__module__ == HeliographError.__module__]


def every(kind: type[HeliographError] = HeliographError) -> list[type[HeliographError]]:
    """A kind, then those below it, in the order of their declaration."""
    below = [each for each in kind.__subclasses__() if each.__module__ == HeliographError.__module__]
    return [kind, *(found for each in below for found in every(each))]


def _table(found: list[type[HeliographError]]) -> str:
    columns = ("code", "meaning", "HTTP", "close code", "exit status", "again", "what to do")
    return table(columns, map(_row, found))


def _row(kind: type[HeliographError]) -> tuple[object, ...]:
    error = kind.__new__(kind)  # the tables look at the class alone; some constructors want data
    status, exits = status_of(error), int(exit_of(error))
    again = "yes" if kind.again else "no"
    meaning = kind.title + ("; the SDK raises an alarm" if issubclass(kind, Refused) and kind.alarm else "")
    return code(kind.code), meaning, status, _close(error), exits, again, kind.advice


def _close(error: HeliographError) -> str:
    """Empty for what a stream has no code of its own for: it ends with the one for everything else."""
    number = close_code_of(error)
    own = type(error) is HeliographError or number != CLOSE[HeliographError]
    return f"[{number}](close-codes.md) {CLOSE_CODES[number][0]}" if own else ""
