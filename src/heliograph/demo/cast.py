"""The processes of the demo: the services and the eight clients. Started here, ended here, by pid."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from heliograph.core.errors import TimedOut, Unavailable
from heliograph.demo.sample import CLIENTS, Sample

START_S = 90.0
STOP_S = 20.0


@asynccontextmanager
async def services(data_dir: Path, url: str) -> AsyncIterator[None]:
    """`heliograph dev` as a child, its log in the data folder. Raises Unavailable with the log's last words when it does not start."""
    await asyncio.to_thread(data_dir.mkdir, parents=True, exist_ok=True)
    path = data_dir / "dev.log"
    log = await asyncio.to_thread(path.open, "wb")
    env = {**os.environ, "HELIOGRAPH_DATA_DIR": str(data_dir)}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "heliograph.cli", "dev", stdout=log, stderr=log, env=env, start_new_session=True
    )
    try:
        await _until_ready(child, url, path)
        yield
    finally:
        await _end(child)
        log.close()


async def _until_ready(child: asyncio.subprocess.Process, url: str, log: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            async with asyncio.timeout(START_S):
                while True:
                    if child.returncode is not None:
                        raise Unavailable(f"the services ended at start: {await asyncio.to_thread(_last_words, log)}")
                    with suppress(httpx.HTTPError):
                        told = (await http.get(f"{url}/v1/endpoints")).json()
                        bases = (url, told["bundles"], told["ledger"])
                        if all([(await http.get(f"{base}/readyz")).is_success for base in bases]):
                            return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise TimedOut(f"the services were not ready after {START_S:.0f} s; see {log}") from None


def _last_words(log: Path) -> str:
    """The last error of the log, in words."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    for line in reversed(lines):
        with suppress(ValueError):
            told = json.loads(line)
            if told.get("level") == "error" and "detail" in told:
                return str(told["detail"])
    return lines[-1][:500] if lines else "it said nothing"


@dataclass
class Actor:
    """One sample client: what it last said it runs on."""

    sample: Sample
    child: asyncio.subprocess.Process
    number: int = 0
    value: Any = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """Until it ends."""
        assert self.child.stdout
        async for line in self.child.stdout:
            with suppress(ValueError):
                told = json.loads(line)
                self.number, self.value = told["number"], told["value"]
                self.changed.set()


@asynccontextmanager
async def clients(url: str, token: str, cache: Path) -> AsyncIterator[list[Actor]]:
    """Eight processes, each with a fingerprint of its own."""
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    errors = await asyncio.to_thread((cache / "clients.log").open, "ab")
    env = {**os.environ, "HELIOGRAPH_TOKEN": token}
    actors = [
        Actor(
            sample,
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "heliograph.demo.client", url, str(index), str(cache)),
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=env,
                start_new_session=True,
            ),
        )
        for index, sample in enumerate(CLIENTS)
    ]
    listening = [asyncio.create_task(actor.listen()) for actor in actors]
    try:
        yield actors
    finally:
        await asyncio.gather(*(_end(actor.child) for actor in actors))
        await asyncio.gather(*listening, return_exceptions=True)
        errors.close()


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(child.wait(), STOP_S)
    except TimeoutError:
        child.kill()
        await child.wait()
