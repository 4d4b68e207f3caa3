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

from heliograph.client._answers import ask
from heliograph.client._disk import DiskWriter, kept, read_copy
from heliograph.core import dsse
from heliograph.core.digest import Digest
from heliograph.core.errors import BadSignature, HeliographError, InvalidRequest, Unavailable, UntrustedRoot
from heliograph.core.records import ROOT_TYPE, Signed
from heliograph.core.trust import Trust

ANSWER_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 256 * 1024
_log = logging.getLogger("heliograph")


class Endpoints(msgspec.Struct, frozen=True):
    """Base addresses, ``stream`` with its path. Everything is https/wss where the API is."""

    api: str
    stream: str
    bundles: str
    ledger: str = ""


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
            answer = await ask(self._http, "GET", self._url + path, within_s=ANSWER_S, at_most=MAX_ANSWER_BYTES)
        except Unavailable as error:
            raise Unavailable(f"cannot reach {self._url}: {error}") from None
        if answer.status != HTTPStatus.OK:
            raise Unavailable(f"{self._url}{path} answered HTTP {answer.status}")
        return answer.body


def _root_in(body: bytes) -> Signed:
    try:
        kind, signed = dsse.from_envelope(msgspec.json.decode(body, type=dict[str, object]))
    except (msgspec.DecodeError, BadSignature):
        raise UntrustedRoot("the server does not show a trust root that can be read") from None
    if kind != ROOT_TYPE:
        raise UntrustedRoot(f"the server shows something else ({kind}) as its trust root")
    return signed
