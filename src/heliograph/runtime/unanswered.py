"""What asking another service over HTTP raises when no answer comes, in one place: whoever asks has to take all of it for an outage."""

from __future__ import annotations

from typing import Final

import httpx

UNANSWERED: Final = (httpx.HTTPError, AttributeError)
"""The second from anyio, of a socket that was reset in the moment it opened."""
