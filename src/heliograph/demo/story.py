"""The story by itself, without a terminal: every step is checked, and the first one that fails ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rich.console import Console

from heliograph.core.errors import HeliographError
from heliograph.demo.cast import Actor
from heliograph.demo.sample import CONFIG, INVALID
from heliograph.demo.shop import Shop

DEADLINE_S = 60.0


async def tell(shop: Shop, actors: list[Actor], say: Console) -> int:
    """Exit status: 0 when everything happened as it should."""
    try:
        await _tell(shop, actors, say)
    except (HeliographError, AssertionError, TimeoutError) as error:
        say.print(f"[red bold]✗[/] {error or type(error).__name__}")
        return 1
    say.print("[green bold]✓[/] the whole story, as it should be")
    return 0


async def _tell(shop: Shop, actors: list[Actor], say: Console) -> None:
    await _until(lambda: all(actor.number for actor in actors), actors, "all eight clients run")
    await _connected(shop, len(actors))
    before = await shop.head()
    say.print(f"eight clients run on version {before['number']}")

    document = await shop.config()
    new = document["max_items"] % 1000 + 1
    answer = await shop.put({**document, "max_items": new}, wait_s=20)
    _require(answer.status_code == 201, f"the publish was answered {answer.status_code}")
    published = answer.json()
    await _arrived(shop, actors, published["number"], new)
    say.print(f"published version {published['number']}: {CONFIG} max_items {document['max_items']} → {new}; all eight show it")
    await _print_receipts(shop, published, say)

    refused = await shop.put(INVALID)
    faults = refused.json().get("faults", [])
    _require(refused.status_code == 422 and len(faults) >= 4, "an invalid document was not refused with all its faults")
    _require((await shop.head())["number"] == published["number"], "an invalid document moved the head")
    say.print("an invalid document is refused, and nothing moves:")
    for fault in faults:
        say.print(f"  {fault['pointer'] or '(the whole)':16}{fault['rule']:22}{fault['message']}", markup=False)

    back = await shop.roll_back(before["number"], wait_s=20)
    await _arrived(shop, actors, back["number"], document["max_items"])
    _require(back["root"] == before["root"], "the rollback's root is not the old one")
    say.print(f"rolled back to version {before['number']} as version {back['number']}, with the same root; all eight show it")
    await _print_receipts(shop, back, say)


async def _arrived(shop: Shop, actors: list[Actor], number: int, value: Any) -> None:
    await _until(
        lambda: all(a.number >= number and a.value == value for a in actors), actors, f"all clients show version {number}"
    )
    async with asyncio.timeout(DEADLINE_S):
        while True:
            told = await shop.propagation(number)
            if told and told["applied"] + told["unaffected"] == len(actors) and told["missing"] == 0:
                return
            await asyncio.sleep(0.1)


async def _print_receipts(shop: Shop, version: dict[str, Any], say: Console) -> None:
    told = await shop.propagation(version["number"])
    assert told
    names = {each["instance"]: each["fingerprint"]["labels"].get("host", "") for each in await shop.instances()}
    for each in await shop.receipts(version["number"]):
        after = (each["applied_at_us"] - told["received_at_us"]) / 1000
        say.print(f"  {names.get(each['instance'], each['instance']):14}{each['state']:12}{after:7.1f} ms", markup=False)
    times = told["times_ms"]["applied"]
    say.print(f"  applied: p50 {times['p50']:.1f} ms, p95 {times['p95']:.1f} ms, p99 {times['p99']:.1f} ms", markup=False)


async def _connected(shop: Shop, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len(await shop.instances()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _until(reached: Callable[[], bool], actors: list[Actor], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not reached():
                ended = [actor.sample.host for actor in actors if actor.child.returncode is not None]
                _require(not ended, f"these clients ended: {', '.join(ended)}")
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:.0f} s: {what}") from None


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
