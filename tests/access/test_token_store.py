from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from heliograph.access.principal import Scope
from heliograph.access.store import TokenStore
from heliograph.core import token
from heliograph.core.digest import digest
from heliograph.core.errors import InvalidRequest, NotFound, Unauthenticated
from heliograph.runtime.postgres import Pool, open_pool

ANCHOR = digest("key", b"a public key")
SHOP = (Scope("shop", "dev"),)


@pytest.fixture
async def pool(database: Any) -> AsyncIterator[Pool]:
    """As the registry's own role: what it cannot do here, it cannot do at all."""
    pool = await open_pool(database.url("heliograph_registry"), "test", size=5)
    yield pool
    await pool.close()


@pytest.fixture
def store(pool: Pool) -> TokenStore:
    return TokenStore(pool, ANCHOR)


async def revoke(pool: Pool, store: TokenStore, identity: str) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await store.revoke(connection, identity, by="tok_admin")  # type: ignore[arg-type]


async def test_a_token_stands_for_a_principal(store: TokenStore) -> None:
    record, text = await store.create("author", "deploy job", SHOP, by="tok_admin")
    found = await store.principal(text)
    assert (found.id, found.kind, found.name, found.scopes, found.expires_at_us) == (
        record.id,
        "author",
        "deploy job",
        SHOP,
        None,
    )


async def test_only_client_and_edge_tokens_carry_the_anchor(store: TokenStore) -> None:
    for kind in token.KINDS:
        _, text = await store.create(kind, "x", SHOP, by=None)
        assert token.parse(text).anchor == (ANCHOR if kind in ("client", "edge") else None)


async def test_text_is_not_in_the_database(store: TokenStore, pool: Pool) -> None:
    _, text = await store.create("admin", "x", SHOP, by=None)
    row = str(await pool.fetch("select t::text from access.token t"))
    assert text not in row
    assert token.sha256(text).hex() in row


async def test_what_is_wrong_with_a_token_is_not_told(store: TokenStore, pool: Pool) -> None:
    record, revoked = await store.create("client", "x", SHOP, by=None)
    await revoke(pool, store, record.id)
    soon = datetime.now(UTC) + timedelta(milliseconds=20)
    expiring, expired = await store.create("client", "x", SHOP, by=None, expires_at=soon)
    assert (await store.principal(expired)).expires_at_us == int(soon.timestamp() * 1e6)
    assert expiring.expires_at == soon
    while datetime.now(UTC) <= soon:
        await asyncio.sleep(0.005)
    never = token.mint("client", "0" * token.SECRET_LENGTH, ANCHOR)
    said = set()
    for text in (revoked, expired, never):
        with pytest.raises(Unauthenticated) as refusal:
            await store.principal(text)
        said.add(refusal.value.detail)
    assert len(said) == 1


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-1], lambda text: text[:-1] + ("0" if text[-1] != "0" else "1"), str.lower, lambda _: ""]
)
async def test_cut_off_and_mistyped_tokens_are_no_tokens(store: TokenStore, spoil: Any) -> None:
    _, text = await store.create("admin", "x", SHOP, by=None)
    with pytest.raises(Unauthenticated, match="cut off or mistyped"):
        await store.principal(spoil(text))


async def test_revoking_is_for_good_and_may_be_repeated(store: TokenStore, pool: Pool) -> None:
    record, text = await store.create("client", "x", SHOP, by=None)
    await revoke(pool, store, record.id)
    first = (await store.page())[0].revoked_at
    await revoke(pool, store, record.id)
    assert (await store.page())[0].revoked_at == first is not None
    with pytest.raises(Unauthenticated):
        await store.principal(text)
    with pytest.raises(NotFound):
        await revoke(pool, store, "tok_nobody")


async def test_the_database_itself_keeps_tokens_from_being_changed(store: TokenStore, pool: Pool) -> None:
    await store.create("client", "x", SHOP, by=None)
    for statement in (
        "update access.token set kind = 'admin'",
        "update access.token set scopes = '[{}]'",
        "delete from access.token",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)


async def test_pages_follow_each_other(store: TokenStore) -> None:
    made = {(await store.create("client", f"x {number}", SHOP, by=None))[0].id for number in range(7)}
    found: list[str] = []
    while page := await store.page(after=found[-1] if found else "", limit=3):
        found += [each.id for each in page]
    assert found == sorted(made)


async def test_last_use_is_kept_to_the_hour(store: TokenStore, pool: Pool, database: Any) -> None:
    record, text = await store.create("client", "x", SHOP, by=None)
    assert record.last_used_at is None
    await asyncio.gather(*(store.principal(text) for _ in range(5)))
    first = (await store.page())[0].last_used_at
    await store.principal(text)
    assert (await store.page())[0].last_used_at == first is not None
    owner = await asyncpg.connect(database.url())
    await owner.execute("update access.token set last_used_at = now() - interval '61 minutes'")
    await owner.close()
    await store.principal(text)
    assert (await store.page())[0].last_used_at > first


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("", SHOP), ("x" * 101, SHOP), ("two\nlines", SHOP), ("x", ()), ("x", SHOP * 101)],
)
async def test_tokens_need_a_name_and_a_scope(store: TokenStore, name: str, scopes: Any) -> None:
    with pytest.raises(InvalidRequest):
        await store.create("client", name, scopes, by=None)


# --- the first start --------------------------------------------------------------------------------------------------------------


async def test_first_start_writes_two_tokens_for_us_alone(store: TokenStore, tmp_path: Path) -> None:
    folder = tmp_path / "data/tokens"
    assert await store.bootstrap(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for kind in ("admin", "service"):
        file = folder / f"{kind}.token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        found = await store.principal(file.read_text().strip())
        assert (found.kind, found.scopes) == (kind, (Scope(),))
    before = (folder / "admin.token").read_text()
    assert not await store.bootstrap(folder)
    assert (folder / "admin.token").read_text() == before


async def test_of_two_first_starts_one_makes_tokens(store: TokenStore, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    assert sorted(await asyncio.gather(*(store.bootstrap(each) for each in folders))) == [False, True]
    assert len(await store.page()) == 2


async def test_a_first_start_that_cannot_write_its_files_leaves_no_tokens(store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("in the way")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        await store.bootstrap(tmp_path / "tokens")
    assert await store.page() == []
    assert await store.bootstrap(tmp_path / "elsewhere")
