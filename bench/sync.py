"""`python -m bench sync [ROW…]`: the sync engine beside a C loop and beside others of its kind; writes the rows' sections of docs/benchmarks.md.

A row that cannot be measured says why, and the others go on.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence

import httpx

from bench import report, rivals
from bench.load import Failed
from bench.options import Options
from bench.pairs import Line, say
from bench.rows import fanout, path, tls, upkeep

ROW_S = 400
"""A row that takes longer is given up."""
Row = Callable[[Options], Awaitable[list[Line]]]
ROWS: dict[str, Row] = {
    "cpu": fanout.cpu,
    "acked": fanout.acked,
    "path": path.one_worker,
    "path-workers": path.two_workers,
    "durable": path.durable,
    "machine": fanout.machine,
    "tls": tls.measure,
    "memory": upkeep.memory,
    "connects": upkeep.connects,
    "idle": upkeep.idle,
    "stalled": upkeep.stalled,
    "receipts": path.receipts,
    "growth": fanout.growth,
}


def run(names: Sequence[str], options: Options) -> Iterator[tuple[str, str]]:
    """The rows' sections, each as soon as it is measured."""
    rivals.install()
    began = time.monotonic()
    for number, name in enumerate(names, 1):
        say(f"row {name} ({number} of {len(names)}, {time.monotonic() - began:.0f} s so far)")
        mine = Options(options.reps, options.clients)
        yield name, _section(asyncio.run(_row(name, mine)), mine)


async def _row(name: str, options: Options) -> list[Line]:
    try:
        async with asyncio.timeout(ROW_S):
            return await ROWS[name](options)
    except Failed as reason:
        return [Line(name, "", f"not measured: {reason}")]
    except (httpx.HTTPError, OSError, RuntimeError, TimeoutError) as error:
        say(traceback.format_exc())
        return [Line(name, "", f"not measured: {type(error).__name__}: {str(error)[:200]}")]


def _section(lines: Sequence[Line], options: Options) -> str:
    return "\n".join(
        [
            f"{options.reps} interleaved pairs. {report.machine()}.",
            "",
            "| what | goal | figure (medians) | ratio (95 % interval) | result |",
            "|---|---|---|---|---|",
            *map(str, lines),
            "",
            *(f"* {note}" for note in options.notes),
            *(f"\n{table}" for table in options.tables),
        ]
    )
