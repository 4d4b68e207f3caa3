"""The command against a real stack: every service in one process, started once; an environment of its own for each test."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from tests.fixtures.dev import DevStack
from typer.testing import CliRunner, Result

from heliograph.cli.commands import app
from heliograph.cli.exits import Exit

_numbers = count(1)


Stack = DevStack


@pytest.fixture(scope="session")
def stack(dev_stack: DevStack) -> DevStack:
    return dev_stack


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
    name = f"crew{next(_numbers)}/dev"
    shell.run("create", name)
    return name
