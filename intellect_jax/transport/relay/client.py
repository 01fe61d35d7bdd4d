"""One HTTP request with time limits."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

CONNECT_S = 5.0  # also the longest silence of a source
SLOWEST = 1 << 20  # bytes a second; a source below it counts as failed
ANSWER_BYTES = 64 << 20  # the largest answer that is no file


class SourceFailed(Exception):
    """A source did not give what was asked for. ``status``: of its answer, 0 where there was none."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


def longest(nbytes: int) -> float:
    """Seconds after which a source that still sends so many bytes is given up."""
    return CONNECT_S + nbytes / SLOWEST


def call(base: str, path: str, token: str, body: dict[str, Any] | None = None, timeout: float = CONNECT_S) -> Any:
    """The JSON answer to a GET, or to a POST of ``body``; raises SourceFailed."""
    raw = _request(base, path, token, body=body, nbytes=ANSWER_BYTES, timeout=timeout)
    try:
        return json.loads(raw)
    except ValueError as error:
        raise SourceFailed(f"{base}{path}: its answer is not JSON: {error}") from error


def get_range(base: str, path: str, token: str, start: int, stop: int) -> bytes:
    """Exactly the bytes [start, stop) of a file; raises SourceFailed, for a source that is too slow as well."""
    raw = _request(base, path, token, span=(start, stop), nbytes=stop - start)
    if len(raw) != stop - start:
        raise SourceFailed(f"{base}{path}: {len(raw)} bytes came, not {stop - start}")
    return raw


def _request(
    base: str,
    path: str,
    token: str,
    *,
    nbytes: int,
    body: dict[str, Any] | None = None,
    span: tuple[int, int] | None = None,
    timeout: float = CONNECT_S,
) -> bytes:
    """At most ``nbytes`` of the body of an answer that is no error."""
    headers = {"Connection": "close"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if span:
        headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    where = urlsplit(base)
    connection = http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=timeout)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request("GET" if payload is None else "POST", path, payload, headers)
        response = connection.getresponse()
        if response.status not in (200, 206) or (span and response.status != 206):
            reason = response.read(500).decode(errors="replace").strip()
            raise SourceFailed(f"{base}{path} answered {response.status}: {reason}", response.status)
        return _read(response, nbytes, time.monotonic() + longest(nbytes))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SourceFailed(f"{base}{path}: {type(error).__name__} {error}") from error
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, nbytes: int, deadline: float) -> bytes:
    parts, left = [], nbytes
    while left:
        part = response.read1(min(left, 1 << 20))
        if not part:
            break
        parts.append(part)
        left -= len(part)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{nbytes - left} of {nbytes} bytes came in time")
    return b"".join(parts)
