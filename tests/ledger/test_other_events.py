"""Events of the registry that tell the ledger nothing are taken in and leave no letter."""

from __future__ import annotations

from heliograph.core.events import DeletedEvent, PurgeEvent


async def test_a_deletion_and_a_purge_are_no_poison(stage, story):
    async with stage.leading() as term:
        await stage.event(DeletedEvent(namespace="shop", environment="production", at_us=1, erase_at_us=2))
        await stage.event(PurgeEvent(namespace="shop", digests=("sha256:" + "0" * 64,), at_us=1))
        await stage.commit(story.version(received=0), at=2)
        await stage.caught_up(term)
        assert (await stage.report(1)).number == 1
        assert await stage.rows("select * from eventlog.dead_letter") == []
