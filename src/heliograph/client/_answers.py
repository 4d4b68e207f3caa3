"""One HTTP request and its whole answer: within a time and a size, whatever a server or a box in between sends; and whose word an answer is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httpx
import msgspec

from heliograph.client._codes import error_of
from heliograph.client._tls import distrust
from heliograph.core.errors import HeliographError, Unavailable

BROKEN: Final = (httpx.HTTPError, AttributeError)
"""What a request that gets no answer raises; the second from anyio, of a socket that was reset in the moment it opened."""
PASSING: Final = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
"""Refusals of this moment, beside those of 500 and more: the same request may be taken later."""


class Problem(msgspec.Struct, frozen=True):
    """What of an RFC 9457 problem document a client reads."""

    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


async def ask(http: httpx.AsyncClient, method: str, url: str, *, within_s: float, at_most: int, **request: Any) -> Answer:
    """Raises Unavailable for an answer that does not come, does not end ``within_s``, or has more than ``at_most`` bytes.

    The library's own timeouts are for each read: a byte now and then would do.
    """
    try:
        async with asyncio.timeout(within_s), http.stream(method, url, **request) as answer:
            return Answer(answer.status_code, answer.headers, await _whole(answer, at_most))
    except TimeoutError:
        raise Unavailable(f"the answer did not end within {within_s:g} s") from None
    except BROKEN as error:
        raise Unavailable(distrust(error) or type(error).__name__) from None


async def _whole(answer: httpx.Response, at_most: int) -> bytes:
    body = bytearray()
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > at_most:
            raise Unavailable(f"the answer has more than {at_most:,} bytes")
    return bytes(body)


def problem_of(answer: Answer) -> HeliographError:
    """What an answer that is no success means; its own code where it is the server's. Unavailable: try again."""
    retry_after = answer.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isdigit() else None
    problem = _problem_in(answer)
    if _is_passing(answer.status) or not problem.code:
        return Unavailable(f"the server answered HTTP {answer.status} {problem.detail}".rstrip(), retry_after=seconds)
    return error_of(problem.code, problem.detail)


def is_final(answer: Answer) -> bool:
    """The server's own word that the same request will never be taken. A box in between says 404 and 405 as well, but in no problem document."""
    return answer.status >= HTTPStatus.BAD_REQUEST and not _is_passing(answer.status) and bool(_problem_in(answer).code)


def _is_passing(status: int) -> bool:
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in PASSING


def _problem_in(answer: Answer) -> Problem:
    if not answer.headers.get("Content-Type", "").startswith("application/problem+json"):
        return Problem()
    try:
        return msgspec.json.decode(answer.body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Problem()
