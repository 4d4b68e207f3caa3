"""The parent as it is asked over HTTP: where its services are, whose signatures count, whose a token is, which versions came before and how
their history began anew."""

from __future__ import annotations

from typing import Final

import httpx
import msgspec
import structlog

from heliograph.core import dsse, feed
from heliograph.core.errors import BadSignature, HeliographError, InvalidRequest, Unavailable, UntrustedRoot
from heliograph.core.records import ROOT_TYPE, Signed
from heliograph.core.token import Token
from heliograph.core.trust import Trust
from heliograph.runtime.unanswered import UNANSWERED
from heliograph.services.sync.edge.copies import Copies
from heliograph.services.sync.environment import MAX_RECOVERIES

log = structlog.get_logger()

TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 256 * 1024
MAX_LEAVES: Final = 1_000_000
ROOTS: Final = "roots"
ENDPOINTS: Final = "endpoints"


class Endpoints(msgspec.Struct, frozen=True):
    """Base addresses, ``stream`` with its path."""

    api: str
    stream: str
    bundles: str
    ledger: str = ""


class Parent:
    """``trust`` is what the anchor in the edge's token vouches for, or what followed from it; None until it was once reached."""

    def __init__(self, url: str, token: Token, copies: Copies) -> None:
        anchor = token.parts.anchor
        assert anchor, "an edge token has one"
        self._anchor = anchor
        self._url = url.rstrip("/")
        self._copies = copies
        self._roots: tuple[Signed, ...] = ()
        self.token = token
        self.trust: Trust | None = None
        self.endpoints: Endpoints | None = None
        self.http = httpx.AsyncClient(timeout=TIMEOUT_S)
        """For questions to its bundles address, once that is known."""

    def recall(self) -> None:
        """What the disk knows; blocks."""
        try:
            for line in (self._copies.read(ROOTS) or b"").splitlines():
                self._follow(msgspec.json.decode(line, type=Signed))
            if body := self._copies.read(ENDPOINTS):
                self._use(msgspec.json.decode(body, type=Endpoints))
        except (HeliographError, msgspec.DecodeError) as error:
            log.warning("edge_copy_unusable", file=ROOTS, reason=type(error).__name__)

    async def refresh(self) -> Endpoints:
        """Asks where things are and for the trust root. Raises Unavailable, UntrustedRoot, InvalidRequest."""
        told, root = await self._public("/v1/endpoints"), await self._public("/v1/trust")
        try:
            endpoints = msgspec.json.decode(told, type=Endpoints)
            kind, signed = dsse.from_envelope(msgspec.json.decode(root, type=dict[str, object]))
        except (msgspec.DecodeError, BadSignature):
            raise Unavailable(f"{self._url} does not answer as a Heliograph; is the address right?") from None
        if kind != ROOT_TYPE:
            raise UntrustedRoot("the parent shows something else as its trust root")
        self._follow(signed)
        self._use(endpoints)
        roots = self._roots
        self._copies.mark(ROOTS, lambda: b"\n".join(map(msgspec.json.encode, roots)))
        self._copies.mark(ENDPOINTS, lambda: msgspec.json.encode(endpoints))
        return endpoints

    async def leaves(self, namespace: str, environment: str, after: int, upto: int) -> list[bytes]:
        """Of the history's tree. They prove nothing by themselves: their root is in the next version's record. Raises Unavailable."""
        if upto - after > MAX_LEAVES:
            raise Unavailable(f"{namespace}/{environment} has more versions than an edge takes")
        path = f"/v1/internal/history/{namespace}/{environment}"
        answer = await self._get(self.http, path, {"after": after, "upto": upto}, self._as_edge())
        try:
            found = feed.split_leaves(answer)
        except ValueError:
            found = []
        if len(found) != upto - after:
            raise Unavailable("the parent does not tell which versions came before")
        return found

    async def recoveries(self, namespace: str, environment: str) -> list[Signed]:
        """The recover versions that it knows, to be verified; none of a parent of an older release, which does not know the question. Raises
        Unavailable."""
        path = f"/v1/internal/recoveries/{namespace}/{environment}"
        answer = await self._get(self.http, path, {}, self._as_edge(), missing=b"[]")
        try:
            return msgspec.json.decode(answer, type=list[Signed])[:MAX_RECOVERIES]  # each costs a look at its signatures
        except msgspec.DecodeError:
            raise Unavailable("the parent does not tell how its history began anew") from None

    def _as_edge(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.text}"}

    async def close(self) -> None:
        await self.http.aclose()

    def _follow(self, signed: Signed) -> None:
        """The same root, its successor, or one that the anchor itself vouches for; never an older one."""
        if self.trust is not None and signed.payload == self.trust.signed.payload:
            return
        if self.trust is None:
            self.trust, self._roots = Trust.from_root(signed, self._anchor), (signed,)
            return
        try:
            self.trust, self._roots = self.trust.next(signed), (*self._roots, signed)
        except UntrustedRoot:
            found = Trust.from_root(signed, self._anchor)
            if found.root.number <= self.trust.root.number:
                raise
            self.trust, self._roots = found, (signed,)

    def _use(self, endpoints: Endpoints) -> None:
        """A token never leaves TLS once it was given an https address."""
        if self._url.startswith("https:") and not (
            endpoints.stream.startswith("wss:") and endpoints.bundles.startswith("https:")
        ):
            raise InvalidRequest("the parent's stream or bundles have no TLS although its API has; set its public addresses")
        try:
            self.http.base_url = httpx.URL(endpoints.bundles)
        except httpx.InvalidURL:
            raise InvalidRequest("the parent's address of its bundles is no URL") from None
        self.endpoints = endpoints

    async def _public(self, path: str) -> bytes:
        async with httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT_S) as http:
            answer = await self._get(http, path, {}, {})
        if len(answer) > MAX_ANSWER_BYTES:
            raise Unavailable(f"{self._url} does not answer as a Heliograph; is the address right?")
        return answer

    @staticmethod
    async def _get(
        http: httpx.AsyncClient, path: str, query: dict[str, int], headers: dict[str, str], *, missing: bytes | None = None
    ) -> bytes:
        """``missing``: what it stands for that there is no such path."""
        try:
            answer = await http.get(path, params=query, headers=headers)
        except UNANSWERED as error:
            raise Unavailable(f"the parent is not reachable ({type(error).__name__})") from None
        if missing is not None and answer.status_code == httpx.codes.NOT_FOUND:
            return missing
        if answer.status_code != httpx.codes.OK:
            raise Unavailable(f"the parent answered {path} with HTTP {answer.status_code}")
        return answer.content
