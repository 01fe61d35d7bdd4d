"""Both sides of the guard with a tiny policy: answers that some weights wrote, packed for a trainer that has others."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.config import default_config
from intellect_jax.data.packing import pack
from intellect_jax.parallel.mesh import make_mesh, sharding
from intellect_jax.parallel.parts import own_share
from intellect_jax.trainer.guard.guard import Guard
from intellect_jax.trainer.guard.programs import Programs
from intellect_jax.trainer.setup import Trainer, optimizer_and_state
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import PackedBatch, Sample, Version
from tests.policies import SMALL, plain_logits, quick_jit, random_params

ROWS, LENGTH, PROMPT = 16, 64, 6
COUNT = 32  # answers
LONGEST = 30  # tokens of prompt and answer

_logits = quick_jit(plain_logits(SMALL))


def scores(params: Any, tokens_BS: np.ndarray) -> np.ndarray:
    """Float32 logits [B, S, V]."""
    positions = np.broadcast_to(np.arange(tokens_BS.shape[1]), tokens_BS.shape)
    return np.asarray(_logits(params, tokens_BS, positions, np.ones_like(tokens_BS)))


@lru_cache
def answers(seed: int = 0, temperature: float = 1.0) -> np.ndarray:
    """Tokens [COUNT, LONGEST] that ``random_params(SMALL)`` wrote after random prompts."""
    rng = np.random.default_rng(seed)
    tokens_BS = rng.integers(0, SMALL.vocab_size, (COUNT, LONGEST)).astype(np.int32)
    for at in range(PROMPT, LONGEST):
        noise = rng.gumbel(size=(COUNT, SMALL.vocab_size))
        tokens_BS[:, at] = (scores(random_params(SMALL), tokens_BS)[:, at - 1] / temperature + noise).argmax(-1)
    return tokens_BS


def logprobs(params: Any, tokens_BS: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """What a server with these weights reports, [B, S]; 0 for the first token."""
    log_p = jax.nn.log_softmax(jnp.asarray(scores(params, tokens_BS)) / temperature)
    chosen = np.take_along_axis(np.asarray(log_p)[:, :-1], tokens_BS[:, 1:, None], axis=-1)[..., 0]
    return np.pad(chosen, ((0, 0), (1, 0)))


def batch(
    tokens_BS: np.ndarray, sampler_BS: np.ndarray, *, temperature: float = 1.0, step: int = 1, stale: Any = None
) -> PackedBatch:
    """The answers packed, of lengths 20 to LONGEST. ``stale`` [B, S]: of these tokens the version before the newest."""
    samples = []
    for i, (tokens, sampler) in enumerate(zip(tokens_BS, sampler_BS, strict=True)):
        length = 20 + i % 11
        mask = np.arange(length) >= PROMPT
        versions = np.where(mask, step - 1 - (0 if stale is None else stale[i, :length]), -1).astype(np.int32)
        advantages = mask.astype(np.float32)
        given = np.where(mask, sampler[:length], 0).astype(np.float32)
        samples.append(Sample(tokens[:length], mask, advantages, given, versions, temperature))
    return pack(
        samples,
        step,
        rows=ROWS,
        seq_buckets=(LENGTH,),
        microbatch_buckets=(2,),
        routed_shape=None,
        current_version=step - 1,
    )


@lru_cache
def config(**changes: Any):
    made = default_config()
    made.model.compute_dtype = made.sampler.dtype = made.weights.dtype = "float32"
    made.trainer.update({"rows": ROWS, "seq_buckets": (LENGTH,), "microbatch_buckets": (2,), "router_replay": False})
    for name, value in changes.items():
        group, _, key = name.partition("__")
        made[group][key] = value
    return made


@lru_cache
def trainer(**changes: Any) -> Trainer:
    made = config(**changes)
    mesh = make_mesh(made.parallel)
    optimizer, state = optimizer_and_state(made, SMALL, mesh)
    shape = (1, ROWS, LENGTH)
    share = own_share(sharding(mesh, None, "rows", "sequence"), shape, 0)
    return Trainer(made, SMALL, mesh, optimizer, {}, state, share)


def guard(run_dir: Path, published: dict[Version, Any], make: Any = None, **changes: Any) -> Guard:
    """A guard that is ready, in a run that published these weights; ``make`` another than that of one device."""
    write_character_tokenizer(run_dir / "tokenizer")
    store = WeightStore(run_dir / "weights", 10)
    for version, params in published.items():
        store.publish(version, to_hf(params, SMALL, "float32"))
    return make(changes) if make else Guard(trainer(**changes), run_dir, programs())


@lru_cache
def programs() -> Programs:
    """One set for all tests: what they change of the configuration is nothing that is compiled."""
    made = Programs(trainer())
    made.prepare()
    return made


def on_device(params: Any) -> Any:
    return jax.tree.map(jax.device_put, params, _shardings())


def _shardings() -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, trainer().abstract_state.params)


def with_wrong_expert(params: Any, layer: int, expert: int) -> Any:
    """One expert of one MoE layer (counted among these) has its outputs' order reversed."""
    down = params["moe_layers"]["moe"]["experts"]["down"].copy()
    down[layer, expert] = down[layer, expert, :, ::-1]
    return replaced(params, down=down)


def replaced(params: Any, **experts: Any) -> Any:
    """The same with other arrays of the routed experts."""
    stack = params["moe_layers"]
    moe = {**stack["moe"], "experts": {**stack["moe"]["experts"], **experts}}
    return {**params, "moe_layers": {**stack, "moe": moe}}


def moved(params: Any, by: float, seed: int = 1) -> Any:
    """Every parameter changed a little, as by some steps."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(partial(_moved, rng, by), params)


def _moved(rng: np.random.Generator, by: float, leaf: np.ndarray) -> np.ndarray:
    return (leaf + by * rng.normal(size=leaf.shape)).astype(np.float32)


def findings(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "guard.json").read_text())
