"""What the ledger knows right now: who is subscribed where, what each runs, and every open propagation. Pure: no I/O, no clock.

It is told of an effect only after that effect is committed, and is rebuilt from the tables at start, so it never knows more
than they do. Three rules decide who counts:

- An instance takes part in a version when one of its subscriptions contains the commit time: ``since <= committed < until``.
- It has one live connection per environment: a newer one (by incarnation, then time) ends the older, whose goodbye may come
  late or never.
- While its node is lost it is unknown: still awaited, until it subscribes elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from heliograph.core.events import FannedOut, NodeAlive, Receipts, Subscribed, Unsubscribed
from heliograph.core.frames import Fingerprint
from heliograph.services.ledger.answers import Address, Answer, Point
from heliograph.services.ledger.propagation import AWAITED, Commit, Hop, Profile, Propagation, Status
from heliograph.services.ledger.report import milliseconds

MAX_LABELS = 8  # of one instance, in its group keys
NOBODY: frozenset[int] = frozenset()
NODE_LOST = "node lost"


@lru_cache(maxsize=256)
def only_one(subscription: int) -> frozenset[int]:
    """Nearly all instances have one subscription, and its number is the same for most."""
    return frozenset((subscription,))


@dataclass(slots=True)
class Interval:
    """One subscription on one connection; ``until_us`` None: live. ``assumed``: its node was lost for so long that it passes for gone."""

    node: str
    since_us: int
    until_us: int | None = None
    assumed: bool = False

    def contains(self, at_us: int) -> bool:
        return self.since_us <= at_us and (self.until_us is None or at_us < self.until_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """One stored subscription."""

    address: Address
    instance: str
    slot: tuple[str, int]  # connection, subscription
    interval: Interval
    order: tuple[int, int]
    profile: Profile
    runs: Point | None


@dataclass(slots=True)
class Instance:
    profile: Profile
    order: tuple[int, int]  # (incarnation, connected at) of its newest connection
    intervals: dict[tuple[str, int], Interval] = field(default_factory=dict)
    reached: dict[int, Point] = field(default_factory=dict)  # the latest version it has applied; never less, as that did happen
    awaiting: dict[Point, Propagation] = field(default_factory=dict)

    def subscribed_at(self, at_us: int) -> frozenset[int]:
        if len(self.intervals) == 1:
            [((_, subscription), only)] = self.intervals.items()
            return only_one(subscription) if only.contains(at_us) else NOBODY
        return frozenset(subscription for (_, subscription), each in self.intervals.items() if each.contains(at_us))

    def reach(self, subscription: int, point: Point) -> bool:
        """False when it had been there before."""
        known = self.reached.get(subscription)
        if known is not None and point <= known:
            return False
        self.reached[subscription] = point
        return True

    def live(self) -> Iterator[tuple[int, Interval]]:
        return ((subscription, each) for (_, subscription), each in self.intervals.items() if each.until_us is None)


@dataclass(slots=True)
class Node:
    alive_at_us: int
    lost: bool = False


@dataclass(slots=True)
class Environment:
    instances: dict[str, Instance] = field(default_factory=dict)
    open: dict[Point, Propagation] = field(default_factory=dict)


@dataclass(slots=True)
class News:
    """What changed since the last `Board.take_news`: propagations, and durations to be observed once (label, seconds)."""

    touched: dict[Propagation, None] = field(default_factory=dict)
    applied: list[tuple[str, float]] = field(default_factory=list)
    hops: list[tuple[str, float]] = field(default_factory=list)


class Board:
    def __init__(self) -> None:
        self._environments: dict[Address, Environment] = {}
        self._nodes: dict[str, Node] = {}
        self._news = News()

    # --- what is asked ---

    def open_propagation(self, address: Address, number: int, version: str = "") -> Propagation | None:
        """Of the version with that id, when one is given, else of the latest epoch when several share the number."""
        environment = self._environments.get(address)
        found = [each for point, each in environment.open.items() if point.number == number] if environment else []
        if version:
            found = [each for each in found if each.commit.version == version]
        return max(found, key=lambda each: each.commit.point, default=None)

    def all_open(self) -> Iterator[Propagation]:
        return (each for environment in self._environments.values() for each in environment.open.values())

    def open_by_environment(self) -> Iterator[list[Propagation]]:
        """In the order in which they were committed."""
        return (list(environment.open.values()) for environment in self._environments.values())

    def lost_nodes(self) -> frozenset[str]:
        return frozenset(name for name, node in self._nodes.items() if node.lost)

    def connected_by_region(self) -> Counter[str]:
        """Instances with a live subscription on a node that is alive, each once however many environments it follows."""
        regions = {
            name: each.profile.region
            for environment in self._environments.values()
            for name, each in environment.instances.items()
            if self._present(each)
        }
        return Counter(regions.values())

    def take_news(self) -> News:
        news, self._news = self._news, News()
        return news

    # --- what the tables say, at start ---

    def restore_node(self, name: str, alive_at_us: int, *, lost: bool) -> None:
        self._nodes[name] = Node(alive_at_us, lost)

    def restore(self, stay: Stay) -> Instance:
        """Told in the order of their connections, before any propagation."""
        self._heard(stay.interval.node, stay.interval.since_us)
        instance = self._environment(stay.address).instances.setdefault(stay.instance, Instance(stay.profile, stay.order))
        instance.order, instance.profile = stay.order, stay.profile
        instance.intervals[stay.slot] = stay.interval
        if stay.runs:
            instance.reach(stay.slot[1], stay.runs)
        return instance

    # --- what happened ---

    def opened(self, commit: Commit, answers: Iterable[tuple[str, int, Answer]], hops: Mapping[str, Hop]) -> None:
        """A version was committed. ``answers`` and ``hops``: what had been stored of it before the ledger knew it."""
        environment = self._environment(commit.address)
        if commit.point in environment.open:
            return
        propagation = environment.open[commit.point] = Propagation(commit, hops=dict(hops))
        for instance, subscription, answer in answers:
            propagation.answered(instance, subscription, answer)
        for name, member in environment.instances.items():
            self._invite(propagation, name, member)
        self._news.touched[propagation] = None
        self._hop("commit", propagation, commit.committed_at_us)

    def subscribed(self, event: Subscribed) -> None:
        self._heard(event.node, event.at_us)
        environment = self._environment(Address(event.namespace, event.environment))
        order = (event.incarnation, event.at_us)
        instance = environment.instances.get(event.instance)
        if instance is None:
            instance = environment.instances[event.instance] = Instance(profile_from(event.region, event.fingerprint), order)
        if (event.connection, event.subscription) in instance.intervals:
            return
        interval = instance.intervals[event.connection, event.subscription] = Interval(event.node, event.at_us)
        others = [each for (connection, _), each in instance.intervals.items() if connection != event.connection]
        if order >= instance.order:
            instance.order, instance.profile = order, profile_from(event.region, event.fingerprint)
            if event.have:
                instance.reach(event.subscription, Point(event.have.epoch, event.have.number))
            for other in others:
                other.until_us = event.at_us if other.until_us is None else min(other.until_us, event.at_us)
        else:
            interval.until_us = min((each.since_us for each in others if each.since_us >= event.at_us), default=event.at_us)
        self._reconsider(environment, event.instance, instance, event.at_us)

    def revived(self, stay: Stay, gone_us: int) -> None:
        """Its node speaks again, and it is on its instance's newest connection: it was there all the time, also since ``gone_us``."""
        instance = self.restore(stay)
        self._reconsider(self._environment(stay.address), stay.instance, instance, gone_us)

    def unsubscribed(self, event: Unsubscribed) -> None:
        environment = self._environment(Address(event.namespace, event.environment))
        instance = environment.instances.get(event.instance)
        interval = instance.intervals.get((event.connection, event.subscription)) if instance else None
        if instance is None or interval is None:
            return
        before_us = event.at_us if interval.until_us is None else interval.until_us
        if interval.assumed:  # now it is known when it went: that, or when it came back elsewhere
            newer = (each.since_us for (connection, _), each in instance.intervals.items() if connection != event.connection)
            interval.until_us = min((each for each in newer if each > interval.since_us), default=event.at_us)
        interval.until_us = event.at_us if interval.until_us is None else min(interval.until_us, event.at_us)
        interval.assumed = event.reason == NODE_LOST
        self._reconsider(environment, event.instance, instance, min(before_us, interval.until_us))

    def received(self, event: Receipts, answers: Sequence[Answer]) -> None:
        """``answers``: what is kept of each row."""
        environment = self._environment(Address(event.namespace, event.environment))
        point = Point(event.epoch, event.number)
        propagation = environment.open.get(point)
        if propagation is not None and propagation.commit.version != event.version:
            propagation = None
        reached = event.state in ("applied", "unaffected")
        for row, answer in zip(event.rows, answers, strict=True):
            name, instance = row.instance, environment.instances.get(row.instance)
            if propagation is not None:
                propagation.answered(name, row.subscription, answer)
                if instance is not None and name in propagation.participants:
                    self._assess(propagation, name, instance)
            if instance is not None and reached:
                self._advance(name, instance, row.subscription, point)
        if answers:
            self._heard(event.node, max(answer.received_at_us for answer in answers))

    def fanned_out(self, event: FannedOut) -> None:
        self._heard(event.node, event.done_at_us)
        environment = self._environment(Address(event.namespace, event.environment))
        propagation = environment.open.get(Point(event.epoch, event.number))
        if propagation is None or event.node in propagation.hops:
            return
        propagation.passed(event.node, Hop(event.logged_at_us, event.started_at_us, event.done_at_us, event.recipients))
        self._hop("log", propagation, event.logged_at_us)
        self._hop("fan_out", propagation, event.done_at_us)
        self._news.touched[propagation] = None

    def node_alive(self, event: NodeAlive) -> None:
        self._heard(event.node, event.at_us)
        node = self._nodes[event.node]
        if node.lost != event.leaving:
            node.lost = event.leaving
            self._recheck({event.node})

    def silent_nodes(self, before_us: int) -> set[str]:
        """Nodes not heard of since ``before_us`` and not yet lost."""
        return {name for name, node in self._nodes.items() if not node.lost and node.alive_at_us < before_us}

    def lose(self, nodes: set[str]) -> None:
        """Nobody knows any more what the instances on these nodes do."""
        for name in nodes:
            self._nodes[name].lost = True
        self._recheck(nodes)

    def closed(self, propagation: Propagation) -> None:
        environment = self._environment(propagation.commit.address)
        environment.open.pop(propagation.commit.point, None)
        for name, who in propagation.participants.items():
            if who.status in AWAITED and (instance := environment.instances.get(name)):
                instance.awaiting.pop(propagation.commit.point, None)

    def forget(self, ended_before_us: int) -> None:
        """Drops what no open propagation can need: instances, intervals and environments that ended before."""
        for address, environment in list(self._environments.items()):
            for name, instance in list(environment.instances.items()):
                instance.intervals = {
                    key: each
                    for key, each in instance.intervals.items()
                    if each.until_us is None or each.until_us >= ended_before_us
                }
                if not instance.intervals and not instance.awaiting:
                    del environment.instances[name]
            if not environment.instances and not environment.open:
                del self._environments[address]

    # --- consequences ---

    def _environment(self, address: Address) -> Environment:
        environment = self._environments.get(address)
        if environment is None:
            environment = self._environments[address] = Environment()
        return environment

    def _heard(self, name: str, at_us: int) -> None:
        node = self._nodes.get(name)
        if node is None:
            self._nodes[name] = Node(at_us)
        else:
            node.alive_at_us = max(node.alive_at_us, at_us)

    def _hop(self, name: str, propagation: Propagation, at_us: int) -> None:
        self._news.hops.append((name, _seconds(propagation, at_us)))

    def _present(self, instance: Instance) -> frozenset[int] | None:
        """Live subscriptions on nodes that are alive; None when all of them are on lost ones."""
        if len(instance.intervals) == 1:  # as nearly all
            [((_, subscription), only)] = instance.intervals.items()
            if only.until_us is not None:
                return NOBODY
            return None if self._nodes[only.node].lost else only_one(subscription)
        live = list(instance.live())
        known = frozenset(subscription for subscription, each in live if not self._nodes[each.node].lost)
        return None if live and not known else known

    def _advance(self, name: str, instance: Instance, subscription: int, point: Point) -> None:
        if not instance.reach(subscription, point) or not instance.awaiting:
            return
        for earlier in [each for awaited, each in instance.awaiting.items() if awaited < point]:
            self._assess(earlier, name, instance)

    def _reconsider(self, environment: Environment, name: str, instance: Instance, since_us: int) -> None:
        """Its subscriptions changed from ``since_us`` on: which open versions does it take part in, and where does it stand?"""
        for propagation in list(environment.open.values()):
            if propagation.commit.committed_at_us >= since_us:
                self._invite(propagation, name, instance)
        for propagation in list(instance.awaiting.values()):
            self._assess(propagation, name, instance)

    def _invite(self, propagation: Propagation, name: str, instance: Instance) -> None:
        subscriptions = instance.subscribed_at(propagation.commit.committed_at_us)
        propagation.expect(name, subscriptions, instance.profile)
        if subscriptions:
            self._assess(propagation, name, instance)
        else:
            instance.awaiting.pop(propagation.commit.point, None)
            self._news.touched[propagation] = None

    def _assess(self, propagation: Propagation, name: str, instance: Instance) -> None:
        before = propagation.participants[name].status
        status = propagation.assess(name, self._present(instance), instance.reached)
        if status in AWAITED:
            instance.awaiting[propagation.commit.point] = propagation
        else:
            instance.awaiting.pop(propagation.commit.point, None)
        if status is Status.APPLIED and before is not Status.APPLIED:
            who = propagation.participants[name]
            self._news.applied.append((who.profile.region, _seconds(propagation, who.applied_at_us)))
        self._news.touched[propagation] = None

    def _recheck(self, nodes: set[str]) -> None:
        for environment in self._environments.values():
            for name, instance in environment.instances.items():
                if instance.awaiting and any(each.node in nodes for _, each in instance.live()):
                    for propagation in list(instance.awaiting.values()):
                        self._assess(propagation, name, instance)


def profile_from(region: str, fingerprint: Fingerprint) -> Profile:
    labels = sorted(f"{key}={value}" for key, value in fingerprint.labels.items())[:MAX_LABELS]
    return Profile(region, fingerprint.sdk_version, tuple(labels))


def _seconds(propagation: Propagation, at_us: int) -> float:
    """Since the publish's first byte."""
    return milliseconds(propagation.commit.received_at_us, at_us) / 1000
