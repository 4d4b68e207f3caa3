"""The log on Kafka. Topics ``<prefix>.versions`` (partition = shard), ``<prefix>.receipts``.

Contract of the versions topic for whoever reads it: (shard, timeline, position) in the headers is a record's identity. A relay that lost its lead may
append copies of records that are there already; readers drop what is not above the last position they have.

librdkafka works in threads of its own. Here one thread per reader polls and hands whole batches to the event loop; delivery reports of the appender
come back the same way.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from heliograph.core.errors import Corrupt, InvalidRequest, Unavailable
from heliograph.core.events import SHARDS
from heliograph.eventlog.ports import Gap, Marks, NewRecord, Reader, Record, Stream
from heliograph.runtime.clock import now_us
from heliograph.runtime.retry import until_available

log = structlog.get_logger()

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes. Events carry at most 256 KiB of text, but the leaves of thousands of configs may be in one."""
CALL_S: Final = 10.0
LEADERS_S: Final = 60.0
"""Seconds a new topic may take until its partitions answer: many at once on a small broker take some."""
DRAIN: Final = 500
APPEND_S: Final = 30.0
"""For which an append is tried. Then the producer drops its records, so that whoever hands them over again makes no copies in its queue."""
FLUSH_S: Final = 5.0

Options = dict[str, Any]
T = TypeVar("T")

_CONNECTION: Final[Options] = {
    "socket.nagle.disable": True,
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 500,
    "socket.timeout.ms": 10_000,
    "log_level": 3,
}
CONSUMER: Final[Options] = _CONNECTION | {
    "group.id": "heliograph",  # required by the client; nothing is stored under it
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",  # an offset that retention has passed: go on with what is left; positions show the gap
    "fetch.min.bytes": 1,
    "fetch.error.backoff.ms": 10,
    "fetch.queue.backoff.ms": 5,
    "fetch.message.max.bytes": MAX_MESSAGE,
    "topic.metadata.refresh.fast.interval.ms": 50,
}
PRODUCER: Final[Options] = _CONNECTION | {
    "acks": "all",
    "enable.idempotence": True,
    # without this, a record that the broker refuses is skipped and the next one is sent: silent loss
    "enable.gapless.guarantee": True,
    "linger.ms": 0,
    "retry.backoff.ms": 5,
    "retry.backoff.max.ms": 100,
    "message.max.bytes": MAX_MESSAGE,
    "queue.buffering.max.messages": 200_000,
}
TOPIC: Final = {"max.message.bytes": str(MAX_MESSAGE), "min.insync.replicas": "1", "retention.ms": str(7 * 24 * 3600 * 1000)}


def topic_name(prefix: str, stream: Stream) -> str:
    return f"{prefix}.{stream}"


def create_topics(
    bootstrap: str,
    prefix: str,
    options: Options,
    *,
    shards: int = SHARDS,
    replicas: int = 1,
    config: Mapping[str, str] | None = None,
) -> None:
    """Makes what is missing and waits until every partition has a leader. ``shards``: of the versions stream. Blocks; call it in a thread.

    Raises Unavailable, InvalidRequest when a topic is there that has another number of partitions.
    """
    admin = _admin(bootstrap, options)
    try:
        present = admin.list_topics(timeout=CALL_S).topics
        names = {topic_name(prefix, Stream.VERSIONS): shards, topic_name(prefix, Stream.RECEIPTS): SHARDS}
        settings = TOPIC | ({"min.insync.replicas": "2"} if replicas > 2 else {}) | dict(config or {})
        wanted = [NewTopic(name, count, replicas, config=settings) for name, count in names.items() if name not in present]
        if wanted:
            for made in admin.create_topics(wanted).values():
                _ignoring_present(lambda made=made: made.result(CALL_S))  # type: ignore[misc]
        for name, count in names.items():
            _await_leaders(admin, name, count)
    except KafkaException as error:
        raise Unavailable(f"Kafka: {_said(error)}", retry_after=1) from None


def _ignoring_present(call: Callable[[], object]) -> None:
    try:
        call()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def _await_leaders(admin: AdminClient, name: str, count: int) -> None:
    """Created is not yet led, and a leader that is named does not yet know that it leads: asked for its offsets, it does."""
    until = time.monotonic() + LEADERS_S
    while time.monotonic() < until:
        with suppress(KafkaException):
            partitions = admin.list_topics(name, timeout=CALL_S).topics[name].partitions  # and so the client knows them, too
            if len(partitions) > count:
                raise InvalidRequest(
                    f"Kafka: {name} has {len(partitions)} partitions, and the log has {count} shards, one each; it belongs to another "
                    "installation: set another HELIOGRAPH_KAFKA_PREFIX"
                )
            if len(partitions) == count and all(each.leader >= 0 for each in partitions.values()):
                _offsets(admin, name, count, OffsetSpec.latest())  # type: ignore[no-untyped-call]
                return
        threading.Event().wait(0.05)
    raise Unavailable(f"Kafka: {name} has not {count} partitions with leaders", retry_after=1)


