from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from heliograph.telemetry.logs import configure_logs, mask

CLIENT_TOKEN = "hel_client_" + "a1B2" * 20
ADMIN_TOKEN = "hel_admin_" + "Z9" * 18


@pytest.fixture
def lines():
    before, level, handlers = structlog.get_config(), logging.root.level, logging.root.handlers
    stream = io.StringIO()
    configure_logs("registry", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(capture=False)
    structlog.configure(**before)
    logging.root.handlers = handlers
    logging.root.setLevel(level)


def test_one_json_object_per_line_with_the_constant_name_and_the_fields(lines):
    structlog.get_logger().info("version_committed", namespace="shop", number=42)
    [line] = lines()
    assert list(line)[:4] == ["at", "level", "service", "event"]
    assert line["event"] == "version_committed"
    assert line["service"] == "registry"
    assert (line["namespace"], line["number"], line["level"]) == ("shop", 42, "info")


class Written(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_a_line_is_written_as_a_whole(lines):
    """Where nothing is buffered each write is one of the system's, and another process's may come between two."""
    configure_logs("registry", stream=(stream := Written()))
    structlog.get_logger().info("a")
    structlog.get_logger().info("b")
    assert "".join(stream.pieces).splitlines(keepends=True) == stream.pieces


def test_debug_is_left_out_by_default(lines):
    structlog.get_logger().debug("frame_sent")
    assert lines() == []


@pytest.mark.parametrize("token", [CLIENT_TOKEN, ADMIN_TOKEN])
def test_tokens_never_come_out_wherever_they_hide(lines, token):
    class Holder:
        def __repr__(self) -> str:
            return f"Holder({token})"

    structlog.get_logger().warning(
        "request_refused",
        detail=f"Bearer {token} is unknown",
        nested={"list": [token, {"deep": (token,)}], token: 1},
        holder=Holder(),
        authorization="Basic abc",
    )
    text = json.dumps(lines())
    assert token not in text
    assert token[-20:] not in text
    assert "Basic" not in text
    assert mask(token) == token[: token.rindex("_") + 1] + "***"


def test_tracebacks_are_there_and_masked(lines):
    try:
        raise ValueError(ADMIN_TOKEN)
    except ValueError:
        structlog.get_logger().exception("task_failed")
    [line] = lines()
    assert "ValueError: hel_admin_***" in line["exception"]
    assert line["level"] == "error"


def test_the_standard_librarys_loggers_come_out_in_the_same_shape(lines):
    logging.getLogger("uvicorn.error").error("failed with %s", ADMIN_TOKEN)
    [line] = lines()
    assert line["event"] == "library_message"
    assert line["logger"] == "uvicorn.error"
    assert line["message"] == "failed with hel_admin_***"


def test_values_that_json_does_not_know_are_described_not_refused(lines):
    structlog.get_logger().info("odd_values", data=b"\xff", items={3}, error=KeyError("x"))
    [line] = lines()
    assert line["items"] == [3]
    assert line["error"] == "KeyError('x')"
