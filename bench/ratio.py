"""Two systems measured in turn: the ratio of their medians, and how sure it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

RESAMPLES = 2_000
SURE = 0.95


@dataclass(frozen=True)
class Ratio:
    """Of ours to theirs, with the bounds between which it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 1) -> Ratio:
    """`ours[i]` and `theirs[i]` were measured one right after the other. Pairs are drawn again with replacement, so that what the machine did to both
    at a time is kept. Raises ValueError without pairs."""
    pairs = list(zip(ours, theirs, strict=True))
    if not pairs:
        raise ValueError("there is nothing to compare")
    chance = random.Random(seed)
    drawn = sorted(_of_medians(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    outside = (1 - SURE) / 2
    return Ratio(_of_medians(pairs), drawn[int(outside * RESAMPLES)], drawn[int((1 - outside) * RESAMPLES) - 1])


def _of_medians(pairs: Sequence[tuple[float, float]]) -> float:
    return median(ours for ours, _ in pairs) / median(theirs for _, theirs in pairs)
