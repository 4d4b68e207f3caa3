"""One real SDK process: verifies, applies, and notes when its application saw each version.

    sdk_process.py URL NAMESPACE ENVIRONMENT FOLDER      (the token comes as the first line of standard input)

Prints READY when it runs on the head; at end of input writes FOLDER/arrivals ("number client microseconds").
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from heliograph import Heliograph


async def main(url: str, namespace: str, environment: str, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    token = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
    seen: list[tuple[int, int]] = []
    async with Heliograph(url, token=token, namespace=namespace, environment=environment, cache_dir=folder / "cache") as client:
        client.on_version(lambda change: seen.append((change.cursor.number, time.time_ns() // 1000)))
        print("READY", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
    me = os.getpid()
    (folder / "arrivals").write_text("".join(f"{number} {me} {moment}\n" for number, moment in seen))


if __name__ == "__main__":
    target = Path(sys.argv[4])
    target.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], target))
