"""The table of alerts in `docs/operations.md`: from the rules that Prometheus reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from handbook.markdown import code, table

ROOT: Final = Path(__file__).resolve().parents[1]
RULES: Final = ROOT / "deploy/prometheus/alerts.yml"
PAGE: Final = ROOT / "docs/operations.md"
BEGIN, END = "<!-- begin alerts: made by `make reference` from deploy/prometheus/alerts.yml -->", "<!-- end alerts -->"


def page() -> str:
    """The whole page, with the table as the rules have it."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def section() -> str:
    return table(("alert", "means", "do", "fires while"), map(_row, rules()))


def _row(rule: dict[str, Any]) -> tuple[str, ...]:
    said, lasting = rule["annotations"], f" for {rule['for']}" if "for" in rule else ""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", rule["alert"].removeprefix("Heliograph")).capitalize()
    return f"**{name}** ({rule['labels']['severity']})", said["summary"], said["action"], code(rule["expr"]) + lasting
