"""The origin as a process of its own beside the trainer: whatever readers do, the trainer's threads never wait for it.

    python -m intellect_jax.transport.relay.serve FOLDER HOST PORT

It serves until its standard input ends, which it does with the trainer.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

from intellect_jax.transport.relay.client import SourceFailed, call
from intellect_jax.transport.relay.origin import Origin
from intellect_jax.transport.relay.server import Server
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

log = logging.getLogger(__name__)

POLL_S = 0.2
BIND_S = 20.0  # longest wait for a port that an earlier one still holds
END_S = 5.0


class Serving:
    """The trainer's handle: a process that serves ``folder`` at ``host`` ("": every interface) and ``port``."""

    def __init__(self, folder: Path, host: str, port: int, token: str = ""):
        self._command = [sys.executable, "-m", __name__, str(folder), host, str(port)]
        self._address = f"http://{host or '127.0.0.1'}:{port}"
        self._token = token
        self._process: subprocess.Popen[bytes] | None = None
        self.ensure()

    def ensure(self) -> None:
        """Starts the process, unless it runs."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            log.error("who serves weights ended with exit code %d, and is started again", code)
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)

    def linger(self, version: Version, readers: int, timeout: float) -> None:
        """Waits until so many relays have the last version, at most ``timeout`` seconds: who is to evaluate it needs
        it, and after this nobody sends it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                answer = call(self._address, "/versions", self._token)
                if answer == {"latest": str(version), "readers": max(readers, answer["readers"])}:
                    return
            except (SourceFailed, KeyError, TypeError) as error:
                log.warning("who serves weights does not answer: %s", error)
            time.sleep(POLL_S)
        log.warning("not every sampler has fetched version %s in %.0f s", version, timeout)

    def close(self) -> None:
        """Ends the process."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(folder: str, host: str, port: str) -> int:
    """Serves until standard input ends."""
    server = _listen(Origin(WeightStore(folder)), host, int(port))
    log.info("serving weights at port %d", server.port)
    sys.stdin.read()
    server.close()
    log.info("%.1f MB of weights were sent", sum(server.sent.values()) / 1e6)
    return 0


def _listen(origin: Origin, host: str, port: int) -> Server:
    deadline = time.monotonic() + BIND_S
    while True:
        try:
            return Server(origin, host, port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)s weights: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    sys.exit(main(*sys.argv[1:]))
