"""A timer wheel: thousands of things that are due some time, looked at only when they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Slotted(Protocol):
    """What can lie on a wheel. ``slot`` belongs to the wheel; -1: it lies on none."""

    slot: int


T = TypeVar("T", bound=Slotted)


class Wheel(Generic[T]):
    """Each item lies in the slot of the tick in which it is due, or, if that is more than a turn away, in the farthest, to be put again when that one
    comes. Putting, taking off and finding what is due cost the same however many there are. Times are microseconds of one clock."""

    def __init__(self, now_us: int, *, tick_us: int, slots: int) -> None:
        self._tick_us = tick_us
        self._slots: list[dict[T, None]] = [{} for _ in range(slots)]
        self._tick = now_us // tick_us

    def put(self, item: T, due_us: int) -> None:
        """On the wheel once, wherever it was; due at the tick after `due_us` and no earlier than the next one."""
        self.drop(item)
        ahead = min(max(due_us // self._tick_us + 1 - self._tick, 1), len(self._slots) - 1)
        item.slot = (self._tick + ahead) % len(self._slots)
        self._slots[item.slot][item] = None

    def drop(self, item: T) -> None:
        if item.slot >= 0:
            self._slots[item.slot].pop(item, None)
            item.slot = -1

    def due(self, now_us: int) -> Iterator[T]:
        """Takes off, one by one, what has become due. Others may be put and dropped between two of them."""
        last = now_us // self._tick_us
        self._tick = max(self._tick, last - len(self._slots))  # a pause of more than a turn: every slot once
        while self._tick < last:
            self._tick += 1
            slot = self._slots[self._tick % len(self._slots)]
            for _ in range(len(slot)):
                if not slot:
                    break
                item, _ = slot.popitem()
                item.slot = -1
                yield item
