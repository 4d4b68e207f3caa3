"""An environment's view as it changes, over HTTP long polls, with every check that a client makes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import msgspec

from heliograph.cli import show
from heliograph.cli.api import Api
from heliograph.cli.target import Target
from heliograph.core.errors import MalformedFrame, Unavailable
from heliograph.core.frames import AdvanceFrame, Current, DeltaFrame, HeadFrame, SnapshotFrame
from heliograph.core.names import view
from heliograph.core.replica import Assembler, Replica, Statement
from heliograph.core.trust import Trust
from heliograph.runtime.clock import now_us
from heliograph.runtime.retry import delay

_Said: TypeAlias = SnapshotFrame | DeltaFrame | AdvanceFrame | Current | HeadFrame
HOLD_S: Final = 20.0
"""How long one poll waits for news."""


@dataclass(frozen=True, slots=True)
class Step:
    """A version that was verified and is now the one that `Follower.configs` shows."""

    number: int
    version: str
    changed: list[str]


class Follower:
    """Starts with a snapshot. Raises Unavailable when nobody answers, Refused when something does not verify."""

    def __init__(self, api: Api, trust: Trust, where: Target) -> None:
        self._api = api
        self._path = where.of("bundles")
        self._replica = Replica(trust, where.namespace, where.environment, view([where.config]))
        self._take(self._api.bundle(self._path, self._replica.view))

    @property
    def number(self) -> int:
        cursor = self._replica.cursor
        return cursor.number if cursor else 0

    @property
    def configs(self) -> dict[str, Any]:
        return dict(self._replica.configs)

    def steps(self) -> Iterator[Step]:
        """Never ends by itself; a server that is away is asked again, with growing pauses."""
        failed = 0
        while True:
            try:
                step = self._take(self._api.bundle(self._path, self._replica.view, self._replica.cursor, HOLD_S))
            except Unavailable as error:
                show.note(f"{error.detail}; trying again", "yellow")
                time.sleep(delay(failed, base_s=0.5))
                failed += 1
                continue
            failed = 0
            if step:
                yield step

    def _take(self, body: bytes) -> Step | None:
        """None when it is no new version."""
        before = self._replica.cursor
        candidate = self._replica.consider(whole_frame(body), now_us())
        if candidate is None:
            return None
        self._replica.adopt(candidate)
        if candidate.cursor == before:
            return None
        return Step(candidate.cursor.number, candidate.cursor.version, sorted(candidate.changed))


def whole_frame(body: bytes | str) -> Statement:
    """The frame that a bundle is, or whose parts it lists. Raises MalformedFrame, BadProof."""
    try:
        said: _Said | list[_Said] = msgspec.json.decode(body, type=_Said | list[_Said])
    except msgspec.DecodeError:
        raise MalformedFrame("not a bundle") from None
    assembler = Assembler()
    for part in said if isinstance(said, list) else [said]:
        if isinstance(part, Current | HeadFrame):
            return part
        if whole := assembler.add(part):
            return cast("Statement", whole)  # of the same kind as its parts
    raise MalformedFrame("the last part of the bundle is missing")
