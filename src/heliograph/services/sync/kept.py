"""What was made once and will be asked for again, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """The newest of what was put, as far as it fits. What alone exceeds the bound is not kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.size = 0

    def __contains__(self, key: K) -> bool:
        return key in self._kept

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        return found[0] if found else None

    def put(self, key: K, value: V, size: int) -> None:
        """`size`: its bytes, as the caller counts them."""
        if size > self._limit:
            return
        _, before = self._kept.pop(key, (None, 0))
        self._kept[key] = (value, size)
        self.size += size - before
        while self.size > self._limit:
            _, (_, oldest) = self._kept.popitem(last=False)
            self.size -= oldest

    def clear(self) -> None:
        self._kept.clear()
        self.size = 0
