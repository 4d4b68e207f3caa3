from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from heliograph.cli.options import seconds, share
from heliograph.cli.pointer import get_value, set_value
from heliograph.cli.show import shares
from heliograph.cli.target import Target, one_version
from heliograph.core.errors import InvalidName, InvalidRequest, NotFound


@pytest.mark.parametrize(("text", "value"), [("95%", 0.95), ("0.95", 0.95), ("100%", 1), ("1", 1), ("0.5%", 0.005)])
def test_shares(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["95", "0", "0%", "101%", "-1", "nan", "", "%", "all"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        share(text)


@pytest.mark.parametrize(
    ("text", "value"), [("2s", 2), ("500ms", 0.5), ("1m", 60), ("12h", 43200), ("30d", 2592000), ("2", 2), ("0.5s", 0.5)]
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "0", "-2s", "2x", "nan", "inf", "99999d", "2sm"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        seconds(text)


def test_targets() -> None:
    assert Target.parse("shop/dev") == Target("shop", "dev")
    assert Target.parse("shop/dev/") == Target("shop", "dev")
    assert Target.parse("shop/dev/checkout/limits") == Target("shop", "dev", "checkout/limits")
    assert Target.parse("shop/dev/checkout/") == Target("shop", "dev", "checkout/")
    assert str(Target.parse("shop/dev/checkout/limits")) == "shop/dev/checkout/limits"
    assert (
        Target.parse("shop/dev/checkout/limits").config_path == "/v1/namespaces/shop/environments/dev/configs/checkout/limits"
    )


@pytest.mark.parametrize(
    "text", ["", "shop", "shop/", "/dev", "Shop/dev", "shop/dev/..", "shop/dev//a", "shop/dev/a?b", "shop/dev/é"]
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(InvalidName):
        Target.parse(text)


def test_some_commands_are_about_whole_environments() -> None:
    assert Target.environment_of("shop/dev/") == Target("shop", "dev")
    with pytest.raises(InvalidName, match="whole environment, as in shop/dev"):
        Target.environment_of("shop/dev/limits")
    with pytest.raises(InvalidName, match="config is missing"):
        Target.parse("shop/dev").with_config()
    with pytest.raises(InvalidName):
        Target.parse("shop/dev/checkout/").with_config()


@pytest.mark.parametrize(
    ("text", "given_", "version"),
    [
        ("shop/dev", None, None),
        ("shop/dev", "42", "42"),
        ("shop/dev/42", None, "42"),
        ("shop/dev/sha256:00", None, "sha256:00"),
        ("shop/dev/label:release-7", None, "label:release-7"),
    ],
)
def test_versions_of_an_environment(text: str, given_: str | None, version: str | None) -> None:
    assert Target.version_of(text, given_) == (Target("shop", "dev"), version)


def test_one_version() -> None:
    assert one_version("42") == 42
    for text in ("sha256:" + "0" * 64, "label:42", "2026-11-01T12:00:00Z"):
        assert one_version(text) == text
    for text in ("", "-1", "v42", "٤٢", "sha256:00", "2026-11-01", "release-7"):
        with pytest.raises(InvalidRequest):
            one_version(text)


# --- values in documents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "pointer", "value", "result"),
    [
        ({"a": 1}, "/a", 2, {"a": 2}),
        ({"a": 1}, "/b", 2, {"a": 1, "b": 2}),
        ({"a": 1}, "", [3], [3]),
        ({}, "/a/b/c", 1, {"a": {"b": {"c": 1}}}),
        (None, "/a", 1, {"a": 1}),
        (None, "", 1, 1),
        ({"a": [1, 2]}, "/a/1", 3, {"a": [1, 3]}),
        ({"a": [1]}, "/a/-", 2, {"a": [1, 2]}),
        ({"a": [{"b": 1}]}, "/a/0/b", 2, {"a": [{"b": 2}]}),
        ({}, "/a~1b/m~0n", 1, {"a/b": {"m~n": 1}}),
        ({"": {"": 0}}, "//", 1, {"": {"": 1}}),
    ],
)
def test_setting_a_value(document: object, pointer: str, value: object, result: object) -> None:
    assert set_value(document, pointer, value) == result
    if not pointer.endswith("-"):
        assert get_value(result, pointer) == value


@pytest.mark.parametrize("pointer", ["a", "/list/2", "/list/01", "/list/x/y", "/list/+1", "/number/a", "/~2"])
def test_places_that_cannot_be(pointer: str) -> None:
    document = {"list": [1, 2], "number": 1}
    with pytest.raises(InvalidRequest):
        set_value(document, pointer, 0)
    assert document == {"list": [1, 2], "number": 1}


def test_nothing_is_not_found() -> None:
    for pointer in ("/b", "/a/b", "/l/1", "/l/-", "/l/00"):
        with pytest.raises(NotFound):
            get_value({"a": 1, "l": [0]}, pointer)


# --- bars -------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6), st.integers(10, 80))
def test_a_bar_is_full_and_shows_whatever_is_there(counts: list[int], width: int) -> None:
    cells = shares(counts, width)
    assert sum(cells) == (width if any(counts) else 0)
    assert all((cell > 0) == (number > 0) for cell, number in zip(cells, counts, strict=True))
