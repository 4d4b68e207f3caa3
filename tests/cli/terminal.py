"""A person at a terminal: the command in a process of its own, with a pseudo-terminal for all three streams."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from .conftest import Stack

DEADLINE_S = 60
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    def __init__(self, stack: Stack, *arguments: str, **env: str) -> None:
        ours, theirs = pty.openpty()
        self._screen = ours
        self._seen = ""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "heliograph.cli", *arguments],
            env=os.environ | {"HELIOGRAPH_DATA_DIR": str(stack.data_dir), "COLUMNS": "200"} | env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        os.close(self._screen)

    def sees(self, text: str) -> None:
        """Waits until it is on the screen, after what was seen before."""
        end = time.monotonic() + DEADLINE_S
        while text not in self._seen:
            assert time.monotonic() < end, self._seen
            assert self._read(), self._seen
        self._seen = self._seen.split(text, 1)[1]

    def types(self, text: str) -> None:
        os.write(self._screen, text.encode() + b"\n")

    def ends(self) -> int:
        """Its exit status, once it has ended by itself."""
        while self._read():
            pass
        return self._child.wait(DEADLINE_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], DEADLINE_S)
        try:
            data = os.read(self._screen, 65536) if ready else b""
        except OSError:  # the other end is closed
            data = b""
        self._seen += _COLOURS.sub("", data.decode(errors="replace"))
        return bool(data)
