"""`python -m bench simulate`: does the cost model hold? A small discrete-event simulation of workers in a tree, with the costs of `costs.py`.

A worker is one core that does one thing after the other: it sends to its clients in slices, as the hub does, and takes receipts in between. What is
simulated is beside what a formula says, where there is one; everything random comes from one seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import ceil

from bench import costs
from bench.costs import cost

SLICE_S = 0.015
"""As the hub sends: at a stretch, before others get the loop."""
JITTER_S = 0.5
"""Bound of the random delay of receipts."""
BATCHES = 5
"""Receipts of one slice come in so many portions over `JITTER_S`."""
Action = Callable[[], None]


class Clock:
    """Runs actions in the order of their time; of equal times in the order of being asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._order = count()

    def at(self, when: float, action: Action) -> None:
        heapq.heappush(self._due, (max(when, self.now), next(self._order), action))

    def run(self) -> None:
        while self._due:
            self.now, _, action = heapq.heappop(self._due)
            action()


@dataclass
class Core:
    """Does one piece of work after the other, first come first served."""

    clock: Clock
    free_at: float = 0.0
    busy_s: float = 0.0
    longest_wait_s: float = 0.0
    stands_for: float = 1.0
    """Cores like this one below the same parent."""

    def work(self, seconds: float, done: Action | None = None) -> float:
        """When it will be finished."""
        begins = max(self.free_at, self.clock.now)
        self.longest_wait_s = max(self.longest_wait_s, begins - self.clock.now)
        self.free_at = begins + seconds
        self.busy_s += seconds
        if done:
            self.clock.at(self.free_at, done)
        return self.free_at


# --- a version through a tree ---


@dataclass(frozen=True)
class Tree:
    """`hubs` workers read the log; each level below has `children` connections a worker; the last of `children` are clients.

    (10_000,): hubs with clients. (1_000, 10_000): a thousand edge workers below each hub worker, with ten thousand clients each.
    """

    hubs: int
    children: tuple[int, ...]
    tls: bool = True

    @property
    def clients(self) -> int:
        total = self.hubs
        for each in self.children:
            total *= each
        return total

    @property
    def workers(self) -> int:
        """Of all levels: each is one core."""
        total, level = 0, self.hubs
        for each in self.children:
            total += level
            level *= each
        return total

    @property
    def send_s(self) -> float:
        return cost("send_tls" if self.tls else "send")


@dataclass
class Spread:
    """How one version reached the clients. Seconds since the author's first byte; `receipts_s`: all are with the hubs."""

    last_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    receipts_s: float = 0.0
    busiest_s: float = 0.0
    reached: int = 0
    receipts: int = 0


def last_by_formula(tree: Tree) -> float:
    """One level after the other: a worker's last child is served after all its others; receipts do not disturb."""
    return cost("path") + sum(each * tree.send_s for each in tree.children) + cost("hop") * (len(tree.children) - 1)


def spread(tree: Tree, *, seed: int = 1, aggregate: bool = False, answers: bool = True, most_children: int = 12) -> Spread:
    """`aggregate`: an edge tells its parent counts, one message for each portion, instead of each receipt. Of the edges below one worker a sample
    of `most_children` is simulated, the last always among them, and stands for all: they share nothing but their parent."""
    return _Run(tree, random.Random(seed), aggregate, answers, most_children).result()


