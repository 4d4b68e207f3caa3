"""A config as an object of the application: a dataclass, a `msgspec.Struct`, a pydantic model, or any type that msgspec can decode.

A document that does not fit is refused with every thing we can say *about* it and nothing *of* it: where, and which rule. Texts that
libraries or the application's own checks write may hold the value, so they never pass.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec

from heliograph.core.errors import Fault, InvalidRequest, SchemaViolation
from heliograph.core.frames import MAX_DECLARED_SCHEMA
from heliograph.core.pointer import pointer_text

T = TypeVar("T")
Made_co = TypeVar("Made_co", covariant=True)
_PLACE = re.compile(r" - at `(?:key in )?\$(?P<path>.*)`$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]*)\]")
_KNOWN = {"Expected": "type", "Object missing": "required", "Object contains unknown": "additionalProperties"}


class Fitter(Protocol[Made_co]):
    """Makes the object of a document's exact text. Raises SchemaViolation."""

    def __call__(self, text: bytes, /) -> Made_co: ...


def fitter(kind: type[T]) -> Fitter[T]:
    """Raises InvalidRequest for a type that nothing here can make."""
    if _is_pydantic(kind):
        return _Pydantic(kind)
    return _Msgspec(kind)


def schema_of(kind: object) -> str | None:
    """The JSON Schema of a type, to be declared to the server; None when there is none, or it is larger than may be declared.

    Never raises: an application runs without it, and is only not warned about.
    """
    try:
        found = kind.model_json_schema() if _is_pydantic(kind) else msgspec.json.schema(kind)  # type: ignore[attr-defined]
        text = msgspec.json.encode(found)
    except Exception:
        return None
    return text.decode() if len(text) <= MAX_DECLARED_SCHEMA else None


def _is_pydantic(kind: object) -> bool:
    """pydantic is never imported here: a model can only exist where the application has imported it."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


class _Msgspec(Generic[T]):
    def __init__(self, kind: type[T]) -> None:
        self._name = getattr(kind, "__name__", str(kind))
        try:
            self._decode = msgspec.json.Decoder(kind).decode
        except TypeError as error:
            raise InvalidRequest(f"cannot bind a config to {self._name}: {error}") from None

    def __call__(self, text: bytes, /) -> T:
        try:
            return self._decode(text)
        except msgspec.ValidationError as error:
            raise SchemaViolation(f"it does not fit {self._name}", [_msgspec_fault(error)]) from None
        except Exception as error:
            raise _refused_by(self._name, error) from None


class _Pydantic(Generic[T]):
    def __init__(self, kind: type[T]) -> None:
        self._name = kind.__name__
        self._decode = cast("Callable[[bytes], T]", kind.model_validate_json)  # type: ignore[attr-defined]

    def __call__(self, text: bytes, /) -> T:
        try:
            return self._decode(text)
        except Exception as error:
            told = getattr(error, "errors", None)
            if told is None:
                raise _refused_by(self._name, error) from None
            raise SchemaViolation(f"it does not fit {self._name}", [_pydantic_fault(one) for one in told()]) from None


def _pydantic_fault(told: dict[str, Any]) -> Fault:
    return Fault(pointer=pointer_text(told["loc"]), rule=told["type"], message=f"breaks the rule {told['type']}")


def _msgspec_fault(error: msgspec.ValidationError) -> Fault:
    text = str(error)
    place = _PLACE.search(text)
    pointer = pointer_text(a or ("*" if b == "..." else b) for a, b in _STEP.findall(place["path"])) if place else ""
    told = text[: place.start()] if place else text
    rule = next((rule for start, rule in _KNOWN.items() if told.startswith(start)), None)
    if rule is None or error.__cause__ is not None:  # the words of somebody's own check, or of an enum: they hold the value
        return Fault(pointer=pointer, rule="value", message="is not a value that this type takes")
    return Fault(pointer=pointer, rule=rule, message=told[0].lower() + told[1:].replace("`", ""))


def _refused_by(name: str, error: Exception) -> SchemaViolation:
    fault = Fault(pointer="", rule="value", message=f"was refused with {type(error).__name__}")
    return SchemaViolation(f"it does not fit {name}", [fault])
