from __future__ import annotations

from collections.abc import Iterator

import pytest

from heliograph.cli.exits import Exit, exit_of
from heliograph.core import errors


def every(kind: type[errors.HeliographError]) -> Iterator[type[errors.HeliographError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from every(below)


@pytest.mark.parametrize("kind", sorted(every(errors.HeliographError), key=lambda kind: kind.__name__))
def test_every_error_ends_with_the_status_of_its_kind(kind: type[errors.HeliographError]) -> None:
    expected = {
        errors.Invalid: Exit.INVALID,
        errors.NotFound: Exit.NOT_FOUND,
        errors.Conflict: Exit.CONFLICT,
        errors.Denied: Exit.DENIED,
        errors.TimedOut: Exit.TIMEOUT,
        errors.Unavailable: Exit.UNAVAILABLE,
        errors.Refused: Exit.UNVERIFIED,
    }
    error = kind("x", head="sha256:", number=1) if kind is errors.StaleBase else kind("x")
    assert exit_of(error) == next((status for base, status in expected.items() if isinstance(error, base)), Exit.FAILED)


def test_statuses_are_a_promise() -> None:
    assert {each.name: each.value for each in Exit} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "INVALID": 3,
        "NOT_FOUND": 4,
        "CONFLICT": 5,
        "DENIED": 6,
        "UNAVAILABLE": 7,
        "TIMEOUT": 8,
        "UNVERIFIED": 9,
        "REJECTED": 10,
        "INTERRUPTED": 130,
    }
