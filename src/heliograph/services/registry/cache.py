"""A least-recently-used cache bounded by bytes. Only for immutable values that their key names, so it can be too small but never wrong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """``capacity``: bytes of values, as whoever puts them in says; a value above an eighth of it is not kept."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        if size > self._capacity // 8:
            return
        self.drop(key)
        self._values[key] = value, size
        self._held += size
        while self._held > self._capacity:
            _, (_, freed) = self._values.popitem(last=False)
            self._held -= freed

    def drop(self, key: K) -> None:
        if found := self._values.pop(key, None):
            self._held -= found[1]
