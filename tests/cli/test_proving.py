"""Receipts, instances, drift, health, and verification without trust in the server."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heliograph.cli.exits import Exit

from .conftest import Shell, Stack
from .test_changing import instance

# --- receipts and instances -------------------------------------------------------------------------------------------------------


def test_receipts_of_a_version(shell: Shell, place: str) -> None:
    with instance(shell, place, "applied"):
        shell.run("set", f"{place}/limits", "", "1", "--wait", "100%", "--timeout", "20s")
        told = shell.json("receipts", place, 2, "--all")
        assert (told["applied"], told["missing"], len(told["receipts"])) == (1, 0, 1)
        assert shell.json("receipts", f"{place}/2")["number"] == shell.json("receipts", place)["number"] == 2
        shown = shell.run("receipts", place, 2, "--all").stdout
        assert "1 instance: 1 applied" in shown
        assert told["receipts"][0]["instance"] in shown
    shell.refused("receipts", place, 99, ends=Exit.NOT_FOUND)


def test_who_is_connected(shell: Shell, place: str) -> None:
    assert shell.run("instances", place).stdout.strip() == "nobody is connected"
    with instance(shell, place, None):
        (one,) = shell.json("instances", place)
        assert (one["connected"], one["fingerprint"]["sdk"]) == (True, "by-hand")
        assert "by-hand 1" in shell.run("instances", place).stdout


def test_no_drift(shell: Shell, place: str) -> None:
    assert shell.json("drift", place) == []
    assert "everybody runs the head" in shell.run("drift", place).stdout


def test_health_of_every_service(shell: Shell) -> None:
    assert {name: told["status"] for name, told in shell.json("health").items()} == dict.fromkeys(
        ("registry", "sync", "ledger"), "ready"
    )
    away = "http://127.0.0.1:1"
    told = json.loads(shell.run("health", "--also", away, "--json", ends=Exit.UNAVAILABLE).stdout)
    assert (told["registry"]["status"], told[away]["status"]) == ("ready", "unreachable")


def test_a_server_that_is_away(shell: Shell) -> None:
    shell.env["HELIOGRAPH_URL"] = "http://127.0.0.1:1"
    assert shell.refused("get", "shop/dev", ends=Exit.UNAVAILABLE)["code"] == "unavailable"
    told = json.loads(shell.run("health", "--json", ends=Exit.UNAVAILABLE).stdout)
    assert {each["status"] for each in told.values()} == {"unreachable"}
    for nonsense in ("nowhere", "ftp://x", "http://"):
        shell.env["HELIOGRAPH_URL"] = nonsense
        shell.refused("get", "shop/dev", ends=Exit.INVALID)


# --- verify -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def anchor(shell: Shell) -> str:
    return str(shell.json("trust")["anchor"])


@pytest.fixture(scope="session")
def downloaded(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five versions of two configs, as --save keeps them."""
    shell, folder = Shell(stack), tmp_path_factory.mktemp("verify") / "saved"
    shell.run("create", "proven/dev")
    for number in range(3):
        shell.run("set", "proven/dev/checkout/limits", "", number)
    shell.run("set", "proven/dev/features", "", "true")
    shell.run("verify", "proven/dev", "--from-server", "--save", folder)
    return folder


@pytest.fixture
def saved(downloaded: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(downloaded, tmp_path / "saved"))


def test_what_the_server_says_is_checked_against_its_own_folders_root(shell: Shell, downloaded: Path) -> None:
    told = shell.json("verify", "proven/dev", "--from-server")
    assert (told["versions"], told["head"], told["configs"]) == (5, 5, 2)
    assert sorted(each.name for each in downloaded.iterdir()) == ["bundle.json", "history.ndjson", "trust.json"]


def test_offline(shell: Shell, saved: Path, anchor: str) -> None:
    shell.env["HELIOGRAPH_URL"] = "http://127.0.0.1:1"
    shell.env["HELIOGRAPH_TRUST"] = anchor
    assert shell.json("verify", saved / "history.ndjson")["versions"] == 5
    assert shell.json("verify", saved / "bundle.json")["configs"] == 2
    moved = saved.rename(saved.with_name("moved"))
    (moved / "trust.json").rename(saved.with_name("elsewhere.json"))
    shell.refused("verify", moved / "bundle.json", ends=Exit.INVALID)
    shell.run("verify", moved / "bundle.json", "--root", saved.with_name("elsewhere.json"))


def test_a_client_token_is_an_anchor_too(shell: Shell, place: str, saved: Path) -> None:
    token = shell.json("token", "create", "client", "auditor", "--scope", place)["token"]
    assert shell.json("verify", saved / "history.ndjson", "--trust", token)["versions"] == 5
    author = shell.json("token", "create", "author", "somebody", "--scope", place)["token"]
    shell.refused("verify", saved / "history.ndjson", "--trust", author, ends=Exit.INVALID)
    shell.refused("verify", saved / "history.ndjson", "--trust", token[:-1], ends=Exit.DENIED)


def test_without_an_anchor_nothing_is_verified(shell: Shell, saved: Path) -> None:
    told = shell.refused("verify", saved / "history.ndjson", ends=Exit.INVALID)
    assert "--trust" in told["detail"]


