"""A bare picows server: what the library costs without us. A frame from /pub goes to every socket on /sub; answers are counted as by floor.c.

    bare.py PORT GREETING_BYTES [CERTIFICATE KEY]

With GREETING_BYTES each text of a subscriber is answered with that many, as a snapshot follows a hello. Settings of the library and of the listening
socket are those of heliograph sync.
"""

from __future__ import annotations

import gc
import logging
import resource
import socket
import ssl
import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

MARK = 14
subscribers: list[WSTransport] = []
publisher: list[WSTransport] = []
answers = [0, b""]


class Publisher(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        publisher[:] = [transport]

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:  # noqa: ARG002
        data = frame.get_payload_as_bytes()
        answers[:] = [0, data[-MARK:]]
        for each in subscribers:
            each.send(WSMsgType.TEXT, data)


class Subscriber(WSListener):
    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting

    def on_ws_connected(self, transport: WSTransport) -> None:
        subscribers.append(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:  # noqa: ARG002
        if self.greeting:
            transport.send(WSMsgType.TEXT, self.greeting)
            return
        answers[0] += 1
        if answers[0] == len(subscribers):
            publisher[0].send(WSMsgType.TEXT, answers[1])

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        subscribers.remove(transport)


async def main(port: int, greeting: int, *tls: str) -> None:
    blob = b"a" * (greeting - 11) + b"@@greeted@@" if greeting else b""
    secure = None
    if tls:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(*tls)

    def listener(request: WSUpgradeRequest) -> WSListener:
        return Publisher() if request.path == b"/pub" else Subscriber(blob)

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    listening.bind(("127.0.0.1", port))
    server = await ws_create_server(
        listener,
        sock=listening,
        ssl=secure,
        logger_name=logging.LoggerAdapter(logging.getLogger("picows"), {}),
        read_buffer_init_size=2048,
        backlog=4096,
    )
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
