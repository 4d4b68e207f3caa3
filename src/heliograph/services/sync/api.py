"""Bundles, long poll, events and receipts over HTTP: the same cursors, frames and rules as the stream, for clients that cannot hold a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeAlias

import msgspec
from fastapi import APIRouter, Query, Request, Response

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Authenticator, Principal
from heliograph.core import frames, names
from heliograph.core.errors import Forbidden, Invalid, InvalidRequest, NotReady, TooLarge, Unavailable
from heliograph.core.events import Received
from heliograph.core.records import Cursor
from heliograph.runtime.clock import now_us
from heliograph.runtime.http import Json, bearer_token
from heliograph.runtime.http_server import connection_of
from heliograph.services.sync import replies
from heliograph.services.sync.admission import Admission
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.replies import SUBSCRIPTION, Reply
from heliograph.services.sync.session import Session, Subscriber, received, refuse_nul
from heliograph.services.sync.shortcut import BUNDLES, HEADS, HELD, MAX_WAIT_S, kind_of
from heliograph.services.sync.sse import Events
from heliograph.services.sync.tickets import LIFE_S, Tickets
from heliograph.services.sync.tickets import MAX_LENGTH as MAX_TICKET
from heliograph.telemetry.metrics import Metrics

WhoAsks: TypeAlias = Callable[[Request], Awaitable[Principal]]
Whose: TypeAlias = Callable[[Request, str], Awaitable[Principal]]

MAX_RECEIPTS: Final = 1000
STORE_S: Final = 20.0
AGAIN: Final = "the log takes no receipts now; post them again"


class PolledReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt with the subscription it belongs to."""

    namespace: str
    environment: str
    view: tuple[str, ...] = ("",)
    receipt: frames.Receipt


class PolledReceipts(msgspec.Struct, frozen=True, kw_only=True):
    instance: str
    incarnation: int
    fingerprint: frames.Fingerprint
    receipts: tuple[PolledReceipt, ...]


def make_router(
    hub: Hub,
    outbox: Outbox,
    authenticator: Authenticator,
    admission: Admission,
    metrics: Metrics,
    *,
    events: Events,
    tickets: Tickets,
) -> APIRouter:
    router = APIRouter()

    async def whose(request: Request, token: str) -> Principal:
        if request.client:
            admission.request(request.client.host)
        return await authenticator.principal(token)

    async def principal(request: Request) -> Principal:
        return await whose(request, bearer_token(request))

    _add_reading(router, hub, metrics, principal)
    _add_receipts(router, hub, outbox, principal)
    _add_events(router, events, whose, tickets)
    return router


def _add_reading(router: APIRouter, hub: Hub, metrics: Metrics, principal: WhoAsks) -> None:

    @router.get(HEADS)
    async def head(request: Request, namespace: str, environment: str) -> Response:
        """The signed head as this node has it, as a DSSE envelope."""
        allow(await principal(request), Action.HEAD, namespace, environment)
        found = await hub.find(names.namespace(namespace), names.environment(environment))
        return _response(replies.head(found))

    @router.get(BUNDLES)
    async def bundle(
        request: Request,
        namespace: str,
        environment: str,
        view: Annotated[list[str] | None, Query()] = None,
        have: str | None = None,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
    ) -> Response:
        """A snapshot of a view, with an ETag that stays until something in the view changes.

        ``view`` is a folder (``checkout/``) or a name, repeated for several; without it, everything. With ``have``, the cursor
        ``<epoch>.<number>.<version id>`` of what the client runs on, the answer is the frame that the stream would send from there; ``wait`` holds it
        for so many seconds while there is nothing new.
        """
        allow(await principal(request), Action.HEAD, namespace, environment)
        found = await hub.find(names.namespace(namespace), names.environment(environment))
        wanted = names.view(view if view is not None else [""])
        cursor = None if have is None else _cursor(have)
        metrics.bundle_answers.labels(kind_of(cursor, wait)).inc()
        if cursor is None:
            if (reply := replies.unchanged(found, wanted, request.headers.get("if-none-match", ""))) is None:
                await hub.gathered(found, wanted, None)
                reply = replies.bundle(found, wanted)
            return _response(reply)
        if wait and HELD not in request.scope:
            connection = connection_of(request.scope)
            try:
                await hub.hold(found, cursor, wait, connection.when_gone)
            finally:
                connection.when_gone(None)
        await hub.gathered(found, wanted, cursor)
        return _response(replies.frame(found, wanted, cursor))


def _add_receipts(router: APIRouter, hub: Hub, outbox: Outbox, principal: WhoAsks) -> None:
    @router.post("/v1/receipts")
    async def receipts(request: Request) -> Response:
        """Takes what an instance says of its versions. Answered when it is durable: ``acknowledged`` is the highest ``seq``."""
        asking = await principal(request)
        told = await _read(request)
        if len(told.receipts) > MAX_RECEIPTS:
            raise TooLarge(f"at most {MAX_RECEIPTS} receipts at a time")
        stored = await _stored(hub, asking, told)
        await _keep(outbox, stored)
        return Json({"acknowledged": max((each.receipt.seq for each in told.receipts), default=-1)})


