from __future__ import annotations

import stat
from pathlib import Path

from heliograph.cli.exits import Exit
from heliograph.core import token

from .conftest import Shell


def test_the_text_alone_is_on_standard_output(shell: Shell, place: str) -> None:
    result = shell.run("token", "create", "client", "web", "--scope", place)
    assert token.parse(result.stdout.strip()).kind == "client"
    assert result.stdout.count("\n") == 1
    assert "only time" in result.stderr
    assert result.stdout.strip() not in result.stderr


def test_or_in_a_file_that_only_we_can_read(shell: Shell, place: str, tmp_path: Path) -> None:
    file = tmp_path / "web.token"
    result = shell.run("token", "create", "client", "web", "--scope", place, "--output", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text().strip()
    assert token.parse(text).kind == "client"
    assert text not in result.stdout + result.stderr
    before = len(shell.json("token", "list"))
    shell.refused("token", "create", "client", "web", "--scope", place, "--output", file, ends=Exit.INVALID)
    assert file.read_text().strip() == text
    assert len(shell.json("token", "list")) == before
    assert text not in shell.run("token", "create", "client", "x", "-s", place, "-o", tmp_path / "other", "--json").stdout


def test_scopes_and_expiry(shell: Shell, place: str) -> None:
    namespace = place.partition("/")[0]
    made = shell.json("token", "create", "author", "ci", "-s", place, "-s", namespace, "--expires", "1h")
    assert made["scopes"] == [
        {"namespace": namespace, "environment": "dev"},
        {"namespace": namespace, "environment": "*"},
    ]
    assert made["expires_at"]
    shell.run("token", "create", "author", "ci", ends=Exit.USAGE)
    shell.run("token", "create", "author", "ci", "-s", place, "--expires", "never", ends=Exit.USAGE)
    shell.refused("token", "create", "robot", "ci", "-s", place, ends=Exit.INVALID)
    shell.refused("token", "create", "author", "ci", "-s", "No Name", ends=Exit.INVALID)


def test_a_token_does_what_its_kind_and_scope_permit_until_it_is_revoked(shell: Shell, place: str) -> None:
    made = shell.json("token", "create", "author", "ci", "-s", place)
    author = Shell(shell.stack, {"HELIOGRAPH_URL": shell.stack.url, "HELIOGRAPH_TOKEN": made["token"]})
    author.run("set", f"{place}/limits", "", "1")
    assert author.refused("get", "another/dev", ends=Exit.DENIED)["code"] == "forbidden"
    author.refused("token", "list", ends=Exit.DENIED)
    assert made["id"] in shell.run("token", "list").stdout
    shell.run("token", "revoke", made["id"])
    shell.run("token", "revoke", made["id"])
    assert author.refused("get", place, ends=Exit.DENIED)["code"] == "unauthenticated"
    shell.refused("token", "revoke", "tok_nobody", ends=Exit.NOT_FOUND)
    (listed,) = (each for each in shell.json("token", "list") if each["id"] == made["id"])
    assert listed["revoked_at"]
    assert listed["last_used_at"]


def test_no_token_at_all(shell: Shell) -> None:
    nobody = Shell(shell.stack, {"HELIOGRAPH_URL": shell.stack.url, "HELIOGRAPH_DATA_DIR": "/nowhere"})
    told = nobody.refused("get", "shop/dev", ends=Exit.DENIED)
    assert told["code"] == "unauthenticated"


def test_a_token_is_never_in_an_error(shell: Shell, place: str) -> None:
    secret = token.mint("author", "S" * token.SECRET_LENGTH)
    for url in (shell.stack.url, "http://127.0.0.1:1"):
        for output in ((), ("--json",)):
            ends = Exit.DENIED if url == shell.stack.url else Exit.UNAVAILABLE
            result = shell.run("get", place, "--url", url, "--token", secret, *output, ends=ends)
            assert secret not in result.stdout + result.stderr
