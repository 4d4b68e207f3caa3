"""What things cost, as measured: the one table that the cost model of docs/scaling.md and the simulation read. A figure that was not measured says so.

They are of a slow day: docs/benchmarks.md shows the last one measured, which may be quicker by a fifth. A plan had better err on that side."""

from __future__ import annotations

from dataclasses import dataclass

from bench.stacks import ROOT

DOCUMENT = ROOT / "docs/scaling.md"


@dataclass(frozen=True)
class Cost:
    value: float
    unit: str
    what: str
    source: str


RESEARCH = "measured while the design was made, same machine"
PAGE = "docs/benchmarks.md, Sync engine"
SLOW = "on a slow day of that machine, whose C loop took 5.3 µs for a send where a quick one takes 4"
ESTIMATE = "estimated from a profile, not timed on a quiet machine"
COSTS = {
    "send": Cost(
        7.0,
        "µs",
        "CPU of a worker to send one frame, plain, the receiver's half of loopback included",
        f"{PAGE}, row cpu; {SLOW}",
    ),
    "send_tls": Cost(11.5, "µs", "the same with TLS in the worker", f"{PAGE}, row tls"),
    "receipt": Cost(
        31.0,
        "µs",
        "CPU of a worker for one receipt: read, checked, appended, acknowledged",
        f"{PAGE}, row receipts, without the frame",
    ),
    "receipt_ledger": Cost(25.0, "µs", "CPU of the ledger for one receipt", f"{PAGE}, row receipts"),
    "receipt_database": Cost(21.0, "µs", "CPU of PostgreSQL for one receipt", f"{PAGE}, row receipts"),
    "receipt_log": Cost(170, "bytes", "of one receipt in the log, before compression", ESTIMATE),
    "connect": Cost(
        188.0, "µs", "CPU of a worker for a connection with hello and 10 KB snapshot, plain", f"{PAGE}, row connects"
    ),
    "connect_tls": Cost(570.0, "µs", "the same with TLS 1.3 (ECDSA P-256)", f"{PAGE}, row connects"),
    "memory": Cost(16.4, "KB", "of a worker for an idle connection, plain", f"{PAGE}, row memory"),
    "memory_tls": Cost(37.0, "KB", "the same with TLS", f"row memory, and 21 KB of TLS state: {RESEARCH}"),
    "memory_kernel": Cost(4.0, "KB", "of the kernel for an idle socket", RESEARCH),
    "heartbeat": Cost(
        72.0,
        "µs",
        "CPU of an idle worker for one heartbeat, all else it does included",
        f"{PAGE}, row idle: 2.9 % of a core for 400 a second",
    ),
    "frame": Cost(
        2_070, "bytes", "of a change of one 500-byte document, with head, version, proof and signatures", f"{PAGE}, row cpu"
    ),
    "snapshot": Cost(10_000, "bytes", "of a small environment", "chosen"),
    "path": Cost(
        30.0,
        "ms",
        "from the author's first byte until a node has read the version from the log",
        "docs/benchmarks.md, Publish to applied",
    ),
    "hop": Cost(30.0, "ms", "one way between a hub and its edge, with what the edge verifies", "assumed: a continent"),
    "event": Cost(6_000, "bytes", "of a small version in the log", ESTIMATE),
}


def cost(name: str) -> float:
    """In seconds, bytes or cores·seconds: µs, ms and KB are scaled."""
    found = COSTS[name]
    return found.value * {"µs": 1e-6, "ms": 1e-3, "KB": 1024, "bytes": 1}[found.unit]


def table() -> str:
    lines = ["| cost | figure | what | from |", "|---|---|---|---|"]
    lines += [f"| {name} | {each.value:,g} {each.unit} | {each.what} | {each.source} |" for name, each in COSTS.items()]
    return "\n".join(lines)
