import subprocess
import sys

import pytest

from intellect_jax import config as schema
from intellect_jax.errors import UserError
from launch import rundir
from launch.configuration import DEFAULTS


def test_only_one_process_holds_a_run_and_its_death_frees_it(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time, pathlib\nfrom launch import rundir\n"
         "with rundir.locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)",
         str(tmp_path / "run")],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"), rundir.locked(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    with rundir.locked(tmp_path / "run"):
        pass


def test_an_earlier_run_is_kept_once(tmp_path):
    run_dir = tmp_path / "run"
    assert rundir.set_aside(run_dir) is None
    for text in ("first", "second"):
        run_dir.mkdir()
        (run_dir / "note").write_text(text)
        rundir.set_aside(run_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["run.previous"]
    assert (tmp_path / "run.previous" / "note").read_text() == "second"


def test_differences_leave_out_what_may_change():
    old, new = schema.default_config(), schema.default_config()
    new.trainer.max_steps = 7
    new.sampler.urls = ("http://a:1",)
    new.launch.threads = 3
    new.sampler.max_len = 32
    assert rundir.differences(schema.to_plain(old), schema.to_plain(new)) == [("sampler.max_len", 64, 32)]


def test_a_key_that_an_older_release_lacked_had_its_default():
    plain = schema.to_plain(schema.default_config())
    del plain["trainer"]["remat"]
    assert rundir.differences(plain, schema.to_plain(schema.default_config())) == []


def test_every_key_that_may_change_exists():
    for name in rundir.MAY_CHANGE:
        assert any(key == name or key.startswith(name + ".") for key in DEFAULTS), name
