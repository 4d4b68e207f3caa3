"""The command against a real stack: every service in one process, started once; an environment of its own for each test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from heliograph.cli.commands import app
from heliograph.cli.exits import Exit

START_S = 120
PORTS = ("REGISTRY", "SYNC", "SYNC_HTTP", "LEDGER")
_numbers = count(1)


@dataclass(frozen=True)
class Stack:
    url: str
    data_dir: Path

    @property
    def admin_token(self) -> str:
        return (self.data_dir / "tokens/admin.token").read_text().strip()


@pytest.fixture(scope="session")
def stack(public_folder: Path) -> Iterator[Stack]:
    from tests.conftest import free_port

    data_dir = public_folder / "cli"
    env = os.environ | {f"HELIOGRAPH_{name}_PORT": str(free_port()) for name in PORTS}
    command = [sys.executable, "-m", "heliograph.cli", "dev", "--json", "--stop-at-eof", "--data-dir", str(data_dir)]
    log = public_folder / "cli.log"
    with log.open("wb") as errors:
        child = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    assert child.stdin
    assert child.stdout
    try:
        line = child.stdout.readline()
        assert line, log.read_text()
        yield Stack(json.loads(line)["url"], data_dir)
    finally:
        child.stdin.close()
        child.wait(START_S)
        child.stdout.close()


@dataclass
class Shell:
    """Runs commands as somebody in the stack's folder would."""

    stack: Stack
    env: dict[str, str | None] = field(default_factory=dict)

    def run(self, *arguments: object, ends: Exit = Exit.OK, stdin: str | None = None) -> Result:
        env = {
            "HELIOGRAPH_DATA_DIR": str(self.stack.data_dir),
            "HELIOGRAPH_URL": None,
            "HELIOGRAPH_TOKEN": None,
            "HELIOGRAPH_TOKEN_FILE": None,
            "HELIOGRAPH_TRUST": None,
            **self.env,
        }
        result = CliRunner().invoke(app, [str(each) for each in arguments], env=env, input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == ends, (result.exit_code, result.stdout, result.stderr)
        return result

    def json(self, *arguments: object, **more: Any) -> Any:
        return json.loads(self.run(*arguments, "--json", **more).stdout)

    def refused(self, *arguments: object, ends: Exit, **more: Any) -> Any:
        """The problem that the command ends with."""
        return json.loads(self.run(*arguments, "--json", ends=ends, **more).stderr)


@pytest.fixture
def shell(stack: Stack) -> Shell:
    return Shell(stack)


@pytest.fixture
def place(shell: Shell) -> str:
    """A fresh environment."""
    name = f"team{next(_numbers)}/dev"
    shell.run("create", name)
    return name
