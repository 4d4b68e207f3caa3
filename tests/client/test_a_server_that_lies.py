"""Case by case: what a server says that does not hold is refused with the right error, the last good value stays, an alarm is raised, and a
receipt says `rejected`. The server stands on real sockets; the frames are honest ones with one thing changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from heliograph.client import Alarm, Heliograph
from heliograph.core import frames
from heliograph.core.canonical import canonical
from heliograph.core.digest import digest
from heliograph.core.errors import UntrustedRoot
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Leaf

DEADLINE_S = 20.0
replace = msgspec.structs.replace


@pytest.fixture
def connect(server: Any, tmp_path: Path) -> Callable[..., Heliograph]:
    def make(**more: Any) -> Heliograph:
        told = {"namespace": "shop", "environment": "production", "cache_dir": tmp_path, **more}
        return Heliograph(server.url, token=server.authority.token(), **told)

    return make


class Witness:
    """A connected client with what it was alarmed about."""

    def __init__(self, client: Heliograph, server: Any) -> None:
        self.client, self.server = client, server
        self.alarms: list[Alarm] = []
        self.versions: list[int] = []
        client.on_alarm(self.alarms.append)
        client.on_version(lambda update: self.versions.append(update.cursor.number))

    async def told(self, frame: frames.FromServer) -> None:
        await self.server.connections[-1].send(frame)

    async def refuses(self, code: str, *, answered: int | None = None) -> None:
        """An alarm with this code, the last good state, and a receipt that says rejected."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.alarms:
                await asyncio.sleep(0.005)
        assert [alarm.code for alarm in self.alarms] == [code]
        assert self.client.status.alarm is not None
        assert self.client.status.alarm.code == code
        if answered is not None:
            receipt = await self.server.receipt(answered, "rejected")
            assert receipt.reason is not None
            assert receipt.reason.startswith(code)
        self.stands()

    def stands(self) -> None:
        assert self.client.config("checkout/limits").value == {"max_items": 1}
        assert self.client.status.connected
        assert self.versions == []

    async def goes_on_with(self, number: int) -> None:
        await self.client.wait_for_version(number, timeout=DEADLINE_S)
        assert self.client.status.alarm is None
        assert self.versions == [number]


def without(frame: Any, name: str) -> Any:
    return replace(frame, changes=tuple(one for one in frame.changes if one.name != name))


def with_document(frame: Any, name: str, text: str) -> Any:
    return replace(frame, changes=tuple(replace(one, document=text) if one.name == name else one for one in frame.changes))


# --- content that was altered on the way: a snapshot is asked for; when that lies, too, it is an alarm -----------------------------------


