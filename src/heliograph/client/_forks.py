"""What belongs to one process: not to be pickled, and not to be shared with a child made by ``fork``.

A fork copies sockets and locked files, but not the thread or the loop that serves them. The child lets go of its copies without a word on
the wire, so the parent's connection and its lock live on, and end with the parent alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class OfThisProcess:
    """Tied to a connection of this process: refuses to be pickled or copied, and says what to do."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"cannot pickle or copy {type(self).__name__!r}: it belongs to a live client of this process. Pass the values "
            "(config.copy()), or open a client where they are needed"
        )


_watched: Final[WeakKeyDictionary[Any, Callable[[Any], None]]] = WeakKeyDictionary()


def watch(one: T, in_child: Callable[[T], None]) -> None:
    """Calls ``in_child(one)`` in every child made by fork from now on, as long as somebody else keeps ``one``.

    It runs in the child's only thread, before anything else there. It waits for nothing and never raises.
    """
    _watched[one] = in_child


def let_go(descriptor: int) -> None:
    """The child's copy of an open file becomes nothing. Whoever still believes to own the number closes that nothing, and not another file."""
    if descriptor < 0:
        return
    with contextlib.suppress(OSError):  # no descriptor is left: the copy stays open, and ends with the child
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)


def _in_child() -> None:
    for one, in_child in list(_watched.items()):
        in_child(one)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
