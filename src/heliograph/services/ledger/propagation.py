"""One version on its way: who should answer, who has, and what that amounts to. Pure; the board feeds it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import islice
from math import ceil

from heliograph.services.ledger.answers import Address, Answer, Point, better
from heliograph.services.ledger.report import (
    MAX_GROUPS,
    MAX_REJECTIONS,
    Group,
    Groups,
    Percentiles,
    Rejection,
    Report,
    Times,
    milliseconds,
    percentiles,
    share_of,
)


class Status(StrEnum):
    """Where one instance stands with one version. ``missing`` includes those whose node died: nobody knows about them."""

    APPLIED = "applied"
    REJECTED = "rejected"
    UNAFFECTED = "unaffected"
    SUPERSEDED = "superseded"
    LEFT = "left"
    MISSING = "missing"


_STATUS = {status.value: status for status in Status}
NOTHING: dict[int, Answer] = {}
AWAITED = frozenset({Status.LEFT, Status.MISSING})  # one that left may come back and answer while the propagation is open


@dataclass(frozen=True, slots=True)
class Profile:
    """What percentiles are grouped by."""

    region: str
    sdk_version: str
    labels: tuple[str, ...]  # "key=value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What the ledger needs to know of a version. Times: the publish's first byte, the commit, on the servers' clocks."""

    address: Address
    point: Point
    version: str
    received_at_us: int
    committed_at_us: int


@dataclass(frozen=True, slots=True)
class Hop:
    """One node's fan-out of one version."""

    logged_at_us: int
    started_at_us: int
    done_at_us: int
    recipients: int


@dataclass(slots=True)
class Participant:
    """An instance that was subscribed at the commit; ``subscriptions`` are those that were."""

    profile: Profile
    subscriptions: frozenset[int]
    status: Status = Status.MISSING
    applied_at_us: int = 0


