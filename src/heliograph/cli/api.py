"""The HTTP APIs as the command sees them: one client, problem documents as errors, the other services found through the first."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import httpx

DEFAULT_URL: Final = "http://127.0.0.1:7070"
CLI_FILE: Final = Path(".heliograph/cli.json")
TIMEOUT_S: Final = 40.0
PAGE: Final = 500


class Problem(Exception):
    """What a service answered instead of what was asked for."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document.get("detail") or document.get("title") or "the service said no")
        self.document = document
        self.code: str = document.get("code", "internal")


@dataclass
class Api:
    """``url`` is the registry's. The token is never shown in a repr."""

    url: str
    token: str = field(repr=False, default="")

    @cached_property
    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.Client(headers=headers, timeout=TIMEOUT_S, trust_env=False)

    @cached_property
    def endpoints(self) -> dict[str, str]:
        return dict(self.call("GET", "/v1/endpoints").json())

    def call(self, method: str, path: str, *, base: str = "", **request: Any) -> httpx.Response:
        """Raises Problem, also when nobody answers."""
        address = (base or self.url).rstrip("/") + path
        try:
            answer = self.http.request(method, address, **request)
        except httpx.HTTPError as error:
            raise Problem(
                {"code": "unavailable", "detail": f"{base or self.url} does not answer: {error or type(error).__name__}"}
            ) from None
        if answer.is_error:
            raise Problem(_document(answer))
        return answer

    def get(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, params=_given(params)).json()

    def ledger(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, base=self.endpoints["ledger"], params=_given(params)).json()

    def write(
        self, method: str, path: str, *, wait: Wait | None = None, headers: dict[str, str] | None = None, **request: Any
    ) -> Any:
        """A change, with an idempotency key: sent again after a lost answer it cannot happen twice."""
        told = {"Idempotency-Key": secrets.token_hex(16), **(wait.headers if wait else {}), **(headers or {})}
        params = wait.params if wait else {}
        for attempt in range(3):
            try:
                return self.call(method, path, headers=told, params=params, **request).json()
            except Problem as problem:
                if problem.code != "unavailable" or attempt == 2:
                    raise
        raise AssertionError

    def pages(self, path: str, *, ledger: bool = False, limit: int | None = None, **params: Any) -> Iterator[Any]:
        """The items of a list, page by page."""
        get = self.ledger if ledger else self.get
        cursor, left = None, limit
        while left is None or left > 0:
            page = get(path, cursor=cursor, limit=min(PAGE, left or PAGE), **params)
            yield from page["items"] if left is None else page["items"][:left]
            left = None if left is None else left - len(page["items"])
            cursor = page["next"]
            if not cursor:
                return


@dataclass(frozen=True)
class Wait:
    """How long, and for what share of the connected instances, a publish is held."""

    share: float
    timeout_s: float

    @property
    def headers(self) -> dict[str, str]:
        return {"Prefer": f"wait={self.timeout_s:g}"}

    @property
    def params(self) -> dict[str, str]:
        return {"share": f"{self.share:g}"}


def from_surroundings(url: str | None, token: str | None, token_file: Path | None) -> Api:
    """What the options say, else the environment, else what `heliograph dev` left in this folder."""
    told = _cli_file() if not url else {}
    url = url or told.get("url") or DEFAULT_URL
    if not token:
        file = token_file or (Path(told["token_file"]) if "token_file" in told else None)
        token = _read(file) if file else ""
    return Api(url, token)


def _cli_file() -> dict[str, str]:
    path = Path(os.environ.get("HELIOGRAPH_DATA_DIR", ".heliograph")) / "cli.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise Problem(
            {"code": "unauthenticated", "detail": f"the token file {path} cannot be read: {error.strerror}"}
        ) from None


def _document(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = {}
    if not isinstance(document, dict) or "code" not in document:
        return {"code": "internal", "detail": f"{answer.request.url.host} answered {answer.status_code}, and not in our words"}
    return document


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
