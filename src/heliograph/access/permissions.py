"""Who may do what: one table, deny by default."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from heliograph.access.principal import Principal
from heliograph.core.errors import Forbidden
from heliograph.core.token import TokenKind


class Action(StrEnum):
    READ = "read"  # documents, schemas, history
    HEAD = "head"  # the signed head, bundles
    WRITE = "write"  # versions: publish, delete, roll back
    CREATE = "create"  # namespaces, environments
    DELETE = "delete"  # environments, and bringing them back
    PURGE = "purge"  # texts that must not stay
    ADMIN = "admin"  # tokens, dead letters, audit
    CONNECT = "connect"  # the stream, receipts
    OBSERVE = "observe"  # propagation, instances, drift
    INTERNAL = "internal"  # what services ask each other
    RELAY = "relay"  # what an edge does for clients of its own


PERMITTED: Final[dict[TokenKind, frozenset[Action]]] = {
    "admin": frozenset(Action) - {Action.INTERNAL, Action.RELAY},
    "author": frozenset({Action.READ, Action.HEAD, Action.WRITE, Action.CREATE, Action.DELETE, Action.CONNECT, Action.OBSERVE}),
    "client": frozenset({Action.HEAD, Action.CONNECT}),
    "service": frozenset({Action.READ, Action.HEAD, Action.CONNECT, Action.OBSERVE, Action.INTERNAL}),
    "edge": frozenset({Action.HEAD, Action.CONNECT, Action.RELAY}),
}


def permits(principal: Principal, action: Action, namespace: str | None = None, environment: str | None = None) -> bool:
    """None for a name asks for all of them."""
    if action in PERMITTED.get(principal.kind, ()):
        for each in principal.scopes:  # most have one, and each client that connects asks twice
            if each.covers(namespace, environment):
                return True
    return False


def allow(principal: Principal, action: Action, namespace: str | None = None, environment: str | None = None) -> None:
    """Raises Forbidden unless the token permits it."""
    if not permits(principal, action, namespace, environment):
        where = "/".join(each for each in (namespace, environment) if each) or "everything"
        raise Forbidden(f"this {principal.kind} token does not permit {action} on {where}")
