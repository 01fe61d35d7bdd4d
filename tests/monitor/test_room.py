"""A disk that really is full."""

import errno
import logging
import math
import threading
import time

import pytest

from intellect_jax.monitor import watchdog
from intellect_jax.monitor.room import RESERVE, free_bytes, wait_for_room
from tests.disks import fill, small_disk

__all__ = ["small_disk"]


def test_waits_until_there_is_room_and_says_so(small_disk, caplog):
    wait_for_room(small_disk / "not" / "there" / "yet", 0, "nothing")
    filling = fill(small_disk)
    threading.Timer(1.0, filling.unlink).start()
    with caplog.at_level(logging.WARNING):
        wait_for_room(small_disk / "weights", 100 << 20, "version 0.3", patience=20)
    assert free_bytes(small_disk) > (100 << 20) + RESERVE
    first, last = (record.message for record in caplog.records)
    assert first.startswith("version 0.3 waits for room on the disk of") and "0 MiB free, needed 132 MiB" in first
    assert last.startswith("version 0.3 goes on after ") and "0 s" not in last


def test_gives_up_with_what_was_needed(small_disk):
    with pytest.raises(OSError, match=r"version 0\.3: 256 MiB free after 0 s, needed 1,032 MiB") as raised:
        wait_for_room(small_disk, 1000 << 20, "version 0.3", patience=0.1)
    assert raised.value.errno == errno.ENOSPC


def test_a_role_on_a_full_disk_still_gives_signs_of_life(small_disk):
    watch = watchdog.Watchdog(small_disk, "trainer", timeout=math.inf, partner_timeout=30.0)
    watch.start()
    heart = small_disk / watchdog.FOLDER / "trainer"
    while not heart.exists():
        time.sleep(0.05)
    fill(small_disk)
    filled = heart.stat().st_mtime_ns
    deadline = time.monotonic() + 10
    while heart.stat().st_mtime_ns <= filled + 10**9:
        assert time.monotonic() < deadline
        time.sleep(0.05)
