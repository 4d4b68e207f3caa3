"""What is set aside of the log."""

from __future__ import annotations

import msgspec
import pytest

from heliograph.eventlog import dead_letters
from heliograph.eventlog.ports import Record, Stream
from heliograph.runtime.postgres import open_pool

RECORD = Record(Stream.RECEIPTS, 0, 1, 7, "shop/prod", b"{\x00", 1, 8, "a trace")


@pytest.fixture
async def pool(database):
    pool = await open_pool(database.url("heliograph_ledger"), "test")
    yield pool
    await pool.close()


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"key": "sh\0op/prod"}, "x"), ({"trace": "a \0trace"}, "x"), ({}, "x\0y"), ({"key": "\0" * 3000}, "\0" * 3000)],
    ids=["key", "trace", "reason", "all of it"],
)
async def test_a_record_that_holds_u0000_is_set_aside_with_a_sign_in_its_place(pool, more, reason):
    """Kafka keeps it; PostgreSQL's text cannot."""
    record = msgspec.structs.replace(RECORD, **more)
    for _ in range(2):
        await dead_letters.set_aside(pool, record, consumer="ledger", reason=reason, attempts=1)
    [letter] = await dead_letters.page(pool, dead_letters.Filter())
    expected = [text.replace("\0", "\ufffd") for text in (record.key, record.trace, reason)]
    assert [letter.key, letter.trace, letter.reason] == [*expected[:2], expected[2][: dead_letters.MAX_REASON]]
    assert (await dead_letters.one(pool, letter.id)).body == record.body


async def test_a_letter_that_fails_again_for_a_reason_with_u0000_says_so(pool):
    await dead_letters.set_aside(pool, RECORD, consumer="ledger", reason="x", attempts=1)
    [letter] = await dead_letters.page(pool, dead_letters.Filter())
    async with pool.acquire() as connection:
        await dead_letters.replay(connection, [letter.id], state="replayed", by="somebody", trace=None)
    assert await dead_letters.failed_again(pool, [letter.id], reason="x\0y") == ["receipts"]
    assert (await dead_letters.one(pool, letter.id)).reason == "x\ufffdy"
