from __future__ import annotations

from pathlib import Path

import pytest

from heliograph.cli.files import change, changes, with_names
from heliograph.core.errors import Fault, InvalidDocument, InvalidName, InvalidRequest, SchemaViolation


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_schema", ".schema")
        path = path.with_name(path.name + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_folder_is_configs_schemas_and_folders(tmp_path: Path) -> None:
    write(tmp_path, a="1", a_schema='{"type":"integer"}', b__c__d="[]", only_schema="true")
    (tmp_path / "notes.txt").write_text("not ours")
    assert changes(tmp_path) == [
        {"name": "a", "document": 1, "schema": {"type": "integer"}},
        {"name": "b/c/d", "document": []},
        {"name": "only", "schema": True},
    ]


def test_names_begin_with_the_targets_folder(tmp_path: Path) -> None:
    write(tmp_path, limits="1")
    assert changes(tmp_path, "checkout/") == [{"name": "checkout/limits", "document": 1}]
    assert changes(tmp_path / "limits.json", "checkout/") == [{"name": "checkout/limits", "document": 1}]


def test_one_file_for_a_config_of_another_name(tmp_path: Path) -> None:
    write(tmp_path, any="1", any_schema="true")
    assert change(tmp_path / "any.json", "limits") == {"name": "limits", "document": 1}
    assert change(tmp_path / "any.schema.json", "limits") == {"name": "limits", "schema": True}


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    write(tmp_path / ".git", config="{")
    (tmp_path / ".hidden.json").write_text("{")
    assert [each["name"] for each in changes(tmp_path)] == ["a"]


def test_every_fault_of_every_file_is_told(tmp_path: Path) -> None:
    write(tmp_path, a='{"x":1,"x":2}', b="[NaN]", c="{}", d="{")
    with pytest.raises(InvalidDocument) as refusal:
        changes(tmp_path)
    places = [each.pointer for each in refusal.value.faults]
    assert places == [f"{tmp_path}/a.json#", f"{tmp_path}/b.json#/0", f"{tmp_path}/d.json#"]


def test_names_are_checked(tmp_path: Path) -> None:
    (tmp_path / "Upper.json").write_text("1")
    with pytest.raises(InvalidName):
        changes(tmp_path)


def test_an_empty_folder_and_a_missing_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no \.json file"):
        changes(tmp_path)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        changes(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("pointer", "named"),
    [
        ("/changes/0/document/a/0", "one#/a/0"),
        ("/changes/1/schema/type", "two (schema)#/type"),
        ("/changes/1/document", "two#"),
        ("/changes/1", "two#"),
        ("/changes/9/document", "/changes/9/document"),
        ("/message", "/message"),
        ("", ""),
    ],
)
def test_faults_name_configs_not_places_in_the_request(pointer: str, named: str) -> None:
    error = SchemaViolation("no", [Fault(pointer, "type", "wrong")])
    told = with_names(error, [{"name": "one"}, {"name": "two"}])
    assert type(told) is SchemaViolation
    assert [each.pointer for each in told.faults] == [named]
