"""The next trust root on a running installation: clients follow it, history goes on, and old anchors still count."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from heliograph.blocking import Heliograph
from heliograph.cli.exits import Exit

from .conftest import Shell

DEADLINE_S = 60.0


def installed(shell: Shell, number: int) -> None:
    until = time.monotonic() + DEADLINE_S
    while shell.json("trust")["number"] != number:
        assert time.monotonic() < until, "the registry does not take the next trust root"
        time.sleep(0.1)


def test_keys_are_replaced_while_a_client_runs(shell: Shell, place: str, tmp_path: Path) -> None:
    keys = shell.stack.data_dir / "keys"
    root_key = shutil.copy2(keys / "root.pem", tmp_path / "offline.pem")
    shell.run("set", f"{place}/limits", "", "1")
    namespace, environment = place.split("/")
    token = shell.json("token", "create", "client", "rotation", "--scope", place)["token"]
    before = shell.json("trust")

    def client() -> Heliograph:
        return Heliograph(shell.stack.url, token=token, namespace=namespace, environment=environment, cache_dir=None)

    with client() as running:
        assert running.config("limits").value == 1
        made = shell.json("trust", "next", "--keys", keys, "--root-key", root_key, "--new-commit-key", "--new-head-key")
        assert made["number"] == before["number"] + 1
        installed(shell, made["number"])
        shell.run("set", f"{place}/limits", "", "2")
        assert running.wait_for_version(3, timeout=DEADLINE_S).number == 3
        with client() as later:
            assert later.config("limits").value == 2
    after = shell.json("trust")
    assert after["anchor"] == before["anchor"]
    assert made["commit"] in after["keys"]
    assert set(before["keys"]) & set(after["keys"])
    shell.run("verify", place, "--from-server", "--trust", token)


def test_another_key_makes_no_root(shell: Shell) -> None:
    keys = shell.stack.data_dir / "keys"
    told = shell.refused("trust", "next", "--keys", keys, "--root-key", keys / "head.pem", ends=Exit.UNVERIFIED)
    assert "not the root key" in told["detail"]
    told = shell.refused("trust", "next", "--keys", keys / "nowhere", ends=Exit.INVALID)
    assert "no trust root" in told["detail"]
