"""From `heliograph dev` to PostgreSQL and Kafka, as the guide says: the history, its keys and its clients' tokens move along."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from handbook.examples import DOCS, Step, steps
from tests.conftest import free_port
from tests.end_to_end.processes import Managed, heliograph
from tests.end_to_end.reader import reading
from tests.end_to_end.stack import KAFKA_SCRIPT, Stack, running
from tests.fixtures.postgres import require

from heliograph import Heliograph
from heliograph.runtime.children import start

PAGE = DOCS / "how-to/servers.md"
PORTS = ("REGISTRY", "SYNC", "SYNC_HTTP", "LEDGER")
BEFORE = """
heliograph create move/production
echo '{"max": 1}' | heliograph publish move/production/limits
heliograph set move/production/limits /max 2
heliograph token create client mover --scope move/production --output client.token
"""
AFTER = """
heliograph verify move/production --from-server --trust "$(cat client.token)"
heliograph set move/production/limits /max 3 --wait 100% --timeout 30s
test "$(heliograph show move/production --json | jq .number)" = 4
"""
SETTLE_S = 60


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="heliograph-test-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@asynccontextmanager
async def dev(folder: Path) -> AsyncIterator[Path]:
    """Its data folder."""
    ports = {name: free_port() for name in PORTS}
    env = {f"HELIOGRAPH_{name}_PORT": str(port) for name, port in ports.items()} | {"HELIOGRAPH_DATA_DIR": str(folder / "dev")}
    server = Managed("dev", heliograph("dev"), env, folder / "dev.log", f"http://127.0.0.1:{ports['REGISTRY']}/readyz")
    await server.start()
    try:
        await server.ready()
        yield folder / "dev"
    finally:
        await server.stop()


async def follow(folder: Path, data: Path, places: Mapping[str, str], found: list[Step]) -> None:
    async with reading(folder, data, places, {}) as reader:
        for step in found:
            await reader.follow(step)


@pytest.mark.postgres
@pytest.mark.kafka
async def test_a_history_moves_with_its_keys_and_tokens(folder: Path) -> None:
    require(any(Path("/usr/lib/postgresql").glob("*/bin/postgres")), "Debian's PostgreSQL is not installed (make setup)")
    child = await start("bash", KAFKA_SCRIPT, "installed")
    require(await child.wait() == 0, "Kafka's jars are missing (make setup)")

    async def move(stack: Stack) -> None:
        async with dev(folder) as data:
            address = stack.servers["postgres"].env["POSTGRES_PORT"]
            places = {"db.internal": f"127.0.0.1:{address}", "/var/lib/heliograph": str(stack.folder / "data")}
            guide = list(steps(PAGE.read_text()))
            assert sum(not step.not_run for step in guide) >= 4
            await follow(folder / "reader", data, places, [Step("script", BEFORE), *guide])

    async with running(folder, kafka=True, prepare=move) as stack:
        token = (folder / "reader/client.token").read_text().strip()
        async with Heliograph(stack.url, token=token, namespace="move", environment="production", cache_dir=None) as client:
            limits = client.config("limits")
            assert limits["max"] == 2
            env = {"HELIOGRAPH_URL": stack.url, "HELIOGRAPH_TOKEN_FILE": str(stack.folder / "data/tokens/admin.token")}
            async with reading(folder / "after", folder / "nothing", {}, env) as reader:
                (reader.folder / "client.token").write_text(token)
                await reader.follow(Step("script", AFTER))
            async with asyncio.timeout(SETTLE_S):
                while limits["max"] != 3:
                    await asyncio.sleep(0.02)
