"""What the demo is made of: a namespace with three environments, three configs with their schemas, eight clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from heliograph.core.canonical import Json

NAMESPACE: Final = "shop"
ENVIRONMENTS: Final = ("dev", "staging", "production")
SHOWN: Final = "production"
LIMITS: Final = "checkout/limits"
MAX_ITEMS: Final = 1000

DOCUMENTS: Final[dict[str, dict[str, Json]]] = {
    LIMITS: {"max_items": 20, "max_total": 5000, "currency": "EUR", "express": True},
    "features": {"new_search": False, "one_click": True, "gift_cards": False},
    "pricing": {"vat_percent": 20, "free_shipping_from": 49.9, "rounding": "half-up"},
}
SCHEMAS: Final[dict[str, dict[str, Json]]] = {
    LIMITS: {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "required": ["max_items", "max_total", "currency"],
        "additionalProperties": False,
        "properties": {
            "max_items": {"type": "integer", "minimum": 1, "maximum": MAX_ITEMS},
            "max_total": {"type": "number", "exclusiveMinimum": 0, "maximum": 100_000},
            "currency": {"enum": ["EUR", "USD", "GBP"]},
            "express": {"type": "boolean"},
        },
    },
    "features": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"},
        "additionalProperties": {"type": "boolean"},
    },
    "pricing": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "required": ["vat_percent", "rounding"],
        "additionalProperties": False,
        "properties": {
            "vat_percent": {"type": "number", "minimum": 0, "maximum": 100},
            "free_shipping_from": {"type": "number", "minimum": 0},
            "rounding": {"enum": ["half-up", "half-even"]},
        },
    },
}
BROKEN: Final[Json] = {"max_items": 0, "max_total": "a lot", "currency": "DOGE", "surprise": 1}
"""Breaks the schema of `LIMITS` in four places."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One client process: how it introduces itself, and what it subscribes to. All of them see `LIMITS`."""

    host: str
    app: str
    region: str
    sdk: str
    view: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        return {"host": self.host, "region": self.region, "sdk": self.sdk}


SAMPLES: Final = (
    Sample("web-fra-1", "storefront", "eu-central", "python-asyncio", ("",)),
    Sample("web-fra-2", "storefront", "eu-central", "python-asyncio", ("",)),
    Sample("web-iad-1", "storefront", "us-east", "python-asyncio", ("",)),
    Sample("pay-fra-1", "checkout", "eu-central", "python-bound", ("checkout/", "pricing")),
    Sample("pay-iad-1", "checkout", "us-east", "python-bound", ("checkout/", "pricing")),
    Sample("api-sin-1", "mobile-api", "ap-southeast", "python-asyncio", ("checkout/limits", "features")),
    Sample("api-gru-1", "mobile-api", "sa-east", "python-asyncio", ("checkout/limits", "features")),
    Sample("job-fra-1", "nightly-jobs", "eu-central", "python-batch", ("checkout/limits",)),
)
