"""The HTTP API over a real ledger: shapes, permissions, bounds, pages, drift."""

from __future__ import annotations

import httpx
import pytest

from heliograph.access.principal import Principal, Scope
from heliograph.core.errors import Unauthenticated
from heliograph.core.records import Cursor, Version
from heliograph.runtime.http import make_app
from heliograph.services.ledger.api import Api

PLACE = "shop/production"


class Tokens:
    """Two tokens that may see, one that may not, one that is a service's."""

    async def principal(self, token: str) -> Principal:
        kinds = {"admin": "admin", "author": "author", "client": "client", "service": "service", "staging": "author"}
        if token not in kinds:
            raise Unauthenticated("unknown")
        scope = Scope("shop", "staging") if token == "staging" else Scope()
        return Principal(id=token, kind=kinds[token], name=token, scopes=(scope,))


@pytest.fixture
async def ask(stage):
    app = make_app("ledger", metrics=stage.metrics, readiness=stage.readiness)
    Api(stage.ledger, stage.tables, Tokens(), stage.settings, stage.clock).add_to(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ledger") as client:

        async def get(path: str, token: str = "admin", **params):
            return await client.get(f"/v1/{path}", params=params, headers={"Authorization": f"Bearer {token}"})

        yield get


async def items(ask, path, **params):
    answer = await ask(path, **params)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def test_a_propagation_in_the_shape_that_was_promised(stage, story, ask):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1, labels={"tier": "web"}), story.subscribed("b", -1))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(
            story.fanned_out(v, logged=4, started=5, done=9),
            story.answer("a", v, "applied", 12),
            story.answer("b", v, "rejected", 13, reason="no"),
        )
        await stage.caught_up(term)
        await term.keeper.tick()
        found = (await ask(f"propagations/{PLACE}/1", "author")).json()
    assert {key: value for key, value in found.items() if not key.endswith("_us")} == {
        "namespace": "shop",
        "environment": "production",
        "number": 1,
        "epoch": 1,
        "version": Version.id_of(v.version.payload),
        "state": "open",
        "outcome": None,
        "instances": 2,
        "applied": 1,
        "rejected": 1,
        "unaffected": 0,
        "superseded": 0,
        "left": 0,
        "missing": 0,
        "share": 0.5,
        "times_ms": {
            "applied": {"count": 1, "p50": 12.0, "p95": 12.0, "p99": 12.0, "max": 12.0},
            "commit": 2.0,
            "log": 4.0,
            "fan_out": 9.0,
        },
        "by": {
            "region": {"eu": group(2, 1, 1, 12.0)},
            "sdk_version": {"1.0": group(2, 1, 1, 12.0)},
            "label": {"tier=web": group(1, 1, 0, 12.0)},
        },
        "rejections": [{"instance": "b", "reason": "no"}],
        "digest": None,
    }
    assert found["received_at_us"] == story.at(0)
    assert found["fanned_out_at_us"] == story.at(9)


def group(instances, applied, rejected, ms):
    times = {"count": applied, "p50": ms, "p95": ms, "p99": ms, "max": ms}
    return {"instances": instances, "applied": applied, "rejected": rejected, "missing": 0, "times_ms": times}


async def test_receipts_come_in_pages_and_by_state(stage, story, ask):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(
            *(
                story.answer(f"i{n:02}", v, "applied" if n % 3 else "rejected", 10 + n, subscription=s)
                for n in range(10)
                for s in (1, 2)
            )
        )
        await stage.caught_up(term)
        seen, cursor = [], ""
        while cursor is not None:
            page = (await ask(f"propagations/{PLACE}/1/receipts", cursor=cursor, limit=7)).json()
            seen += [(each["instance"], each["subscription"]) for each in page["items"]]
            cursor = page["next"]
        assert seen == [(f"i{n:02}", s) for n in range(10) for s in (1, 2)]
        rejected = await items(ask, f"propagations/{PLACE}/1/receipts", state="rejected")
        assert {each["instance"] for each in rejected} == {"i00", "i03", "i06", "i09"}
        assert (await ask(f"propagations/{PLACE}/9/receipts")).status_code == 404


