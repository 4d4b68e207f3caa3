"""`heliograph demo`: services, seed, clients, and a screen to watch them on, or the story by itself."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
import sys
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from heliograph.cli import show
from heliograph.cli.exits import Exit
from heliograph.cli.session import Session
from heliograph.core.canonical import Json
from heliograph.core.errors import InvalidRequest
from heliograph.demo import screen, story
from heliograph.demo.author import Author, author
from heliograph.demo.fleet import fleet
from heliograph.demo.shop import LIMITS, MAX_ITEMS, NAMESPACE, SHOWN
from heliograph.demo.stack import Stack, own, running


def main(session: Session, *, once: bool, stack: bool) -> int:
    """The process's exit status; Ctrl-C is how the live view ends. Raises HeliographError when something is not as it should be."""
    finished = asyncio.run(_until_interrupted(_play(_where(session, stack=stack), once=once)))
    show.say("stopped; the data stays for the next start")
    return Exit.OK if finished or not once else Exit.INTERRUPTED


def _where(session: Session, *, stack: bool) -> AbstractAsyncContextManager[Stack]:
    if not stack:
        return own(session.data_dir)
    if session.token_file is None or session.url is None:
        raise InvalidRequest("--stack needs --url and --token-file of the stack, or HELIOGRAPH_URL and HELIOGRAPH_TOKEN_FILE")
    return running(session.url, session.token_file, session.data_dir)


async def _until_interrupted(playing: Coroutine[None, None, None]) -> bool:
    """Whether it came to its end. Ctrl-C and SIGTERM cancel it: everything that was started is then stopped, in order."""
    task = asyncio.ensure_future(playing)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def _play(where: AbstractAsyncContextManager[Stack], *, once: bool) -> None:
    show.say("starting the services …")
    async with where as stack, author(stack.url, stack.admin_token) as admin:
        made = await admin.seed()
        show.say(f"  {stack.url} is ready; " + (f"made {', '.join(made)}" if made else f"{NAMESPACE} is there already"))
        token = await admin.token("client", SHOWN, stack.folder / "client.token")
        show.say("starting eight clients …")
        async with fleet(stack, token) as clients:
            try:
                await (story.tell(admin, clients) if once else screen.run(admin, clients, await _to_paste(admin, stack)))
            finally:
                show.say("stopping …")


# --- for another terminal ---------------------------------------------------------------------------------------------------------


async def _to_paste(admin: Author, stack: Stack) -> str:
    """Two lines that change a value. The demo is the only thing that prints a token: one of its own, for this environment."""
    token = await admin.token("author", SHOWN, stack.folder / "author.token")
    document = await admin.document(SHOWN, LIMITS)
    first, second = ({**document, "max_items": each} for each in _other_values(document["max_items"]))
    return (
        "\nIn another terminal, change a value and watch:\n\n"
        f"  {_command()} set {NAMESPACE}/{SHOWN}/{LIMITS} /max_items {first['max_items']} --url {stack.url} --token {token}\n\n"
        f"  curl -X PUT {stack.url}/v1/namespaces/{NAMESPACE}/environments/{SHOWN}/configs/{LIMITS} \\\n"
        f"    -H 'Authorization: Bearer {token}' -d {shlex.quote(json.dumps(second))}\n\n"
        "Ctrl-C stops everything.\n"
    )


def _other_values(now: Json) -> tuple[int, int]:
    value = now if isinstance(now, int) else 0
    return value % MAX_ITEMS + 1, (value + 1) % MAX_ITEMS + 1


def _command() -> str:
    """The command as another terminal finds it."""
    beside = Path(sys.executable).with_name("heliograph")
    found = shutil.which("heliograph")
    return "heliograph" if (found and Path(found) == beside) or not beside.exists() else shlex.quote(str(beside))
