"""One sample application, as a process of its own: ``python -m heliograph.demo.client``.

The first line of its standard input is its `Order` (a token does not belong on a command line); when the input ends, so does the client. Each
version that it runs on is one line of JSON on its standard output.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from heliograph.client import Heliograph, HeliographError, Update


class Order(msgspec.Struct, frozen=True):
    """``cache_dir``: for the disk copy and the instance id, so that a restarted demo has the same eight instances."""

    url: str
    token: str
    namespace: str
    environment: str
    view: tuple[str, ...]
    app: str
    labels: dict[str, str]
    cache_dir: str

    def __repr__(self) -> str:
        return f"<Order of {self.app}>"


class Report(msgspec.Struct, frozen=True):
    """What the client runs on. ``changed``: the configs that this version changed for it; at the start, all of its view. ``values``: those of them
    that exist."""

    instance: str
    number: int
    changed: tuple[str, ...]
    values: dict[str, Any]


def main() -> int:
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    try:
        asyncio.run(_run(order))
    except HeliographError as error:
        print(f"{error.code}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


async def _run(order: Order) -> None:
    async with Heliograph(
        order.url,
        token=order.token,
        namespace=order.namespace,
        environment=order.environment,
        view=order.view,
        app=order.app,
        labels=order.labels,
        cache_dir=Path(order.cache_dir),
    ) as client:
        _tell(client, client.names())

        @client.on_version
        def _(update: Update) -> None:
            _tell(client, update.changed)

        await _end_of_input()


def _tell(client: Heliograph, changed: Iterable[str]) -> None:
    names = tuple(sorted(changed))
    configs = (client.config(name) for name in names)
    values = {config.name: config.copy() for config in configs if config.exists}
    status, cursor = client.status, client.cursor
    assert cursor, "a client that has started runs on a version"
    report = Report(status.instance or "", cursor.number, names, values)
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


async def _end_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    sys.exit(main())