async def test_instances_with_what_they_run(stage, story, ask):
    have = Cursor(1, 1, "sha256:" + "1" * 64)
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(
            story.subscribed("new", 5),
            story.subscribed("twice", 5, subscription=1, have=have),
            story.subscribed("twice", 5, subscription=2),
            story.subscribed("moved", 5, connection="c1"),
            story.subscribed("moved", 6, connection="c2", node="node-2", region="us"),
            story.subscribed("gone", 5),
            story.unsubscribed("gone", 7),
            story.answer("twice", v, "applied", 10, subscription=2),
            story.answer("moved", v, "rejected", 11, connection="c2", reason="no"),
        )
        await stage.caught_up(term)
        found = {each["instance"]: each for each in await items(ask, f"instances/{PLACE}")}
        assert list(found) == ["gone", "moved", "new", "twice"]
        assert [found[name]["connected"] for name in found] == [False, True, True, True]
        assert found["gone"]["until_us"] == story.at(7)
        assert (found["moved"]["region"], found["moved"]["node"]) == ("us", "node-2")
        assert found["moved"]["last_receipt"] == {"number": 1, "state": "rejected", "reason": "no", "at_us": story.at(12)}
        assert found["new"]["runs"] is None
        assert found["twice"]["runs"]["version"] == have.version
        assert [each["runs"]["since_us"] for each in found["twice"]["subscriptions"]] == [story.at(5), story.at(11)]
        assert found["twice"]["desired"]["version"] == Version.id_of(v.version.payload)
        assert found["twice"]["fingerprint"]["sdk"] == "heliograph-python"

        pages = [await ask(f"instances/{PLACE}", limit=3)]
        pages.append(await ask(f"instances/{PLACE}", limit=3, cursor=pages[0].json()["next"]))
        assert [[each["instance"] for each in page.json()["items"]] for page in pages] == [["gone", "moved", "new"], ["twice"]]
        assert pages[1].json()["next"] is None

        stage.clock.set(2 * 3_600_000)
        assert [each["instance"] for each in await items(ask, f"instances/{PLACE}")] == ["moved", "new", "twice"]


async def test_drift_begins_after_the_grace_period_and_names_the_cause(stage, story, ask):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=-60_000), at=-59_998)
        names = ["current", "lost", "refused", "silent", "slow", "went"]
        await stage.receipts(
            *(story.subscribed(name, -50_000, node="n2" if name == "lost" else "n1") for name in names),
            *(story.answer(name, v, "applied", -49_000, node="n2" if name == "lost" else "n1") for name in names),
            story.alive(-1, node="n1"),
        )
        w = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(
            story.answer("current", w, "applied", 10, node="n1"),
            story.answer("refused", w, "rejected", 10, node="n1", reason="max_items: too many"),
            story.answer("slow", v, "applied", 500, node="n1"),
            story.unsubscribed("went", 5, node="n1"),
            story.alive(9_000, node="n1"),
        )
        await stage.caught_up(term)
        stage.clock.set(10_001)
        assert await items(ask, f"drift/{PLACE}") == []
        await term.keeper.tick()
        stage.clock.set(10_002)
        found = await items(ask, f"drift/{PLACE}")
        assert [(each["instance"], each["cause"], each["reason"]) for each in found] == [
            ("lost", "silent", "its node n2 is lost"),
            ("refused", "rejected", "max_items: too many"),
            ("silent", "silent", None),
            ("slow", "slow", None),
            ("went", "disconnected", "closed"),
        ]
        assert {each["age_s"] for each in found} == {10.0}
        assert {each["runs"]["number"] for each in found} == {1}
        assert {each["desired"]["number"] for each in found} == {2}
        await term.keeper.measure()
        assert stage.metric("drifting_instances") == 4  # those that are connected, or nobody knows

        pages = [(await ask(f"drift/{PLACE}", limit=3)).json()]
        pages.append((await ask(f"drift/{PLACE}", limit=3, cursor=pages[0]["next"])).json())
        assert [[each["instance"] for each in page["items"]] for page in pages] == [
            ["lost", "refused", "silent"],
            ["slow", "went"],
        ]

        await stage.receipts(*(story.answer(name, w, "applied", 11_000, node="n1") for name in ("silent", "slow")))
        await stage.caught_up(term)
        stage.clock.set(700_000)
        assert [each["instance"] for each in await items(ask, f"drift/{PLACE}")] == ["lost", "refused"]


