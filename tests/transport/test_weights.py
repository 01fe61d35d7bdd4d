"""Publishing and reading weight versions: exact bytes, damage found, old versions pruned."""

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from intellect_jax.files import sealed, unseal
from intellect_jax.transport import changes, weights
from intellect_jax.transport.deltas import Changed
from intellect_jax.transport.reading import WeightError
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version


def some_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "half": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
        "model.embed.weight": rng.normal(size=(7, 4)).astype(np.float32),
        "transposed": rng.normal(size=(4, 6)).astype(np.float32).T,
        "empty": np.zeros((0, 3), np.float32),
    }


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name


def test_round_trip_is_bit_exact(tmp_path):
    manifest = WeightStore(tmp_path).publish(Version(0, 3), some_tensors().items())
    assert manifest == tmp_path / "v0-3" / "manifest.json"
    assert_same(WeightStore.read(manifest), some_tensors())


def test_files_are_readable_by_the_safetensors_package(tmp_path):
    manifest = WeightStore(tmp_path).publish(Version(0, 0), some_tensors().items())
    loaded = load_file(manifest.parent / "weights-00000.safetensors")
    assert_same(loaded, some_tensors())


def test_many_files_when_a_version_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_FILE_BYTES", 100)
    manifest = WeightStore(tmp_path).publish(Version(0, 0), some_tensors().items())
    assert len(list(manifest.parent.glob("*.safetensors"))) == 3  # 30 bytes, 112 alone, 96 + 0
    assert_same(WeightStore.read(manifest), some_tensors())


