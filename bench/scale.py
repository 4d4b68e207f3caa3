"""How large may it grow? One environment with many configs, one with a long history: what a commit, a page, a difference and a start cost there.

The configs are published like any others. The history is written straight into PostgreSQL, by the same functions and signed by the same keys as the
registry's, because publishing it would take hours; then everything is started anew and asked over its API.
"""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import httpx

from bench.report import machine
from bench.stacks import Stack, embedded
from heliograph.core import dsse, history
from heliograph.core.digest import spell, unspell
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Head, Signature, Version
from heliograph.core.times import to_text
from heliograph.keys.local import LocalKeys, LocalSigner
from heliograph.runtime.clock import now_us
from heliograph.runtime.embedded_postgres import EmbeddedPostgres
from heliograph.services.registry.heads import signatures_text

NAMESPACE = "scale"
BATCH = 5_000
ASKED = 30
LIFE_US = 600_000_000
Ask = Callable[[], Awaitable[httpx.Response]]


async def measure(configs: int, versions: int) -> str:
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as name:
        folder = Path(name)
        async with embedded(folder) as stack, _api(stack) as api:
            await _fill(api, configs)
        await _lengthen(folder / "data", versions)
        started = time.perf_counter()
        async with embedded(folder) as stack, _api(stack) as api:
            ready_s = time.perf_counter() - started
            rows = [row async for row in _rows(api, configs, versions)]
            memory = resident_mb(stack.pids[0])
    return "\n".join(
        [
            f"{configs:,} configs in one environment and {versions:,} versions in another, all services in one process on the embedded",
            f"PostgreSQL; median of {ASKED} requests, one after another. {machine()}.",
            "",
            "| what is asked | ms |",
            "|---|---|",
            *(f"| {what} | {milliseconds:,.1f} |" for what, milliseconds in rows),
            "",
            f"From start to ready, with the sync node warm: {ready_s:.1f} s, of all services. Memory of the process afterwards: {memory:,.0f} MB.",
        ]
    )


def _api(stack: Stack) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=stack.url, headers={"Authorization": f"Bearer {stack.token}"}, timeout=300)


def _place(environment: str) -> str:
    return f"/v1/namespaces/{NAMESPACE}/environments/{environment}"


