"""Dead letters: what a consumer, or an instance, could not take after bounded retries."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Principal
from heliograph.core.errors import Conflict, InvalidRequest
from heliograph.eventlog import dead_letters
from heliograph.eventlog.dead_letters import DeadLetter, Filter
from heliograph.runtime.http import Json
from heliograph.services.registry.answers import Letter, LetterFailure, LetterList, LettersSettled
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import gives, takes
from heliograph.services.registry.letters import Settled

T = TypeVar("T")

AT_ONCE: Final = 500
MAX_NOTE: Final = 500
Number = Annotated[int, Path(ge=1, le=2**53 - 1)]
Stream = Literal["versions", "receipts", "deliveries"]
State = Literal["waiting", "replaying", "replayed", "discarded"]
Part = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]
Id = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Why = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NOTE, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]


class _Filter(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """At least one of them; letters that wait."""

    stream: Stream | None = None
    consumer: Text | None = None
    namespace: Text | None = None
    environment: Text | None = None
    key: Text | None = None
    reason: Text | None = None
    older_than_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None


class _Many(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=AT_ONCE)] | None = None
    filter: _Filter | None = None
    after: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] = 0
    dry_run: bool = False


class _Note(msgspec.Struct, forbid_unknown_fields=True):
    reason: Why


class _Discarding(_Many, forbid_unknown_fields=True, kw_only=True):
    reason: Why


_REASON: Final[dict[str, Any]] = {"type": "string", "minLength": 1, "maxLength": MAX_NOTE}
_SELECTION: Final[dict[str, Any]] = {
    "ids": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": AT_ONCE},
    "filter": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            "stream": {"enum": ["versions", "receipts", "deliveries"]},
            **{each: {"type": "string", "minLength": 1} for each in ("consumer", "namespace", "environment", "key", "reason")},
            "older_than_s": {"type": "number", "minimum": 0},
        },
    },
    "after": {"type": "integer", "minimum": 0},
    "dry_run": {"type": "boolean"},
}


def _body(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    shape = {"type": "object", "additionalProperties": False, "properties": properties}
    return shape | ({"required": list(required)} if required else {})


class Letters:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"])
        router.get("", responses=gives(200, LetterList))(self.list_letters)
        many = gives(200, LettersSettled)
        router.post("/replay", responses=many, openapi_extra=takes(_body(_SELECTION)))(self.replay_many)
        discarding = takes(_body(_SELECTION | {"reason": _REASON}, "reason"))
        router.post("/discard", responses=many, openapi_extra=discarding)(self.discard_many)
        router.get("/{number}", responses=gives(200, Letter))(self.one)
        router.post("/{number}/replay", responses=gives(200, Letter))(self.replay)
        router.post(
            "/{number}/discard", responses=gives(200, Letter), openapi_extra=takes(_body({"reason": _REASON}, "reason"))
        )(self.discard)
        return router

    async def list_letters(
        self,
        request: Request,
        stream: Annotated[Stream | None, Query()] = None,
        state: Annotated[State | None, Query()] = None,
        consumer: Part = None,
        namespace: Part = None,
        environment: Part = None,
        key: Part = None,
        reason: Part = None,
        older_than_s: Annotated[float | None, Query(ge=0, le=1e9)] = None,
        cursor: inputs.Cursor = "",
        limit: inputs.Limit = 100,
    ) -> Response:
        """Oldest first, without what they hold. `reason`: a part of it. `older_than_s`: seconds since they failed last."""
        await self._administrator(request)
        which = Filter(
            stream=stream,
            state=state,
            consumer=consumer,
            namespace=namespace,
            environment=environment,
            key=key,
            reason=reason,
            older_than_s=older_than_s,
        )
        rows = await dead_letters.page(self._context.pool, which, after=inputs.number_of(cursor, 0), limit=limit)
        after = inputs.cursor_of(str(rows[-1].id)) if len(rows) == limit else None
        return Json(LetterList([_answer(row) for row in rows], after))

    async def one(self, request: Request, number: Number, documents: bool = False) -> Response:
        """One, with the event it holds. Documents in it are left out unless `documents=true` asks for them; that is written into the audit trail."""
        principal = await self._administrator(request)
        letter = await dead_letters.one(self._context.pool, number)
        if documents:
            detail = {"letter": number, "stream": letter.stream}
            await self._context.store.note(
                letter.namespace, letter.environment, principal.id, "dead_letter.documents_read", detail
            )
        return Json(_answer(letter, event=_event(letter.body or b"", documents=documents)))

    async def replay(self, request: Request, number: Number) -> Response:
        """Has one told again. When that fails again, the same letter waits again, with one attempt more and the new reason.

        Of a version: the environment's head is signed anew, and whoever is behind it reads what is missing from here. Of what the ledger set aside:
        the ledger takes it in again within seconds (`replaying` until it has). Of a version that instances reject: every sync node sends it again to
        those that do not run it.
        """
        principal = await self._administrator(request)
        letter = await self._waiting(number)
        settled = await self._context.letters.replay([letter], by=principal.id, trace=str(request.state.trace))
        return await self._settled(number, settled)

    async def discard(self, request: Request, number: Number) -> Response:
        """Nobody needs to look at it any more; the reason stays with it."""
        principal = await self._administrator(request)
        note = _decoded(await request.body(), _Note).reason
        letter = await self._waiting(number)
        return await self._settled(number, await self._context.letters.discard([letter], by=principal.id, note=note))

    async def replay_many(self, request: Request) -> Response:
        """Has up to 500 waiting letters told again: those with the given `ids`, or those that match a `filter`. `dry_run` only counts them.

        Each environment's letters are one transaction. Repeating the request is safe: what no longer waits is skipped.
        """
        principal = await self._administrator(request)
        asked = _decoded(await request.body(), _Many)
        if asked.dry_run:
            return Json(await self._counted(asked))
        letters = await self._selected(asked)
        settled = await self._context.letters.replay(letters, by=principal.id, trace=str(request.state.trace))
        return Json(await self._told(asked, letters, settled))

    async def discard_many(self, request: Request) -> Response:
        """Discards up to 500 waiting letters, with a reason: those with the given `ids`, or those that match a `filter`.

        `dry_run` only counts them.
        """
        principal = await self._administrator(request)
        asked = _decoded(await request.body(), _Discarding)
        if asked.dry_run:
            return Json(await self._counted(asked))
        letters = await self._selected(asked)
        settled = await self._context.letters.discard(letters, by=principal.id, note=asked.reason)
        return Json(await self._told(asked, letters, settled))

    async def _administrator(self, request: Request) -> Principal:
        principal = await self._context.principal(request)
        allow(principal, Action.ADMIN)
        return principal

    # --- one --------------------------------------------------------------------------------------------------------------------------

    async def _waiting(self, number: int) -> DeadLetter:
        letter = await dead_letters.one(self._context.pool, number)
        if letter.state != "waiting":
            raise Conflict(f"dead letter {number} is {letter.state} already")
        return letter

    async def _settled(self, number: int, settled: Settled) -> Response:
        if settled.failed:
            raise settled.failed[0][1]
        if settled.skipped:
            raise Conflict(f"dead letter {number} was settled by somebody else meanwhile")
        return Json(_answer(await dead_letters.one(self._context.pool, number)))

    # --- many -------------------------------------------------------------------------------------------------------------------------

    async def _selected(self, asked: _Many) -> list[DeadLetter]:
        if which := _filter(asked):
            found = await dead_letters.page(self._context.pool, which, after=asked.after, limit=AT_ONCE)
            return await dead_letters.some(self._context.pool, [each.id for each in found])
        return await dead_letters.some(self._context.pool, asked.ids or [])

    async def _counted(self, asked: _Many) -> LettersSettled:
        if which := _filter(asked):
            matched = await dead_letters.count(self._context.pool, which, after=asked.after)
        else:
            matched = sum(each.state == "waiting" for each in await self._selected(asked))
        return LettersSettled(dry_run=True, matched=matched, done=[], skipped=[], failed=[], next=None)

    async def _told(self, asked: _Many, letters: list[DeadLetter], settled: Settled) -> LettersSettled:
        full = asked.filter is not None and len(letters) == AT_ONCE
        return LettersSettled(
            dry_run=False,
            matched=len(settled.done) + len(settled.failed),
            done=sorted(settled.done),
            skipped=sorted(settled.skipped + sorted(set(asked.ids or ()) - {each.id for each in letters})),
            failed=[LetterFailure(number, error.code, error.detail) for number, error in sorted(settled.failed, key=_number)],
            next=letters[-1].id if full else None,
        )


def _number(failure: tuple[int, object]) -> int:
    return failure[0]


def _filter(asked: _Many) -> Filter | None:
    """None: by ids. Raises InvalidRequest unless it is exactly one of both, and the filter says something."""
    if (asked.ids is None) == (asked.filter is None):
        raise InvalidRequest('say which letters: either {"ids": [1, 2]} or {"filter": {"stream": "versions"}}')
    if asked.filter is None:
        return None
    if asked.filter == _Filter():
        raise InvalidRequest("an empty filter would mean every letter; name at least one of: stream, consumer, namespace, …")
    return Filter(state="waiting", **msgspec.structs.asdict(asked.filter))


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not what is expected here: {error}") from None


def _answer(letter: DeadLetter, *, event: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET) -> Letter:
    told = {name: getattr(letter, name) for name in Letter.__struct_fields__ if name != "event"}
    return Letter(**told, event=event)


def _event(body: bytes, *, documents: bool) -> dict[str, Any]:
    """What it holds; what cannot be read, as bytes only for those who may see documents."""
    try:
        event = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        told: dict[str, Any] = {"unreadable_bytes": len(body)}
        return told | ({"base64": base64.b64encode(body).decode()} if documents else {})
    changes = event.get("changes", ())
    for change in changes if not documents and isinstance(changes, list) else ():
        if isinstance(change, dict):
            change.pop("document", None)
    return event
