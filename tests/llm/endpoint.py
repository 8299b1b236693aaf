"""A fake endpoint on loopback that misbehaves on request: a plain socket server, so that any byte can be sent.

    with FakeEndpoint([says("hello"), fails("500 Oops")]) as server:        one behaviour per request, the last repeats

A behaviour is a function (request body, socket) that writes what it likes; the connection is closed after it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

Behaviour = Callable[[dict[str, Any], socket.socket], None]


class FakeEndpoint:
    """Serves behaviours in order, one per request; every request is kept in `requests` with its headers."""

    def __init__(self, behaviours: Sequence[Behaviour]) -> None:
        self.behaviours = list(behaviours)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                part = connection.recv(65536)
                if not part:
                    return
                data += part
            head, _, body = data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            while len(body) < int(headers.get("content-length", 0)):
                body += connection.recv(65536)
            with self._lock:
                place = min(len(self.requests), len(self.behaviours) - 1)
                self.requests.append((first, headers, json.loads(body)))
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                self.behaviours[place](self.requests[-1][2], connection)
            except OSError:
                pass  # the client has gone
            finally:
                with self._lock:
                    self.under_way -= 1


def response(status: str, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def completion(text: str, **message: Any) -> dict[str, Any]:
    return {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


def sends(data: bytes, seconds: float = 0.0) -> Behaviour:
    def behave(_: dict[str, Any], connection: socket.socket) -> None:
        time.sleep(seconds)
        connection.sendall(data)

    return behave


def says(text: str, seconds: float = 0.0, **message: Any) -> Behaviour:
    return sends(response("200 OK", json.dumps(completion(text, **message)).encode()), seconds)


def answers(value: Any) -> Behaviour:
    return sends(response("200 OK", json.dumps(value).encode()))


def fails(status: str, *headers: str, body: bytes = b'{"error": {"message": "no luck"}}') -> Behaviour:
    return sends(response(status, body, *headers))


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
    data = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}
    return f"data: {json.dumps(data)}\n\n".encode()


def streams(*parts: bytes, pause: float = 0.0) -> Behaviour:
    def behave(_: dict[str, Any], connection: socket.socket) -> None:
        connection.sendall(STREAM_HEAD)
        for part in parts:
            time.sleep(pause)
            connection.sendall(part)

    return behave


def drips(data: bytes, pause: float) -> Behaviour:
    """One byte at a time: every single read is quick, the whole takes for ever."""

    def behave(_: dict[str, Any], connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(pause)

    return behave