async def test_one_damaged_delta_is_healed_by_a_snapshot(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness, before = Witness(client, server), server.authority.latest
        server.authority.publish(checkout__limits={"max_items": 2})
        await witness.told(with_document(server.authority.delta(before), "checkout/limits", '{"max_items":666}'))
        await witness.goes_on_with(3)
        assert client.config("checkout/limits")["max_items"] == 2
        assert witness.alarms == []
        assert (await server.receipt(3)).state == "applied"
        [resync] = [one for one in server.heard if isinstance(one, frames.Resync)]
        assert resync.have == before.cursor


def tampered_document(frame: Any) -> Any:
    return with_document(frame, "checkout/limits", '{"max_items":666}')


def withheld_config(frame: Any) -> Any:
    return without(frame, "checkout/limits")


def withheld_everything(frame: Any) -> Any:
    return replace(frame, changes=())


def added_config(frame: Any) -> Any:
    return replace(frame, changes=(*frame.changes, replace(frame.changes[0], name="checkout/limits2")))


def added_outside_the_view(frame: Any) -> Any:
    return replace(frame, changes=(*frame.changes, replace(frame.changes[0], name="elsewhere")))


def told_twice(frame: Any) -> Any:
    return replace(frame, changes=frame.changes * 2)


def deleted_config(frame: Any) -> Any:
    return replace(frame, changes=tuple(frames.Changed(name=one.name, leaf=None) for one in frame.changes))


def another_leaf_with_its_document(frame: Any) -> Any:
    """Leaf and document agree with each other, and not with the signed root."""
    text = canonical({"max_items": 666})
    leaf = Leaf(document=digest("document", text)).text().decode()
    return replace(frame, changes=tuple(replace(one, leaf=leaf, document=text.decode()) for one in frame.changes))


def nonsense_leaf(frame: Any) -> Any:
    return replace(frame, changes=tuple(replace(one, leaf='{"document":7}') for one in frame.changes))


def edits_out_of_range(frame: Any) -> Any:
    return replace(frame, changes=tuple(replace(one, document=UNSET, edits=((5, 2, "x"),)) for one in frame.changes))


def tampered_proof(frame: Any) -> Any:
    return replace(frame, proof=frames.ProofText(entries={"zzz": "sha256:" + "0" * 64}, stubs={}))


def proof_that_is_none(frame: Any) -> Any:
    return replace(frame, proof=frames.ProofText(entries={"zzz": "md5:0"}, stubs={}))


@pytest.mark.parametrize("view", [[""], ["checkout/"], ["checkout/limits", "checkout/cart"]])
@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (tampered_document, "bad-digest"),
        (withheld_config, "bad-proof"),
        (withheld_everything, "bad-proof"),
        (added_config, "bad-proof"),
        (told_twice, "bad-proof"),
        (deleted_config, "bad-proof"),
        (another_leaf_with_its_document, "bad-proof"),
        (nonsense_leaf, "bad-digest"),
        (edits_out_of_range, "bad-digest"),
        (tampered_proof, "bad-proof"),
        (proof_that_is_none, "bad-proof"),
    ],
)
async def test_content_that_is_not_the_signed_one(server: Any, connect: Any, lie: Any, code: str, view: list[str]) -> None:
    async def resynced(connection: Any, frame: frames.Resync) -> None:
        await connection.send(lie(server.authority.snapshot(tuple(view), have=frame.have)))

    server.resynced = resynced
    async with connect(view=view) as client:
        witness, before = Witness(client, server), server.authority.latest
        server.authority.publish(checkout__limits={"max_items": 2})
        await witness.told(lie(server.authority.delta(before, tuple(view))))
        await witness.refuses(code, answered=3)


async def test_a_config_outside_the_view_is_refused(server: Any, connect: Any) -> None:
    async def resynced(connection: Any, frame: frames.Resync) -> None:
        await connection.send(added_outside_the_view(server.authority.snapshot(("checkout/",), have=frame.have)))

    server.resynced = resynced
    async with connect(view=["checkout/"]) as client:
        witness, before = Witness(client, server), server.authority.latest
        server.authority.publish(checkout__limits={"max_items": 2})
        await witness.told(added_outside_the_view(server.authority.delta(before, ("checkout/",))))
        await witness.refuses("bad-proof", answered=3)


async def test_hidden_behind_a_stub_a_view_is_not_proved(server: Any, connect: Any) -> None:
    """The most dangerous omission: a proof that leads to the root, but leaves the view itself unknown."""
    stub = frames.ProofText(entries={}, stubs={"#": server.authority.latest.record.root})

    async def hiding(connection: Any) -> None:
        await connection.send(replace(server.authority.snapshot(("checkout/",)), changes=(), proof=stub))

    async def resynced(connection: Any, frame: frames.Resync) -> None:
        await hiding(connection)

    server.script, server.resynced = hiding, resynced
    client = connect(view=["checkout/"], start_timeout=1.0)
    with pytest.raises(Exception, match="unproved") as refused:
        async with client:
            pytest.fail("started on hidden configs")
    assert refused.value.code == "bad-proof"
    assert (await server.receipt(2)).state == "rejected"


# --- heads --------------------------------------------------------------------------------------------------------------------------------


async def test_a_head_signed_by_another_key(server: Any, connect: Any, new_authority: Any) -> None:
    stranger = new_authority(b"\x40")
    async with connect() as client:
        witness, before = Witness(client, server), server.authority.latest
        server.authority.publish(checkout__limits={"max_items": 2})
        forged = stranger.head_key.sign(HEAD_TYPE, server.authority.head_record().text())
        await witness.told(server.authority.delta(before, head=forged))
        await witness.refuses("bad-signature", answered=3)


