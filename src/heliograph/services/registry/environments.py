"""Makes namespaces and environments. A new environment begins with version 1, which is empty, so that a head always exists."""

from __future__ import annotations

from datetime import datetime

from heliograph.core.errors import AlreadyExists
from heliograph.core.names import Namespace
from heliograph.services.registry.commit import Commits, Committed, Order
from heliograph.services.registry.store import Store


async def create_namespace(store: Store, name: Namespace, by: str) -> datetime:
    """When it was made. Raises AlreadyExists."""
    made = await store.create_namespace(name, by)
    if made is None:
        raise AlreadyExists(f"namespace {name} exists already")
    return made


async def create_environment(commits: Commits, order: Order) -> Committed:
    """Raises AlreadyExists, NotFound (no such namespace)."""
    return await commits.create(order)