async def _fill(api: httpx.AsyncClient, configs: int) -> None:
    (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
    for name in ("wide", "long"):
        (await api.post(f"/v1/namespaces/{NAMESPACE}/environments", json={"name": name})).raise_for_status()
    for first in range(0, configs, BATCH):
        changes = [{"name": f"f{i % 200}/c{i}", "document": {"limit": i}} for i in range(first, min(first + BATCH, configs))]
        (await api.post(f"{_place('wide')}/versions", json={"changes": changes})).raise_for_status()
    for revision in (0, 1):
        (await api.put(f"{_place('long')}/configs/limits", json={"revision": revision})).raise_for_status()


# --- a long history ---------------------------------------------------------------------------------------------------------------


@dataclass
class _Line:
    """The end of a history, and how it goes on: between the contents of its last two versions."""

    keys: LocalKeys
    last: Version
    id: str
    peaks: list[bytes]
    roots: tuple[bytes, bytes]
    at_us: int
    pace_us: int

    def next(self) -> tuple[Any, ...]:
        number = self.last.number + 1
        self.at_us += self.pace_us
        version = Version(
            namespace=NAMESPACE,
            environment="long",
            epoch=self.last.epoch,
            number=number,
            parent=self.id,
            root=spell(self.roots[number % 2]),
            history=spell(history.fold(self.peaks)),
            kind="publish",
            author="bench",
            at=to_text(self.at_us),
        )
        text = version.text()
        self.last, self.id = version, Version.id_of(text)
        self.peaks = list(history.push(self.peaks, number - 1, unspell(self.id)))
        head = self.head()
        return (
            *(NAMESPACE, "long", number, unspell(self.id), version.epoch, unspell(version.root)),
            *(text.decode(), _signed(self.keys.commit, VERSION_TYPE, text), head.text().decode()),
            *(_signed(self.keys.head, HEAD_TYPE, head.text()), ["limits"], 1, self.at_us),
        )

    def head(self) -> Head:
        return Head(
            namespace=NAMESPACE,
            environment="long",
            epoch=self.last.epoch,
            number=self.last.number,
            version=self.id,
            root=self.last.root,
            safe=self.last.number,
            issued_at=to_text(self.at_us),
            expires_at=to_text(self.at_us + LIFE_US),
        )


def _signed(signer: LocalSigner, kind: str, text: bytes) -> str:
    signature = base64.b64encode(signer.sign_now(dsse.pae(kind, text))).decode()
    return signatures_text(dsse.Signed(text.decode(), (Signature(signer.keyid, signature),)))


COLUMNS = (
    *("namespace", "environment", "number", "id", "epoch", "root", "record", "record_signatures", "head", "head_signatures"),
    *("names", "configs", "received_at_us"),
)


async def _lengthen(data: Path, versions: int) -> None:
    postgres = EmbeddedPostgres(data / "postgres")
    await postgres.start()
    try:
        connection = await asyncpg.connect(postgres.url("postgres", "postgres"))
        keys = LocalKeys.open_or_create(data / "keys", history_exists=True, now_us=now_us())
        line = await _end_of(connection, keys, versions)
        for batch in _batches(line, versions - line.last.number):
            await connection.copy_records_to_table("version", schema_name="registry", records=batch, columns=COLUMNS)
        await _move_head(connection, line)
        await connection.execute("vacuum analyze")
        await connection.close()
    finally:
        await postgres.stop()


async def _end_of(connection: asyncpg.Connection, keys: LocalKeys, versions: int) -> _Line:
    head = await connection.fetchrow("select * from registry.head where environment = 'long'")
    rows = await connection.fetch("select record, root from registry.version where environment = 'long' order by number")
    peaks = [head["peaks"][at : at + 32] for at in range(0, len(head["peaks"]), 32)]
    last = Version.read(rows[-1]["record"])
    pace_us = max((now_us() - head["at_us"]) // versions, 1)  # all of them between its last version and now
    return _Line(keys, last, spell(head["version"]), peaks, (rows[-2]["root"], rows[-1]["root"]), head["at_us"], pace_us)


def _batches(line: _Line, count: int) -> Iterator[list[tuple[Any, ...]]]:
    for first in range(0, count, BATCH):
        yield [line.next() for _ in range(min(BATCH, count - first))]


async def _move_head(connection: asyncpg.Connection, line: _Line) -> None:
    """As `only_forward` would refuse a jump, the trigger is off meanwhile."""
    head = line.head()
    await connection.execute("alter table registry.head disable trigger only_forward")
    await connection.execute(
        """update registry.head set number = $1, version = $2, root = $3, peaks = $4, at_us = $5, safe = $1, issued_at_us = $5,
           expires_at_us = $6, payload = $7, signatures = $8 where environment = 'long'""",
        *(head.number, unspell(line.id), unspell(head.root), b"".join(line.peaks), line.at_us, line.at_us + LIFE_US),
        *(head.text().decode(), _signed(line.keys.head, HEAD_TYPE, head.text())),
    )
    await connection.execute("alter table registry.head enable trigger only_forward")


# --- questions --------------------------------------------------------------------------------------------------------------------


async def _rows(api: httpx.AsyncClient, configs: int, versions: int) -> Any:
    async def ask(what: str, request: Callable[[int], Awaitable[httpx.Response]]) -> tuple[str, float]:
        times = []
        for i in range(ASKED):
            started = time.perf_counter()
            (await request(i)).raise_for_status()
            times.append((time.perf_counter() - started) * 1000)
        return what, median(times)

    def get(environment: str, path: str, **params: Any) -> Callable[[int], Awaitable[httpx.Response]]:
        return lambda _: api.get(f"{_place(environment)}{path}", params=params)

    def put(environment: str, name: str) -> Callable[[int], Awaitable[httpx.Response]]:
        return lambda i: api.put(f"{_place(environment)}/configs/{name}", content=json.dumps({"changed": i}))

    middle = versions // 2
    after = base64.urlsafe_b64encode(str(middle).encode()).decode().rstrip("=")
    yield await ask(f"publish one of {configs:,} configs", put("wide", "f7/c7"))
    yield await ask(f"publish to the environment of {versions:,} versions", put("long", "other"))
    yield await ask("list a folder of 500 configs", get("wide", "/configs", folder="f7/", limit=500))
    yield await ask("difference of the last two versions", get("wide", "/diff"))
    yield await ask(
        f"difference over {max(0, configs - BATCH):,} added configs, first page", get("wide", "/diff", **{"from": 2})
    )
    yield await ask("history, newest page of 50", get("long", "/versions"))
    yield await ask(f"history, page of 50 from version {middle:,} on", get("long", "/versions", cursor=after))
    yield await ask("history of one config, newest page", get("long", "/history/limits"))
    yield await ask(f"difference from version 2 to {middle:,}", get("long", "/diff", **{"from": 2, "to": middle}))
    yield await ask(f"a config as of version {middle:,}", get("long", "/configs/limits", at=middle))
    page = await api.get(f"{_place('long')}/versions", params={"cursor": after})
    yield await ask("a config as of a time", get("long", "/configs/limits", at=page.json()["items"][0]["at"]))
    yield await ask("roll back to version 2", lambda i: api.post(f"{_place('long')}/rollback", json={"to": 2 + i % 2}))


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
