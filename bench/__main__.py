"""`python -m bench [propagation|commit|authors|scale …]`: measures, prints, and writes docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from bench import authors, commit_cost, report, scale, stacks
from bench.propagation import Result, measure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what", nargs="?", choices=["all", "propagation", "commit", "authors", "scale"], default="all", help="all: but scale"
    )
    parser.add_argument("--stack", choices=["embedded", "servers", "both"], default="both")
    parser.add_argument("--clients", type=int, default=1000, help="synthetic clients")
    parser.add_argument("--sdks", type=int, default=20, help="real SDK processes")
    parser.add_argument("--publishes", type=int, default=200)
    parser.add_argument("--gap", type=float, default=1.0, help="mean seconds between publishes")
    parser.add_argument("--configs", type=int, default=100_000, help="scale: configs in one environment")
    parser.add_argument(
        "--versions", type=int, default=1_000_000, help="scale: versions in another; a million takes ten minutes to write"
    )
    parser.add_argument("--shards", default="1,16,64", help="authors: numbers of shards, an installation each")
    parser.add_argument("--dry", action="store_true", help="print only; leave docs/benchmarks.md as it is")
    return parser.parse_args()


async def propagation(options: argparse.Namespace) -> list[Result]:
    shapes = {"embedded": stacks.embedded, "servers": stacks.servers}
    chosen = list(shapes) if options.stack == "both" else [options.stack]
    results = []
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as folder:
            async with shapes[name](Path(folder)) as stack:
                result = await measure(
                    stack,
                    Path(folder),
                    clients=options.clients,
                    processes=options.sdks,
                    publishes=options.publishes,
                    gap_s=options.gap,
                )
        results.append(result)
        print(f"\n## {name}\n\n{report.propagation_section(result)}\n", flush=True)
    return results


def main() -> None:
    options = arguments()
    if options.what in ("all", "propagation"):
        results = asyncio.run(propagation(options))
        if not options.dry:
            for result in results:
                command = (
                    f"make bench ARGS='propagation --stack {result.stack} --clients {options.clients} --sdks {options.sdks}'"
                )
                report.replace_section(f"propagation {result.stack}", command, report.propagation_section(result))
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
    if options.what == "scale":
        text = asyncio.run(scale.measure(options.configs, options.versions))
        print(text)
        if not options.dry:
            command = f"make bench ARGS='scale --configs {options.configs} --versions {options.versions}'"
            report.replace_section("scale", command, text)


if __name__ == "__main__":
    main()
