"""Places and their heads: what an environment is at, as the registry keeps it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from heliograph.core.digest import Digest, spell
from heliograph.core.names import Environment, Namespace
from heliograph.core.records import Signature, Signed

_SIGNATURES = msgspec.json.Decoder(tuple[Signature, ...])


@dataclass(frozen=True, slots=True)
class Place:
    """One environment of one namespace: what has a history."""

    namespace: Namespace
    environment: Environment

    def __str__(self) -> str:
        return f"{self.namespace}/{self.environment}"


@dataclass(frozen=True, slots=True)
class HeadRow:
    """The head's row: all that the next version needs to know of those before it. ``peaks``: of the history tree over all versions so far."""

    epoch: int
    number: int
    version: bytes
    root: bytes
    peaks: tuple[bytes, ...]
    at_us: int
    configs: int
    safe: int
    issued_at_us: int
    expires_at_us: int
    signed: Signed

    @property
    def id(self) -> Digest:
        return spell(self.version)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A committed version. ``head`` is the head it was committed with. ``names``: (some of) the configs it changed, ``changed`` how many."""

    number: int
    id: bytes
    epoch: int
    root: bytes
    record: Signed
    head: Signed
    message: str | None
    names: tuple[str, ...]
    changed: int
    configs: int
    received_at_us: int
    trace: str | None


def signed(payload: str, signatures: str) -> Signed:
    """A statement from its two columns."""
    return Signed(payload, _SIGNATURES.decode(signatures))


def signatures_text(statement: Signed) -> str:
    return msgspec.json.encode(statement.signatures).decode()
