"""How long to wait before the next try: exponential, capped, with full jitter, so that a crowd does not come back at once."""

from __future__ import annotations

from random import Random
from typing import Final

MOST_S: Final = 300.0
"""No server may send a client away for longer: it may be wrong, or not the one it should be."""


class Backoff:
    """``delay()`` is uniform in [0, min(cap, first * 2^n)] seconds after n failures in a row."""

    def __init__(self, random: Random, *, first_s: float = 0.2, cap_s: float = 30.0) -> None:
        self._random = random
        self._first_s = first_s
        self._cap_s = cap_s
        self.failures = 0

    def delay(self, at_least_s: float = 0.0) -> float:
        """Counts one more failure. ``at_least_s``: what the server asked for (Retry-After), believed up to `MOST_S`; jitter of its size or of the
        ceiling's is added, for it has asked a crowd."""
        asked = min(at_least_s, MOST_S)
        ceiling = min(self._cap_s, max(asked, self._first_s * 2 ** min(self.failures, 32)))
        self.failures += 1
        return asked + self._random.uniform(0.0, ceiling)

    def succeeded(self) -> None:
        self.failures = 0
