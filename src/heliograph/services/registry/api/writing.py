"""From a request that changes an environment to its answer: what publishing, rolling back and creating have in common."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request, Response

from heliograph.access.principal import Principal
from heliograph.core.digest import spell
from heliograph.runtime.http import RawJson
from heliograph.services.registry import answers
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.commit import Committed, Order, Unchanged
from heliograph.services.registry.draft import Rebased
from heliograph.services.registry.heads import Place


class _Which(msgspec.Struct, frozen=True):
    number: int
    version: str
    rebased: Rebased | None = None


def order(
    request: Request, principal: Principal, place: Place, body: bytes, *, action: str, message: str | None = None
) -> Order:
    """``message``: of the body; otherwise the header's."""
    prefers_wait = inputs.wait(request, 0) is not None
    return Order(
        place=place,
        author=principal.id,
        action=action,
        received_at_us=request.state.received_at_us,
        message=message or inputs.message_header(request),
        trace=str(request.state.trace),
        answer="now" if prefers_wait else "soon",
        if_match=inputs.if_match(request),
        rebase=inputs.rebase(request),
        key=inputs.idempotency_key(request),
        request=inputs.fingerprint(request, body),
    )


async def answer(context: Context, request: Request, place: Place, outcome: Committed | Unchanged) -> Response:
    """201 with the new version, byte for byte the same for a replay; 200 when nothing was to be changed. A request that waits gets, beside that, the
    version's propagation as it is after the wait."""
    done = await _said(context, place, outcome) if isinstance(outcome, Unchanged) else outcome
    which = msgspec.json.decode(done.body, type=_Which)
    headers = {"ETag": f'"{which.version}"'} | ({"Idempotency-Replayed": "true"} if done.replayed else {})
    if which.rebased:
        headers["Preference-Applied"] = "rebase"
    body = done.body
    if wait := inputs.wait(request, context.wait_max_s):
        with context.metrics.publish_seconds.labels("wait").time():
            waited, story = await context.propagations.wait(
                place, which.number, which.version, share=wait.share, seconds=wait.seconds
            )
        body = _with(body, {"wait": waited} | ({"propagation": story} if story is not None else {}))
    if done.compatibility:
        body = _with(body, {"compatibility": done.compatibility})
    return RawJson(body, done.status, headers)


async def _said(context: Context, place: Place, outcome: Unchanged) -> Committed:
    row = await context.store.version(place, outcome.head.version)
    return Committed(200, msgspec.json.encode(answers.of_row(row, outcome.head, unchanged=True)))


def _with(body: bytes, more: dict[str, Any]) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(body) | more)


def etag_of(version: bytes) -> str:
    return f'"{spell(version)}"'
