"""Everything Heliograph can refuse or fail at, without a word about transport.

    HeliographError
    ├── Invalid                 the input cannot be accepted as it is
    │   ├── InvalidName
    │   ├── InvalidDocument     not strict I-JSON, too deep, too large a number …
    │   ├── InvalidSchema       the schema itself is unusable
    │   ├── SchemaViolation     a document breaks its schema: every fault, never the value
    │   ├── InvalidRequest      parameters, headers, body shape
    │   │   └── UnsupportedMedia    a body of another kind than the resource takes
    │   ├── InvalidPatch        not an RFC 6902 patch: which operation, and what is wrong with it
    │   ├── MalformedFrame
    │   └── TooLarge
    ├── NotFound
    ├── Conflict
    │   ├── StaleBase           the head is not the one the author looked at
    │   ├── PatchFailed         an operation does not fit the document as it is: which, and where
    │   ├── MergeConflict       both sides changed the same place: every pointer with base, ours and theirs
    │   ├── AlreadyExists
    │   ├── StillNamed          a head names what was to be purged
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
    │   └── Throttled           this caller asks for more than its share
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
    """Root of the tree. ``code`` is stable and machine-readable; people read ``str(error)``.

    ``advice`` says what to do about any error of the class, for the reference; ``again``: whether the very same request may succeed later.
    """

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong"
    advice: ClassVar[str] = "look for the incident's number in the service's log"
    again: ClassVar[bool] = False

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title


class Invalid(HeliographError):
    code = "invalid"
    title = "The input cannot be accepted"
    advice = "correct the input; `faults` lists each thing that is wrong, by place and rule"

    def __init__(self, detail: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.faults = tuple(faults)


class InvalidName(Invalid):
    code = "invalid-name"
    title = "Not a valid name"
    advice = "lower case letters, digits, `.`, `_`, `-`; 63 characters a segment; folders with `/`"


class InvalidDocument(Invalid):
    code = "invalid-document"
    title = "Not strict I-JSON"
    advice = "send strict JSON: no duplicate keys, no comments, numbers that a double holds exactly"


class InvalidSchema(Invalid):
    code = "invalid-schema"
    title = "Not a usable JSON Schema (draft-07)"
    advice = "send a JSON Schema of draft-07 without remote references"


class SchemaViolation(Invalid):
    code = "schema-violation"
    title = "The document breaks its schema"
    advice = "correct the values at the places that `faults` names, or change the schema first"


class InvalidRequest(Invalid):
    code = "invalid-request"
    title = "The request is not understood"
    advice = "correct the parameter, header or setting that the detail names"


class UnsupportedMedia(InvalidRequest):
    """``accepted``: the media types that would do."""

    code = "unsupported-media-type"
    title = "The body is of another kind than this takes"

    def __init__(self, detail: str = "", faults: Sequence[Fault] = (), *, accepted: Sequence[str] = ()) -> None:
        super().__init__(detail, faults)
        self.accepted = tuple(accepted)


class InvalidPatch(Invalid):
    """Faults point into the patch: ``/3/path``."""

    code = "invalid-patch"
    title = "Not a JSON Patch (RFC 6902)"


class MalformedFrame(Invalid):
    code = "malformed-frame"
    title = "Not a frame of heliograph.v1"
    advice = "update the older of client and server; a client of your own: compare with the contract"


class TooLarge(Invalid):
    code = "too-large"
    title = "Larger than the limit"
    advice = "send less at a time; the detail names the limit"


class NotFound(HeliographError):
    code = "not-found"
    title = "No such thing"
    advice = "check the name; a token sees only what lies in its scopes"


class Conflict(HeliographError):
    code = "conflict"
    title = "The state does not allow this"
    advice = "look at the current state, then decide again"


class StaleBase(Conflict):
    """``head`` is the version id, ``number`` the version number that the environment is at now. ``more``: what has changed since the base, for the
    problem document."""

    code = "stale-base"
    title = "The head has moved"
    advice = "read the head again, look at what has changed, and send on top of it"

    def __init__(self, detail: str = "", *, head: str, number: int, more: dict[str, object] | None = None) -> None:
        super().__init__(detail)
        self.head = head
        self.number = number
        self.more = more or {}


class PatchFailed(Conflict):
    """``more``: ``operation``, counted from 0, and the ``pointer`` at which it does not fit."""

    code = "patch-failed"
    title = "An operation of the patch does not fit the document"

    def __init__(self, detail: str = "", *, operation: int | None = None, pointer: str = "") -> None:
        super().__init__(detail)
        self.more: dict[str, object] = {} if operation is None else {"operation": operation, "pointer": pointer}


class MergeConflict(Conflict):
    """``more``: the conflicts, for the problem document; the only place where values of documents stand."""

    code = "merge-conflict"
    title = "Both sides changed the same place"

    def __init__(self, detail: str = "", *, more: dict[str, object] | None = None) -> None:
        super().__init__(detail)
        self.more = more or {}


class StillNamed(Conflict):
    """``holders``: environment -> (some of) the configs of its head that name it."""

    code = "still-named"
    title = "A head names what was to be purged"

    def __init__(self, detail: str = "", *, holders: dict[str, list[str]] | None = None) -> None:
        super().__init__(detail)
        self.more: dict[str, object] = {"held_by": holders or {}}


class AlreadyExists(Conflict):
    code = "already-exists"
    title = "Exists already"
    advice = "nothing, if it is what you wanted; otherwise choose another name"


class IdempotencyKeyReused(Conflict):
    code = "idempotency-key-reused"
    title = "The idempotency key was used for another request"
    advice = "use a new key for a new request"


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
    advice = "send it again after a moment"
    again = True


class Denied(HeliographError):
    code = "denied"
    title = "Not allowed"
    advice = "use a token whose kind and scope permit it"


class Unauthenticated(Denied):
    code = "unauthenticated"
    title = "A valid token is needed"
    advice = "send a valid token: `Authorization: Bearer hel_…`; this one is missing, unknown, revoked or expired"


class Forbidden(Denied):
    code = "forbidden"
    title = "The token does not permit this"
    advice = "ask an admin for a token whose kind and scope cover this"


class Refused(HeliographError):
    """A client's refusal. It keeps the last good state; ``alarm`` says whether this looks like an attack or a lost history."""

    code = "refused"
    title = "The server's statement does not verify"
    advice = "keep the last good state and look at what the server serves"
    alarm: ClassVar[bool] = True


