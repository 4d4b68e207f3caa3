"""The Python SDK: live, verified configuration for asyncio applications.

    async with Heliograph(url, token=token, namespace="shop", environment="production") as client:
        limits = client.config("checkout/limits")

Programs without an event loop use `heliograph.blocking`; tests of applications `heliograph.client.testing`.

It needs only `heliograph.core`, websockets, httpx and msgspec; nothing of the server is imported. It logs to ``heliograph`` of the standard
library's logging, never values of documents or tokens. Times are seconds as float where they are waited for, microseconds since the Unix
epoch (``_us``) where they are measured.
"""

from heliograph.client._client import Heliograph, Subscription
from heliograph.client._connection import Retry
from heliograph.client._dispatch import Feed
from heliograph.client._environment import Bound, Config, Environment, Reader
from heliograph.client._network import Network
from heliograph.client._state import Change, Update
from heliograph.client._status import Alarm, Rejection, Status, SubscriptionStatus
from heliograph.client._values import ABSENT, Absent
from heliograph.core.errors import HeliographError, Invalid, TimedOut, Unavailable
from heliograph.core.records import Cursor

__all__ = [
    "ABSENT",
    "Absent",
    "Alarm",
    "Bound",
    "Change",
    "Config",
    "Cursor",
    "Environment",
    "Feed",
    "Heliograph",
    "HeliographError",
    "Invalid",
    "Network",
    "Reader",
    "Rejection",
    "Retry",
    "Status",
    "Subscription",
    "SubscriptionStatus",
    "TimedOut",
    "Unavailable",
    "Update",
]
