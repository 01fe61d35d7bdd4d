"""A reader against sources that are damaged, die, change or fill the disk: the mirror changes only for sound bytes."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from intellect_jax.transport.reading import WeightError
from intellect_jax.transport.relay import download, parcel
from intellect_jax.transport.relay.cache import Cache
from intellect_jax.transport.relay.client import call
from intellect_jax.transport.relay.intake import Intake
from intellect_jax.transport.relay.parcel import Parcel, describe
from intellect_jax.transport.relay.server import Server
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.transport.relay.fleet import ROOT, moved, nbytes, policy, sent, serving
from tests.transport.relay.worker import digest

V0, V1 = Version(0, 0), Version(0, 1)
TENSORS = policy(6)
FILE = "weights-00000.safetensors"


@pytest.fixture
def store(tmp_path):
    store = WeightStore(tmp_path / "weights")
    store.publish(V0, TENSORS.items())
    return store


@pytest.fixture
def origin(store):
    with serving(store) as found:
        yield found


@pytest.fixture
def make(tmp_path):
    """Readers, each with a cache of its own."""
    made = []

    def one(name="cache"):
        made.append(Intake(tmp_path / name, "127.0.0.1"))
        return made[-1]

    yield one
    for each in made:
        each.close()


def advance(each, origin, version=V0):
    return each.advance(f"{origin[1]}/v{version.lineage}-{version.number}/manifest.json")


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_version_comes_whole_and_its_files_are_those_of_the_store(make, origin, store, tmp_path):
    one = make()
    assert advance(one, origin) == V0
    assert digest(one.mirror.tensors) == digest(TENSORS)
    here = tmp_path / "cache" / "v0-0"
    assert {p.name: p.read_bytes() for p in here.iterdir()} == {
        p.name: p.read_bytes() for p in (store.folder / "v0-0").iterdir()
    }


def test_only_the_delta_comes_to_who_has_the_version_before(make, origin, store):
    after, changed = moved(TENSORS, 1)
    one = make()
    advance(one, origin)
    store.publish(V1, after.items(), delta=(V0, changed))
    before = one.fetcher.received[""]
    advance(one, origin, V1)
    delta = describe(store.folder, V1, "delta.json")
    assert one.fetcher.received[""] - before == delta.nbytes < 0.2 * nbytes(store.folder / "v0-0")
    assert digest(one.mirror.tensors) == digest(after)
    late = make("late")
    advance(late, origin, V1)  # a delta to what it does not have is no way
    assert digest(late.mirror.tensors) == digest(after)


@pytest.mark.parametrize("at", [0, 4_000_000, -1])
def test_a_flipped_bit_at_a_relay_is_caught_and_the_chunk_comes_from_elsewhere(make, origin, tmp_path, at, caplog):
    first, second = make("first"), make("second")
    advance(first, origin)
    flip(tmp_path / "first" / "v0-0" / FILE, at)
    advance(second, origin)
    assert digest(second.mirror.tensors) == digest(TENSORS)
    assert "do not match their hash" in caplog.text
    assert (tmp_path / "second" / "v0-0" / FILE).read_bytes() == (tmp_path / "weights" / "v0-0" / FILE).read_bytes()


def test_every_answer_of_a_relay_may_be_wrong(make, origin, tmp_path):
    """It sends noise for whatever it is asked."""
    first, second = make("first"), make("second")
    advance(first, origin)
    for path in (tmp_path / "first" / "v0-0").iterdir():
        path.write_bytes(os.urandom(path.stat().st_size))
    advance(second, origin)
    assert digest(second.mirror.tensors) == digest(TENSORS)


def test_a_version_damaged_at_the_origin_never_reaches_the_mirror(make, origin, store):
    after, changed = moved(TENSORS, 1)
    one = make()
    advance(one, origin)
    store.publish(V1, None, delta=(V0, changed))
    flip(store.folder / "v0-1" / "delta-00000.bin")
    with pytest.raises(WeightError, match="hash"):
        advance(one, origin, V1)
    assert one.mirror.version == V0 and digest(one.mirror.tensors) == digest(TENSORS)
    store.publish(V1, after.items(), replace_damaged=True)  # as the trainer does when it hears of it
    advance(one, origin, V1)
    assert digest(one.mirror.tensors) == digest(after)


def test_where_the_delta_is_damaged_the_full_version_comes(make, origin, store):
    after, changed = moved(TENSORS, 1)
    one = make()
    advance(one, origin)
    store.publish(V1, after.items(), delta=(V0, changed))
    flip(store.folder / "v0-1" / "delta-00000.bin")
    advance(one, origin, V1)
    assert digest(one.mirror.tensors) == digest(after)


def test_what_is_damaged_on_the_samplers_own_disk_comes_again(make, origin, tmp_path):
    one = make()
    advance(one, origin)
    flip(tmp_path / "cache" / "v0-0" / FILE)
    one.mirror = type(one.mirror)()  # as after a restart
    advance(one, origin)
    assert digest(one.mirror.tensors) == digest(TENSORS)


def test_a_version_published_again_is_not_mistaken_for_the_first(make, origin, store):
    one, two = make("one"), make("two")
    advance(one, origin)
    other = policy(6, seed=9)
    store.publish(V0, other.items(), replace_damaged=True)
    advance(two, origin)
    assert digest(two.mirror.tensors) == digest(other)
    one.mirror = type(one.mirror)()
    advance(one, origin)
    assert digest(one.mirror.tensors) == digest(other)


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(origin, store, tmp_path):
    """A process that may write no file as large as the version's."""
    code = (
        "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000,) * 2);"
        f"sys.argv = ['worker', {origin[1]!r}, {str(tmp_path / 'cache')!r}];"
        "runpy.run_module('tests.transport.relay.worker', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input="v0-0\n", capture_output=True, text=True, timeout=60
    )
    answer = json.loads(done.stdout.splitlines()[1])
    assert answer["error"].startswith("cannot write ") and answer["error"].endswith("File too large"), done.stderr
    assert len(answer["error"].splitlines()) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".lock"]
    assert sent(origin[0], V0) < nbytes(store.folder / "v0-0") / 10  # it was known before anything was fetched


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="mounts a small file system")
def test_a_small_disk_makes_room_out_of_old_versions(origin, store, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount")
    one = Intake(disk / "cache", "127.0.0.1")
    try:
        advance(one, origin)
        other = policy(6, seed=5)
        store.publish(V1, other.items())
        advance(one, origin, V1)  # both do not fit
        assert digest(one.mirror.tensors) == digest(other)
        assert one._cache.versions() == [V1]
        store.publish(Version(0, 2), policy(12).items())
        before = one.fetcher.received[""]
        with pytest.raises(WeightError, match="No space left on device"):
            advance(one, origin, Version(0, 2))
        assert one.fetcher.received[""] == before  # it was known before anything was fetched
        assert one.mirror.version == V1 and digest(one.mirror.tensors) == digest(other)
        assert not list((disk / "cache").glob(".v*"))
    finally:
        one.close()
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_interrupted_transfer_goes_on_where_it_stopped(store, make, tmp_path, monkeypatch):
    """The origin goes away in the middle, and comes back at another address."""
    monkeypatch.setattr(download, "STALL_S", 1.0)
    monkeypatch.setattr(parcel, "SMALLEST", 64 << 10)
    one = make()
    with serving(store) as origin:
        count = origin[0].count

        def counted(path, n):
            count(path, n)
            threading.Event().wait(0.02)
            if sent(origin[0]) > 2_000_000:
                origin[0].close()

        origin[0].count = counted
        with pytest.raises(WeightError, match="nothing came for 1 s"):
            advance(one, origin)
        first = one.fetcher.received[""]
    assert one.mirror.version is None and 1_000_000 < first < nbytes(store.folder / "v0-0")
    with serving(store) as origin:
        advance(one, origin)
        second = one.fetcher.received[""]
    assert digest(one.mirror.tensors) == digest(TENSORS)
    assert first + second == nbytes(store.folder / "v0-0")


def test_what_was_damaged_while_interrupted_comes_again(store, make, origin, tmp_path, monkeypatch):
    one = make()
    cache = Cache(tmp_path / "cache")
    whole = describe(store.folder, V0, "manifest.json")
    part = cache.part(whole)
    shutil.copytree(store.folder / "v0-0", part)
    lines = [whole.tag]
    for chunk in range(whole.count):
        name, start, stop = whole.span(chunk)
        lines.append(f"{chunk} {parcel.hash_of((part / name).read_bytes()[start:stop])}")
    (part / download.JOURNAL).write_text("\n".join(lines) + "\n")
    flip(part / FILE, 3_000_000)
    advance(one, origin)
    assert digest(one.mirror.tensors) == digest(TENSORS)
    assert one.fetcher.received[""] == whole.chunk


def test_without_its_origin_a_sampler_has_what_it_has(store, make, tmp_path):
    one = make()
    with serving(store) as origin:
        advance(one, origin)
    one.mirror = type(one.mirror)()
    advance(one, origin)
    assert digest(one.mirror.tensors) == digest(TENSORS)
    with pytest.raises(WeightError, match="Connection refused"):
        advance(one, origin, V1)


def test_several_readers_of_one_machine_share_a_cache(origin, store, tmp_path):
    """As the ranks of one vLLM server do: it comes once."""
    ranks = [Intake(tmp_path / "shared", "127.0.0.1") for _ in range(3)]
    threads = [threading.Thread(target=advance, args=(rank, origin)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {digest(rank.mirror.tensors) for rank in ranks} == {digest(TENSORS)}
    assert sum(rank.fetcher.received[""] for rank in ranks) == nbytes(store.folder / "v0-0")
    for rank in ranks:
        rank.close()


def test_the_origin_hears_that_all_came(make, origin, monkeypatch):
    monkeypatch.setattr(download, "STREAMS", 1)  # so that no other stream says it by chance
    advance(make(), origin)
    assert call(origin[1], "/versions", "")["readers"] == 1


def test_the_cache_stays_small(make, origin, store, tmp_path):
    one = make()
    tensors = TENSORS
    for number in range(1, 7):
        tensors, _ = moved(tensors, number)
        store.publish(Version(0, number), tensors.items())
        advance(one, origin, Version(0, number))
    assert nbytes_below(tmp_path / "cache") < 3.1 * sum(t.nbytes for t in TENSORS.values())
    assert one._cache.versions()[-1] == Version(0, 6)


def nbytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", ".hidden", "a/b", ""])
def test_an_origin_cannot_make_a_reader_write_elsewhere(name):
    good = {"tag": "x", "base": None, "chunk": 1024, "files": {"manifest.json": 5, name: 5}}
    with pytest.raises(WeightError, match="is wrong"):
        Parcel.from_json(V0, "manifest.json", good)


def test_a_stranger_at_the_origins_address_is_told(make, tmp_path):
    class Strange:
        def open(self, *_):
            raise AssertionError

        def answer(self, path, question):
            return ["what"]

    server = Server(Strange(), "127.0.0.1", 0)
    with pytest.raises(WeightError):
        make().advance(f"http://127.0.0.1:{server.port}/v0-0/manifest.json")
    server.close()


def test_chunks_cover_every_byte_once(store):
    whole = describe(store.folder, V0, "manifest.json")
    seen = {name: np.zeros(size, int) for name, size in whole.files.items()}
    for chunk in range(whole.count):
        name, start, stop = whole.span(chunk)
        seen[name][start:stop] += 1
        assert list(whole.chunks_of(name, start, stop)) == [chunk] and 0 < stop - start <= whole.chunk
    assert all((each == 1).all() for each in seen.values())
