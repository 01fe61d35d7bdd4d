"""Deltas and the mirror they apply to: bit-identical to full versions, the fewest bytes, healed where damaged."""

import threading

import ml_dtypes
import numpy as np
import pytest

from intellect_jax.transport import changes
from intellect_jax.transport.deltas import Changed
from intellect_jax.transport.mirror import Mirror, routes
from intellect_jax.transport.reading import WeightError
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

BF16 = np.dtype(ml_dtypes.bfloat16)


def policy(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"embed": (64, 16), "norm": (16,), "gate": (8, 16), "bias": (8,), "empty": (0, 3), "head": (16, 64)}
    return {n: rng.normal(scale=0.02, size=s).astype(np.float32 if n == "bias" else BF16) for n, s in shapes.items()}


def moved(tensors, seed, share=0.03):
    """A few elements of each a step or two away."""
    rng, out = np.random.default_rng(seed), {}
    for name, old in tensors.items():
        bits = changes.as_bits(old.copy())
        bits += (rng.random(bits.size) < share).astype(bits.dtype) * rng.integers(1, 400, bits.size).astype(bits.dtype)
        out[name] = bits.view(old.dtype).reshape(old.shape)
    return out


def changed(old, new):
    return [Changed(n, new[n].dtype, new[n].shape, changes.find(old[n], new[n])) for n in new]


def publish_chain(store, count, fulls=(0,)):
    """Versions 0.0 to 0.count-1, all but the first as deltas, those of ``fulls`` in full too; returns their tensors."""
    tensors = [policy()]
    for number in range(1, count):
        tensors.append(moved(tensors[-1], number))
    for number, now in enumerate(tensors):
        delta = (Version(0, number - 1), changed(tensors[number - 1], now)) if number else None
        store.publish(Version(0, number), now.items() if number in fulls else None, delta=delta)
    return tensors


def assert_same(mirror, tensors):
    assert mirror.tensors.keys() == tensors.keys()
    for name, right in tensors.items():
        got = mirror.tensors[name]
        assert (got.dtype, got.shape, got.tobytes()) == (right.dtype, right.shape, right.tobytes()), name


def test_fifty_chained_deltas_are_the_full_version_bit_for_bit(tmp_path):
    store, mirror = WeightStore(tmp_path, 60), Mirror()
    tensors = publish_chain(store, 51)
    for number, right in enumerate(tensors):
        route = mirror.advance(tmp_path, Version(0, number))
        assert (route.full is None) == (number > 0) and len(route.deltas) == min(number, 1)
        assert_same(mirror, right)
    late = Mirror()
    assert len(late.advance(tmp_path, Version(0, 50)).deltas) == 50
    assert_same(late, tensors[-1])


def test_the_way_with_the_fewest_bytes_is_taken(tmp_path):
    store = WeightStore(tmp_path, 60)
    tensors = publish_chain(store, 40, fulls=(0, 30))
    ways = {
        (r.full and r.full.parent.name, len(r.deltas)): r.nbytes
        for r in routes(tmp_path, Version(0, 39), Version(0, 2), problems=[])
    }
    assert ways.keys() == {("v0-30", 9), ("v0-0", 39), (None, 37)}
    mirror = Mirror()
    mirror.advance(tmp_path, Version(0, 2))
    route = mirror.advance(tmp_path, Version(0, 39))
    assert route.nbytes == min(ways.values()) and route.full is not None  # 37 deltas are more than a full version and 9
    assert_same(mirror, tensors[39])
    mirror = Mirror()
    mirror.advance(tmp_path, Version(0, 36))
    assert mirror.advance(tmp_path, Version(0, 39)).full is None
    assert_same(mirror, tensors[39])


@pytest.mark.parametrize("file", ["delta.json", "delta-00000.bin"])
def test_a_damaged_delta_heals_with_a_full_version_and_never_touches_the_mirror(tmp_path, file):
    store, rng = WeightStore(tmp_path, 60), np.random.default_rng(0)
    tensors = publish_chain(store, 4, fulls=(0, 3))
    path = store.manifest_path(Version(0, 3)).with_name(file)
    sound = path.read_bytes()
    for place in rng.integers(0, len(sound) * 8, 60):
        raw = bytearray(sound)
        raw[place // 8] ^= 1 << place % 8
        path.write_bytes(raw)
        mirror = Mirror()
        mirror.advance(tmp_path, Version(0, 2))
        assert mirror.advance(tmp_path, Version(0, 3)).full is not None
        assert_same(mirror, tensors[3])
    (path.parent / "manifest.json").unlink()
    mirror = Mirror()
    mirror.advance(tmp_path, Version(0, 2))
    with pytest.raises(WeightError, match="delta"):
        mirror.advance(tmp_path, Version(0, 3))
    assert mirror.version == Version(0, 2)
    assert_same(mirror, tensors[2])


def test_a_delta_of_another_version_or_model_is_refused(tmp_path):
    store = WeightStore(tmp_path, 10)
    tensors = publish_chain(store, 2)
    other = {**tensors[1], "norm": np.zeros(17, BF16)}
    store.publish(Version(0, 2), None, delta=(Version(0, 1), changed(other, other)))
    mirror = Mirror()
    mirror.advance(tmp_path, Version(0, 1))
    with pytest.raises(WeightError, match="not one of version"):
        mirror.advance(tmp_path, Version(0, 2))
    assert_same(mirror, tensors[1])


def test_several_publishers_write_changes_in_different_places_of_the_same_tensors(tmp_path):
    store = WeightStore(tmp_path, 10)
    new = publish_chain(store, 2)[1]
    now = moved(new, 7)
    barrier = threading.Barrier(2)

    def half(part):
        pieces = []
        for name in now:
            found = changes.find(new[name], now[name])
            mine = found.where % 2 == part
            pieces.append(Changed(name, now[name].dtype, now[name].shape, changes.Changes(*(x[mine] for x in found))))
        WeightStore(tmp_path, 10).publish(
            Version(0, 2), None, delta=(Version(0, 1), pieces), part=part, parts=2, meet=lambda what: barrier.wait(10)
        )

    threads = [threading.Thread(target=half, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    mirror = Mirror()
    mirror.advance(tmp_path, Version(0, 2))
    assert_same(mirror, now)
