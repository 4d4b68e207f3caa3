"""Memory of processes over a long run: samples, the slope of a line through them, and the section of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import machine, replace_section

MIB = 1024 * 1024


def pss_bytes(pid: int) -> int:
    """Memory of a process with shared pages counted by share, as Linux tells it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@dataclass
class Course:
    """(seconds since the start, bytes) of one process, after its warm-up."""

    name: str
    samples: list[tuple[float, int]] = field(default_factory=list)

    @property
    def bytes_per_minute(self) -> float:
        """Slope of the least-squares line."""
        return 60 * _slope(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def minutes(self) -> float:
        return (self.samples[-1][0] - self.samples[0][0]) / 60 if self.samples else 0.0

    @property
    def last(self) -> int:
        return self.samples[-1][1] if self.samples else 0


@dataclass
class Outcome:
    minutes: float
    versions: int
    kills: int
    churned: int
    slow: int
    receipts: int
    courses: list[Course]

    def text(self) -> str:
        rows = [
            f"| {each.name} | {each.last / MIB:.1f} | {each.bytes_per_minute / 1024:+.0f} | {len(each.samples)} |"
            for each in self.courses
        ]
        return "\n".join(
            [
                (
                    f"{self.minutes:.0f} minutes: {self.versions:,} versions, {self.churned:,} clients that came and went, {self.slow:,} that did not "
                    f"read, {self.kills} kills of the sync process, {self.receipts:,} receipts checked. No version was lost, none came twice or out of order. "
                    f"{machine()}."
                ),
                "",
                "| process | memory at the end, MiB (PSS) | slope after the warm-up, KiB/min | samples |",
                "|---|---|---|---|",
                *rows,
            ]
        )

    def publish(self) -> None:
        replace_section("soak", "make soak ARGS='-k soak'", self.text())


def _slope(points: Sequence[tuple[float, int]]) -> float:
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0
