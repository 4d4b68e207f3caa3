"""Puts the demo together: services, seed, clients, and a screen or the story."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from heliograph.core.errors import HeliographError, InvalidRequest
from heliograph.demo.cast import clients, services
from heliograph.demo.sample import CONFIG, ENVIRONMENT, NAMESPACE, POINTER
from heliograph.demo.screen import Screen
from heliograph.demo.shop import PATH, Shop
from heliograph.demo.story import tell

DEFAULT_PORT = "7070"


@dataclass(frozen=True)
class Options:
    once: bool
    stack: bool
    data_dir: Path
    url: str | None
    token_file: Path | None


async def main(options: Options) -> int:
    console = Console()
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    playing = asyncio.create_task(_play(options, console, stop))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not playing.done() and options.once:
        playing.cancel()
    try:
        return await playing
    except asyncio.CancelledError:
        return 130
    except HeliographError as error:
        console.print(f"[red bold]✗[/] {error}")
        return 1
    finally:
        stopping.cancel()


async def _play(options: Options, console: Console, stop: asyncio.Event) -> int:
    async with AsyncExitStack() as opened:
        url, token_file = _where(options)
        if not options.stack:
            console.print(f"starting every service on an embedded PostgreSQL, data in {options.data_dir} …", highlight=False)
            starting = asyncio.create_task(opened.enter_async_context(services(options.data_dir, url)))
            await _unless_stopped(starting, stop)
        token = (await asyncio.to_thread(token_file.read_text)).strip()
        shop = Shop(url, token)
        opened.push_async_callback(shop.close)
        await shop.seed()
        console.print("starting eight clients …", highlight=False)
        actors = await opened.enter_async_context(clients(url, await shop.client_token(), options.data_dir.absolute() / "demo"))
        if options.once:
            status = await tell(shop, actors, console)
        else:
            await Screen(shop, actors, await _paste(shop, url, token)).run(console, stop)
            status = 0
        console.print("stopping …", highlight=False)
    console.print("stopped; the data stays for the next start", highlight=False)
    return status


async def _unless_stopped(starting: asyncio.Task[None], stop: asyncio.Event) -> None:
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
    await starting


def _where(options: Options) -> tuple[str, Path]:
    """The API's address and the admin token's file."""
    if options.stack:
        if not options.url or not options.token_file:
            raise InvalidRequest(
                "--stack needs a running stack: HELIOGRAPH_URL and HELIOGRAPH_TOKEN_FILE (make demo STACK=1 sets them)"
            )
        return options.url, options.token_file
    port = os.environ.get("HELIOGRAPH_REGISTRY_PORT", DEFAULT_PORT)
    return f"http://{os.environ.get('HELIOGRAPH_LISTEN_HOST', '127.0.0.1')}:{port}", options.data_dir / "tokens" / "admin.token"


async def _paste(shop: Shop, url: str, token: str) -> str:
    """Two lines for another terminal. The demo is the only thing that prints tokens."""
    document = await shop.config()
    value = document["max_items"] % 1000 + 1
    command = shutil.which("heliograph") or f"{shlex.quote(sys.executable)} -m heliograph.cli"
    beside = Path(sys.executable).with_name("heliograph")
    command = str(beside) if beside.exists() else command
    body = json.dumps({**document, "max_items": value + 1})
    address = f"{url}{PATH}/{ENVIRONMENT}/configs/{CONFIG}"
    return (
        "\nIn another terminal, change a value and watch:\n\n"
        f"  {command} --url {url} --token {token} set {NAMESPACE}/{ENVIRONMENT}/{CONFIG} {POINTER} {value}\n\n"
        f"  curl -X PUT {address} -H 'Authorization: Bearer {token}' -d {shlex.quote(body)}\n\n"
        "Ctrl-C stops everything.\n"
    )
