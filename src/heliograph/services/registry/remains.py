"""Where a purged text can still be, said honestly: what this release knows of every place that copies it, and until when. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from heliograph.services.registry.erasing_answers import Remains


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long this installation keeps what may hold a text. ``kafka``: it has one."""

    event_keep_days: int
    idempotency_keep_s: float
    kafka: bool


def remains(at: datetime, keeping: Keeping, *, letters: int, messages: bool) -> list[Remains]:
    """``letters``: dead letters that name it. ``messages``: texts of messages are among what was purged."""
    found = [
        Remains(
            "event log in PostgreSQL",
            at + timedelta(days=keeping.event_keep_days + 1),
            "events of versions carry documents; whole days are dropped once they are older than HELIOGRAPH_EVENT_KEEP_DAYS (and relayed)",
        ),
        Remains(
            "PostgreSQL's files, WAL and replicas",
            None,
            "the old row stays in its page until vacuum, the change in the WAL until it is recycled; archived WAL as long as you keep it",
        ),
        Remains("backups", None, "of the database, as long as you keep them; a restored one has to be purged again"),
        Remains(
            "sync nodes",
            None,
            "in memory until they read the purge event: at once when they follow the log, at the latest at a restart",
        ),
        Remains(
            "other registries", at + timedelta(seconds=10), "in their caches, until they look for purges (every two seconds)"
        ),
        Remains(
            "clients",
            None,
            "no head names the text, so a connected client does not have it; one that has not connected since keeps its last good state, "
            "in memory and on its disk",
        ),
    ]
    if keeping.kafka:
        found.append(Remains("Kafka", None, "events of versions carry documents; until the topic's retention.ms has passed"))
    if letters:
        found.append(Remains("dead letters", None, f"{letters} name it and may hold its text; discard them"))
    if messages:
        found.append(
            Remains(
                "remembered answers",
                at + timedelta(seconds=keeping.idempotency_keep_s),
                "answers to requests with an Idempotency-Key hold the message; HELIOGRAPH_IDEMPOTENCY_KEEP_S",
            )
        )
    return found
