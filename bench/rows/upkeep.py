"""What connections cost: memory, connecting, being there, and not reading."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from statistics import median

from bench import rivals
from bench.load import Failed, Load, Round, load
from bench.machine import cpu_us, private_kb
from bench.options import Options
from bench.pairs import Line, in_turn, say
from bench.rows.tls import settings as tls_settings
from bench.world import SERVER_CPU, Published, spent, world

STEPS = 5
REST_S = 1.5
"""Until reports of new connections are stored, and what they needed is free again."""
IDLE_WINDOW_MS = 9_000
FILLING = 80
"""Versions after which a socket that nobody reads is surely full."""
READING = 30


async def memory(options: Options) -> list[Line]:
    """Of an idle connection with its session, beyond a bare one. Clients come in steps; the first step, which warms allocators, does not count."""
    step = options.size(10_000) // STEPS
    async with AsyncExitStack() as open_:
        made = await open_.enter_async_context(world())
        greeting = await made.snapshot_bytes()
        server = await open_.enter_async_context(rivals.bare(made.folder, cpu=SERVER_CPU, greeting=greeting))
        sizes: dict[str, list[int]] = {"ours": [], "bare": []}
        for number in range(STEPS):
            await open_.enter_async_context(made.clients(step))
            await open_.enter_async_context(load(server.protocol, server.port, step, **server.options))
            await asyncio.sleep(REST_S)
            sizes["ours"].append(private_kb(made.sync))
            sizes["bare"].append(private_kb(server.pids))
            say(f"  {step * (number + 1):,} connections: ours {sizes['ours'][-1]:,} KB, bare {sizes['bare'][-1]:,} KB")
    each = {name: (seen[-1] - seen[0]) / (step * (STEPS - 1)) for name, seen in sizes.items()}
    beyond = each["ours"] - each["bare"]
    steps = [
        (sizes["ours"][i + 1] - sizes["ours"][i] - sizes["bare"][i + 1] + sizes["bare"][i]) / step for i in range(STEPS - 1)
    ]
    options.note(
        f"memory: proportional set size, from {step:,} to {step * STEPS:,} connections that have their snapshot; by steps of {step:,} the difference is "
        f"{min(steps):.1f} to {max(steps):.1f} KB. The kernel's own memory of a socket comes on top, for both alike."
    )
    return [
        Line(
            "memory per idle connection, beyond a bare picows connection",
            "≤ 3 KB",
            f"{beyond:.1f} KB (ours {each['ours']:.1f}, bare {each['bare']:.1f})",
            "",
            beyond <= 3,
        )
    ]


@dataclass(frozen=True)
class Opened:
    """Of one connection."""

    cpu_us: float
    seconds: float


async def connects(options: Options) -> list[Line]:
    """With hello and a snapshot of 10 KB, beside a bare server that sends as many bytes."""
    clients = options.size(2_000)
    async with AsyncExitStack() as open_:
        made = await open_.enter_async_context(world())
        greeting = await made.snapshot_bytes()
        files = rivals.certificate(made.folder)
        bare = await open_.enter_async_context(rivals.bare(made.folder, cpu=SERVER_CPU, greeting=greeting))
        secure = await open_.enter_async_context(rivals.bare(made.folder, cpu=SERVER_CPU, greeting=greeting, tls=files))
        contestants: dict[str, Callable[[], Awaitable[Opened]]] = {
            "ours": _opens(lambda: made.clients(clients), made.sync),
            "bare": _opens(lambda: load(bare.protocol, bare.port, clients, **bare.options), bare.pids),
            "bare, TLS": _opens(lambda: load(secure.protocol, secure.port, clients, **secure.options), secure.pids),
        }
        try:
            port, processes = await open_.enter_async_context(made.another_sync(tls_settings(files), cpu=SERVER_CPU))
            contestants["ours, TLS"] = _opens(lambda: made.clients(clients, port=port, tls=True), processes)
        except Failed as reason:
            options.note(f"connecting with TLS: not measured: {reason}.")
        pids = [*made.pids, *bare.pids, *secure.pids]
        blocks = await in_turn(contestants, pids=pids, reps=options.reps, rounds=1)
    lines = []
    for name in ("ours", "ours, TLS"):
        if name not in contestants:
            continue
        other = name.replace("ours", "bare")
        rates = [f"{1 / blocks.middle(each, lambda one: one.seconds):,.0f}" for each in (name, other)]
        costs = [f"{blocks.middle(each, lambda one: one.cpu_us):.0f}" for each in (name, other)]
        compared = blocks.compare(name, other, lambda one: one.cpu_us)
        lines.append(
            Line(
                f"connects per second and worker, hello and {greeting / 1000:.0f} KB snapshot{', TLS' if 'TLS' in name else ''}: CPU beside bare picows",
                "≤ 2.00 times",
                f"{rates[0]} /s, {costs[0]} µs each; bare {rates[1]} /s, {costs[1]} µs",
                str(compared),
                compared.value <= 2,
            )
        )
    options.note(
        f"connects: {clients:,} at a time, 100 being opened at once, one token; with the load on another core. {blocks.loads()}."
    )
    return lines


def _opens(connect: Callable[[], asynccontextmanager], server: Sequence[int]) -> Callable[[], Awaitable[Opened]]:
    async def one() -> Opened:
        async with AsyncExitStack() as open_, spent(server) as cpu:
            running: Load = await open_.enter_async_context(connect())
        await asyncio.sleep(0.5)  # its leaving is not the next one's cost
        return Opened(cpu[0] / running.clients, running.seconds / running.clients)

    return one


async def idle(options: Options) -> list[Line]:
    """CPU of connections that only give signs of life."""
    clients = options.size(10_000)
    shares = []
    async with (
        world(settings={"HELIOGRAPH_HEARTBEAT_S": "25"}) as made,
        made.clients(clients, heartbeat=25) as running,
    ):
        await running.serve(4_000)
        for _ in range(3):
            before, began = cpu_us(made.sync), time.monotonic()
            await running.serve(IDLE_WINDOW_MS)
            shares.append((cpu_us(made.sync) - before) / 1e4 / (time.monotonic() - began))
            say(f"  {shares[-1]:.2f} % of a core")
    middle = median(shares)
    return [Line(f"idle CPU, {clients:,} connections, heartbeat 25 s", "< 3 % of a core", f"{middle:.2f} %", "", middle < 3)]


@dataclass(frozen=True)
class Others:
    """How those who read fare: milliseconds from the author's first byte; and memory of the process at the end, in KB."""

    p99_ms: float
    memory_kb: float


