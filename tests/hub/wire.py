"""HTTP on 127.0.0.1: requests in, answers out, a log of both, and the faults between them."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .faults import Before, Drop, Faults, Lost, Reset, Short, Slow, Status
from .store import WINDOW, Blob


@dataclass
class Request:
    """One request. `path` keeps its %-quotes, since a revision may hold a quoted slash."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Iterator[bytes]

    def read(self) -> bytes:
        return b"".join(self.body)

    def json(self) -> Any:
        return json.loads(self.read() or b"null")

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


@dataclass(frozen=True)
class Answer:
    """One answer; its body may be a blob, of which a range may be asked for."""

    status: int = 200
    body: bytes | Blob = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """An answer that a route gives up with."""

    def __init__(self, status: int, message: str, code: str = "", **extra: object) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = as_json({"error": message, **extra}, status=status, headers=headers)
        super().__init__(message)


def as_json(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


@dataclass
class Seen:
    """A line of the log: what was asked, what came in and what went out, bodies only."""

    origin: str  # "hub", or "cdn"
    method: str
    path: str
    query: dict[str, str]
    range: str
    authorized: bool
    status: int = 0
    received: int = 0
    sent: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


Route = Callable[[Request], Answer]


class _Cut(Exception):
    """The connection ends here."""


class Wire(ThreadingHTTPServer):
    """One origin: its own port, its routes tried in order of (`METHOD /pattern`, function)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, origin: str, log: list[Seen], faults: Faults, dispatch: Route) -> None:
        self.origin, self.log, self.faults, self.dispatch = origin, log, faults, dispatch
        self._live: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._live.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no event."""

    def stop(self) -> None:
        self.shutdown()
        for live in list(self._live):  # kept alive by the client's pool
            with suppress(OSError):
                live.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Wire

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _do(self) -> None:
        parts = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        seen = Seen(
            self.server.origin,
            self.command,
            unquote(parts.path),
            query,
            self.headers.get("Range", ""),
            "Authorization" in self.headers,
        )
        self.server.log.append(seen)
        fault = self.server.faults.fires(seen.origin, f"{self.command} {self.path}")
        self.left = int(self.headers.get("Content-Length", 0))
        try:
            self._answer(seen, fault, Request(self.command, parts.path, query, self.headers, self._body(seen, fault)))
        except _Cut:
            self.close_connection = True
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _do

    def _answer(self, seen: Seen, fault: Any, request: Request) -> None:
        match fault:
            case Status(code, headers, body):
                answer = Answer(code, body, headers)
                for _ in request.body:  # a client that is still sending would see a reset
                    pass
            case Drop():
                for _ in request.body:
                    pass
                self._reset()
            case _:
                if isinstance(fault, Before):
                    fault.do()
                try:
                    answer = self.server.dispatch(request)
                except Refused as refused:
                    answer = refused.answer
                for _ in request.body:
                    pass
        if isinstance(fault, Lost):
            self._reset()
        self._send(seen, answer, fault)

    def _body(self, seen: Seen, fault: Any) -> Iterator[bytes]:
        """The request's body; where a fault says so, only its begin."""
        for piece in self._chunked() if self.headers.get("Transfer-Encoding", "") == "chunked" else self._plain():
            seen.received += len(piece)
            if isinstance(fault, Drop) and seen.received >= fault.after:
                self._reset()
            yield piece

    def _plain(self) -> Iterator[bytes]:
        while self.left:
            piece = self.rfile.read(min(self.left, WINDOW))
            if not piece:
                raise ConnectionError
            self.left -= len(piece)
            yield piece

    def _chunked(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, seen: Seen, answer: Answer, fault: Any) -> None:
        status, headers, start, stop = _ranged(answer, seen.range)
        self.send_response(status)
        seen.status = status
        for name, value in {"Content-Length": str(stop - start), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        blob = answer.body if isinstance(answer.body, Blob) else Blob(answer.body)
        end = min(stop, start + fault.after) if isinstance(fault, Reset | Short) else stop
        step = fault.piece if isinstance(fault, Slow) else WINDOW
        while start < end:
            piece = blob.read(start, min(end, start + step))
            seen.sent += len(piece)  # before the peer can have seen it
            self.wfile.write(piece)
            start += len(piece)
            if isinstance(fault, Slow):
                time.sleep(fault.pause)
        if isinstance(fault, Reset):
            self._reset()
        if isinstance(fault, Short):
            raise _Cut

    def _reset(self) -> None:
        """RST, not FIN: the peer sees its connection reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server._live.discard(self.connection)
        self.connection.close()
        raise _Cut


def _ranged(answer: Answer, asked: str) -> tuple[int, dict[str, str], int, int]:
    """Status, headers, and which bytes of the body."""
    body, headers = answer.body, dict(answer.headers)
    size = body.size if isinstance(body, Blob) else len(body)
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if not isinstance(body, Blob) or not found or answer.status != 200:
        return answer.status, headers, 0, size
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= size:
        return 416, headers | {"Content-Range": f"bytes */{size}"}, 0, 0
    return 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}, start, stop
