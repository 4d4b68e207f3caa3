"""The examples run as their users would run them, against every service in one process."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import free_port
from tests.fixtures.dev import DevStack, Place

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90


@pytest.fixture(scope="session")
def the_shop(dev_stack: DevStack) -> Place:
    return dev_stack.place({"checkout/limits": {"max_items": 20}}, namespace="shop")


@pytest.fixture
def shop(the_shop: Place) -> Place:
    """shop/production, as the examples name it, and as they find it: whatever a test before this one left there."""
    the_shop.publish({"checkout/limits": {"max_items": 20}})
    return the_shop


@pytest.fixture
def needs() -> Callable[..., None]:
    """In CI a missing package is a failure; elsewhere it skips, and says how to get it."""

    def check(*packages: str) -> None:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if not missing:
            return
        told = f"needs {', '.join(missing)}: pip install 'heliograph[examples]'"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)

    return check


class Running:
    def __init__(self, child: subprocess.Popen[str], log: Path, port: int) -> None:
        self.child = child
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    def line(self) -> str:
        assert self.child.stdout
        return self.child.stdout.readline().strip()

    def get(self, path: str) -> dict[str, Any]:
        return dict(httpx.get(self.url + path, timeout=30, trust_env=False).raise_for_status().json())

    def eventually(self, reached: Callable[[], Any]) -> Any:
        """Through the time when nobody listens yet."""
        end = time.monotonic() + DEADLINE_S
        while True:
            assert self.child.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            try:
                if found := reached():
                    return found
            except httpx.TransportError:
                pass
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.child.send_signal(how)
        return self.child.wait(DEADLINE_S)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def run(shop: Place, tmp_path: Path) -> Callable[..., Any]:
    """A program with its environment; what it writes to standard error is kept."""
    (tmp_path / "client.token").write_text(shop.token + "\n")

    @contextmanager
    def running(*command: str, **env: str) -> Iterator[Running]:
        port, log = free_port(), tmp_path / "program.log"
        told = {
            "HELIOGRAPH_URL": shop.url,
            "HELIOGRAPH_TOKEN_FILE": str(tmp_path / "client.token"),
            "HOME": str(tmp_path),  # the default cache_dir lies in it
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "examples"), str(tmp_path)]),
            "PYTHONUNBUFFERED": "1",
        }
        arguments = [each.replace("{port}", str(port)) for each in command]
        with log.open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, *arguments],
                env=os.environ | told | env,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=tmp_path,
            )
        try:
            yield Running(child, log, port)
        finally:
            child.kill()
            child.communicate()

    return running
