"""What it costs to bring a new version of the policy to a sampler: in full, and as what changed.

    python benchmarks/weight_sync.py [--models=smollm2,1.5b] [--smollm2=models/SmolLM2-135M-Instruct] [--out=FILE]

For each model, in a process of its own: steps of AdamW at 1e-6 (SmolLM2: real gradients of a text; the 1.5 B shape:
random ones), a version after each through the trainer's own publisher, in bfloat16, and the last one in full as well.
A reader fetches it over HTTP through a link of 1 Gbit/s, as a sampler does, and puts it on the device. Then a step at
3e-4. At last, in another process, our sampler's engine takes the last delta, and the full version, under requests.
The last line is JSON: bytes, and seconds to publish, to transfer (verified and in host memory), to apply (put on the
device, while the sampler samples on), and of the pause.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.slow_link import SlowLink
from benchmarks.standstill import pauses
from intellect_jax.bridge.huggingface import load_config
from intellect_jax.bridge.load import load_pretrained
from intellect_jax.bridge.policy import Policy
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.config import default_config
from intellect_jax.models import transformer
from intellect_jax.models.config import TRAITS, ModelConfig
from intellect_jax.models.transformer import Params
from intellect_jax.sampler.loading import placed
from intellect_jax.trainer.publish import Publisher
from intellect_jax.transport.reading import hash_of
from intellect_jax.transport.relay.intake import Intake
from intellect_jax.transport.relay.origin import Origin
from intellect_jax.transport.relay.server import Server
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

ROOT = Path(__file__).parents[1]
GBIT = 1e9 / 8  # bytes/s
STEPS = {"smollm2": 20, "1.5b": 3, "tiny": 3}
RUNNING = {"smollm2": 16, "1.5b": 2, "tiny": 4}  # requests at a pause, computed again in it
ROWS, LENGTH = 2, 128  # of a batch of SmolLM2
_DENSE = {"family": "llama", **TRAITS["llama"], "attention_bias": False, "tie_word_embeddings": True}
SHAPES = {
    # Qwen2.5-1.5B's sizes
    "1.5b": ModelConfig(**_DENSE, vocab_size=151936, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12,
                        num_key_value_heads=2, head_dim=128, intermediate_size=8960),
    "tiny": ModelConfig(**_DENSE, vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=16, intermediate_size=128),
}  # fmt: skip
Move = Callable[[Params, float], Params]  # one step at a learning rate; the argument is used up


def real_steps(cfg: ModelConfig, params: Params, folder: Path) -> Move:
    """AdamW on the next-token loss of this repository's documentation."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    tokens = np.array(load_tokenizer(folder).encode(text), np.int32)
    optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=1.0, b2=0.95, weight_decay=0.0)
    state = optimizer.init(params)
    rng = np.random.default_rng(0)

    def loss(params: Params, tokens: jax.Array) -> jax.Array:
        inputs, segments = tokens[:, :-1], jnp.ones_like(tokens[:, :-1])
        positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
        hidden = transformer.forward(params, cfg, inputs, positions, segments).hidden
        logits = transformer.logits(params, cfg, hidden)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, tokens: jax.Array) -> tuple[Params, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, tokens), state, params)
        return optax.apply_updates(params, updates), state

    def move(params: Params, rate: float) -> Params:
        nonlocal state
        starts = rng.integers(0, len(tokens) - LENGTH - 1, ROWS)
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        params, state = step(params, state, np.stack([tokens[s : s + LENGTH + 1] for s in starts]))
        return params

    return move


def random_steps(seed: int = 0) -> Move:
    """Moves as large as AdamW's under gradients that are noise: their standard deviation is a quarter of the rate."""
    keys = iter(jax.random.split(jax.random.key(seed), 1000))

    @partial(jax.jit, donate_argnums=0)
    def moved(leaf: jax.Array, key: jax.Array, rate: jax.Array) -> jax.Array:
        return leaf + 0.25 * rate * jax.random.normal(key, leaf.shape)

    return lambda params, rate: jax.tree.map(lambda leaf: moved(leaf, next(keys), jnp.float32(rate)), params)


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Trial:
    """A model that is trained, published as deltas where that pays and in full, and read over the link."""

    def __init__(self, name: str, smollm2: Path, work: Path):
        self.name, self.work = name, work
        if name == "smollm2":
            self.policy = load_pretrained(smollm2)
            self.move = real_steps(self.policy.config, self.policy.params, smollm2)
        else:
            cfg = SHAPES[name]
            self.policy = Policy(transformer.init_params(cfg, 0), cfg)
            self.move = random_steps()
        config = default_config()
        self.stores = {kind: WeightStore(work / kind, 100) for kind in ("delta", "full")}
        self.publishers = {}
        for kind, store in self.stores.items():
            config.weights.deltas = kind == "delta"
            self.publishers[kind] = Publisher(config, store)

    def step(self, rate: float) -> None:
        params = self.move(self.policy.params, rate)
        self.policy = Policy(params, self.policy.config)

    def publish(self, kind: str, number: int) -> float:
        jax.block_until_ready(self.policy.params)
        return seconds(lambda: self.publishers[kind].publish(Version(0, number), self.policy))

    def fetch(self, reader: Intake, kind: str, number: int, port: int) -> float:
        manifest = self.stores[kind].manifest_path(Version(0, number))
        url = f"http://127.0.0.1:{port}/{manifest.parent.name}/{manifest.name}"
        return seconds(lambda: reader.advance(url))

    def place(self, reader: Intake) -> float:
        tensors, cfg = reader.mirror.tensors, self.policy.config
        return seconds(lambda: jax.block_until_ready(placed(tensors, cfg, "bfloat16")))


