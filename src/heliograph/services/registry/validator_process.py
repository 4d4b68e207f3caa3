"""The process that validates what might take long, so that it can be ended.

An author's schema and document together decide how long a validation runs: alternatives nested in alternatives take exponential time to
explain, and nothing inside a process can stop that. So this one answers one question at a time on its standard streams, and its own alarm ends it
when an answer takes longer than allowed; `validation` starts another.

A message is four bytes of length, big-endian, and that many bytes of MessagePack.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
import time
from collections import OrderedDict
from typing import BinaryIO, Final

import msgspec

from heliograph.core.errors import Fault, Invalid, InvalidSchema
from heliograph.services.registry.schemas import Validator, check, compiled

MEMORY: Final = 1 << 30  # bytes; the trees of faults that a hostile schema grows are the reason
KEPT: Final = 64  # compiled schemas
KEPT_BYTES: Final = 2 << 20  # of their texts: in memory usual ones are 20 to 100 times as large, many patterns 350 times


class Question(msgspec.Struct, frozen=True):
    """``document`` None: is the schema usable?"""

    schema: bytes
    document: bytes | None
    limit_s: float


class Verdict(msgspec.Struct, frozen=True):
    """``refused``: which of the two is at fault, None when all is well. ``compile_s``: what the schema alone took."""

    compile_s: float
    refused: str | None = None
    detail: str = ""
    faults: tuple[Fault, ...] = ()


class Judge:
    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[Validator, float]] = OrderedDict()

    def answer(self, question: Question) -> Verdict:
        try:
            validator, compile_s = self._validator(question.schema)
            if question.document is not None:
                check(validator, json.loads(question.document))
        except Invalid as error:
            return Verdict(0.0, "schema" if isinstance(error, InvalidSchema) else "document", error.detail, error.faults)
        return Verdict(compile_s)

    def _validator(self, text: bytes) -> tuple[Validator, float]:
        if text not in self._kept:
            self._make_room(len(text))
            started = time.perf_counter()
            self._kept[text] = compiled(json.loads(text)), time.perf_counter() - started
        self._kept.move_to_end(text)
        return self._kept[text]

    def _make_room(self, size: int) -> None:
        """Before the next one is compiled: what is kept must not be what it lacks memory for."""
        held = sum(map(len, self._kept))
        while self._kept and (len(self._kept) >= KEPT or held + size > KEPT_BYTES):
            text, _ = self._kept.popitem(last=False)
            held -= len(text)


def write(out: BinaryIO, message: bytes) -> None:
    out.write(len(message).to_bytes(4, "big") + message)
    out.flush()


def read(source: BinaryIO) -> bytes | None:
    """None at the end of the stream."""
    size = source.read(4)
    return source.read(int.from_bytes(size, "big")) if len(size) == 4 else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the registry, which then closes our input
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for limit, value in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # not every system has every limit; the alarm is there in any case
            resource.setrlimit(limit, (value, value))
    judge, decoder = Judge(), msgspec.msgpack.Decoder(Question)
    while (message := read(sys.stdin.buffer)) is not None:
        question = decoder.decode(message)
        signal.setitimer(signal.ITIMER_REAL, question.limit_s)
        verdict = judge.answer(question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write(sys.stdout.buffer, msgspec.msgpack.encode(verdict))


if __name__ == "__main__":
    main()
