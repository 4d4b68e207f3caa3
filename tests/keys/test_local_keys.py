from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from heliograph.core import dsse
from heliograph.core.errors import BadSignature, Corrupt, InvalidRequest, UntrustedRoot
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Head, Signed
from heliograph.core.trust import Trust
from heliograph.keys.local import LocalKeys, LocalSigner, write_private
from heliograph.keys.ports import Signer

NOW_US = 1_800_000_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def opened(folder: Path, *, history_exists: bool = False) -> LocalKeys:
    return LocalKeys.open_or_create(folder, history_exists=history_exists, now_us=NOW_US)


def a_head() -> bytes:
    return Head(
        namespace="shop",
        environment="dev",
        epoch=1,
        number=1,
        version="sha256:" + "0" * 64,
        root="sha256:" + "1" * 64,
        safe=1,
        issued_at="2027-01-15T08:00:00.000Z",
        expires_at="2027-01-15T08:10:00.000Z",
    ).text()


def signed(signer: LocalSigner, kind: str, payload: bytes) -> Signed:
    return dsse.attach(payload, [(signer.keyid, signer.sign_now(dsse.pae(kind, payload)))])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_first_start_makes_three_keys_that_only_we_can_read(folder: Path) -> None:
    opened(folder)
    assert sorted(each.name for each in folder.iterdir()) == ["commit.pem", "head.pem", "root.json", "root.pem"]
    assert mode(folder) == 0o700
    assert {mode(each) for each in folder.iterdir()} == {0o600}
    assert (folder / "commit.pem").read_text().startswith("-----BEGIN PRIVATE KEY-----")


def test_the_next_start_finds_the_same_keys(folder: Path) -> None:
    first, second = opened(folder), opened(folder, history_exists=True)
    assert (first.anchor, first.statement) == (second.anchor, second.statement)
    assert (first.commit.public, first.head.public) == (second.commit.public, second.head.public)


def test_statement_is_trusted_by_its_anchor_and_gives_each_key_one_role(folder: Path) -> None:
    keys = opened(folder)
    trust = Trust.from_root(keys.statement, keys.anchor)
    assert trust.verify_head(signed(keys.head, HEAD_TYPE, a_head())).number == 1
    with pytest.raises(BadSignature):
        trust.verify_head(signed(keys.commit, HEAD_TYPE, a_head()))
    with pytest.raises(BadSignature):
        trust.verify_version(signed(keys.head, VERSION_TYPE, a_head()))


def test_other_keys_anchor_is_not_trusted(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "one"), opened(tmp_path / "other")
    with pytest.raises(UntrustedRoot):
        Trust.from_root(one.statement, other.anchor)


def test_history_without_keys_is_never_given_new_ones(folder: Path) -> None:
    with pytest.raises(Corrupt, match="restore them from the backup"):
        opened(folder, history_exists=True)
    assert not folder.exists()


def test_root_key_may_be_moved_offline(folder: Path) -> None:
    first = opened(folder)
    (folder / "root.pem").unlink()
    assert opened(folder, history_exists=True).anchor == first.anchor


@pytest.mark.parametrize("name", ["commit", "head"])
def test_a_missing_key_is_never_replaced(folder: Path, name: str) -> None:
    opened(folder)
    (folder / f"{name}.pem").unlink()
    with pytest.raises(Corrupt, match=name):
        opened(folder, history_exists=True)


def test_keys_of_another_folder_are_noticed(tmp_path: Path) -> None:
    opened(tmp_path / "one")
    opened(tmp_path / "other")
    write_private(tmp_path / "one/commit.pem", (tmp_path / "other/commit.pem").read_bytes())
    with pytest.raises(Corrupt, match="not the key that the root statement names"):
        opened(tmp_path / "one", history_exists=True)


def test_a_key_is_not_taken_for_another_role(folder: Path) -> None:
    opened(folder)
    write_private(folder / "head.pem", (folder / "commit.pem").read_bytes())
    with pytest.raises(Corrupt):
        opened(folder, history_exists=True)


@pytest.mark.parametrize(("name", "open_mode"), [("head.pem", 0o644), ("commit.pem", 0o640), ("", 0o755)])
def test_what_others_can_read_is_refused(folder: Path, name: str, open_mode: int) -> None:
    opened(folder)
    (folder / name).chmod(open_mode)
    with pytest.raises(InvalidRequest, match="chmod"):
        opened(folder, history_exists=True)


def test_a_start_that_was_cut_off_begins_again(folder: Path) -> None:
    """The statement is written last: without it nothing was signed yet."""
    opened(folder)
    (folder / "root.json").unlink()
    assert opened(folder).anchor


def test_nothing_of_a_key_is_in_its_repr(folder: Path) -> None:
    keys = opened(folder)
    secret = (folder / "commit.pem").read_text().splitlines()[1]
    assert secret not in repr(keys)
    assert repr(keys.commit) == f"<LocalSigner {keys.commit.keyid}>"


async def test_signing_is_the_ports_verb(folder: Path) -> None:
    keys = await asyncio.to_thread(opened, folder)
    signer: Signer = keys.head
    assert await signer.sign(b"message") == keys.head.sign_now(b"message")
    assert len(await signer.sign(b"message")) == 64


def test_private_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, b"one")
    write_private(path, b"two")
    assert path.read_bytes() == b"two"
    assert mode(path) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]
