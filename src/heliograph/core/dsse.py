"""DSSE: signatures over a type and exact bytes (pre-authentication encoding), so that nothing is canonicalised to verify.

In frames a statement is `Signed` with its payload as text; over REST and in files it is the standard envelope with the payload in base64. Both
carry the same signatures.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from heliograph.core.digest import digest
from heliograph.core.errors import BadSignature
from heliograph.core.records import Signature, Signed

MAX_SIGNATURES = 32
"""Of one statement. Checking one costs 0.1 ms, so whoever sends them must not choose how many."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def key_id(public: bytes) -> str:
    """First 16 hex digits of the key's digest: a hint for finding it, never trusted."""
    return digest("key", public)[7:23]


def attach(payload: bytes, signatures: Iterable[tuple[str, bytes]]) -> Signed:
    """A statement from its exact text and (key id, raw signature) pairs."""
    return Signed(payload.decode(), tuple(Signature(keyid, base64.b64encode(sig).decode()) for keyid, sig in signatures))


def verify(signed: Signed, payload_type: str, keys: Mapping[str, bytes], threshold: int = 1) -> bytes:
    """The payload, if at least `threshold` different keys of `keys` (key id -> raw public key) signed it. Raises BadSignature."""
    if len(signed.signatures) > MAX_SIGNATURES:
        raise BadSignature(f"{payload_type}: more than {MAX_SIGNATURES} signatures")
    payload = _bytes_of(signed)
    message = pae(payload_type, payload)
    good = {
        keys[each.keyid] for each in signed.signatures if each.keyid in keys and _valid(keys[each.keyid], each.sig, message)
    }
    if threshold < 1 or len(good) < threshold:
        raise BadSignature(f"{payload_type}: {len(good)} valid of {threshold} signatures needed")
    return payload


def _bytes_of(signed: Signed) -> bytes:
    try:
        return signed.payload.encode()
    except UnicodeEncodeError:
        raise BadSignature("the payload is not text") from None


def _valid(public: bytes, sig: str, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(sig, validate=True), message)
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def to_envelope(signed: Signed, payload_type: str) -> dict[str, object]:
    """The standard JSON envelope."""
    return {
        "payloadType": payload_type,
        "payload": base64.b64encode(signed.payload.encode()).decode(),
        "signatures": [{"keyid": each.keyid, "sig": each.sig} for each in signed.signatures],
    }


def from_envelope(envelope: Mapping[str, object]) -> tuple[str, Signed]:
    """(payload type, statement) of a standard envelope. Raises BadSignature if it is none."""
    try:
        payload = base64.b64decode(str(envelope["payload"]), validate=True).decode()
        listed = envelope["signatures"]
        if not isinstance(listed, list):
            raise TypeError("signatures")
        return str(envelope["payloadType"]), Signed(payload, tuple(Signature(str(s["keyid"]), str(s["sig"])) for s in listed))
    except (KeyError, TypeError, ValueError) as error:
        raise BadSignature(f"not a DSSE envelope: {type(error).__name__}") from None