@dataclass
class _Run:
    tree: Tree
    chance: random.Random
    aggregate: bool
    answers: bool
    most: int
    clock: Clock = field(default_factory=Clock)
    slices: list[tuple[float, float, int]] = field(default_factory=list)  # begin and end of sending to so many clients
    cores: list[Core] = field(default_factory=list)
    top: list[Core] = field(default_factory=list)
    told_s: float = 0.0
    told: float = 0.0

    def result(self) -> Spread:
        for _ in range(min(self.tree.hubs, 2)):  # all alike
            core = self._core()
            self.top.append(core)
            self.clock.at(cost("path"), lambda core=core: self._fan_out(core, 0, []))
        self.clock.run()
        moments = sorted((end, size) for _, end, size in self.slices)
        return Spread(
            last_s=moments[-1][0],
            p50_s=_share(moments, 0.5),
            p99_s=_share(moments, 0.99),
            receipts_s=self.told_s,
            busiest_s=max(each.busy_s for each in self.cores),
            reached=sum(size for _, size in moments),
            receipts=round(self.told),
        )

    def _core(self, stands_for: float = 1.0) -> Core:
        self.cores.append(Core(self.clock, stands_for=stands_for))
        return self.cores[-1]

    def _fan_out(self, core: Core, level: int, above: list[Core], sent: int = 0) -> None:
        """One slice; the rest when the loop has had its turn."""
        children = self.tree.children[level]
        size = min(children - sent, max(1, int(SLICE_S / self.tree.send_s)))
        if size <= 0:
            return
        end = core.work(size * self.tree.send_s, lambda: self._fan_out(core, level, above, sent + size))
        begin = end - size * self.tree.send_s
        if level == len(self.tree.children) - 1:
            self._reached(core, above, begin, end, size)
        else:
            self._pass_on(core, level, above, begin, size, last=sent + size == children)

    def _pass_on(self, core: Core, level: int, above: list[Core], begin: float, size: int, *, last: bool) -> None:
        """Edges that this slice was for get it after the way to them."""
        chosen = set(self.chance.sample(range(size), max(1, min(size, self.most * size // self.tree.children[level]))))
        if last:
            chosen.add(size - 1)
        for index in sorted(chosen):
            edge = self._core(size / len(chosen))
            arrives = begin + (index + 1) * self.tree.send_s + cost("hop")
            self.clock.at(arrives, lambda edge=edge: self._fan_out(edge, level + 1, [core, *above]))

    def _reached(self, core: Core, above: list[Core], begin: float, end: float, size: int) -> None:
        self.slices.append((begin, end, size))
        for portion in range(BATCHES if self.answers else 0):
            answers = size * (portion + 1) // BATCHES - size * portion // BATCHES
            when = end + JITTER_S * (portion + self.chance.random()) / BATCHES
            self.clock.at(when, lambda answers=answers: self._answered(core, above, answers))

    def _answered(self, core: Core, above: list[Core], answers: int) -> None:
        core.work(answers * cost("receipt"), lambda: self._tell(core, above, 1 if self.aggregate else answers, answers))

    def _tell(self, core: Core, above: list[Core], messages: float, answers: float) -> None:
        if not above:
            self.told_s, self.told = self.clock.now, self.told + answers
            return
        parent, messages, answers = above[0], messages * core.stands_for, answers * core.stands_for
        passed_on = 1 if self.aggregate else messages
        self.clock.at(
            self.clock.now + cost("hop"),
            lambda: parent.work(messages * cost("receipt"), lambda: self._tell(parent, above[1:], passed_on, answers)),
        )


def _share(moments: Sequence[tuple[float, int]], share: float) -> float:
    """The moment by which that share has it."""
    wanted = share * sum(size for _, size in moments)
    seen = 0
    for moment, size in moments:
        seen += size
        if seen >= wanted:
            return moment
    return moments[-1][0]


# --- a node or a region is lost ---


@dataclass(frozen=True)
class Storm:
    """`lost` clients come to each surviving worker, who has `own` already."""

    lost: int
    own: int
    window_s: float
    tls: bool = True

    @property
    def connect_s(self) -> float:
        return cost("connect_tls" if self.tls else "connect")


@dataclass(frozen=True)
class Return:
    """Seconds since the loss. `busy`: share of the window that connecting keeps the worker's core. `publish_s`: how long a version, published
    in the middle of it, takes to the last of the clients that were not lost."""

    last_s: float
    busy: float
    longest_wait_s: float
    publish_s: float


def back_by_formula(storm: Storm) -> float:
    """The window when the core keeps up, otherwise the work itself."""
    return max(storm.window_s, storm.lost * storm.connect_s)


def storm(what: Storm, *, seed: int = 1) -> Return:
    """Each client waits a random part of the window, then connects; the worker goes on publishing meanwhile."""
    clock, chance = Clock(), random.Random(seed)
    core = Core(clock)
    last: list[float] = []
    for _ in range(what.lost):
        clock.at(chance.uniform(0, what.window_s), lambda: core.work(what.connect_s, lambda: last.append(clock.now)))
    send = cost("send_tls" if what.tls else "send")
    done: list[float] = []
    middle = min(what.window_s, what.lost * what.connect_s) / 2

    def publish(left: int) -> None:
        size = min(left, int(SLICE_S / send))
        if size <= 0:
            done.append(clock.now)
            return
        core.work(size * send, lambda: publish(left - size))

    clock.at(middle, lambda: publish(what.own))
    clock.run()
    return Return(
        last_s=last[-1],
        busy=what.lost * what.connect_s / max(what.window_s, last[-1]),
        longest_wait_s=core.longest_wait_s,
        publish_s=done[0] - middle,
    )


# --- the model ---


@dataclass(frozen=True)
class Fleet:
    """How many of everything for so many clients, at most `per_worker` on one core."""

    clients: int
    per_worker: int = 10_000
    per_node: int = 8
    versions_per_s: float = 1.0
    sample: float = 1.0
    """Share of clients whose receipts are kept."""
    tls: bool = True
    heartbeat_s: float = 25.0

    @property
    def workers(self) -> int:
        return ceil(self.clients / self.per_worker)

    @property
    def nodes(self) -> int:
        return ceil(self.workers / self.per_node)

    @property
    def core_share(self) -> float:
        """Of a worker's core, with one version a `1 / versions_per_s` seconds to all of its clients."""
        send = cost("send_tls" if self.tls else "send")
        a_version = self.per_worker * (send + self.sample * cost("receipt"))
        return a_version * self.versions_per_s + self.per_worker * cost("heartbeat") / self.heartbeat_s

    @property
    def memory_bytes(self) -> float:
        return self.clients * (cost("memory_tls" if self.tls else "memory") + cost("memory_kernel"))

    @property
    def bits_per_version(self) -> float:
        return self.clients * cost("frame") * 8

    @property
    def receipts_per_version(self) -> float:
        return self.clients * self.sample

    @property
    def ledger_cores(self) -> float:
        return self.receipts_per_version * self.versions_per_s * cost("receipt_ledger")

    @property
    def database_cores(self) -> float:
        return self.receipts_per_version * self.versions_per_s * cost("receipt_database")

    @property
    def log_bytes_per_s(self) -> float:
        return (self.receipts_per_version * cost("receipt_log") + cost("event")) * self.versions_per_s


TREES = {
    "100 thousand, hubs only": Tree(10, (10_000,)),
    "1 million, hubs only": Tree(100, (10_000,)),
    "1 million, edges": Tree(1, (100, 10_000)),
    "100 million, edges": Tree(10, (1_000, 10_000)),
    "100 million, edges of edges": Tree(2, (50, 100, 10_000)),
}
STORMS = {
    "one worker of ten, within 10 s": Storm(10_000 // 9, 10_000, 10.0),
    "one node of 8 workers in 16, within 30 s": Storm(10_000, 10_000, 30.0),
    "a region of two, within 60 s": Storm(10_000, 10_000, 60.0),
    "a region of two, without jitter (1 s)": Storm(10_000, 10_000, 1.0),
}


FLEETS = {
    "100 thousand": Fleet(100_000),
    "1 million": Fleet(1_000_000),
    "1 million, receipts of 10 %": Fleet(1_000_000, sample=0.1),
    "100 million, receipts of 1 %": Fleet(100_000_000, sample=0.01, versions_per_s=0.1),
}


def tables(seed: int = 1) -> str:
    return "\n\n".join(
        [
            f"What things cost:\n\n{costs.table()}",
            f"What a fleet needs, with one change to all of its clients as often as said:\n\n{_fleet_table()}",
            f"How one version gets through a tree:\n\n{_spread_table(seed)}",
            f"How clients that were lost come back:\n\n{_storm_table(seed)}",
        ]
    )


def _fleet_table() -> str:
    lines = [
        "| clients | changes a second | workers | nodes of 8 | of a worker's core | memory, GB | a change, Gbit | receipts a second | ledger cores | PostgreSQL cores | log, MB/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {each.versions_per_s:g} | {each.workers:,} | {each.nodes:,} | {each.core_share:.0%} | {each.memory_bytes / 1e9:,.0f} | "
        f"{each.bits_per_version / 1e9:,.1f} | {each.receipts_per_version * each.versions_per_s:,.0f} | {each.ledger_cores:,.1f} | "
        f"{each.database_cores:,.1f} | {each.log_bytes_per_s / 1e6:,.1f} |"
        for name, each in FLEETS.items()
    ]
    return "\n".join(lines)


def _spread_table(seed: int) -> str:
    lines = [
        "| tree | clients | worker cores | formula: last, ms | simulated: p50 | p99 | last, ms | receipts at the hubs, s: relayed singly | counted at the edges |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tree in TREES.items():
        singly, counted = spread(tree, seed=seed), spread(tree, seed=seed, aggregate=True)
        lines.append(
            f"| {name} | {tree.clients:,} | {tree.workers:,} | {last_by_formula(tree) * 1e3:.0f} | {singly.p50_s * 1e3:.0f} | "
            f"{singly.p99_s * 1e3:.0f} | {singly.last_s * 1e3:.0f} | {singly.receipts_s:,.1f} | {counted.receipts_s:,.1f} |"
        )
    return "\n".join(lines)


def _storm_table(seed: int) -> str:
    lines = [
        "| lost | comes to each worker | formula: all back, s | simulated, s | core busy with it | longest wait, ms | a version meanwhile, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, what in STORMS.items():
        seen = storm(what, seed=seed)
        lines.append(
            f"| {name} | {what.lost:,} | {back_by_formula(what):.1f} | {seen.last_s:.1f} | {seen.busy:.0%} | {seen.longest_wait_s * 1e3:.0f} | "
            f"{seen.publish_s * 1e3:.0f} |"
        )
    return "\n".join(lines)
