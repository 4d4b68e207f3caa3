"""Commands that look, against a real stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from heliograph.cli.exits import Exit

from .conftest import Shell

VALUE = {"max_items": 20, "nested": {"list": [1, "two", None]}}


@pytest.fixture
def filled(shell: Shell, place: str) -> str:
    """Version 2: two configs; 3: one value changed; 4: one deleted, one with a schema."""
    changes = [{"name": "checkout/limits", "document": VALUE}, {"name": "old", "document": 1}]
    shell.run("publish", place, "-m", "begin", stdin=json.dumps(changes))
    shell.run("set", f"{place}/checkout/limits", "/max_items", "21")
    changes = [{"name": "old", "delete": True}, {"name": "checkout/limits", "schema": {"type": "object"}}]
    shell.run("publish", place, stdin=json.dumps(changes))
    return place


# --- get --------------------------------------------------------------------------------------------------------------------------


def test_a_document_and_a_value_in_it(shell: Shell, filled: str) -> None:
    at = f"{filled}/checkout/limits"
    assert json.loads(shell.run("get", at).stdout) == VALUE | {"max_items": 21}
    assert shell.run("get", at, "/nested/list/1").stdout == "two\n"
    assert shell.json("get", at, "/nested/list/1") == "two"
    assert shell.json("get", at, "/nested/list/2") is None
    shell.refused("get", at, "/nested/list/3", ends=Exit.NOT_FOUND)
    shell.refused("get", at, "nested", ends=Exit.INVALID)


def test_as_of_an_earlier_version(shell: Shell, filled: str) -> None:
    assert shell.json("get", f"{filled}/checkout/limits", "/max_items", "--at", 2) == 20
    second = shell.json("show", filled, 2)["version"]
    assert shell.json("get", f"{filled}/old", "--at", second) == 1
    shell.refused("get", f"{filled}/old", ends=Exit.NOT_FOUND)
    shell.refused("get", f"{filled}/old", "--at", 99, ends=Exit.NOT_FOUND)


def test_folders_environments_and_schemas(shell: Shell, filled: str) -> None:
    assert [each["name"] for each in shell.json("get", filled)] == ["checkout/"]
    assert [each["name"] for each in shell.json("get", filled, "--at", 2)] == ["checkout/", "old"]
    assert [each["name"] for each in shell.json("get", f"{filled}/checkout/")] == ["checkout/limits"]
    assert shell.json("get", f"{filled}/checkout/limits", "--schema") == {"type": "object"}
    assert "schema" in shell.run("get", f"{filled}/checkout/").stdout


def test_what_is_not_there(shell: Shell, place: str) -> None:
    assert shell.run("get", place).stdout.strip() == "there is nothing here yet"
    for missing in ("nowhere/dev", "nowhere/dev/limits", "nowhere"):
        assert shell.refused("get", missing, ends=Exit.NOT_FOUND)["code"] == "not-found"


# --- history ----------------------------------------------------------------------------------------------------------------------


def test_history_newest_first(shell: Shell, filled: str) -> None:
    told = shell.json("log", filled)
    assert [(each["number"], each["kind"]) for each in told] == [(4, "publish"), (3, "publish"), (2, "publish"), (1, "create")]
    assert [each["number"] for each in shell.json("log", filled, "-n", 2)] == [4, 3]
    shown = shell.run("log", filled).stdout
    assert "begin" in shown
    assert "checkout/limits, old" in shown
    shell.run("rollback", filled, 2)
    assert "from version 2" in shell.run("log", filled).stdout


def test_one_version(shell: Shell, filled: str) -> None:
    by_number, by_id, head = shell.json("show", filled, 3), None, shell.json("show", filled)
    by_id = shell.json("show", filled, by_number["version"])
    assert by_number == by_id == shell.json("show", f"{filled}/3")
    assert head["number"] == 4
    shown = shell.run("show", f"{filled}/3").stdout
    assert by_number["version"] in shown
    assert by_number["envelope"]["signatures"][0]["keyid"] in shown


def test_differences_between_versions(shell: Shell, filled: str) -> None:
    (one,) = shell.json("diff", filled, 2, 3)
    assert (one["name"], one["change"]) == ("checkout/limits", "changed")
    assert one["operations"] == [{"op": "replace", "path": "/max_items", "value": 21}]
    assert {each["name"]: each["change"] for each in shell.json("diff", filled)} == {
        "checkout/limits": "changed",
        "old": "removed",
    }
    assert [each["name"] for each in shell.json("diff", f"{filled}/checkout/", 1, 4)] == ["checkout/limits"]
    shown = shell.run("diff", filled, 2).stdout
    assert "replace /max_items 21" in shown
    assert "schema changed" in shown
    assert shell.run("diff", filled, 3, 3).stdout.strip() == "no difference"


# --- watch ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def watching(shell: Shell, filled: str) -> Iterator[object]:
    """Starts `heliograph watch …`; returns once it watches."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "heliograph.cli", "watch", *arguments, "--json"]
        env = os.environ | {"HELIOGRAPH_DATA_DIR": str(shell.stack.data_dir)}
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stderr
        assert child.stderr.readline().startswith("watching ")
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_versions_as_they_come(shell: Shell, filled: str, watching: object) -> None:
    child = watching(filled, "-n", "2")  # type: ignore[operator]
    shell.run("set", f"{filled}/checkout/limits", "/max_items", "22")
    shell.run("set", f"{filled}/new", "", "1")
    out, _ = child.communicate(timeout=60)
    assert child.returncode == Exit.OK
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(each["number"], each["changed"]) for each in lines] == [(5, ["checkout/limits"]), (6, ["new"])]


def test_one_value_only_when_it_changes(shell: Shell, filled: str, watching: object) -> None:
    child = watching(f"{filled}/checkout/limits", "/max_items", "-n", "2")  # type: ignore[operator]
    shell.run("set", f"{filled}/checkout/limits", "/nested", "{}")
    shell.run("set", f"{filled}/checkout/limits", "/max_items", "22")
    shell.run("set", f"{filled}/unrelated", "", "1")
    shell.run("delete", f"{filled}/checkout/limits")
    out, _ = child.communicate(timeout=60)
    assert [(json.loads(line)["number"], json.loads(line)["value"]) for line in out.splitlines()] == [(6, 22), (8, None)]


def test_watching_makes_no_instance(shell: Shell, filled: str, watching: object) -> None:
    watching(filled)  # type: ignore[operator]
    made = shell.json("set", f"{filled}/new", "", "1", "--wait", "100%", "--timeout", "20s")
    assert made["propagation"]["instances"] == 0


def test_interrupting_is_no_error_message(filled: str, watching: object) -> None:
    child = watching(filled)  # type: ignore[operator]
    child.send_signal(2)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (Exit.INTERRUPTED, "", "")


def test_a_wrong_anchor_is_not_watched(shell: Shell, filled: str) -> None:
    told = shell.refused("watch", filled, "--trust", "sha256:" + "0" * 64, ends=Exit.UNVERIFIED)
    assert told["code"] == "untrusted-root"
