"""`python -m bench [propagation|commit|authors|scale|polls|receipts|links|sync|simulate …]`: measures, prints, and writes docs/benchmarks.md
(simulate: docs/scaling.md)."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from bench import authors, commit_cost, costs, links, polls, receipts, report, scale, simulation, stacks, sync
from bench.options import Options
from bench.propagation import Result, measure

RECEIPT_CLIENTS = 10_000
"""Of the goal: their receipts for one version within a second."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["all", "propagation", "commit", "authors", "scale", "polls", "receipts", "links", "sync", "simulate"],
        default="all",
        help="all: propagation, commit and authors",
    )
    parser.add_argument("rows", nargs="*", choices=[*sync.ROWS, []], help="sync: only these rows")
    parser.add_argument("--stack", choices=["embedded", "servers", "both"], default="both")
    parser.add_argument(
        "--clients",
        type=int,
        help="synthetic clients, 1000 by default; sync: at most so many, to try rows while others use the machine",
    )
    parser.add_argument("--reps", type=int, default=7, help="sync: interleaved pairs of a row")
    parser.add_argument("--sdks", type=int, default=20, help="real SDK processes")
    parser.add_argument("--publishes", type=int, default=200)
    parser.add_argument(
        "--nice", type=int, default=0, help="propagation: niceness of the servers; clients that share their cores have 0"
    )
    parser.add_argument("--gap", type=float, default=1.0, help="mean seconds between publishes")
    parser.add_argument("--configs", type=int, default=100_000, help="scale: configs in one environment")
    parser.add_argument(
        "--versions", type=int, default=1_000_000, help="scale: versions in another; a million takes ten minutes to write"
    )
    parser.add_argument("--held", type=int, default=5_000, help="polls: requests that wait at once")
    parser.add_argument("--shards", default="1,16,64", help="authors: numbers of shards, an installation each")
    parser.add_argument("--dry", action="store_true", help="print only; leave docs/benchmarks.md as it is")
    return parser.parse_args()


def measure_sync(options: argparse.Namespace) -> None:
    for row, text in sync.run(options.rows or list(sync.ROWS), Options(options.reps, options.clients)):
        print(f"\n{text}", flush=True)
        if not options.dry:
            report.replace_section(f"sync {row}", f"make bench-sync ARGS='{row} --reps {options.reps}'", text)


async def propagation(options: argparse.Namespace) -> list[Result]:
    shapes = {"embedded": stacks.embedded, "servers": stacks.servers}
    chosen = list(shapes) if options.stack == "both" else [options.stack]
    results = []
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as folder:
            async with shapes[name](Path(folder), nice=options.nice) as stack:
                result = await measure(
                    stack,
                    Path(folder),
                    clients=options.clients or 1000,
                    processes=options.sdks,
                    publishes=options.publishes,
                    gap_s=options.gap,
                )
        results.append(result)
        print(f"\n## {name}\n\n{report.propagation_section(result)}\n", flush=True)
    return results


def _command(options: argparse.Namespace, stack: str) -> str:
    nice = f" --nice {options.nice}" if options.nice else ""
    chosen = f"--stack {stack} --clients {options.clients or 1000} --sdks {options.sdks} --gap {options.gap}{nice}"
    return f"make bench ARGS='propagation {chosen}'"


async def receipt_rates(options: argparse.Namespace) -> list[receipts.Result]:
    shapes = {"embedded": stacks.embedded, "servers": stacks.servers}
    results = []
    for name in list(shapes) if options.stack == "both" else [options.stack]:
        with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as folder:
            async with shapes[name](Path(folder)) as stack:
                results.append(await receipts.measure(stack, Path(folder), clients=options.clients or RECEIPT_CLIENTS))
    return results


async def over_links() -> str:
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as folder:
        async with stacks.embedded(Path(folder)) as stack:
            return await links.measure(stack, Path(folder))


def main() -> None:
    options = arguments()
    if options.what in ("all", "propagation"):
        results = asyncio.run(propagation(options))
        if not options.dry:
            for result in results:
                report.replace_section(
                    f"propagation {result.stack}", _command(options, result.stack), report.propagation_section(result)
                )
            report.plot(results, report.PAGE.parent / "propagation.svg")
    if options.what in ("all", "commit"):
        text = asyncio.run(commit_cost.measure())
        print(text)
        if not options.dry:
            report.replace_section("commit", "make bench ARGS=commit", text)
    if options.what in ("all", "authors"):
        text = asyncio.run(authors.measure([int(each) for each in options.shards.split(",")]))
        print(text)
        if not options.dry:
            report.replace_section("authors", f"make bench ARGS='authors --shards {options.shards}'", text)
    if options.what == "receipts":
        text = receipts.section(asyncio.run(receipt_rates(options)))
        print(text)
        if not options.dry:
            command = f"make bench ARGS='receipts --stack {options.stack} --clients {options.clients or RECEIPT_CLIENTS}'"
            report.replace_section("receipts", command, text)
    if options.what == "links":
        text = asyncio.run(over_links())
        print(text)
        if not options.dry:
            report.replace_section("links", "make bench ARGS=links", text)
    if options.what == "scale":
        text = asyncio.run(scale.measure(options.configs, options.versions))
        print(text)
        if not options.dry:
            command = f"make bench ARGS='scale --configs {options.configs} --versions {options.versions}'"
            report.replace_section("scale", command, text)
    if options.what == "polls":
        text = asyncio.run(polls.measure(options.held))
        print(text)
        if not options.dry:
            report.replace_section("polls", f"make bench ARGS='polls --held {options.held}'", text)
    if options.what == "simulate":
        text = simulation.tables()
        print(text)
        if not options.dry:
            report.replace_section("simulation", "python -m bench simulate", text, costs.DOCUMENT)
    if options.what == "sync":
        measure_sync(options)


if __name__ == "__main__":
    main()
