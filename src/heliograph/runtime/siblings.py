"""Workers of one node ask each other how they are, so that whichever of them is asked over HTTP answers for the node.

Each answers on a Unix socket in its supervisor's private folder, one word to one answer. A worker that replaces another takes over its name when it
is ready; until then the one before speaks for the place.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from heliograph.runtime.place import Place
from heliograph.telemetry.health import Health
from heliograph.telemetry.merging import merged

ANSWER_S: Final = 1.0
"""For a worker to answer; one that does not is reported, not waited for."""
_METRICS: Final = b"metrics\n"
_MISSING: Final = b"missing\n"


class Siblings:
    """Implements `Health` for the whole node. ``own``: this process's."""

    def __init__(self, place: Place, own: Health) -> None:
        self._place = place
        self._own = own

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """From here on this process speaks for its place."""
        door = await asyncio.to_thread(_named, self._path(self._place.number))
        server = await asyncio.start_unix_server(self._answer, sock=door)
        try:
            yield
        finally:
            server.close()

    async def missing(self) -> dict[str, str]:
        answers = await self._ask_all(_MISSING)
        told: dict[str, str] = {}
        for number, answer in answers.items():
            if answer is None:
                told[f"worker {number}"] = "does not answer"
            else:
                reasons = msgspec.json.decode(answer, type=dict[str, str])
                told |= {f"worker {number} {condition}": reason for condition, reason in reasons.items()}
        return told

    async def impairments(self) -> dict[str, str]:
        """Of this worker alone: what impairs one, a parent that is away, impairs all."""
        return await self._own.impairments()

    async def exposition(self) -> bytes:
        answers = await self._ask_all(_METRICS)
        return merged({number: None if answer is None else answer.decode() for number, answer in answers.items()})

    def _path(self, number: int) -> Path:
        return self._place.folder / str(number)

    async def _ask_all(self, question: bytes) -> dict[str, bytes | None]:
        numbers = range(1, self._place.count + 1)
        answers = await asyncio.gather(*(_ask(self._path(number), question) for number in numbers))
        return dict(zip(map(str, numbers), answers, strict=True))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(ANSWER_S):
                question = await reader.readline()
                if question == _METRICS:
                    writer.write(await self._own.exposition())
                elif question == _MISSING:
                    writer.write(msgspec.json.encode(await self._own.missing()))
                await writer.drain()
        writer.close()


async def _ask(path: Path, question: bytes) -> bytes | None:
    """None when there is no answer in time."""
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(question)
                return await reader.read() or None
            finally:
                writer.close()
    return None


def _named(path: Path) -> socket.socket:
    """In one step in the place of the one that was there."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    new = f"{path}.{os.getpid()}"
    made.bind(new)
    made.listen()
    os.rename(new, path)  # noqa: PTH104
    return made
