"""Where a partition ends, and from which event of the table the relay goes on."""

from __future__ import annotations

from typing import Final, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from heliograph.core.errors import Unavailable
from heliograph.eventlog.kafka import CONSUMER, Options
from heliograph.runtime.postgres import Connection, translating

CALL_S: Final = 10.0
FIRST_LOOK: Final = 8
Place = tuple[int, int]  # (timeline, position)
_LAST_SHARED = """
select t.shard, least(t.position, coalesce(
  (select e.position from eventlog.event e where e.shard = t.shard and e.position <= t.position and e.timeline <= t.timeline
   order by e.position desc limit 1),
  (select min(e.position) - 1 from eventlog.event e where e.shard = t.shard),
  s.next_position - 1
)) as position
from unnest($1::int[], $2::int[], $3::bigint[]) t (shard, timeline, position) join eventlog.event_shard s using (shard)
"""


def tails(bootstrap: str, topic: str, shards: int, options: Options) -> dict[int, Place]:
    """The largest (timeline, position) among the last records of each partition; (0, 0) where there is none. Blocks. Raises Unavailable.

    The largest, and not the last: a relay that had lost its lead may have appended older ones. The last offsets may hold no record at all
    (retention, control records), so it looks back 8, 64, 512 … offsets until one turns up.
    """
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, **CONSUMER, **options, "enable.partition.eof": True, "fetch.wait.max.ms": 5}
    )
    try:
        return _tails(consumer, topic, shards)
    except KafkaException as error:
        raise Unavailable(f"Kafka: {error}", retry_after=1) from None
    finally:
        consumer.close()


def _tails(consumer: Consumer, topic: str, shards: int) -> dict[int, Place]:
    marks = {
        shard: consumer.get_watermark_offsets(TopicPartition(topic, shard), timeout=CALL_S, cached=False)
        for shard in range(shards)
    }
    found: dict[int, Place] = dict.fromkeys(range(shards), (0, 0))
    open_ = {shard for shard, (low, high) in marks.items() if high > low}
    back = FIRST_LOOK
    while open_:
        start = {shard: max(marks[shard][0], marks[shard][1] - back) for shard in open_}
        _look(consumer, topic, start, found)
        open_ = {shard for shard in open_ if found[shard] == (0, 0) and start[shard] > marks[shard][0]}
        back *= 8
    return found


def _look(consumer: Consumer, topic: str, start: dict[int, int], found: dict[int, Place]) -> None:
    consumer.assign([TopicPartition(topic, shard, offset) for shard, offset in start.items()])
    waiting = set(start)
    while waiting:
        message = consumer.poll(CALL_S)
        if message is None:
            raise Unavailable("Kafka does not answer", retry_after=1)
        if error := message.error():
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  # the library's public name for it
                waiting.discard(message.partition())
            elif not error.retriable():
                raise KafkaException(error)
            continue
        shard = message.partition()
        assert shard is not None
        found[shard] = max(found[shard], place_of(message))


def place_of(message: Message) -> Place:
    pairs = cast("list[tuple[str, bytes]]", message.headers() or [])
    headers = dict(pairs)
    return int(headers.get("timeline", b"1")), int(headers["position"])


async def shared(connection: Connection, places: dict[int, Place]) -> dict[int, Place]:
    """The last event of each shard that Kafka and the table both have. Raises Unavailable.

    That is Kafka's last one, unless PostgreSQL was promoted without its newest events: their positions are used again on the higher timeline,
    and those are owed to Kafka although it has the positions.
    """
    timelines, positions = zip(*places.values(), strict=True)
    with translating():
        rows = await connection.fetch(_LAST_SHARED, list(places), timelines, positions)
    return {row["shard"]: (places[row["shard"]][0], row["position"]) for row in rows}
