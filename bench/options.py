"""What is asked of a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Options:
    reps: int
    """Pairs that are measured one after another."""
    clients: int | None = None
    """At most so many, to try a row; None: as many as the row is about."""
    notes: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    """Whole sections with more figures, told last."""

    def size(self, wanted: int) -> int:
        return min(wanted, self.clients or wanted)

    def note(self, *texts: str) -> None:
        """Told below the table."""
        self.notes += texts
