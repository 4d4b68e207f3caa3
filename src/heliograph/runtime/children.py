"""Child processes of an event loop, started without a line of Python between fork and exec.

uvloop's ``subprocess_exec`` forks, and runs the hooks of `os.register_at_fork` in the child before its program (uvloop issue 749). Beside threads of
the parent that ends the child with a signal now and then, and the loop waits while the page tables of a large parent are copied.
`subprocess.Popen` does neither where the system has vfork.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Final

PIPE: Final = subprocess.PIPE
DEVNULL: Final = subprocess.DEVNULL
STDOUT: Final = subprocess.STDOUT
MAX_LINE: Final = 64 << 10
"""Bytes of one line of a child's output, unless said otherwise."""

Stream = int | IO[bytes] | None
_Process = subprocess.Popen[bytes]


class Child:
    """A process that `start` made. It belongs to the loop that it was started in; await its end before that loop is closed."""

    def __init__(self, process: _Process, stdin: _End | None, stdout: _End | None) -> None:
        self._process = process
        self._stdin, self._stdout = stdin, stdout
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._await_end, name=f"child-{process.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it lives; below zero: the signal that ended it."""
        return self._over.result() if self._over.done() else None

    @property
    def stdin(self) -> asyncio.StreamWriter:
        assert self._stdin, "started without a pipe to its standard input"
        return self._stdin.writer

    @property
    def stdout(self) -> asyncio.StreamReader:
        assert self._stdout, "started without a pipe from its standard output"
        return self._stdout.reader

    async def wait(self) -> int:
        """Its return code, once it has ended. Cancelled, this ends and the process lives on."""
        return await asyncio.shield(self._over)

    async def output(self) -> bytes:
        """All that it writes from now on, once it has ended."""
        said = await self.stdout.read()
        await self.wait()
        return said

    def send_signal(self, which: signal.Signals) -> None:
        """Nothing, when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(which)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _await_end(self) -> None:
        """In a thread: what tells of a child's end elsewhere needs SIGCHLD, which the loop leaves to others."""
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # a loop that is closed asks no more
            self._loop.call_soon_threadsafe(self._ended, status)

    def _ended(self, status: int) -> None:
        self._over.set_result(status)
        if self._stdin:
            self._stdin.close()


async def start(
    *command: str | Path,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    start_new_session: bool = False,
    limit: int = MAX_LINE,
) -> Child:
    """Streams, environment and session as of `subprocess.Popen`; `PIPE` for stdin and stdout only. ``limit``: bytes of a line that is read.

    Raises OSError when there is no such program, or no process to be had. Cancelled, it leaves no process behind.
    """
    into = await _End.opened(limit) if stdin == PIPE else None
    try:
        out = await _End.opened(limit) if stdout == PIPE else None
    except BaseException:
        if into:
            into.theirs.close()
            into.close()
        raise

    def begin() -> _Process:
        try:
            return subprocess.Popen(  # noqa: S603  # programs of our own
                command,
                stdin=into.theirs.fileno() if into else stdin,
                stdout=out.theirs.fileno() if out else stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                start_new_session=start_new_session,
            )
        finally:
            for each in (into, out):
                if each:
                    each.theirs.close()

    begun: asyncio.Future[_Process] = asyncio.get_running_loop().run_in_executor(None, begin)
    try:
        return Child(await asyncio.shield(begun), into, out)
    except BaseException:
        begun.add_done_callback(_unwanted)
        _shut(into, out)
        raise


class _End(asyncio.StreamReaderProtocol):
    """Ours of a stream. It closes when the other one does.

    A pair of sockets, as libuv has it: uvloop closes the descriptor of a pipe of Python's twice, and in a process with threads the second time it may
    be that of another file.
    """

    writer: asyncio.StreamWriter

    def __init__(self, theirs: socket.socket, limit: int) -> None:
        self.theirs = theirs
        self.reader = asyncio.StreamReader(limit)
        super().__init__(self.reader)

    @classmethod
    async def opened(cls, limit: int) -> _End:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            transport, end = await loop.create_connection(partial(cls, theirs, limit), sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        end.writer = asyncio.StreamWriter(transport, end, None, loop)
        return end

    def eof_received(self) -> bool:
        super().eof_received()
        return False

    def close(self) -> None:
        """Ours only; the process may have the other."""
        self.writer.close()


def _shut(*ends: _End | None) -> None:
    for each in ends:
        if each:
            each.close()


def _unwanted(begun: asyncio.Future[_Process]) -> None:
    """Nobody is there who would end it. A start that failed has nothing to end."""
    if begun.cancelled() or begun.exception():
        return
    process = begun.result()
    process.kill()
    threading.Thread(target=process.wait, name=f"child-{process.pid}", daemon=True).start()
