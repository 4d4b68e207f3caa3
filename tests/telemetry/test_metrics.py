from __future__ import annotations

import asyncio

from prometheus_client import Counter, Gauge, Histogram

from heliograph.telemetry import loop_lag
from heliograph.telemetry.metrics import Metrics


def test_every_metric_is_ours_by_name_and_none_is_labelled_by_what_clients_say():
    declared = [value for value in vars(Metrics()).values() if isinstance(value, (Counter, Gauge, Histogram))]
    assert len(declared) > 40
    unbounded = {"namespace", "environment", "instance", "config", "host", "token"}
    for metric in declared:
        assert metric._name.startswith("heliograph_")
        assert not unbounded & set(metric._labelnames)


def test_two_sets_of_metrics_stand_side_by_side():
    one, other = Metrics(), Metrics()
    one.receipts.labels("applied").inc()
    assert b'heliograph_receipts_total{state="applied"} 1.0' in one.exposition()
    assert b'heliograph_receipts_total{state="applied"}' not in other.exposition()


def test_propagation_is_finest_around_the_promise():
    metrics = Metrics()
    metrics.propagation_seconds.labels("local").observe(0.042)
    text = metrics.exposition()
    assert b'heliograph_propagation_seconds_bucket{le="0.04",region="local"} 0.0' in text
    assert b'heliograph_propagation_seconds_bucket{le="0.045",region="local"} 1.0' in text


async def test_loop_lag_is_sampled_until_told_to_stop():
    metrics, stop = Metrics(), asyncio.Event()

    def samples() -> float:
        return next(s.value for m in metrics.loop_lag_seconds.collect() for s in m.samples if s.name.endswith("_count"))

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(loop_lag.run(metrics, stop))
        while samples() < 2:
            await asyncio.sleep(0.01)
        stop.set()