def measure(trial: Trial, steps: int, rate: float = 1e-6) -> dict[str, Any]:
    """Everything of one model; see the module."""
    shares: list[float] = []
    out: dict[str, Any] = {"model": trial.name, "parameters": sum(x.size for x in jax.tree.leaves(trial.policy.params))}
    with linked(trial.stores["delta"]) as link:
        reader = Intake(trial.work / "cache-delta", "", "")
        trial.publish("delta", 0)
        full_bytes = trial.stores["delta"].nbytes(Version(0, 0))[0]
        trial.fetch(reader, "delta", 0, link.port)
        for number in range(1, steps + 1):
            trial.step(rate)
            publish_s = trial.publish("delta", number)
            written, delta_bytes = trial.stores["delta"].nbytes(Version(0, number))
            assert delta_bytes and not written, f"{trial.name}: step {number} was published in full"
            shares.append(delta_bytes / full_bytes)
            print(f"{trial.name}: step {number}: {shares[-1]:.2%} of a full version, {publish_s:.2f} s", flush=True)
            carried = link.carried
            transfer_s = trial.fetch(reader, "delta", number, link.port)
        out["delta"] = entry(link.carried - carried, publish_s, transfer_s, trial.place(reader))
        trial.step(3e-4)
        trial.publish("delta", steps + 1)
        out["full_at_3e-4"] = trial.stores["delta"].nbytes(Version(0, steps + 1))[0] > 0
        trial.fetch(reader, "delta", steps + 1, link.port)
        right = hashes(reader)
        reader.close()
    del reader, trial.publishers["delta"]  # two mirrors of the large shape would not fit beside its parameters
    with linked(trial.stores["full"]) as link:
        reader = Intake(trial.work / "cache-full", "", "")
        publish_s = trial.publish("full", steps + 1)
        transfer_s = trial.fetch(reader, "full", steps + 1, link.port)
        out["full"] = entry(link.carried, publish_s, transfer_s, trial.place(reader))
        out["identical"] = hashes(reader) == right
        reader.close()
    out["delta_share"] = {"first": shares[0], "last": shares[-1]}
    cost = {kind: out[kind]["publish_s"] + out[kind]["transfer_s"] for kind in ("full", "delta")}
    out["ratio"] = cost["delta"] / cost["full"]
    return out


def entry(nbytes: int, publish_s: float, transfer_s: float, apply_s: float) -> dict[str, float]:
    return {"bytes": nbytes, "publish_s": publish_s, "transfer_s": transfer_s, "apply_s": apply_s}


def hashes(reader: Intake) -> dict[str, str]:
    return {name: hash_of(tensor) for name, tensor in reader.mirror.tensors.items()}


@contextmanager
def linked(store: WeightStore) -> Iterator[SlowLink]:
    """The store, served over a link of 1 Gbit/s."""
    server = Server(Origin(store), "127.0.0.1", 0, token="")
    with SlowLink(server.port, GBIT) as link:
        yield link
    server.close()


def results(names: list[str], smollm2: Path) -> Iterator[dict[str, Any]]:
    """Each model in processes of its own, so that one's memory is not the other's."""
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            same = [f"--smollm2={smollm2}", f"--work={work}"]
            found = last_line(f"--one={name}", *same)
            for kind, pause_s in last_line(f"--pauses={name}", *same).items():
                found[kind]["pause_s"] = pause_s
            yield found | {"running_at_pause": RUNNING[name]}


def last_line(*options: str) -> dict[str, Any]:
    """Of this program with other options."""
    argv = [sys.executable, "-m", "benchmarks.weight_sync", *options]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line
    if process.wait():
        sys.exit(process.returncode)
    return json.loads(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="smollm2,1.5b")
    parser.add_argument("--smollm2", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--one", help="this model, in this process; its versions stay in --work")
    parser.add_argument("--pauses", help="those of this model, in this process, by the versions in --work")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Trial(options.one, options.smollm2, options.work), STEPS[options.one])), flush=True)
        return
    if name := options.pauses:
        cfg = load_config(options.smollm2) if name == "smollm2" else SHAPES[name]
        print(json.dumps(pauses(WeightStore(options.work / "delta"), cfg, RUNNING[name])), flush=True)
        return
    found = list(results(options.models.split(","), options.smollm2.absolute()))
    line = json.dumps({"link_bytes_per_s": GBIT, "models": found})
    if options.out:
        options.out.write_text(json.dumps(json.loads(line), indent=2) + "\n")
    print(line)


if __name__ == "__main__":
    main()
