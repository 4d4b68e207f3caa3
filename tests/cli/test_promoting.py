"""branch, promote, and the difference of two environments, against a real stack."""

from __future__ import annotations

import json
from typing import Any

import pytest

from heliograph.cli.exits import Exit

from .conftest import Shell
from .terminal import Terminal


@pytest.fixture
def team(shell: Shell, place: str) -> str:
    """A namespace with dev, and production as a branch of it."""
    shell.run("set", f"{place}/limits", "", '{"max": 1, "min": 0}')
    namespace = place.removesuffix("/dev")
    shell.run("branch", f"{namespace}/production", "--from", place)
    return namespace


def limits(shell: Shell, environment: str) -> Any:
    return shell.json("get", f"{environment}/limits")


def conflicting(shell: Shell, team: str) -> None:
    shell.run("set", f"{team}/dev/limits", "/max", "2")
    shell.run("set", f"{team}/dev/limits", "/min", "2")
    shell.run("set", f"{team}/production/limits", "/max", "3")


def test_branching(shell: Shell, team: str) -> None:
    shell.run("set", f"{team}/dev/limits", "/max", "2")
    made = shell.json("branch", f"{team}/feature", "--from", f"{team}/dev@2")
    assert (made["kind"], made["source"]["number"]) == ("branch", 2)
    assert limits(shell, f"{team}/feature")["max"] == 1
    assert "begins with 1 config" in shell.run("branch", f"{team}/other", "--from", f"{team}/dev").stdout
    assert limits(shell, f"{team}/other")["max"] == 2
    shell.refused("branch", f"{team}/other", "--from", f"{team}/dev", ends=Exit.CONFLICT)
    shell.refused("branch", f"{team}/x", "--from", f"{team}/nowhere", ends=Exit.NOT_FOUND)
    shell.refused("branch", f"{team}/x", "--from", "elsewhere/dev", ends=Exit.INVALID)
    shell.refused("branch", f"{team}/x", "--from", f"{team}/dev@x", ends=Exit.INVALID)


def test_promoting(shell: Shell, team: str) -> None:
    shell.run("set", f"{team}/dev/limits", "/max", "2")
    shell.run("set", f"{team}/production/limits", "/own", "true")
    shown = shell.run("promote", f"{team}/dev", f"{team}/production", "--dry-run").stdout
    assert "/max 2" in shown
    assert limits(shell, f"{team}/production")["max"] == 1
    made = shell.json("promote", f"{team}/dev", f"{team}/production", "-m", "go")
    assert (made["kind"], made["message"], made["changes"]) == ("promote", "go", ["limits"])
    assert limits(shell, f"{team}/production") == {"max": 2, "min": 0, "own": True}
    assert "nothing" in shell.run("promote", f"{team}/dev", f"{team}/production").stdout
    assert shell.json("promote", f"{team}/dev", f"{team}/production")["unchanged"] is True


def test_some_configs_an_older_version_and_one_change(shell: Shell, team: str) -> None:
    shell.run("set", f"{team}/dev/checkout/a", "", "1")
    shell.run("set", f"{team}/dev/limits", "/max", "2")
    shell.run("set", f"{team}/dev/limits", "/min", "9")
    preview = shell.json("promote", f"{team}/dev@3", f"{team}/production", "--dry-run")
    assert [each["name"] for each in preview["items"]] == ["checkout/a"]
    assert shell.json("promote", f"{team}/dev", f"{team}/production", "-c", "checkout/")["changes"] == ["checkout/a"]
    shell.run("promote", f"{team}/dev", f"{team}/production", "--change", "5")
    assert limits(shell, f"{team}/production") == {"max": 1, "min": 9}


def test_without_a_terminal_conflicts_are_listed_and_nothing_happens(shell: Shell, team: str) -> None:
    conflicting(shell, team)
    told = shell.refused("promote", f"{team}/dev", f"{team}/production", ends=Exit.CONFLICT)
    assert told["code"] == "merge-conflict"
    assert [(each["pointer"], each["ours"], each["theirs"]) for each in told["conflicts"]] == [("/max", 3, 2)]
    shown = shell.run("promote", f"{team}/dev", f"{team}/production", ends=Exit.CONFLICT, stdin="o\n").stderr
    assert "limits /max" in shown
    assert "--theirs" in shown
    preview = shell.run("promote", f"{team}/dev", f"{team}/production", "--dry-run", ends=Exit.CONFLICT).stdout
    assert "conflict limits /max" in preview
    assert limits(shell, f"{team}/production") == {"max": 3, "min": 0}


