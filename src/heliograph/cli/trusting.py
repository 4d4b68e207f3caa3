"""Whose signatures count: a trust root, and the anchor that it must match."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import msgspec

from heliograph.cli import show
from heliograph.cli.session import Session
from heliograph.core import dsse, token
from heliograph.core.errors import BadSignature, InvalidRequest, UntrustedRoot
from heliograph.core.records import ROOT_TYPE, Signed
from heliograph.core.trust import Root, Trust, anchor_of


def trusted(session: Session, anchor: str | None, *, root: Path | None = None, or_server: bool = False) -> Trust:
    """The root in the file, or the server's, if the anchor vouches for it. Raises UntrustedRoot, InvalidRequest without an anchor.

    The anchor is the one given (``sha256:…``, or a client token, which carries it), that of the token in use, or that of a server of our own, whose
    root is in its data folder. ``or_server``: failing all these, it is taken from the server itself, and that is said.
    """
    statement = _from_envelope(read(root)) if root else _from_envelope(session.api.call("GET", "/v1/trust").content)
    found = anchor_in(anchor) if anchor else _known(session, offline=root is not None)
    if found is None and or_server:
        found = anchor_of_root(statement)
        show.note(f"the trust anchor {found} is the server's own word; check it with --trust", "yellow")
    if found is None:
        raise InvalidRequest(
            "a trust anchor is needed: --trust sha256:… or --trust <client token>; ask your operator, or look with `heliograph trust`"
        )
    return Trust.from_root(statement, found)


def anchor_in(text: str) -> str | None:
    """The anchor itself, or the one that a client token carries. Raises InvalidRequest, Unauthenticated for a token that was cut off."""
    if text.startswith("sha256:"):
        return text
    found = token.parse(text).anchor
    if found is None:
        raise InvalidRequest("only client tokens carry a trust anchor")
    return found


def anchor_of_root(statement: Signed) -> str:
    """The anchor that would vouch for a root: its first root key's."""
    try:
        root = msgspec.json.decode(statement.payload, type=Root)
        return anchor_of(base64.b64decode(root.keys[root.roles.root.keyids[0]], validate=True))
    except (msgspec.DecodeError, binascii.Error, LookupError):
        raise UntrustedRoot("not a trust root") from None


def server_root(session: Session) -> tuple[Root, str]:
    """What the server shows, unverified, and the anchor that would vouch for it."""
    statement = _from_envelope(session.api.call("GET", "/v1/trust").content)
    anchor = anchor_of_root(statement)
    return Trust.from_root(statement, anchor).root, anchor


def read(path: Path) -> bytes:
    """Raises InvalidRequest."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None


def _known(session: Session, *, offline: bool) -> str | None:
    if offline:
        return None
    if session.connection.token.startswith("hel_client_"):
        return anchor_in(session.connection.token)
    root = session.connection.root
    if root is None or not root.exists():
        return None
    return anchor_of_root(msgspec.json.decode(read(root), type=Signed))


def _from_envelope(body: bytes) -> Signed:
    try:
        kind, statement = dsse.from_envelope(msgspec.json.decode(body, type=dict[str, Any]))
    except (msgspec.DecodeError, BadSignature):
        raise UntrustedRoot("not a trust root, as GET /v1/trust gives it") from None
    if kind != ROOT_TYPE:
        raise UntrustedRoot(f"not a trust root: {kind}")
    return statement
