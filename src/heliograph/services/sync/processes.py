"""One process, or several workers on the same ports and one that looks after them."""

from __future__ import annotations

import asyncio
import os
import sys

from heliograph.runtime.place import own_place
from heliograph.runtime.process import on_hangup
from heliograph.runtime.workers import Door, Workers
from heliograph.services.sync.settings import SyncSettings


async def serve(settings: SyncSettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
    """As `app.serve`, which is what each worker runs. SIGHUP renews the workers one after another."""
    count = settings.workers or _cores()
    if own_place() or count == 1:
        from heliograph.services.sync import app  # noqa: PLC0415  # the one that looks after others needs none of it

        with on_hangup(lambda: None):  # without a certificate there is nothing to load again
            await app.serve(settings, ready=ready, stop=stop)
        return
    doors = (
        Door("sync", settings.listen_host, settings.sync_port),
        Door("sync-http", settings.listen_host, settings.sync_http_port),
    )
    command = (sys.executable, "-m", "heliograph.services.sync")
    renewal = asyncio.Event()
    with on_hangup(renewal.set):
        await Workers(command, doors, count, drain_s=settings.drain_s).run(ready=ready, stop=stop, renewal=renewal)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
