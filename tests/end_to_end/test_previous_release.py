"""Expand and contract: while a release is rolled out, the previous one's registry works on the new schema, beside the new one, on one history."""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import free_port
from tests.end_to_end.processes import ROOT, Managed, heliograph

PREVIOUS = "2dc0dd9495bb076db967d46d42f930532f26b53f"
"""The last commit before labels, branches and deletion: migrations 1 to 5."""
SHOP = "/v1/namespaces/shop"
PLACE = f"{SHOP}/environments/production"
DEADLINE_S = 60


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """Its source, from this repository's own history."""
    archived = subprocess.run(
        ["git", "-C", str(ROOT), "archive", PREVIOUS, "src"], capture_output=True, check=False, timeout=60
    )
    if archived.returncode:
        pytest.skip("this checkout has no history to take the previous release from")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as files:
        files.extractall(tmp_path / "previous", filter="data")
    return tmp_path / "previous/src"


def registry(name: str, folder: Path, database: Any, source: Path | None) -> Managed:
    port = free_port()
    env = {
        "HELIOGRAPH_DATABASE_URL": database.url("heliograph_registry"),
        "HELIOGRAPH_DATA_DIR": str(folder / "data"),
        "HELIOGRAPH_REGISTRY_PORT": str(port),
        "HELIOGRAPH_LEDGER_PORT": str(free_port()),
    } | ({"PYTHONPATH": str(source)} if source else {})
    return Managed(name, heliograph("serve", "registry"), env, folder / f"{name}.log", f"http://127.0.0.1:{port}/readyz")


def author(of: Managed, token: str) -> httpx.AsyncClient:
    url = of.ready_url.removesuffix("/readyz")
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=DEADLINE_S)


def good(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text[:2000]
    return answer.json()


@pytest.mark.timeout(240)
async def test_old_and_new_registry_write_one_history_on_the_new_schema(previous, database, tmp_path):
    old, new = registry("old", tmp_path, database, previous), registry("new", tmp_path, database, None)
    try:
        await old.start()
        await old.ready()
        await new.start()
        await new.ready()
        token = (tmp_path / "data/tokens/admin.token").read_text().strip()
        async with author(old, token) as before, author(new, token) as after:
            await _write_together(before, after)
            await _go_on_alone(before, after)
    finally:
        await old.stop()
        await new.stop()


async def _write_together(before: httpx.AsyncClient, after: httpx.AsyncClient) -> None:
    good(await before.post("/v1/namespaces", json={"name": "shop"}), 201)
    good(await before.post(f"{SHOP}/environments", json={"name": "production"}), 201)

    async def write(through: httpx.AsyncClient, who: str) -> None:
        for revision in range(10):
            headers = {"Idempotency-Key": f"{who}-{revision}"}
            good(await through.put(f"{PLACE}/configs/{who}", json={"revision": revision}, headers=headers), 201)

    await asyncio.gather(write(before, "old"), write(after, "new"))
    for through in (before, after):
        history = good(await through.get(f"{PLACE}/versions", params={"limit": 100}), 200)["items"]
        assert [each["number"] for each in history] == list(range(21, 0, -1))
        for who in ("old", "new"):
            assert good(await through.get(f"{PLACE}/configs/{who}"), 200) == {"revision": 9}
    replayed = {"Idempotency-Key": "old-9"}
    good(await after.put(f"{PLACE}/configs/old", json={"revision": 9}, headers=replayed), 201)


async def _go_on_alone(before: httpx.AsyncClient, after: httpx.AsyncClient) -> None:
    """What the new one knows of, the old one leaves alone; what the old one writes, the new one finds."""
    # the old one really is the old one
    assert (await before.put(f"{PLACE}/labels/release-1", json={"version": 21})).status_code == 404
    good(await after.put(f"{PLACE}/labels/release-1", json={"version": 21}), 201)
    good(await after.post(f"{SHOP}/environments", json={"name": "staging", "from": {"environment": "production"}}), 201)
    made = good(await before.put(f"{SHOP}/environments/staging/configs/old", json={"revision": "staging"}), 201)
    assert made["number"] == 2
    changed = good(await after.get(f"{SHOP}/environments/staging/history/old"), 200)["items"]
    assert changed[0]["number"] == 2
    good(await before.post(f"{PLACE}/rollback", json={"to": 1}), 201)
    assert good(await after.post(f"{PLACE}/rollback", json={"to": "label:release-1"}), 201)["number"] == 23
    assert good(await before.get(f"{PLACE}/configs/new"), 200) == {"revision": 9}
    good(await after.delete(f"{SHOP}/environments/staging"), 200)
    assert (await before.get(f"{SHOP}/environments/staging/configs/old")).status_code == 404
