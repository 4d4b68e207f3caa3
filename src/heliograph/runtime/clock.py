"""The one clock that measures across processes: wall time in whole microseconds since the Unix epoch."""

from __future__ import annotations

import time


def now_us() -> int:
    return time.time_ns() // 1000


def moment_us() -> int:
    """For what is measured within this process: never set back or forward, and means nothing elsewhere."""
    return time.monotonic_ns() // 1000
