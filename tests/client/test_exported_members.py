from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import heliograph
from heliograph import blocking, client
from heliograph.client import testing

SERVER = {
    "asyncpg",
    "fastapi",
    "uvicorn",
    "structlog",
    "picows",
    "confluent_kafka",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
}


def test_everything_public_is_exported_and_nothing_else() -> None:
    public = {name for name, value in vars(client).items() if not name.startswith("_") and not _is_module(value)}
    assert public == set(client.__all__)
    assert list(client.__all__) == sorted(client.__all__, key=lambda name: (not name.isupper(), name))


def _is_module(value: object) -> bool:
    return type(value).__name__ == "module"


def test_the_package_offers_the_client_lazily() -> None:
    assert heliograph.Heliograph is client.Heliograph


def test_the_sdk_is_light() -> None:
    """A process that imports the client loads nothing of the server, and no library of the server's."""
    program = "import sys, heliograph.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("heliograph.")}
    assert {name.split(".")[1] for name in ours} == {"client", "core"}
    assert not SERVER & set(loaded)


def test_importing_the_package_alone_loads_no_sdk() -> None:
    program = "import sys, heliograph; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"heliograph.client", "websockets", "httpx"} & set(loaded)


@pytest.mark.parametrize("module", [blocking, testing])
def test_the_other_modules_export_what_they_define(module: ModuleType) -> None:
    public = {name for name, value in vars(module).items() if not name.startswith("_") and not _is_module(value)}
    assert public == set(module.__all__)
    assert list(module.__all__) == sorted(module.__all__)


def test_every_class_of_the_surface_says_what_it_is() -> None:
    for module in (blocking, testing):
        for name in module.__all__:
            assert vars(module)[name].__doc__, name


def test_types_are_part_of_the_package() -> None:
    assert (Path(heliograph.__file__).parent / "py.typed").exists()


def test_the_blocking_client_is_as_light() -> None:
    program = "import sys, heliograph.blocking, heliograph.client.testing; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[1] for name in loaded if name.startswith("heliograph.")} == {"blocking", "client", "core"}
    assert not SERVER & set(loaded)
