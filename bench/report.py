"""Figures as text and pictures: quantiles, tables, and sections of docs/benchmarks.md that are replaced when they are measured anew."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt  # after the backend is chosen

from bench.propagation import Result
from bench.stacks import ROOT

PAGE = ROOT / "docs/benchmarks.md"


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank; `values` need not be sorted."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def row(name: str, values: Sequence[float]) -> str:
    if not values:
        return f"| {name} | - | - | - | - | 0 |"
    cells = " | ".join(f"{quantile(values, share):.1f}" for share in (0.5, 0.95, 0.99))
    return f"| {name} | {cells} | {max(values):.1f} | {len(values):,} |"


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}"


def propagation_section(result: Result) -> str:
    complete = f"{result.receipts_stored:,} of {result.receipts_expected:,} receipts stored"
    lines = [
        f"{result.clients:,} synthetic clients and {result.processes} SDK processes, {result.publishes} publishes, {complete}. {machine()}.",
        "",
        "| milliseconds since the author's first byte | p50 | p95 | p99 | max | samples |",
        "|---|---|---|---|---|---|",
        *(row(stage, values) for stage, values in result.stages.items()),
        row("answer in the author's hands", result.answered),
        row("**synthetic client: last byte received**", result.synthetic),
        row("**SDK process: verified and applied**", result.sdk),
        "",
        _slowest(result),
    ]
    return "\n".join(lines)


def _slowest(result: Result) -> str:
    """Names the stage with the largest median of its own, the reader's share of the time."""
    previous, shares = 0.0, {}
    for stage, values in [*result.stages.items(), ("applied in the SDKs", result.sdk)]:
        if values:
            middle = quantile(values, 0.5)
            shares[stage] = middle - previous
            previous = middle
    name = max(shares, key=lambda stage: shares[stage])
    return f"Slowest stage by median: *{name}*, {shares[name]:.1f} ms of its own."


def plot(results: Sequence[Result], path: Path) -> None:
    """Share of clients that run on the version, by milliseconds since the author's first byte."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for result in results:
        for values, label, style in ((result.sdk, "SDK, applied", "-"), (result.synthetic, "synthetic, received", "--")):
            ranked = sorted(values)
            axes.plot(
                ranked, [100 * (i + 1) / len(ranked) for i in range(len(ranked))], style, label=f"{result.stack}: {label}"
            )
    axes.axvline(50, color="grey", linewidth=0.8)
    axes.set(
        xlabel="milliseconds since the author's first byte", ylabel="% of (version, client)", ylim=(0, 100.5), xlim=(0, 100)
    )
    axes.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def replace_section(name: str, command: str, text: str, file: Path = PAGE) -> None:
    """Puts `text` between the marks of section `name` of a page; appends the section if the page has none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text}\n\nRepeat: `{command}`\n{end}"
    page = file.read_text() if file.exists() else "# Benchmarks\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    page = pattern.sub(lambda _: section, page) if pattern.search(page) else f"{page.rstrip()}\n\n{section}\n"
    file.write_text(page)