def test_a_tensor_of_several_pieces_is_assembled(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    pieces = {"left": whole[:, :2], "right": whole[:, 2:]}
    path = WeightStore(tmp_path).publish(Version(0, 0), pieces.items())
    data = unseal(path.read_bytes())
    left, right = (data["tensors"][side]["pieces"][0] for side in ("left", "right"))
    left["slice"], right["slice"] = [[0, 4], [0, 2]], [[0, 4], [2, 6]]
    entry = {"dtype": "F32", "shape": [4, 6], "pieces": [left, right]}
    path.write_text(sealed({**data, "tensors": {"whole": entry}}))
    np.testing.assert_array_equal(WeightStore.read(path)["whole"], whole)
    path.write_text(sealed({**data, "tensors": {"whole": {**entry, "pieces": [left]}}}))
    with pytest.raises(WeightError, match=r"whole.*do not cover"):
        WeightStore.read(path)


def test_keeps_the_newest_and_a_later_lineage_is_newer(tmp_path):
    store = WeightStore(tmp_path, keep=2)
    assert store.latest() is None
    for version in (Version(0, 8), Version(0, 9), Version(0, 10), Version(1, 5)):
        store.publish(version, some_tensors().items())
    assert store.versions() == [Version(0, 10), Version(1, 5)]
    assert store.latest() == Version(1, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v0-10", "v1-5"]
    assert store.manifest_path(Version(1, 5)).exists()


def test_keeps_fewer_where_bytes_are_bounded_but_never_fewer_than_the_least(tmp_path):
    one = WeightStore(tmp_path / "one")
    one.publish(Version(0, 0), some_tensors().items())
    size = sum(one.nbytes(Version(0, 0)))
    for most, least, left in ((3.5, 2, 3), (3.0, 2, 3), (0.5, 2, 2), (0.5, 4, 4), (9.0, 2, 5), (0, 2, 5)):
        store = WeightStore(tmp_path / f"{most}-{least}", keep=5, most_bytes=most * size, least=least)
        for number in range(7):
            store.publish(Version(0, number), some_tensors().items())
        assert store.versions() == [Version(0, number) for number in range(7 - left, 7)], (most, least)


def test_a_bound_on_bytes_keeps_what_the_oldest_delta_starts_from(tmp_path):
    store = WeightStore(tmp_path, keep=9, most_bytes=1, least=2)
    store.publish(Version(0, 0), some_tensors().items())
    store.publish(Version(0, 1), some_tensors().items())
    nothing = [Changed(name, a.dtype, a.shape, changes.find(a, a)) for name, a in some_tensors().items()]
    for number in (2, 3, 4):
        store.publish(Version(0, number), None, delta=(Version(0, number - 1), nothing))
    assert store.versions() == [Version(0, number) for number in (1, 2, 3, 4)]
    assert_same(store.read(store.manifest_path(Version(0, 4))), some_tensors())


def test_a_version_is_made_once(tmp_path):
    store = WeightStore(tmp_path)
    store.publish(Version(0, 1), some_tensors().items())
    with pytest.raises(WeightError, match=r"0\.1 is published already"):
        store.publish(Version(0, 1), some_tensors().items())


def test_a_publisher_that_dies_leaves_no_version(tmp_path):
    def dying():
        yield from some_tensors().items()
        raise KeyboardInterrupt

    store = WeightStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.publish(Version(0, 1), dying())
    assert store.versions() == []
    store.publish(Version(0, 1), some_tensors().items())
    assert_same(store.read(store.manifest_path(Version(0, 1))), some_tensors())


@pytest.mark.parametrize("file", ["weights-00000.safetensors", "manifest.json"])
def test_every_flipped_byte_of_a_version_is_found(file, tmp_path):
    path = WeightStore(tmp_path).publish(Version(0, 0), some_tensors().items())
    good = (path.parent / file).read_bytes()
    for at in range(len(good)):
        (path.parent / file).write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(WeightError, match=file):
            WeightStore.read(path)


def test_a_damaged_tensor_is_named(tmp_path):
    path = WeightStore(tmp_path).publish(Version(0, 0), some_tensors().items())
    file = path.parent / "weights-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(WeightError, match=r"tensor half: .*weights-00000\.safetensors"):
        WeightStore.read(path)


def test_several_publishers_make_one_version(tmp_path):
    tensors = list(some_tensors().items())
    meeting = threading.Barrier(3, timeout=10)

    def publish(part):
        mine = tensors[part::2] if part < 2 else []  # one has nothing to write
        return WeightStore(tmp_path).publish(
            Version(0, 0), mine, part=part, parts=3, meet=lambda what: meeting.wait() and None
        )

    with ThreadPoolExecutor(3) as pool:
        (path,) = set(pool.map(publish, range(3)))
    assert_same(WeightStore.read(path), some_tensors())
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "manifest.json",
        "weights-00000.safetensors",
        "weights-00001.safetensors",
    ]


def test_a_damaged_version_is_made_again(tmp_path):
    store = WeightStore(tmp_path)
    path = store.publish(Version(0, 0), some_tensors().items())
    file = path.parent / "weights-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert store.publish(Version(0, 0), some_tensors().items(), replace_damaged=True) == path
    assert_same(store.read(path), some_tensors())
    assert [p.name for p in tmp_path.iterdir()] == ["v0-0"]


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_file_cut_short_is_found(tmp_path, size):
    path = WeightStore(tmp_path).publish(Version(0, 0), some_tensors().items())
    file = path.parent / "weights-00000.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(WeightError, match=r"weights-00000\.safetensors"):
        WeightStore.read(path)


def test_missing_and_damaged_parts_are_named(tmp_path):
    path = WeightStore(tmp_path).publish(Version(0, 0), some_tensors().items())
    text = path.read_text()
    path.write_text(text[:-10])
    with pytest.raises(WeightError, match="manifest"):
        WeightStore.read(path)
    content = unseal(text.encode())
    path.write_text(sealed({**content, "files": {"../weights": {"size": 1, "header": 0, "hash": ""}}}))
    with pytest.raises(WeightError, match="lies outside"):
        WeightStore.read(path)
    path.write_text(sealed({**content, "files": {}}))
    with pytest.raises(WeightError, match="is not among the files"):
        WeightStore.read(path)
    path.write_text(sealed({**content, "kind": "delta"}))
    with pytest.raises(WeightError, match="delta"):
        WeightStore.read(path)
    path.write_text(text)
    (path.parent / "weights-00000.safetensors").unlink()
    with pytest.raises(WeightError, match=r"weights-00000\.safetensors"):
        WeightStore.read(path)
    shutil.rmtree(path.parent)
    with pytest.raises(WeightError, match="manifest"):
        WeightStore.read(path)


def test_a_dtype_that_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match="complex64"):
        WeightStore(tmp_path).publish(Version(0, 0), [("bad", np.zeros(2, np.complex64))])


def test_does_not_import_jax():
    code = "import sys, intellect_jax.transport.weights; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
