"""What a person meets first: mistakes told in one line, quickly, before anything starts."""

import json
import subprocess
import sys
import time

import pytest

from intellect_jax import config as schema
from launch.__main__ import main

RECIPE = """
from intellect_jax.config import default_config, env

def get_config(arg=None):
    config = default_config()
    config.envs = (env("reverse_text", min_length=3),)
    config.run.root = {root!r}
    config.trainer.rows = 16
    if arg:
        config.seed = int(arg)
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(RECIPE.format(root=str(tmp_path / "runs")))
    return path


@pytest.fixture
def launch(recipe, capsys):
    """Runs the command line on the recipe; gives (exit code, stdout, stderr)."""

    def call(*words: str, config: str = str(recipe), command: tuple[str, ...] = ()) -> tuple[int, str, str]:
        code = main([*command, f"--config={config}", *words])
        return code, *capsys.readouterr()

    return call


BAD = {
    "--config.trainer.rowz=3": "unknown key 'trainer.rowz': did you mean 'trainer.rows'?",
    "--config.optimizer.learning_rate=1": "did you mean 'trainer.optimizer.learning_rate'?",
    "--config.trainer.optimiser.learning_rate=1": "did you mean 'trainer.optimizer.learning_rate'?",
    "--config.group_size=4": "did you mean 'orchestrator.group_size'?",
    "--config.trainer=3": "trainer is a group of keys",
    "--config.trainer.rows=1.5": "trainer.rows=1.5: must be a whole number",
    "--config.trainer.rows=many": "trainer.rows=many: must be a whole number",
    "--config.trainer.remat=True": "trainer.remat='True': must be one of none, matmuls, attention, full",
    "--config.trainer.optimizer.learning_rate=fast": "must be a number",
    "--config.trainer.optimizer.learning_rate=-1": "trainer.optimizer.learning_rate=-1.0: must be greater than 0",
    "--config.trainer.rows=0": "trainer.rows=0: must be at least 1",
    "--config.trainer.seq_buckets=256,128": "must be a tuple of increasing positive integers",
    "--config.sampler.backend=sglang": "must be one of jax",
    "--config.envs=()": "RL needs at least one environment",
    "--config.envs=({'name': 'x'},)": "envs=({'name': 'x'},): must be",
    "--config.orchestrator.batch_size=100": "batch_size must be a multiple of group_size",
    "--config.model.path=/no/such/model": "model.path=/no/such/model: no such file or folder",
    "--config.sft.data=no.jsonl": "sft.data=no.jsonl: no such file or folder",
    "--config.trainer.rows": "--config.trainer.rows needs a value",
    "--frehs": "unknown option --frehs: did you mean '--fresh'?",
    "--index=1": "--index means nothing to `launch run`, only to: trainer, sampler, env",
    "stray": "cannot place 'stray'",
}


@pytest.mark.parametrize("word", BAD)
@pytest.mark.parametrize("dry", [(), ("--dry_run",)], ids=["", "dry"])
def test_a_mistake_is_one_clear_line(launch, tmp_path, word, dry):
    code, out, err = launch(*dry, word)
    assert (code, out) == (2, "")
    assert err.startswith("launch: ") and BAD[word] in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text, problem",
    [
        ("def get_config(arg=None):\n    return {", "tiny.py:2: SyntaxError"),
        ("x = 1", "a recipe must define get_config"),
        ("def get_config(arg=None):\n    return 1 / 0", "tiny.py:2: ZeroDivisionError: division by zero"),
        ("def get_config(arg=None):\n    return {}", "must return a changed intellect_jax.config.default_config()"),
        (
            "from intellect_jax.config import default_config\n"
            "def get_config(arg=None):\n    c = default_config()\n    c.trainer.rowz = 3\n    return c",
            "tiny.py:4: unknown key 'rowz': did you mean 'trainer.rows'?",
        ),
        (
            "from intellect_jax.config import default_config\n"
            "def get_config(arg=None):\n    c = default_config()\n    c.trainer.rows = 'x'\n    return c",
            "tiny.py:4: TypeError: Could not override field 'rows'",
        ),
        (
            "from intellect_jax.config import default_config\n"
            "def get_config(arg=None):\n    c = default_config()\n    c.trainer.rows = True\n    return c",
            "trainer.rows=True: must be a whole number, not bool",
        ),
    ],
)
def test_a_mistake_in_the_recipe_names_its_line(launch, recipe, text, problem):
    recipe.write_text(text)
    code, _, err = launch()
    assert code == 2
    assert problem in err and err.count("\n") == 1


def test_missing_recipe_and_command(launch, tmp_path):
    code, _, err = launch(config=str(tmp_path / "tinny.py"))
    assert code == 2 and "no such file: did you mean 'tiny'?" in err
    code, _, err = launch(command=("trian",))
    assert code == 2 and "unknown command 'trian': did you mean 'trainer'?" in err


def test_mistakes_are_told_fast_and_without_jax(recipe):
    """As a person runs it: a fresh interpreter."""
    begun = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "launch", f"--config={recipe}", "--config.trainer.rowz=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert time.monotonic() - begun < 5.0
    assert done.returncode == 2 and "Traceback" not in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "ml_collections" in imported
    assert not imported & {"jax", "flax", "torch", "transformers"}


def test_dry_run_shows_the_origin_of_every_change(launch, tmp_path):
    code, out, _ = launch("--dry_run", "--config.seed=5", "--config.sampler.urls=http://a:1,http://b:2")
    assert code == 0
    assert "trainer.rows = 16    # recipe; default 8" in out
    assert "seed = 5    # command line; default 0" in out
    assert "sampler.urls = ('http://a:1', 'http://b:2')    # command line" in out
    assert "\ntrainer.max_steps = 100\n" in out
    run_dir = tmp_path / "runs" / "tiny-seed5"
    assert [path.name for path in run_dir.iterdir()] == ["config.json"]
    assert schema.from_plain(json.loads((run_dir / "config.json").read_text())).seed == 5


def test_a_json_configuration_means_the_same(launch, tmp_path):
    launch("--dry_run", f"--config.run.root={tmp_path / 'one'}")
    written = tmp_path / "one" / "tiny-seed0" / "config.json"
    copy = tmp_path / "copy.json"
    copy.write_text(written.read_text())
    assert launch("--dry_run", f"--config.run.root={tmp_path / 'two'}", config=str(copy))[0] == 0
    again = json.loads((tmp_path / "two" / "tiny-seed0" / "config.json").read_text())
    again["run"]["root"] = str(tmp_path / "one")
    assert again == json.loads(written.read_text())


def test_a_recipe_takes_an_argument(launch, recipe, tmp_path):
    assert launch("--dry_run", config=f"{recipe}:7")[0] == 0
    assert (tmp_path / "runs" / "tiny-seed7" / "config.json").exists()


def test_resuming_with_other_settings_is_refused(launch, tmp_path):
    launch("--dry_run")
    run_dir = tmp_path / "runs" / "tiny-seed0"
    assert launch("--dry_run", "--config.trainer.rows=32")[0] == 0  # nothing ran yet: a dry run binds nobody
    launch("--dry_run")
    (run_dir / "logs").mkdir()
    code, _, err = launch("--config.trainer.rows=32", "--config.model.hidden_size=64")
    assert code == 2
    assert "model.hidden_size was 128, now 64; trainer.rows was 16, now 32" in err and err.count("\n") == 1
    assert launch("--dry_run", "--config.trainer.max_steps=7", "--config.sampler.num_servers=2")[0] == 0
    assert json.loads((run_dir / "config.json").read_text())["trainer"]["max_steps"] == 100  # as the run was started


def test_a_role_alone_must_be_told_its_addresses(launch):
    code, _, err = launch(command=("env",))
    assert code == 2 and "environments.address is empty" in err
    code, _, err = launch("--config.sampler.urls=http://a:1", "--index=1", command=("sampler",))
    assert code == 2 and "sampler.urls has 1 entries" in err
    code, _, err = launch("--index=one", command=("env",))
    assert code == 2 and "--index=one: must be 0 or more" in err


def test_sft_and_eval_need_something_to_do(launch):
    code, _, err = launch(command=("sft",))
    assert code == 2 and "sft.steps=0" in err
    code, _, err = launch(command=("eval",))
    assert code == 2 and "no published weights to evaluate" in err
