"""Whom a schema would break, asked and decided from the command, on a real stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliograph.cli.exits import Exit

from .conftest import Shell
from .test_changing import instance

INTEGER = {"type": "object", "properties": {"max": {"type": "integer"}}}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "limits.schema.json"
    file.write_text(json.dumps(INTEGER))
    return file


def test_a_schema_is_checked_against_what_is_there(shell: Shell, place: str, schema: Path, tmp_path: Path) -> None:
    shell.run("set", f"{place}/limits", "", '{"max": "many"}')
    told = shell.json("schema", "check", schema, f"{place}/limits", ends=Exit.CONFLICT)
    assert [each["config"] for each in told["values"]] == ["limits"]
    shown = shell.run("schema", "check", schema, f"{place}/limits", ends=Exit.CONFLICT).stdout
    assert "breaks the value of dev/limits" in shown
    assert "/max must be of type integer" in shown
    better = tmp_path / "limits.json"
    better.write_text('{"max": 5}')
    assert "breaks nobody" in shell.run("schema", "check", schema, f"{place}/limits", "--document", better).stdout
    assert shell.json("get", f"{place}/limits") == {"max": "many"}
    schema.write_text('{"type": "nonsense"}')
    shell.refused("schema", "check", schema, f"{place}/limits", ends=Exit.INVALID)
    shell.refused("schema", "check", schema, place, ends=Exit.INVALID)


def test_connected_instances_are_kept_from_breaking(shell: Shell, place: str) -> None:
    assert shell.json("policy", place) == {"compatibility": "warn"}
    with instance(shell, place, "applied", declares={"limits": json.dumps(INTEGER)}):
        shown = shell.run("set", f"{place}/limits", "", '{"max": "many"}').stdout
        assert "breaks 1 connected instance" in shown
        assert "compatibility: refuse" in shell.run("policy", place, "--compatibility", "refuse").stdout
        told = shell.refused("set", f"{place}/limits", "", '{"max": "more"}', ends=Exit.CONFLICT)
        assert told["code"] == "incompatible"
        assert told["compatibility"]["instances"][0]["instances"] == 1
        result = shell.run("set", f"{place}/limits", "", '{"max": "more"}', ends=Exit.CONFLICT)
        assert "refuses what would break 1 connected instance" in result.stderr
        shell.run("set", f"{place}/limits", "", '{"max": 5}')
    assert shell.json("get", f"{place}/limits") == {"max": 5}
    shell.refused("policy", place, "--compatibility", "maybe", ends=Exit.INVALID)
