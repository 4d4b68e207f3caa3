"""What the command does when an answer is lost: ask again what can be asked again, with the same idempotency key, and give up in the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from heliograph.cli.api import ATTEMPTS, Api
from heliograph.core.errors import NotReady, Unavailable


class Unsteady(ThreadingHTTPServer):
    """`answers`: for each request its status, or None for a connection that ends without one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int | None] = []
        self.keys: list[str | None] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Unsteady

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.keys.append(self.headers["Idempotency-Key"])
        status = self.server.answers.pop(0)
        self.close_connection = status is None
        if status is None:
            return
        body = b'{"ok": true}' if status == 200 else b'{"code": "not-ready", "detail": "it loads"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def unsteady() -> Iterator[Unsteady]:
    with Unsteady() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def api(unsteady: Unsteady) -> Iterator[Api]:
    made = Api(f"http://127.0.0.1:{unsteady.server_port}", "")
    yield made
    made.close()


def test_a_read_whose_answer_is_lost_is_asked_again(unsteady: Unsteady, api: Api) -> None:
    unsteady.answers = [None, 503, 200]
    assert api.get("/v1/x") == {"ok": True}


def test_a_change_is_sent_again_under_the_same_key(unsteady: Unsteady, api: Api) -> None:
    unsteady.answers = [503, None, 200]
    assert api.write("PUT", "/v1/x", json={}) == {"ok": True}
    assert len(set(unsteady.keys)) == 1
    assert unsteady.keys[0]


def test_in_the_end_it_says_what_the_server_said(unsteady: Unsteady, api: Api) -> None:
    unsteady.answers = [503] * ATTEMPTS
    with pytest.raises(NotReady, match="it loads"):
        api.get("/v1/x")
    unsteady.answers = [None] * ATTEMPTS
    with pytest.raises(Unavailable, match="does not answer"):
        api.get("/v1/x")
    assert unsteady.answers == []
