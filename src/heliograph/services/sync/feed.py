"""The parent's side of an edge's connection, without I/O: what its frames mean. `heliograph.core.feed` has the frames.

An edge speaks for the clients below it, as a sync node does, but only of environments in its token's scope, and only under node names of its own:
each name is put behind the id of the token that it came with. Of a tree they read as a path: ``edge_<id>/edge_<id>/<node>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, cast

import msgspec
import structlog

from heliograph.access.permissions import Action, allow
from heliograph.core import feed, frames, names
from heliograph.core.errors import HeliographError, InvalidRequest
from heliograph.core.events import FromSync, NodeAlive
from heliograph.runtime import problems
from heliograph.services.sync.session import (
    Close,
    Effect,
    Followed,
    Opened,
    Relayed,
    Send,
    Session,
    Subscriber,
    Unfollowed,
    check_cursor,
    check_identity,
    refuse_nul,
)

MAX_NODE: Final = 200
"""Characters of a node's name with the way to it: some four edges below each other."""
EVERYTHING: Final = names.view([""])

log = structlog.get_logger()
_decode = msgspec.json.Decoder(feed.FromEdge).decode


@dataclass(slots=True, eq=False)
class EdgeSession(Session):
    relays: ClassVar[bool] = True

    def _read(self, text: bytes) -> frames.FromClient:
        return cast("frames.FromClient", _decode(text))

    def _take(self, frame: object, now_us: int) -> list[Effect]:
        if not self.instance and not isinstance(frame, frames.Hello):
            return [Close(problems.PROTOCOL, "hello was expected")]
        match frame:
            case feed.Follow():
                return [self._follow(frame)]
            case feed.Unfollow():
                subscriber = self.subscribers.pop(frame.id, None)
                return [Unfollowed(subscriber)] if subscriber else []
            case frames.Resync(subscription=subscription) if subscription not in self.subscribers:
                return []  # it was ended here, and the edge has not heard of that yet
            case feed.Relay():
                return [Relayed(tuple(taken for each in frame.events if (taken := self._taken(each))), frame.seq)]
            case _:
                return super(EdgeSession, self)._take(cast("frames.FromClient", frame), now_us)

    def _opened(self, hello: frames.Hello) -> Effect:
        if self.instance:
            return Close(problems.PROTOCOL, "hello was said already")
        check_identity(hello)
        if hello.subscriptions:
            raise InvalidRequest("an edge says by follow what it wants; its hello has no subscriptions")
        self.instance, self.incarnation, self.fingerprint = self._below(hello.instance), hello.incarnation, hello.fingerprint
        return Opened(hello, ())

    def _follow(self, wanted: feed.Follow) -> Effect:
        """What it may not follow, or what is not there, ends this subscription and not the connection."""
        try:
            subscriber = self._allowed(wanted)
        except HeliographError as error:
            return Send(frames.ErrorFrame(code=error.code, detail=error.detail, subscription=wanted.id))
        self.subscribers[wanted.id] = subscriber
        return Followed(subscriber)

    def _allowed(self, wanted: feed.Follow) -> Subscriber:
        namespace, environment = names.namespace(wanted.namespace), names.environment(wanted.environment)
        allow(self.principal, Action.RELAY, namespace, environment)
        if wanted.id in self.subscribers or not 0 <= wanted.id < 1 << 31 or len(self.subscribers) >= feed.MAX_FOLLOWED:
            raise InvalidRequest(
                f"an edge follows at most {feed.MAX_FOLLOWED:,} environments, each under an id of its own of 31 bits"
            )
        if wanted.have is not None:
            check_cursor(wanted.have)
        return Subscriber(self, wanted.id, namespace, environment, EVERYTHING, wanted.have)

    def _taken(self, event: FromSync) -> FromSync | None:
        """Under the node name that the log knows; None for one that must not be stored. Its edge may be honest (its token is another one since, or an
        edge below it has a long name), and would tell it for ever were the connection closed."""
        try:
            if not isinstance(event, NodeAlive):
                allow(self.principal, Action.RELAY, names.namespace(event.namespace), names.environment(event.environment))
            refuse_nul(event.node, getattr(event, "instance", ""), getattr(event, "trace", None) or "")
            return msgspec.structs.replace(event, node=self._below(event.node))
        except HeliographError as error:
            log.warning("relayed_event_refused", edge=self.principal.id, kind=type(event).__name__, error=error.code)
            return None

    def _below(self, node: str) -> str:
        path = f"{self.principal.id}/{node}"
        if not node or len(path) > MAX_NODE:
            raise InvalidRequest(
                f"a node's name with the way to it has at most {MAX_NODE} characters; are there too many edges in a row?"
            )
        return path
