"""Two ways to work on a namespace: the registry's own use cases, called in this process, and REST. A test that speaks to one speaks to both."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import httpx
import msgspec

from heliograph.access.store import TokenStore
from heliograph.core import names
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import HeliographError
from heliograph.core.which import which
from heliograph.eventlog.wake import Bell
from heliograph.keys.live import LiveKeys
from heliograph.keys.local import LocalKeys
from heliograph.runtime.clock import now_us
from heliograph.runtime.postgres import open_pool
from heliograph.runtime.problems import problem
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.app import wire
from heliograph.services.registry.changes import read_many
from heliograph.services.registry.commit import Committed, Order, Unchanged
from heliograph.services.registry.environments import create_environment, create_namespace
from heliograph.services.registry.heads import Place
from heliograph.services.registry.patching import read_patch
from heliograph.services.registry.promotion import read_promotion
from heliograph.services.registry.propagations import Propagations
from heliograph.services.registry.purge import Purging
from heliograph.services.registry.settings import RegistrySettings
from heliograph.services.registry.store import Store
from heliograph.services.registry.validation import Validation
from heliograph.telemetry.metrics import Metrics

from .conftest import Author, good, running

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """``refusal``: a problem's code; empty: it was done."""

    body: Any
    refusal: str = ""

    @property
    def unchanged(self) -> bool:
        return bool(self.body.get("unchanged"))


@dataclass(frozen=True)
class Recorded:
    """A version: what is signed of it, and what is told beside that."""

    id: str
    record: bytes
    configs: int
    labels: list[str]


class Driver(Protocol):
    """Bodies are those of REST."""

    async def begin(self, namespace: str) -> None:
        """Makes a namespace; what follows is about it."""
        ...

    async def create(self, body: Body) -> Said: ...
    async def publish(self, environment: str, body: Body, *, base: str, rebase: bool, key: str) -> Said: ...
    async def patch(self, environment: str, name: str, media_type: str, body: Any) -> Said: ...
    async def promote(self, target: str, body: Body) -> Said: ...
    async def roll_back(self, environment: str, to: int | str) -> Said: ...
    async def label(self, environment: str, name: str, number: int, *, move: bool) -> Said: ...
    async def unlabel(self, environment: str, name: str) -> Said: ...
    async def delete(self, environment: str) -> Said: ...
    async def restore(self, environment: str) -> Said: ...
    async def purge(self, environment: str, name: str, number: int) -> Said: ...
    async def document(self, environment: str, name: str, number: int) -> Said: ...
    async def version(self, environment: str, number: int) -> Recorded: ...
    async def head(self, environment: str) -> tuple[int, str]:
        """Number and id."""
        ...


# --- REST -------------------------------------------------------------------------------------------------------------------------


class OverRest:
    def __init__(self, author: Author) -> None:
        self._author = author
        self._base = ""

    async def begin(self, namespace: str) -> None:
        good(await self._author.ask("POST", "/v1/namespaces", json={"name": namespace}), 201)
        self._base = f"/v1/namespaces/{namespace}"
        self._heads = f"/v1/heads/{namespace}"

    async def create(self, body: Body) -> Said:
        return await self._ask("POST", "/environments", json=body)

    async def publish(self, environment: str, body: Body, *, base: str, rebase: bool, key: str) -> Said:
        headers = {"If-Match": f'"{base}"'} if base else {}
        headers |= {"Prefer": "rebase"} if rebase else {}
        headers |= {"Idempotency-Key": key} if key else {}
        return await self._ask("POST", f"/environments/{environment}/versions", json=body, headers=headers)

    async def patch(self, environment: str, name: str, media_type: str, body: Any) -> Said:
        headers = {"Content-Type": media_type}
        path = f"/environments/{environment}/configs/{name}"
        return await self._ask("PATCH", path, content=json.dumps(body).encode(), headers=headers)

    async def promote(self, target: str, body: Body) -> Said:
        return await self._ask("POST", f"/environments/{target}/promote", json=body)

    async def roll_back(self, environment: str, to: int | str) -> Said:
        return await self._ask("POST", f"/environments/{environment}/rollback", json={"to": to})

    async def label(self, environment: str, name: str, number: int, *, move: bool) -> Said:
        asked = {"version": number, "move": move}
        return await self._ask("PUT", f"/environments/{environment}/labels/{name}", json=asked)

    async def unlabel(self, environment: str, name: str) -> Said:
        return await self._ask("DELETE", f"/environments/{environment}/labels/{name}")

    async def delete(self, environment: str) -> Said:
        return await self._ask("DELETE", f"/environments/{environment}")

    async def restore(self, environment: str) -> Said:
        return await self._ask("POST", f"/environments/{environment}/restore")

    async def purge(self, environment: str, name: str, number: int) -> Said:
        asked = {"environment": environment, "config": name, "versions": [number], "reason": "r", "order": "o"}
        return await self._ask("POST", "/purges", json=asked)

    async def document(self, environment: str, name: str, number: int) -> Said:
        return await self._ask("GET", f"/environments/{environment}/configs/{name}", params={"at": number})

    async def version(self, environment: str, number: int) -> Recorded:
        told = good(await self._author.get(f"{self._base}/environments/{environment}/versions/{number}"))
        record = base64.b64decode(told["envelope"]["payload"])
        return Recorded(told["version"], record, told["configs"], told.get("labels", []))

    async def head(self, environment: str) -> tuple[int, str]:
        told = good(await self._author.get(f"{self._heads}/{environment}"))
        return told["number"], told["version"]

    async def _ask(self, method: str, path: str, **more: Any) -> Said:
        answer = await self._author.ask(method, self._base + path, **more)
        body = answer.json() if answer.content else {}
        assert answer.status_code < 500, answer.text[:2000]
        return Said(body) if answer.is_success else Said(body, body["code"])


