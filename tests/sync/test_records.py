"""What sync tells, as records: receipts that follow each other share one, and nobody's events change places."""

from __future__ import annotations

from collections import defaultdict

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from heliograph.core.events import (
    MAX_EVENT,
    SHARDS,
    FromSync,
    InReceipts,
    Receipts,
    Received,
    Unsubscribed,
    shard_of,
)
from heliograph.services.sync.records import MAX_ROWS, records

INSTANCES = [f"instance-{number}" for number in range(24)]  # some share a shard, some do not


def receipt(instance: str, number: int = 1, state: str = "applied", **more: object) -> Received:
    fields: dict[str, object] = {
        "namespace": "shop",
        "environment": "prod",
        "instance": instance,
        "connection": f"connection of {instance}",
        "subscription": 1,
        "node": "node-1",
        "epoch": 1,
        "number": number,
        "version": f"sha256:{number:064}",
        "state": state,
        "reason": None,
        "applied_at_us": 10,
        "received_at_us": 20,
    }
    return msgspec.convert(fields | more, Received)


def left(instance: str) -> Unsubscribed:
    return Unsubscribed(
        namespace="shop", environment="prod", instance=instance, connection="c", subscription=1, node="n", reason="", at_us=1
    )


def said(body: bytes) -> list[FromSync]:
    event: InReceipts = msgspec.json.decode(body, type=InReceipts)
    return [event.received(row) for row in event.rows] if isinstance(event, Receipts) else [event]


events = st.one_of(
    st.builds(
        receipt,
        st.sampled_from(INSTANCES),
        st.integers(1, 3),
        st.sampled_from(["applied", "rejected"]),
        reason=st.one_of(st.none(), st.text(max_size=20)),
        environment=st.sampled_from(["prod", "staging"]),
        node=st.sampled_from(["node-1", "edge/node-2"]),
        trace=st.one_of(st.none(), st.just("00-1-2-01")),
        applied_at_us=st.integers(0, 2**53),
    ),
    st.builds(left, st.sampled_from(INSTANCES)),
)


@given(st.lists(events, max_size=60))
def test_each_event_is_told_once_in_its_shard_and_in_the_order_of_its_instance(told: list[FromSync]) -> None:
    by_instance: dict[str, list[FromSync]] = defaultdict(list)
    for record in records((event, event.instance) for event in told):
        for event in said(record.body):
            assert record.shard == shard_of(event.instance, shards=SHARDS)
            by_instance[event.instance].append(event)
    wanted: dict[str, list[FromSync]] = defaultdict(list)
    for event in told:
        wanted[event.instance].append(event)
    assert by_instance == wanted


def test_a_fan_outs_receipts_are_one_record_for_each_shard() -> None:
    instances = [str(number) for number in range(MAX_ROWS)]
    made = records((receipt(each), each) for each in instances)
    assert len(made) == SHARDS
    assert sum(len(said(each.body)) for each in made) == len(instances)


def test_a_record_is_never_larger_than_a_broker_takes() -> None:
    reason = "\x01" * 1000  # six bytes each as JSON
    made = records((receipt("one", state="rejected", reason=reason), "one") for _ in range(2 * MAX_ROWS))
    assert len(made) > 2
    assert all(len(each.body) < MAX_EVENT for each in made)
    full = records((receipt("one", connection="c" * 200, trace="t" * 200), "one") for _ in range(MAX_ROWS + 1))
    assert [len(said(each.body)) for each in full] == [MAX_ROWS, 1]
    assert len(full[0].body) < MAX_EVENT


def test_one_receipt_is_told_by_itself() -> None:
    [record] = records([(receipt("one"), "one")])
    assert msgspec.json.decode(record.body, type=InReceipts) == receipt("one")
