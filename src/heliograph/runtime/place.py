"""What a process knows of its place among the workers of a node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Place:
    """One of the workers that share a node's ports.

    Attributes:
        number: from 1 to `count`.
        folder: private to the node; its workers meet there.
        start: how often this place has been filled since the node was started, this time included.
    """

    number: int
    count: int
    folder: Path
    start: int

    @classmethod
    def told_by(cls, environment: Mapping[str, str]) -> Self | None:
        """None for a process that is no worker."""
        if not (told := environment.get("HELIOGRAPH_WORKER")):
            return None
        number, count, start = map(int, told.split("/"))
        return cls(number, count, Path(environment["HELIOGRAPH_WORKER_FOLDER"]), start)

    @property
    def told(self) -> dict[str, str]:
        """The environment that `told_by` reads."""
        return {
            "HELIOGRAPH_WORKER": f"{self.number}/{self.count}/{self.start}",
            "HELIOGRAPH_WORKER_FOLDER": str(self.folder),
        }

    @property
    def replaces(self) -> bool:
        """Others serve meanwhile, perhaps even on the same sockets: take nothing before it can be answered."""
        return self.start > 1


def own_place() -> Place | None:
    return Place.told_by(os.environ)
