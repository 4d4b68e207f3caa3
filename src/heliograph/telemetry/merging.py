"""The metrics of several processes as one text: each sample gets the label `worker`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SAMPLE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?( .*)")
UP: Final = "heliograph_worker_up"


def merged(texts: Mapping[str, str | None]) -> bytes:
    """`texts`: worker -> its exposition in Prometheus' text format, None for one that did not answer. Families stay together, as the format wants."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for worker, text in texts.items():
        _add(families, worker, text or "")
    about, _ = families.setdefault(UP, ([], []))
    families[UP] = (about, [f'{UP}{{worker="{worker}"}} {int(text is not None)}' for worker, text in texts.items()])
    lines = [line for about, samples in families.values() for line in (*about, *samples)]
    return ("\n".join(lines) + "\n").encode()


def _add(families: dict[str, tuple[list[str], list[str]]], worker: str, text: str) -> None:
    """A family begins with its HELP; what follows belongs to it until the next one's."""
    about: list[str] = []
    samples: list[str] = []
    known = True
    for line in text.splitlines():
        if line.startswith("# HELP "):
            about, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
            known = bool(about)
        if line.startswith("#"):
            if not known:
                about.append(line)
        elif found := _SAMPLE.fullmatch(line):
            name, labels, rest = found.groups()
            samples.append(f'{name}{{worker="{worker}"{"," + labels if labels else ""}}}{rest}')
