"""label, log of a config, blame, instances --at: looking back from the command line."""

from __future__ import annotations

import pytest

from heliograph.cli.exits import Exit
from heliograph.core.times import to_text
from heliograph.runtime.clock import now_us

from .conftest import Shell


def test_label_a_version_and_go_back_to_it(shell: Shell, place: str) -> None:
    for n in range(3):
        shell.run("set", f"{place}/limits", "/max", n)
    made = shell.json("label", "set", place, "release-7", 2)
    assert (made["name"], made["number"]) == ("release-7", 2)
    assert shell.json("label", "set", place, "latest")["number"] == 4
    assert shell.refused("label", "set", place, "release-7", 3, ends=Exit.CONFLICT)["code"] == "conflict"
    assert shell.json("label", "set", place, "release-7", "label:latest", "--move")["number"] == 4
    assert shell.json("label", "set", place, "release-7", 2, "--move")["number"] == 2
    assert [each["name"] for each in shell.json("label", "list", place)] == ["latest", "release-7"]
    assert shell.json("get", f"{place}/limits", "/max", "--at", "label:release-7") == 0
    assert shell.json("show", f"{place}/label:release-7")["number"] == 2
    assert "[latest]" in shell.run("log", place).stdout
    assert shell.json("receipts", place, "label:release-7", "--once")["number"] == 2
    back = shell.json("rollback", place, "label:release-7")
    assert (back["kind"], back["source"]["number"]) == ("rollback", 2)
    shell.run("label", "remove", place, "release-7")
    shell.refused("rollback", place, "label:release-7", ends=Exit.NOT_FOUND)
    shell.refused("rollback", place, "release-7", ends=Exit.INVALID)
    shell.refused("label", "set", place, "Release", ends=Exit.INVALID)
    assert "label:latest is version 4" in shell.run("label", "set", place, "latest", 4).stdout
    assert "latest" in shell.run("label", "list", place).stdout


def test_log_and_blame_of_a_config(shell: Shell, place: str) -> None:
    shell.run("set", f"{place}/limits", "", '{"max": 1, "min": 0}')
    shell.run("set", f"{place}/other", "", "1")
    shell.run("set", f"{place}/limits", "/max", 2, "-m", "more")
    told = shell.json("log", f"{place}/limits")
    assert [(each["number"], each["change"], each["message"]) for each in told] == [(4, "changed", "more"), (2, "added", None)]
    assert len(shell.json("log", f"{place}/limits", "-n", 1)) == 1
    assert "more" in shell.run("log", f"{place}/limits").stdout
    assert "no version changed" in shell.run("log", f"{place}/never").stdout
    blamed = shell.json("blame", f"{place}/limits")
    assert {each["pointer"]: each["number"] for each in blamed["items"]} == {"/max": 4, "/min": 2}
    assert [each["pointer"] for each in shell.json("blame", f"{place}/limits", "/max")["items"]] == ["/max"]
    assert {each["number"] for each in shell.json("blame", f"{place}/limits", "--at", 2)["items"]} == {2}
    assert "/min" in shell.run("blame", f"{place}/limits").stdout
    shell.refused("blame", f"{place}/never", ends=Exit.NOT_FOUND)


def test_as_of_a_time(shell: Shell, place: str) -> None:
    shell.run("set", f"{place}/limits", "/max", 1)
    at = shell.json("show", place)["at"]
    shell.run("set", f"{place}/limits", "/max", 2)
    later = shell.json("show", place)
    assert shell.json("show", place, at)["number"] == (3 if later["at"] == at else 2)
    assert shell.json("get", f"{place}/limits", "/max", "--at", later["at"]) == 2
    shell.refused("get", f"{place}/limits", "--at", "2001-01-01T00:00:00Z", ends=Exit.NOT_FOUND)


def test_who_ran_what_then(shell: Shell, place: str) -> None:
    assert shell.json("instances", place, "--at", to_text(now_us() - 1_000_000)) == []
    assert "nobody was connected then" in shell.run("instances", place, "--at", to_text(now_us() - 1_000_000)).stdout
    told = shell.refused("instances", place, "--at", "2001-01-01T00:00:00Z", ends=Exit.NOT_FOUND)
    assert "not known before" in told["detail"]
    shell.refused("instances", place, "--at", "yesterday", ends=Exit.INVALID)
    shell.refused("instances", place, "--instance", "x", ends=Exit.INVALID)


@pytest.mark.parametrize("version", ["0", "x", "label:", "label:No", "2026-01-01"])
def test_what_names_no_version(shell: Shell, place: str, version: str) -> None:
    assert shell.run("label", "set", place, "a", version, ends=Exit.INVALID)
