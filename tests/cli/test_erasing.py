"""delete, restore, purge, and verifying what is left: taking away from the command line."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from heliograph.cli.erasing import confirm
from heliograph.cli.exits import Exit
from heliograph.core.errors import InvalidRequest

from .conftest import Shell


def test_environment_is_deleted_and_restored(shell: Shell, place: str) -> None:
    shell.run("set", f"{place}/limits", "/max", 1)
    said = shell.refused("delete", place, ends=Exit.INVALID)
    assert "--yes" in said["detail"]
    assert shell.json("get", f"{place}/limits", "/max") == 1
    gone = shell.json("delete", place, "--yes", "--retain", "2h")
    assert gone["deleted"]["erase_at"]
    assert "restored" in shell.refused("get", f"{place}/limits", ends=Exit.NOT_FOUND)["detail"]
    shell.refused("create", place, ends=Exit.CONFLICT)
    namespace, environment = place.split("/")
    assert [each["name"] for each in shell.json("get", namespace, "--deleted")] == [environment]
    assert environment in shell.run("get", namespace, "--deleted").stdout
    assert shell.json("restore", place)["number"] == 2
    assert shell.json("get", f"{place}/limits", "/max") == 1
    assert "is deleted" in shell.run("delete", place, "--yes").stdout
    assert "is there again at version 2" in shell.run("restore", place).stdout


def test_namespace_is_deleted_and_restored(shell: Shell, place: str) -> None:
    namespace = place.split("/", maxsplit=1)[0]
    shell.run("delete", namespace, "--yes")
    shell.refused("get", namespace, ends=Exit.NOT_FOUND)
    assert namespace in [each["name"] for each in shell.json("get", "--deleted")]
    shell.run("restore", namespace)
    assert len(shell.json("get", namespace)) == 1


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        (("delete", "nowhere", "--yes"), Exit.NOT_FOUND),
        (("delete", "nowhere/dev", "--yes"), Exit.NOT_FOUND),
        (("restore", "nowhere"), Exit.NOT_FOUND),
        (("delete", "nowhere/dev", "--yes", "--retain", "1m"), Exit.INVALID),
        (("delete", "nowhere/dev", "--yes", "--message", "why"), Exit.INVALID),
        (("delete", "No/dev", "--yes"), Exit.INVALID),
        (("purge", "shop/dev/a", "2", "--yes"), Exit.INVALID),
        (("purge", "shop/dev/a", "--reason", "r", "--order", "o", "--yes"), Exit.INVALID),
        (("purge", "shop/dev", "--digest", "sha256:x", "--reason", "r", "--order", "o", "--yes"), Exit.INVALID),
        (("purge", "shop", "--digest", "sha256:x", "--reason", "r", "--order", "o", "--yes"), Exit.INVALID),
        (("purge", "shop", "--digest", "sha256:" + "0" * 64, "--reason", "r", "--order", "o"), Exit.INVALID),
    ],
)
def test_what_is_not_understood_changes_nothing(shell: Shell, arguments: tuple[str, ...], ends: Exit) -> None:
    shell.refused(*arguments, ends=ends)


def test_purge_and_what_verifies_afterwards(shell: Shell, place: str, tmp_path: Path) -> None:
    folder = tmp_path / "configs/checkout"
    folder.mkdir(parents=True)
    (folder / "keys.json").write_text('{"password": "hunter2"}')
    (folder / "keys.schema.json").write_text('{"type": "object"}')
    (folder.parent / "other.json").write_text("1")
    shell.run("apply", place, "-f", folder.parent)
    assert shell.json("verify", place, "--from-server", "--at", 2)["configs"] == 2
    why = ("--reason", "leaked", "--order", "DPO-17", "--yes")
    held = shell.refused("purge", f"{place}/checkout/keys", 2, *why, ends=Exit.CONFLICT)
    assert held["code"] == "still-named"
    shell.run("set", f"{place}/checkout/keys", "/password", "null")
    told = shell.json("purge", f"{place}/checkout/keys", 2, *why)
    assert (len(told["digests"]), told["order"]) == (1, "DPO-17")
    assert {"backups", "clients"} <= {each["where"] for each in told["remains"]}
    assert "purged before" in shell.run("purge", f"{place}/checkout/keys", 2, *why).stdout

    checked = shell.json("verify", place, "--from-server", "--at", 2)
    assert (checked["version"], checked["configs"], checked["purged"]) == (2, 2, 1)
    assert "purged" not in shell.json("verify", place, "--from-server", "--at", 3)
    assert shell.json("verify", place, "--from-server")["head"] == 3
    shell.refused("rollback", place, 2, ends=Exit.CONFLICT)
    assert "purged" in shell.run("log", f"{place}/checkout/keys").stdout
    (listed,) = shell.json("purges", place.split("/", maxsplit=1)[0])
    assert listed["envelope"]["payloadType"].endswith("purge.v1+json")
    assert "DPO-17" in shell.run("purges", place.split("/", maxsplit=1)[0]).stdout
    shell.refused("verify", place, "--at", 2, ends=Exit.INVALID)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("typed", ["shop/dev", "shop/prod"])
def test_name_must_be_typed(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(f"{typed}\n"))
    if typed == "shop/dev":
        confirm("this deletes shop/dev", "shop/dev")
    else:
        with pytest.raises(InvalidRequest, match="another name"):
            confirm("this deletes shop/dev", "shop/dev")
