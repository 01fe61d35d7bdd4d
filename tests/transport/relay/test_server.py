"""What the server gives away and to whom."""

import http.client
import os
import socket
import threading
import time

import numpy as np
import pytest

from intellect_jax.transport.relay import server as module
from intellect_jax.transport.relay.client import SourceFailed, call, get_range
from intellect_jax.transport.relay.intake import Intake
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.transport.relay.fleet import policy, serving

V0 = Version(0, 0)
FILE = "/v0-0/weights-00000.safetensors"


@pytest.fixture
def store(tmp_path):
    (tmp_path / "secret").write_text("secret")
    store = WeightStore(tmp_path / "weights")
    store.publish(V0, policy(2).items())
    return store


@pytest.fixture
def url(store):
    with serving(store) as (_, url):
        yield url


def get(url, path, **headers):
    """Status, headers and body, of the path exactly as it stands."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_ranges_are_those_of_the_file(store, url):
    content = (store.folder / FILE[1:]).read_bytes()
    size = len(content)
    assert get(url, FILE)[::2] == (200, content)
    for text, start, stop in [
        ("0-0", 0, 1),
        ("5-99", 5, 100),
        (f"{size - 3}-", size - 3, size),
        ("9-9999999", 9, size),
    ]:
        status, headers, body = get(url, FILE, Range=f"bytes={text}")
        assert (status, body) == (206, content[start:stop]), text
        assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
    assert get_range(url, FILE, "", 10, 20) == content[10:20]


@pytest.mark.parametrize(
    "text", ["bytes=5-4", "bytes=99999999-", "bytes=-5", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b"]
)
def test_ranges_that_cannot_be_served_are_refused(url, text):
    assert get(url, FILE, Range=text)[0] == 416


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret", "/v0-0/../../secret", "/v0-0/..%2f..%2fsecret", "/v0-0/%2e%2e/%2e%2e/secret", "//etc/passwd"),
        *("/v0-0/.hidden", "/v0-0/..", "/v0-0/", "/secret", "/v0-0/link", "/v0-0/folder", "/v0-0//secret", "/v0-9/x"),
        *("/.v0-1.tmp/manifest.json", "/v0-0/pipe", "http://h/../secret"),
    ],
)
def test_nothing_but_files_of_versions_is_served(store, url, tmp_path, path):
    (store.folder / "v0-0" / "link").symlink_to(tmp_path / "secret")
    (store.folder / "v0-0" / ".hidden").write_text("secret")
    (store.folder / "v0-0" / "folder").mkdir()
    os.mkfifo(store.folder / "v0-0" / "pipe")
    (store.folder / ".v0-1.tmp").mkdir()
    (store.folder / ".v0-1.tmp" / "manifest.json").write_text("secret")
    status, _, body = get(url, path)
    assert status == 404 and body.decode() != "secret"


def test_who_has_not_the_token_gets_nothing(store):
    with serving(store, token="right") as (_, url):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for path in (FILE, "/versions", "/v0-0"):
                status, _, body = get(url, path, **headers)
                assert status == 403 and module.TOKEN_VARIABLE.encode() in body
        assert get(url, FILE, Authorization="Bearer right")[0] == 200
        assert call(url, "/versions", "right")["latest"] == "0.0"


def test_without_a_token_only_this_machine_is_served(url, monkeypatch):
    assert get(url, FILE)[0] == 200
    monkeypatch.setattr(module._Handler, "_local", lambda self: False)
    assert get(url, FILE)[0] == 403


def test_a_reader_without_the_token_is_told_what_is_missing(store, tmp_path):
    with serving(store, token="right") as (_, url):
        intake = Intake(tmp_path / "cache", token="wrong")
        with pytest.raises(module.WeightError, match="INTELLECT_JAX_ADMIN_TOKEN"):
            intake.advance(f"{url}/v0-0/manifest.json")
        intake.close()
        intake = Intake(tmp_path / "cache", "127.0.0.1", token="right")
        assert intake.advance(f"{url}/v0-0/manifest.json") == V0
        intake.close()


def test_questions_that_no_reader_asks_are_refused(url):
    for question in ({}, {"tag": 1}, {"tag": "x", "relay": "", "have": "", "busy": "", "lost": []}):
        with pytest.raises(SourceFailed) as refused:
            call(url, "/v0-0/manifest.json/work", "", question)
        assert refused.value.status in (400, 404)
    tag = call(url, "/v0-0", "")["manifest.json"]["tag"]
    with pytest.raises(SourceFailed, match="400"):
        call(url, "/v0-0/manifest.json/work", "", {"tag": tag, "relay": "", "have": "zz", "busy": "", "lost": []})
    with pytest.raises(SourceFailed, match="404"):
        call(url, "/v0-0/other.json/work", "", {})


def test_a_slow_reader_holds_up_nobody_and_is_cut_off(tmp_path, monkeypatch):
    """Forty connections that take one byte a second, and readers beside them."""
    monkeypatch.setattr(module._Handler, "timeout", 2.0)
    store = WeightStore(tmp_path / "large")
    store.publish(V0, policy(40).items())
    with serving(store) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        slow = []
        for _ in range(40):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(f"GET {FILE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connection.recv(1)
            slow.append(connection)
        begun = time.monotonic()
        intake = Intake(tmp_path / "cache")
        intake.advance(f"{url}/v0-0/manifest.json")
        seconds = time.monotonic() - begun
        intake.close()
        deadline = time.monotonic() + 20
        while any("process_request" in thread.name for thread in threading.enumerate()):
            assert time.monotonic() < deadline, "slow connections are still open"
            time.sleep(0.1)
        for connection in slow:
            connection.close()
    assert seconds < 10
    np.testing.assert_array_equal(intake.mirror.tensors["norm"], policy(40)["norm"])
