"""Asks the ledger how far a version has come."""

from __future__ import annotations

from typing import Any, Final

import httpx
import msgspec

from heliograph.services.registry.answers import Waited
from heliograph.services.registry.heads import Place

MARGIN_S: Final = 2.0
"""What a held request may take beyond its own timeout."""


class Propagations:
    """``client``: with the ledger's base URL and a service token in its headers."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    @classmethod
    def at(cls, url: str, token: str) -> Propagations:
        return cls(httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}))

    async def close(self) -> None:
        await self.client.aclose()

    async def wait(self, place: Place, number: int, *, share: float, seconds: float) -> tuple[Waited, dict[str, Any] | None]:
        """Held until the share has applied the version, or cannot any more, or the seconds are over. Never raises: a ledger that fails is told in the
        answer, for the version is committed whatever happens here."""
        try:
            story = await self._ask(place, number, share, seconds)
            reached = float(story["share"]) >= share or not story["instances"]
        except httpx.TimeoutException:
            return _unknown(share, seconds, "the ledger did not answer in time"), None
        except httpx.HTTPError as error:
            return _unknown(share, seconds, f"the ledger is not reachable ({type(error).__name__})"), None
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            return _unknown(share, seconds, "the ledger's answer is not understood"), None
        return Waited(share=share, seconds=seconds, reached=reached), story

    async def _ask(self, place: Place, number: int, share: float, seconds: float) -> dict[str, Any]:
        path = f"/v1/internal/propagations/{place.namespace}/{place.environment}/{number}"
        asked = {"share": share, "timeout": seconds}
        answer = await self.client.get(path, params=asked, timeout=httpx.Timeout(seconds + MARGIN_S, connect=MARGIN_S))
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=dict[str, Any])


def _unknown(share: float, seconds: float, problem: str) -> Waited:
    return Waited(share=share, seconds=seconds, reached=False, problem=problem)
