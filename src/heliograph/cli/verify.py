"""Checks a history or a bundle without trusting the server that gave it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from heliograph.cli.following import whole_frame
from heliograph.core import dsse, history
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import BadDigest, BadProof, BadSignature, Forked, MalformedFrame
from heliograph.core.frames import SnapshotFrame
from heliograph.core.names import View
from heliograph.core.records import VERSION_TYPE, Head, Signed, Version
from heliograph.core.replica import Replica
from heliograph.core.trust import Trust


@dataclass(frozen=True, slots=True)
class Checked:
    """A version of a history that holds, with its id."""

    version: Version
    identity: str


def check_history(body: bytes, trust: Trust) -> list[Checked]:
    """Every version from number 1, each checked: its signature, its number, its parent, its epoch, the root over all before it. Raises Refused."""
    past = history.History()
    every: list[Checked] = []
    for line in body.splitlines():
        if line.strip():
            every.append(_next(_statement(line), every[-1] if every else None, past, trust))
            past.append(unspell(every[-1].identity))
    if not every:
        raise MalformedFrame("the history is empty")
    return every


def is_history(body: bytes) -> bool:
    """Whether a file is a history, line by line, rather than a bundle."""
    try:
        first = msgspec.json.decode(body.lstrip().split(b"\n", 1)[0])
    except msgspec.DecodeError:
        return False
    return isinstance(first, dict) and "payload" in first


def check_bundle(body: bytes, trust: Trust, view: View) -> Replica:
    """A snapshot as the server gives it: signatures, digests, and that nothing of the view was altered or withheld. Raises Refused."""
    frame = whole_frame(body)
    if not isinstance(frame, SnapshotFrame):
        raise MalformedFrame("a bundle that is no snapshot cannot be verified by itself; ask for one without `have`")
    head = trust.verify_head(frame.head)
    replica = Replica(trust, head.namespace, head.environment, view)
    candidate = replica.consider(frame, 0)
    if candidate is None:
        raise BadProof("the bundle says nothing")
    replica.adopt(candidate)
    return replica


def check_head(head: Head, every: list[Checked]) -> None:
    """Whether a verified head is in a verified history, with the same root. Raises Forked."""
    if head.number > len(every):
        raise Forked(f"the head is version {head.number}, and the history ends at {len(every)}")
    found = every[head.number - 1]
    said = (head.namespace, head.environment, head.epoch, head.version, head.root)
    version = found.version
    if said != (version.namespace, version.environment, version.epoch, found.identity, version.root):
        raise Forked(f"the head names another version {head.number} than the history")


def _next(statement: Signed, last: Checked | None, past: history.History, trust: Trust) -> Checked:
    number = len(past) + 1
    version = trust.verify_version(statement)
    if version.number != number:
        raise Forked(f"version {number} is missing; the next one is {version.number}")
    if version.parent != (last.identity if last else None):
        raise BadDigest(f"version {number} names another parent than version {number - 1}")
    if version.history != spell(past.root()):
        raise Forked(f"version {number} does not descend from all versions before it")
    if last:
        _continues(version, last.version)
    return Checked(version, Version.id_of(statement.payload))


def _continues(version: Version, before: Version) -> None:
    if (version.namespace, version.environment) != (before.namespace, before.environment):
        raise Forked(f"version {version.number} belongs to another environment")
    if version.epoch < before.epoch or (version.epoch > before.epoch and version.kind != "recover"):
        raise Forked(f"version {version.number} opens an epoch without being a recovery")


def _statement(line: bytes) -> Signed:
    """As the history has it, or as a standard envelope."""
    try:
        told = msgspec.json.decode(line, type=dict[str, Any])
        if "payloadType" not in told:
            return msgspec.convert(told, Signed)
    except msgspec.DecodeError:
        raise MalformedFrame("a line of the history is not a signed version") from None
    kind, statement = dsse.from_envelope(told)
    if kind != VERSION_TYPE:
        raise BadSignature(f"a line of the history is not a version: {kind}")
    return statement
