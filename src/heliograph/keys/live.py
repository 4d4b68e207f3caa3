"""The keys of a folder as they are now: the next trust root counts within seconds of being put there, without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal

import structlog

from heliograph.core.errors import HeliographError, UntrustedRoot
from heliograph.core.trust import Trust
from heliograph.keys.local import LocalKeys, LocalSigner
from heliograph.runtime.clock import now_us

log = structlog.get_logger()

LOOK_S: Final = 2.0


class LiveKeys:
    """``folder``: where ``now`` was read from."""

    def __init__(self, folder: Path, now: LocalKeys) -> None:
        self._folder = folder
        self.now = now
        self.commit = _Current(self, "commit")
        self.head = _Current(self, "head")

    async def follow(self, installed: Callable[[], Awaitable[None]], *, every_s: float = LOOK_S) -> None:
        """Looks for a next root until cancelled; ``installed`` is called for each that is taken. One that does not follow is refused, loudly."""
        refused = ""
        while True:
            await asyncio.sleep(every_s)
            try:
                taken = await self.look()
                refused = ""
            except (HeliographError, OSError) as error:
                if refused != (refused := str(error)):
                    log.error("trust_root_refused", detail=refused)
                continue
            if taken:
                await installed()

    async def look(self) -> bool:
        """Whether there was a next root. Raises UntrustedRoot, Corrupt, InvalidRequest; then it is as it was."""
        read = partial(LocalKeys.open_or_create, self._folder, history_exists=True, now_us=now_us())
        found = await asyncio.to_thread(read)
        if found.statement == self.now.statement:
            return False
        before, after = (Trust.from_root(each.statement, self.now.anchor) for each in (self.now, found))
        if after.root.number <= before.root.number:
            raise UntrustedRoot(f"trust root {after.root.number} does not come after {before.root.number}, which is in use")
        self.now = found
        log.info("trust_root_installed", number=after.root.number, expires_at=after.root.expires_at)
        return True


class _Current:
    """The key that a role signs with now. Implements `ports.Signer`."""

    def __init__(self, keys: LiveKeys, role: Literal["commit", "head"]) -> None:
        self._keys = keys
        self._role = role

    @property
    def _signer(self) -> LocalSigner:
        return self._keys.now.commit if self._role == "commit" else self._keys.now.head

    @property
    def keyid(self) -> str:
        return self._signer.keyid

    @property
    def public(self) -> bytes:
        return self._signer.public

    async def sign(self, message: bytes) -> bytes:
        return await self._signer.sign(message)
