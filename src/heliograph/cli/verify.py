"""Checks a history or a bundle without trusting the server that gave it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from heliograph.core import dsse, history
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import BadDigest, BadSignature, Forked, InvalidRequest, UntrustedRoot
from heliograph.core.frames import SnapshotFrame
from heliograph.core.names import View
from heliograph.core.records import ROOT_TYPE, VERSION_TYPE, Signed, Version
from heliograph.core.replica import Assembler, Replica
from heliograph.core.trust import Trust


def trust_of(envelope: dict[str, Any], anchor: str) -> Trust:
    """Raises UntrustedRoot."""
    kind, signed = dsse.from_envelope(envelope)
    if kind != ROOT_TYPE:
        raise UntrustedRoot("not a trust root")
    return Trust.from_root(signed, anchor)


def check_history(lines: Iterable[str], trust: Trust) -> Version:
    """Every version's signature, its number, its parent, and the root over all before it. The last one. Raises a subclass of Refused."""
    past = history.History()
    last: Version | None = None
    for line in filter(str.strip, lines):
        version, identity = _version(json.loads(line), trust)
        _follows(version, last, past)
        past.append(unspell(identity))
        last = version
    if last is None:
        raise InvalidRequest("the history is empty")
    return last


def check_bundle(text: str, trust: Trust, view: View) -> Replica:
    """A bundle as the server gives it: signatures, digests, and that nothing of the view was withheld."""
    told = json.loads(text)
    whole: Any = None
    assembler = Assembler()
    for part in told if isinstance(told, list) else [told]:
        whole = assembler.add(msgspec.convert(part, SnapshotFrame))
    head = json.loads(whole.head.payload)
    replica = Replica(trust, head["namespace"], head["environment"], view)
    candidate = replica.consider(whole, 0)
    assert candidate
    replica.adopt(candidate)
    return replica


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None


def _version(told: dict[str, Any], trust: Trust) -> tuple[Version, str]:
    envelope = told.get("envelope", told)
    if "payloadType" in envelope:
        kind, signed = dsse.from_envelope(envelope)
        if kind != VERSION_TYPE:
            raise BadSignature("a line of the history is not a version")
    else:
        signed = msgspec.convert(envelope, Signed)
    return trust.verify_version(signed), Version.id_of(signed.payload)


def _follows(version: Version, last: Version | None, past: history.History) -> None:
    number = len(past) + 1
    if version.number != number:
        raise Forked(f"version {number} is missing; the next one is {version.number}")
    if last and (version.namespace, version.environment) != (last.namespace, last.environment):
        raise Forked(f"version {number} belongs to another environment")
    if spell(past.root()) != version.history:
        raise Forked(f"version {number} does not descend from the versions before it")
    if (last is None) != (version.parent is None):
        raise BadDigest(f"version {number} names no parent, or one that cannot be")
