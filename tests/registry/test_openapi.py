"""The API's description is what the code is, and nothing that fits it breaks the server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from heliograph.services.registry.api import openapi
from heliograph.services.registry.api.routes import described

from .conftest import DEADLINE_S, Author, running

CONTRACT = Path(__file__).resolve().parents[2] / "contracts/openapi.json"
EXAMPLES = 12


def test_contract_is_not_stale() -> None:
    """After a change: python -m heliograph.services.registry.api.openapi > contracts/openapi.json"""
    assert json.loads(CONTRACT.read_text()) == openapi.document(described())


def test_contract_hides_what_services_ask_each_other() -> None:
    paths = json.loads(CONTRACT.read_text())["paths"]
    assert not any("internal" in path for path in paths)
    assert len(paths) > 15


@pytest.fixture
def live(settings: Any) -> Iterator[tuple[str, str]]:
    """A registry in a loop and thread of its own, with something published: its address and an administrator's token."""
    said: dict[str, Any] = {}
    ready = threading.Event()

    async def run() -> None:
        stop = asyncio.Event()
        async with running(settings) as one, httpx.AsyncClient(base_url=one.url) as http:
            author = Author(http, one.token())
            await author.settle()
            await author.publish({"name": "checkout/limits", "document": {"a": 1}, "schema": {"type": "object"}})
            said.update(url=one.url, token=one.token(), stop=lambda: loop.call_soon_threadsafe(stop.set))
            ready.set()
            await stop.wait()

    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert ready.wait(DEADLINE_S)
    yield said["url"], said["token"]
    said["stop"]()
    thread.join(DEADLINE_S)
    loop.close()


def test_whatever_fits_the_description_is_answered(live: tuple[str, str]) -> None:
    """Every operation with made-up parameters and bodies, valid and not: no server error, no traceback, always a problem document."""
    url, token = live
    schema = schemathesis.openapi.from_dict(json.loads(CONTRACT.read_text()))
    for found in schema.get_all_operations():
        _try_out(found.ok(), url, {"Authorization": f"Bearer {token}"})


def _try_out(operation: Any, url: str, headers: dict[str, str]) -> None:
    places = {"namespace": st.just("shop"), "environment": st.just("production"), "name": st.just("checkout/limits")}

    @given(st.data())
    @settings(
        max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None
    )
    def ask(data: Any) -> None:
        case = data.draw(operation.as_strategy())
        if data.draw(st.booleans()):
            case.path_parameters = (case.path_parameters or {}) | {
                name: data.draw(values) for name, values in places.items() if name in (case.path_parameters or {})
            }
        answer = case.call(base_url=url, headers=headers)
        assert answer.status_code < 500, (operation.method, operation.path, answer.status_code, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"][0] == "application/problem+json"

    ask()
