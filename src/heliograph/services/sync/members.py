"""Who is sent the same frames: the subscriptions of one environment with equal view and id.

What a fan-out costs beside the system's own is the memory it touches. Each object of a subscriber is a cache line that the loop waits for, and there
are ten thousand of each. So those who are at the same version, with sockets that take whole frames, stand *together*: where they are is kept once
for all, and of each the loop touches its way out, a file descriptor if nothing is encrypted. Whoever has anything of its own (a full socket, a large
frame on its way, another version, a connection that is no WebSocket) is *alone*, until a walk finds it where the others are.
"""

from __future__ import annotations

from typing import Any, Final, Generic, Protocol, TypeVar

from heliograph.core.records import Cursor

SPARSE: Final = 4
"""One place in so many may be empty before the others move up."""
Way = Any
"""What the hub writes whole frames to, never None; None in the place of somebody who stands there no more."""
_C = TypeVar("_C")


class Company(Protocol):
    """Where somebody stands who does not stand alone."""

    def at(self, place: int) -> Cursor | None: ...

    def part(self, member: Any) -> None: ...


class Member(Protocol):
    """A subscriber. ``own``: where it stands when it is alone; see `session.Subscriber.cursor`."""

    own: Cursor | None
    company: Company | None
    place: int


_M = TypeVar("_M", bound=Member)


class Members(dict[_M, _C], Generic[_M, _C]):
    """All of them with their connections. ``alone``: those who do not stand together. Join, leave and part may come in the middle of a walk.

    Together are at `cursor`, but for those whom a walk that goes on has not `reached`: they are still at `before`. ``ways``: of each place.
    ``last``: the way that the walk has written to last; its member is reached too.
    """

    __slots__ = ("_who", "alone", "before", "cursor", "last", "reached", "ways")

    def __init__(self) -> None:
        self.alone: dict[_M, _C] = {}
        self.cursor: Cursor | None = None
        self.before: Cursor | None = None
        self.ways: list[Way] = []
        self.last: Way = None
        self.reached = 0
        self._who: list[_M | None] = []

    def join(self, member: _M, connection: _C) -> None:
        self[member] = self.alone[member] = connection

    def leave(self, member: _M) -> None:
        if member.company is self:
            self.part(member)
        self.alone.pop(member, None)
        self.pop(member, None)

    def at(self, place: int) -> Cursor | None:
        return self.cursor if place < self.reached else self.before

    def take_in(self, member: _M, way: Way) -> None:
        """Somebody who was alone: with the others, if they are where it is and there is a way."""
        if way is None or self.reached < len(self.ways):
            return
        if not self.ways:
            self.cursor = member.own
        elif self.cursor is not member.own:
            return
        del self.alone[member]
        member.company, member.place = self, len(self.ways)
        self.ways.append(way)
        self._who.append(member)
        self.reached += 1

    def part(self, member: _M) -> None:
        """From now on it is alone, where it stands."""
        place, way = member.place, self.ways[member.place]
        member.own, member.company = self.cursor if way is self.last else self.at(place), None
        self.ways[place] = None
        self._who[place] = None
        self.alone[member] = self[member]

    def set_out(self, target: Cursor) -> None:
        """A walk begins, with nobody reached."""
        self.before, self.cursor, self.reached, self.last = self.cursor, target, 0, None

    def next(self, count: int) -> list[Way]:
        """The ways of so many who have not been reached."""
        return self.ways[self.reached : self.reached + count]

    def passed(self, some: list[Way]) -> int:
        """The walk has been to the `next` ones; how many of them there were."""
        self.reached += len(some)
        return len(some) - some.count(None)

    def whose(self, way: Way) -> _M:
        """Who stands where the walk is, by the way that it found there."""
        found = self._who[self.ways.index(way, self.reached)]
        assert found is not None
        return found

    def part_all(self) -> None:
        self.before, self.reached = self.cursor, 0
        self.part_rest()

    def part_rest(self) -> None:
        """Those whom a walk has not reached and will not: it failed, or the head is another one by now."""
        for member in self._who[self.reached :]:
            if member is not None:
                self.part(member)
        del self.ways[self.reached :], self._who[self.reached :]

    def tidy(self) -> None:
        """Before a walk: those whom one that failed has not reached are alone, and empty places are filled when there are many."""
        self.part_rest()
        if self.ways.count(None) * SPARSE <= len(self.ways):
            return
        staying = [member for member in self._who if member is not None]
        self.ways = [self.ways[member.place] for member in staying]
        self._who = list(staying)
        for place, member in enumerate(staying):
            member.place = place
        self.reached = len(staying)
