"""A script: runs on its configuration, and says when it changes, until Ctrl-C."""

import os
from dataclasses import dataclass
from pathlib import Path

from heliograph.blocking import Heliograph


@dataclass
class Limits:
    max_items: int


def main() -> None:
    url = os.environ["HELIOGRAPH_URL"]
    token = Path(os.environ["HELIOGRAPH_TOKEN_FILE"]).read_text().strip()
    with Heliograph(url, token=token, namespace="shop", environment="production", app="script") as client:
        limits = client.bind("checkout/limits", Limits)
        changes = limits.changes()
        print("running on", limits.value.max_items, flush=True)
        for change in changes:
            print("now", change.value.max_items, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("bye", flush=True)
