"""The HTTP APIs as the command sees them: problem documents are errors again, the other services are found through the first."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from heliograph.core import errors
from heliograph.core.errors import (
    Fault,
    HeliographError,
    Incompatible,
    Invalid,
    InvalidRequest,
    MergeConflict,
    PatchFailed,
    StaleBase,
    Unavailable,
)
from heliograph.core.records import Cursor
from heliograph.runtime.retry import delay

ANSWER_S: Final = 15.0
CONNECT_S: Final = 5.0
ATTEMPTS: Final = 3
PATIENCE_S: Final = 5.0
"""A person waits: no server is believed that asks for more before the next attempt."""
PAGE: Final = 500
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """For how long, and for what share of the connected instances, a publish is held."""

    share: float
    seconds: float

    @property
    def headers(self) -> dict[str, str]:
        return {"Prefer": f"wait={self.seconds:g}, share={self.share:g}"}


class Endpoints(msgspec.Struct, frozen=True):
    bundles: str
    ledger: str


class Api:
    """``url`` is the registry's. Whatever does not succeed is a HeliographError: what the problem document says, or Unavailable."""

    def __init__(self, url: str, token: str, ca_file: Path | None = None) -> None:
        self.url = url
        self._ca_file = ca_file
        self._token = token

    def __repr__(self) -> str:
        return f"<Api {self.url}>"

    @cached_property
    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        return httpx.Client(headers=headers, timeout=timeout, trust_env=False, verify=self._tls)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Raises InvalidRequest when the CA file cannot be used."""
        from heliograph.client._tls import trusting  # noqa: PLC0415  # the SDK's other parts take longer to load than most commands to run

        return trusting(self._ca_file)

    def close(self) -> None:
        self.http.close()

    @cached_property
    def endpoints(self) -> Endpoints:
        """A token that was given for an https address goes to no other kind."""
        found = msgspec.json.decode(self.call("GET", "/v1/endpoints").content, type=Endpoints)
        if urlsplit(self.url).scheme == "https" and any(
            urlsplit(each).scheme != "https" for each in (found.bundles, found.ledger)
        ):
            raise InvalidRequest(
                "the server names addresses without TLS although its API has it; set its public addresses to https"
            )
        return found

    def call(self, method: str, path: str, *, base: str = "", wait_s: float = 0, **request: Any) -> httpx.Response:
        """A read is asked again when nobody answers: the service may be being replaced."""
        if method != "GET":
            return self._call(method, path, base=base, wait_s=wait_s, **request)
        return _again(lambda: self._call(method, path, base=base, wait_s=wait_s, **request))

    def _call(self, method: str, path: str, *, base: str, wait_s: float, **request: Any) -> httpx.Response:
        address = base or self.url
        timeout = httpx.Timeout(ANSWER_S + wait_s, connect=CONNECT_S)
        try:
            answer = self.http.request(method, address + path, timeout=timeout, **request)
        except httpx.InvalidURL:
            raise InvalidRequest(f"{address!r} is not an address; write it as in http://127.0.0.1:7070") from None
        except httpx.UnsupportedProtocol:
            raise InvalidRequest(f"{address!r} is not an address; write it as in http://127.0.0.1:7070") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"{address} does not answer: {_distrust(error) or error or type(error).__name__}") from None
        if answer.is_error:
            raise refusal(answer)
        return answer

    def get(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, params=_given(params)).json()

    def ledger(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, base=self.endpoints.ledger, params=_given(params)).json()

    def bundle(self, path: str, view: tuple[str, ...], have: Cursor | None = None, wait_s: float = 0) -> bytes:
        """A snapshot of the view; with ``have`` the frame that leads on from there, held until there is one or the seconds are over."""
        params: dict[str, Any] = {"view": list(view)}
        if have:
            params |= {"have": str(have), "wait": wait_s}
        return self.call("GET", path, base=self.endpoints.bundles, params=params, wait_s=wait_s).content

    def readiness(self, base: str) -> dict[str, Any]:
        """What a service says of itself, ready or not. Asked without the token, which is not for every address."""
        try:
            return dict(httpx.get(f"{base}/readyz", timeout=CONNECT_S, trust_env=False, verify=self._tls).json())
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError) as error:
            reason = _distrust(error) or type(error).__name__
            raise Unavailable(f"{base} does not answer as a service does ({reason})") from None

    def write(
        self, method: str, path: str, *, wait: Wait | None = None, headers: dict[str, str] | None = None, **request: Any
    ) -> Any:
        """A change, with an idempotency key: sent again after a lost answer it cannot happen twice."""
        told = {"Idempotency-Key": secrets.token_hex(16), **(wait.headers if wait else {}), **(headers or {})}
        wait_s = wait.seconds if wait else 0
        return _again(lambda: self.call(method, path, headers=told, wait_s=wait_s, **request).json())

    def pages(self, path: str, *, of_ledger: bool = False, limit: int | None = None, **params: Any) -> Iterator[Any]:
        """The items of a list, page by page."""
        get = self.ledger if of_ledger else self.get
        cursor, left = None, limit
        while left is None or left > 0:
            page = get(path, cursor=cursor, limit=PAGE if left is None else min(PAGE, left), **params)
            yield from page["items"]
            left = None if left is None else left - len(page["items"])
            cursor = page["next"]
            if not cursor:
                return


def _again(call: Callable[[], T]) -> T:
    """What can be repeated without harm: with a growing pause, or the one that the server asks for, and a bounded number of times."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return call()
        except Unavailable as error:
            time.sleep(min(PATIENCE_S, (error.retry_after or 0) + delay(attempt, base_s=0.2)))
    return call()


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    detail: str = ""
    faults: tuple[Fault, ...] = ()
    head: str = ""
    number: int = 0
    changed: list[str] = []
    overlap: list[str] = []
    differences: list[dict[str, Any]] = []
    operation: int | None = None
    pointer: str = ""
    conflicts: list[dict[str, Any]] = []
    conflict_count: int = 0
    compatibility: dict[str, Any] = {}


def refusal(answer: httpx.Response) -> HeliographError:
    """What an answer that is no success means."""
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem()
    detail = problem.detail or f"{answer.request.url.host} answered {answer.status_code}, and not in Heliograph's words"
    kind = errors.by_code(problem.code)
    if issubclass(kind, Unavailable) or (kind is HeliographError and answer.status_code >= httpx.codes.BAD_GATEWAY):
        asked = answer.headers.get("Retry-After", "")
        return (kind if issubclass(kind, Unavailable) else Unavailable)(
            detail, retry_after=float(asked) if asked.isdecimal() else None
        )
    if issubclass(kind, StaleBase):
        more: dict[str, object] = {"changed": problem.changed, "overlap": problem.overlap, "differences": problem.differences}
        return StaleBase(detail, head=problem.head, number=problem.number, more=more)
    if issubclass(kind, PatchFailed):
        return PatchFailed(detail, operation=problem.operation, pointer=problem.pointer)
    if issubclass(kind, MergeConflict):
        return MergeConflict(detail, more={"conflicts": problem.conflicts, "conflict_count": problem.conflict_count})
    if issubclass(kind, Incompatible):
        return Incompatible(detail, more={"compatibility": problem.compatibility})
    return kind(detail, problem.faults) if issubclass(kind, Invalid) else kind(detail)


def _distrust(error: Exception) -> str:
    from heliograph.client._tls import distrust  # noqa: PLC0415

    return distrust(error)


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
