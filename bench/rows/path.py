"""The whole path, from the author's first byte: to applied, to the last client beside etcd, to the last receipt that is stored."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import propagation, report, rivals
from bench.load import Failed, load
from bench.options import Options
from bench.pairs import Blocks, Line, in_turn
from bench.stacks import servers
from bench.world import LIMITS, World, world

SDKS = 20
PUBLISHES = 40
GAP_S = 1.2
SIZE = 500
ROUNDS = 4


async def one_worker(options: Options) -> list[Line]:
    return [await _to_applied(options, options.size(5_000), workers=1, most_ms=50, hoped_ms=32)]


async def two_workers(options: Options) -> list[Line]:
    return [await _to_applied(options, options.size(10_000), workers=2, most_ms=None, hoped_ms=50)]


async def _to_applied(options: Options, clients: int, *, workers: int, most_ms: int | None, hoped_ms: int) -> Line:
    sdks = min(SDKS, clients // 20)
    arguments = ["--workers", str(workers)] if workers > 1 else []
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as name:
        folder = Path(name)
        try:
            async with servers(folder, sync=arguments, settings=LIMITS) as stack:
                publishes = PUBLISHES if options.clients is None else 5
                result = await propagation.measure(
                    stack, folder, clients=clients - sdks, processes=sdks, publishes=publishes, gap_s=GAP_S
                )
        except RuntimeError as error:
            if arguments and "No such option" in str(error) + _log(folder):
                raise Failed("needs `heliograph serve sync --workers`") from None
            raise
    p99 = report.quantile(result.synthetic + result.sdk, 0.99)
    what = f"whole path to applied, {clients:,} clients ({sdks} SDK processes), {'one worker' if workers == 1 else f'{workers} workers'}: p99"
    options.tables.append(f"**{what}**\n\n{report.propagation_section(result)}")
    goal = f"under {most_ms} ms, try for {hoped_ms}" if most_ms else f"reported, try for {hoped_ms} ms"
    return Line(what, goal, f"{p99:.1f} ms", "", p99 < most_ms if most_ms else None)


def _log(folder: Path) -> str:
    log = folder / "stack/logs/sync.log"
    return log.read_text(errors="replace") if log.exists() else ""


async def durable(options: Options) -> list[Line]:
    """A publish that is on disk, to its last client, beside an etcd put to its last watcher."""
    lines = []
    for wanted in (1_000, 5_000):
        clients = options.size(wanted)
        blocks = await _beside_etcd(options, clients)
        compared = blocks.compare("ours", "etcd", lambda each: each)
        figures = [f"{name} {blocks.middle(name, lambda each: each):.1f} ms" for name in ("ours", "etcd")]
        lines.append(
            Line(
                f"durable publish to the last of {clients:,}",
                "ahead of etcd",
                "; ".join(figures),
                str(compared),
                compared.value < 1,
            )
        )
        options.note(
            f"durable publish, {clients:,}: PostgreSQL with fsync and Kafka; etcd with fsync, one connection a watcher; nothing pinned. {blocks.loads()}."
        )
        if options.clients:
            break
    return lines


async def _beside_etcd(options: Options, clients: int) -> Blocks[float]:
    async with AsyncExitStack() as open_:
        made = await open_.enter_async_context(world(kafka=True, pin_sync=False))
        running = await open_.enter_async_context(made.clients(clients))
        server = await open_.enter_async_context(rivals.etcd(made.folder))
        watchers = await open_.enter_async_context(load(server.protocol, server.port, clients))

        async def mine() -> float:
            published, arrived = await made.version(running)
            return (arrived.last_us - published.started_us) / 1000

        async def etcd() -> float:
            done = await watchers.publish(SIZE)
            return (done.last_us - done.published_us) / 1000

        contestants: dict[str, Callable[[], Awaitable[float]]] = {"ours": mine, "etcd": etcd}
        pids = [*made.pids, *server.pids, running.pid, watchers.pid]
        return await in_turn(contestants, pids=pids, reps=options.reps, rounds=ROUNDS)


async def receipts(options: Options) -> list[Line]:
    """All receipts of one version stored, and visible in its propagation."""
    clients = options.size(10_000)
    async with world(kafka=True, pin_sync=False) as made, made.clients(clients, answer="told") as running:

        async def one() -> Stored:
            before = made.cpu_by_service()
            published, _ = await made.version(running, wait=True)
            while not await _complete(made, published.number, clients):
                pass
            seconds = (time.time_ns() // 1000 - published.started_us) / 1e6
            await asyncio.sleep(1)  # what is left of it in the background is its cost too
            after = made.cpu_by_service()
            return Stored(seconds, {name: (after[name] - before[name]) / clients for name in before})

        blocks = await in_turn({"ours": one}, pids=[*made.pids, running.pid], reps=options.reps, rounds=1)
    middle, worst = blocks.middle("ours", lambda each: each.seconds), max(blocks.series("ours", lambda each: each.seconds))
    costs = [
        f"{name} {blocks.middle('ours', lambda each, name=name: each.cpu_us[name]):.0f}"
        for name in blocks.rounds["ours"][0][0].cpu_us
    ]
    options.note(
        f"receipts: PostgreSQL and Kafka, nothing pinned, the author waits for all; the slowest of {options.reps} took {worst:.2f} s. CPU for each "
        f"client, its frame and its receipt, in µs: {', '.join(costs)}. {blocks.loads()}."
    )
    return [
        Line(
            f"{clients:,} receipts of one version stored and visible, from publish",
            "under 1 s",
            f"{middle:.2f} s",
            "",
            middle < 1,
        )
    ]


@dataclass(frozen=True)
class Stored:
    """Seconds from publish until all is visible; microseconds of CPU for each client."""

    seconds: float
    cpu_us: dict[str, float]


async def _complete(made: World, number: int, clients: int) -> bool:
    path = f"/v1/propagations/bench/main/{number}"
    story = (await made.ledger.get(path)).raise_for_status().json()
    return bool(story["applied"] == clients)
