"""Who stands together and who alone: a table of each one's own place says the same, whatever happens in the middle of a walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from heliograph.core.records import Cursor
from heliograph.services.sync.fragments import text_frame
from heliograph.services.sync.members import Company, Members


@dataclass(eq=False)
class Somebody:
    own: Cursor | None
    company: Company | None = None
    place: int = 0

    @property
    def cursor(self) -> Cursor | None:
        return self.own if self.company is None else self.company.at(self.place)


VERSIONS = [Cursor(1, number, f"{number:064x}") for number in range(1, 100)]


class Walking(RuleBasedStateMachine):
    """The model: a table of cursors. Together goes by slices of three; anything may happen between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.members: Members[Somebody, int] = Members()
        self.table: dict[Somebody, Cursor | None] = {}
        self.head = 0
        self.walking = False
        self.number = 0

    def pick(self, data: st.DataObject) -> Somebody:
        return data.draw(st.sampled_from(list(self.table)))

    @rule(behind=st.booleans())
    def joins(self, behind: bool) -> None:
        self.number += 1
        who = Somebody(VERSIONS[0] if behind else VERSIONS[self.head])
        self.members.join(who, self.number)
        self.table[who] = who.own

    @precondition(lambda self: self.table)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        who = self.pick(data)
        at = self.table.pop(who)
        self.members.leave(who)
        assert who.company is None
        assert who.cursor == at

    @precondition(lambda self: any(each.company for each in self.table))
    @rule(data=st.data())
    def parts(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from([each for each in self.table if each.company]))
        self.members.part(who)

    @precondition(lambda self: not self.walking)
    @rule()
    def a_version_comes(self) -> None:
        self.head += 1
        self.members.tidy()
        if self.members.ways:
            self.members.set_out(VERSIONS[self.head])
            self.walking = True
        else:
            self.walk_alone()

    @precondition(lambda self: self.walking)
    @rule(full=st.sets(st.integers(0, 2)))
    def goes_on(self, full: set[int]) -> None:
        """``full``: who is found to be when it is written to, and parts then."""
        some = self.members.next(3)
        there = [way for way in some if way is not None]
        for number, way in enumerate(there):
            self.members.last = way
            who = self.members.whose(way)
            assert self.members[who] == way
            self.table[who] = VERSIONS[self.head]
            if number in full:
                self.members.part(who)
                assert who.own == VERSIONS[self.head]
        assert self.members.passed(some) == len(there)
        if not self.members.next(3):
            self.ends()

    @precondition(lambda self: self.walking)
    @rule()
    def is_overtaken(self) -> None:
        self.ends()

    @precondition(lambda self: self.walking)
    @rule()
    def fails(self) -> None:
        self.walking = False  # `tidy` comes before the next one

    def ends(self) -> None:
        self.members.part_rest()
        self.walking = False
        self.walk_alone()

    def walk_alone(self) -> None:
        for who, number in list(self.members.alone.items()):
            self.table[who] = who.own = VERSIONS[self.head]
            self.members.take_in(who, number)

    @invariant()
    def each_stands_where_the_table_says(self) -> None:
        assert set(self.members) == set(self.table)
        for who, at in self.table.items():
            assert who.cursor == at

    @invariant()
    def nobody_stands_twice(self) -> None:
        together = [each for each in self.members._who if each is not None]
        assert len(together) == len(set(together))
        assert set(together) | set(self.members.alone) == set(self.table)
        assert not set(together) & set(self.members.alone)
        assert all(each.company is self.members and self.members._who[each.place] is each for each in together)
        assert [each for each in self.members.ways if each is not None] == [self.members[each] for each in together]


TestWalking = Walking.TestCase


@pytest.mark.parametrize(
    ("what", "wrongly"),
    [
        ("at", lambda self, _: self.cursor),
        ("part_rest", lambda _: None),
        ("passed", lambda self, some: setattr(self, "reached", self.reached + 1) or len(some) - some.count(None)),
    ],
)
def test_what_the_machine_catches(what: str, wrongly: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Members, what, wrongly)
    with pytest.raises(Exception, match=r"."):
        run_state_machine_as_test(Walking, settings=settings(max_examples=200, phases=[Phase.generate], deadline=None))


def test_nobody_is_taken_in_without_a_socket_or_from_another_version() -> None:
    members: Members[Any, int] = Members()
    first, behind, no_socket = Somebody(VERSIONS[1]), Somebody(VERSIONS[0]), Somebody(VERSIONS[1])
    for number, each in enumerate((first, behind, no_socket)):
        members.join(each, number)
    members.take_in(first, 7)
    members.take_in(behind, 8)
    members.take_in(no_socket, None)
    assert members.ways == [7]
    assert set(members.alone) == {behind, no_socket}


def test_empty_places_are_filled_before_they_are_many() -> None:
    members: Members[Any, int] = Members()
    everybody = [Somebody(VERSIONS[0]) for _ in range(100)]
    for number, each in enumerate(everybody):
        members.join(each, number)
        members.take_in(each, number)
    for each in everybody[:25]:
        members.leave(each)
    members.tidy()
    assert len(members.ways) == 100
    members.leave(everybody[25])
    members.tidy()
    assert members.ways == list(range(26, 100))
    assert [each.place for each in everybody[26:]] == list(range(74))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_a_text_frame_is_that_of_rfc_6455(size: int) -> None:
    frame = text_frame(b"x" * size)
    head = {0: b"\x81\x00", 1: b"\x81\x01", 125: b"\x81\x7d", 126: b"\x81\x7e\x00\x7e", 65_535: b"\x81\x7e\xff\xff"}
    assert frame == head.get(size, b"\x81\x7f" + size.to_bytes(8, "big")) + b"x" * size
