"""The reference is what the code declares, and everything in it says something."""

from __future__ import annotations

import json
import re

import pytest
from handbook.markdown import from_rich, table

from handbook import audit, command_line, errors, http_api, log_events, metrics, python_sdk, reference, settings
from heliograph.core.errors import HeliographError

PAGES = reference.pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_checked_in_page_is_not_stale(name: str) -> None:
    """After a change: make reference"""
    assert (reference.FOLDER / name).read_text() == PAGES[name]


def test_no_page_is_left_over() -> None:
    assert {each.name for each in reference.FOLDER.iterdir()} == set(PAGES)


def test_pages_do_not_depend_on_the_order_in_which_they_are_made() -> None:
    assert reference.pages() == PAGES


def test_every_row_has_as_many_cells_as_its_table() -> None:
    for text in PAGES.values():
        for block in text.split("\n\n"):
            if block.startswith("|"):
                assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


# --- what each declaration must say -----------------------------------------------------------------------------------------------


def fields() -> list[tuple[str, str, object]]:
    return [
        (settings.variable(kind, name, field), settings.type_of(name, field), field.description)
        for kind in settings.declaring()
        for name, field in settings.own_fields(kind).items()
    ]


def test_every_setting_is_described_and_of_a_known_type() -> None:
    for variable, kind, description in fields():
        assert description, variable
        assert not re.search(r"[A-Z][a-z]+\[|<class", kind), (variable, kind)


def test_the_settings_of_every_service_are_found() -> None:
    assert {"registry", "relay", "sync", "ledger", "dev"} <= {settings._process(each) for each in settings.processes()}
    assert ("HELIOGRAPH_DRAIN_S", "number of seconds > 0") in {(variable, kind) for variable, kind, _ in fields()}


def test_every_metric_has_a_help_text_and_a_group() -> None:
    found = metrics.groups()
    titles = [title for title, group in found if group]
    assert "Other" not in titles
    assert all(next(iter(each.describe())).documentation for _, group in metrics.groups() for each in group)
    assert metrics.series()["heliograph_propagation_seconds_bucket"] == ("region", "le")
    assert "heliograph_commits_total" in metrics.series()


def test_every_error_says_what_to_do() -> None:
    for kind in errors.every():
        assert kind.advice
        assert kind is HeliographError or kind.advice != HeliographError.advice, kind.code


def test_every_command_and_option_has_a_help_text() -> None:
    for command in command_line.commands():
        assert command.typer.help, command.title
        for parameter in command.typer.params:
            assert getattr(parameter, "help", ""), f"{command.title} {parameter.name}"


def test_every_exit_status_has_a_meaning() -> None:
    from heliograph.cli.exits import Exit
    from heliograph.runtime import process

    for kind in (Exit, process.Exit):
        assert [meaning for _, _, meaning in command_line.exits(kind) if meaning] == [
            meaning for _, _, meaning in command_line.exits(kind)
        ]
        assert len(command_line.exits(kind)) == len(kind)


def test_every_request_is_described() -> None:
    for told in (http_api.described_sync(), http_api.described_ledger()):
        assert told["paths"]
        for path, operations in told["paths"].items():
            assert all(operation.get("description") for operation in operations.values()), path
    answers = http_api.described_ledger()["paths"]
    assert set(answers) >= set(http_api._GIVES) | set(http_api._LISTS), "a route that is no more"


def test_a_shape_has_one_meaning() -> None:
    registry = json.loads(http_api.CONTRACT.read_text())["components"]["schemas"]
    own = http_api._own_shapes()
    assert all(own[name] == registry[name] for name in own.keys() & registry.keys())


def test_actions_and_events_are_found_where_they_are_written() -> None:
    assert {"config.put", "schema.put", "namespace.create", "propagation.closed", "token.revoke"} <= set(audit.actions())
    assert all(audit.actions().values()), audit.actions()
    committed = next(each for each in log_events.events() if each.name == "version_committed")
    assert committed.level == "info"
    assert "number" in committed.fields


# --- the Markdown -----------------------------------------------------------------------------------------------------------------


def test_a_cell_cannot_break_its_table() -> None:
    assert table(("a", "b"), [("x | y", "two\nlines")]) == "| a | b |\n| --- | --- |\n| x \\| y | two lines |"
    assert table(("a",), []) == ""


def test_markup_of_a_help_text_becomes_code() -> None:
    assert from_rich("see [bold]a/b[/] and \\[this]") == "see `a/b` and [this]"


def test_the_sdk_page_has_every_exported_class_with_its_words() -> None:
    import heliograph.client

    text = PAGES["python-sdk.md"]
    assert heliograph.client in python_sdk.modules()
    for name in heliograph.client.__all__:
        if isinstance(getattr(heliograph.client, name), type):
            assert f"### {name}\n" in text
    assert "PosixPath" not in text
    assert "0x" not in text  # an address in memory would make the page stale at once
