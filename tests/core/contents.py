"""Strategies for contents of environments: names in nested folders, digests, edits, views; and tries with small buckets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hypothesis import settings
from hypothesis import strategies as st

from heliograph.core import trie

thorough = settings(max_examples=max(300, settings.default.max_examples if settings.default else 0))
"""For what everything else stands on."""

parts = st.sampled_from([f"{letter}{number}" for letter in "abcdef" for number in range(8)])
folders = st.sampled_from(["", "", "x/", "y/", "x/y/", "x/z/", "w/"])
config_names = st.builds(str.__add__, folders, parts)
selectors = config_names | st.sampled_from(["", "x/", "x/y/", "x/z/", "w/", "nowhere/", "x/nowhere/"])
views = st.frozensets(selectors, min_size=1, max_size=6)
buckets = st.sampled_from([1, 2, 3, 5, trie.BUCKET])


def hashed(text: object) -> bytes:
    return hashlib.sha256(str(text).encode()).digest()


leaves = st.integers(0, 5).map(hashed)
contents = st.dictionaries(config_names, leaves, max_size=60)
edits = st.dictionaries(config_names, st.none() | leaves, max_size=40)


def edited(content: Mapping[str, bytes], change: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {name: entry for name, entry in {**content, **change}.items() if entry is not None}


@contextmanager
def bucket_of(size: int) -> Iterator[None]:
    """Tries whose buckets split earlier, so that a few dozen names reach every shape that millions would."""
    before, trie.BUCKET = trie.BUCKET, size
    try:
        yield
    finally:
        trie.BUCKET = before


def built(content: Mapping[str, bytes]) -> trie.Node:
    return trie.update(trie.EMPTY, content)
