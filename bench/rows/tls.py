"""TLS in the worker, beside a plain worker, and beside Envoy in front of one. All of the server's side on one core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from bench import rivals
from bench.load import Failed, Load
from bench.options import Options
from bench.pairs import Line, in_turn
from bench.world import SERVER_CPU, World, spent, world
from heliograph.services.sync.settings import SyncSettings

CLIENTS = 4_500
"""A proxy opens two files a client."""
ROUNDS = 3


def settings(files: Sequence[object]) -> dict[str, str]:
    """Of a sync node that does TLS itself. Raises Failed where this one cannot."""
    if "tls_cert_file" not in SyncSettings.model_fields:
        raise Failed("needs HELIOGRAPH_TLS_CERT_FILE of heliograph sync")
    return {"HELIOGRAPH_TLS_CERT_FILE": str(files[0]), "HELIOGRAPH_TLS_KEY_FILE": str(files[1])}


async def measure(options: Options) -> list[Line]:
    clients = options.size(CLIENTS)
    async with AsyncExitStack() as open_:
        made = await open_.enter_async_context(world())
        files = rivals.certificate(made.folder)
        port, secure = await open_.enter_async_context(made.another_sync(settings(files), cpu=SERVER_CPU))
        sides: dict[str, tuple[Sequence[int], int, bool]] = {
            "plain": (made.sync, 0, False),
            "TLS": (secure, port, True),
        }
        try:
            proxy = await open_.enter_async_context(rivals.envoy(made.folder, made.stack.stream_port, files, cpu=SERVER_CPU))
            sides["Envoy"] = ([*made.sync, *proxy.pids], proxy.port, True)
        except Failed as reason:
            options.note(f"TLS: not measured beside Envoy: {reason}.")
        contestants, pids = {}, [*made.pids, *(pid for side in sides.values() for pid in side[0])]
        for name, (server, at, encrypted) in sides.items():
            environment = await made.environment(f"by-{name.lower()}")  # so that each has versions of its own
            running = await open_.enter_async_context(made.clients(clients, environment, port=at, tls=encrypted, spin=True))
            contestants[name] = _rounds(made, running, environment, server)
            pids.append(running.pid)
        blocks = await in_turn(contestants, pids=pids, reps=options.reps, rounds=ROUNDS)
    middle = {name: blocks.middle(name, lambda each: each) for name in contestants}
    lines = []
    for name, most in (("plain", 1.7), ("Envoy", 0.45)):
        if name in contestants:
            compared = blocks.compare("TLS", name, lambda each: each)
            lines.append(
                Line(
                    f"TLS in the worker, {clients:,} clients: server CPU per recipient, beside {'a plain worker' if name == 'plain' else 'Envoy in front'}",
                    f"≤ {most:.2f} times",
                    f"{middle['TLS']:.2f} µs; {name} {middle[name]:.2f} µs",
                    str(compared),
                    compared.value <= most,
                )
            )
    options.note(f"TLS: 1.3, ECDSA P-256; Envoy with one worker thread, its CPU and sync's together. {blocks.loads()}.")
    return lines


def _rounds(made: World, running: Load, environment: str, server: Sequence[int]) -> Callable[[], Awaitable[float]]:
    async def one() -> float:
        async with spent(server) as cpu:
            await made.version(running, environment)
        return cpu[0] / running.clients

    return one
