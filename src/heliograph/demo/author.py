"""The demo's own author: seeds the namespace, publishes, and asks the ledger what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from heliograph.cli.api import refusal
from heliograph.core.canonical import Json
from heliograph.core.errors import AlreadyExists, NotFound, Unavailable
from heliograph.core.token import TokenKind
from heliograph.demo.shop import DOCUMENTS, ENVIRONMENTS, NAMESPACE, SCHEMAS
from heliograph.keys.local import write_private

TIMEOUT_S: Final = 40.0
WAIT_S: Final = 10.0


class Author:
    def __init__(self, http: httpx.AsyncClient, ledger: str) -> None:
        self._http = http
        self._ledger = ledger

    # --- making what is missing -----------------------------------------------------------------------------------------------------

    async def seed(self) -> list[str]:
        """Makes what is not there; leaves what is. The names of what it made."""
        made = []
        if await self._made("/v1/namespaces", NAMESPACE):
            made.append(NAMESPACE)
        for environment in ENVIRONMENTS:
            if await self._made(f"/v1/namespaces/{NAMESPACE}/environments", environment):
                made.append(environment)
            await self._fill(environment)
        return made

    async def _made(self, path: str, name: str) -> bool:
        try:
            await self._ask("POST", path, json={"name": name})
        except AlreadyExists:
            return False
        return True

    async def _fill(self, environment: str) -> None:
        missing = [name for name in DOCUMENTS if not await self._has(environment, name)]
        if missing:
            changes = [{"name": name, "document": DOCUMENTS[name], "schema": SCHEMAS[name]} for name in missing]
            body = {"changes": changes, "message": "Seed the demo"}
            await self._ask("POST", f"{_path(environment)}/versions", json=body)

    async def _has(self, environment: str, name: str) -> bool:
        try:
            await self._ask("GET", f"{_path(environment)}/configs/{name}")
        except NotFound:
            return False
        return True

    async def token(self, kind: TokenKind, environment: str, file: Path) -> str:
        """A token for the demo, kept in a file so that the next start uses it again."""
        kept = await asyncio.to_thread(_kept, file)
        if kept and await self._knows(kept):
            return kept
        scope = {"namespace": NAMESPACE, "environment": environment}
        told = await self._ask("POST", "/v1/tokens", json={"kind": kind, "name": f"demo {kind}", "scopes": [scope]})
        await asyncio.to_thread(write_private, file, told["token"].encode() + b"\n")
        return str(told["token"])

    async def _knows(self, token: str) -> bool:
        """Whether it was made by this stack, and is still good."""
        answer = await self._http.get(f"/v1/heads/{NAMESPACE}/{ENVIRONMENTS[-1]}", headers={"Authorization": f"Bearer {token}"})
        return answer.status_code != httpx.codes.UNAUTHORIZED

    # --- changing and looking -------------------------------------------------------------------------------------------------------

    async def document(self, environment: str, name: str) -> dict[str, Json]:
        return dict(await self._ask("GET", f"{_path(environment)}/configs/{name}"))

    async def publish(self, environment: str, name: str, document: Json, message: str) -> dict[str, Any]:
        """The answer to a publish that waits for every instance. Raises SchemaViolation with every fault."""
        return dict(
            await self._ask(
                "PUT",
                f"{_path(environment)}/configs/{name}",
                json=document,
                headers={"Prefer": f"wait={WAIT_S:g}", "Heliograph-Message": quote(message)},
            )
        )

    async def roll_back(self, environment: str, to: int) -> dict[str, Any]:
        return dict(
            await self._ask("POST", f"{_path(environment)}/rollback", json={"to": to}, headers={"Prefer": f"wait={WAIT_S:g}"})
        )

    async def head(self, environment: str) -> dict[str, Any]:
        return dict(await self._ask("GET", f"/v1/heads/{NAMESPACE}/{environment}"))

    async def version(self, environment: str, number: int) -> dict[str, Any]:
        return dict(await self._ask("GET", f"{_path(environment)}/versions/{number}"))

    async def propagation(self, environment: str, number: int) -> dict[str, Any]:
        return dict(await self._ask("GET", f"{self._ledger}/v1/propagations/{NAMESPACE}/{environment}/{number}"))

    async def receipts(self, environment: str, number: int) -> dict[str, dict[str, Any]]:
        """By instance, as many as one page has."""
        page = await self._ask("GET", f"{self._ledger}/v1/propagations/{NAMESPACE}/{environment}/{number}/receipts")
        return {each["instance"]: each for each in page["items"]}

    async def instances(self, environment: str) -> set[str]:
        """As many as one page has."""
        page = await self._ask("GET", f"{self._ledger}/v1/instances/{NAMESPACE}/{environment}")
        return {each["instance"] for each in page["items"]}

    async def _ask(self, method: str, url: str, **request: Any) -> Any:
        """Raises what the problem document says."""
        try:
            answer = await self._http.request(method, url, **request)
        except httpx.HTTPError as error:
            raise Unavailable(f"{method} {url}: {type(error).__name__}") from None
        if answer.is_error:
            raise refusal(answer)
        return msgspec.json.decode(answer.content)


@asynccontextmanager
async def author(url: str, token: str) -> AsyncIterator[Author]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as http:
        try:
            endpoints = (await http.get("/v1/endpoints")).raise_for_status().json()
        except httpx.HTTPError as error:
            raise Unavailable(f"nobody answers at {url}: {type(error).__name__}") from None
        yield Author(http, endpoints["ledger"])


def _kept(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


def _path(environment: str) -> str:
    return f"/v1/namespaces/{NAMESPACE}/environments/{environment}"