def _add_events(router: APIRouter, events: Events, whose: Whose, tickets: Tickets) -> None:
    @router.get("/v1/events/{namespace}/{environment}")
    async def follow(
        request: Request,
        namespace: str,
        environment: str,
        view: Annotated[list[str] | None, Query()] = None,
        have: str | None = None,
        ticket: Annotated[str | None, Query(max_length=MAX_TICKET)] = None,
        instance: Annotated[str, Query(max_length=100)] = "",
        incarnation: Annotated[int, Query(ge=0)] = 0,
        app: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        """A view as Server-Sent Events, for as long as the client stays: what it lacks at once, then each version as it comes.

        ``event`` is the frame's type (``welcome``, ``snapshot``, ``delta``, ``advance``, ``current``, ``head``, ``drain``, ``error``), ``data`` the
        very frame that the stream would send to a subscription 0, ``id`` the cursor of the state that is whole with this event. ``Last-Event-ID``,
        which an `EventSource` sends by itself, or else ``have`` says what the client runs on. ``ticket``: instead of a token, see ``/v1/tickets``.

        With ``instance`` (and ``incarnation``, ``app``) the client is an instance: it counts among those whom a version is to reach, and answers by
        ``/v1/receipts`` as subscription 0. Without it is anonymous: it is sent everything, and nobody counts it.
        """
        token = tickets.redeem(ticket, now_us()) if ticket is not None else bearer_token(request)
        held = request.headers.get("last-event-id") or have
        wanted = frames.Subscription(
            id=SUBSCRIPTION,
            namespace=namespace,
            environment=environment,
            view=tuple(view if view is not None else [""]),
            have=_cursor(held) if held else None,
        )
        mark = frames.Fingerprint(sdk="sse", sdk_version="1", app=app)
        hello = frames.Hello(instance=instance, incarnation=incarnation, fingerprint=mark, subscriptions=(wanted,))
        return await events.answer(hello, await whose(request, token), token)

    @router.post("/v1/tickets")
    async def ticket(request: Request) -> Response:
        """A ticket that stands for the caller's token for a minute, in the address of ``/v1/events`` or ``/v1/stream``: for a browser, which cannot
        set headers there. It begins connections; one that has begun goes on."""
        token = bearer_token(request)
        await whose(request, token)
        return Json({"ticket": tickets.issue(token, now_us()), "expires_in_s": LIFE_S}, headers={"Cache-Control": "no-store"})


def _response(reply: Reply) -> Response:
    response = Response(reply.body, reply.status)
    response.raw_headers = list(reply.headers)
    return response


def _cursor(text: str) -> Cursor:
    try:
        return Cursor.parse(text)
    except ValueError:
        raise InvalidRequest("what is held is not a cursor: expected <epoch>.<number>.<version id>") from None


async def _read(request: Request) -> PolledReceipts:
    try:
        return msgspec.json.decode(await request.body(), type=PolledReceipts)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid("the body is not JSON") from None


async def _stored(hub: Hub, asking: Principal, told: PolledReceipts) -> list[Received]:
    """What each receipt becomes, or the error of the first that cannot be: then none is stored."""
    if not told.instance or len(told.instance) > 100 or not hub.may_speak_for(told.instance, asking.id, told.incarnation):
        raise Forbidden("the instance id belongs to another token or a newer incarnation")
    refuse_nul(told.instance)
    session = Session(
        connection=f"poll-{told.instance}",
        node=hub.node,
        principal=asking,
        history=hub,
        opened_us=now_us(),
        heartbeat_us=0,
        instance=told.instance,
    )
    out = []
    for each in told.receipts:
        allow(asking, Action.CONNECT, each.namespace, each.environment)
        environment = await hub.find(names.namespace(each.namespace), names.environment(each.environment))
        at = each.receipt.epoch, each.receipt.number
        if at > (environment.cursor.epoch, environment.cursor.number):  # it may have come from a node that is ahead of this one
            raise NotReady(f"version {each.receipt.number} is not here yet", retry_after=1)
        subscriber = Subscriber(
            session, each.receipt.subscription, each.namespace, each.environment, names.view(each.view), environment.cursor
        )
        out.append(received(each.receipt, subscriber, hub, now_us()))
    return out


async def _keep(outbox: Outbox, receipts: list[Received]) -> None:
    """Returns when all are durable."""
    left = len(receipts)
    done = asyncio.Event()

    def durable() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    if not receipts:
        return
    if not all(outbox.put(each, each.instance, durable) for each in receipts):
        outbox.withdraw(durable)
        raise Unavailable(AGAIN, retry_after=1)
    outbox.hurry()
    try:
        async with asyncio.timeout(STORE_S):
            await done.wait()
    except TimeoutError:
        outbox.withdraw(durable)
        raise Unavailable(AGAIN, retry_after=1) from None
