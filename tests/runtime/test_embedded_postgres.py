from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import asyncpg
import pytest

from heliograph.core.errors import AlreadyExists
from heliograph.runtime.children import start
from heliograph.runtime.embedded_postgres import EmbeddedPostgres


@pytest.fixture
def folder(public_folder):
    made = Path(tempfile.mkdtemp(dir=public_folder))
    made.chmod(0o755)
    return made


async def test_what_was_committed_survives_kill_9_and_a_clean_restart(folder):
    server = EmbeddedPostgres(folder / "data")
    await server.start()
    connection = await asyncpg.connect(server.url())
    await connection.execute("create table t (i int)")
    await connection.execute("insert into t values (1), (2)")
    os.kill(server.pid, signal.SIGKILL)
    assert await server.ended() == -signal.SIGKILL
    connection.terminate()  # to close it would be to ask who is dead

    await server.start()
    connection = await asyncpg.connect(server.url())
    assert await connection.fetchval("select sum(i) from t") == 3
    await connection.close()
    await server.stop()
    await server.start()
    await server.stop()


async def test_a_second_server_on_the_same_folder_is_refused_and_the_first_lives_on(folder):
    first = EmbeddedPostgres(folder / "data")
    await first.start()
    with pytest.raises(AlreadyExists, match="another process"):
        await EmbeddedPostgres(folder / "data").start()
    connection = await asyncpg.connect(first.url())
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    await first.stop()


async def test_a_long_path_still_gets_a_socket(folder):
    deep = folder / ("d" * 60) / ("e" * 60)
    server = EmbeddedPostgres(deep / "data")
    await server.start()
    connection = await asyncpg.connect(server.url())
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    await server.stop()


async def test_a_server_left_behind_by_a_killed_process_is_taken_over(folder):
    program = (
        "import asyncio, sys, os, signal; from pathlib import Path; from heliograph.runtime.embedded_postgres import EmbeddedPostgres as E\n"
        "asyncio.run(E(Path(sys.argv[1])).start()); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = await start(sys.executable, "-c", program, str(folder / "data"))
    assert await killed.wait() == -signal.SIGKILL
    orphan = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(orphan, 0)  # it lives

    server = EmbeddedPostgres(folder / "data")
    await server.start()
    assert server.pid != orphan
    connection = await asyncpg.connect(server.url())
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    await server.stop()


async def test_below_a_private_folder_it_still_starts_and_its_data_stays(tmp_path):
    private = tmp_path / "home"
    private.mkdir(mode=0o700)
    server = EmbeddedPostgres(private / "data")
    for expected in (None, 1):
        await server.start()
        connection = await asyncpg.connect(server.url())
        assert await connection.fetchval("select count(*) from pg_tables where tablename = 't'") == (expected or 0)
        await connection.execute("create table if not exists t (i int)")
        await connection.close()
        await server.stop()
    if (private / "data").is_symlink():
        shutil.rmtree((private / "data").resolve())
