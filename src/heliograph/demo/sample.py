"""What the demo works on: a shop with three environments, three configs with schemas, and eight clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

NAMESPACE: Final = "shop"
ENVIRONMENTS: Final = ("dev", "staging", "production")
ENVIRONMENT: Final = "production"
CONFIG: Final = "checkout/limits"
POINTER: Final = "/max_items"

CONFIGS: Final[list[dict[str, Any]]] = [
    {
        "name": "checkout/limits",
        "document": {"max_items": 20, "max_total": 500.0, "currencies": ["EUR", "USD"], "express": False},
        "schema": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "required": ["max_items", "max_total", "currencies"],
            "additionalProperties": False,
            "properties": {
                "max_items": {"type": "integer", "minimum": 1, "maximum": 1000},
                "max_total": {"type": "number", "exclusiveMinimum": 0},
                "currencies": {
                    "type": "array",
                    "minItems": 1,
                    "uniqueItems": True,
                    "items": {"type": "string", "pattern": "^[A-Z]{3}$"},
                },
                "express": {"type": "boolean"},
            },
        },
    },
    {
        "name": "banner",
        "document": {"text": "Welcome", "visible": True},
        "schema": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "required": ["text", "visible"],
            "properties": {"text": {"type": "string", "maxLength": 200}, "visible": {"type": "boolean"}},
        },
    },
    {
        "name": "search",
        "document": {"page_size": 24, "synonyms": {"sofa": ["couch", "settee"]}, "timeout_ms": 300},
        "schema": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "required": ["page_size"],
            "properties": {
                "page_size": {"type": "integer", "minimum": 1, "maximum": 200},
                "timeout_ms": {"type": "integer", "minimum": 10},
                "synonyms": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
            },
        },
    },
]

INVALID: Final[dict[str, Any]] = {"max_items": 0, "max_total": "plenty", "currencies": ["EUR", "euro"], "colour": "red"}
"""Breaks the schema of `CONFIG` in four places."""


@dataclass(frozen=True)
class Sample:
    app: str
    host: str
    labels: dict[str, str]
    view: tuple[str, ...] = ("",)


CLIENTS: Final = (
    Sample("checkout", "checkout-1", {"zone": "a", "team": "orders"}),
    Sample("checkout", "checkout-2", {"zone": "b", "team": "orders"}),
    Sample("cart", "cart-1", {"zone": "a", "team": "orders"}, ("checkout/",)),
    Sample("cart", "cart-2", {"zone": "b", "team": "orders"}, ("checkout/",)),
    Sample("storefront", "web-1", {"zone": "a", "team": "web"}),
    Sample("storefront", "web-2", {"zone": "b", "team": "web"}),
    Sample("worker", "worker-1", {"zone": "a", "team": "data"}, ("checkout/limits", "search")),
    Sample("kiosk", "kiosk-berlin", {"zone": "edge", "team": "stores"}, ("checkout/limits",)),
)
