"""Tickets: what a browser puts into the address of a stream, because it cannot set a header there.

A ticket is the token itself, sealed for a minute with a key that all nodes make from the service token they share: any of them redeems it, nothing
is kept, and a token that is revoked meanwhile is found out as ever.
"""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from heliograph.core.errors import Unauthenticated

LIFE_S: Final = 60
MAX_LENGTH: Final = 600
_NONCE: Final = 12
_TIME: Final = 8


class Tickets:
    def __init__(self, service_token: str) -> None:
        made = HKDF(SHA256(), length=32, salt=None, info=b"heliograph/v1/ticket")
        self._key = AESGCM(made.derive(service_token.encode()))

    def issue(self, token: str, now_us: int) -> str:
        """Stands for this token during the next `LIFE_S` seconds."""
        ends, nonce = (now_us + LIFE_S * 1_000_000).to_bytes(_TIME, "big"), secrets.token_bytes(_NONCE)
        return urlsafe_b64encode(ends + nonce + self._key.encrypt(nonce, token.encode(), ends)).decode()

    def redeem(self, ticket: str, now_us: int) -> str:
        """The token. Raises Unauthenticated for what is no ticket, and for one whose minute is over."""
        try:
            raw = urlsafe_b64decode(ticket[:MAX_LENGTH].encode("ascii"))
            ends, nonce, sealed = raw[:_TIME], raw[_TIME : _TIME + _NONCE], raw[_TIME + _NONCE :]
            token = self._key.decrypt(nonce, sealed, ends).decode()
        except (ValueError, InvalidTag):
            raise Unauthenticated("not a ticket of this server: ask for one at /v1/tickets") from None
        if int.from_bytes(ends, "big") <= now_us:
            raise Unauthenticated("the ticket has expired: ask for another at /v1/tickets")
        return token
