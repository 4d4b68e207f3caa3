"""The demo's calls to the API."""

from __future__ import annotations

from typing import Any

import httpx

from heliograph.core.errors import HeliographError, NotFound, Unavailable
from heliograph.demo.sample import CONFIG, CONFIGS, ENVIRONMENT, ENVIRONMENTS, NAMESPACE

PATH = f"/v1/namespaces/{NAMESPACE}/environments"
CREATED, CONFLICT = httpx.codes.CREATED, httpx.codes.CONFLICT


class Shop:
    """`http` asks the registry, `ledger` the ledger."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=40, trust_env=False)
        self._ledger = ""

    async def close(self) -> None:
        await self.http.aclose()

    async def seed(self) -> None:
        """What is there already stays as it is."""
        self._ledger = (await self.http.get("/v1/endpoints")).json()["ledger"]
        await self._create("/v1/namespaces", NAMESPACE)
        for name in ENVIRONMENTS:
            await self._create(PATH, name)
            if (await self.head(name))["number"] == 1:
                body = {"changes": CONFIGS, "message": "the first three configs"}
                _good(await self.http.post(f"{PATH}/{name}/versions", json=body))

    async def client_token(self) -> str:
        body = {
            "kind": "client",
            "name": "demo clients",
            "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}],
            "expires_in_s": 86400,
        }
        return str(_good(await self.http.post("/v1/tokens", json=body)).json()["token"])

    async def head(self, environment: str = ENVIRONMENT) -> dict[str, Any]:
        return dict(_good(await self.http.get(f"/v1/heads/{NAMESPACE}/{environment}")).json())

    async def config(self) -> dict[str, Any]:
        return dict(_good(await self.http.get(f"{PATH}/{ENVIRONMENT}/configs/{CONFIG}")).json())

    async def put(self, document: Any, *, wait_s: float = 0) -> httpx.Response:
        """Whatever the answer is: a refusal is part of the story."""
        headers = {"Prefer": f"wait={wait_s:g}"} if wait_s else {}
        return await self.http.put(f"{PATH}/{ENVIRONMENT}/configs/{CONFIG}?share=1", json=document, headers=headers)

    async def roll_back(self, number: int, *, wait_s: float) -> dict[str, Any]:
        headers = {"Prefer": f"wait={wait_s:g}"}
        return dict(
            _good(await self.http.post(f"{PATH}/{ENVIRONMENT}/rollback?share=1", json={"to": number}, headers=headers)).json()
        )

    async def propagation(self, number: int) -> dict[str, Any] | None:
        try:
            return dict(_good(await self.http.get(f"{self._ledger}/v1/propagations/{NAMESPACE}/{ENVIRONMENT}/{number}")).json())
        except NotFound:
            return None

    async def receipts(self, number: int) -> list[dict[str, Any]]:
        path = f"{self._ledger}/v1/propagations/{NAMESPACE}/{ENVIRONMENT}/{number}/receipts"
        return list(_good(await self.http.get(path)).json()["items"])

    async def instances(self) -> list[dict[str, Any]]:
        found = _good(await self.http.get(f"{self._ledger}/v1/instances/{NAMESPACE}/{ENVIRONMENT}")).json()["items"]
        return [each for each in found if each["connected"]]

    async def _create(self, path: str, name: str) -> None:
        answer = await self.http.post(path, json={"name": name})
        if answer.status_code not in (CREATED, CONFLICT):
            _good(answer)


def _good(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    detail = answer.json().get("detail", "") if "json" in answer.headers.get("content-type", "") else ""
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise NotFound(detail)
    if answer.is_server_error:
        raise Unavailable(detail or f"the service answered {answer.status_code}")
    raise HeliographError(detail or f"the service answered {answer.status_code}")
