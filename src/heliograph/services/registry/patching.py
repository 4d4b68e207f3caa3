"""Patches of one document: RFC 7396 and RFC 6902, on the head, or on the version that the author looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from heliograph.core.canonical import Json, canonical, parse
from heliograph.core.digest import unspell
from heliograph.core.errors import Conflict, NotFound, UnsupportedMedia
from heliograph.core.names import ConfigName
from heliograph.core.patch import JSON_PATCH, MERGE_PATCH, Operation, apply, merge_patch, read_operations
from heliograph.services.registry.changes import Change, read_text
from heliograph.services.registry.commit import Committed, Order, Unchanged
from heliograph.services.registry.heads import Place
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.publish import Publish

BESIDE_THE_LOOP: Final = 64 * 1024
ACCEPTED: Final = (MERGE_PATCH, JSON_PATCH)


@dataclass(frozen=True, slots=True)
class Patch:
    """``size``: bytes it was read from."""

    apply: Callable[[Json], Json]
    size: int


def read_patch(media_type: str, body: bytes) -> Patch:
    """Raises UnsupportedMedia, InvalidDocument, InvalidPatch, TooLarge."""
    kind = media_type.partition(";")[0].strip().lower()
    if kind == MERGE_PATCH:
        return Patch(partial(_merged, parse(body)), len(body))
    if kind == JSON_PATCH:
        return Patch(partial(_operated, read_operations(parse(body))), len(body))
    raise UnsupportedMedia(
        f"a patch is sent as {MERGE_PATCH} (RFC 7396) or {JSON_PATCH} (RFC 6902); say which in Content-Type", accepted=ACCEPTED
    )


def _merged(patch: Json, document: Json) -> Json:
    return merge_patch(document, patch)


def _operated(operations: tuple[Operation, ...], document: Json) -> Json:
    return apply(document, operations)


class Patching:
    def __init__(self, publish: Publish, objects: Objects) -> None:
        self._publish = publish
        self._objects = objects

    async def __call__(self, order: Order, name: ConfigName, patch: Patch) -> Committed | Unchanged:
        """The patched document as a new version; applied again whenever the head has moved, so nothing that others did is lost.

        Raises NotFound (there is nothing to patch), PatchFailed, InvalidDocument and TooLarge (what comes out is no document), and what a publish
        raises.
        """
        return await self._publish.edit(order, partial(self._edit, order.place, name, patch))

    async def _edit(self, place: Place, name: ConfigName, patch: Patch, root: bytes) -> tuple[Change, ...]:
        leaf = await self._objects.leaf_of(place.namespace, root, name)
        if leaf is None:
            raise NotFound(f"no config {name} to patch; put its document first")
        texts = await self._objects.texts(place.namespace, [unspell(leaf.document)])
        if not texts:
            raise Conflict(f"the document of {name} was purged; put a new one")
        text = next(iter(texts.values()))
        work = partial(_patched, name, patch, text)
        return (await asyncio.to_thread(work) if len(text) + patch.size > BESIDE_THE_LOOP else work(),)


def _patched(name: ConfigName, patch: Patch, text: bytes) -> Change:
    return Change(name, read_text("document", canonical(patch.apply(parse(text)))))
