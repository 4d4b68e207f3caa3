from __future__ import annotations

import pytest

from heliograph.telemetry.tracing import Trace, continued

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traceparent_survives_the_round_trip():
    trace = Trace.parse(HEADER)
    assert trace is not None
    assert str(trace) == HEADER
    assert trace.sampled


def test_a_child_keeps_the_trace_and_the_decision_but_not_the_span():
    parent = Trace.parse(HEADER[:-2] + "00")
    assert parent is not None
    child = parent.child()
    assert child.trace_id == parent.trace_id
    assert child.span_id != parent.span_id
    assert not child.sampled


def test_new_traces_are_valid_and_different():
    one, other = Trace.new(), Trace.new()
    assert Trace.parse(str(one)) == one
    assert one.trace_id != other.trace_id


def test_a_later_version_of_the_standard_is_understood():
    assert Trace.parse("cc-" + HEADER[3:] + "-what-the-future-brings") is not None


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "",
        "ff" + HEADER[2:],
        HEADER.upper(),
        HEADER + "-extra",
        HEADER[:-1],
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        HEADER + "\n",
        "cc-" + HEADER[3:] + "-" + "x" * 300,
    ],
)
def test_what_breaks_the_standard_starts_a_new_trace(broken):
    assert Trace.parse(broken) is None
    assert Trace.parse(str(continued(broken))) is not None
