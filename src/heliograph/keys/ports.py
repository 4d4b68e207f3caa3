"""The signing port. Local files implement it here; key management services come behind the same verbs."""

from __future__ import annotations

from typing import Protocol


class Signer(Protocol):
    """One Ed25519 key. ``keyid``: first 16 hex digits of the key's digest; ``public``: 32 raw bytes."""

    @property
    def keyid(self) -> str: ...

    @property
    def public(self) -> bytes: ...

    async def sign(self, message: bytes) -> bytes:
        """64 raw bytes over exactly `message`. Raises Unavailable when the key cannot be reached."""
        ...