@dataclass(slots=True, eq=False)
class Propagation:
    commit: Commit
    participants: dict[str, Participant] = field(default_factory=dict)
    answers: dict[str, dict[int, Answer]] = field(default_factory=dict)
    hops: dict[str, Hop] = field(default_factory=dict)
    counts: Counter[Status] = field(default_factory=Counter)
    changed_at_us: int = 0
    _told: Report | None = None  # as long as nothing has changed since

    def answered(self, instance: str, subscription: int, answer: Answer) -> None:
        """Keeps the answer, also of an instance that does not count: its subscription record may come later."""
        self._told = None
        mine = self.answers.get(instance)
        if mine is None:
            self.answers[instance] = {subscription: answer}
        else:
            known = mine.get(subscription)
            mine[subscription] = better(known, answer) if known else answer

    def expect(self, instance: str, subscriptions: frozenset[int], profile: Profile) -> None:
        """``instance`` was subscribed at the commit with exactly these; with none it does not take part."""
        self._told = None
        known = self.participants.get(instance)
        if not subscriptions:
            self._drop(instance)
        elif known is None:
            self.participants[instance] = Participant(profile, subscriptions)
            self.counts[Status.MISSING] += 1
        else:
            known.subscriptions = subscriptions
            known.profile = profile

    def assess(self, instance: str, present: frozenset[int] | None, reached: dict[int, Point]) -> Status:
        """Settles where a participant stands; returns it.

        ``present``: its live subscriptions now, None when its node is lost and nobody knows. ``reached``: the latest
        version that each of its subscriptions has applied.
        """
        who = self.participants[instance]
        status = self._status(instance, who, present, reached)
        self._told = None  # the time it was applied at may be another one, too
        if status is not who.status:
            self.counts[who.status] -= 1
            self.counts[status] += 1
            who.status = status
        return status

    @property
    def instances(self) -> int:
        return len(self.participants)

    @property
    def good(self) -> int:
        return self.counts[Status.APPLIED] + self.counts[Status.UNAFFECTED] + self.counts[Status.SUPERSEDED]

    def settled(self, share: float) -> bool:
        """``share`` of those that did not leave has it, or rejections make that impossible.

        Never while everyone has left (they may return) nor when nobody took part (the caller knows whether that is certain).
        """
        base = self.instances - self.counts[Status.LEFT]
        needed = ceil(share * base - 1e-9)  # 0.95 of 20 is 19, whatever floating point says
        return base > 0 and (self.good >= needed or base - self.counts[Status.REJECTED] < needed)

    @property
    def complete(self) -> bool:
        """Nobody is awaited any more, not even one that left a moment ago."""
        return not self.counts[Status.MISSING] and not self.counts[Status.LEFT]

    @property
    def logged_at_us(self) -> int | None:
        return max((hop.logged_at_us for hop in self.hops.values()), default=None)

    @property
    def fanned_out_at_us(self) -> int | None:
        return max((hop.done_at_us for hop in self.hops.values()), default=None)

    def passed(self, node: str, hop: Hop) -> None:
        """The node has fanned it out."""
        self._told = None
        self.hops[node] = hop

    def report(self) -> Report:
        """The story so far. Work grows with the participants, about 3 ms for a thousand, and is done once until something changes."""
        if self._told is None:
            self._told = self._report()
        return self._told

    def _report(self) -> Report:
        counts, commit = self.counts, self.commit
        return Report(
            namespace=commit.address.namespace,
            environment=commit.address.environment,
            number=commit.point.number,
            epoch=commit.point.epoch,
            version=commit.version,
            state="open",
            instances=self.instances,
            applied=counts[Status.APPLIED],
            rejected=counts[Status.REJECTED],
            unaffected=counts[Status.UNAFFECTED],
            superseded=counts[Status.SUPERSEDED],
            left=counts[Status.LEFT],
            missing=counts[Status.MISSING],
            share=share_of(self.good, self.instances, counts[Status.LEFT]),
            received_at_us=commit.received_at_us,
            committed_at_us=commit.committed_at_us,
            logged_at_us=self.logged_at_us,
            fanned_out_at_us=self.fanned_out_at_us,
            times_ms=self._times(),
            by=self._groups(),
            rejections=list(islice(self._rejections(), MAX_REJECTIONS)),
        )

    def since_received_ms(self, at_us: int | None) -> float | None:
        return None if at_us is None else milliseconds(self.commit.received_at_us, at_us)

    def _drop(self, instance: str) -> None:
        if gone := self.participants.pop(instance, None):
            self.counts[gone.status] -= 1

    def _status(self, instance: str, who: Participant, present: frozenset[int] | None, reached: dict[int, Point]) -> Status:
        # an instance that came back with other subscriptions answers on those
        needed = (who.subscriptions & present or present or who.subscriptions) if present else who.subscriptions
        answers = self.answers.get(instance, NOTHING)
        if len(needed) == 1:
            [only] = needed  # as nearly all have
            return self._status_of_one(who, present, answers.get(only), reached.get(only))
        found = {self._said(answers.get(subscription), reached.get(subscription)) for subscription in needed}
        if Status.REJECTED in found:
            return Status.REJECTED
        if Status.MISSING in found:
            return Status.LEFT if present is not None and not present else Status.MISSING
        if Status.APPLIED in found:
            who.applied_at_us = max(answers[s].applied_at_us for s in needed if s in answers and answers[s].state == "applied")
            return Status.APPLIED
        return Status.SUPERSEDED if Status.SUPERSEDED in found else Status.UNAFFECTED

    def _status_of_one(
        self, who: Participant, present: frozenset[int] | None, answer: Answer | None, reached: Point | None
    ) -> Status:
        said = self._said(answer, reached)
        if said is Status.APPLIED and answer is not None:
            who.applied_at_us = answer.applied_at_us
        if said is Status.MISSING and present is not None and not present:
            return Status.LEFT
        return said

    def _said(self, answer: Answer | None, reached: Point | None) -> Status:
        """``superseded`` counts only once the later version really runs."""
        if answer is not None and answer.state != "superseded":
            return _STATUS[answer.state]
        return Status.SUPERSEDED if reached is not None and reached > self.commit.point else Status.MISSING

    def _applied(self, members: Iterable[Participant]) -> Percentiles:
        times_us = [who.applied_at_us for who in members if who.status is Status.APPLIED]
        return percentiles(times_us, partial(milliseconds, self.commit.received_at_us))

    def _times(self) -> Times:
        return Times(
            applied=self._applied(self.participants.values()),
            commit=milliseconds(self.commit.received_at_us, self.commit.committed_at_us),
            log=self.since_received_ms(self.logged_at_us),
            fan_out=self.since_received_ms(self.fanned_out_at_us),
        )

    def _groups(self) -> Groups:
        region: dict[str, list[Participant]] = defaultdict(list)
        sdk: dict[str, list[Participant]] = defaultdict(list)
        label: dict[str, list[Participant]] = defaultdict(list)
        for who in self.participants.values():
            region[who.profile.region].append(who)
            sdk[who.profile.sdk_version].append(who)
            for text in who.profile.labels:
                label[text].append(who)
        return Groups(*({name: self._group(members) for name, members in _largest(kind)} for kind in (region, sdk, label)))

    def _group(self, members: list[Participant]) -> Group:
        counts = Counter(who.status for who in members)
        return Group(
            len(members), counts[Status.APPLIED], counts[Status.REJECTED], counts[Status.MISSING], self._applied(members)
        )

    def _rejections(self) -> Iterator[Rejection]:
        for name in sorted(name for name, who in self.participants.items() if who.status is Status.REJECTED):
            answer = next(answer for _, answer in sorted(self.answers[name].items()) if answer.state == "rejected")
            yield Rejection(name, answer.reason or "")


def _largest(groups: dict[str, list[Participant]]) -> list[tuple[str, list[Participant]]]:
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_GROUPS]
