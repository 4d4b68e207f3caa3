"""The four clients that one suite is run against: the async one and its blocking twin, each of a real stack and of the server in memory."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.fixtures.dev import DevStack, Place

from heliograph import blocking
from heliograph.client import Heliograph
from heliograph.client.testing import InMemoryServer

DEADLINE_S = 30.0
AnyClient = Heliograph | blocking.Heliograph


class World(Protocol):
    """A server with one environment, whose first configs are version 2."""

    async def publish(self, changes: dict[str, Any]) -> int:
        """The number of the new version. ABSENT deletes."""

    async def answer(self, number: int, instance: str) -> tuple[str, str | None]:
        """State and reason of the receipt of an instance, once there is one."""

    def arguments(self) -> dict[str, Any]:
        """Of a client, without its address."""

    url: str


class InMemory:
    def __init__(self, documents: dict[str, Any]) -> None:
        self._server = InMemoryServer(documents, namespace="shop", environment="production")
        self._published: dict[int, Any] = {}
        self.url = self._server.url

    async def publish(self, changes: dict[str, Any]) -> int:
        published = self._server.publish(changes)
        self._published[published.number] = published
        return published.number

    async def answer(self, number: int, instance: str) -> tuple[str, str | None]:
        answers = await self._published[number].answered(DEADLINE_S)
        return next((one.state, one.reason) for one in answers if one.instance == instance)

    def arguments(self) -> dict[str, Any]:
        return {
            "token": self._server.token,
            "namespace": "shop",
            "environment": "production",
            "network": self._server.network,
        }


class Real:
    def __init__(self, place: Place) -> None:
        self._place = place
        self.url = place.url

    async def publish(self, changes: dict[str, Any]) -> int:
        return int((await asyncio.to_thread(self._place.publish, changes))["number"])

    async def answer(self, number: int, instance: str) -> tuple[str, str | None]:
        async with asyncio.timeout(DEADLINE_S):
            while (found := (await asyncio.to_thread(self._place.receipts, number)).get(instance)) is None:
                await asyncio.sleep(0.05)
        return found["state"], found.get("reason")

    def arguments(self) -> dict[str, Any]:
        place = self._place
        return {"token": place.token, "namespace": place.namespace, "environment": place.environment}


class Subject:
    """A client, spoken to in one way. Reads go to ``client`` itself: they are the same in both."""

    def __init__(self, client: AnyClient) -> None:
        self.client: Any = client
        self._blocking = isinstance(client, blocking.Heliograph)

    async def do(self, call: Callable[[], Any]) -> Any:
        """Whatever may wait: awaited, or in a thread."""
        if self._blocking:
            return await asyncio.to_thread(call)
        answer = call()
        return await answer if inspect.isawaitable(answer) else answer

    async def wait(self, number: int, timeout: float = DEADLINE_S) -> Any:
        return await self.do(lambda: self.client.wait_for_version(number, timeout=timeout))

    async def next(self, changes: Any) -> Any:
        return await asyncio.to_thread(next, changes) if self._blocking else await anext(changes)

    async def rest(self, changes: Any) -> list[Any]:
        return await asyncio.to_thread(list, changes) if self._blocking else [each async for each in changes]

    async def start(self) -> None:
        await self.do(self.client.start)

    async def close(self) -> None:
        await self.do(self.client.close)


Connect = Callable[..., Any]


@pytest.fixture(params=["in memory", "real"])
def world(request: pytest.FixtureRequest, documents: dict[str, Any]) -> World:
    if request.param == "in memory":
        return InMemory(documents)
    stack: DevStack = request.getfixturevalue("dev_stack")
    return Real(stack.place(documents))


@pytest.fixture
def documents() -> dict[str, Any]:
    return {
        "checkout/limits": {"max_items": 20, "currencies": ["EUR"]},
        "checkout/cart": {"currency": "EUR"},
        "search": {"pages": 10},
    }


@pytest.fixture(params=[Heliograph, blocking.Heliograph], ids=["async", "blocking"])
def make(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Callable[..., Subject]:
    """A client that is not open yet."""

    def made(**more: Any) -> Subject:
        return Subject(request.param(world.url, **{"cache_dir": tmp_path, **world.arguments(), **more}))

    return made


@pytest.fixture
def connect(make: Callable[..., Subject]) -> Connect:
    @asynccontextmanager
    async def connected(**more: Any) -> AsyncIterator[Subject]:
        subject = make(**more)
        await subject.start()
        try:
            yield subject
        finally:
            await subject.close()

    return connected
