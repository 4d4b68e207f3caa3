"""Commands that change something, against a real stack."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from heliograph.cli.exits import Exit

from .conftest import Shell

LIMITS = {"max_items": 20, "currency": "EUR"}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"max_items": {"type": "integer", "maximum": 100}, "currency": {"enum": ["EUR", "USD"]}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf/checkout").mkdir(parents=True)
    (tmp_path / "conf/checkout/limits.json").write_text(json.dumps(LIMITS))
    (tmp_path / "conf/checkout/limits.schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "conf/features.json").write_text('{"search": true}')
    return tmp_path / "conf"


def number(shell: Shell, place: str) -> int:
    return int(shell.json("show", place)["number"])


# --- apply ------------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_one_version(shell: Shell, place: str, folder: Path) -> None:
    made = shell.json("apply", place, "-f", folder, "-m", "First: größer")
    assert (made["number"], made["change_count"], made["message"]) == (2, 2, "First: größer")
    assert shell.json("get", f"{place}/checkout/limits") == LIMITS
    assert shell.json("get", f"{place}/checkout/limits", "--schema") == SCHEMA


def test_applying_the_same_again_publishes_nothing(shell: Shell, place: str, folder: Path) -> None:
    shell.run("apply", place, "-f", folder)
    assert shell.json("apply", place, "-f", folder)["unchanged"] is True
    assert "nothing to change" in shell.run("apply", place, "-f", folder).stdout
    assert number(shell, place) == 2


def test_one_invalid_file_and_nothing_is_published(shell: Shell, place: str, folder: Path) -> None:
    (folder / "checkout/limits.json").write_text('{"max_items": 2000, "currency": "DOGE", "extra": 1}')
    told = shell.refused("apply", place, "-f", folder, ends=Exit.INVALID)
    assert {each["pointer"] for each in told["faults"]} >= {"checkout/limits#/max_items", "checkout/limits#/currency"}
    shown = shell.run("apply", place, "-f", folder, ends=Exit.INVALID).stderr
    assert "checkout/limits#/max_items" in shown
    assert "maximum" in shown
    assert "2000" not in shown
    assert number(shell, place) == 1


def test_a_file_for_a_folder_and_for_a_config(shell: Shell, place: str, folder: Path) -> None:
    shell.run("apply", f"{place}/shop/", "-f", folder / "features.json")
    shell.run("apply", f"{place}/other", "-f", folder / "features.json")
    assert shell.json("get", f"{place}/shop/features") == shell.json("get", f"{place}/other") == {"search": True}
    told = shell.refused("apply", f"{place}/other", "-f", folder, ends=Exit.INVALID)
    assert f"write {place}/other/" in told["detail"]


def test_dry_run_tells_and_changes_nothing(shell: Shell, place: str, folder: Path) -> None:
    shell.run("apply", place, "-f", folder)
    (folder / "features.json").unlink()
    (folder / "checkout/limits.json").write_text('{"currency": "EUR", "max_items": 21}')
    (folder / "new.json").write_text("1")
    told = {each["name"]: each["change"] for each in shell.json("apply", place, "-f", folder, "--prune", "--dry-run")}
    assert told == {"checkout/limits": "change", "new": "add", "features": "delete"}
    shown = shell.run("apply", place, "-f", folder, "--dry-run").stdout
    assert '-  "max_items": 20' in shown
    assert '+  "max_items": 21' in shown
    assert "features" not in shown
    assert number(shell, place) == 2


def test_prune_deletes_what_the_folder_lacks_and_only_below_the_target(shell: Shell, place: str, folder: Path) -> None:
    shell.run("apply", place, "-f", folder)
    shell.run("set", f"{place}/checkout/deep/er", "", "1")
    told = shell.refused("apply", f"{place}/checkout/", "-f", folder / "checkout", "--prune", ends=Exit.INVALID)
    assert "deletes checkout/deep/er" in told["detail"]
    made = shell.json("apply", f"{place}/checkout/", "-f", folder / "checkout", "--prune", "--yes")
    assert made["changes"] == ["checkout/deep/er"]
    assert [each["name"] for each in shell.json("get", place)] == ["checkout/", "features"]


def test_the_first_apply_to_a_folder_may_prune(shell: Shell, place: str, folder: Path) -> None:
    looked = shell.json("apply", f"{place}/new/", "-f", folder / "checkout", "--prune", "--dry-run")
    assert {each["change"] for each in looked} == {"add"}
    made = shell.json("apply", f"{place}/new/", "-f", folder / "checkout", "--prune", "--yes")
    assert made["changes"] == [each["name"] for each in looked]


def test_only_on_top_of_the_version_that_was_looked_at(shell: Shell, place: str, folder: Path) -> None:
    seen = shell.json("show", place)["version"]
    shell.run("set", f"{place}/other", "", "1")
    told = shell.refused("apply", place, "-f", folder, "--if-match", seen, ends=Exit.CONFLICT)
    assert (told["code"], told["number"]) == ("stale-base", 2)
    shown = shell.run("apply", place, "-f", folder, "--if-match", seen, ends=Exit.CONFLICT).stderr
    assert "the head is version 2" in shown
    assert number(shell, place) == 2


# --- set, delete, publish ---------------------------------------------------------------------------------------------------------


def test_one_value_at_a_time(shell: Shell, place: str) -> None:
    at = f"{place}/limits"
    shell.run("set", at, "/max_items", "20")
    shell.run("set", at, "/names/first", "plain text")
    shell.run("set", at, "/names/second", '"123"')
    shell.run("set", at, "/list", "[1]")
    shell.run("set", at, "/list/-", "-2.5", "-m", "more")
    assert shell.json("get", at) == {"max_items": 20, "names": {"first": "plain text", "second": "123"}, "list": [1, -2.5]}
    assert shell.json("log", place)[0]["message"] == "more"


def test_a_value_that_is_almost_json_is_refused(shell: Shell, place: str) -> None:
    for value in ('{"a":', "[1,]", '{"a":1,"a":2}', "9007199254740993", "-Infinity"):
        shell.refused("set", f"{place}/limits", "", value, ends=Exit.INVALID)
    assert number(shell, place) == 1


def test_many_who_set_different_values_lose_none(shell: Shell, place: str) -> None:
    """Each reads, changes, and writes on top of what it read; who was overtaken does it again."""
    shell.run("set", f"{place}/limits", "", "{}")
    url, token = shell.stack.url, shell.stack.admin_token
    done = threading.Event()

    def others() -> None:
        namespace, environment = place.split("/")
        path = f"{url}/v1/namespaces/{namespace}/environments/{environment}/configs/unrelated"
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, trust_env=False) as http:
            for value in range(15):
                http.put(path, json=value).raise_for_status()
        done.set()

    thread = threading.Thread(target=others)
    thread.start()
    wanted = {}
    while not done.is_set() or len(wanted) < 3:
        wanted[f"k{len(wanted)}"] = len(wanted)
        shell.run("set", f"{place}/limits", f"/k{len(wanted) - 1}", len(wanted) - 1)
    thread.join()
    assert shell.json("get", f"{place}/limits") == wanted


def test_delete_and_roll_back(shell: Shell, place: str) -> None:
    shell.run("set", f"{place}/limits", "", "1")
    root = shell.json("show", place)["root"]
    assert shell.json("delete", f"{place}/limits", "-m", "gone")["number"] == 3
    shell.refused("get", f"{place}/limits", ends=Exit.NOT_FOUND)
    shell.refused("delete", f"{place}/limits", ends=Exit.NOT_FOUND)
    back = shell.json("rollback", place, 2, "-m", "oops")
    assert (back["number"], back["kind"], back["root"], back["message"]) == (4, "rollback", root, "oops")
    by_id = shell.json("rollback", place, shell.json("show", place, 3)["version"])
    assert by_id["number"] == 5
    shell.refused("rollback", place, 99, ends=Exit.NOT_FOUND)
    shell.refused("rollback", place, "yesterday", ends=Exit.INVALID)


def test_publish_takes_json_as_it_is(shell: Shell, place: str, folder: Path) -> None:
    shell.run("publish", f"{place}/limits", stdin='{"a": 1.0}')
    shell.run("publish", f"{place}/features", "--file", folder / "features.json")
    changes = [{"name": "limits", "delete": True}, {"name": "new", "document": [], "schema": {"type": "array"}}]
    made = shell.json("publish", place, stdin=json.dumps(changes))
    assert made["changes"] == ["limits", "new"]
    told = shell.refused("publish", place, stdin='[{"name": "new", "document": {}}]', ends=Exit.INVALID)
    assert told["faults"][0]["pointer"] == "new#"
    for nonsense in ("{}", "[1]", "", '[{"document": 1}]'):
        shell.refused("publish", place, stdin=nonsense, ends=Exit.INVALID)


def test_create_namespaces_and_environments(shell: Shell, place: str) -> None:
    namespace = place.partition("/")[0]
    assert shell.json("create", f"{namespace}/staging")["number"] == 1
    assert [each["name"] for each in shell.json("get", namespace)] == ["dev", "staging"]
    assert namespace in {each["name"] for each in shell.json("get")}
    shell.refused("create", namespace, ends=Exit.CONFLICT)
    shell.refused("create", place, ends=Exit.CONFLICT)
    shell.refused("create", "No Namespace", ends=Exit.INVALID)


# --- waiting for receipts ---------------------------------------------------------------------------------------------------------


@contextmanager
def instance(shell: Shell, place: str, *answers: str | None, declares: dict[str, str] | None = None) -> Iterator[None]:
    """A client that speaks the protocol by hand and answers with these states, one after the other and then always the last; or never."""
    namespace, environment = place.split("/")
    token = shell.json("token", "create", "client", "by hand", "--scope", place)["token"]
    endpoints = httpx.get(f"{shell.stack.url}/v1/endpoints", trust_env=False).json()
    hello = {
        "type": "hello",
        "instance": f"0198a000-0000-7000-8000-{abs(hash(place)) % 10**12:012d}",
        "incarnation": 1,
        "fingerprint": {"sdk": "by-hand", "sdk_version": "1"},
        "subscriptions": [{"id": 1, "namespace": namespace, "environment": environment, "declares": declares or {}}],
    }
    headers = {"Authorization": f"Bearer {token}"}
    with connect(endpoints["stream"], subprotocols=["heliograph.v1"], additional_headers=headers, proxy=None) as socket:
        socket.send(json.dumps(hello))
        while json.loads(socket.recv(60))["type"] != "snapshot":
            continue
        answering = threading.Thread(target=_answer, args=(socket, answers))
        answering.start()
        _until_counted(shell, place)
        yield
        socket.close()
        answering.join()


def _answer(socket: Any, states: tuple[str | None, ...]) -> None:
    """Until the socket is closed, be it between a frame and its receipt."""
    seq = 0
    for text in socket:
        frame = json.loads(text)
        state = states[min(seq, len(states) - 1)]
        if state and frame["type"] in ("delta", "advance", "snapshot"):
            head = json.loads(frame["head"]["payload"])
            seq += 1
            receipt = {"type": "receipt", "seq": seq, "subscription": 1, "state": state, "reason": "not today"}
            receipt["trace"] = frame.get("trace")
            with suppress(ConnectionClosedOK):
                socket.send(json.dumps(receipt | {key: head[key] for key in ("epoch", "number", "version")}))


def _until_counted(shell: Shell, place: str) -> None:
    while not any(each["connected"] for each in shell.json("instances", place)):
        continue


def test_waiting_ends_when_the_share_has_it(shell: Shell, place: str) -> None:
    with instance(shell, place, "applied"):
        made = shell.json("set", f"{place}/limits", "", "1", "--wait", "100%", "--timeout", "20s")
        assert made["wait"]["reached"]
        assert made["propagation"]["applied"] == made["propagation"]["instances"] == 1
        shown = shell.run("set", f"{place}/limits", "", "2", "--wait", "100%", "--timeout", "20s").stdout
        assert "1 instance: 1 applied" in shown
        assert "applied after" in shown


def test_a_share_that_does_not_answer_is_a_timeout_and_the_version_stays(shell: Shell, place: str) -> None:
    with instance(shell, place, None):
        made = shell.json("set", f"{place}/limits", "", "1", "--wait", "95%", "--timeout", "300ms", ends=Exit.TIMEOUT)
        assert (made["wait"]["reached"], made["propagation"]["missing"]) == (False, 1)
    assert shell.json("get", f"{place}/limits") == 1


def test_a_share_that_refuses_ends_the_wait_and_says_why(shell: Shell, place: str) -> None:
    with instance(shell, place, "rejected"):
        shown = shell.run("set", f"{place}/limits", "", "1", "--wait", "95%", "--timeout", "20s", ends=Exit.REJECTED)
        assert "1 rejected" in shown.stdout
        assert "not today" in shown.stdout


def test_nobody_to_wait_for(shell: Shell, place: str) -> None:
    made = shell.json("set", f"{place}/limits", "", "1", "--wait", "100%", "--timeout", "20s")
    assert (made["wait"]["reached"], made["propagation"]["instances"]) == (True, 0)


def test_a_wait_that_is_none_is_a_usage_error(shell: Shell, place: str) -> None:
    shell.run("set", f"{place}/limits", "", "1", "--wait", "most", ends=Exit.USAGE)
    shell.run("set", f"{place}/limits", "", "1", "--wait", "50%", "--timeout", "soon", ends=Exit.USAGE)
    assert number(shell, place) == 1
