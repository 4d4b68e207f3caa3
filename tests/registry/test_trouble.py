"""The day something goes wrong below the registry: a database that is read-only, a disk that is full. What was acknowledged is there, what was not
is refused with words, and when the cause has gone nobody needs to do anything."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from tests.conftest import free_port
from tests.fixtures.postgres import SCRIPT, require
from tests.registry.conftest import Author, good, problem, running

from heliograph.keys import local as keys
from heliograph.runtime.clock import now_us
from heliograph.runtime.migrate import migrate
from heliograph.services.registry.settings import RegistrySettings

PATIENCE_S = 90
TRIES = 400
PLENTY = {"text": "x" * 200_000}


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await what():
            await asyncio.sleep(0.1)


@asynccontextmanager
async def author_of(settings: RegistrySettings) -> AsyncIterator[Author]:
    async with running(settings) as registry, httpx.AsyncClient(base_url=registry.url, timeout=60) as http:
        author = Author(http, registry.token())
        await author.settle()
        yield author


async def ready(author: Author) -> bool:
    return (await author.http.get("/readyz")).status_code == 200


# --- read-only ----------------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def read_only(database: Any) -> AsyncIterator[None]:
    """As after a fail-over whose settings were not followed: what is open is refused from its next transaction on."""
    connection = await asyncpg.connect(database.url())

    async def switch(how: str) -> None:
        await connection.execute(f"alter database {database.name} set default_transaction_read_only = {how}")
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )

    await switch("on")
    try:
        yield
    finally:
        await connection.execute("set default_transaction_read_only = off")
        await switch("off")
        await connection.close()


async def test_a_read_only_database_refuses_with_words_keeps_reading_and_recovers_by_itself(settings, database):
    async with author_of(settings) as author:
        good(await author.put("limits", {"max": 1}), 201)
        async with read_only(database):
            await until(lambda: _is_refused(author, "read-only"))
            assert good(await author.get("/configs/limits")) == {"max": 1}
            await until(lambda: _is_unready(author, "read-only"))
        await until(lambda: ready(author))
        assert good(await author.put("limits", {"max": 2}), 201)["number"] == 3


async def _is_refused(author: Author, why: str) -> bool:
    """Whatever the first connections say that were just ended: it is a 503, and soon it says why."""
    return why in problem(await author.put("limits", {"max": 9}), 503, "unavailable")["detail"]


async def _is_unready(author: Author, why: str) -> bool:
    answer = await author.http.get("/readyz")
    return answer.status_code == 503 and why in answer.text


# --- keys that have expired ------------------------------------------------------------------------------------------------------------


async def test_with_an_expired_trust_root_nothing_is_signed_and_a_new_one_mends_it(settings, monkeypatch):
    year_us = 365 * 24 * 3600 * 1_000_000
    async with author_of(settings) as author:
        good(await author.put("limits", {"max": 1}), 201)
        with monkeypatch.context() as later:
            later.setattr(keys, "now_us", lambda: now_us() + 11 * year_us)
            told = problem(await author.put("limits", {"max": 2}), 503, "unavailable")["detail"]
            assert "the trust root expired at 20" in told
            assert "root.json" in told
            assert good(await author.get("/configs/limits")) == {"max": 1}
        metrics = (await author.http.get("/metrics")).text
        expires_at = float(metrics.split("heliograph_trust_expires_at_seconds ")[-1].split()[0])
        assert 9 * year_us < expires_at * 1e6 - now_us() < 11 * year_us
        assert good(await author.put("limits", {"max": 2}), 201)["number"] == 3


# --- a full disk ----------------------------------------------------------------------------------------------------------------------


class SmallDisk:
    """PostgreSQL on a file system of its own that can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.env = os.environ | {"POSTGRES_DIR": str(folder / "postgres"), "POSTGRES_PORT": str(self.port)}

    def run(self, verb: str) -> None:
        with tempfile.TemporaryFile() as out:
            subprocess.run(["bash", SCRIPT, verb], env=self.env, check=True, timeout=180, stdout=out, stderr=out)

    def url(self, role: str) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/heliograph"

    def fill(self) -> None:
        with (self.folder / "filler").open("wb") as file:
            try:
                while file.write(bytes(1 << 16)):
                    file.flush()
            except OSError:
                pass

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    require(list(Path("/usr/lib/postgresql").glob("*/bin/postgres")), "Debian's PostgreSQL is not installed (make setup)")
    with tempfile.TemporaryDirectory(prefix="heliograph-test-") as name:
        Path(name).chmod(0o755)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", name], capture_output=True, check=False)
        require(mounted.returncode == 0, "a small file system cannot be mounted here (needs root)")
        Path(name).chmod(0o755)
        disk = SmallDisk(Path(name))
        try:
            disk.run("start")
            yield disk
        finally:
            disk.free()
            disk.run("kill")
            subprocess.run(["umount", "-l", name], check=True)


@pytest.mark.postgres
@pytest.mark.timeout(300)
async def test_a_full_disk_loses_nothing_that_was_acknowledged_and_needs_only_room(small_disk, tmp_path):
    await migrate(small_disk.url("postgres"))
    settings = RegistrySettings(
        database_url=small_disk.url("heliograph_registry"),
        data_dir=tmp_path / "data",
        registry_port=free_port(),
        ledger_port=free_port(),
    )
    async with author_of(settings) as author:
        good(await author.put("c", {"revision": 0}), 201)
        await asyncio.to_thread(small_disk.fill)
        acknowledged, refused = await _publish_until_refused(author)
        assert refused["code"] in ("unavailable", "timed_out")
        assert refused["detail"]

        await asyncio.to_thread(small_disk.free)
        await asyncio.to_thread(
            small_disk.run, "start"
        )  # one that had to end is started again, as by systemd; one that runs goes on
        await until(lambda: ready(author))
        assert good(await author.put("c", {"revision": "after"}), 201)
        for number, revision in acknowledged.items():
            assert good(await author.get(f"/configs/c?at={number}"))["revision"] == revision
        history = [each["number"] for each in good(await author.get("/versions?limit=500"))["items"]]
        assert history == list(range(len(history), 0, -1))


async def _publish_until_refused(author: Author) -> tuple[dict[int, int], dict[str, Any]]:
    """What was acknowledged: number -> revision; and the first refusal."""
    acknowledged = {}
    for revision in range(1, TRIES):
        answer = await author.put("c", PLENTY | {"revision": revision})
        if not answer.is_success:
            return acknowledged, problem(answer, 503, answer.json()["code"])
        acknowledged[answer.json()["number"]] = revision
    raise AssertionError("the disk never filled up")
