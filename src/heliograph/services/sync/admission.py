"""Who may come in: so many connections of one address, of one token and of the node, so many attempts a second, and none that this node cannot serve.

Whoever is refused is told when to come back. Those who are in are never touched: a node that is busy turns new ones away, not old ones out.
"""

from __future__ import annotations

import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from random import uniform
from typing import Final

from heliograph.core.errors import Overloaded, Throttled, Unavailable
from heliograph.services.sync.settings import HubSettings
from heliograph.telemetry.metrics import Metrics

MAX_PLACES: Final = 65_536
"""Addresses whose attempts are counted at a time; the one not seen for longest is forgotten first."""
BURST_S: Final = 5.0
"""Attempts saved up by an address that was quiet, in seconds of its rate: an office that comes back after a power cut."""
TOLD_PER_S: Final = 200.0
"""Answers a second to those over their rate. More of them are cut off without a word: words cost more than the attempt."""
LAG_WEIGHT: Final = 0.15
"""Of one sample of the loop's lag, four a second while it is small: a bound holds for some seconds, not for one slow turn."""
Place = str | bytes


class Buckets:
    """A token bucket per place, `rate` a second with `burst` saved up; 0 is no limit. Full buckets need no memory, so forgetting one is generous."""

    def __init__(self, rate: float, burst: float, *, most: int = MAX_PLACES) -> None:
        self._each_s = 1 / rate if rate else 0.0
        self._saved_s = burst * self._each_s
        self._most = most
        self._busy_until: OrderedDict[Place, float] = OrderedDict()

    def take(self, place: Place, now_s: float) -> float:
        """Seconds until the next one is free; 0: this one was, and is taken."""
        if not self._each_s:
            return 0.0
        until = max(self._busy_until.get(place, 0.0), now_s) + self._each_s
        wait_s = until - now_s - self._saved_s
        if wait_s > self._each_s:
            return wait_s
        self._busy_until[place] = until
        self._busy_until.move_to_end(place)
        if len(self._busy_until) > self._most:
            self._busy_until.popitem(last=False)
        return 0.0

    def __len__(self) -> int:
        return len(self._busy_until)


class Admission:
    """Belongs to one event loop. `backlog`: what waits to become durable."""

    def __init__(self, settings: HubSettings, metrics: Metrics, backlog: Callable[[], int] = lambda: 0) -> None:
        self._settings = settings
        self._backlog = backlog
        self._refused = metrics.connections_refused
        self._attempts = Buckets(settings.connects_per_address_s, settings.connects_per_address_s * BURST_S)
        self._requests = Buckets(settings.requests_per_address_s, settings.requests_per_address_s * BURST_S)
        self._told = Buckets(TOLD_PER_S, TOLD_PER_S)
        self._proxies = {place_of(each.strip()) for each in settings.proxy_addresses.split(",") if each.strip()}
        self._places: Counter[Place] = Counter()
        self._tokens: Counter[str] = Counter()
        self.lag_s = 0.0

    # --- at the door, before a byte is read ---

    def arrive(self, place: Place) -> Unavailable | None:
        """Counts one socket of this place until `left`. Why it may stay for no more than an answer; None: it may go on."""
        self._places[place] += 1
        if place in self._proxies:
            return None
        most = self._settings.max_connections_per_address
        if most and self._places[place] > most:
            return self._no("address", Throttled(f"more than {most:,} connections from one address", retry_after=10))
        if wait_s := self._attempts.take(place, time.monotonic()):
            return self._no("rate", Throttled("too many attempts to connect from one address", retry_after=wait_s + 1))
        return None

    def left(self, place: Place) -> None:
        self._places[place] -= 1
        if not self._places[place]:
            del self._places[place]

    def has_words(self) -> bool:
        """Whether one more of those who are refused gets an answer."""
        return self._told.take("", time.monotonic()) == 0

    # --- at the upgrade ---

    def check_load(self) -> None:
        """Raises Overloaded while this node has enough to do with those it has."""
        if self.lag_s > self._settings.busy_lag_s:
            raise self._no("lag", Overloaded("this node is busy", retry_after=uniform(2, 6)))  # noqa: S311  # spreads a crowd
        if self._backlog() > self._settings.busy_backlog:
            raise self._no("backlog", Overloaded("the log is behind", retry_after=uniform(2, 6)))  # noqa: S311

    def refuse(self, reason: str, error: Unavailable) -> Unavailable:
        """`error`, counted."""
        return self._no(reason, error)

    def lagged(self, lag_s: float) -> None:
        """The loop was so late now."""
        self.lag_s += LAG_WEIGHT * (lag_s - self.lag_s)

    # --- once the token is known ---

    def enter(self, token: str) -> None:
        """Counts one connection of this token until `leave`. Raises Throttled, and has counted none then."""
        most = self._settings.max_connections_per_token
        if most and self._tokens[token] >= most:
            raise self._no("token", Throttled(f"more than {most:,} connections of one token on this node", retry_after=10))
        self._tokens[token] += 1

    def leave(self, token: str) -> None:
        self._tokens[token] -= 1
        if self._tokens[token] <= 0:
            del self._tokens[token]

    # --- requests over HTTP ---

    def request(self, host: str) -> None:
        """Raises Throttled when this address asks too often."""
        place = place_of(host)
        if place not in self._proxies and (wait_s := self._requests.take(place, time.monotonic())):
            raise self._no("requests", Throttled("too many requests from one address", retry_after=wait_s + 1))

    def _no(self, reason: str, error: Unavailable) -> Unavailable:
        self._refused.labels(reason).inc()
        return error


def place_of(host: str) -> Place:
    """What is counted as one address: all of IPv4; of IPv6 the first 64 bits, which are one customer's."""
    if ":" not in host:
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return host
    mapped = packed[:12] == b"\0" * 10 + b"\xff\xff"
    return socket.inet_ntop(socket.AF_INET, packed[12:]) if mapped else packed[:8]
