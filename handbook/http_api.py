"""The HTTP APIs: the registry's from `contracts/openapi.json`, the other services' from their routes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from handbook.markdown import code, join, plain, table
from heliograph.services.ledger.api import Api as LedgerApi
from heliograph.services.ledger.report import Report
from heliograph.services.ledger.views import DriftView, InstanceView, ReceiptView
from heliograph.services.sync.api import PolledReceipts
from heliograph.services.sync.api import make_router as sync_router

CONTRACT: Final = Path(__file__).resolve().parents[1] / "contracts/openapi.json"
_STATUS: Final = {"default": "otherwise"}
_REF: Final = "#/components/schemas/{name}"

# what the routes of sync and ledger take and give; a list is a page of its items
_TAKES: Final[dict[str, type[msgspec.Struct]]] = {"/v1/receipts": PolledReceipts}
_GIVES: Final[dict[str, type[msgspec.Struct]]] = {"/v1/propagations/{namespace}/{environment}/{number}": Report}
_LISTS: Final[dict[str, type[msgspec.Struct]]] = {
    "/v1/propagations/{namespace}/{environment}/{number}/receipts": ReceiptView,
    "/v1/instances/{namespace}/{environment}": InstanceView,
    "/v1/drift/{namespace}/{environment}": DriftView,
}

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
        "Bundles, polls, events and receipts, on the node's own port. The stream itself is a WebSocket: `/v1/stream`, subprotocol `heliograph.v1`.",
        *_operations(described_sync()),
        "## Ledger",
        "Who runs what. On the ledger's own port.",
        *_operations(described_ledger()),
        "## Shapes",
        "What bodies and answers are made of.",
        *(_shape(name, schema) for name, schema in sorted((told["components"]["schemas"] | _own_shapes()).items())),
    )


def described_sync() -> Json:
    """The router needs nothing to be described."""
    return _described(sync_router(**dict.fromkeys(inspect.signature(sync_router).parameters)))  # type: ignore[arg-type]


def described_ledger() -> Json:
    app = FastAPI()
    LedgerApi(*[None] * len(inspect.signature(LedgerApi).parameters)).add_to(app)  # type: ignore[arg-type]
    return _completed(app)


def _described(router: APIRouter) -> Json:
    app = FastAPI()
    app.include_router(router)
    return _completed(app)


def _completed(app: FastAPI) -> Json:
    """With the shapes, which handlers that write their own bytes do not tell."""
    made = get_openapi(title="", version="", routes=app.routes)
    for path, operations in made["paths"].items():
        for operation in operations.values():
            operation["responses"] = {"200": {"description": "OK", **_content(_given(path))}, "default": _PROBLEM}
            if path in _TAKES:
                operation["requestBody"] = _content(_reference(_TAKES[path]))
    return made


def _given(path: str) -> Json:
    if path in _LISTS:
        items = {"type": "array", "items": _reference(_LISTS[path])}
        return {"type": "object", "properties": {"items": items, "next": {}}}
    return _reference(_GIVES[path]) if path in _GIVES else {}


def _reference(shape: type[msgspec.Struct]) -> Json:
    return {"$ref": _REF.format(name=shape.__name__)}


def _content(schema: Json, kind: str = "application/json") -> Json:
    return {"content": {kind: {"schema": schema}}}


_PROBLEM: Final = {"description": "A problem", **_content({"$ref": _REF.format(name="Problem")}, "application/problem+json")}


def _own_shapes() -> Json:
    _, components = msgspec.json.schema_components([*_TAKES.values(), *_GIVES.values(), *_LISTS.values()], ref_template=_REF)
    return components


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
        table(("status", "answer", "meaning"), map(_answer, told["responses"].items())),
    )


def _parameter(told: Json) -> tuple[str, ...]:
    required = "required; " if told.get("required") else ""
    return code(told["name"]), told["in"], type_of(told["schema"]), required + told.get("description", "")


def _body(told: Json | None) -> str:
    if not told:
        return ""
    return "Body: " + ", ".join(f"{type_of(content['schema'])} as `{kind}`" for kind, content in told["content"].items()) + "."


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
    return _object(schema) if schema.get("type") == "object" else _plain(schema)


def _plain(schema: Json) -> str:
    kind = schema.get("type", "any JSON")
    return f"{'list of ' + type_of(schema.get('items', {})) if kind == 'array' else kind}{_bounds(schema)}"


def _object(schema: Json) -> str:
    members = schema.get("properties", {})
    if members.keys() == {"items", "next"}:
        return f"page of {type_of(members['items']['items'])}"
    each = schema.get("additionalProperties")
    return f"object of {type_of(each)}" if isinstance(each, dict) else "object"


_BOUNDS: Final = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "minLength": "≥ {} characters", "maxLength": "≤ {} characters", "minItems": "≥ {} items", "maxItems": "≤ {} items",
}  # fmt: skip


def _bounds(schema: Json) -> str:
    found = [text.format(schema[rule]) for rule, text in _BOUNDS.items() if rule in schema]
    return " " + ", ".join(found) if found else ""
