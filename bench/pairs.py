"""Systems measured in turn, A B A B, so that the machine's moods meet all alike; and the lines of a table that come of it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Generic, TypeVar

from bench.machine import FOREIGN, Watch, calm
from bench.ratio import Ratio, ratio

TRIES = 3
T = TypeVar("T")
Contestant = Callable[[], Awaitable[T]]


@dataclass(frozen=True)
class Line:
    """One line of the table. `met`: None where there is no goal."""

    what: str
    goal: str
    figure: str
    ratio: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        result = {True: "met", False: "**missed**", None: "reported"}[self.met]
        return f"| {self.what} | {self.goal or '-'} | {self.figure} | {self.ratio or '-'} | {result} |"


@dataclass
class Blocks(Generic[T]):
    """What each contestant's rounds gave, block by block; block i of all was measured in one go."""

    rounds: dict[str, list[list[T]]] = field(default_factory=dict)
    noisy: int = 0
    worst: float = 0.0

    def series(self, name: str, value: Callable[[T], float]) -> list[float]:
        """The median of each block."""
        return [median(map(value, block)) for block in self.rounds[name]]

    def middle(self, name: str, value: Callable[[T], float]) -> float:
        return median(self.series(name, value))

    def compare(self, ours: str, theirs: str, value: Callable[[T], float]) -> Ratio:
        return ratio(self.series(ours, value), self.series(theirs, value))

    def loads(self) -> str:
        """How quiet it was."""
        text = f"others used at most {self.worst:.2f} cores"
        return f"{text}; in {self.noisy} blocks more than {FOREIGN} after {TRIES} tries" if self.noisy else text


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def in_turn(contestants: Mapping[str, Contestant[T]], *, pids: Iterable[int], reps: int, rounds: int) -> Blocks[T]:
    """`reps` blocks of `rounds` rounds of each, in alternating order, after a block of each that does not count. `pids`: what belongs to the
    measurement, to tell it from other load."""
    blocks: Blocks[T] = Blocks({name: [] for name in contestants})
    mine = list(pids)
    for one_round in contestants.values():
        for _ in range(rounds):
            await one_round()
    for rep in range(reps):
        names = list(contestants) if rep % 2 == 0 else list(contestants)[::-1]
        for name in names:
            block, foreign = await _block(contestants[name], mine, rounds)
            blocks.rounds[name].append(block)
            blocks.worst = max(blocks.worst, foreign)
            blocks.noisy += foreign > FOREIGN
        say(f"  block {rep + 1} of {reps}")
    return blocks


async def _block(one_round: Contestant[T], pids: list[int], rounds: int) -> tuple[list[T], float]:
    """Again while others disturb; the quietest of the tries."""
    tries: list[tuple[float, list[T]]] = []
    for _ in range(TRIES):
        watch = Watch(pids)
        block = [await one_round() for _ in range(rounds)]
        tries.append((watch.foreign(), block))
        if tries[-1][0] <= FOREIGN:
            break
        await calm(pids)
    foreign, block = min(tries, key=lambda each: each[0])
    return block, foreign
