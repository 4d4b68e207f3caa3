"""The registry as sync sees it: heads, states, history, objects, over its internal API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import msgspec

from heliograph.core.delta import Entry
from heliograph.core.errors import Corrupt, NotFound, Unavailable
from heliograph.core.records import Signed
from heliograph.runtime.unanswered import UNANSWERED

TIMEOUT_S = 30.0


class CurrentHead(msgspec.Struct, frozen=True):
    namespace: str
    environment: str
    head: Signed
    version: Signed


class _Page(msgspec.Struct, frozen=True):
    items: tuple[CurrentHead, ...]
    next: str | None = None


class _Ids(msgspec.Struct, frozen=True):
    items: tuple[str, ...]
    next: int | str | None = None


class _Statements(msgspec.Struct, frozen=True):
    head: Signed
    version: Signed
    recoveries: tuple[Signed, ...] = ()


class _Config(msgspec.Struct, frozen=True):
    name: str
    leaf: str
    document: str


class _Problem(msgspec.Struct, frozen=True):
    detail: str = ""


class State(msgspec.Struct, frozen=True):
    """``ids``: of the versions before the head's. ``recoveries``: the recover versions among them."""

    head: Signed
    version: Signed
    entries: dict[str, Entry]
    ids: list[str]
    recoveries: tuple[Signed, ...] = ()


class Registry:
    def __init__(self, url: str, service_token: str) -> None:
        headers = {"Authorization": f"Bearer {service_token}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S)

    async def heads(self) -> AsyncIterator[CurrentHead]:
        """Every environment's. Raises Unavailable."""
        cursor: str | None = ""
        while cursor is not None:
            page = msgspec.json.decode(await self._get("/v1/internal/heads", cursor=cursor), type=_Page)
            for each in page.items:
                yield each
            cursor = page.next

    async def state(self, namespace: str, environment: str) -> State:
        """The head's whole content with the ids of all versions before it. Raises Unavailable, NotFound, Corrupt."""
        path = f"/v1/internal/{namespace}/{environment}"
        lines = (await self._get(f"{path}/state")).splitlines()
        try:
            statements = msgspec.json.decode(lines[0], type=_Statements)
            entries = await asyncio.to_thread(_read_configs, lines[1:])
        except (IndexError, msgspec.DecodeError):
            raise Corrupt(f"the registry's state of {namespace}/{environment} cannot be read") from None
        number = msgspec.json.decode(statements.version.payload)["number"]
        ids = await self._ids(path, number - 1)
        return State(statements.head, statements.version, entries, ids, statements.recoveries)

    async def document(self, namespace: str, digest: str) -> bytes:
        return await self._get(f"/v1/internal/objects/{namespace}/{digest}")

    async def close(self) -> None:
        await self._http.aclose()

    async def _ids(self, path: str, last: int) -> list[str]:
        ids: list[str] = []
        while len(ids) < last:
            page = msgspec.json.decode(await self._get(f"{path}/version-ids", after=str(len(ids)), limit="10000"), type=_Ids)
            if not page.items:
                raise Corrupt(f"{path}: the registry has {len(ids)} of {last} version ids")
            ids += page.items
        return ids[:last]

    async def _get(self, path: str, **query: str) -> bytes:
        try:
            answer = await self._http.get(path, params={key: value for key, value in query.items() if value})
        except UNANSWERED as error:
            raise Unavailable(f"the registry is not reachable ({type(error).__name__})", retry_after=1) from None
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(_detail(answer) or f"the registry has no {path}")
        if answer.status_code != httpx.codes.OK:
            raise Unavailable(f"the registry answered {answer.status_code}", retry_after=1)
        return answer.content


def _detail(answer: httpx.Response) -> str:
    """The registry's own words, of a problem document."""
    try:
        return msgspec.json.decode(answer.content, type=_Problem).detail
    except msgspec.DecodeError:
        return ""


def _read_configs(lines: list[bytes]) -> dict[str, Entry]:
    read = msgspec.json.Decoder(_Config).decode
    return {config.name: Entry(config.leaf, config.document.encode()) for config in map(read, filter(None, lines))}
