"""Dead letters from the command, on a real stack: a version that an instance refuses, told again, refused again, discarded."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from heliograph.cli.exits import Exit

from .conftest import Shell
from .test_changing import instance

DEADLINE_S = 120.0


def until(check: Callable[[], Any]) -> Any:
    ends = time.monotonic() + DEADLINE_S
    while not (found := check()):
        assert time.monotonic() < ends, f"not so after {DEADLINE_S} s"
    return found


def test_a_refused_version_is_a_letter_that_can_be_told_again_and_discarded(shell: Shell, place: str) -> None:
    assert "no dead letters" in shell.run("dead-letters", "list", "--in", place).stdout
    with instance(shell, place, "rejected"):
        made = shell.json("set", f"{place}/limits", "", "1", "--wait", "95%", "--timeout", "20s", ends=Exit.REJECTED)
        (letter,) = until(lambda: shell.json("dead-letters", "list", "--in", place))
        assert (letter["stream"], letter["consumer"], letter["reason"]) == ("deliveries", "instances", "not today")
        assert (letter["number"], letter["version"], letter["instances"]) == (2, made["version"], 1)
        assert "not today" in shell.run("dead-letters", "list", "--in", place).stdout

        assert shell.json("dead-letters", "replay", "--in", place, "--dry-run")["matched"] == 1
        done = shell.json("dead-letters", "replay", letter["id"])
        assert (done["done"], done["failed"]) == ([letter["id"]], [])

        def failed_again() -> Any:
            (found,) = shell.json("dead-letters", "list", "--in", place, "--state", "all")
            return found if found["attempts"] == 2 else None

        found = until(failed_again)
        assert (found["id"], found["state"], found["replays"]) == (letter["id"], "waiting", 1)
    shown = shell.run("dead-letters", "show", letter["id"]).stdout
    assert "not today" in shown
    assert letter["sample"][0] in shown
    shell.run("dead-letters", "discard", letter["id"], ends=Exit.USAGE)  # the reason is missing
    assert "1 dead letter discarded" in shell.run("dead-letters", "discard", letter["id"], "--reason", "rolled back").stdout
    (settled,) = shell.json("dead-letters", "list", "--in", place, "--state", "discarded")
    assert settled["note"] == "rolled back"
    assert shell.json("dead-letters", "discard", letter["id"], "-m", "again", ends=Exit.CONFLICT)["skipped"] == [letter["id"]]


def test_a_push_again_that_is_taken_settles_it(shell: Shell, place: str) -> None:
    with instance(shell, place, "rejected", "applied"):
        shell.run("set", f"{place}/limits", "", "1", "--wait", "95%", "--timeout", "20s", ends=Exit.REJECTED)
        (letter,) = until(lambda: shell.json("dead-letters", "list", "--in", place))
        shell.run("dead-letters", "replay", letter["id"])
        # its receipts may be closed by now, and keep the first answer; what it runs is told as ever
        (found,) = until(
            lambda: [each for each in shell.json("instances", place) if each["last_receipt"]["state"] == "applied"]
        )
        assert found["runs"]["number"] == 2
    (found,) = shell.json("dead-letters", "list", "--in", place, "--state", "all")
    assert found["state"] == "replayed"


def test_documents_in_a_letter(shell: Shell, place: str) -> None:
    with instance(shell, place, "rejected"):
        shell.run("set", f"{place}/limits", "", "1", "--wait", "95%", "--timeout", "20s", ends=Exit.REJECTED)
        (letter,) = until(lambda: shell.json("dead-letters", "list", "--in", place))
    event = shell.json("dead-letters", "show", letter["id"], "--documents")["event"]
    assert (event["type"], event["state"]) == ("received", "rejected")


def test_which_letters_must_be_said(shell: Shell) -> None:
    shell.refused("dead-letters", "replay", ends=Exit.INVALID)
    shell.refused("dead-letters", "replay", 1, "--stream", "versions", ends=Exit.INVALID)
    shell.refused("dead-letters", "list", "--stream", "letters", ends=Exit.INVALID)
    shell.run("dead-letters", "list", "--older-than", "soon", ends=Exit.USAGE)
    shell.refused("dead-letters", "show", 999_999, ends=Exit.NOT_FOUND)
    assert shell.json("dead-letters", "replay", 999_999, ends=Exit.CONFLICT)["skipped"] == [999_999]


def two_letters(shell: Shell, place: str) -> list[int]:
    with instance(shell, place, "rejected"):
        for value in ("1", "2"):
            shell.run("set", f"{place}/limits", "", value, "--wait", "95%", "--timeout", "20s", ends=Exit.REJECTED)
        found = until(lambda: len(shell.json("dead-letters", "list", "--in", place)) == 2)
        assert found
    return [each["id"] for each in shell.json("dead-letters", "list", "--in", place)]


def test_many_are_settled_only_when_that_is_confirmed(shell: Shell, place: str) -> None:
    numbers = two_letters(shell, place)
    told = shell.refused("dead-letters", "discard", "--in", place, "-m", "x", ends=Exit.INVALID)
    assert "2 dead letters" in told["detail"]
    shell.run("dead-letters", "discard", "--in", place, "-m", "x", ends=Exit.INVALID)  # nobody at a terminal
    assert len(shell.json("dead-letters", "list", "--in", place)) == 2
    done = shell.json("dead-letters", "discard", "--in", place, "--matching", "TODAY", "-m", "x", "--yes")
    assert done["done"] == numbers


def test_a_person_is_asked(shell: Shell, place: str) -> None:
    numbers = two_letters(shell, place)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "heliograph.cli", "dead-letters", "replay", *map(str, numbers)]
    env = os.environ | {"HELIOGRAPH_DATA_DIR": str(shell.stack.data_dir)}
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        os.write(ours, b"n\n")
        out, _ = child.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    assert b"Replay 2 dead letters?" in out
    assert child.returncode == Exit.FAILED
    assert {each["replays"] for each in shell.json("dead-letters", "list", "--in", place)} == {0}
