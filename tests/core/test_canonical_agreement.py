"""Canonical text agrees with another implementation, in another language, on a large random set."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.postgres import require

from heliograph.core.canonical import canonical, parse
from heliograph.core.errors import InvalidDocument

NODE = Path(__file__).resolve().parents[1] / "node"
DOCUMENTS = 20_000
CHARACTERS = 'aé\u20ac\U0001f600\ud7ff\ue000\x00\x1f\x7f"\\/\u2028 zZ09é\U0010ffff'


def _double(chance: random.Random) -> float:
    """Any finite double, by its bits; those that print as long integers are left to the test of refusals."""
    while True:
        (value,) = struct.unpack("<d", chance.randbytes(8))
        if value == value and abs(value) != float("inf") and not 2**53 <= abs(value) < 1e21:
            return value


def _value(chance: random.Random, depth: int) -> Any:
    kind = chance.randrange(8 if depth else 6)
    match kind:
        case 0:
            return chance.choice([None, True, False])
        case 1:
            return chance.randrange(-(2**53) + 1, 2**53)
        case 2 | 3:
            return _double(chance)
        case 4 | 5:
            return "".join(chance.choices(CHARACTERS, k=chance.randrange(6)))
        case 6:
            return [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
        case _:
            return {
                "".join(chance.choices(CHARACTERS, k=chance.randrange(4))): _value(chance, depth - 1)
                for _ in range(chance.randrange(5))
            }


@pytest.mark.node
def test_agrees_with_npm_canonicalize():
    require((NODE / "node_modules/canonicalize").exists(), "npm's canonicalize is not installed (make setup)")
    chance = random.Random(8785)
    texts = []
    for _ in range(DOCUMENTS):
        text = json.dumps(_value(chance, 4), ensure_ascii=chance.random() < 0.5)
        try:
            parse(text)
        except InvalidDocument:
            continue
        texts.append(text)
    assert len(texts) > DOCUMENTS * 0.9
    done = subprocess.run(
        ["node", NODE / "canonicalize.mjs"], input="\n".join(texts), capture_output=True, check=True, text=True, timeout=100
    )
    theirs = done.stdout.removesuffix("\n").split("\n")
    assert len(theirs) == len(texts)
    for text, other in zip(texts, theirs, strict=True):
        assert canonical(parse(text)).decode() == other
