"""Against a small registry of our own on loopback, which counts what it is asked and answers when it is told to."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest

from heliograph.access import introspect
from heliograph.access.introspect import Introspector
from heliograph.access.principal import Principal, Scope
from heliograph.core import token
from heliograph.core.errors import Overloaded, Unauthenticated, Unavailable


class Registry:
    """Answers POST /v1/internal/introspect. ``gate``: answers are held while it is closed."""

    def __init__(self) -> None:
        self.known: dict[str, Principal] = {}
        self.asked: list[str] = []
        self.open_at_once = self.most_at_once = 0
        self.status: int | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    def mint(self, identity: str, **more: int) -> str:
        text = token.mint("author", "".join(secrets.choice(token.ALPHABET) for _ in range(token.SECRET_LENGTH)))
        self.known[token.sha256(text).hex()] = Principal(id=identity, kind="author", name="x", scopes=(Scope(),), **more)
        return text

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = next(
                    int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length")
                )
                assert b"Bearer the-service" in head
                await self._answer(msgspec.json.decode(await reader.readexactly(size))["sha256"], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, sha256: str, writer: asyncio.StreamWriter) -> None:
        self.asked.append(sha256)
        found = self.known.get(sha256)
        self.open_at_once += 1
        self.most_at_once = max(self.most_at_once, self.open_at_once)
        await self.gate.wait()
        self.open_at_once -= 1
        status = self.status or (200 if found else 404)
        body = msgspec.json.encode(found)
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    made = Registry()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    made.gate.set()
    server.close()


@pytest.fixture
async def asking(registry: Registry) -> AsyncIterator[Introspector]:
    made = Introspector(registry.url, "the-service")
    yield made
    await made.close()


def made_up() -> str:
    """With a right checksum: anybody can compute that."""
    return token.mint("author", "".join(secrets.choice(token.ALPHABET) for _ in range(token.SECRET_LENGTH)))


async def refused(asking: Introspector, text: str) -> None:
    with pytest.raises(Unauthenticated):
        await asking.principal(text)


async def test_many_who_ask_about_one_token_ask_once(registry: Registry, asking: Introspector) -> None:
    text = registry.mint("tok_1")
    found = await asyncio.gather(*(asking.principal(text) for _ in range(50)))
    assert {each.id for each in found} == {"tok_1"}
    assert (await asking.principal(text)).id == "tok_1"
    assert len(registry.asked) == 1


async def test_a_token_without_its_checksum_is_nobodys_question(registry: Registry, asking: Introspector) -> None:
    await refused(asking, made_up()[:-1] + "!")
    await refused(asking, "hel_author_" + "x" * 36)
    assert registry.asked == []


async def test_an_unknown_token_is_asked_about_once_in_a_while(
    registry: Registry, asking: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made_up()
    for _ in range(5):
        await refused(asking, text)
    assert len(registry.asked) == 1
    later = time.monotonic() + introspect.REFUSED_S + 1
    monkeypatch.setattr(introspect.time, "monotonic", lambda: later)
    await refused(asking, text)
    assert len(registry.asked) == 2


async def test_what_is_good_is_asked_about_again_after_a_while(
    registry: Registry, asking: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = registry.mint("tok_1")
    await asking.principal(text)
    registry.known.clear()
    assert await asking.principal(text)
    later = time.monotonic() + introspect.FRESH_S + 1
    monkeypatch.setattr(introspect.time, "monotonic", lambda: later)
    await refused(asking, text)


async def test_expiry_counts_at_once(registry: Registry, asking: Introspector) -> None:
    text = registry.mint("tok_1", expires_at_us=int(time.time() * 1e6) - 1)
    await refused(asking, text)


async def test_a_revoked_token_is_forgotten(registry: Registry, asking: Introspector) -> None:
    text, other = registry.mint("tok_1"), registry.mint("tok_2")
    for each in (text, other):
        await asking.principal(each)
    registry.known.pop(token.sha256(text).hex())
    asking.forget(["tok_1", "tok_nobody"])
    await refused(asking, text)
    await asking.principal(other)
    assert len(registry.asked) == 3


async def test_an_answer_older_than_a_revocation_is_not_remembered(registry: Registry, asking: Introspector) -> None:
    text = registry.mint("tok_1")
    registry.gate.clear()
    early = asyncio.create_task(asking.principal(text))
    while not registry.asked:
        await asyncio.sleep(0.001)
    registry.known.clear()
    asking.forget(["tok_1"])
    registry.gate.set()
    await early
    await refused(asking, text)


async def test_made_up_tokens_push_out_nothing_good(
    registry: Registry, asking: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introspect, "MAX_REFUSED", 20)
    good = registry.mint("tok_1")
    await asking.principal(good)
    for _ in range(60):
        await refused(asking, made_up())
    assert len(asking._refused) == 20
    registry.asked.clear()
    await asking.principal(good)
    assert registry.asked == []


async def test_a_flood_of_new_tokens_is_bounded(
    registry: Registry, asking: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introspect, "MAX_WAITING", 100)
    registry.gate.clear()
    flood = [asyncio.create_task(asking.principal(made_up())) for _ in range(300)]
    while registry.open_at_once < introspect.MAX_ASKED_AT_ONCE:
        await asyncio.sleep(0.001)
    registry.gate.set()
    ended = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(each, Overloaded) for each in ended) == 200
    assert sum(isinstance(each, Unauthenticated) for each in ended) == 100
    assert registry.most_at_once == introspect.MAX_ASKED_AT_ONCE
    assert asking._asking == {}


async def test_one_who_goes_away_takes_no_answer_from_the_others(registry: Registry, asking: Introspector) -> None:
    text = registry.mint("tok_1")
    registry.gate.clear()
    leaving, staying = (asyncio.create_task(asking.principal(text)) for _ in range(2))
    while not registry.asked:
        await asyncio.sleep(0.001)
    leaving.cancel()
    registry.gate.set()
    assert (await staying).id == "tok_1"
    assert leaving.cancelled()


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_a_registry_that_cannot_say_makes_it_unavailable_and_is_asked_again(
    registry: Registry, asking: Introspector, status: int
) -> None:
    text = registry.mint("tok_1")
    registry.status = status
    with pytest.raises(Unavailable, match=str(status)):
        await asking.principal(text)
    registry.status = None
    assert await asking.principal(text)


async def test_a_registry_that_is_away_makes_it_unavailable(free_port: object) -> None:
    asking = Introspector(f"http://127.0.0.1:{free_port()}", "the-service")  # type: ignore[operator]
    with pytest.raises(Unavailable, match="not reachable") as failure:
        await asking.principal(made_up())
    assert "the-service" not in str(failure.value)
    await asking.close()


async def test_a_socket_that_was_reset_in_the_moment_it_opened_makes_it_unavailable_and_is_asked_again(
    registry: Registry, asking: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = registry.mint("tok_1")

    async def reset(*_: object, **__: object) -> httpx.Response:
        raise AttributeError("'NoneType' object has no attribute 'get_extra_info'")

    with monkeypatch.context() as once:
        once.setattr(httpx.AsyncClient, "post", reset)
        with pytest.raises(Unavailable):
            await asking.principal(text)
    assert (await asking.principal(text)).id == "tok_1"


async def test_closing_ends_open_questions(registry: Registry) -> None:
    asking = Introspector(registry.url, "the-service")
    registry.gate.clear()
    waiting = asyncio.create_task(asking.principal(registry.mint("tok_1")))
    while not registry.asked:
        await asyncio.sleep(0.001)
    await asking.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
