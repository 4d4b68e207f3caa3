"""The one place where listening sockets come from: made here, or handed over by whoever started this process.

Handed over means systemd's protocol (sd_listen_fds): `LISTEN_FDS` sockets from descriptor 3 on, `LISTEN_FDNAMES` says which is which, `LISTEN_PID`,
where it is set, for which process. Who hands a socket over keeps it open. Connections that come while this process is started again wait in
its queue instead of being refused, and an old and a new process can serve it side by side.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final, Self

from heliograph.core.errors import InvalidRequest

NAMES: Final = frozenset({"registry", "relay", "ledger", "sync", "sync-http"})
"""What a socket can be called that is handed over: by the service that it is for, `sync-http` for the second one of sync."""
_FIRST: Final = 3

Prepare = Callable[[socket.socket], None]


def listening(name: str, host: str, port: int, *, reuse_port: bool = False, prepare: Prepare = lambda _: None) -> socket.socket:
    """The socket of that name that was handed over, else one bound to `host` and `port`; it does not block. Each can be had once.

    `reuse_port`: others may bind the same address, now and later, if they say so too; the kernel spreads connections over those that listen.
    `prepare` sets options, before the address is bound. Raises InvalidRequest when the address cannot be had.
    """
    made = handed_over().take(name)
    if made is None:
        made = _bound(host, port, reuse_port=reuse_port, prepare=prepare)
    else:
        prepare(made)
    made.setblocking(False)
    return made


class HandedOver:
    """Sockets by name. Each is given out once; who takes it closes it."""

    def __init__(self, descriptors: Mapping[str, list[int]]) -> None:
        self._descriptors = {name: list(each) for name, each in descriptors.items()}

    @classmethod
    def told_by(cls, environment: Mapping[str, str], pid: int) -> Self:
        """Raises InvalidRequest when what is told does not fit together."""
        if environment.get("LISTEN_PID", str(pid)) != str(pid):
            return cls({})  # for our parent: its environment came down to us, its sockets did not
        count = _count(environment.get("LISTEN_FDS", "0"))
        names = environment.get("LISTEN_FDNAMES", "").split(":")
        if count and (len(names) != count or not NAMES.issuperset(names)):
            raise InvalidRequest(
                f"{count} sockets were handed over with LISTEN_FDNAMES={':'.join(names)!r}; name each of them, in systemd with "
                f"FileDescriptorName=, as one of {', '.join(sorted(NAMES))}"
            )
        found: dict[str, list[int]] = {}
        for descriptor, name in enumerate(names[:count], _FIRST):
            found.setdefault(name, []).append(descriptor)
        return cls(found)

    def __contains__(self, name: str) -> bool:
        """Whether there is one that nobody has taken yet."""
        return bool(self._descriptors.get(name))

    def take(self, name: str) -> socket.socket | None:
        """None when there is none of that name. Raises InvalidRequest when there are several: nobody would serve the others."""
        if (count := len(self._descriptors.get(name, ()))) > 1:
            raise InvalidRequest(f"{count} sockets are called {name!r}; one process serves one of them: see --workers")
        return next(iter(self.take_all(name)), None)

    def take_all(self, name: str) -> list[socket.socket]:
        """All of that name, in the order in which they came."""
        return [_adopted(each, name) for each in self._descriptors.pop(name, ())]


@cache
def handed_over() -> HandedOver:
    """What this process was given."""
    return HandedOver.told_by(os.environ, os.getpid())


def start_with(
    sockets: Sequence[tuple[str, socket.socket]], command: Sequence[str], environment: Mapping[str, str], *, stdin: int = 0
) -> int:
    """Starts a program that these sockets are handed over to, each under its name; its process id. They stay open here.

    `stdin`: a descriptor that it reads as its standard input. It is in a process group of its own: Ctrl-C is for whoever started it.
    """
    told = {
        key: value for key, value in environment.items() if key != "LISTEN_PID"
    }  # which process it will be is not known yet
    told |= {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": ":".join(name for name, _ in sockets)}
    above = _FIRST + len(sockets)  # so that no source is overwritten before it is copied
    copies = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, above) for _, each in sockets]
    try:
        moves = [(os.POSIX_SPAWN_DUP2, copy, descriptor) for descriptor, copy in enumerate(copies, _FIRST)]
        return os.posix_spawn(
            command[0], list(command), told, file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0), *moves], setpgroup=0
        )
    finally:
        for copy in copies:
            os.close(copy)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 1000:
        raise InvalidRequest(f"LISTEN_FDS={text!r} is not a number of sockets")
    return int(text)


def _adopted(descriptor: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)  # not for the processes that we start ourselves
        adopted = socket.socket(fileno=descriptor)
    except OSError as error:
        raise InvalidRequest(f"the socket {name!r} that was handed over (descriptor {descriptor}): {error.strerror}") from None
    if adopted.type != socket.SOCK_STREAM:
        adopted.close()
        raise InvalidRequest(f"the socket {name!r} that was handed over takes no connections; in systemd: ListenStream=")
    return adopted


def _bound(host: str, port: int, *, reuse_port: bool, prepare: Prepare) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    prepare(made)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}; is another one running?") from None
    return made
