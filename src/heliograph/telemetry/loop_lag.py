"""How late this process's event loop runs what is due: the first thing to look at when latency grows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from heliograph.telemetry.metrics import Metrics

PERIOD_S = 0.25  # often enough for a stall that lasts; each sample wakes a process that may have nothing else to do


async def run(metrics: Metrics, stop: asyncio.Event, seen: Callable[[float], None] = lambda _: None) -> None:
    """Samples until ``stop`` is set; each, in seconds, is told to ``seen``."""
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        due = loop.time() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        lag_s = max(0.0, loop.time() - due)
        metrics.loop_lag_seconds.observe(lag_s)
        seen(lag_s)
