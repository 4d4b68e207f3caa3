"""Where the services are, and whose signatures count: `GET /v1/endpoints` and `GET /v1/trust`, both kept beside the disk copy.

The trust root is verified against the anchor that came with the token, never against anything that a server says. A root that does not
match ends the client: whoever answers there is not the server that gave the token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

from heliograph.client._codes import error_of
from heliograph.client._disk import DiskWriter, kept, read_copy
from heliograph.client._tls import distrust
from heliograph.core import dsse
from heliograph.core.digest import Digest
from heliograph.core.errors import BadSignature, HeliographError, InvalidRequest, Unavailable, UntrustedRoot
from heliograph.core.records import ROOT_TYPE, Signed
from heliograph.core.trust import Trust

BROKEN: Final = (httpx.HTTPError, AttributeError)
"""What a request that gets no answer raises; the second from anyio, of a socket that was reset in the moment it opened."""
MAX_ANSWER_BYTES: Final = 256 * 1024
PASSING: Final = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
"""Refusals of this moment, beside those of 500 and more: the same request may be taken later."""
_log = logging.getLogger("heliograph")


class Endpoints(msgspec.Struct, frozen=True):
    """Base addresses, ``stream`` with its path. Everything is https/wss where the API is."""

    api: str
    stream: str
    bundles: str
    ledger: str = ""


class Problem(msgspec.Struct, frozen=True):
    """What of an RFC 9457 problem document a client reads."""

    code: str = ""
    detail: str = ""


class Discovery:
    def __init__(self, http: httpx.AsyncClient, url: str, anchor: Digest, *, folder: Path | None, disk: DiskWriter) -> None:
        self.endpoints: Endpoints | None = None
        self.trust: Trust | None = None
        self._roots: list[Signed] = []  # from the anchored one to the present one
        self._http = http
        self._url = url.rstrip("/")
        self._anchor = anchor
        self._folder = folder
        self._disk = disk

    def recall(self) -> None:
        """What the disk knows; blocks. Damaged or foreign files count as none."""
        self._recall("endpoints", self.use_endpoints)
        self._recall("roots", self._recall_roots)

    async def refresh(self) -> None:
        """Asks the server. Raises Unavailable, or UntrustedRoot and other errors that trying again cannot heal."""
        endpoints, root = await self._get("/v1/endpoints"), await self._get("/v1/trust")
        try:
            self.use_endpoints(endpoints)
        except msgspec.DecodeError:
            raise Unavailable(f"{self._url} does not answer as a Heliograph server; is the address right?") from None
        self._follow_root(root)
        self._disk.mark("endpoints", lambda: endpoints)
        self._disk.mark("roots", self._kept_roots)

    def _follow_root(self, body: bytes) -> None:
        """The same root, its successor, or one that the anchor itself vouches for; never an older one."""
        signed = _root_in(body)
        if self.trust is None:
            self.trust, self._roots = Trust.from_root(signed, self._anchor), [signed]
            return
        if signed.payload == self.trust.signed.payload:
            return
        try:
            self.trust = self.trust.next(signed)
            self._roots.append(signed)
        except UntrustedRoot:
            found = Trust.from_root(signed, self._anchor)
            if found.root.number <= self.trust.root.number:
                raise
            self.trust, self._roots = found, [signed]

    def _kept_roots(self) -> bytes:
        return b"\n".join(msgspec.json.encode(dsse.to_envelope(signed, ROOT_TYPE)) for signed in self._roots)

    def _recall_roots(self, body: bytes) -> None:
        for line in body.splitlines():
            self._follow_root(line)

    def use_endpoints(self, body: bytes) -> None:
        """A token never leaves TLS once it was given an https address."""
        found = msgspec.json.decode(body, type=Endpoints)
        secure = urlsplit(self._url).scheme == "https"
        if secure and any(urlsplit(one).scheme not in {"https", "wss"} for one in (found.stream, found.bundles)):
            raise InvalidRequest(
                "the server's stream or bundles have no TLS although its API has; set their public addresses to wss and https"
            )
        self.endpoints = found

    def _recall(self, name: str, use: Callable[[bytes], None]) -> None:
        for path in kept(self._folder, name) if self._folder else ():
            try:
                if (body := read_copy(path)) is not None:
                    use(body)
                    return
            except (OSError, HeliographError, msgspec.DecodeError) as error:
                _log.warning("the copy %s cannot be used: %s", path, error)

    async def _get(self, path: str) -> bytes:
        try:
            answer = await self._http.get(self._url + path)
        except BROKEN as error:
            raise Unavailable(f"cannot reach {self._url}: {distrust(error) or type(error).__name__}") from None
        if answer.status_code != HTTPStatus.OK or len(answer.content) > MAX_ANSWER_BYTES:
            raise Unavailable(f"{self._url}{path} answered HTTP {answer.status_code}")
        return answer.content


def _root_in(body: bytes) -> Signed:
    try:
        kind, signed = dsse.from_envelope(msgspec.json.decode(body, type=dict[str, object]))
    except (msgspec.DecodeError, BadSignature):
        raise UntrustedRoot("the server does not show a trust root that can be read") from None
    if kind != ROOT_TYPE:
        raise UntrustedRoot(f"the server shows something else ({kind}) as its trust root")
    return signed


def problem_of(answer: httpx.Response) -> HeliographError:
    """What an HTTP answer that is no success means; its own code where it is the server's. Unavailable: try again."""
    retry_after = answer.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isdigit() else None
    problem = _problem_in(answer)
    if _is_passing(answer.status_code) or not problem.code:
        return Unavailable(f"the server answered HTTP {answer.status_code} {problem.detail}".rstrip(), retry_after=seconds)
    return error_of(problem.code, problem.detail)


def is_final(answer: httpx.Response) -> bool:
    """The server's own word that the same request will never be taken. A box in between says 404 and 405 as well, but in no problem document."""
    return answer.is_client_error and not _is_passing(answer.status_code) and bool(_problem_in(answer).code)


def _is_passing(status: int) -> bool:
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in PASSING


def _problem_in(answer: httpx.Response) -> Problem:
    if not answer.headers.get("Content-Type", "").startswith("application/problem+json"):
        return Problem()
    try:
        return msgspec.json.decode(answer.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Problem()
