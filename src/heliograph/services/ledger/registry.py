"""The registry's internal API over HTTP, with the ledger's service token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import msgspec

from heliograph.core.errors import Corrupt, InvalidRequest, Unavailable
from heliograph.runtime.unanswered import UNANSWERED
from heliograph.services.ledger.ports import CurrentHead
from heliograph.services.ledger.report import Report

TIMEOUT_S: Final = 5.0
_TRY_LATER: Final = frozenset({401, 403, 408, 429})  # a token that is being rotated, a registry that is busy


class _HeadsPage(msgspec.Struct, frozen=True):
    items: list[CurrentHead]
    next: str | None = None


class HttpRegistry:
    def __init__(self, client: httpx.AsyncClient) -> None:
        """``client``: with the registry's base URL and the Authorization header."""
        self._client = client

    @classmethod
    def at(cls, url: str, token: str) -> HttpRegistry:
        return cls(httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S))

    async def close(self) -> None:
        await self._client.aclose()

    async def heads(self) -> AsyncIterator[CurrentHead]:
        cursor: str | None = ""
        while cursor is not None:
            answer = await self._send("GET", "/v1/internal/heads", params={"cursor": cursor} if cursor else {})
            try:
                page = msgspec.json.decode(answer.content, type=_HeadsPage)
            except ValueError:
                raise Corrupt("the registry's list of heads is not understood") from None
            for head in page.items:
                yield head
            cursor = page.next

    async def record_closed(self, report: Report, trace: str | None) -> None:
        """Notes that a propagation has closed: all have answered, or the deadline has passed."""
        body = {
            "action": "propagation.closed",
            "namespace": report.namespace,
            "environment": report.environment,
            "detail": _detail(report),
        }
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"propagation.closed:{report.version}"}
        if trace:
            headers["traceparent"] = trace
        await self._send("POST", "/v1/internal/audit", content=msgspec.json.encode(body), headers=headers)

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._client.request(method, path, **options)
        except UNANSWERED as error:
            raise Unavailable(f"the registry is not reachable ({type(error).__name__})") from None
        if answer.status_code >= 500 or answer.status_code in _TRY_LATER:
            raise Unavailable(f"the registry answered {answer.status_code}")
        if answer.status_code >= 400:
            raise InvalidRequest(f"the registry refused with {answer.status_code}")
        return answer


def _detail(report: Report) -> dict[str, Any]:
    """Counts, percentiles and the digest: who said what stays in the ledger, where it can be erased."""
    left_out = ("namespace", "environment", "by", "rejections", "state")
    return {key: value for key, value in msgspec.to_builtins(report).items() if key not in left_out}
