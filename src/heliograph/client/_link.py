"""What a session needs of a transport.

Errors decide: `Unavailable` means that the connection is gone and a new one may be opened; any other `HeliographError` means stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from heliograph.core.frames import FromClient, FromServer

Take = Callable[[FromServer], None]


class Link(Protocol):
    """One open connection, or the polling that stands in for one."""

    transport: Literal["websocket", "polling"]

    async def run(self, take: Take) -> None:
        """Hands every frame to ``take``, in order, as it comes. Never returns: raises when the link is gone."""

    async def send(self, frames: Sequence[FromClient]) -> None:
        """Frames leave in order. A link that is gone swallows them: `run` says so, and the session sends again what matters.

        Raises Unavailable when the other end takes nothing for long.
        """

    async def close(self) -> None:
        """Never raises, takes at most seconds."""
