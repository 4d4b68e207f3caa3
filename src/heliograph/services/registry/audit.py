"""Audit rows that other services ask for, each once."""

from __future__ import annotations

from typing import Any

from heliograph.core.errors import IdempotencyKeyReused
from heliograph.services.registry.heads import Place
from heliograph.services.registry.store import Answered, Store

ANSWER = b"{}"
CREATED = 201


async def note_once(
    store: Store, place: Place, actor: str, action: str, detail: dict[str, Any], *, key: str | None, request: bytes
) -> bytes:
    """The answer, the same for the same key. Raises IdempotencyKeyReused."""
    async with store.transaction() as connection:
        if key is None or await store.remember(connection, actor, key, Answered(request, CREATED, ANSWER)):
            await store.note(place.namespace, place.environment, actor, action, detail, within=connection)
            return ANSWER
    before = await store.answered(actor, key)
    if before is None or before.request != request:
        raise IdempotencyKeyReused("this Idempotency-Key was used for another request; use a new key for a new request")
    return before.body
