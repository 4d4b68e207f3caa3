from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Annotated

import msgspec
import pydantic
import pytest

from heliograph.client._bind import fitter
from heliograph.core.errors import InvalidRequest, SchemaViolation


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Plain:
    max_items: int
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.max_items > 1000:
            raise ValueError(f"Expected less than {self.max_items}")


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    max_items: Annotated[int, msgspec.Meta(ge=1)]
    colour: Colour = Colour.RED
    tags: list[dict[str, int]] = []


class Model(pydantic.BaseModel):
    max_items: int
    colour: Colour = Colour.RED

    @pydantic.field_validator("max_items")
    @classmethod
    def small(cls, value: int) -> int:
        if value > 1000:
            raise ValueError(f"{value} is too much")
        return value


def test_what_fits_becomes_an_object() -> None:
    assert fitter(Plain)(b'{"max_items":3}') == Plain(3)
    assert fitter(Strict)(b'{"max_items":3,"tags":[{"a":1}]}') == Strict(3, tags=[{"a": 1}])
    assert fitter(Model)(b'{"max_items":3}') == Model(max_items=3)
    assert fitter(dict[str, int])(b'{"a":1}') == {"a": 1}


@pytest.mark.parametrize(
    ("kind", "text", "pointer", "rule"),
    [
        (Plain, b'{"max_items":"424242"}', "/max_items", "type"),
        (Plain, b'{"colour":"424242"}', "", "required"),
        (Plain, b'{"max_items":424242}', "", "value"),
        (Strict, b'{"max_items":-424242}', "/max_items", "type"),
        (Strict, b'{"max_items":1,"colour":"424242"}', "/colour", "value"),
        (Strict, b'{"max_items":1,"other":424242}', "", "additionalProperties"),
        (Strict, b'{"max_items":1,"tags":[{},{"a":"424242"}]}', "/tags/1/*", "type"),
        (Strict, b"[424242]", "", "type"),
        (Model, b'{"max_items":"x424242"}', "/max_items", "int_parsing"),
        (Model, b'{"max_items":424242}', "/max_items", "value_error"),
        (Model, b'{"max_items":1,"colour":"424242"}', "/colour", "enum"),
    ],
)
def test_what_does_not_fit_says_where_and_which_rule_and_never_the_value(
    kind: type, text: bytes, pointer: str, rule: str
) -> None:
    with pytest.raises(SchemaViolation) as refused:
        fitter(kind)(text)
    [fault] = refused.value.faults
    assert (fault.pointer, fault.rule) == (pointer, rule)
    everything = f"{refused.value} {refused.value.faults} {refused.value.__cause__} {refused.value.__context__ and ''}"
    assert not re.search("424242", everything)


def test_every_fault_of_a_model_is_told() -> None:
    with pytest.raises(SchemaViolation) as refused:
        fitter(Model)(b'{"max_items":"x","colour":"y"}')
    assert [fault.pointer for fault in refused.value.faults] == ["/max_items", "/colour"]


def test_a_type_that_cannot_be_made_is_refused_when_it_is_bound() -> None:
    class Opaque(msgspec.Struct):
        a: dict[tuple[int, int], set] | list[int] | tuple[int, ...]

    with pytest.raises(InvalidRequest, match="cannot bind"):
        fitter(Opaque)
