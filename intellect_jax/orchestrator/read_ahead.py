"""Has a server read and verify a version while it samples, so that its pause need not wait for disks or networks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from intellect_jax.orchestrator.servers import Server
from intellect_jax.orchestrator.wire import ServerFailed, Wire
from intellect_jax.types import Version

_POLL = 0.01  # seconds before the second question how it stands, doubled for each further one
_POLL_MOST = 0.2


async def read_ahead(wire: Wire, server: Server, manifest: str, version: Version) -> None:
    """Returns when every worker of the server has the version at hand.

    Raises ServerFailed: with code ``damaged_weights`` for a version that cannot be read and may be mended, without one
    for another model's or when it takes longer than a call may.
    """
    asked, deadline, pause = {"version": str(version)}, time.monotonic() + wire.timeout, _POLL
    await _call(wire, server, "read_version", {"manifest": manifest, **asked})
    while True:
        results = await _call(wire, server, "version_read", asked)
        if failed := next((result for result in results if result["error"]), None):
            code = "damaged_weights" if failed["damaged"] else ""
            raise ServerFailed(f"{server.url}: {manifest}: {failed['error']}", code, outage=failed["damaged"])
        if all(result["done"] for result in results):
            return
        if time.monotonic() > deadline:
            raise ServerFailed(f"{server.url} did not read {manifest} within {wire.timeout:.0f} s")
        await asyncio.sleep(pause)
        pause = min(2 * pause, _POLL_MOST)


async def _call(wire: Wire, server: Server, method: str, kwargs: dict[str, str]) -> list[Any]:
    """What each worker of the server answers."""
    answer = await wire.post(server, "/collective_rpc", {"method": method, "kwargs": kwargs})
    if not isinstance(answer.get("results"), list):
        raise ServerFailed(f"{server.url}/collective_rpc answered {answer}: not by our plug-in")
    return answer["results"]