async def test_a_head_signed_by_the_commit_key(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness, before = Witness(client, server), server.authority.latest
        server.authority.publish(checkout__limits={"max_items": 2})
        wrong_role = server.authority.commit_key.sign(HEAD_TYPE, server.authority.head_record().text())
        await witness.told(server.authority.delta(before, head=wrong_role))
        await witness.refuses("bad-signature", answered=3)


async def test_a_head_whose_text_was_changed_after_signing(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness, before = Witness(client, server), server.authority.latest
        server.authority.publish(checkout__limits={"max_items": 2})
        head = server.authority.head()
        await witness.told(
            server.authority.delta(before, head=replace(head, payload=head.payload.replace('"safe":3', '"safe":2')))
        )
        await witness.refuses("bad-signature", answered=3)


async def test_a_version_signed_by_the_head_key(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness, before = Witness(client, server), server.authority.latest
        made = server.authority.publish(checkout__limits={"max_items": 2})
        forged = server.authority.head_key.sign(VERSION_TYPE, made.record.text())
        await witness.told(replace(server.authority.delta(before), version=forged))
        await witness.refuses("bad-signature", answered=3)


async def test_a_version_that_is_not_the_one_of_the_head(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness, before = Witness(client, server), server.authority.latest
        twin = server.authority.fork()
        server.authority.publish(checkout__limits={"max_items": 2})
        other = twin.publish(checkout__limits={"max_items": 3})
        await witness.told(replace(server.authority.delta(before), version=other.signed))
        async with asyncio.timeout(DEADLINE_S):
            while not witness.alarms and not any(isinstance(one, frames.Resync) for one in server.heard):
                await asyncio.sleep(0.005)
        assert 3 not in witness.versions or client.config("checkout/limits")["max_items"] == 2


async def test_a_head_of_another_environment(server: Any, connect: Any, new_authority: Any) -> None:
    staging = new_authority(environment="staging")
    for _ in range(3):
        staging.publish(search={"pages": 1})
    async with connect() as client:
        witness = Witness(client, server)
        await witness.told(frames.HeadFrame(subscription=1, head=staging.head()))
        async with asyncio.timeout(DEADLINE_S):
            while not witness.alarms:
                await asyncio.sleep(0.005)
        witness.stands()


async def test_a_replayed_older_head(server: Any, connect: Any) -> None:
    old = server.authority.at(1)
    async with connect() as client:
        witness = Witness(client, server)
        await witness.told(server.authority.snapshot(to=old))
        await witness.refuses("rolled-back", answered=1)


async def test_a_replayed_older_head_alone(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness = Witness(client, server)
        await witness.told(frames.HeadFrame(subscription=1, head=server.authority.head(server.authority.at(1))))
        await witness.refuses("rolled-back")


async def test_an_older_signature_of_the_same_head_is_nothing(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness, shown = Witness(client, server), client.status.head_age_s
        await witness.told(
            frames.HeadFrame(subscription=1, head=server.authority.head(issued_us=server.authority.clock_us - 500_000))
        )
        done = await server.publish(search={"pages": 11})
        await witness.goes_on_with(done.record.number)
        assert shown is not None
        assert witness.alarms == []


async def test_a_forked_head(server: Any, connect: Any) -> None:
    """The same number as the one that is held, and another version."""
    twin = server.authority.fork()
    twin.versions.pop()
    twin.publish(checkout__limits={"max_items": 666})
    async with connect() as client:
        witness = Witness(client, server)
        await witness.told(frames.HeadFrame(subscription=1, head=twin.head()))
        await witness.refuses("forked")
        await witness.told(twin.snapshot())
        assert (await server.receipt(2, "rejected")).version == twin.latest.id
        witness.stands()


# --- history ------------------------------------------------------------------------------------------------------------------------------


async def test_a_jump_needs_a_path(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness, before = Witness(client, server), server.authority.latest
        for number in range(2, 6):
            server.authority.publish(checkout__limits={"max_items": number})
        await witness.told(replace(server.authority.delta(before), ancestry=None))
        await witness.refuses("forked", answered=6)
        await witness.told(server.authority.delta(before))
        await witness.goes_on_with(6)


@pytest.mark.parametrize("path", ["none", "empty", "of our number", "of another number", "of our own history"])
async def test_a_rewritten_history(server: Any, connect: Any, path: str) -> None:
    """Both keys stolen or a backup restored: numbers go on, every signature is good, and the past is another one."""
    honest = server.authority
    other = honest.fork()
    other.versions.pop()
    for number in range(2, 6):
        other.publish(checkout__limits={"max_items": number}, checkout__cart={"currency": "EUR"}, search={"pages": 10})
    ours = honest.fork()
    for number in range(2, 6):
        ours.publish(checkout__limits={"max_items": number})
    paths = {
        "none": None,
        "empty": (),
        "of our number": other.path(2, other.latest),
        "of another number": other.path(1, other.latest),
        "of our own history": ours.path(2, ours.latest),
    }
    async with connect() as client:
        witness = Witness(client, server)
        await witness.told(replace(other.snapshot(), ancestry=paths[path]))
        await witness.refuses("forked", answered=other.latest.record.number)


async def test_after_a_rejection_a_snapshot_from_elsewhere_is_no_alarm(server: Any, connect: Any) -> None:
    """The server thinks that we hold what we rejected, and may send a snapshot that goes on from there."""
    async with connect() as client:
        client.bind("checkout/limits", dict[str, int])
        witness = Witness(client, server)
        await server.publish(checkout__limits={"max_items": "x"})
        await server.receipt(3, "rejected")
        server.authority.publish(checkout__limits={"max_items": 4}, search={"pages": 4})
        await witness.told(server.authority.snapshot(have=server.authority.at(3).cursor))
        await client.wait_for_version(4, timeout=DEADLINE_S)
        assert witness.alarms == []
        assert client.config("search")["pages"] == 4


async def test_a_fork_that_hides_behind_a_rejection_is_found(server: Any, connect: Any) -> None:
    other = server.authority.fork()
    other.versions.pop()
    for number in range(2, 6):
        other.publish(checkout__limits={"max_items": number}, checkout__cart={"currency": "EUR"}, search={"pages": 10})

    async def resynced(connection: Any, frame: frames.Resync) -> None:
        await connection.send(other.snapshot())

    server.resynced = resynced
    async with connect() as client:
        bound = client.bind("checkout/limits", dict[str, int])
        witness = Witness(client, server)
        await server.publish(checkout__limits={"max_items": "x"})
        await server.receipt(3, "rejected")
        await witness.told(other.snapshot())
        await witness.refuses("forked", answered=5)
        assert bound.value == {"max_items": 1}


async def test_the_next_number_with_another_parent(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness = Witness(client, server)
        other = server.authority.fork()
        other.versions.pop()
        other.publish(checkout__limits={"max_items": 2}, checkout__cart={"currency": "EUR"}, search={"pages": 10})
        other.publish(checkout__limits={"max_items": 3})
        await witness.told(other.snapshot())
        await witness.refuses("forked", answered=3)


# --- trust --------------------------------------------------------------------------------------------------------------------------------


async def test_a_server_with_another_trust_root(server: Any, connect: Any, new_authority: Any) -> None:
    server.root = new_authority(b"\x50").root()
    with pytest.raises(UntrustedRoot):
        async with connect():
            pytest.fail("started")
    assert server.hellos == []


async def test_a_root_that_names_our_key_without_its_signature(server: Any, connect: Any, new_authority: Any) -> None:
    stranger = new_authority(b"\x50")
    root = server.authority.root()
    server.root = replace(root, signatures=stranger.root().signatures)
    with pytest.raises(UntrustedRoot):
        async with connect():
            pytest.fail("started")


async def test_a_trust_root_that_turns_bad_later_stops_the_client_and_keeps_the_state(
    server: Any, connect: Any, new_authority: Any
) -> None:
    async with connect() as client:
        server.root = new_authority(b"\x50").root()
        await server.stop_stream()
        with pytest.raises(UntrustedRoot):
            await client.wait_for_version(99, timeout=5 * DEADLINE_S)  # it backs off several times before it asks again
        assert client.status.phase == "stopped"
        assert isinstance(client.status.last_error, UntrustedRoot)
        assert client.config("search")["pages"] == 10


# --- recovery -----------------------------------------------------------------------------------------------------------------------------


async def at_version_five(server: Any, client: Heliograph, *, safe: int) -> None:
    """The client runs on 5; the server called everything up to ``safe`` certain."""
    connection = await server.connection()
    for number in range(3, 6):
        before = server.authority.latest
        server.authority.publish(checkout__limits={"max_items": number})
        await connection.send(server.authority.delta(before, head=server.authority.head(safe=min(safe, number)), answer="now"))
    await client.wait_for_version(5, timeout=DEADLINE_S)


def recovery(authority: Any, opened: Any) -> frames.Recovery:
    return frames.Recovery(
        version=opened.signed,
        ancestry=authority.path(opened.record.number, authority.latest) if opened is not authority.latest else (),
    )


async def test_a_recovery_that_dropped_only_what_was_not_safe_is_followed(server: Any, connect: Any) -> None:
    async with connect() as client:
        await at_version_five(server, client, safe=3)
        seen = []
        client.on_version(seen.append)
        opened = server.authority.recover(4)
        server.authority.publish(checkout__limits={"max_items": 40})
        await server.connections[-1].send(server.authority.snapshot(recovery=recovery(server.authority, opened)))
        async with asyncio.timeout(DEADLINE_S):
            while client.cursor.epoch != 2:
                await asyncio.sleep(0.005)
        assert client.config("checkout/limits")["max_items"] == 40
        assert (await server.receipt(5, "applied")) is not None
        assert client.status.alarm is None
        [update] = seen
        assert update.restarted
        assert update.cursor == server.authority.latest.cursor


async def test_a_recovery_that_lost_nothing_of_ours_needs_only_the_path(server: Any, connect: Any) -> None:
    async with connect() as client:
        await at_version_five(server, client, safe=5)
        held = server.authority.latest
        server.authority.recover(6)
        await server.connections[-1].send(server.authority.delta(held))
        await client.wait_for_version(6, timeout=DEADLINE_S)
        assert client.cursor.epoch == 2
        assert client.status.alarm is None


@pytest.mark.parametrize(
    "flaw",
    [
        "no record",
        "dropped a safe version",
        "not a recover",
        "another signer",
        "not in the head's past",
        "opens no newer epoch",
    ],
)
async def test_a_recovery_that_does_not_hold(server: Any, connect: Any, flaw: str) -> None:
    async with connect() as client:
        await at_version_five(server, client, safe=5 if flaw == "dropped a safe version" else 3)
        before = client.config("checkout/limits").value
        witness = Witness(client, server)
        authority = server.authority
        opened = authority.recover(4, kind="publish" if flaw == "not a recover" else "recover")
        authority.publish(checkout__limits={"max_items": 40})
        authority.publish(checkout__limits={"max_items": 41})
        told = recovery(authority, opened)
        match flaw:
            case "no record":
                told = None
            case "another signer":
                told = replace(told, version=authority.head_key.sign(VERSION_TYPE, opened.record.text()))
            case "not in the head's past":
                stranger = replace(opened.record, author="u_other")
                told = replace(told, version=authority.commit_key.sign(VERSION_TYPE, stranger.text()))
            case "opens no newer epoch":
                told = replace(told, version=authority.at(2).signed, ancestry=authority.path(2, authority.latest))
        await witness.told(authority.snapshot(recovery=told))
        async with asyncio.timeout(DEADLINE_S):
            while not witness.alarms:
                await asyncio.sleep(0.005)
        assert witness.alarms[0].code == ("bad-signature" if flaw == "another signer" else "forked")
        assert client.config("checkout/limits").value == before
        assert client.cursor.number == 5
        assert client.cursor.epoch == 1
        assert witness.versions == []
        assert (await server.receipt(6, "rejected")).version == authority.latest.id


async def test_an_unreadable_head_is_refused_without_naming_a_version(server: Any, connect: Any) -> None:
    async with connect() as client:
        witness, before = Witness(client, server), server.authority.latest
        server.authority.publish(checkout__limits={"max_items": 2})
        nonsense = server.authority.head_key.sign(HEAD_TYPE, canonical({"a": 1}))
        await witness.told(server.authority.delta(before, head=nonsense))
        await witness.refuses("bad-signature")
        assert witness.alarms[0].claimed is None
        await witness.told(server.authority.delta(before))
        await witness.goes_on_with(3)
