"""Immutable objects of a namespace, read through caches, and tries loaded as far as a question needs.

What is cached is named by its digest, so a cache can be cold but never wrong. Reads here follow digests that come from the namespace's own
tries; a digest that comes from outside is looked up in its namespace instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final

import msgspec

from heliograph.core import trie
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Corrupt
from heliograph.core.names import Namespace
from heliograph.core.records import Leaf
from heliograph.core.trie import Branch, Bucket, Node, Stub
from heliograph.services.registry import trees
from heliograph.services.registry.cache import ByteCache
from heliograph.services.registry.draft import Stored
from heliograph.services.registry.store import Store

PARSED: Final = 5
"""A node in memory is so many times its stored bytes (measured: 3.7 for buckets, 5.4 for branches)."""
MANY: Final = 256
"""Nodes from which on working on them is for a thread: some milliseconds."""
MANY_NAMES: Final = 5_000
"""Names from which on following them is for a thread."""
LEARNT: Final = 1_000
"""Of one commit: more would push out what others use."""
Tries = tuple[Node, ...]
_LEAF: Final = msgspec.json.Decoder(Leaf)


class Objects:
    """``node_bytes``, ``text_bytes``: what the caches may hold."""

    def __init__(self, store: Store, *, node_bytes: int = 64 << 20, text_bytes: int = 32 << 20) -> None:
        self._store = store
        self._nodes: ByteCache[bytes, Bucket | Branch] = ByteCache(node_bytes)
        self._texts: ByteCache[bytes, bytes] = ByteCache(text_bytes)

    def learn(self, objects: Iterable[Stored]) -> None:
        """They are stored now."""
        for each in islice(objects, LEARNT):
            if each.kind == "node":
                self._nodes.put(each.digest, trie.decode(each.body), PARSED * len(each.body))
            elif each.kind in ("leaf", "schema"):
                self._texts.put(each.digest, each.body, len(each.body))

    async def texts(self, namespace: Namespace, digests: Collection[bytes], *, keep: bool = True) -> dict[bytes, bytes]:
        """Those that are there. ``keep`` False: for many or large ones that nobody will ask for again."""
        found = {each: text for each in digests if (text := self._texts.get(each)) is not None}
        if missing := set(digests) - found.keys():
            loaded = await self._store.objects(namespace, missing)
            if keep:
                for each, text in loaded.items():
                    self._texts.put(each, text, len(text))
            found |= loaded
        return found

    async def text(self, namespace: Namespace, digest: bytes) -> bytes:
        """One that must be there. Raises Corrupt."""
        found = await self.texts(namespace, [digest])
        if digest not in found:
            raise Corrupt(f"{namespace}: object {spell(digest)} is missing")
        return found[digest]

    async def leaves(self, namespace: Namespace, digests: Collection[bytes], *, keep: bool = True) -> dict[bytes, Leaf]:
        """All of them. Raises Corrupt."""
        texts = await self.texts(namespace, digests, keep=keep)
        if missing := set(digests) - texts.keys():
            raise Corrupt(f"{namespace}: leaf {spell(min(missing))} is missing")
        return {digest: _LEAF.decode(text) for digest, text in texts.items()}

    # --- tries --------------------------------------------------------------------------------------------------------------------

    async def paths(
        self, namespace: Namespace, root: bytes, names: Iterable[str], leaving: frozenset[str] = frozenset()
    ) -> Node:
        """The trie, loaded so far that ``names`` can be read and changed, and ``leaving`` deleted."""
        wanted = list(names)
        many = len(wanted) > MANY_NAMES
        grown = await self._grown(namespace, (Stub(root),), lambda tries: trees.on_paths(tries[0], wanted, leaving), many=many)
        return grown[0]

    async def folder(self, namespace: Namespace, root: bytes, folder: str) -> Node | None:
        """One folder with its own entries, None if the version has none of that name; ``""``: the top."""
        top = await self.paths(namespace, root, [folder] if folder else [])
        found = trie.get(top, folder) if folder else top
        if found is None or isinstance(found, bytes):
            return None
        return (await self._grown(namespace, (found,), lambda tries: trees.of_folder(tries[0])))[0]

    async def whole(self, namespace: Namespace, root: bytes) -> Node:
        return (await self._grown(namespace, (Stub(root),), lambda tries: trees.everywhere(tries[0])))[0]

    async def pair(self, namespace: Namespace, a: bytes, b: bytes) -> tuple[Node, Node]:
        """Two tries, loaded where they differ."""
        old, new = await self._grown(namespace, (Stub(a), Stub(b)), lambda tries: trees.between(tries[0], tries[1]))
        return old, new

    async def leaf_of(self, namespace: Namespace, root: bytes, name: str) -> Leaf | None:
        """What a version says of one config."""
        found = trie.get(await self.paths(namespace, root, [name]), name)
        if not isinstance(found, bytes):
            return None
        return (await self.leaves(namespace, [found]))[found]

    async def leaves_at(self, namespace: Namespace, roots: Sequence[bytes], name: str) -> list[Leaf | None]:
        """What each of several versions says of one config: one round trip a level for all of them."""
        stubs = tuple(Stub(root) for root in roots)
        tries = await self._grown(
            namespace, stubs, lambda tries: {digest for each in tries for digest in trees.on_paths(each, [name])}
        )
        found = [entry if isinstance(entry, bytes) else None for entry in (trie.get(each, name) for each in tries)]
        leaves = await self.leaves(namespace, {each for each in found if each}, keep=False)
        return [leaves[each] if each else None for each in found]

    def forget(self, digests: Iterable[bytes]) -> None:
        """Their texts are to be kept nowhere."""
        for each in digests:
            self._texts.drop(each)

    async def schema_of(self, namespace: Namespace, leaf: Leaf) -> bytes | None:
        return await self.text(namespace, unspell(leaf.schema)) if leaf.schema else None

    async def _grown(
        self, namespace: Namespace, tries: Tries, hidden: Callable[[Tries], set[bytes]], *, many: bool = False
    ) -> Tries:
        """Loads what is hidden until nothing is: one round trip for each level that is not cached. ``many``: looking is for a thread from the
        start."""
        needed = await asyncio.to_thread(hidden, tries) if many else hidden(tries)
        while needed:
            many = many or len(needed) > MANY
            step = partial(_step, tries, await self._load(namespace, needed), hidden)
            tries, needed = await asyncio.to_thread(step) if many else step()
        return tries

    async def _load(self, namespace: Namespace, digests: set[bytes]) -> dict[bytes, Bucket | Branch]:
        found = {each: node for each in digests if (node := self._nodes.get(each)) is not None}
        if missing := digests - found.keys():
            bodies = await self._store.objects(namespace, missing)
            if lost := missing - bodies.keys():
                raise Corrupt(f"{namespace}: node {spell(min(lost))} is missing")
            decoded = await asyncio.to_thread(_decoded, bodies) if len(bodies) > MANY else _decoded(bodies)
            for each, node in decoded.items():
                self._nodes.put(each, node, PARSED * len(bodies[each]))
            found |= decoded
        return found


def _step(tries: Tries, loaded: trees.Loaded, hidden: Callable[[Tries], set[bytes]]) -> tuple[Tries, set[bytes]]:
    grown = tuple(trees.graft(each, loaded) for each in tries)
    return grown, hidden(grown)


def _decoded(bodies: dict[bytes, bytes]) -> dict[bytes, Bucket | Branch]:
    return {digest: trie.decode(body) for digest, body in bodies.items()}
