"""One text from the metrics of several processes."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from heliograph.telemetry.merging import merged
from heliograph.telemetry.metrics import Metrics


def text(connections: int, *closed: str) -> str:
    metrics = Metrics()
    metrics.connections.set(connections)
    for code in closed:
        metrics.connections_closed.labels(code).inc()
    metrics.fan_out_seconds.observe(0.001)
    return metrics.exposition().decode()


def test_every_sample_says_whose_it_is_and_families_stay_together():
    told = merged({"1": text(3, "4000"), "2": text(5, "4000", 'a"}b')}).decode()
    families = list(text_string_to_metric_families(told))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {each.labels["worker"] for family in families for each in family.samples} == {"1", "2"}
    found = {family.name: family for family in families}
    assert {each.labels["worker"]: each.value for each in found["heliograph_connections"].samples} == {"1": 3, "2": 5}
    closed = [each.labels for each in found["heliograph_connections_closed"].samples if each.name.endswith("_total")]
    assert {"worker": "2", "code": 'a"}b'} in closed
    assert found["heliograph_fan_out_seconds"].type == "histogram"
    assert told.count("# TYPE heliograph_connections gauge") == 1


def test_one_that_did_not_answer_is_reported():
    found = {each.name: each for each in text_string_to_metric_families(merged({"1": text(1), "2": None}).decode())}
    assert {each.labels["worker"]: each.value for each in found["heliograph_worker_up"].samples} == {"1": 1, "2": 0}
    assert [each.labels for each in found["heliograph_connections"].samples] == [{"worker": "1"}]
    assert merged({"1": None}) == b'heliograph_worker_up{worker="1"} 0\n'
