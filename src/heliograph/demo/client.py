"""One sample client process: an application that runs on its configuration and says on standard output what it runs on.

python -m heliograph.demo.client URL INDEX CACHE        (the token in HELIOGRAPH_TOKEN)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from heliograph.client import Heliograph, Update
from heliograph.demo.sample import CLIENTS, CONFIG, ENVIRONMENT, NAMESPACE


def _say(number: int, value: Any) -> None:
    print(json.dumps({"number": number, "value": value}), flush=True)  # noqa: T201  # it is what this process is for


async def main(url: str, index: int, cache: Path) -> None:
    me = CLIENTS[index]
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    async with Heliograph(
        url,
        token=os.environ["HELIOGRAPH_TOKEN"],
        namespace=NAMESPACE,
        environment=ENVIRONMENT,
        view=me.view,
        app=me.app,
        labels={**me.labels, "host": me.host},
        cache_dir=cache / me.host,
        start_timeout=30,
    ) as client:
        limits = client.config(CONFIG)

        @client.on_version
        def runs_on(update: Update) -> None:
            _say(update.cursor.number, limits.get("/max_items"))

        _say(limits.version.number, limits.get("/max_items"))
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
