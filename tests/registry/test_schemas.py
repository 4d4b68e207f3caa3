"""JSON Schema draft-07 as the registry runs it: the official suite, and bounds on what a validation may cost."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from heliograph.core.canonical import canonical_text, parse
from heliograph.core.digest import raw_digest
from heliograph.core.errors import InvalidDocument, InvalidSchema, SchemaViolation
from heliograph.services.registry import validator_process
from heliograph.services.registry.cache import ByteCache
from heliograph.services.registry.schemas import check, compiled
from heliograph.services.registry.validation import Validation

SUITE = Path(__file__).resolve().parents[2] / ".cache/json-schema-suite"
MANDATORY = 900
"""The suite of early 2026 has 925 mandatory tests for draft-07; fewer would mean that it was not read."""


def suite() -> list[tuple[str, Any, list[Any]]]:
    if not (SUITE / "tests/draft7").is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("the JSON Schema suite is not installed (make setup)")
    cases = []
    for file in sorted((SUITE / "tests/draft7").glob("*.json")):
        cases += [
            (f"{file.stem}: {case['description']}", case["schema"], case["tests"]) for case in json.loads(file.read_text())
        ]
    return cases


def remotes() -> dict[str, Any]:
    folder = SUITE / "remotes"
    files = [
        file
        for file in folder.rglob("*.json")
        if not file.relative_to(folder).parts[0].startswith("draft") or "draft7" in file.parts
    ]
    return {f"http://localhost:1234/{file.relative_to(folder).as_posix()}": json.loads(file.read_text()) for file in files}


def strict(value: Any) -> bytes:
    """As an author would send it, and as the registry keeps it."""
    return canonical_text(json.dumps(value))


@pytest.fixture
async def validation() -> AsyncIterator[Validation]:
    one = Validation()
    yield one
    await one.close()


def test_official_suite_with_its_remote_documents() -> None:
    known, wrong, count = remotes(), [], 0
    for description, schema, tests in suite():
        validator = compiled(schema, known)
        for test in tests:
            count += 1
            if {validator.is_valid(test["data"]), _passes(validator, test["data"])} != {test["valid"]}:
                wrong.append(f"{description}: {test['description']}")
    assert wrong == []
    assert count > MANDATORY


async def test_official_suite_as_requests_take_it(validation: Validation) -> None:
    """From the strict parser through the cache and the validator process. What the suite keeps elsewhere is refused, as nothing is ever fetched, and
    so are two numbers beyond 2^53 - 1."""
    wrong: list[str] = []
    refused: Counter[str] = Counter()
    for description, schema, tests in suite():
        try:
            text = strict(schema)
            key = raw_digest("schema", text)
            await validation.schema(key, text)
            documents = [strict(test["data"]) for test in tests]
        except (InvalidSchema, InvalidDocument) as error:
            refused[f"{description.split(':')[0]} {type(error).__name__}"] += 1
            continue
        for test, document in zip(tests, documents, strict=True):
            if await _accepted(validation, key, text, document) != test["valid"]:
                wrong.append(f"{description}: {test['description']}")
    assert wrong == []
    assert refused.keys() == {"refRemote InvalidSchema", "const InvalidDocument"}


def _passes(validator: Any, document: Any) -> bool:
    try:
        check(validator, document)
    except SchemaViolation:
        return False
    return True


async def _accepted(validation: Validation, key: bytes, schema: bytes, document: bytes) -> bool:
    try:
        await validation.document(key, schema, document, parse(document))
    except SchemaViolation:
        return False
    return True


async def test_what_takes_too_long_is_refused_and_the_next_is_answered(validation: Validation) -> None:
    impatient = Validation(processes=1, limit_s=0.5)
    again = {"$ref": "#/definitions/a"}
    schema = strict(
        {"definitions": {"a": {"anyOf": [{"type": "array", "items": again, "minItems": n} for n in range(3)]}}, **again}
    )
    document: Any = 1
    for _ in range(40):
        document = [document]
    try:
        for _ in range(2):
            with pytest.raises(InvalidSchema, match="simplify"):
                await _accepted(impatient, raw_digest("schema", schema), schema, strict(document))
            assert not await _accepted(impatient, b"s", b'{"type":"string"}', b"1")
            assert await _accepted(impatient, b"s", b'{"type":"string"}', b'"1"')
    finally:
        await impatient.close()


def greedy(patterns: int, number: int = 0) -> bytes:
    """A small schema that takes 85 kB a pattern."""
    return strict({"patternProperties": {f"^[a-z]{{1,900}}/{number}/{each}": {} for each in range(patterns)}})


async def test_schema_is_not_refused_for_the_memory_that_earlier_ones_took() -> None:
    """Each takes a twelfth of what a validator process may have."""
    one = Validation(processes=1, limit_s=20)
    try:
        for number in range(15):
            schema = greedy(1_000, number)
            await one.schema(raw_digest("schema", schema), schema)
    finally:
        await one.close()


async def test_validator_that_somebody_else_ended_is_no_fault_of_the_schema() -> None:
    """The kernel may, for memory. The next one is asked."""
    one = Validation(processes=1)
    try:
        assert not await _accepted(one, b"s", b'{"type":"string"}', b"1")
        child = one._all[0]._child
        assert child
        child.kill()
        assert not await _accepted(one, b"i", b'{"type":"integer"}', b'"1"')
    finally:
        await one.close()


async def test_schema_that_needs_too_much_memory_is_refused_and_the_next_is_answered() -> None:
    one = Validation(processes=1, limit_s=20)
    schema = greedy(14_000)
    try:
        assert await _accepted(one, b"s", b'{"type":"string"}', b'"1"')
        with pytest.raises(InvalidSchema, match="memory"):
            await one.schema(raw_digest("schema", schema), schema)
        assert await _accepted(one, b"i", b'{"type":"integer"}', b"1")
    finally:
        await one.close()


async def test_caller_that_gives_up_leaves_no_answer_to_the_next(validation: Validation) -> None:
    asking = asyncio.create_task(
        _accepted(validation, b"a", b'{"items":{"type":"string"}}', json.dumps(list(range(100_000))).encode())
    )
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    answers = [await _accepted(validation, b"s", b'{"type":"string"}', document) for document in (b"1", b'"1"', b"2", b'"2"')]
    assert answers == [False, True, False, True]


async def test_large_documents_go_to_the_process(validation: Validation) -> None:
    schema = strict({"items": {"type": "string"}})
    good, bad = json.dumps(["x"] * 200_000).encode(), json.dumps(["x"] * 100_000 + [1]).encode()
    assert await _accepted(validation, b"l", schema, good)
    assert not await _accepted(validation, b"l", schema, bad)


def test_messages_never_hold_the_value() -> None:
    secret = "s3cret"
    schema = {
        "properties": {
            **{
                word: {word: limit}
                for word, limit in (("minLength", 9), ("maxLength", 2), ("pattern", "^x"), ("enum", ["y"]), ("const", "z"))
            },
            "type": {"type": "integer"},
            "oneOf": {"oneOf": [{"type": "integer"}, {"maxLength": 1}]},
            "anyOf": {"anyOf": [{"type": "integer"}]},
            "not": {"not": {"type": "string"}},
            "contains": {"contains": {"type": "integer"}},
            "items": {"items": {"type": "integer"}},
            "unique": {"uniqueItems": True},
            "names": {"propertyNames": {"maxLength": 1}},
            "false": False,
        }
    }
    lists = {"contains": [secret], "items": [secret], "unique": [secret, secret], "names": {"ab": secret}}
    document = {name: lists.get(name, secret) for name in schema["properties"]}
    with pytest.raises(SchemaViolation) as raised:
        check(compiled(schema), document)
    assert len(raised.value.faults) == len(document)
    assert secret not in repr(raised.value.faults) + str(raised.value)


def test_pointers_are_escaped() -> None:
    with pytest.raises(SchemaViolation) as raised:
        check(compiled({"properties": {"a/b~c": {"type": "string"}}}), {"a/b~c": 1})
    (fault,) = raised.value.faults
    assert (fault.pointer, fault.schema_pointer) == ("/a~1b~0c", "/properties/a~1b~0c/type")


def test_process_keeps_few_schemas() -> None:
    judge = validator_process.Judge()
    for number in range(validator_process.KEPT + 10):
        judge.answer(validator_process.Question(b'{"maximum":%d}' % number, b"1", 1))
    assert len(judge._kept) == validator_process.KEPT


def test_process_keeps_few_bytes_of_schemas_and_always_the_last() -> None:
    judge = validator_process.Judge()
    for size in [validator_process.KEPT_BYTES // 3] * 5 + [validator_process.KEPT_BYTES * 2, 1000]:
        schema = json.dumps({"title": "x" * size, "maximum": 1}).encode()
        judge.answer(validator_process.Question(schema, b"1", 1))
        assert [*judge._kept][-1] == schema
        assert len(judge._kept) == 1 or sum(map(len, judge._kept)) <= validator_process.KEPT_BYTES


def test_cache_forgets_what_was_used_longest_ago() -> None:
    cache: ByteCache[str, int] = ByteCache(80)
    for number in range(8):
        cache.put(str(number), number, 10)
    assert cache.get("0") == 0
    cache.put("8", 8, 10)
    assert ("0" in cache, "1" in cache, len(cache)) == (True, False, 8)
    cache.put("large", 1, 11)
    assert "large" not in cache
    cache.put("8", 9, 5)
    cache.drop("8")
    assert (cache.get("8"), len(cache)) == (None, 7)
