"""A link of a given speed to a server on this machine: a TCP proxy that lets no more through."""

from __future__ import annotations

import socket
import threading
import time

_PART = 64 << 10  # bytes forwarded at once


class SlowLink:
    """Forwards connections to ``port`` of this machine; all answers together are no faster than ``rate`` bytes/s.

    Use it as a context manager; ``port`` is then its own, and ``carried`` counts the bytes of answers.
    """

    def __init__(self, port: int, rate: float):
        self._to, self._rate = port, rate
        self._lock = threading.Lock()
        self._free_at = 0.0  # time.monotonic() at which the link has sent all that it took
        self.carried = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> SlowLink:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            for source, sink, slow in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._forward, args=(source, sink, slow), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        try:
            while data := source.recv(_PART):
                if slow:
                    self._wait(len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()

    def _wait(self, nbytes: int) -> None:
        """Until the link has carried what was given to it before, and this."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + nbytes / self._rate
            self.carried += nbytes
            free_at = self._free_at
        time.sleep(max(0.0, free_at - time.monotonic()))
