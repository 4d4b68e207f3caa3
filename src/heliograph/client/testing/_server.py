"""A server in memory, as tests of applications use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from heliograph.client import _blocking
from heliograph.client._client import Heliograph
from heliograph.client._connection import Retry
from heliograph.client._network import Network
from heliograph.client._portal import refuse_in_a_loop
from heliograph.client.testing._history import History
from heliograph.client.testing._hub import Answer, Ballot, Hub, InMemory
from heliograph.core.errors import TimedOut
from heliograph.core.records import Cursor

ANSWERS_S: Final = 5.0
QUICK: Final = Retry(first_s=0.01, cap_s=0.1)


class Publication:
    """A version, and what the clients that were connected when it was published answer. A client that leaves is not waited for."""

    def __init__(self, ballot: Ballot) -> None:
        self._ballot = ballot

    def __repr__(self) -> str:
        return f"Publication(version {self.number}, {len(self._ballot.answers)} answers, {len(self._ballot.missing)} missing)"

    @property
    def cursor(self) -> Cursor:
        return self._ballot.cursor

    @property
    def number(self) -> int:
        return self._ballot.cursor.number

    @property
    def answers(self) -> tuple[Answer, ...]:
        """So far, in the order in which they came."""
        return tuple(self._ballot.answers.copy().values())

    async def answered(self, timeout: float = ANSWERS_S) -> tuple[Answer, ...]:  # noqa: ASYNC109
        """Every answer. Raises TimedOut after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(asyncio.wrap_future(self._ballot.complete))
        except TimeoutError:
            raise self._too_late(timeout) from None
        return self.answers

    def wait(self, timeout: float = ANSWERS_S) -> tuple[Answer, ...]:
        """As `answered`, for tests without an event loop."""
        refuse_in_a_loop()
        try:
            self._ballot.complete.result(timeout)
        except TimeoutError:
            raise self._too_late(timeout) from None
        return self.answers

    def _too_late(self, timeout_s: float) -> TimedOut:
        return TimedOut(f"version {self.number}: {len(self._ballot.missing)} clients did not answer within {timeout_s:g} s")


class InMemoryServer:
    """One or more environments in memory. Safe to use from any thread.

    Args:
        documents: the configs of the first version that clients see, name -> any JSON.
        namespace, environment: where they are, and what clients follow unless they say otherwise.
    """

    url: Final = "http://in-memory"

    def __init__(
        self, documents: Mapping[str, Any] | None = None, *, namespace: str = "test", environment: str = "test"
    ) -> None:
        self._hub = Hub()
        self._first = (namespace, environment)
        self.token: Final = self._hub.token
        self.network: Final[Network] = InMemory(self._hub)
        self.create(namespace, environment, documents)

    def __repr__(self) -> str:
        return f"InMemoryServer({', '.join(self._hub.places)})"

    # --- clients ---------------------------------------------------------------------------------------------------------------

    def client(self, **options: Any) -> Heliograph:
        """An async client of this server. ``options`` as for `heliograph.client.Heliograph`; it keeps nothing on disk unless they say so."""
        return Heliograph(self.url, **self._options(options))

    def blocking_client(self, **options: Any) -> _blocking.Heliograph:
        """A blocking client of this server; see `client`."""
        return _blocking.Heliograph(self.url, **self._options(options))

    def _options(self, told: Mapping[str, Any]) -> dict[str, Any]:
        usual: dict[str, Any] = {"token": self.token, "cache_dir": None, "retry": QUICK, "network": self.network}
        if not {"namespace", "environment", "subscriptions"} & told.keys():
            usual["namespace"], usual["environment"] = self._first
        return usual | dict(told)

    # --- what an author does ---------------------------------------------------------------------------------------------------

    def create(self, namespace: str, environment: str, documents: Mapping[str, Any] | None = None) -> None:
        """Another environment. Raises InvalidName, InvalidDocument."""
        made = History(self._hub.keys, namespace, environment)
        if documents:
            made.publish(documents)
        self._hub.add(made)

    def publish(
        self, changes: Mapping[str, Any], *, namespace: str | None = None, environment: str | None = None
    ) -> Publication:
        """A new version: a document for each name; `heliograph.client.ABSENT` deletes. It is on its way when this returns.

        What would change nothing makes no version, and answers with the latest one. Raises InvalidName, InvalidDocument, InvalidRequest,
        NotFound; then nothing is published.
        """
        return self._move(namespace, environment, lambda history: history.publish(changes))

    def rollback(self, to: int, *, namespace: str | None = None, environment: str | None = None) -> Publication:
        """A new version with the content of version ``to``, unless that is what there is already. Raises NotFound."""
        return self._move(namespace, environment, lambda history: history.rollback(to))

    def head(self, *, namespace: str | None = None, environment: str | None = None) -> Cursor:
        """The latest version. Raises NotFound."""
        return self._hub.head(self._place(namespace, environment))

    def _move(self, namespace: str | None, environment: str | None, commit: Callable[[History], Cursor]) -> Publication:
        return Publication(self._hub.move(self._place(namespace, environment), commit))

    def _place(self, namespace: str | None, environment: str | None) -> tuple[str, str]:
        return (namespace or self._first[0], environment or self._first[1])

    # --- being away ------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Cuts every client off, until `start`; they run on what they have."""
        self._hub.stop()

    def start(self) -> None:
        """After `stop`: clients come back by themselves."""
        self._hub.start()
