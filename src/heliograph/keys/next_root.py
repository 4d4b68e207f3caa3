"""Makes the next trust root: a later expiry, and a new commit or head key where one is wanted.

Number n + 1 is signed by the root key, which stays: the anchors in client tokens stand for it. A replaced head key is out at once, for heads live for
minutes and are renewed. A replaced commit key stays listed behind the new one, so that the history that it signed still verifies, unless it is to be
distrusted.

New key files are written first and the statement last, each atomically: a folder that was left in between is as it was before.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import msgspec

from heliograph.core.errors import InvalidRequest, UntrustedRoot
from heliograph.core.records import Signed
from heliograph.core.times import to_text
from heliograph.core.trust import Role, Roles, Root, Trust, anchor_of
from heliograph.keys.local import STATEMENT, LocalSigner, new_signer, open_signer, sign_root, write_private


@dataclass(frozen=True, slots=True)
class Wanted:
    """``expires_at_us``: of the next root. ``distrust``: ids of commit keys whose signatures count no longer."""

    expires_at_us: int
    commit: bool = False
    head: bool = False
    distrust: tuple[str, ...] = ()


def make_next(folder: Path, root_key: Path, wanted: Wanted) -> Root:
    """The next root, in the folder when it returns; the one before stays beside it as ``root.<n>.json``. Blocks on files.

    Raises InvalidRequest (no trust root or root key there, nobody would be left to sign), UntrustedRoot (not the key of this root), Corrupt.
    """
    signed = read_statement(folder)
    now, signer = msgspec.json.decode(signed.payload, type=Root), open_signer(root_key)
    trust = Trust.from_root(signed, anchor_of(_public(now, now.roles.root.keyids[0])))
    if signer.keyid not in now.roles.root.keyids:
        raise UntrustedRoot(f"{root_key} is not the root key of {folder / STATEMENT}")
    number = now.number + 1
    if unknown := set(wanted.distrust) - set(now.roles.commit.keyids):
        raise InvalidRequest(f"the trust root lists no commit key {min(unknown)}")
    if now.roles.commit.keyids[0] in wanted.distrust and not wanted.commit:
        raise InvalidRequest("the commit key in use cannot be distrusted without a new one: add --new-commit-key")
    commit = new_signer(folder / f"commit.{number}.pem") if wanted.commit else None
    head = new_signer(folder / f"head.{number}.pem") if wanted.head else None
    root = _root(now, wanted, commit, head)
    made = sign_root(root, signer)
    trust.next(made)
    write_private(folder / f"root.{now.number}.json", msgspec.json.encode(signed))
    write_private(folder / STATEMENT, msgspec.json.encode(made))
    return root


def read_statement(folder: Path) -> Signed:
    """Raises InvalidRequest."""
    try:
        return msgspec.json.decode((folder / STATEMENT).read_bytes(), type=Signed)
    except OSError as error:
        raise InvalidRequest(f"there is no trust root in {folder}: {STATEMENT}: {error.strerror}") from None
    except msgspec.DecodeError:
        raise InvalidRequest(f"{folder / STATEMENT} is not a trust root") from None


def _root(now: Root, wanted: Wanted, commit: LocalSigner | None, head: LocalSigner | None) -> Root:
    kept = tuple(each for each in now.roles.commit.keyids if each not in wanted.distrust)
    roles = Roles(
        root=now.roles.root,
        commit=Role(((commit.keyid,) if commit else ()) + kept, now.roles.commit.threshold),
        head=Role((head.keyid,), 1) if head else now.roles.head,
    )
    every = now.keys | {each.keyid: base64.b64encode(each.public).decode() for each in (commit, head) if each}
    named = {*roles.root.keyids, *roles.commit.keyids, *roles.head.keyids}
    return Root(
        number=now.number + 1,
        keys={keyid: every[keyid] for keyid in sorted(named)},
        roles=roles,
        expires_at=to_text(wanted.expires_at_us),
    )


def _public(root: Root, keyid: str) -> bytes:
    return base64.b64decode(root.keys[keyid])
