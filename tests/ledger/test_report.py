from __future__ import annotations

import random
import statistics

import pytest

from heliograph.services.ledger.report import Percentiles, milliseconds, percentiles, share_of


def test_percentiles_are_values_that_were_measured():
    values = [float(n) for n in range(1, 101)]
    random.Random(1).shuffle(values)
    assert percentiles(values) == Percentiles(100, 50.0, 95.0, 99.0, 100.0)


@pytest.mark.parametrize(
    ("count", "p50", "p95", "p99"), [(1, 1, 1, 1), (2, 1, 2, 2), (3, 2, 3, 3), (20, 10, 19, 20), (1000, 500, 950, 990)]
)
def test_nearest_rank(count, p50, p95, p99):
    found = percentiles(float(n) for n in range(1, count + 1))
    assert (found.p50, found.p95, found.p99, found.max, found.count) == (p50, p95, p99, count, count)


def test_the_median_of_an_odd_number_is_the_middle_one():
    values = [random.Random(n).random() for n in range(501)]
    assert percentiles(values).p50 == statistics.median(values)


def test_nothing_measured_is_said_as_nothing():
    assert percentiles([]) == Percentiles(0, None, None, None, None)


def test_share():
    assert share_of(0, 0, 0) == 1.0
    assert share_of(0, 3, 3) == 0.0
    assert share_of(1, 3, 1) == 0.5


def test_a_clock_behind_does_not_make_time_run_backwards():
    assert milliseconds(2_000, 1_000) == 0
    assert milliseconds(1_000, 3_500) == 2.5
