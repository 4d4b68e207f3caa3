"""What is shown for an installation names only what exists: settings, commands, ports, metrics. And its own linters accept it, where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from handbook.examples import DOCS, guides, steps
from handbook.reference import ROOT
from tests.fixtures.postgres import require

from handbook import alerts, command_line, metrics, settings
from heliograph.allinone import AllInOneSettings
from heliograph.runtime.listening import NAMES
from heliograph.services.relay.settings import RelaySettings

DEPLOY = ROOT / "deploy"
SERVICES = ("registry", "relay", "ledger", "sync")
VARIABLE = re.compile(r"\bHELIOGRAPH_[A-Z][A-Z0-9_]*[A-Z0-9]\b(?!\*|…|_)")
INVOKED = re.compile(r"(?<![-\w/.])(?<!-g )(?<!database )(?<!install )heliograph ([a-z]+(?: [a-z]+)?)")
LINT_S = 60


def texts() -> list[Path]:
    shown = [each for each in DEPLOY.rglob("*") if each.is_file()]
    prose = [each for each in DOCS.rglob("*.md") if "reference" not in each.relative_to(DOCS).parts]
    return sorted([*shown, *prose, ROOT / "README.md"])


@pytest.fixture(scope="module")
def variables() -> set[str]:
    """Every variable that some process reads."""
    own = {
        settings.variable(kind, name, field)
        for kind in settings.declaring()
        for name, field in settings.own_fields(kind).items()
    }
    return own | {told[0].strip("`") for told in command_line.variables()}


@pytest.mark.parametrize("path", texts(), ids=lambda each: str(each.relative_to(ROOT)))
def test_every_variable_that_is_named_is_a_setting(path: Path, variables: set[str]) -> None:
    assert set(VARIABLE.findall(path.read_text())) <= variables


def test_every_command_that_is_named_exists() -> None:
    known = {each.words for each in command_line.commands()}
    for page in guides():
        for step in steps(page.read_text()):
            if step.kind in {"command", "script"}:
                for words in INVOKED.findall(step.text):
                    first, _, second = words.strip().partition(" ")
                    assert first in known or f"{first} {second.split(' ')[0]}" in known, (page, words)


def test_every_script_is_a_shell_script() -> None:
    """Also those that cannot be run here."""
    for page in guides():
        for step in steps(page.read_text()):
            if step.kind in {"command", "script"}:
                read = subprocess.run(
                    ["bash", "-n", "-c", step.text], capture_output=True, text=True, timeout=LINT_S, check=False
                )
                assert read.returncode == 0, (page, step.text, read.stderr)


# --- containers -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yml").read_text())


def usual_ports() -> set[int]:
    fields = {**AllInOneSettings.model_fields, **RelaySettings.model_fields}
    return {field.default for name, field in fields.items() if name.endswith("_port") and field.annotation is int}


def test_compose_runs_every_service_with_its_own_role(compose: dict[str, Any]) -> None:
    for name in SERVICES:
        service = compose["services"][name]
        assert service["command"] == ["serve", name]
        assert f"//heliograph_{name}@" in service["environment"]["HELIOGRAPH_DATABASE_URL"]
    assert compose["services"]["migrate"]["command"] == ["migrate"]


def test_compose_waits_for_what_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, (name, other)
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other], (name, other)
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in compose["volumes"]


def test_compose_publishes_ports_that_services_listen_on(compose: dict[str, Any]) -> None:
    for name in SERVICES:
        for pair in compose["services"][name].get("ports", ()):
            outside, inside = map(int, pair.split(":"))
            assert outside == inside
            assert inside in usual_ports()
    named = re.findall(r"//(?:localhost|registry|ledger|sync|relay):(\d+)", (DEPLOY / "compose.yml").read_text())
    assert named
    assert {int(each) for each in named} <= usual_ports()


def test_every_address_in_the_pages_has_a_port_of_ours() -> None:
    for page in guides():
        found = re.findall(r"//(?:127\.0\.0\.1|10\.0\.0\.11|(?:registry|ledger|sync|relay)\S*?):(\d+)", page.read_text())
        assert {int(each) for each in found} <= usual_ports(), page


def test_the_image_has_what_it_copies_and_starts() -> None:
    """Each instruction is known, what is copied is not ignored, and the entry point is the program."""
    lines = [each for each in (DEPLOY / "Dockerfile").read_text().splitlines() if each and not each.startswith("#")]
    words = {each.split()[0] for each in lines}
    assert words <= {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "ENTRYPOINT"}
    assert lines[-1] == 'ENTRYPOINT ["heliograph"]'
    assert {each.split()[1] for each in lines if each.startswith("USER")} == {"heliograph"}
    sent = {each[1:] for each in (ROOT / ".dockerignore").read_text().splitlines() if each.startswith("!")}
    for line in lines:
        if line.startswith("COPY") and "--from" not in line and line.split()[1] != ".":
            assert line.split()[1].split("/")[0] in sent
            assert (ROOT / line.split()[1]).exists()


# --- systemd ----------------------------------------------------------------------------------------------------------------------

UNITS = sorted(each for each in (DEPLOY / "systemd").iterdir() if each.is_file())
BESIDE = DEPLOY / "systemd/heliograph@sync-next.service.d/beside.conf"


def test_units_start_commands_that_exist() -> None:
    known = {each.words for each in command_line.commands()}
    started = [line for unit in UNITS for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    assert [each.split()[1] in known for each in started] == [True, True, True]


def test_every_service_has_an_environment_file_that_its_settings_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {settings._process(each): each for each in settings.processes()}
    common = environment(DEPLOY / "systemd/etc/common.env")
    for name in SERVICES:
        for variable, value in (common | environment(DEPLOY / f"systemd/etc/{name}.env")).items():
            monkeypatch.setenv(variable, value)
        made = kinds[name]()
        assert f"heliograph_{name}:" in made.database_url.get_secret_value()


def environment(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if line and not line.startswith("#"))


def with_a_program(unit: Path) -> str:
    """systemd looks whether the program is there."""
    return unit.read_text().replace("/opt/heliograph/bin/heliograph", sys.executable)


def test_sockets_are_named_as_services_ask_for_them() -> None:
    told = {name: unit for unit in UNITS for name in re.findall(r"(?m)^FileDescriptorName=(.*)$", unit.read_text())}
    assert told.keys() == NAMES
    ports = {port for unit in told.values() for port in re.findall(r"(?m)^ListenStream=.*:(\d+)$", unit.read_text())}
    assert {int(port) for port in ports} == usual_ports()


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    for unit in UNITS:
        for service in (*SERVICES, "sync-next"):
            (tmp_path / unit.name.replace("@.", f"@{service}.")).write_text(with_a_program(unit))
    beside = tmp_path / BESIDE.parent.name
    beside.mkdir()
    (beside / BESIDE.name).write_text(with_a_program(BESIDE))
    told = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            *map(str, sorted(each for each in tmp_path.iterdir() if each.is_file())),
        ],
        capture_output=True,
        text=True,
        timeout=LINT_S,
        check=False,
    )
    ours = [line for line in told.stderr.splitlines() if "heliograph" in line and "not found" not in line]
    assert not ours, told.stderr
    assert told.returncode == 0, told.stderr


def test_sockets_are_handed_over_under_names_that_are_understood() -> None:
    for unit in (DEPLOY / "systemd").glob("*.socket"):
        told = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
        name = told["FileDescriptorName"]
        assert name in NAMES
        assert unit.name == f"heliograph-{name}.socket"
        assert told["Service"] == f"heliograph@{name.removesuffix('-http')}.service"
        assert int(told["ListenStream"].rpartition(":")[2]) in usual_ports()


# --- alerts -----------------------------------------------------------------------------------------------------------------------

WORD = re.compile(r"\bheliograph_\w+")


def test_the_table_of_alerts_is_not_stale() -> None:
    """After a change: make reference"""
    assert alerts.PAGE.read_text() == alerts.page()
    assert alerts.section() in alerts.page()


def test_alerts_ask_for_metrics_and_labels_that_exist() -> None:
    known = metrics.series()
    for rule in alerts.rules():
        for name in WORD.findall(rule["expr"]):
            assert name in known, rule["alert"]
        labels = {label for name in WORD.findall(rule["expr"]) for label in known[name]} | {"instance", "job"}
        for grouped in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            assert {each.strip() for each in grouped.split(",")} <= labels, rule["alert"]
        for matched in re.findall(r"(\w+)(?:=~|!=|!~|=)\"", rule["expr"]):
            assert matched in labels, rule["alert"]


def test_alerts_say_what_to_do_in_words_that_exist() -> None:
    from handbook import log_events

    known = {each.name for each in log_events.events()} | {each.removesuffix("_bucket") for each in metrics.series()}
    for rule in alerts.rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        named = re.findall(r"`([a-z]+(?:_[a-z]+)+)`", rule["annotations"]["action"])
        assert set(named) <= known, rule["alert"]


def test_prometheus_accepts_the_rules() -> None:
    require(shutil.which("promtool"), "promtool is not installed (make setup)")
    for command in (
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        told = subprocess.run(
            ["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=LINT_S, check=False
        )
        assert told.returncode == 0, told.stdout + told.stderr
