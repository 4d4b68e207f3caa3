"""The HTTP APIs: the registry's from `contracts/openapi.json`, the other services' from their routes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from handbook.markdown import code, join, plain, table
from heliograph.services.ledger.api import Api as LedgerApi
from heliograph.services.sync.api import make_router as sync_router

CONTRACT: Final = Path(__file__).resolve().parents[1] / "contracts/openapi.json"
_STATUS: Final = {"default": "otherwise"}

Json = dict[str, Any]


def page() -> str:
    told = json.loads(CONTRACT.read_text())
    return join(
        "# HTTP API",
        "Everything that the command line and the SDKs do, they do through these. Names and addresses of the services: `GET /v1/endpoints`. "
        "The registry's part for programs: [contracts/openapi.json](../../contracts/openapi.json).",
        "Send `Authorization: Bearer hel_…` unless a request says that it needs no token. Lists are pages: `limit` items, and `next`, which "
        "goes into `cursor` of the next request; null at the end. Whatever is not a success is a problem document with a `code`: see "
        "[Errors](errors.md).",
        "## Registry",
        *_operations(told),
        "## Sync",
        "Bundles, long poll and receipts, on the node's own port. The stream itself is a WebSocket: `/v1/stream`, subprotocol `heliograph.v1`.",
        *_operations(described_sync()),
        "## Ledger",
        "Who runs what. On the ledger's own port.",
        *_operations(described_ledger()),
        "## Shapes",
        "What bodies and answers of the registry are made of.",
        *(_shape(name, schema) for name, schema in sorted(told["components"]["schemas"].items())),
    )


def described_sync() -> Json:
    """The router needs nothing to be described."""
    return _described(sync_router(*[None] * len(inspect.signature(sync_router).parameters)))  # type: ignore[arg-type]


def described_ledger() -> Json:
    app = FastAPI()
    LedgerApi(*[None] * len(inspect.signature(LedgerApi).parameters)).add_to(app)  # type: ignore[arg-type]
    return get_openapi(title="ledger", version="1", routes=app.routes)


def _described(router: APIRouter) -> Json:
    app = FastAPI()
    app.include_router(router)
    return get_openapi(title="sync", version="1", routes=app.routes)


def _operations(told: Json) -> Iterator[str]:
    for path, operations in told["paths"].items():
        for method, operation in operations.items():
            yield _operation(method.upper(), path, operation)


def _operation(method: str, path: str, told: Json) -> str:
    parameters = [each for each in told.get("parameters", ()) if each["in"] != "path"]
    return join(
        f"### `{method} {path}`",
        plain(told.get("description", "")),
        "Needs no token." if told.get("security") == [] else "",
        table(("parameter", "in", "type", "meaning"), map(_parameter, parameters)),
        _body(told.get("requestBody")),
        table(("status", "answer", "meaning"), map(_answer, _answers(told))),
    )


def _parameter(told: Json) -> tuple[str, ...]:
    required = "required; " if told.get("required") else ""
    return code(told["name"]), told["in"], type_of(told["schema"]), required + told.get("description", "")


def _body(told: Json | None) -> str:
    if not told:
        return ""
    return "Body: " + ", ".join(f"{type_of(content['schema'])} as `{kind}`" for kind, content in told["content"].items()) + "."


def _answers(told: Json) -> list[tuple[str, Json]]:
    """Without FastAPI's own 422, which no service gives."""
    return [(status, answer) for status, answer in told["responses"].items() if status != "422"]


def _answer(given: tuple[str, Json]) -> tuple[str, ...]:
    status, told = given
    shapes = ", ".join(type_of(content.get("schema", {})) for content in told.get("content", {}).values())
    return _STATUS.get(status, status), shapes, told["description"]


# --- shapes -----------------------------------------------------------------------------------------------------------------------


def _shape(name: str, schema: Json) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (code(field), type_of(told), "" if field in required else "may be missing", told.get("description", ""))
        for field, told in schema.get("properties", {}).items()
    ]
    alternatives = "" if "properties" in schema else f"{type_of(schema)}."
    return join(
        f"### {name}", plain(schema.get("description", "")), alternatives, table(("member", "type", "", "meaning"), rows)
    )


def type_of(schema: Json) -> str:
    """In words, with its bounds; a shape is a link to it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(type_of(each) for each in schema[several])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(code(json.dumps(each)) for each in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}{_bounds(schema)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_of(schema['additionalProperties'])}"
    return f"{kind}{_bounds(schema)}"


_BOUNDS: Final = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "minLength": "≥ {} characters", "maxLength": "≤ {} characters", "minItems": "≥ {} items", "maxItems": "≤ {} items",
}  # fmt: skip


def _bounds(schema: Json) -> str:
    found = [text.format(schema[rule]) for rule, text in _BOUNDS.items() if rule in schema]
    return " " + ", ".join(found) if found else ""
