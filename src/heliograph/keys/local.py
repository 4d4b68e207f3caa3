"""Signing keys as files: root, commit, head; Ed25519, PKCS#8, mode 0600 in a folder of mode 0700.

A commit or head key that came later has the number of the trust root that brought it in its name: ``commit.2.pem``. The first key that a role lists
is the one that signs; the others are there for what they signed before.

Made at the first start only. A history whose keys are gone is never given new ones: clients would rightly refuse them. The root key is needed only to
sign the next root statement; its file may be moved offline, its public half stays in the statement.
"""

from __future__ import annotations

import base64
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from heliograph.core import dsse
from heliograph.core.canonical import canonical
from heliograph.core.digest import Digest
from heliograph.core.errors import Corrupt, InvalidRequest, Unavailable
from heliograph.core.records import ROOT_TYPE, Signed
from heliograph.core.times import to_text, to_us
from heliograph.core.trust import Role, Roles, Root, anchor_of
from heliograph.runtime.clock import now_us

ROOT_LIFE_US = 10 * 365 * 24 * 3600 * 1_000_000
STATEMENT = "root.json"
NAMES = ("root", "commit", "head")


class LocalSigner:
    """A key in memory; masked in reprs. Signs until the statement that names it expires: what it signs later no client has a reason to believe."""

    def __init__(self, key: Ed25519PrivateKey, expires_at_us: int = 2**62) -> None:
        self._key = key
        self._expires_at_us = expires_at_us
        self.public = key.public_key().public_bytes_raw()
        self.keyid = dsse.key_id(self.public)

    async def sign(self, message: bytes) -> bytes:
        if now_us() >= self._expires_at_us:
            expired = to_text(self._expires_at_us)
            raise Unavailable(
                f"the trust root expired at {expired}, so nothing can be signed: make the next one ({STATEMENT}) with heliograph trust next"
            )
        return self.sign_now(message)

    def sign_now(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"<LocalSigner {self.keyid}>"


@dataclass(frozen=True, slots=True)
class LocalKeys:
    """`statement` is the signed root: it names the public keys and their roles, until it expires. `anchor` is what client tokens carry."""

    commit: LocalSigner
    head: LocalSigner
    statement: Signed
    anchor: Digest
    expires_at_us: int

    @classmethod
    def open_or_create(cls, folder: Path, *, history_exists: bool, now_us: int) -> LocalKeys:
        """Raises Corrupt when a history exists without its keys, InvalidRequest when others may read them. Blocks on files."""
        if not (folder / STATEMENT).exists():
            if history_exists:
                raise Corrupt(
                    f"there is a history but no keys in {folder}: restore them from the backup; clients would refuse new ones"
                )
            _create(folder, now_us)
        _refuse_open(folder, 0o700)
        statement = msgspec.json.decode((folder / STATEMENT).read_bytes(), type=Signed)
        root = msgspec.json.decode(statement.payload, type=Root)
        expires_at_us = to_us(root.expires_at)
        commit, head = (
            _open(folder, name, role, expires_at_us)
            for name, role in (("commit", root.roles.commit), ("head", root.roles.head))
        )
        anchor = anchor_of(base64.b64decode(root.keys[root.roles.root.keyids[0]]))
        return cls(commit, head, statement, anchor, expires_at_us)


def _create(folder: Path, now_us: int) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    signers = {}
    for name in NAMES:
        signers[name] = new_signer(folder / f"{name}.pem")
    write_private(folder / STATEMENT, msgspec.json.encode(_statement(signers, now_us)))


def new_signer(path: Path) -> LocalSigner:
    """A new key, on disk when it returns."""
    key = Ed25519PrivateKey.generate()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return LocalSigner(key)


def _statement(signers: dict[str, LocalSigner], now_us: int) -> Signed:
    root = Root(
        number=1,
        keys={each.keyid: base64.b64encode(each.public).decode() for each in signers.values()},
        roles=Roles(**{name: Role((signers[name].keyid,), 1) for name in NAMES}),
        expires_at=to_text(now_us + ROOT_LIFE_US),
    )
    return sign_root(root, signers["root"])


def sign_root(root: Root, signer: LocalSigner) -> Signed:
    payload = canonical(msgspec.to_builtins(root))
    return dsse.attach(payload, [(signer.keyid, signer.sign_now(dsse.pae(ROOT_TYPE, payload)))])


def _open(folder: Path, name: str, role: Role, expires_at_us: int) -> LocalSigner:
    """The file of the key that signs."""
    paths = sorted(folder.glob(f"{name}*.pem"))
    if not paths:
        path = folder / f"{name}.pem"
        raise Corrupt(f"the key file {path} is missing: restore it from the backup; clients would refuse a new one")
    for path in paths:
        signer = open_signer(path, expires_at_us)
        if signer.keyid == role.keyids[0]:
            return signer
    raise Corrupt(f"{paths[-1]} is not the key that the root statement names")


def open_signer(path: Path, expires_at_us: int = 2**62) -> LocalSigner:
    """Raises Corrupt, InvalidRequest when others may read it or it is not there."""
    try:
        _refuse_open(path, 0o600)
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InvalidRequest(f"the key file {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise Corrupt(f"{path} is not a private key without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Corrupt(f"{path} is not an Ed25519 key")
    return LocalSigner(key, expires_at_us)


def _refuse_open(path: Path, wanted: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InvalidRequest(f"{path} can be read by others (mode {mode:o}): chmod {wanted:o} it")


def write_private(path: Path, content: bytes) -> None:
    """Atomically, mode 0600, on disk when it returns."""
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
