"""edit: an editor that is a script, a real stack, and a person at a terminal."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from heliograph.cli.exits import Exit

from .conftest import Shell
from .terminal import Terminal

SCHEMA = '{"properties": {"max": {"maximum": 100}}}'


@pytest.fixture
def config(shell: Shell, place: str) -> str:
    shell.run("set", f"{place}/limits", "", '{"max": 1, "min": 0}')
    return f"{place}/limits"


def editor(shell: Shell, folder: Path, body: str) -> Shell:
    """A shell in which $EDITOR runs Python code, with the file's path as ``path`` and its text as ``text``."""
    script = folder / "editor"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n{body}\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return Shell(shell.stack, {"VISUAL": None, "EDITOR": str(script), "TMPDIR": str(folder)})


def kept(folder: Path) -> list[Path]:
    return list(folder.glob("dev-*.json"))


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_what_was_edited_is_published(shell: Shell, config: str, tmp_path: Path) -> None:
    person = editor(shell, tmp_path, 'path.write_text(text.replace("1", "5"))')
    assert person.json("edit", config, "-m", "more")["message"] == "more"
    assert shell.json("get", config) == {"max": 5, "min": 0}
    assert kept(tmp_path) == []


def test_nothing_edited_is_nothing_published(shell: Shell, config: str, tmp_path: Path) -> None:
    person = editor(shell, tmp_path, 'path.write_text("{ " + text.strip()[1:])')
    assert "nothing was changed" in person.run("edit", config).stdout
    assert person.json("edit", config) == {"unchanged": True}
    assert kept(tmp_path) == []


def test_a_config_that_is_not_there_yet(shell: Shell, place: str, tmp_path: Path) -> None:
    person = editor(shell, tmp_path, "assert text.strip() == '{}'\npath.write_text('{\"a\": 1}')")
    person.run("edit", f"{place}/new/config")
    assert shell.json("get", f"{place}/new/config") == {"a": 1}


@pytest.mark.parametrize("text", ['{"max": 1, "max": 2}', '{"max": ', '{"max": 500}'])
def test_a_text_that_is_refused_stays_in_a_file(shell: Shell, config: str, tmp_path: Path, text: str) -> None:
    schema = tmp_path / "limits.schema.json"
    schema.write_text(SCHEMA)
    shell.run("apply", config, "-f", schema)
    person = editor(shell, tmp_path, f"path.write_text({text!r})")
    told = person.refused("edit", config, ends=Exit.INVALID)
    (file,) = kept(tmp_path)
    assert str(file) in told["detail"]
    assert file.read_text() == text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert shell.json("get", config) == {"max": 1, "min": 0}


def test_an_editor_that_fails_publishes_nothing(shell: Shell, config: str, tmp_path: Path) -> None:
    told = editor(shell, tmp_path, "path.write_text('5')\nsys.exit(3)").refused("edit", config, ends=Exit.INVALID)
    assert "status 3" in told["detail"]
    missing = Shell(shell.stack, {"VISUAL": "/no/such/editor"}).refused("edit", config, ends=Exit.INVALID)
    assert "VISUAL" in missing["detail"]
    assert shell.json("get", config) == {"max": 1, "min": 0}


def meanwhile(shell: Shell, config: str, pointer: str, value: str) -> str:
    """Code that publishes while the editor is open."""
    command = [sys.executable, "-m", "heliograph.cli", "set", config, pointer, value, "--data-dir", str(shell.stack.data_dir)]
    return f"import subprocess\nsubprocess.run({command!r}, check=True, stdout=subprocess.DEVNULL)"


def test_what_others_change_meanwhile_is_kept(shell: Shell, config: str, tmp_path: Path) -> None:
    code = meanwhile(shell, config, "/min", "7") + '\npath.write_text(text.replace("1", "5"))'
    assert editor(shell, tmp_path, code).json("edit", config)["rebased"]["number"] == 2
    assert shell.json("get", config) == {"max": 5, "min": 7}


def test_a_conflict_without_a_terminal_keeps_the_text(shell: Shell, config: str, tmp_path: Path) -> None:
    code = meanwhile(shell, config, "/max", "7") + '\npath.write_text(text.replace("1", "5"))'
    told = editor(shell, tmp_path, code).refused("edit", config, ends=Exit.CONFLICT)
    assert told["differences"][0]["conflicts"] == ["/max"]
    (file,) = kept(tmp_path)
    assert str(file) in told["detail"]
    assert shell.json("get", config) == {"max": 7, "min": 0}


def env_of(person: Shell) -> dict[str, str]:
    return {name: value for name, value in person.env.items() if value is not None}


def test_a_conflict_at_a_terminal_is_walked_through(shell: Shell, config: str, tmp_path: Path) -> None:
    code = meanwhile(shell, config, "/max", "7") + '\npath.write_text(text.replace("1", "5").replace("0", "9"))'
    person = editor(shell, tmp_path, code)
    with Terminal(shell.stack, "edit", config, **env_of(person)) as screen:
        screen.sees("has changed meanwhile")
        screen.sees("limits /max")
        screen.sees("q to stop")
        screen.types("y")
        screen.sees("version 4")
        assert screen.ends() == Exit.OK
    assert shell.json("get", config) == {"max": 5, "min": 9}
    assert kept(tmp_path) == []


def test_a_refused_text_can_be_edited_again_at_a_terminal(shell: Shell, config: str, tmp_path: Path) -> None:
    code = "path.write_text('{\"max\": 8}' if text.startswith('oops') else 'oops')"
    person = editor(shell, tmp_path, code)
    with Terminal(shell.stack, "edit", config, **env_of(person)) as screen:
        screen.sees("edit again?")
        screen.types("y")
        assert screen.ends() == Exit.OK
    document: Any = shell.json("get", config)
    assert document == {"max": 8}