class BadSignature(Refused):
    code = "bad-signature"
    title = "A signature does not verify"
    advice = "find out who answers at this address; the keys are not those that the trust root names"


class BadDigest(Refused):
    code = "bad-digest"
    title = "Bytes do not match their digest"
    advice = "look for a proxy or cache that changes bytes; the client asks again by itself"
    alarm = False


class BadProof(Refused):
    code = "bad-proof"
    title = "The proof does not lead to the signed root or leaves part of the view open"
    advice = "look for a proxy or cache that mixes answers; the client asks again by itself"
    alarm = False


class RolledBack(Refused):
    code = "rolled-back"
    title = "An older head was presented"
    advice = "find out whether an old backup was restored, or somebody replays old statements"


class Forked(Refused):
    code = "forked"
    title = "The history presented is not the one that was followed"
    advice = "find out whether two histories of this environment exist; do not delete disk copies before you know"


class UntrustedRoot(Refused):
    code = "untrusted-root"
    title = "The trust root does not match the anchor"
    advice = "compare the token's anchor with what `heliograph trust` shows to an operator of that server"


class Unavailable(HeliographError):
    """``retry_after`` in seconds, None when unknown."""

    code = "unavailable"
    title = "Not available now"
    advice = "try again with growing pauses; nothing was done, or an idempotency key makes trying again safe"
    again = True

    def __init__(self, detail: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class NotReady(Unavailable):
    code = "not-ready"
    title = "Starting; not ready yet"
    advice = "wait until `/readyz` answers 200; it says what is missing"


class Overloaded(Unavailable):
    code = "overloaded"
    title = "Too much at once"
    advice = "try again after `Retry-After`; if it stays so, add a node"


class Throttled(Unavailable):
    code = "throttled"
    title = "More than this caller's share"
    advice = "try again after `Retry-After`; if the load is rightful, spread it over more nodes or raise the limit's setting"


class TimedOut(Unavailable):
    code = "timed-out"
    title = "Took longer than allowed"
    advice = "try again; with the same idempotency key nothing happens twice"


class Corrupt(HeliographError):
    code = "corrupt"
    title = "Stored data contradicts itself"
    advice = "stop writing, keep everything, and look: the log names what contradicts itself"


def by_code(code: str) -> type[HeliographError]:
    """The class that a stable code stands for; `HeliographError` itself for one that this release does not know."""
    return _BY_CODE.get(code, HeliographError)


def _below(kind: type[HeliographError]) -> dict[str, type[HeliographError]]:
    found = {kind.code: kind}
    for each in kind.__subclasses__():
        found |= _below(each)
    return found


_BY_CODE: Final = _below(HeliographError)
