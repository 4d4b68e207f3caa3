"""The OpenAPI document: routes as FastAPI knows them, bodies and answers from the types in `answers`.

python -m heliograph.services.registry.api.openapi > contracts/openapi.json
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from heliograph import __version__
from heliograph.core import names
from heliograph.core.which import PREFIX, TIME
from heliograph.services.registry import answers, erasing_answers, history_answers

ANY_JSON: Final = "any"
"""A body that is any JSON: a document, a schema."""
NDJSON: Final = "ndjson"
_ANSWERS: Final = (answers, history_answers, erasing_answers)
_REF: Final = "#/components/schemas/{name}"

Shape = type[msgspec.Struct] | tuple[type[msgspec.Struct], ...] | str | None


def _parameter(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


IDEMPOTENCY_KEY: Final = _parameter(
    "Idempotency-Key", "1 to 200 printable characters; the same request with it is answered once and replayed after"
)
WRITE_HEADERS: Final = [
    _parameter("If-Match", 'the version id that the head must have: "sha256:…"; otherwise 412 with what has changed'),
    IDEMPOTENCY_KEY,
    _parameter(
        "Prefer",
        "wait=2, share=0.95: hold the answer until that share of the connected instances has applied the version; "
        "rebase: publish on top of a head that is not the one in If-Match any more, when nothing that came since overlaps",
    ),
    _parameter("Heliograph-Message", "percent-encoded; why this is done"),
]


def gives(status: int, shape: Shape, description: str = "") -> dict[int | str, dict[str, Any]]:
    """An answer, for a route's ``responses``."""
    answer: dict[str, Any] = {"description": description or _DESCRIPTIONS.get(status, "")}
    if shape == NDJSON:
        answer["content"] = {"application/x-ndjson": {"schema": {"type": "string"}}}
    elif shape is not None:
        answer["content"] = {"application/json": {"schema": _schema(shape)}}
    return {status: answer}


_DESCRIPTIONS: Final = {200: "OK", 201: "Committed", 204: "Done", 304: "As it was"}


def takes(
    shape: Shape | dict[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    media: tuple[str, ...] = ("application/json",),
) -> dict[str, Any]:
    """A body, for a route's ``openapi_extra``."""
    extra: dict[str, Any] = {}
    if parameters:
        extra["parameters"] = parameters
    if shape is not None:
        schema = shape if isinstance(shape, dict) else _schema(shape)
        extra["requestBody"] = {"required": True, "content": {each: {"schema": schema} for each in media}}
    return extra


def _schema(shape: Shape) -> dict[str, Any]:
    if isinstance(shape, tuple):
        return {"anyOf": [_schema(each) for each in shape]}
    return {} if isinstance(shape, str) or shape is None else {"$ref": _REF.format(name=shape.__name__)}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document. Every problem is one shape, said once for each route as its default answer."""
    made = get_openapi(title="Heliograph registry", version=__version__, routes=app.routes, description=_ABOUT)
    own = [
        each
        for module in _ANSWERS
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__
    ]
    _, components = msgspec.json.schema_components(own, ref_template=_REF)
    bearer = {"type": "http", "scheme": "bearer", "description": "a token: hel_…"}
    made["components"] = {"schemas": dict(sorted(components.items())), "securitySchemes": {"token": bearer}}
    made["security"] = [{"token": []}]
    problem = {"description": "A problem", "content": {"application/problem+json": {"schema": _schema(answers.Problem)}}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] |= _GRAMMAR.get(parameter["name"], {}) if parameter["in"] == "path" else {}
            operation["operationId"] = f"{operation['tags'][0]}.{operation['summary']}".lower().replace(" ", "_")
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = problem
            if path in _PUBLIC:
                operation["security"] = []
    return made


VERSION_NAME: Final = rf"^([1-9][0-9]{{0,15}}|sha256:[0-9a-f]{{64}}|{PREFIX}{names.SEGMENT}|{TIME})$"
VERSION: Final[dict[str, Any]] = {
    "description": "number, id, label:release-7, or a time as in 2026-11-01T12:00:00Z: what was the head then",
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": VERSION_NAME}],
}
LABEL_MATCH: Final = _parameter("If-Match", 'the version id that the label must name: "sha256:…"; otherwise 412')
CONFIG_NAME: Final = {
    "pattern": rf"^{names.SEGMENT}(/{names.SEGMENT}){{0,{names.MAX_SEGMENTS - 1}}}$",
    "maxLength": names.MAX_CONFIG_NAME,
}
_GRAMMAR: Final[dict[str, dict[str, Any]]] = {
    "namespace": {"pattern": f"^{names.SEGMENT}$"},
    "environment": {"pattern": f"^{names.SEGMENT}$"},
    "label": {"pattern": f"^{names.SEGMENT}$"},
    "name": CONFIG_NAME,
    "which": {"pattern": VERSION_NAME},
}
_PUBLIC: Final = ("/v1/endpoints", "/v1/trust")
_ABOUT: Final = (
    "Namespaces hold environments, environments hold configs. Every change is one immutable, signed version of an environment. "
    "Problems are RFC 9457 documents with a stable `code`."
)


def main() -> None:
    """Prints the document."""
    from heliograph.services.registry.api.routes import described  # noqa: PLC0415  # routes import this module

    json.dump(document(described()), sys.stdout, indent=2, ensure_ascii=False, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
