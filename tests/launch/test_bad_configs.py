"""Bad configurations as a person meets them: real processes, one clear line, quickly, and nothing was started."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intellect_jax.bridge.tokenizer import write_character_tokenizer
from tests.disks import fill, small_disk

__all__ = ["small_disk"]

ROOT = Path(__file__).parents[2]
RECIPE = """
from intellect_jax.config import default_config, env

def get_config(arg=None):
    config = default_config()
    config.envs = (env("reverse_text", min_length=3, max_length=8),)
    config.run.root = {root!r}
    config.trainer.platform = config.sampler.platform = "cpu"
    return config
"""
# Arguments ({here}: a folder with the files of `folder`) -> what the line must say.
BAD = {
    "unknown key": ("--config.trainer.rowz=3", "unknown key 'trainer.rowz': did you mean 'trainer.rows'?"),
    "unknown key of an algorithm": (
        "--config.icepop.alhpa=0.1",
        "unknown key 'icepop.alhpa': did you mean 'algorithm.icepop.alpha'?",
    ),
    "wrong type": ("--config.trainer.rows=1.5", "trainer.rows=1.5: must be a whole number"),
    "no finite number": (
        "--config.trainer.optimizer.learning_rate=inf",
        "trainer.optimizer.learning_rate=inf: must be a finite number",
    ),
    "out of range": ("--config.eval.temperature=-1", "eval.temperature=-1.0: must be at least 0.0"),
    "mesh axis of zero": ("--config.parallel.tensor=0", "parallel.tensor=0: must be at least 1, or -1"),
    "impossible combination": (
        "--config.orchestrator.batch_size=100",
        "orchestrator.batch_size=100, orchestrator.group_size=16: batch_size must be a multiple of group_size",
    ),
    "odd rotary width": (
        "--config.model.head_dim=6",
        "model.head_dim=6, model.partial_rotary_factor=0.5: RoPE rotates pairs: their product must be even",
    ),
    "NCCL to our own sampler": (
        "--config.weights.transport=nccl",
        "weights.transport='nccl', sampler.backend='jax', distributed.processes=0: NCCL brings weights from one "
        "trainer process to vLLM",
    ),
    "NCCL without what it sends": (
        "--config.weights.transport=nccl --config.weights.deltas=False --config.sampler.backend=vllm "
        "--config.sampler.urls=http://127.0.0.1:1",
        "weights.transport='nccl', weights.deltas=False, weights.dtype='bfloat16', lora.rank=0: NCCL sends the copy",
    ),
    "missing file": (
        "--config.sft.data={here}/nothing.jsonl --config.sft.steps=2",
        "sft.data={here}/nothing.jsonl: no such file or folder",
    ),
    "missing model": (
        "--config.model.path=org/model",
        "model.path=org/model: cannot load the model org/model: no such folder, nor from the Hugging Face Hub: ",
    ),
    "missing recipe": ("--config={here}/recipee.py", "recipee.py: no such file: did you mean 'recipe'?"),
    "unknown environment": (
        "--config.envs=revers_text",
        "environment revers_text is neither installed nor in ",
    ),
    "no name of an environment": ("--config.envs=../envs", "environment ../envs is neither installed nor in "),
    "wrong environment argument": (
        "--config={here}/wrong_argument.json",
        "environment reverse_text: load_environment got an unexpected keyword argument 'lenght'; it takes min_length,",
    ),
    "environment that fails": (
        "--config={here}/failing_environment.json",
        "environment reverse_text with {{'min_length': 9, 'max_length': 3}}: ValueError: ",
    ),
    "environment ratio of text": ("--config={here}/ratio.json", "must be a tuple of env('name', ratio="),
    "tokenizer without a chat template": (
        "--config.tokenizer.path={here}/no_template",
        "tokenizer.path={here}/no_template: the tokenizer in {here}/no_template has no chat template",
    ),
    "vocabulary smaller than the tokenizer": (
        "--config.model.vocab_size=50",
        "model.vocab_size=50: has 50 rows, must have at least the 102 of the character tokenizer",
    ),
    "bad first record": (
        "--config.sft.data={here}/bad.jsonl --config.sft.steps=2",
        "{here}/bad.jsonl:1: no 'prompt'; a record has prompt and completion, or messages; this one has question",
    ),
    "record that is not JSON": (
        "--config.sft.data={here}/broken.jsonl --config.sft.steps=2",
        "{here}/broken.jsonl:1: not JSON: ",
    ),
    "table that is not Parquet": (
        "--config.sft.data={here}/broken.parquet --config.sft.steps=2",
        "sft.data={here}/broken.parquet: ",
    ),
    "first record too long for a row": (
        "--config.sft.data={here}/long.jsonl --config.sft.steps=2 --config.tokenizer.path={here}/tokenizer",
        "{here}/long.jsonl:1: 1004 tokens exceed the longest row of trainer.seq_buckets, 256",
    ),
    "taken port": (
        "--config.orchestrator.address=tcp://127.0.0.1:{port}",
        "orchestrator.address=tcp://127.0.0.1:{port}: cannot listen there: Address already in use",
    ),
    "taken port of a role alone": (
        "sampler --config.sampler.urls=http://127.0.0.1:{port}",
        "sampler.urls=http://127.0.0.1:{port}: cannot listen there: Address already in use",
    ),
    "address that does not parse": (
        "--config.sampler.urls=localhost",
        "sampler.urls=('localhost',): must be a tuple of http://host:port, or empty to choose ports",
    ),
    "run directory that cannot be written": (
        "--config.run.root={here}/recipe.py",
        "run.root={here}/recipe.py: cannot write to {here}/recipe.py (Not a directory): choose another folder",
    ),
    "too little disk": ("--config.checkpoint.keep=100000000", "keep fewer, or choose another run.root"),
    "too little memory": (
        "--config.model.hidden_size=65536 --config.model.num_hidden_layers=1000",
        "of memory, available are ",
    ),
    "mesh larger than the machine": (
        "--config.parallel.tensor=2 --config.parallel.fsdp=1",
        "'tensor': 2}} do not multiply to 1 device",
    ),
    "target of LoRA that the policy lacks": (
        "--config.lora.rank=4 --config.lora.targets=attention,experts --config.model.family=llama",
        "lora.targets=('attention', 'experts'): this llama has no routed experts: drop 'experts'",
    ),
    "unknown target of LoRA": (
        "--config.lora.rank=4 --config.lora.targets=mlp",
        "lora.targets=('mlp',): must be a tuple of different words out of attention, dense, experts",
    ),
    "LoRA of nothing": (
        "--config.lora.rank=4 --config.lora.targets=()",
        "lora.rank=4, lora.targets=(): LoRA needs something to adapt: attention, dense, experts or several of them",
    ),
    "LoRA without a share": ("--config.lora.alpha=0", "lora.alpha=0.0: must be greater than 0"),
    "balancing without a bias": (
        "--config.trainer.router_bias_rate=0.001 --config.model.family=qwen3_moe",
        "trainer.router_bias_rate=0.001: this qwen3_moe has no routers with a selection bias: set 0",
    ),
    "balancing under LoRA": (
        "--config.trainer.router_bias_rate=0.001 --config.lora.rank=4",
        "lora.rank=4, trainer.router_bias_rate=0.001: the adapters alone train",
    ),
    "buffers for less than a balanced load": (
        "--config.parallel.expert_capacity=0.5",
        "parallel.expert_capacity=0.5: must be 0, or at least 1",
    ),
    "adapter without a base": (
        "--config.lora.rank=4 --config.export.lora=adapter",
        "lora.rank=4, export.lora='adapter', model.path='': an adapter needs a base that others can load",
    ),
    "evaluation of nothing": ("eval", "no published weights to evaluate: train first"),
    "export of nothing": ("export", "has no checkpoint to export: train first, or give another run.name"),
    "option of another command": ("eval --fresh", "--fresh means nothing to `launch eval`, only to: run, sft"),
}
IN_DRY_RUNS = ("unknown environment", "too little disk", "tokenizer without a chat template")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "recipe.py").write_text(RECIPE.format(root=str(folder / "runs")))
    for name, changes in {
        "wrong_argument": {"args": {"lenght": 3}},
        "failing_environment": {"args": {"min_length": 9, "max_length": 3}},
        "ratio": {"ratio": "much"},
    }.items():
        entry = {"name": "reverse_text", "ratio": 1.0, "args": {}, **changes}
        (folder / f"{name}.json").write_text(json.dumps({"envs": [entry], "run": {"root": str(folder / "runs")}}))
    write_character_tokenizer(folder / "tokenizer")
    write_character_tokenizer(folder / "no_template")
    (folder / "no_template" / "chat_template.jinja").unlink()
    (folder / "bad.jsonl").write_text('{"question": "?"}\n')
    (folder / "broken.jsonl").write_text("{\n")
    (folder / "broken.parquet").write_text("no table")
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "a" * 1000, "completion": "b"}) + "\n")
    return folder


@pytest.fixture(scope="module")
def port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def launch(here: Path, text: str) -> subprocess.CompletedProcess[str]:
    words = text.split()
    if not any(word.startswith("--config=") for word in words):
        words.append(f"--config={here / 'recipe.py'}")
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def assert_told(here: Path, port: int, name: str, *more: str) -> None:
    text, says = (part.format(here=here, port=port) for part in BAD[name])
    begun = time.monotonic()
    done = launch(here, " ".join((text, *more)))
    assert time.monotonic() - begun < 5.0
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("launch: ") and done.stderr.count("\n") <= 2 and "Traceback" not in done.stderr
    assert not (here / "runs").exists()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_configuration_is_told_before_anything_starts(here, port, name):
    assert_told(here, port, name)


@pytest.mark.parametrize("name", IN_DRY_RUNS)
def test_a_dry_run_tells_it_too(here, port, name):
    assert_told(here, port, name, "--dry_run")


def test_a_disk_without_the_room_that_roles_would_wait_for_is_too_little(here, small_disk):
    """The run itself needs less than a MiB."""
    tiny = "--config.model.hidden_size=8 --config.model.num_hidden_layers=1 --config.model.intermediate_size=8"
    dry = f"{tiny} --config.model.head_dim=4 --config.run.root={small_disk} --config.run.name=run --dry_run"
    filling = fill(small_disk)
    os.truncate(filling, filling.stat().st_size - (30 << 20))
    done = launch(here, dry)
    assert done.returncode == 2 and "keep fewer, or choose another run.root" in done.stderr, done.stderr
    os.truncate(filling, filling.stat().st_size - (6 << 20))
    done = launch(here, dry)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("role", ["trainer", "orchestrator", "sampler", "env"])
def test_a_dry_run_of_a_role_starts_nothing(here, tmp_path, role):
    urls = "--config.sampler.urls=http://127.0.0.1:1 --config.orchestrator.address=tcp://127.0.0.1:2"
    rest = f"--config.environments.address=tcp://127.0.0.1:3 --config.run.root={tmp_path} --dry_run"
    done = launch(here, f"{role} {urls} {rest}")
    assert done.returncode == 0, done.stderr
    assert "trainer.platform = 'cpu'    # recipe" in done.stdout
    assert list(tmp_path.iterdir()) == []
