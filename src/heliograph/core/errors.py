"""Everything Heliograph can refuse or fail at, without a word about transport.

    HeliographError
    ├── Invalid                 the input cannot be accepted as it is
    │   ├── InvalidName
    │   ├── InvalidDocument     not strict I-JSON, too deep, too large a number …
    │   ├── InvalidSchema       the schema itself is unusable
    │   ├── SchemaViolation     a document breaks its schema: every fault, never the value
    │   ├── InvalidRequest      parameters, headers, body shape
    │   ├── MalformedFrame
    │   └── TooLarge
    ├── NotFound
    ├── Conflict
    │   ├── StaleBase           the head is not the one the author looked at
    │   ├── AlreadyExists
    │   ├── IdempotencyKeyReused
    │   ├── Incompatible        it would break somebody, and the environment's policy is to refuse that
    │   └── Contended           gave up after bounded retries; nothing was changed
    ├── Denied
    │   ├── Unauthenticated
    │   └── Forbidden
    ├── Refused                 a client will not accept what a server told it (evidence of a fault or an attack)
    │   ├── BadSignature  ├── BadDigest  ├── BadProof
    │   ├── RolledBack    └── Forked     └── UntrustedRoot
    ├── Unavailable             not now; trying again later is right
    │   ├── NotReady  ├── Overloaded  └── TimedOut
    └── Corrupt                 stored data contradicts itself; someone must look

Leaves carry data as attributes. ``str(error)`` is one sentence that says what to do and never contains a document's value or a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a document.

    Attributes:
        pointer: JSON Pointer (RFC 6901) to the place in the document.
        rule: the schema keyword or the rule of strict I-JSON that is broken.
        schema_pointer: JSON Pointer to the keyword in the schema; empty when no schema is involved.
        message: a sentence for people; never contains the value.
    """

    pointer: str
    rule: str
    message: str
    schema_pointer: str = ""


class HeliographError(Exception):
    """Root of the tree. ``code`` is stable and machine-readable; people read ``str(error)``."""

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title


class Invalid(HeliographError):
    code = "invalid"
    title = "The input cannot be accepted"

    def __init__(self, detail: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.faults = tuple(faults)


class InvalidName(Invalid):
    code = "invalid-name"
    title = "Not a valid name"


class InvalidDocument(Invalid):
    code = "invalid-document"
    title = "Not strict I-JSON"


class InvalidSchema(Invalid):
    code = "invalid-schema"
    title = "Not a usable JSON Schema (draft-07)"


class SchemaViolation(Invalid):
    code = "schema-violation"
    title = "The document breaks its schema"


class InvalidRequest(Invalid):
    code = "invalid-request"
    title = "The request is not understood"


class MalformedFrame(Invalid):
    code = "malformed-frame"
    title = "Not a frame of heliograph.v1"


class TooLarge(Invalid):
    code = "too-large"
    title = "Larger than the limit"


class NotFound(HeliographError):
    code = "not-found"
    title = "No such thing"


class Conflict(HeliographError):
    code = "conflict"
    title = "The state does not allow this"


class StaleBase(Conflict):
    """``head`` is the version id, ``number`` the version number that the environment is at now. ``more``: what has changed since the base, for the
    problem document."""

    code = "stale-base"
    title = "The head has moved"

    def __init__(self, detail: str = "", *, head: str, number: int, more: dict[str, object] | None = None) -> None:
        super().__init__(detail)
        self.head = head
        self.number = number
        self.more = more or {}


class AlreadyExists(Conflict):
    code = "already-exists"
    title = "Exists already"


class IdempotencyKeyReused(Conflict):
    code = "idempotency-key-reused"
    title = "The idempotency key was used for another request"


class Incompatible(Conflict):
    """``more``: for programs, what would break."""

    code = "incompatible"
    title = "It would break somebody"

    def __init__(self, detail: str = "", *, more: dict[str, object] | None = None) -> None:
        super().__init__(detail)
        self.more = more or {}


class Contended(Conflict):
    code = "contended"
    title = "Too many writers at once; nothing was changed"


class Denied(HeliographError):
    code = "denied"
    title = "Not allowed"


class Unauthenticated(Denied):
    code = "unauthenticated"
    title = "A valid token is needed"


class Forbidden(Denied):
    code = "forbidden"
    title = "The token does not permit this"


class Refused(HeliographError):
    """A client's refusal. It keeps the last good state; ``alarm`` says whether this looks like an attack or a lost history."""

    code = "refused"
    title = "The server's statement does not verify"
    alarm: ClassVar[bool] = True


class BadSignature(Refused):
    code = "bad-signature"
    title = "A signature does not verify"


class BadDigest(Refused):
    code = "bad-digest"
    title = "Bytes do not match their digest"
    alarm = False


class BadProof(Refused):
    code = "bad-proof"
    title = "The proof does not lead to the signed root or leaves part of the view open"
    alarm = False


class RolledBack(Refused):
    code = "rolled-back"
    title = "An older head was presented"


class Forked(Refused):
    code = "forked"
    title = "The history presented is not the one that was followed"


class UntrustedRoot(Refused):
    code = "untrusted-root"
    title = "The trust root does not match the anchor"


class Unavailable(HeliographError):
    """``retry_after`` in seconds, None when unknown."""

    code = "unavailable"
    title = "Not available now"

    def __init__(self, detail: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class NotReady(Unavailable):
    code = "not-ready"
    title = "Starting; not ready yet"


class Overloaded(Unavailable):
    code = "overloaded"
    title = "Too much at once"


class TimedOut(Unavailable):
    code = "timed-out"
    title = "Took longer than allowed"


class Corrupt(HeliographError):
    code = "corrupt"
    title = "Stored data contradicts itself"


def by_code(code: str) -> type[HeliographError]:
    """The class that a stable code stands for; `HeliographError` itself for one that this release does not know."""
    return _BY_CODE.get(code, HeliographError)


def _below(kind: type[HeliographError]) -> dict[str, type[HeliographError]]:
    found = {kind.code: kind}
    for each in kind.__subclasses__():
        found |= _below(each)
    return found


_BY_CODE: Final = _below(HeliographError)
