"""Coverage-guided fuzzing of every parser that faces outside: ``make fuzz`` (RUNS=… for each target, TARGET=… for one of them).

Each target feeds bytes to a parser of ours and fails on any exception that the parser does not promise, or when what it promises does not hold. It
needs atheris, which the make target installs into an environment of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["heliograph"]):
    from tests.fuzz.targets import DICTIONARY, SEEDS, TARGETS

MAX_LEN = 8192
TIMEOUT_S = 20


def one(name: str, arguments: list[str]) -> None:
    """Does not return."""
    atheris.Setup([f"fuzz {name}", *arguments], TARGETS[name])
    atheris.Fuzz()


def every(names: list[str], runs: str) -> int:
    """How many targets failed. What made one fail is kept in build/fuzz, and named in what it prints."""
    kept = Path("build/fuzz").resolve()
    kept.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        with tempfile.TemporaryDirectory() as corpus:
            for number, seed in enumerate(SEEDS[name]):
                Path(corpus, f"seed-{number}").write_bytes(seed)
            words = Path(corpus, "words")
            words.write_text(DICTIONARY)
            arguments = [
                f"-runs={runs}",
                f"-max_len={MAX_LEN}",
                f"-timeout={TIMEOUT_S}",
                f"-dict={words}",
                "-print_final_stats=1",
            ]
            print(f"--- {name}", flush=True)
            told = [sys.executable, "-m", "tests.fuzz", name, *arguments, f"-artifact_prefix={kept}/{name}-", corpus]
            failed += subprocess.run(told, check=False, env=os.environ).returncode != 0
    return failed


if __name__ == "__main__":
    if sys.argv[2:] and sys.argv[2].startswith("-"):
        one(sys.argv[1], sys.argv[2:])
    else:
        chosen = sys.argv[1:] or list(TARGETS)
        sys.exit(every(chosen, os.environ.get("RUNS", "100000")) != 0)
