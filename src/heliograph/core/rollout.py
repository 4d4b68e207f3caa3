"""Which version an instance should run: one pure function that server, client and ledger share."""

from __future__ import annotations

from heliograph.core.records import Cursor, Head


def desired_version(head: Head, instance: str) -> Cursor:  # noqa: ARG001  # a rollout will choose by instance
    """What ``instance`` should run while ``head`` holds. Without a rollout, what the head says."""
    return head.cursor
