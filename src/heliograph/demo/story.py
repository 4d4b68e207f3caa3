"""The whole story by itself, for machines and for people without a terminal: every step says what it saw and fails when something is missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final

from heliograph.cli import show
from heliograph.core.errors import Corrupt, SchemaViolation, TimedOut
from heliograph.demo.author import Author
from heliograph.demo.fleet import Fleet
from heliograph.demo.shop import BROKEN, LIMITS, MAX_ITEMS, NAMESPACE, SHOWN

START_S: Final = 60.0
STEP_S: Final = 20.0
LOOK_S: Final = 0.05
PLACE: Final = f"{NAMESPACE}/{SHOWN}"


async def tell(author: Author, fleet: Fleet) -> None:
    """Raises HeliographError when anything is not as promised."""
    before = await _begin(author, fleet)
    await _publish(author, fleet)
    await _refuse(author, fleet)
    await _roll_back(author, fleet, before)
    show.say("\nthe end: everything was there")


async def _begin(author: Author, fleet: Fleet) -> int:
    started = time.monotonic()
    number = int((await author.head(SHOWN))["number"])
    await fleet.until(lambda member: member.number >= number, f"on version {number}", START_S)
    await _counted(author, fleet)
    took = time.monotonic() - started
    show.say(f"{len(fleet.members)} clients run on version {number} of {PLACE} after {took:.1f} s:")
    for each in fleet.members:
        show.say(
            f"  {each.sample.host:<10} {each.sample.app:<13} {each.sample.region:<13} view {', '.join(each.sample.view) or 'all'}"
        )
    return number


async def _counted(author: Author, fleet: Fleet) -> None:
    """Until the ledger knows that they are there: a version published before is not awaited of them."""
    wanted = {each.instance for each in fleet.members}
    try:
        async with asyncio.timeout(START_S):
            while not wanted <= await author.instances(SHOWN):  # noqa: ASYNC110  # only the ledger knows, and it is asked
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise TimedOut(f"the ledger does not list all {len(wanted)} clients after {START_S:.0f} s") from None


async def _publish(author: Author, fleet: Fleet) -> None:
    document = await author.document(SHOWN, LIMITS)
    was = int(str(document["max_items"]))
    document["max_items"] = was % MAX_ITEMS + 1
    show.say(f"\npublish {PLACE}/{LIMITS}: max_items {was} -> {document['max_items']}")
    answer = await author.publish(SHOWN, LIMITS, document, "Raise the limit")
    await _all_have(author, fleet, answer)
    _expect(all(each.values.get(LIMITS) == document for each in fleet.members), "every client reads the new value")


async def _refuse(author: Author, fleet: Fleet) -> None:
    show.say(f"\npublish an invalid {LIMITS}")
    at = int((await author.head(SHOWN))["number"])
    try:
        await author.publish(SHOWN, LIMITS, BROKEN, "Break it")
    except SchemaViolation as refusal:
        show.say(f"  refused: {refusal.detail}")
        for fault in refusal.faults:
            show.say(f"  {fault.pointer or '(whole)':<12} {fault.rule:<22} {fault.message}")
        _expect(len(refusal.faults) >= 4, "every fault is listed")  # what `BROKEN` breaks
    else:
        raise Corrupt("an invalid document was published")
    _expect(int((await author.head(SHOWN))["number"]) == at, "the head has not moved")
    _expect(all(each.number == at for each in fleet.members), "no client has moved")
    show.say(f"  nothing moved: head and clients are at version {at}")


async def _roll_back(author: Author, fleet: Fleet, to: int) -> None:
    show.say(f"\nroll {PLACE} back to version {to}")
    answer = await author.roll_back(SHOWN, to)
    _expect(answer["root"] == (await author.version(SHOWN, to))["root"], "a rollback has the old root")
    await _all_have(author, fleet, answer)


async def _all_have(author: Author, fleet: Fleet, answer: dict[str, Any]) -> None:
    """The ledger has a receipt of every client, and every client says so itself."""
    number = int(answer["number"])
    problem = answer["wait"].get("problem")
    if problem:
        raise TimedOut(f"the propagation of version {number} is not known: {problem}")
    await fleet.until(lambda member: member.number == number, f"on version {number}", STEP_S)
    receipts = await author.receipts(SHOWN, number)
    for line in _told(answer, receipts, fleet):
        show.say(line)
    _expect(answer["wait"]["reached"], "every instance applied it in time")
    missing = [each.sample.host for each in fleet.members if receipts.get(each.instance, {}).get("state") != "applied"]
    _expect(not missing, f"a receipt from {', '.join(missing)}")


def _told(answer: dict[str, Any], receipts: dict[str, dict[str, Any]], fleet: Fleet) -> Iterable[str]:
    story = answer["propagation"]
    times, applied = story["times_ms"], story["times_ms"]["applied"]
    yield f"  version {answer['number']} {answer['version'][:19]}… {answer['kind']}"
    yield f"  {story['applied']} of {story['instances']} applied, {story['rejected']} rejected, {story['missing']} missing"
    yield f"  p50 {show.ms(applied['p50'])}  p95 {show.ms(applied['p95'])}  p99 {show.ms(applied['p99'])}  max {show.ms(applied['max'])}"
    yield f"  committed {show.ms(times['commit'])}, read from the log {show.ms(times['log'])}, sent to all {show.ms(times['fan_out'])}"
    for each in fleet.members:
        receipt = receipts.get(each.instance)
        took = show.ms((receipt["applied_at_us"] - story["received_at_us"]) / 1000) if receipt else "no receipt"
        yield f"    {each.sample.host:<10} {receipt['state'] if receipt else '-':<10} {took:>10}"


def _expect(holds: object, what: str) -> None:
    if not holds:
        raise Corrupt(f"missing: {what}")
