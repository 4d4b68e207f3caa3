"""Celery: the client is opened in the worker's main process, and goes on by itself in each process of the pool."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_process_shutdown, worker_shutdown

from heliograph.blocking import Heliograph

app = Celery("shop")
app.config_from_envvar("CELERY_CONFIG_MODULE")


@dataclass
class Limits:
    max_items: int


client = Heliograph(
    os.environ["HELIOGRAPH_URL"],
    token=Path(os.environ["HELIOGRAPH_TOKEN_FILE"]).read_text().strip(),
    namespace="shop",
    environment="production",
    app="celery",
)
limits = client.bind("checkout/limits", Limits)


@worker_init.connect
def open_client(**_: Any) -> None:
    """Not at import: whoever only sends tasks imports this module, too."""
    client.start()


@worker_process_shutdown.connect
@worker_shutdown.connect
def close_client(**_: Any) -> None:
    """Celery ends the processes of its pool without Python's own clean-up."""
    client.close()


@app.task
def show_limits() -> dict[str, int]:
    return {"max_items": limits.value.max_items, "pid": os.getpid()}