async def stalled(options: Options) -> list[Line]:
    """Some clients never read. The same number of clients all the time, and those who read are the same."""
    lines = []
    for share in (0.01, 0.10):
        lines += await _stalled(options, options.size(2_000), share)
    return lines


async def _stalled(options: Options, clients: int, share: float) -> list[Line]:
    silent = max(1, int(clients * share))
    reps = min(options.reps, 5)
    async with world() as made, made.clients(clients - silent, spin=True) as healthy:

        def block(never: int) -> Callable[[], Awaitable[Others]]:
            async def one() -> Others:
                async with made.clients(silent, never=never):
                    for _ in range(FILLING):
                        await made.version(healthy)
                    times = [_p99(*await made.version(healthy)) for _ in range(READING)]
                    await asyncio.sleep(REST_S)
                    return Others(median(times), private_kb(made.sync))

            return one

        blocks = await in_turn(
            {"never read": block(silent), "all read": block(0)}, pids=[*made.pids, healthy.pid], reps=reps, rounds=1
        )
    compared = blocks.compare("never read", "all read", lambda each: each.p99_ms)
    grown = [
        (a - b) / 1024
        for a, b in zip(
            blocks.series("never read", lambda each: each.memory_kb),
            blocks.series("all read", lambda each: each.memory_kb),
            strict=True,
        )
    ]
    p99 = [blocks.middle(name, lambda each: each.p99_ms) for name in ("never read", "all read")]
    options.note(
        f"{share:.0%} never read: after {FILLING} versions that fill their sockets, {READING} more are measured. {blocks.loads()}."
    )
    return [
        Line(
            f"{share:.0%} of {clients:,} clients never read: p99 of the others",
            "within 10 %",
            f"{p99[0]:.1f} ms; with all reading {p99[1]:.1f} ms",
            str(compared),
            compared.value <= 1.1,
        ),
        Line(
            f"{share:.0%} of {clients:,} clients never read: memory of the process",
            "within 1 MiB",
            f"{median(grown):+.2f} MiB",
            "",
            median(grown) <= 1,
        ),
    ]


def _p99(published: Published, arrived: Round) -> float:
    return (arrived.p99_us - published.started_us) / 1000