async def test_who_has_just_come_has_the_grace_period_too(stage, story, ask):
    async with stage.leading() as term:
        await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.subscribed("a", 3_600_000))
        await stage.caught_up(term)
        stage.clock.set(3_609_999)
        assert await items(ask, f"drift/{PLACE}") == []
        stage.clock.set(3_610_000)
        [found] = await items(ask, f"drift/{PLACE}")
    assert (found["runs"], found["age_s"], found["cause"]) == (None, 10.0, "silent")


async def test_an_environment_that_nobody_knows_has_no_instances_and_no_drift(ask):
    assert await items(ask, "instances/shop/nowhere") == []
    assert await items(ask, "drift/shop/nowhere") == []


PATHS = [f"propagations/{PLACE}/1", f"propagations/{PLACE}/1/receipts", f"instances/{PLACE}", f"drift/{PLACE}"]


@pytest.mark.parametrize("path", PATHS)
async def test_who_may_see(ask, path):
    assert (await ask(path, "nobody")).status_code == 401
    for token in ("client", "staging"):
        assert (await ask(path, token)).status_code == 403
    for token in ("admin", "author", "service"):
        assert (await ask(path, token)).status_code in (200, 404)


async def test_only_services_may_wait(stage, story, ask):
    path = f"internal/propagations/{PLACE}/1"
    for token in ("admin", "author", "client"):
        assert (await ask(path, token)).status_code == 403
    assert (await ask(path, "service", timeout=0.01)).status_code == 404
    async with stage.leading() as term:
        await stage.commit(story.version(received=0), at=2)
        await stage.caught_up(term)
        assert (await ask(path, "service", timeout=0.01, share=0.95)).json()["state"] == "open"
        assert (await ask(path, "service", timeout=0.01, version="sha256:" + "0" * 64)).status_code == 404


@pytest.mark.parametrize(
    ("path", "params"),
    [
        (f"propagations/{PLACE}/0", {}),
        (f"propagations/{PLACE}/{2**53}", {}),
        (f"propagations/{PLACE}/x", {}),
        ("propagations/Shop/production/1", {}),
        ("instances/shop/..", {}),
        (f"instances/{PLACE}", {"limit": 501}),
        (f"instances/{PLACE}", {"limit": 0}),
        (f"instances/{PLACE}", {"cursor": "x" * 300}),
        (f"instances/{PLACE}", {"cursor": "a\0b"}),
        (f"propagations/{PLACE}/1/receipts", {"cursor": "nonsense"}),
        (f"propagations/{PLACE}/1/receipts", {"cursor": "9" * 30 + ":a"}),
        (f"propagations/{PLACE}/1/receipts", {"state": "synced"}),
        (f"internal/propagations/{PLACE}/1", {"share": 0}),
        (f"internal/propagations/{PLACE}/1", {"share": 1.1}),
        (f"internal/propagations/{PLACE}/1", {"share": "nan"}),
        (f"internal/propagations/{PLACE}/1", {"timeout": 31}),
        (f"internal/propagations/{PLACE}/1", {"timeout": "inf"}),
        (f"internal/propagations/{PLACE}/1", {"version": "x" * 300}),
        (f"internal/propagations/{PLACE}/1", {"version": "a\0b"}),
    ],
)
async def test_what_is_out_of_bounds_is_a_problem_document(stage, story, ask, path, params):
    async with stage.leading() as term:
        await stage.commit(story.version(received=0), at=2)
        await stage.caught_up(term)
        answer = await ask(path, "service", **params)
    assert answer.status_code in (400, 404), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
