"""The next trust root: who follows it, what still verifies, and that a folder is never left between two."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heliograph.core.errors import BadSignature, Corrupt, InvalidRequest, UntrustedRoot
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Signed, Version
from heliograph.core.trust import Trust
from heliograph.keys import next_root
from heliograph.keys.live import LiveKeys
from heliograph.keys.local import LocalKeys
from heliograph.keys.next_root import Wanted, make_next, read_statement

from .test_local_keys import NOW_US, a_head, folder, opened, signed  # noqa: F401  # the second is a fixture

LATER_US = NOW_US + 10**15


def next_of(keys: Path, **wanted: Any) -> LocalKeys:
    make_next(keys, keys / "root.pem", Wanted(LATER_US, **wanted))
    return opened(keys, history_exists=True)


def a_version() -> bytes:
    digest = "sha256:" + "0" * 64
    return Version(
        namespace="shop", environment="dev", epoch=1, number=1, parent=None, root=digest, history=digest, kind="create",
        author="a", at="2027-01-15T08:00:00.000Z",
    ).text()  # fmt: skip


def test_a_later_expiry_is_followed_by_old_clients_and_by_new_ones(folder: Path) -> None:  # noqa: F811
    before = opened(folder)
    after = next_of(folder)
    trust = Trust.from_root(before.statement, before.anchor).next(after.statement)
    assert (trust.root.number, after.expires_at_us, after.anchor) == (2, LATER_US, before.anchor)
    assert Trust.from_root(after.statement, before.anchor).root == trust.root
    assert (after.commit.keyid, after.head.keyid) == (before.commit.keyid, before.head.keyid)
    assert msgspec.json.decode((folder / "root.1.json").read_bytes(), type=Signed) == before.statement


def test_a_client_that_missed_some_finds_its_way_from_its_anchor(folder: Path) -> None:  # noqa: F811
    anchor = opened(folder).anchor
    for _ in range(3):
        last = next_of(folder, head=True, commit=True)
    assert Trust.from_root(last.statement, anchor).root.number == 4
    assert last.commit.keyid == Trust.from_root(last.statement, anchor).root.roles.commit.keyids[0]


def test_what_the_old_commit_key_signed_still_verifies_and_the_old_head_key_is_out(folder: Path) -> None:  # noqa: F811
    before = opened(folder)
    after = next_of(folder, commit=True, head=True)
    trust = Trust.from_root(after.statement, before.anchor)
    for keys in (before, after):
        assert trust.verify_version(signed(keys.commit, VERSION_TYPE, a_version())).number == 1
    assert trust.verify_head(signed(after.head, HEAD_TYPE, a_head())).number == 1
    with pytest.raises(BadSignature):
        trust.verify_head(signed(before.head, HEAD_TYPE, a_head()))
    with pytest.raises(BadSignature):
        Trust.from_root(before.statement, before.anchor).verify_head(signed(after.head, HEAD_TYPE, a_head()))


def test_a_leaked_commit_key_can_be_distrusted(folder: Path) -> None:  # noqa: F811
    before = opened(folder)
    with pytest.raises(InvalidRequest, match="new-commit-key"):
        next_of(folder, distrust=(before.commit.keyid,))
    after = next_of(folder, commit=True, distrust=(before.commit.keyid,))
    trust = Trust.from_root(after.statement, before.anchor)
    with pytest.raises(BadSignature):
        trust.verify_version(signed(before.commit, VERSION_TYPE, a_version()))
    with pytest.raises(InvalidRequest, match="lists no commit key"):
        next_of(folder, distrust=("0" * 16,))


def test_the_root_key_may_come_from_elsewhere_and_only_that_one_signs(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    anchor = opened(folder).anchor
    with pytest.raises(UntrustedRoot, match="not the root key"):
        make_next(folder, folder / "commit.pem", Wanted(LATER_US))
    offline = (folder / "root.pem").rename(tmp_path / "offline.pem")
    with pytest.raises(InvalidRequest, match=r"root\.pem cannot be read"):
        make_next(folder, folder / "root.pem", Wanted(LATER_US))
    make_next(folder, offline, Wanted(LATER_US))
    assert Trust.from_root(read_statement(folder), anchor).root.number == 2


def test_a_folder_that_was_left_in_between_is_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    before = opened(folder)
    with monkeypatch.context() as cut:
        cut.setattr(next_root, "sign_root", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_next(folder, folder / "root.pem", Wanted(LATER_US, commit=True, head=True))
    assert (folder / "commit.2.pem").exists()
    assert opened(folder, history_exists=True).commit.keyid == before.commit.keyid
    assert next_of(folder, commit=True).commit.keyid != before.commit.keyid


async def test_a_running_service_takes_the_next_and_refuses_what_does_not_follow(tmp_path: Path) -> None:
    one, other = [await asyncio.to_thread(opened, tmp_path / name) for name in ("one", "other")]
    keys, older = LiveKeys(tmp_path / "one", one), (tmp_path / "one/root.json").read_bytes()
    assert not await keys.look()
    after = await asyncio.to_thread(partial(next_of, tmp_path / "one", head=True))
    assert await keys.look()
    assert keys.head.keyid == after.head.keyid != one.head.keyid
    assert keys.head.public == after.head.public
    (tmp_path / "one/root.json").write_bytes(older)
    with pytest.raises(UntrustedRoot, match="does not come after"):
        await keys.look()
    (tmp_path / "one/root.json").write_bytes((tmp_path / "other/root.json").read_bytes())
    with pytest.raises((UntrustedRoot, Corrupt)):
        await keys.look()
    assert keys.now.statement == after.statement != other.statement
