from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.dev import Place

WAIT = "wait=30"  # until every instance that is connected has answered


def publish(shop: Place, max_items: Any) -> dict[str, Any]:
    answer = shop.publish({"checkout/limits": {"max_items": max_items}}, prefer=WAIT)
    return dict(answer["propagation"])


def test_plain_script(run: Any, shop: Place) -> None:
    with run("-m", "plain_script") as program:
        assert program.line() == "running on 20"
        assert publish(shop, 21)["applied"] == 1
        assert program.line() == "now 21"
        assert publish(shop, "many")["rejected"] == 1
        publish(shop, 22)
        assert program.line() == "now 22"
        assert program.stop(signal.SIGINT) == 0
        assert program.line() == "bye"
        assert "Traceback" not in program.log()


def test_fastapi_under_uvicorn(run: Any, shop: Place) -> None:
    with run("-m", "uvicorn", "fastapi_app:app", "--port", "{port}") as server:
        assert server.eventually(lambda: server.get("/limits"))["max_items"] == 20
        assert publish(shop, 21)["applied"] == 1
        assert server.get("/limits")["max_items"] == 21
        assert publish(shop, "many")["rejected"] == 1
        assert server.get("/limits")["max_items"] == 21
        assert server.get("/status")["connected"] is True
        assert server.stop() in {0, -signal.SIGTERM}  # uvicorn ends by the signal that it was sent
        assert "Traceback" not in server.log()


def test_fastapi_reloads(run: Any, shop: Place, tmp_path: Path) -> None:
    (tmp_path / "reloaded.py").write_text("from fastapi_app import app\n")
    with run("-m", "uvicorn", "reloaded:app", "--port", "{port}", "--reload", "--reload-dir", str(tmp_path)) as server:
        first = server.eventually(lambda: server.get("/limits"))["pid"]
        (tmp_path / "reloaded.py").write_text("from fastapi_app import app  # again\n")
        server.eventually(lambda: server.get("/limits")["pid"] != first)
        assert publish(shop, 21)["missing"] == 0
        assert server.get("/limits")["max_items"] == 21
        server.stop()


def test_fastapi_under_gunicorn(run: Any, shop: Place, needs: Any) -> None:
    needs("gunicorn")
    with run("-m", "gunicorn", "fastapi_app:app", "-k", "asgi", "-w", "2", "-b", "127.0.0.1:{port}") as server:
        server.eventually(lambda: server.get("/limits"))
        server.eventually(lambda: len(live(shop, "fastapi")) == 2)
        assert publish(shop, 22)["applied"] == 2
        server.eventually(lambda: server.get("/limits")["max_items"] == 22)
        assert server.stop() == 0


@pytest.mark.filterwarnings("ignore:Using `httpx` with")
def test_fastapi_in_an_application_s_own_tests() -> None:
    """As docs/how-to/fastapi.md shows it."""
    from examples.fastapi_app import create_app
    from fastapi.testclient import TestClient

    from heliograph.client.testing import InMemoryServer

    server = InMemoryServer({"checkout/limits": {"max_items": 20}})
    with TestClient(create_app(server.client)) as http:
        assert http.get("/limits").json()["max_items"] == 20
        [answer] = server.publish({"checkout/limits": {"max_items": 21}}).wait()
        assert answer.state == "applied"
        assert http.get("/limits").json()["max_items"] == 21


def test_django_with_its_own_server(run: Any, shop: Place, needs: Any) -> None:
    needs("django")
    with run("-m", "django_app", "runserver", "--noreload", "127.0.0.1:{port}") as server:
        assert server.eventually(lambda: server.get("/limits"))["max_items"] == 20
        assert publish(shop, 21)["applied"] == 1
        assert server.get("/limits")["max_items"] == 21
        server.stop()


def test_django_under_gunicorn_with_workers_forked_from_a_loaded_application(run: Any, shop: Place, needs: Any) -> None:
    needs("django", "gunicorn")
    command = ("-m", "gunicorn", "django_app:application", "--preload", "-w", "2", "-b", "127.0.0.1:{port}")
    with run(*command) as server:
        pids: set[int] = set()
        server.eventually(lambda: pids.add(server.get("/limits")["pid"]) or len(pids) == 2)
        # the process that loaded the application, and each of its workers
        server.eventually(lambda: len(live(shop, "django")) == 3)
        told = publish(shop, 21)
        assert (told["instances"], told["applied"], told["missing"]) == (3, 3, 0)
        pids.clear()
        server.eventually(lambda: pids.add(server.get("/limits")["pid"]) or len(pids) == 2)
        assert server.get("/limits")["max_items"] == 21
        assert server.stop() == 0
        assert "Traceback" not in server.log()


def live(shop: Place, app: str) -> list[dict[str, Any]]:
    return [one for one in shop.instances() if one["connected"] and one["fingerprint"]["app"] == app]


CELERY = """
broker_url = "filesystem://"
broker_transport_options = {{"data_folder_in": "{queue}", "data_folder_out": "{queue}", "control_folder": "{control}"}}
result_backend = "file://{results}"
"""
ASK = "from celery_worker import show_limits; print(show_limits.delay().get(timeout=90)['max_items'])"


def test_celery_with_a_pool_of_forked_processes(run: Any, shop: Place, needs: Any, tmp_path: Path) -> None:
    needs("celery")
    folders = {name: tmp_path / name for name in ("queue", "control", "results")}
    for folder in folders.values():
        folder.mkdir()
    (tmp_path / "celeryconfig.py").write_text(CELERY.format(**folders))
    env = {"CELERY_CONFIG_MODULE": "celeryconfig"}
    with run("-m", "celery", "-A", "celery_worker", "worker", "-P", "prefork", "-c", "2", **env) as worker:

        def ask() -> str:
            with run("-c", ASK, **env) as asking:
                return str(asking.line())

        assert ask() == "20"
        # the worker's main process, and the process of the pool that had a task
        worker.eventually(lambda: len(live(shop, "celery")) >= 2)
        told = publish(shop, 21)
        assert (told["missing"], told["rejected"]) == (0, 0)
        assert told["applied"] >= 2
        assert ask() == "21"
        worker.stop()
        assert "Traceback" not in worker.log()