@asynccontextmanager
async def over_rest(settings: RegistrySettings) -> AsyncIterator[OverRest]:
    async with running(settings) as registry, httpx.AsyncClient(base_url=registry.url, timeout=60) as http:
        yield OverRest(Author(http, registry.token()))


# --- in this process ----------------------------------------------------------------------------------------------------------------


class InProcess:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._namespace = names.namespace("nothing")

    async def begin(self, namespace: str) -> None:
        self._namespace = names.namespace(namespace)
        await create_namespace(self._context.store, self._namespace, "test")

    async def create(self, body: Body) -> Said:
        order = self._order(body["name"])
        if "from" not in body:
            return await _said(create_environment(self._context.store, self._context.commits, order))
        source, number = self._place(body["from"]["environment"]), body["from"]["version"]
        return await _said(self._context.branch(order, source, number))

    async def publish(self, environment: str, body: Body, *, base: str, rebase: bool, key: str) -> Said:
        text = json.dumps(body).encode()
        changes, _ = read_many(text)
        digest = hashlib.sha256(text).digest()
        order = self._order(environment, base=base, rebase=rebase, key=key, request=digest)
        return await _said(self._context.publish(order, changes))

    async def patch(self, environment: str, name: str, media_type: str, body: Any) -> Said:
        patch = read_patch(media_type, json.dumps(body).encode())
        return await _said(self._context.patching(self._order(environment), names.config(name), patch))

    async def promote(self, target: str, body: Body) -> Said:
        asked = read_promotion(json.dumps(body).encode())
        at = None if asked.at is None else which(str(asked.at))
        return await _said(self._context.promote(self._order(target), asked, at, lambda _: True))

    async def roll_back(self, environment: str, to: int | str) -> Said:
        return await _said(self._context.rollback(self._order(environment), which(str(to))))

    async def label(self, environment: str, name: str, number: int, *, move: bool) -> Said:
        asked = partial(self._context.labels.set, self._place(environment), names.label(name), number)
        return await _said(asked(expected=None, move=move, by="test"))

    async def unlabel(self, environment: str, name: str) -> Said:
        return await _said(self._context.labels.remove(self._place(environment), names.label(name), expected=None, by="test"))

    async def delete(self, environment: str) -> Said:
        place = self._place(environment)
        return await _said(self._context.deletion.environment(place, retain_s=3600, by="test", trace=None))

    async def restore(self, environment: str) -> Said:
        return await _said(self._context.deletion.restore_environment(self._place(environment), by="test"))

    async def purge(self, environment: str, name: str, number: int) -> Said:
        async def work() -> Any:
            place = self._place(environment)
            digests = await self._context.purge.documents_of(place, names.config(name), [number])
            done = await self._context.purge(self._namespace, digests, Purging("test", "r", "o", None))
            return {"digests": [spell(each) for each in done.row.digests] if done.row else []}

        return await _said(work())

    async def document(self, environment: str, name: str, number: int) -> Said:
        async def work() -> Any:
            place = self._place(environment)
            await self._context.store.head(place)
            row = await self._context.store.version(place, number)
            found = await self._context.reading.config(place, row.root, names.config(name), "document")
            return json.loads(found.text)

        return await _said(work())

    async def version(self, environment: str, number: int) -> Recorded:
        place = self._place(environment)
        row = await self._context.store.version(place, number)
        labels = await self._context.lookback.labels_of(place, [number])
        return Recorded(spell(row.id), row.record.payload, row.configs, labels.get(number, []))

    async def head(self, environment: str) -> tuple[int, str]:
        head = await self._context.store.head(self._place(environment))
        return head.number, head.id

    def _place(self, environment: str) -> Place:
        return Place(self._namespace, names.environment(environment))

    def _order(self, environment: str, *, base: str = "", rebase: bool = False, key: str = "", request: bytes = b"") -> Order:
        return Order(
            self._place(environment),
            "test",
            "test",
            now_us(),
            if_match=unspell(base) if base else None,
            rebase=rebase,
            key=key or None,
            request=request,
        )


async def _said(work: Awaitable[Any]) -> Said:
    try:
        done = await work
    except HeliographError as error:
        told = problem(error)
        assert told["status"] < 500, told
        return Said(msgspec.to_builtins(told), error.code)
    match done:
        case Committed():
            return Said(json.loads(done.body))
        case Unchanged():
            return Said({"number": done.head.number, "version": done.head.id, "unchanged": True})
        case _:
            return Said(done)


@asynccontextmanager
async def in_process(settings: RegistrySettings) -> AsyncIterator[InProcess]:
    """The use cases wired as the process wires them, without its HTTP and without what it does in the background."""
    metrics, url = Metrics(), settings.database_url.get_secret_value()
    async with AsyncExitStack() as opened:
        pool = await open_pool(url, "test", size=settings.database_pool)
        opened.push_async_callback(pool.close)
        store = Store(pool)
        make = partial(LocalKeys.open_or_create, settings.data_dir / "keys", history_exists=False, now_us=now_us())
        keys = LiveKeys(settings.data_dir / "keys", await asyncio.to_thread(make))
        validation = Validation(processes=1, limit_s=settings.validation_s)
        opened.push_async_callback(validation.close)
        await validation.open()
        propagations = Propagations.at(settings.url_of("", settings.ledger_port), "")
        opened.push_async_callback(propagations.close)
        tokens = TokenStore(pool, keys.now.anchor)
        _, context = wire(settings, pool, store, keys, tokens, validation, propagations, Bell(pool), metrics)
        opened.push_async_callback(context.evolution.close)
        yield InProcess(context)
