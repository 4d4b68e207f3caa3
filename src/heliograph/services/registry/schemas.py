"""JSON Schema draft-07: which schemas are usable, and what a document does against one. Pure.

A schema is refused when its meta-schema refuses it, when it asks for another draft, for a document elsewhere (nothing is ever fetched), or for
a pattern that the linear regex engine cannot run. Every fault of a document is told with its pointer, its rule and the rule's place in the schema,
and never with its value: the messages of the validator contain values, so none of them is passed on.

`format` is an annotation, as draft-07 has it by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import jsonschema_rs
from jsonschema_rs import ValidationError

from heliograph.core.canonical import Json
from heliograph.core.errors import Fault, InvalidSchema, SchemaViolation

DRAFT_07: Final = "http://json-schema.org/draft-07/schema"
MAX_FAULTS: Final = 100
SHOWN_NAMES: Final = 5
SHOWN_ALTERNATIVES: Final = 3

Validator: TypeAlias = jsonschema_rs.Draft7Validator
Known: TypeAlias = Mapping[str, Json]
"""Documents that a ``$ref`` may name by URI, beside the meta-schema. The service knows none."""


def compiled(schema: Json, known: Known | None = None) -> Validator:
    """A validator, immutable and safe to share. Raises InvalidSchema with a fault for each thing wrong."""
    if not isinstance(schema, dict | bool):
        raise InvalidSchema("a schema is an object, true or false", [Fault("", "type", "must be an object, true or false")])
    faults = [*_foreign_drafts(schema), *(_of_schema(each) for each in _META.iter_errors(schema))]
    if faults:
        raise InvalidSchema(_summary("the schema", len(faults)), faults[:MAX_FAULTS])
    try:
        return Validator(
            schema, validate_formats=False, retriever=_retriever(known or {}), pattern_options=jsonschema_rs.RegexOptions()
        )
    except ValidationError as error:
        raise InvalidSchema("the schema cannot be used", [_of_schema(error)]) from None
    except (ValueError, jsonschema_rs.ReferencingError):
        raise InvalidSchema("the schema cannot be used: one of its references or identifiers leads nowhere") from None


def check(validator: Validator, document: Json) -> None:
    """Raises SchemaViolation with the first faults and their number. Its cost is not bounded by the sizes: see `validation`."""
    faults = validator.iter_errors(document)
    first = [_of_document(each) for _, each in zip(range(MAX_FAULTS), faults, strict=False)]
    if first:
        raise SchemaViolation(_summary("the document", len(first) + sum(1 for _ in faults)), first)


def _summary(what: str, count: int) -> str:
    listed = f"; the first {MAX_FAULTS} are listed" if count > MAX_FAULTS else ""
    return f"{what} has {count:,} fault{'s' if count > 1 else ''}{listed}"


def _retriever(known: Known) -> Callable[[str], Json]:
    def retrieve(uri: str) -> Json:
        found = known.get(uri.split("#", 1)[0])
        if found is None:
            raise LookupError
        return found

    return retrieve


def _nothing(_: str) -> NoReturn:
    raise LookupError


_META: Final = Validator({"$ref": DRAFT_07 + "#"}, validate_formats=True, retriever=_nothing)

# --- other drafts hidden inside ---------------------------------------------------------------------------------------------------

_ONE = ("additionalItems", "contains", "additionalProperties", "propertyNames", "if", "then", "else", "not", "items")
_LISTS = ("items", "allOf", "anyOf", "oneOf")
_MAPS = ("definitions", "properties", "patternProperties", "dependencies")


def _foreign_drafts(schema: Json, pointer: str = "") -> Iterator[Fault]:
    """A `$schema` deep inside would switch the validator to another draft's rules there."""
    if not isinstance(schema, dict):
        return
    named = schema.get("$schema", DRAFT_07)
    if not isinstance(named, str) or named.removesuffix("#") != DRAFT_07:
        yield Fault(f"{pointer}/$schema", "$schema", f"only {DRAFT_07}# is understood; name that or nothing")
    for place, below in _subschemas(schema):
        yield from _foreign_drafts(below, pointer + place)


def _subschemas(schema: dict[str, Json]) -> Iterator[tuple[str, Json]]:
    for keyword in _ONE:
        if isinstance(below := schema.get(keyword), dict):
            yield f"/{keyword}", below
    for keyword in _LISTS:
        if isinstance(below := schema.get(keyword), list):
            yield from ((f"/{keyword}/{index}", each) for index, each in enumerate(below))
    for keyword in _MAPS:
        if isinstance(below := schema.get(keyword), dict):
            yield from ((pointer_of([keyword, name]), each) for name, each in below.items())


