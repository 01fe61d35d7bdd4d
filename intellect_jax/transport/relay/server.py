"""Files and answers over HTTP: the trainer's server and every sampler's."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import re
import stat
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from intellect_jax.transport.reading import FOLDER, WeightError
from intellect_jax.transport.relay.parcel import NAME
from intellect_jax.types import Version

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "INTELLECT_JAX_ADMIN_TOKEN"
SILENCE_S = 15.0  # a connection on which nothing moves for so long is closed
SLOWEST = 64 << 10  # bytes a second that a reader must take
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PART = 1 << 20  # bytes handed to the kernel at once
_BODY = 16 << 20  # bytes of the largest question


class NotHere(Exception):
    """There is nothing under this name; the text says what."""


class Shelf(Protocol):
    """What a server serves. Methods run in threads of the server and raise NotHere or WeightError."""

    def open(self, version: Version, name: str, start: int, stop: int | None) -> BinaryIO:
        """The file, of which bytes [start, stop) are there (None: all). ``name`` is no path."""

    def answer(self, path: str, question: dict[str, Any] | None) -> Any:
        """JSON to a GET (None) or POST of anything that is no file."""


def open_plain(path: Path) -> BinaryIO:
    """To read; raises NotHere for anything but a file, links included."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise NotHere(f"there is no {path.parent.name}/{path.name}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotHere(f"{path.parent.name}/{path.name} is no file")
    return os.fdopen(descriptor, "rb")


class Server:
    """Serves a shelf until closed. Listens on ``host`` ("": every interface) at ``port`` (0: any free one).

    With a token everybody needs it; without one only programs on this machine get anything. Each connection has a
    thread of its own, so that a slow reader holds up nobody else.
    """

    def __init__(self, shelf: Shelf, host: str, port: int = 0, token: str | None = None):
        self.shelf = shelf
        self.token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        self.sent: Counter[str] = Counter()  # bytes of bodies by path
        self._lock = threading.Lock()
        self._http = _Listener((host, port), type("BoundHandler", (_Handler,), {"server_of": self}))
        self.port: int = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.2,), name="weights", daemon=True).start()

    def close(self) -> None:
        """Stops listening; requests that are being answered go on."""
        self._http.shutdown()
        self._http.server_close()

    def count(self, path: str, nbytes: int) -> None:
        with self._lock:
            self.sent[path] += nbytes


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection from %s broke", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server_of: Server
    protocol_version = "HTTP/1.1"
    timeout = SILENCE_S

    def do_GET(self) -> None:
        found = re.fullmatch(rf"/({FOLDER.pattern})/({NAME.pattern})", self.path)
        if found is None:
            self._respond(lambda: self.server_of.shelf.answer(self.path, None))
        elif self._allowed():
            self._file(Version(int(found[2]), int(found[3])), found[4])

    def do_POST(self) -> None:
        self._respond(lambda: self.server_of.shelf.answer(self.path, self._question()))

    def _respond(self, answer: Any) -> None:
        if not self._allowed():
            return
        try:
            body = json.dumps(answer()).encode()
        except NotHere as error:
            self._refuse(404, str(error))
        except WeightError as error:
            self._refuse(503, str(error))
        except (ValueError, KeyError, TypeError) as error:
            self._refuse(400, f"{type(error).__name__}: {error}")
        else:
            self._head(200, len(body), "application/json")
            self._send(body)

    def _question(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= _BODY:
            raise ValueError(f"a body of {length} bytes")
        question = json.loads(self.rfile.read(length))
        if not isinstance(question, dict):
            raise ValueError("the body must be a JSON object")
        return question

    def _file(self, version: Version, name: str) -> None:
        try:
            start, stop = self._range()
            with self.server_of.shelf.open(version, name, start, stop) as file:
                self._send_file(file, start, stop)
        except NotHere as error:
            self._refuse(404, str(error))
        except ValueError as error:
            self._refuse(416, str(error))

    def _range(self) -> tuple[int, int | None]:
        """[start, stop) of the one range that was asked for; stop None: to the end."""
        text = self.headers.get("Range")
        found = _RANGE.fullmatch(text or "bytes=0-")
        if found is None:
            raise ValueError(f"cannot serve the range {text}")
        return int(found[1]), int(found[2]) + 1 if found[2] else None

    def _send_file(self, file: BinaryIO, start: int, stop: int | None) -> None:
        size = os.fstat(file.fileno()).st_size
        end = size if stop is None else min(stop, size)
        if start >= end and size:
            raise ValueError(f"bytes {start}-{end} of {size}")
        partial = "Range" in self.headers
        extra = {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if partial else {}
        self._head(206 if partial else 200, end - start, "application/octet-stream", extra)
        at, deadline = start, time.monotonic() + SILENCE_S + (end - start) / SLOWEST
        while at < end:
            sent = self.connection.sendfile(file, at, min(_PART, end - at))  # TimeoutError when nothing moves
            if not sent or time.monotonic() > deadline:
                raise TimeoutError(f"{self.client_address} is too slow, or {self.path} was cut short")
            at += sent
            self.server_of.count(self.path, sent)

    def _allowed(self) -> bool:
        token = self.server_of.token
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), token.encode()) if token else self._local():
            return True
        need = "the token is wrong or missing" if token else "only this machine is served without a token"
        self._refuse(403, f"{need}: set {TOKEN_VARIABLE} to the same for trainer, orchestrator and samplers")
        return False

    def _local(self) -> bool:
        return ipaddress.ip_address(self.client_address[0].partition("%")[0]).is_loopback

    def _refuse(self, status: int, text: str) -> None:
        self.close_connection = True
        body = text.encode()
        self._head(status, len(body), "text/plain; charset=utf-8")
        self._send(body)

    def _head(self, status: int, length: int, kind: str, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, body: bytes) -> None:
        self.wfile.write(body)
        self.server_of.count(self.path, len(body))

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s: " + format, self.client_address[0], *args)
