"""The ledger's HTTP API. Everything but the held wait is a read; whoever may ``observe`` an environment may see all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, FastAPI, Path, Query, Request

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Authenticator
from heliograph.core import names
from heliograph.core.errors import InvalidRequest, NotFound
from heliograph.core.frames import State
from heliograph.core.times import to_text
from heliograph.core.which import MAX_LENGTH, instant
from heliograph.runtime.http import Json, bearer_token
from heliograph.services.ledger import views
from heliograph.services.ledger.answers import Address
from heliograph.services.ledger.intake import MAX_ID, MAX_INT
from heliograph.services.ledger.ledger import Ledger
from heliograph.services.ledger.postgres import MAX_SCHEMAS, Tables
from heliograph.services.ledger.settings import LedgerSettings

MAX_WAIT_S: Final = 30.0
MAX_PAGE: Final = 500
MAX_CONFIGS: Final = 100
MAX_NAMES: Final = 5_000

Number = Annotated[int, Path(ge=1, le=MAX_INT)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
AtText = Annotated[str, Query(max_length=MAX_LENGTH, description="a time with its zone, as in 2026-11-01T12:00:00Z")]
CursorText = Annotated[str, Query(max_length=MAX_ID + 20, pattern=r"^[^\x00]*$")]


class Page(msgspec.Struct, frozen=True):
    items: list[Any]
    next: str | None


class PageThen(Page, frozen=True):
    """``at``: the time it is about. ``not_before``: of earlier times the ledger knows nothing."""

    at: str
    not_before: str


@dataclass(frozen=True, slots=True)
class Api:
    ledger: Ledger
    tables: Tables
    authenticator: Authenticator
    settings: LedgerSettings
    now_us: Callable[[], int]

    def add_to(self, app: FastAPI) -> None:
        router = APIRouter(prefix="/v1")
        router.get("/propagations/{namespace}/{environment}/{number}")(self.propagation)
        router.get("/propagations/{namespace}/{environment}/{number}/receipts")(self.receipts)
        router.get("/instances/{namespace}/{environment}")(self.instances)
        router.get("/drift/{namespace}/{environment}")(self.drift)
        router.get("/internal/propagations/{namespace}/{environment}/{number}", include_in_schema=False)(self.wait)
        router.get("/internal/declared/{namespace}/{environment}", include_in_schema=False)(self.declared)
        router.get("/internal/declared-names/{namespace}/{environment}", include_in_schema=False)(self.declared_names)
        app.include_router(router)

    async def propagation(self, request: Request, namespace: str, environment: str, number: Number) -> Json:
        """The story of one version: counts, times of every hop, percentiles, groups. Changes until it is closed."""
        address = await self._permitted(request, Action.OBSERVE, namespace, environment)
        return Json(await self.ledger.propagation(address, number))

    async def receipts(
        self,
        request: Request,
        namespace: str,
        environment: str,
        number: Number,
        state: State | None = None,
        cursor: CursorText = "",
        limit: Limit = 100,
    ) -> Json:
        """What each subscription of each instance answered, in the order of the instances' ids."""
        address = await self._permitted(request, Action.OBSERVE, namespace, environment)
        stored = await self.tables.version(address, number)
        if stored is None:
            raise NotFound(f"the ledger does not know version {number} of {namespace}/{environment}")
        rows = await self.tables.receipts(stored.version, _after(cursor), state, limit)
        return Json(Page([views.receipt(row) for row in rows], _next(rows, limit)))

    async def instances(
        self,
        request: Request,
        namespace: str,
        environment: str,
        cursor: CursorText = "",
        limit: Limit = 100,
        at: AtText = "",
        instance: CursorText = "",
    ) -> Json:
        """Who is subscribed, or was a while ago, with what it runs and what it should run.

        ``at``: who was subscribed then, and what each ran; ``instance``: only that one. ``not_before``: nothing is known of earlier times.
        """
        address = await self._permitted(request, Action.OBSERVE, namespace, environment)
        if at:
            return await self._then(address, instant(at), cursor, instance, limit)
        if instance:
            raise InvalidRequest("instance goes with at: what that instance ran at a time")
        rows = await self.tables.instances(address, cursor, self._before(self.settings.instances_gone_s), limit)
        shown = list(views.instances(rows, await self.tables.head(address)))
        return Json(Page(shown, shown[-1].instance if len(shown) == limit else None))

    async def _then(self, address: Address, at_us: int, cursor: str, instance: str, limit: int) -> Json:
        """Raises NotFound for a time that nothing is known of any more."""
        known_us = await self._known_from_us()
        if at_us < known_us:
            raise NotFound(
                f"not known before {to_text(known_us)}: the ledger began then, or keeps connections and receipts no longer"
            )
        if at_us > self.now_us():
            raise InvalidRequest("what will run then is not known; give a time in the past")
        rows = await self.tables.instances_then(address, at_us, cursor, instance, limit)
        shown = list(views.instances_then(rows))
        return Json(PageThen(shown, shown[-1].instance if len(shown) == limit else None, to_text(at_us), to_text(known_us)))

    async def _known_from_us(self) -> int:
        kept_days = min(self.settings.retention_subscriptions_days, self.settings.retention_receipts_days)
        return max(await self.tables.beginning_us(), self._before(kept_days * 86400.0))

    async def drift(
        self, request: Request, namespace: str, environment: str, cursor: CursorText = "", limit: Limit = 100
    ) -> Json:
        """Subscriptions that have not run the desired version for longer than the grace period, with the cause."""
        address = await self._permitted(request, Action.OBSERVE, namespace, environment)
        head = await self.tables.head(address)
        if head is None:
            return Json(Page([], None))
        rows = await self.tables.behind(
            address,
            head,
            _after(cursor),
            gone_after_us=self._before(self.settings.drift_gone_s),
            patience_us=self._before(self.settings.drift_grace_s),
            limit=limit,
        )
        found = (views.drift(row, head, self.now_us()) for row in rows)
        return Json(Page([each for each in found if each], _next(rows, limit)))

    async def wait(
        self,
        request: Request,
        namespace: str,
        environment: str,
        number: Number,
        share: Annotated[float, Query(gt=0, le=1)] = 1.0,
        timeout: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 2.0,  # noqa: ASYNC109  # the caller's word, part of the API
        version: CursorText = "",
    ) -> Json:
        """Held until the share has the version or cannot any more, or the timeout (seconds) passes; then the story so far.

        ``version``: its id, so that no other one with the same number is told of. A registry of the previous release gives none.
        """
        address = await self._permitted(request, Action.INTERNAL, namespace, environment)
        return Json(await self.ledger.wait(address, number, share, timeout, version))

    async def declared(
        self,
        request: Request,
        namespace: str,
        environment: str,
        config: Annotated[list[str], Query(min_length=1, max_length=MAX_CONFIGS)],
    ) -> Json:
        """The schemas that live instances declare for these configs, each with how many do and some of their ids."""
        address = await self._permitted(request, Action.INTERNAL, namespace, environment)
        rows = await self.tables.declared(address, [names.config(each) for each in config])
        return Json({"items": [views.DeclaredView(**row) for row in rows], "all": len(rows) < MAX_SCHEMAS})

    async def declared_names(self, request: Request, namespace: str, environment: str) -> Json:
        """The configs for which live instances declare a schema, and whether these are all."""
        address = await self._permitted(request, Action.INTERNAL, namespace, environment)
        found = await self.tables.declared_names(address, MAX_NAMES + 1)
        return Json({"items": found[:MAX_NAMES], "all": len(found) <= MAX_NAMES})

    async def _permitted(self, request: Request, action: Action, namespace: str, environment: str) -> Address:
        principal = await self.authenticator.principal(bearer_token(request))
        address = Address(names.namespace(namespace), names.environment(environment))
        allow(principal, action, *address)
        return address

    def _before(self, seconds: float) -> int:
        return self.now_us() - int(seconds * 1e6)


def _after(cursor: str) -> tuple[str, int]:
    """Inverse of `_next`. Raises InvalidRequest."""
    if not cursor:
        return "", -1
    subscription, colon, instance = cursor.partition(":")
    if not colon or not subscription.isascii() or not subscription.isdigit() or len(subscription) > 16:
        raise InvalidRequest("not a cursor that this API gave")
    return instance, int(subscription)


def _next(rows: list[Any], limit: int) -> str | None:
    return f"{rows[-1]['subscription']}:{rows[-1]['instance']}" if len(rows) == limit else None
