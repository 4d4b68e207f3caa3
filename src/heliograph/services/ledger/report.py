"""The story of one version as people and machines read it: counts, percentiles, groups.

Times are milliseconds since the publish's first byte, unless they end in ``_us``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeVar

import msgspec

MAX_GROUPS: Final = 20  # of each kind, the largest; labels are the instances' own words and may be many
MAX_REJECTIONS: Final = 20

V = TypeVar("V", int, float)


class Percentiles(msgspec.Struct, frozen=True):
    """Exact, by nearest rank over every value; all None when there is none."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class Times(msgspec.Struct, frozen=True):
    """Until it was committed; the last node had read it from the log; the last node had sent its last frame; it was applied."""

    applied: Percentiles
    commit: float
    log: float | None = None
    fan_out: float | None = None


class Group(msgspec.Struct, frozen=True):
    instances: int
    applied: int
    rejected: int
    missing: int
    times_ms: Percentiles


class Groups(msgspec.Struct, frozen=True):
    """``label``: by ``key=value``, so an instance stands in several."""

    region: dict[str, Group] = {}
    sdk_version: dict[str, Group] = {}
    label: dict[str, Group] = {}


class Rejection(msgspec.Struct, frozen=True):
    instance: str
    reason: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """``instances``: those subscribed when the version was committed. ``left``: went away without an answer.

    ``share`` = (applied + unaffected + superseded) / (instances - left); 1 when there was no instance, 0 when all have left.
    ``behind``: the ledger has not read all that the log had when the version was committed; more instances may have taken part.
    """

    namespace: str
    environment: str
    number: int
    epoch: int
    version: str
    state: Literal["open", "closed"]
    outcome: str | None = None
    instances: int
    applied: int
    rejected: int
    unaffected: int
    superseded: int
    left: int
    missing: int
    share: float
    received_at_us: int
    committed_at_us: int
    logged_at_us: int | None = None
    fanned_out_at_us: int | None = None
    closed_at_us: int | None = None
    times_ms: Times
    by: Groups
    rejections: list[Rejection] = []
    digest: str | None = None
    behind: bool | msgspec.UnsetType = msgspec.UNSET


def percentiles(values: Iterable[V], shown: Callable[[V], float] = float) -> Percentiles:
    """Nearest rank: the p-th percentile is the smallest value that at least p % of all values do not exceed. ``shown``: of a value, what stands in
    the result; it keeps the order."""
    ordered = sorted(values)
    if not ordered:
        return Percentiles()
    p50, p95, p99 = (shown(ordered[_rank(percent, len(ordered))]) for percent in (50, 95, 99))
    return Percentiles(len(ordered), p50, p95, p99, shown(ordered[-1]))


def share_of(good: int, instances: int, left: int) -> float:
    if not instances:
        return 1.0
    return good / (instances - left) if instances > left else 0.0


def milliseconds(from_us: int, to_us: int) -> float:
    """Never negative: a clock that is a little behind must not make a configuration arrive before it was sent."""
    return max(0, to_us - from_us) / 1000


def _rank(percent: int, count: int) -> int:
    return -(-percent * count // 100) - 1
