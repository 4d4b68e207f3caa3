"""Validation in bounded time: here when it is certain to be quick, in a process that can be ended when it is not.

Small inputs against a schema that has compiled quickly before are checked in place, in microseconds. Everything else goes to a validator process:
a schema seen for the first time, large inputs, and every explanation of what is wrong (see `validator_process` for why).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import structlog

from heliograph.core.canonical import Json
from heliograph.core.errors import InvalidSchema, Overloaded, SchemaViolation
from heliograph.runtime.children import PIPE, Child, start
from heliograph.services.registry.cache import ByteCache
from heliograph.services.registry.schemas import Validator, compiled
from heliograph.services.registry.validator_process import Question, Verdict

log = structlog.get_logger()

LIGHT_COMPILE_S: Final = 0.01
LIGHT_PRODUCT: Final = 1 << 26
"""Bytes of schema times bytes of document: with the worst of schemas some 50 ms, with usual ones far below one."""
CACHE_BYTES: Final = 32 << 20
QUEUE_S: Final = 5.0
_TOO_LONG: Final = -signal.SIGALRM
"""How a validator process ends by its own alarm."""
_MODULE: Final = "heliograph.services.registry.validator_process"


class Validation:
    """``limit_s``: seconds one validation may take; longer, and the schema is refused as too costly."""

    def __init__(self, *, processes: int = 2, limit_s: float = 2.0) -> None:
        self._limit_s = limit_s
        self._light: ByteCache[bytes, Validator] = ByteCache(CACHE_BYTES)
        self._idle: asyncio.Queue[_Process] = asyncio.Queue()
        self._all = [_Process() for _ in range(processes)]
        for each in self._all:
            self._idle.put_nowait(each)

    async def open(self) -> None:
        """Starts one process, so that the first refusal does not wait for it."""
        await self._all[0].start()

    async def close(self) -> None:
        for each in self._all:
            await each.end()

    async def schema(self, digest: bytes, text: bytes) -> None:
        """Whether it can be used at all. Raises InvalidSchema, Overloaded."""
        if digest not in self._light:
            self._remember(digest, text, await self._ask(text, None))

    def forget(self, digests: Iterable[bytes]) -> None:
        """Schemas that are to be kept nowhere."""
        for each in digests:
            self._light.drop(each)

    async def document(self, digest: bytes, schema: bytes, text: bytes, value: Json) -> None:
        """``value`` is what ``text`` says. Raises SchemaViolation with every fault, InvalidSchema, Overloaded."""
        validator = self._light.get(digest)
        if validator and len(schema) * len(text) <= LIGHT_PRODUCT and validator.is_valid(value):
            return
        self._remember(digest, schema, await self._ask(schema, text))

    def _remember(self, digest: bytes, text: bytes, verdict: Verdict) -> None:
        if verdict.refused == "schema":
            raise InvalidSchema(verdict.detail, verdict.faults)
        if verdict.refused:
            raise SchemaViolation(verdict.detail, verdict.faults)
        if verdict.compile_s <= LIGHT_COMPILE_S and digest not in self._light:
            self._light.put(digest, compiled(msgspec.json.decode(text)), 4 * len(text))

    async def _ask(self, schema: bytes, document: bytes | None) -> Verdict:
        async with self._process() as process:
            verdict = await process.ask(Question(schema, document, self._limit_s))
        if verdict is None:
            log.warning("validation_ended", schema_bytes=len(schema), document_bytes=len(document or b""))
            raise InvalidSchema(
                f"checking against this schema needs more than {self._limit_s:g} s or too much memory; simplify it"
            )
        return verdict

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[_Process]:
        try:
            async with asyncio.timeout(QUEUE_S):
                process = await self._idle.get()
        except TimeoutError:
            raise Overloaded("too many large or costly validations at once", retry_after=QUEUE_S) from None
        try:
            yield process
        finally:
            self._idle.put_nowait(process)


class _Process:
    """One validator process; started when it is needed, and again when it has ended. ``_used``: it has answered before."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._used = False

    async def start(self) -> Child:
        if self._child is None or self._child.returncode is not None:
            env = {"PYTHONPATH": os.pathsep.join(sys.path)}  # none of the registry's own settings
            try:
                self._child, self._used = await start(sys.executable, "-m", _MODULE, stdin=PIPE, stdout=PIPE, env=env), False
            except OSError as error:
                raise Overloaded(f"no process to validate in: {error.strerror}", retry_after=QUEUE_S) from None
        return self._child

    async def ask(self, question: Question) -> Verdict | None:
        """None when it ended over this question. Not when it may have lacked the memory that earlier ones took, or somebody else ended it: then a new
        one is asked."""
        used = self._used
        said = await self._answer(question)
        if isinstance(said, int) and used and said != _TOO_LONG:
            said = await self._answer(question)
        return said if isinstance(said, Verdict) else None

    async def _answer(self, question: Question) -> Verdict | int:
        """Or its return code, when it ended over this question."""
        try:
            child = await self.start()
            message = msgspec.msgpack.encode(question)
            async with asyncio.timeout(question.limit_s + QUEUE_S):
                child.stdin.write(len(message).to_bytes(4, "big") + message)
                await child.stdin.drain()
                size = await child.stdout.readexactly(4)
                verdict = msgspec.msgpack.decode(await child.stdout.readexactly(int.from_bytes(size, "big")), type=Verdict)
        except TimeoutError:
            await self.end()
            return _TOO_LONG
        except (asyncio.IncompleteReadError, OSError):
            return await self.end()
        except asyncio.CancelledError:  # an answer may still come: it must not become the next question's
            await self.end()
            raise
        self._used = True
        return verdict

    async def end(self) -> int:
        """Its return code, 0 if there was none."""
        child, self._child = self._child, None
        if child is None:
            return 0
        child.kill()
        return await child.wait()
