"""Checks the whole content of one version, old ones too: every text against the signed root. A text that is missing must be accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from heliograph.cli.session import Session
from heliograph.cli.target import Target
from heliograph.core import dsse, trie
from heliograph.core.digest import digest, spell, unspell
from heliograph.core.errors import BadDigest, BadSignature, NotFound
from heliograph.core.records import PURGE_TYPE, Leaf, Version
from heliograph.core.trust import Trust


@dataclass(frozen=True, slots=True)
class Checked:
    """``purged``: texts that are missing, each with a signed statement that says so."""

    configs: int
    purged: int


def check_contents(session: Session, where: Target, version: Version, identity: str, trust: Trust) -> Checked:
    """Raises BadDigest for content that is not the version's, or for a text that is missing without a statement; BadSignature."""
    leaves = {each["name"]: Leaf(each["document"], each["schema"]) for each in _configs(session, where, identity, "")}
    built = trie.update(trie.EMPTY, {name: unspell(leaf.digest()) for name, leaf in leaves.items()})
    if spell(built.digest) != version.root:
        raise BadDigest(f"the configs that the server lists are not those of version {version.number}")
    purged = _purged(session, where, trust)
    missing = 0
    for name, leaf in leaves.items():
        missing += _missing(session, where, name, "document", leaf.document, identity, purged)
        if leaf.schema:
            missing += _missing(session, where, name, "schema", leaf.schema, identity, purged)
    return Checked(len(leaves), missing)


def _configs(session: Session, where: Target, identity: str, folder: str) -> Iterator[dict[str, Any]]:
    for each in session.api.pages(f"{where.path}/configs", folder=folder, at=identity):
        if each["kind"] == "config":
            yield each
        else:
            yield from _configs(session, where, identity, each["name"])


def _purged(session: Session, where: Target, trust: Trust) -> set[str]:
    """Digests that verified statements about this namespace name."""
    found: set[str] = set()
    for each in session.api.pages(f"/v1/namespaces/{where.namespace}/purges"):
        kind, signed = dsse.from_envelope(each["envelope"])
        if kind != PURGE_TYPE:
            raise BadSignature(f"not a purge statement: {kind}")
        statement = trust.verify_purge(signed)
        if statement.namespace == where.namespace:
            found.update(statement.digests)
    return found


def _missing(
    session: Session,
    where: Target,
    name: str,
    part: Literal["document", "schema"],
    wanted: str,
    identity: str,
    purged: set[str],
) -> bool:
    """Whether a text is missing, and may be. Raises BadDigest."""
    path = f"{where.path}/{'configs' if part == 'document' else 'schemas'}/{name}"
    try:
        text = session.api.call("GET", path, params={"at": identity}).content
    except NotFound:
        if wanted not in purged:
            raise BadDigest(f"the {part} of {name} is missing, and no signed statement says that it was purged") from None
        return True
    if digest(part, text) != wanted:
        raise BadDigest(f"the {part} of {name} is not the one that the version names")
    return False