# --- faults, without values -------------------------------------------------------------------------------------------------------


def pointer_of(path: list[str | int] | list[str]) -> str:
    """RFC 6901."""
    return "".join("/" + str(each).replace("~", "~0").replace("/", "~1") for each in path)


def _of_document(error: ValidationError) -> Fault:
    return Fault(pointer_of(error.instance_path), _rule(error), _sentence(error), pointer_of(error.schema_path))


def _of_schema(error: ValidationError) -> Fault:
    """A fault in a schema: there the document is the schema, and its rules are the meta-schema's or the engine's."""
    match error.kind:
        case jsonschema_rs.ValidationErrorKind.Referencing():
            return Fault(
                pointer_of(error.instance_path),
                "$ref",
                "a reference must lead to a place in this very schema; nothing is fetched",
            )
        case jsonschema_rs.ValidationErrorKind.Format() | jsonschema_rs.ValidationErrorKind.Pattern():
            message = "not usable: patterns run on a linear engine, without look-around and back-references, up to a size"
            return Fault(pointer_of(error.instance_path), "pattern", message)
    return Fault(pointer_of(error.instance_path), _rule(error), _sentence(error), pointer_of(error.schema_path))


def _rule(error: ValidationError) -> str:
    return str(error.kind.name)


def _sentence(error: ValidationError) -> str:
    """For people. Says what the schema wants, and of the document only names of members."""
    rule, wanted = error.kind.name, error.kind.as_dict()
    if rule in _SPECIAL:
        return _SPECIAL[rule](wanted)
    return _LIMITS[rule].format(**wanted) if rule in _LIMITS else f"breaks the rule {rule}"


_SPECIAL: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "type": lambda wanted: f"must be of type {' or '.join(wanted['types'])}",
    "required": lambda wanted: f"the member {_shown(wanted['property'])} is missing",
    "additionalProperties": lambda wanted: f"members that the schema does not know: {_names(wanted['unexpected'])}",
    "propertyNames": lambda wanted: f"a member's name is not allowed: {_sentence(wanted['error'])}",
    "pattern": lambda wanted: f"must match the pattern {_shown(wanted['pattern'])}",
    "anyOf": lambda wanted: _alternatives("anyOf", wanted["context"]),
    "oneOf": lambda wanted: _alternatives("oneOf", wanted["context"]),
}
_LIMITS: Final = {
    "minimum": "must be {limit} or more",
    "maximum": "must be {limit} or less",
    "exclusiveMinimum": "must be more than {limit}",
    "exclusiveMaximum": "must be less than {limit}",
    "multipleOf": "must be a multiple of {multiple_of}",
    "minLength": "must have {limit} characters or more",
    "maxLength": "must have {limit} characters or fewer",
    "minItems": "must have {limit} items or more",
    "maxItems": "must have {limit} items or fewer",
    "additionalItems": "must have {limit} items or fewer",
    "minProperties": "must have {limit} members or more",
    "maxProperties": "must have {limit} members or fewer",
    "uniqueItems": "must not have the same item twice",
    "contains": "no item is what the schema wants at least one to be",
    "enum": "must be one of the values that the schema lists",
    "const": "must be the value that the schema states",
    "not": "must not be what the schema excludes",
    "falseSchema": "nothing is allowed here",
    "format": "must be in the format {format}",
}


def _alternatives(rule: str, context: list[list[ValidationError]]) -> str:
    failed = [each for each in context if each]
    if len(failed) < len(context):
        return "fits more than one of the alternatives; exactly one is wanted"
    shown = "; ".join(f"{number}: {_first(each)}" for number, each in enumerate(failed[:SHOWN_ALTERNATIVES], 1))
    return (
        f"fits none of the {len(context)} alternatives of {rule} ({shown}{'; …' if len(failed) > SHOWN_ALTERNATIVES else ''})"
    )


def _first(errors: list[ValidationError]) -> str:
    at = pointer_of(errors[0].instance_path)
    return f"{at} {_sentence(errors[0])}".strip()


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(_shown, names[:SHOWN_NAMES])) + more


def _shown(text: str) -> str:
    return f'"{text}"' if len(text) <= 64 else f'"{text[:61]}..."'
