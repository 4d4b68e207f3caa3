from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliograph.cli.connection import DEFAULT_URL, Connection, find
from heliograph.core.errors import InvalidRequest, Unauthenticated

HERE = "http://127.0.0.1:7070"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """As `heliograph dev` leaves it."""
    folder = tmp_path / ".heliograph"
    (folder / "tokens").mkdir(parents=True)
    (folder / "tokens/admin.token").write_text("local-secret\n")
    told = {"url": HERE, "token_file": str(folder / "tokens/admin.token")}
    (folder / "cli.json").write_text(json.dumps(told))
    return folder


def test_without_anything_it_is_this_machine_and_no_token(tmp_path: Path) -> None:
    assert find(url=None, token=None, token_file=None, data_dir=tmp_path) == Connection(DEFAULT_URL)


def test_a_data_folder_says_where_and_as_whom(data_dir: Path) -> None:
    found = find(url=None, token=None, token_file=None, data_dir=data_dir)
    assert (found.url, found.token, found.root) == (HERE, "local-secret", data_dir / "keys/root.json")


def test_the_folders_token_goes_to_no_other_address(data_dir: Path) -> None:
    assert find(url="https://elsewhere.example/", token=None, token_file=None, data_dir=data_dir) == Connection(
        "https://elsewhere.example"
    )


def test_a_given_token_goes_to_no_address_that_a_folder_names(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("mine")
    for given in ({"token": "mine", "token_file": None}, {"token": None, "token_file": tmp_path / "token"}):
        with pytest.raises(InvalidRequest, match="--url"):
            find(url=None, data_dir=data_dir, **given)  # type: ignore[arg-type]
        assert find(url=HERE, data_dir=data_dir, **given).token == "mine"  # type: ignore[arg-type]


def test_a_folder_that_names_a_token_outside_of_itself_is_refused(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of another server")
    for path in (tmp_path / "secret", data_dir / "tokens/../../secret"):
        (data_dir / "cli.json").write_text(json.dumps({"url": "http://evil.example", "token_file": str(path)}))
        with pytest.raises(InvalidRequest, match="outside of its folder"):
            find(url=None, token=None, token_file=None, data_dir=data_dir)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "http://x"}', "null"])
def test_a_broken_file_is_said(data_dir: Path, text: str) -> None:
    (data_dir / "cli.json").write_text(text)
    with pytest.raises(InvalidRequest, match=r"cli\.json"):
        find(url=None, token=None, token_file=None, data_dir=data_dir)


def test_a_token_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated, match="nowhere"):
        find(url=HERE, token=None, token_file=tmp_path / "nowhere", data_dir=tmp_path)


def test_the_token_is_in_no_repr(data_dir: Path) -> None:
    assert "local-secret" not in repr(find(url=None, token=None, token_file=None, data_dir=data_dir))
