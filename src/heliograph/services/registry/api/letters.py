"""Dead letters: events that a consumer set aside after bounded retries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Principal
from heliograph.eventlog import dead_letters
from heliograph.eventlog.dead_letters import DeadLetter
from heliograph.runtime.http import Json
from heliograph.services.registry.answers import Letter, LetterList
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import gives

Number = Annotated[int, Path(ge=1, le=2**53 - 1)]


class Letters:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"])
        router.get("", responses=gives(200, LetterList))(self.list_letters)
        router.get("/{number}", responses=gives(200, Letter))(self.one)
        router.post("/{number}/replay", responses=gives(200, Letter))(self.replay)
        return router

    async def list_letters(
        self,
        request: Request,
        stream: Annotated[Literal["versions", "receipts", "deliveries"] | None, Query()] = None,
        state: Annotated[Literal["waiting", "replayed", "discarded"] | None, Query()] = None,
        cursor: inputs.Cursor = "",
        limit: inputs.Limit = 100,
    ) -> Response:
        """Oldest first, without what they hold."""
        await self._administrator(request)
        after = inputs.number_of(cursor, 0)
        rows = await dead_letters.page(self._context.pool, stream=stream, state=state, after=after, limit=limit)
        return Json(
            LetterList([_answer(row) for row in rows], inputs.cursor_of(str(rows[-1].id)) if len(rows) == limit else None)
        )

    async def one(self, request: Request, number: Number) -> Response:
        """One, with the event it holds; documents in it are left out."""
        await self._administrator(request)
        return Json(_answer(await dead_letters.one(self._context.pool, number), told=True))

    async def replay(self, request: Request, number: Number) -> Response:
        """Tells the consumer again: the environment's head is signed anew, and whoever is behind it reads what is missing from here. Only for the
        stream of versions."""
        principal = await self._administrator(request)
        letter = await self._context.replay(number, by=principal.id, trace=str(request.state.trace))
        return Json(_answer(letter))

    async def _administrator(self, request: Request) -> Principal:
        principal = await self._context.principal(request)
        allow(principal, Action.ADMIN)
        return principal


def _answer(letter: DeadLetter, *, told: bool = False) -> Letter:
    return Letter(
        id=letter.id,
        stream=letter.stream,
        consumer=letter.consumer,
        shard=letter.shard,
        position=letter.position,
        key=letter.key,
        reason=letter.reason,
        attempts=letter.attempts,
        trace=letter.trace,
        created_at=letter.created_at,
        state=letter.state,  # type: ignore[arg-type]  # the table's check lists the states
        event=_without_documents(letter.body or b"") if told else msgspec.UNSET,
    )


def _without_documents(body: bytes) -> dict[str, Any]:
    try:
        event = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return {"unreadable_bytes": len(body)}
    for change in event.get("changes", ()):
        if isinstance(change, dict):
            change.pop("document", None)
    return event