def _admin(bootstrap: str, options: Options) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, **_CONNECTION, **options})


def _partitions(admin: AdminClient, topic: str) -> int:
    """One for each shard. Raises Unavailable."""
    found = len(admin.list_topics(topic, timeout=CALL_S).topics[topic].partitions)
    if not found:
        raise Unavailable(f"Kafka: there is no topic {topic} yet; the relay makes it", retry_after=1)
    return found


def _offsets(admin: AdminClient, topic: str, count: int, which: OffsetSpec) -> Marks:
    """Of every shard, in one request to each broker."""
    asked = admin.list_offsets(
        dict.fromkeys((TopicPartition(topic, shard) for shard in range(count)), which), request_timeout=CALL_S
    )
    return {partition.partition: found.result(CALL_S).offset for partition, found in asked.items()}


def _said(error: KafkaException) -> str:
    return str(error.args[0].str()) if error.args and isinstance(error.args[0], KafkaError) else type(error).__name__


def _note(error: KafkaError) -> None:
    """librdkafka's own news: a refused certificate shows here and nowhere else."""
    log.warning("kafka_error", error=error.name(), detail=error.str())


# --- reading --------------------------------------------------------------------------------------------------------------------


class KafkaReader:
    def __init__(self, bootstrap: str, prefix: str, stream: Stream, options: Options) -> None:
        self._topic = topic_name(prefix, stream)
        self._stream = stream
        self._bootstrap = bootstrap
        self._given = options
        self._options = {"bootstrap.servers": bootstrap, **CONSUMER, **options, "error_cb": _note}
        self._pumps: list[_Pump] = []

    async def identity(self) -> str:
        def ask() -> str:
            admin = _admin(self._bootstrap, self._given)
            described = admin.describe_topics(_topics([self._topic]))[self._topic].result(CALL_S)
            return f"kafka:{described.topic_id}"

        return await _in_thread(ask)

    async def end(self) -> Marks:
        return await self._marks(OffsetSpec.latest())  # type: ignore[no-untyped-call]

    async def earliest(self) -> Marks:
        return await self._marks(OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    async def _marks(self, which: OffsetSpec) -> Marks:
        def ask() -> Marks:
            admin = _admin(self._bootstrap, self._given)
            return _offsets(admin, self._topic, _partitions(admin, self._topic), which)

        return await _in_thread(ask)

    async def _shards(self) -> int:
        return await _in_thread(lambda: _partitions(_admin(self._bootstrap, self._given), self._topic))

    async def read(self, after: Mapping[int, int]) -> AsyncIterator[list[Record | Gap]]:
        shards = range(await until_available(self._shards))
        pump = _Pump(
            self._options, [TopicPartition(self._topic, shard, after.get(shard, OFFSET_BEGINNING)) for shard in shards]
        )
        self._pumps.append(pump)
        order = _Order(self._stream, after)
        try:
            async for messages in pump.batches():
                if batch := order.take(messages):
                    yield batch
        finally:
            await pump.close()
            self._pumps.remove(pump)

    async def close(self) -> None:
        for pump in list(self._pumps):
            await pump.close()


class _Order:
    """Drops copies and finds gaps, by the timeline and position in the headers; receipts have none and go by the leader's epoch and the offset. What
    is missing before a shard's first record, or was lost with the tail that the mark lies in, shows by its offset: it should be the mark that the
    reader began at.

    A consumer is reset to the partition's beginning when the place that it had reached is not there any more: a leader lost the tail, or the topic
    was made again. For receipts that is a gap. What was kept is told again and dropped; what took the place of the rest is of a higher epoch, or,
    in another topic, younger than anything that was read.
    """

    def __init__(self, stream: Stream, after: Mapping[int, int]) -> None:
        self._stream = stream
        self._after = after
        self._last: dict[int, tuple[int, int]] = {}
        self._youngest_us: dict[int, int] = {}
        self._reset: set[int] = set()  # shards whose gap was told already when their copies came

    def take(self, messages: Sequence[Message]) -> list[Record | Gap]:
        out: list[Record | Gap] = []
        for message in messages:
            if error := message.error():
                _note(error)
                continue
            record = self._record(message)
            if self._is_copy(record):
                out += self._was_reset(record.shard)
                continue
            if self._is_gap(record):
                out.append(Gap(record.shard))
            self._went_on(record)
            out.append(record)
        return out

    def _is_copy(self, record: Record) -> bool:
        last = self._last.get(record.shard)
        if last is None:
            return False
        if self._stream is not Stream.RECEIPTS:
            return (record.timeline, record.position) <= last
        younger = record.committed_at_us > self._youngest_us[record.shard]
        return record.timeline <= last[0] and record.position <= last[1] and not younger

    def _was_reset(self, shard: int) -> list[Gap]:
        """What a copy shows, once for all of them: of a receipt that the consumer was reset, of a version a relay only that had lost its lead."""
        if self._stream is not Stream.RECEIPTS or shard in self._reset:
            return []
        self._reset.add(shard)
        return [Gap(shard)]

    def _is_gap(self, record: Record) -> bool:
        shard, last = record.shard, self._last.get(record.shard)
        if last is None:  # below the mark: the log ends before it, and is read from its beginning
            return record.mark != self._after.get(shard, 0) + 1
        other_topic = self._stream is Stream.RECEIPTS and record.timeline < last[0]
        return shard not in self._reset and (other_topic or record.position != last[1] + 1)

    def _went_on(self, record: Record) -> None:
        shard = record.shard
        self._reset.discard(shard)
        self._last[shard] = (record.timeline, record.position)
        self._youngest_us[shard] = max(record.committed_at_us, self._youngest_us.get(shard, 0))

    def _record(self, message: Message) -> Record:
        pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
        headers = {name: value.decode() if value else "" for name, value in pairs}
        offset = cast("int", message.offset())  # None only for errors
        key = message.key()
        return Record(
            stream=self._stream,
            shard=cast("int", message.partition()),
            timeline=int(headers.get("timeline", (message.leader_epoch() or 0) + 1)),
            position=int(headers.get("position", offset + 1)),
            key=key.decode() if isinstance(key, bytes) else str(key or ""),
            body=message.value() or b"",
            committed_at_us=int(headers.get("committed_at_us", message.timestamp()[1] * 1000)),
            mark=offset + 1,
            trace=headers.get("traceparent") or None,
        )


class _Pump:
    """One consumer in one thread. It polls for the first message, takes what else is there without waiting (`consume` with a timeout would
    wait it out whole), and wakes the loop once for all of them."""

    def __init__(self, options: Options, assignment: list[TopicPartition]) -> None:
        self._options = options
        self._assignment = assignment
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[Message] | None] = asyncio.Queue()
        self._room = threading.Semaphore(64)  # batches on their way; the thread waits when the loop is behind
        self._stop = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="kafka reader", daemon=True)
        self._thread.start()

    async def batches(self) -> AsyncIterator[list[Message]]:
        while (batch := await self._queue.get()) is not None:
            self._room.release()
            yield batch
        if self._failure:
            raise Corrupt(f"the Kafka reader died: {self._failure}")

    async def close(self) -> None:
        self._stop.set()
        self._room.release()
        await asyncio.to_thread(self._thread.join, CALL_S)

    def _run(self) -> None:
        try:
            consumer = Consumer(self._options)
            consumer.assign(self._assignment)
            try:
                self._poll(consumer)
            finally:
                consumer.close()
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            log.exception("kafka_reader_died")
        self._hand(None)

    def _poll(self, consumer: Consumer) -> None:
        while not self._stop.is_set():
            first = consumer.poll(0.2)
            if first is None:
                continue
            self._room.acquire()
            self._hand([first, *consumer.consume(DRAIN, 0)])

    def _hand(self, batch: list[Message] | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, batch)
        except RuntimeError:  # the loop has closed; nobody waits any more
            self._stop.set()