def test_another_servers_anchor(shell: Shell, saved: Path) -> None:
    other = "sha256:" + "0" * 64
    for arguments in ((saved / "history.ndjson",), (saved / "bundle.json",), ("proven/dev", "--from-server")):
        told = shell.refused("verify", *arguments, "--trust", other, ends=Exit.UNVERIFIED)
        assert told["code"] == "untrusted-root"


def payload(line: str) -> dict[str, Any]:
    return dict(json.loads(json.loads(line)["payload"]))


def with_payload(line: str, **changed: object) -> str:
    return json.dumps(
        json.loads(line) | {"payload": json.dumps(payload(line) | changed, separators=(",", ":"), sort_keys=True)}
    )


Lines = list[str]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda lines: lines[1:], id="the beginning is missing"),
        pytest.param(lambda lines: lines[:2] + lines[3:], id="one in the middle is missing"),
        pytest.param(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], id="two change places"),
        pytest.param(lambda lines: [*lines, lines[-1]], id="one stands twice"),
        pytest.param(lambda lines: [*lines[:3], with_payload(lines[3], author="somebody"), lines[4]], id="another author"),
        pytest.param(
            lambda lines: [*lines[:3], with_payload(lines[3], root="sha256:" + "0" * 64), lines[4]], id="another root"
        ),
        pytest.param(
            lambda lines: [*lines[:3], json.dumps(json.loads(lines[3]) | {"signatures": []}), lines[4]], id="no signature"
        ),
        pytest.param(
            lambda lines: [
                *lines[:3],
                json.dumps(json.loads(lines[3]) | {"signatures": json.loads(lines[2])["signatures"]}),
                lines[4],
            ],
            id="another's signature",
        ),
        pytest.param(lambda lines: [*lines[:3], "{}", lines[4]], id="a line that is nothing"),
    ],
)
def test_a_history_that_was_touched(shell: Shell, saved: Path, anchor: str, spoil: Callable[[Lines], Lines]) -> None:
    file = saved / "history.ndjson"
    file.write_text("\n".join(spoil(file.read_text().splitlines())) + "\n")
    result = shell.run("verify", file, "--trust", anchor, "--json", ends=_either(shell, file, anchor))
    assert json.loads(result.stderr)["code"] in {"forked", "bad-digest", "bad-signature", "malformed-frame"}


def _either(shell: Shell, file: Path, anchor: str) -> Exit:
    """A line that is no statement is invalid; everything else does not verify."""
    return Exit.INVALID if "\n{}\n" in file.read_text() else Exit.UNVERIFIED


def test_the_end_of_a_history_may_be_missing_but_not_of_the_head(shell: Shell, saved: Path, anchor: str) -> None:
    """A shorter history is a true one; only a head can say that it is old."""
    file = saved / "history.ndjson"
    file.write_text("\n".join(file.read_text().splitlines()[:3]))
    assert shell.json("verify", file, "--trust", anchor)["versions"] == 3


def test_a_history_of_two_environments_is_none(shell: Shell, saved: Path, anchor: str, tmp_path: Path) -> None:
    shell.run("create", "mixed/dev")
    shell.run("verify", "mixed/dev", "--from-server", "--save", tmp_path / "other")
    lines = (tmp_path / "other/history.ndjson").read_text().splitlines()[:1] + (
        saved / "history.ndjson"
    ).read_text().splitlines()[1:]
    (saved / "history.ndjson").write_text("\n".join(lines))
    shell.refused("verify", saved / "history.ndjson", "--trust", anchor, ends=Exit.UNVERIFIED)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda frame: frame["changes"][0].update(document="7"), id="a tampered document"),
        pytest.param(lambda frame: frame["changes"].pop(), id="a withheld config"),
        pytest.param(lambda frame: frame["changes"].append(frame["changes"][0] | {"name": "more"}), id="an added config"),
        pytest.param(lambda frame: frame["head"].update(signatures=[]), id="an unsigned head"),
        pytest.param(lambda frame: frame["head"].update(frame["version"]), id="a version as the head"),
    ],
)
def test_a_bundle_that_was_touched(shell: Shell, saved: Path, anchor: str, spoil: Callable[[dict[str, Any]], object]) -> None:
    file = saved / "bundle.json"
    frame = json.loads(file.read_text())
    spoil(frame)
    file.write_text(json.dumps(frame))
    shell.refused("verify", file, "--trust", anchor, ends=Exit.UNVERIFIED)


def test_files_that_are_neither(shell: Shell, saved: Path, anchor: str) -> None:
    for text in ("", "hello", "[]", '{"type":"welcome"}'):
        (saved / "what").write_text(text)
        shell.refused("verify", saved / "what", "--trust", anchor, ends=Exit.INVALID)
    shell.refused("verify", saved / "nowhere", "--trust", anchor, ends=Exit.INVALID)
    (saved / "trust.json").write_text("{}")
    shell.refused("verify", saved / "bundle.json", "--trust", anchor, ends=Exit.UNVERIFIED)


def test_the_servers_trust_root_is_shown_for_comparison(shell: Shell, anchor: str) -> None:
    assert anchor in shell.run("trust").stdout
    root = json.loads((shell.stack.data_dir / "keys/root.json").read_text())
    keyid = json.loads(root["payload"])["roles"]["root"]["keyids"][0]
    assert anchor.removeprefix("sha256:").startswith(keyid)
    assert base64.b64decode(json.loads(root["payload"])["keys"][keyid])
