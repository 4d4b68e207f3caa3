"""`heliograph dev`: every service in this process, and somebody beside them who says when they are ready."""

from __future__ import annotations

import asyncio

from heliograph import allinone
from heliograph.allinone import AllInOneSettings
from heliograph.cli import show
from heliograph.cli.session import Session
from heliograph.runtime.process import run as run_process
from heliograph.runtime.process import standard_input_ended


def run(session: Session, *, stop_at_eof: bool) -> int:
    """Until a signal, or the end of standard input. The process's exit status."""

    async def serve(settings: AllInOneSettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as beside:
            tasks = [beside.create_task(_say_when_ready(session, settings, ready))]
            if stop_at_eof:
                tasks.append(beside.create_task(_stop_at_eof(stop)))
            try:
                await allinone.serve(settings, ready=ready, stop=stop)
            finally:
                for task in tasks:
                    task.cancel()

    return run_process("dev", lambda: AllInOneSettings(data_dir=session.data_dir), serve)


async def _say_when_ready(session: Session, settings: AllInOneSettings, ready: asyncio.Event) -> None:
    await ready.wait()
    if session.as_json:
        show.as_line({"url": settings.url, "token_file": str(settings.admin_token_file)})
        return
    show.done(f"Heliograph is ready at {settings.url}; its data is in {settings.data_dir.absolute()}")
    show.out.print("  In this folder `heliograph …` needs no address and no token. Ctrl-C stops everything.")


async def _stop_at_eof(stop: asyncio.Event) -> None:
    await standard_input_ended()
    stop.set()