# --- appending ------------------------------------------------------------------------------------------------------------------


class KafkaProducer:
    """An idempotent producer with its poll thread. `failed` is set with the reason when it can never send again: librdkafka reports that as a fatal
    error, and the owner must make a new one (appender) or end (relay). Closing sets it too: what was not delivered by then has no report."""

    def __init__(self, bootstrap: str, options: Options) -> None:
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[str] = self._loop.create_future()
        self._producer = Producer({"bootstrap.servers": bootstrap, **PRODUCER, **options, "error_cb": self._on_error})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kafka producer", daemon=True)
        self._thread.start()

    @property
    def in_flight(self) -> int:
        """Messages on their way."""
        return len(self._producer)

    def produce(
        self,
        topic: str,
        partition: int,
        key: str,
        body: bytes,
        headers: list[tuple[str, bytes]],
        delivered: Callable[[KafkaError | None], None],
    ) -> None:
        """`delivered` is called in the producer's thread. Raises Unavailable when the local queue is full or the producer has failed."""
        try:
            self._producer.produce(
                topic,
                body,
                key.encode(),
                partition=partition,
                headers=cast("list[tuple[str, str | bytes | None]]", headers),
                on_delivery=lambda error, _: delivered(error),
            )
        except BufferError:
            raise Unavailable("too many records wait for Kafka", retry_after=1) from None
        except KafkaException as error:
            self._set_failed(_said(error))  # at once: the next record is not to be handed to it
            raise Unavailable(f"Kafka: {_said(error)}", retry_after=1) from None

    async def close(self, flush_s: float | None = None) -> None:
        """What is on its way is given so many seconds; FLUSH_S unless said."""

        def end() -> None:
            try:
                self._producer.flush(FLUSH_S if flush_s is None else flush_s)
            except KafkaException as error:
                log.warning("kafka_flush_failed", error=_said(error))
            self._stop.set()
            self._thread.join(CALL_S)

        await asyncio.to_thread(end)
        self._set_failed("it is closed")

    def _on_error(self, error: KafkaError) -> None:
        _note(error)
        if error.fatal():
            self._fail(error.str())

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                self._producer.poll(0.2)
            except KafkaException as error:  # a fatal error is raised here too; unseen, it would end only this thread
                self._fail(_said(error))
                return
            except SystemError as error:  # an exception inside a delivery callback surfaces so
                self._fail(str(error))
                return

    def _fail(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._set_failed, reason)

    def _set_failed(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_result(reason)


class KafkaAppender:
    """Appends receipts. A producer that failed for good is replaced by a new one with the next append."""

    def __init__(self, bootstrap: str, prefix: str, stream: Stream, options: Options) -> None:
        self._bootstrap = bootstrap
        self._topic = topic_name(prefix, stream)
        self._options = options
        self._producer: KafkaProducer | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def warm(self) -> None:
        """Makes the producer now: the first message of a fresh one waits half a second for its id."""
        if self._producer is None or self._producer.failed.done():
            self._retire()
            self._producer = KafkaProducer(self._bootstrap, {"message.timeout.ms": round(APPEND_S * 1000), **self._options})

    def _retire(self) -> None:
        """Closes the producer, if there is one, while others go on."""
        if self._producer is not None:
            closing = asyncio.create_task(self._producer.close(), name="kafka producer closes")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def append(self, records: Sequence[NewRecord]) -> None:
        if not records:
            return
        if self._closed:
            raise Unavailable("the log is closed")
        self.warm()
        assert self._producer is not None  # one without messages on their way is falsy
        deliveries = _Deliveries(len(records))
        stamp = str(now_us()).encode()
        for each in records:
            headers = [("committed_at_us", stamp), *([("traceparent", each.trace.encode())] if each.trace else [])]
            self._producer.produce(self._topic, each.shard, each.key, each.body, headers, deliveries.delivered)
        await deliveries.until(self._producer.failed)

    async def close(self) -> None:
        """What was handed over before is finished first."""
        self._closed = True
        self._retire()
        await asyncio.gather(*self._closing)


class _Deliveries:
    """Counts acknowledgements in the producer's thread; resolves once, in the loop."""

    def __init__(self, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.all: asyncio.Future[None] = self._loop.create_future()
        self._left = count
        self._error: str | None = None

    async def until(self, failed: asyncio.Future[str]) -> None:
        """Returns when all are durable. Raises Unavailable when one is not, or when the producer has failed, which need not report any more."""
        try:
            await asyncio.wait((self.all, failed), return_when=asyncio.FIRST_COMPLETED)
            if not self.all.done():
                raise Unavailable(f"Kafka: {failed.result()}", retry_after=1)
            self.all.result()
        finally:
            self.all.cancel()

    def delivered(self, error: KafkaError | None) -> None:
        self._left -= 1
        if error is not None:
            self._error = error.str()
        if self._left == 0:
            self._loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if self.all.done():
            return
        if self._error:
            self.all.set_exception(Unavailable(f"Kafka: {self._error}", retry_after=1))
        else:
            self.all.set_result(None)


class KafkaLog:
    def __init__(self, bootstrap: str, prefix: str, options: Options) -> None:
        self._bootstrap = bootstrap
        self._prefix = prefix
        self._options = options
        self._made: list[Reader | KafkaAppender] = []

    def reader(self, stream: Stream) -> KafkaReader:
        reader = KafkaReader(self._bootstrap, self._prefix, stream, self._options)
        self._made.append(reader)
        return reader

    def appender(self, stream: Stream) -> KafkaAppender:
        appender = KafkaAppender(self._bootstrap, self._prefix, stream, self._options)
        appender.warm()
        self._made.append(appender)
        return appender

    async def close(self) -> None:
        for each in self._made:
            await each.close()


async def _in_thread(ask: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(ask)
    except KafkaException as error:
        raise Unavailable(f"Kafka: {_said(error)}", retry_after=1) from None


def _topics(names: list[str]) -> Any:
    from confluent_kafka import TopicCollection  # noqa: PLC0415  # only where a topic is described

    return TopicCollection(names)