@pytest.mark.parametrize(("side", "value"), [("--ours", 3), ("--theirs", 2)])
def test_one_side_for_all(shell: Shell, team: str, side: str, value: int) -> None:
    conflicting(shell, team)
    assert shell.json("promote", f"{team}/dev", f"{team}/production", side, "--dry-run")["conflict_count"] == 0
    shell.run("promote", f"{team}/dev", f"{team}/production", side)
    assert limits(shell, f"{team}/production") == {"max": value, "min": 2}


def test_both_sides_at_once_make_no_sense(shell: Shell, team: str) -> None:
    shell.run("promote", f"{team}/dev", f"{team}/production", "--ours", "--theirs", ends=Exit.USAGE)


def test_at_a_terminal_each_conflict_is_asked_about(shell: Shell, team: str) -> None:
    conflicting(shell, team)
    shell.run("set", f"{team}/production/limits", "/min", "7")
    with Terminal(shell.stack, "promote", f"{team}/dev", f"{team}/production") as person:
        person.sees("limits /max")
        person.sees("q to stop")
        person.types("x")
        person.sees("q to stop")
        person.types("t")
        person.sees("limits /min")
        person.sees("q to stop")
        person.types("v")
        person.sees("as JSON")
        person.types('{"at": 5}')
        person.sees("promote this")
        person.types("y")
        person.sees("version 4")
        assert person.ends() == Exit.OK
    assert limits(shell, f"{team}/production") == {"max": 2, "min": {"at": 5}}


def test_at_a_terminal_one_can_stop(shell: Shell, team: str) -> None:
    conflicting(shell, team)
    with Terminal(shell.stack, "promote", f"{team}/dev", f"{team}/production") as person:
        person.sees("q to stop")
        person.types("q")
        assert person.ends() == Exit.FAILED
    assert limits(shell, f"{team}/production") == {"max": 3, "min": 0}


def test_the_difference_of_two_environments(shell: Shell, team: str) -> None:
    shell.run("set", f"{team}/dev/limits", "/max", "2")
    shell.run("set", f"{team}/dev/only", "", "1")
    found = shell.json("diff", f"{team}/production", f"{team}/dev")
    assert [(each["name"], each["change"]) for each in found] == [("limits", "changed"), ("only", "added")]
    assert found[0]["operations"] == [{"op": "replace", "path": "/max", "value": 2}]
    back = shell.json("diff", f"{team}/dev@4", f"{team}/production@1")
    assert [(each["name"], each["change"]) for each in back] == [("limits", "changed"), ("only", "removed")]
    assert shell.json("diff", f"{team}/dev@2", f"{team}/production") == []
    assert [each["name"] for each in shell.json("diff", f"{team}/production/only", f"{team}/dev")] == ["only"]
    assert "only" in shell.run("diff", f"{team}/production", f"{team}/dev").stdout
    shell.refused("diff", f"{team}/production", "elsewhere/dev", ends=Exit.INVALID)
    assert json.loads(shell.run("diff", f"{team}/dev", "2", "3", "--json").stdout)[0]["name"] == "limits"


def test_clients_see_what_is_promoted_to_a_branch(shell: Shell, team: str) -> None:
    """The node loads the branch, follows the promotion, and all of it verifies."""
    shell.run("set", f"{team}/dev/limits", "/max", "2")
    with Terminal(shell.stack, "watch", f"{team}/production", "-n", "1") as screen:
        screen.sees("from version 1")
        shell.run("promote", f"{team}/dev", f"{team}/production")
        screen.sees("version 2  limits")
        assert screen.ends() == Exit.OK
    assert shell.json("verify", f"{team}/production", "--from-server")["versions"] == 2


def test_publishing_on_top_of_what_does_not_overlap(shell: Shell, place: str) -> None:
    base = shell.json("set", f"{place}/limits", "", '{"max": 1, "min": 0}')["version"]
    shell.run("set", f"{place}/limits", "/min", "7")
    document = '{"max": 5, "min": 0}'
    shell.refused("publish", f"{place}/limits", "--if-match", base, stdin=document, ends=Exit.CONFLICT)
    made = shell.json("publish", f"{place}/limits", "--if-match", base, "--rebase", stdin=document)
    assert made["rebased"]["version"] == base
    assert limits(shell, place) == {"max": 5, "min": 7}
