"""One version to many sockets: server CPU per recipient, the time until all have answered, the whole machine, growth."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench import rivals
from bench.load import Failed, Load, Round, load
from bench.options import Options
from bench.pairs import Line, in_turn, say
from bench.rivals import Server
from bench.world import SERVER_CPU, World, spent, world

SIZE = 500
ROUNDS = 3
ACK_ROUNDS = 2
AS_LARGE = " with as many bytes"
RIVALS = {"Redis": rivals.redis, "NATS": rivals.nats, "Centrifugo": rivals.centrifugo}


@dataclass(frozen=True)
class Fan:
    """One fan-out. Times in milliseconds since the start that the row names."""

    cpu_us: float
    last_ms: float
    p99_ms: float
    bytes: int
    whole_ms: float = 0.0


def ours(world: World, clients: Load, environment: str = "main") -> Callable[[], Awaitable[Fan]]:
    async def one() -> Fan:
        async with spent(world.sync) as cpu:
            published, arrived = await world.version(clients, environment)
        return _fan(cpu[0] / clients.clients, published.started_us, arrived)

    return one


def theirs(server: Server, clients: Load, size: int = SIZE) -> Callable[[], Awaitable[Fan]]:
    async def one() -> Fan:
        async with spent(server.pids) as cpu:
            arrived = await clients.publish(size)
        return _fan(cpu[0] / clients.clients, arrived.published_us, arrived)

    return one


def _fan(cpu: float, since_us: int, arrived: Round) -> Fan:
    return Fan(
        cpu, (arrived.last_us - since_us) / 1000, (arrived.p99_us - since_us) / 1000, arrived.bytes // max(1, arrived.got)
    )


async def _meet(
    open_: AsyncExitStack, made: World, clients: int, names: list[str], cpu: int | None, *, spin: bool, frame: int = 0
) -> tuple[dict[str, Callable[[], Awaitable[Fan]]], list[int], list[str]]:
    """Every rival that can be had, each with its clients connected; and what could not be had. ``frame``: each once more, with as many bytes."""
    contestants: dict[str, Callable[[], Awaitable[Fan]]] = {}
    pids, missing = [], []
    for name in names:
        try:
            start = rivals.floor if name == "C loop" else RIVALS[name]
            server = await open_.enter_async_context(start(made.folder, cpu=cpu))
            running = await open_.enter_async_context(load(server.protocol, server.port, clients, spin=spin))
        except Failed as reason:
            say(f"  {name}: {reason}")
            missing.append(f"{name}: {reason}")
            continue
        contestants[name] = theirs(server, running)
        if frame:
            contestants[name + AS_LARGE] = theirs(server, running, frame)
        pids += [*server.pids, running.pid]
    return contestants, pids, missing


async def cpu(options: Options) -> list[Line]:
    """Server CPU per recipient, one worker."""
    clients = options.size(10_000)
    async with AsyncExitStack() as open_:
        made = await open_.enter_async_context(world())
        running = await open_.enter_async_context(made.clients(clients, spin=True))
        frame = (await ours(made, running)()).bytes
        others, pids, missing = await _meet(open_, made, clients, ["C loop", *RIVALS], SERVER_CPU, spin=True, frame=frame)
        contestants = {"ours": ours(made, running)} | others
        blocks = await in_turn(contestants, pids=[*made.pids, *pids], reps=options.reps, rounds=ROUNDS)
    mine = blocks.middle("ours", lambda each: each.cpu_us)
    lines = []
    goals = {"C loop": 1.30, "Redis": 1.0, "NATS": 0.7, "Centrifugo": None}
    for name in others:
        most = goals[name.removesuffix(AS_LARGE)]
        compared = blocks.compare("ours", name, lambda each: each.cpu_us)
        lines.append(
            Line(
                f"server CPU per recipient, {clients:,} sockets, one worker, beside {name}",
                f"≤ {most:.2f} times" if most else "",
                f"{mine:.2f} µs; {name} {blocks.middle(name, lambda each: each.cpu_us):.2f} µs",
                str(compared),
                compared.value <= most if most else None,
            )
        )
    options.note(
        f"server CPU: our frame has {frame:,} bytes (a document of {SIZE} with head, version, proof and signatures), the others' message {SIZE}, or as many as ours where the line says so; {blocks.loads()}."
    )
    options.note(*(f"server CPU: not measured: {each}." for each in missing))
    return lines


@dataclass(frozen=True)
class Answered:
    """Milliseconds from the message being in the server's hands, and from the author's first byte, to the last answer; where all are durable."""

    all_ms: float
    whole_ms: float = 0.0
    durable_ms: float = 0.0


async def acked(options: Options) -> list[Line]:
    """Publish to all acknowledged."""
    clients = options.size(10_000)
    async with AsyncExitStack() as open_:
        made = await open_.enter_async_context(world())
        running = await open_.enter_async_context(made.clients(clients, answer="told", spin=True))
        server = await open_.enter_async_context(rivals.floor(made.folder, cpu=SERVER_CPU))
        floor = await open_.enter_async_context(load(server.protocol, server.port, clients, answer="told", spin=True))

        async def mine() -> Answered:
            published, _ = await made.version(running, wait=True)
            answered = await _all_acknowledged(running, clients)
            story = await made.story("main", published.number)
            taken = await made.taken_us("main", published.number)
            return Answered(
                (taken - story["logged_at_us"]) / 1000,
                (taken - published.started_us) / 1000,
                (answered - published.started_us) / 1000,
            )

        async def loop() -> Answered:
            done = await floor.publish(SIZE)
            return Answered((done.acked_us - done.published_us) / 1000)

        pids = [*made.pids, *server.pids, running.pid, floor.pid]
        blocks = await in_turn({"ours": mine, "C loop": loop}, pids=pids, reps=options.reps, rounds=ACK_ROUNDS)
    compared = blocks.compare("ours", "C loop", lambda each: each.all_ms)
    middle = blocks.middle
    options.note(
        "all acknowledged: ours begins when the node has the version from the log and ends when the last receipt has come to the hub; "
        f"from the author's first byte it is {middle('ours', lambda each: each.whole_ms):.0f} ms, and "
        f"{middle('ours', lambda each: each.durable_ms):.0f} ms until the last client has been told that its receipt is durable. The log is PostgreSQL, "
        f"on the clients' core. {blocks.loads()}."
    )
    return [
        Line(
            f"publish to all acknowledged, {clients:,}",
            "≤ 1.40 times the C loop with acks",
            f"{middle('ours', lambda each: each.all_ms):.1f} ms; C loop {middle('C loop', lambda each: each.all_ms):.1f} ms",
            str(compared),
            compared.value <= 1.4,
        )
    ]


async def _all_acknowledged(clients: Load, count: int) -> int:
    """When the last receipt_ack came."""
    for _ in range(500):
        acked, at_us = await clients.serve(10)
        if acked >= count:
            return at_us
    raise Failed(f"{acked:,} of {count:,} receipts were acknowledged within 5 s")


async def machine(options: Options) -> list[Line]:
    """Nothing pinned, a worker a core; the load sleeps when nothing comes, and shares the cores."""
    clients, workers = options.size(10_000), os.cpu_count() or 1
    async with AsyncExitStack() as open_:
        made = await open_.enter_async_context(world(pin_sync=False, workers=workers))
        running = await open_.enter_async_context(made.clients(clients))
        others, pids, missing = await _meet(open_, made, clients, ["NATS", "Centrifugo"], None, spin=False)

        async def mine() -> Fan:
            async with spent(made.sync) as cpu:
                published, arrived = await made.version(running)
            story = await made.story("main", published.number, answered=False)
            since = _fan(cpu[0] / clients, story["committed_at_us"], arrived)
            return Fan(since.cpu_us, since.last_ms, since.p99_ms, since.bytes, (arrived.last_us - published.started_us) / 1000)

        blocks = await in_turn({"ours": mine} | others, pids=[*made.pids, *pids], reps=options.reps, rounds=ROUNDS)
    lines = []
    for name in others:
        compared = blocks.compare("ours", name, lambda each: each.last_ms)
        lines.append(
            Line(
                f"whole machine, nothing pinned, {clients:,} clients, {workers} workers: time to the last, beside {name}",
                "≤ 1.00 times",
                f"{blocks.middle('ours', lambda each: each.last_ms):.1f} ms; {name} {blocks.middle(name, lambda each: each.last_ms):.1f} ms",
                str(compared),
                compared.value <= 1.0,
            )
        )
    options.note(
        "whole machine: ours begins at the commit in PostgreSQL, the others' (which keep nothing) when the message is sent; from the author's first byte "
        f"ours takes {blocks.middle('ours', lambda each: each.whole_ms):.0f} ms. {blocks.loads()}."
    )
    options.note(*(f"whole machine: not measured: {each}." for each in missing))
    return lines


async def growth(options: Options) -> list[Line]:
    """CPU per recipient over numbers of clients, of environments and of views."""
    lines = [await _by_clients(options)]
    await _by_environments(options)
    await _by_views(options)
    return lines


async def _by_clients(options: Options) -> Line:
    wanted = [options.size(n) for n in (1_000, 5_000, 10_000, 19_000)]
    sizes = sorted(set(wanted)) if not options.clients else [max(100, options.clients // 10), options.clients]
    figures = {}
    async with world() as made:
        for size in sizes:
            async with made.clients(size, spin=True) as running:
                files = running.files
                pids = [*made.pids, running.pid]
                blocks = await in_turn({"ours": ours(made, running)}, pids=pids, reps=options.reps, rounds=ROUNDS)
                figures[size] = blocks.middle("ours", lambda each: each.cpu_us)
                say(f"  {size:,} clients: {figures[size]:.2f} µs; {blocks.loads()}")
    spread = max(figures.values()) / min(figures.values())
    options.note(
        "growth in clients: "
        + ", ".join(f"{size:,}: {value:.2f} µs" for size, value in figures.items())
        + f" of server CPU a recipient. A process may open {files:,} files here, so there it ends."
    )
    return Line(
        f"growth: server CPU per client from {sizes[0]:,} to {sizes[-1]:,}",
        "flat within 15 %",
        ", ".join(f"{value:.2f}" for value in figures.values()) + " µs",
        f"{spread:.2f}",
        spread <= 1.15,
    )


async def _by_environments(options: Options) -> None:
    clients = options.size(10_000)
    figures = []
    async with world() as made:
        for count in sorted({1, 10, min(1_000, max(1, clients // 10))}):
            names = [f"of-{count}-{i}" for i in range(count)]
            for name in names:
                await made.environment(name, configs=1)
            option = {"environments": count, "environment": f"of-{count}"} if count > 1 else {"environment": names[0]}
            async with made.clients(clients, **option, flight=50) as running:
                figures.append(f"{count:,}: {await _burst(made, running, names[:50], clients // count):.2f} µs")
                say(f"  environments {figures[-1]}")
    options.note(
        f"growth in environments, {clients:,} clients spread evenly, one version each (of 50 where there are more): {', '.join(figures)} of server CPU a recipient, with reading, checking and encoding of each version."
    )


async def _burst(made: World, running: Load, names: list[str], each: int) -> float:
    """One version to each of these environments; CPU for each recipient."""
    expected = len(names) * each
    for _ in range(2):  # the first is warm-up
        async with spent(made.sync) as cpu:
            await running.arm(expected)
            for name in names:
                await made.publish(name)
            await running.arrived()
    return cpu[0] / expected


async def _by_views(options: Options) -> None:
    clients = options.size(10_000)
    figures = []
    async with world() as made:
        for count in (1, 100, clients):
            async with made.clients(clients, views=count) as running:
                runs = [await ours(made, running)() for _ in range(4)][1:]
                figures.append(f"{count:,}: {sorted(each.cpu_us for each in runs)[1]:.1f} µs")
                say(f"  views {figures[-1]}")
    options.note(
        f"growth in views, {clients:,} clients, from one that all share to one for each: {', '.join(figures)} of server CPU a recipient; a frame is made once a view."
    )
