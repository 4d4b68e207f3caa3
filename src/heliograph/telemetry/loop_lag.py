"""How late this process's event loop runs what is due: the first thing to look at when latency grows."""

from __future__ import annotations

import asyncio

from heliograph.telemetry.metrics import Metrics

PERIOD_S = 0.1  # ten samples a second see a stall of 50 ms half of the time and cost nothing measurable


async def run(metrics: Metrics, stop: asyncio.Event) -> None:
    """Samples until ``stop`` is set."""
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        due = loop.time() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        metrics.loop_lag_seconds.observe(max(0.0, loop.time() - due))
