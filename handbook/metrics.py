"""Metrics: from `telemetry/metrics.py`, grouped by the method that declares them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Final, TypeAlias

from prometheus_client import Counter, Gauge, Histogram, Summary

from handbook.markdown import code, codes, join, table
from heliograph.telemetry.metrics import Metrics

Metric: TypeAlias = Counter | Gauge | Histogram | Summary
DECLARES: Final = "_declare_"
_TITLES: Final = {"http": "HTTP", "process": "Every process", "eventlog": "Event log and relay"}


def page() -> str:
    return join(
        "# Metrics",
        "Every service gives these at `/metrics` of its HTTP port, in Prometheus' text format. Durations are seconds. Beside them come "
        "`process_*` and `python_info` of the client library. No namespace, instance or config name is ever a label.",
        *(
            join(f"## {title}", table(("name", "type", "labels", "what it says"), map(_row, found)))
            for title, found in groups()
        ),
    )


def groups() -> Iterator[tuple[str, list[Metric]]]:
    declared = {name: each for name, each in vars(Metrics()).items() if isinstance(each, Metric)}
    for method, function in vars(Metrics).items():
        if method.startswith(DECLARES):
            part = method.removeprefix(DECLARES)
            found = [declared.pop(name) for name in _assigned(function) if name in declared]
            yield _TITLES.get(part, part.replace("_", " ").capitalize()), found
    if declared:
        yield "Other", list(declared.values())


def _assigned(function: object) -> list[str]:
    """Names of the attributes of self that a method sets, in order."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]  # a function of a class
    return [
        target.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    ]


def name_of(metric: Metric) -> str:
    """As Prometheus shows it: counters with their suffix."""
    told = next(iter(metric.describe()))
    return f"{told.name}_total" if told.type == "counter" else told.name


def series() -> dict[str, tuple[str, ...]]:
    """Every name that a query can use -> its labels, those of buckets included."""
    found: dict[str, tuple[str, ...]] = {}
    for _, metrics in groups():
        for each in metrics:
            name, labels = name_of(each), labels_of(each)
            if isinstance(each, Histogram):
                found |= {f"{name}_bucket": (*labels, "le"), f"{name}_sum": labels, f"{name}_count": labels}
            else:
                found[name] = labels
    return found


def labels_of(metric: Metric) -> tuple[str, ...]:
    return tuple(metric._labelnames)  # noqa: SLF001  # there is no public way to ask


def _row(metric: Metric) -> tuple[str, ...]:
    told = next(iter(metric.describe()))
    return code(name_of(metric)), told.type, codes(labels_of(metric)), told.documentation
