"""Makes namespaces and environments. A new environment begins with version 1, which is empty, so that a head always exists."""

from __future__ import annotations

from datetime import datetime

from heliograph.core.errors import AlreadyExists, NotFound
from heliograph.core.names import Namespace
from heliograph.services.registry.commit import Commits, Committed, Order
from heliograph.services.registry.draft import EMPTY, Content
from heliograph.services.registry.store import Store


async def create_namespace(store: Store, name: Namespace, by: str) -> datetime:
    """When it was made. Raises AlreadyExists."""
    made = await store.create_namespace(name, by)
    if made is None:
        if not await store.namespace_exists(name):
            raise AlreadyExists(f"namespace {name} was deleted and can be restored; its name is free when it is erased")
        raise AlreadyExists(f"namespace {name} exists already")
    return made


async def create_environment(store: Store, commits: Commits, order: Order, content: Content = EMPTY) -> Committed:
    """Raises AlreadyExists, also for the name of a deleted one, and NotFound (no such namespace)."""
    if not await store.namespace_exists(order.place.namespace):
        raise NotFound(f"no namespace {order.place.namespace}")
    try:
        return await commits.create(order, content)
    except AlreadyExists:
        if epitaph := await store.epitaph(order.place):
            raise AlreadyExists(f"{epitaph}; its name is free after that") from None
        raise
