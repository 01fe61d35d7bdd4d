"""One RL step of ours against transformers + PyTorch: same weights, tokens and dtype, in turn on the same machine.

    python benchmarks/trainer_vs_torch.py [--torch_python=.venv-oracle/bin/python] [--shape=cpu15m|toy|glm_block]
        [--rounds=7] [--steps=3] [--out=FILE.json]

A step is: forward, log-probabilities of the trained tokens, masked importance ratios (IcePop), backward, clipping,
AdamW. PyTorch first tries what the shape names (experts implementation, torch.compile) and goes on with the fastest.
Then both take turns; the ratio is the median over rounds of their seconds a step. Ours computes entropies, too. Both
must say the same loss and gradient norm on the same weights, or there is no result. The last line is JSON, with what
share of a dense matrix product's rate, measured here, and of the datasheet's each side's model FLOPs are.

glm_block, for a GPU: a dense and a mixture-of-experts layer of GLM-4.5-Air, bfloat16 over float32 masters and moments;
4 microbatches of a packed row of 16,384 tokens. A GPU holds one side at a time: every round starts both again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import processor
from torch_race.shapes import SHAPES, Shape
from torch_race.sides import ROOT, Side, ours, torch_peer

from intellect_jax.config import default_config, to_plain
from intellect_jax.models.flops import Work, step_flops
from launch.bench.batches import made_up_batch

Json = dict[str, Any]
ORACLE = ROOT / ".venv-oracle" / "bin" / "python"


def prepare(shape: Shape, work: Path) -> Work:
    """Writes what both sides read: the model's folder, the batch, the hyper-parameters. Returns what is to be done."""
    from intellect_jax.bridge import Policy, save_pretrained
    from intellect_jax.models.transformer import init_params

    save_pretrained(Policy(init_params(shape.model, 0), shape.model), work / "model", dtype="float32")
    batch = made_up_batch(np.random.default_rng(0), shape.batch, shape.model, segment=shape.segment)
    np.savez(work / "batch.npz", **batch.arrays)
    config = our_config(shape, work)
    optimizer, loss = config.trainer.optimizer, config.algorithm.icepop
    hyper = {name: optimizer[name] for name in ("learning_rate", "b1", "b2", "eps", "clip_norm")}
    hyper |= {"alpha": loss.alpha, "beta": loss.beta, "dtype": shape.dtype, "platform": shape.platform}
    (work / "work.json").write_text(json.dumps(hyper))
    (work / "config.json").write_text(json.dumps(to_plain(config)))
    return Work.of_batch(batch.arrays)


def our_config(shape: Shape, work: Path):
    config = default_config()
    config.model.path = str(work / "model")
    config.model.compute_dtype = shape.dtype
    microbatches, rows, length = shape.batch
    config.trainer.update(
        {"microbatch_buckets": (microbatches,), "rows": rows, "seq_buckets": (length,), "router_replay": False}
    )
    config.trainer.optimizer.learning_rate = 1e-5
    for name, value in shape.ours.items():
        group, _, last = name.rpartition(".")
        config[group][last] = value
    return config


def first_step(side: Side) -> Json:
    """Starts a side and takes its first step, which compiles, and one more."""
    side.start()
    first = side.steps(1)
    again = side.steps(1)
    return {"loss": first["losses"][0], "norm": first["norms"][0], "second_loss": again["losses"][0]}


def refuse_difference(shape: Shape, mine: Json, theirs: Json, name: str) -> None:
    """Ends the program where the two sides do not compute the same step."""
    loss = max(abs(mine[key] - theirs[key]) for key in ("loss", "second_loss"))
    norm = abs(mine["norm"] - theirs["norm"]) / theirs["norm"]
    print(f"{name}: losses differ by {loss:.1e}, gradient norms by {norm:.1e}", flush=True)
    if not (loss <= shape.loss_tolerance and norm <= shape.norm_tolerance):
        raise SystemExit(f"not the same step: ours {mine}, {name} {theirs}")


def fastest_peer(shape: Shape, peers: list[Side], mine: Json, steps: int) -> tuple[Side, Json]:
    """Tries every way of PyTorch, checks it against ours, and keeps the fastest running."""
    tried: Json = {}
    best: Side | None = None
    for peer in peers:
        try:
            theirs = first_step(peer)
        except RuntimeError as error:
            print(f"{peer.name}: {error}", flush=True)
            tried[peer.name] = None
            continue
        refuse_difference(shape, mine, theirs, peer.name)
        tried[peer.name] = min(peer.steps(steps)["seconds"])
        print(f"{peer.name}: {shape.tokens / tried[peer.name]:,.0f} tokens/s", flush=True)
        if best is None or tried[peer.name] < tried[best.name]:
            best, peer = peer, best or peer
        if peer is not best or not shape.resident:
            peer.stop()
    if best is None:
        raise SystemExit("no way of PyTorch works here: see above")
    return best, tried


def take_turns(shape: Shape, sides: tuple[Side, Side], rounds: int, steps: int) -> list[list[Json]]:
    """For each side what it said of each round; the side that begins changes."""
    said: list[list[Json]] = [[], []]
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            side = sides[which]
            if not shape.resident:
                side.start()
                side.steps(2)
            said[which].append(side.steps(steps))
            if not shape.resident:
                side.stop()
        a, b = (shape.tokens / median(answers[-1]["seconds"]) for answers in said)
        print(f"round {number}: ours {a:,.0f}, torch {b:,.0f} tokens/s, ratio {a / b:.2f}", flush=True)
    return said


def figures(shape: Shape, work: Work, said: list[list[Json]], rates: Json) -> Json:
    """Medians over the rounds; ``rates``: FLOP/s over which model FLOPs are utilised, by name, None where unknown."""
    seconds = [[median(answer["seconds"]) for answer in answers] for answers in said]
    flops = step_flops(shape.model, work)
    ratios = [theirs / mine for mine, theirs in zip(*seconds, strict=True)]
    found: Json = {"ratio": round(median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    for name, times, answers in zip(("ours", "torch"), seconds, said, strict=True):
        found[name] = {
            "tokens_per_s": round(shape.tokens / median(times), 1),
            "step_s": round(median(times), 4),
            "model_flops_per_s": round(flops / median(times)),
            **{f"mfu_{rate}": per_s and round(flops / median(times) / per_s, 4) for rate, per_s in rates.items()},
            "peak_bytes": max(answer["peak_bytes"] for answer in answers),
        }
    found["ours"]["recompilations"] = max(answer["recompilations"] for answer in said[0])
    return found | {"model_flops_per_step": flops, "tokens_per_step": shape.tokens}


def race(shape: Shape, python: str, work: Path, rounds: int, steps: int) -> Json:
    todo = prepare(shape, work)
    mine = ours(work, shape.platform)
    peers = [torch_peer(python, work, *peer) for peer in shape.peers]
    try:
        first = first_step(mine)
        if not shape.resident:
            mine.stop()
        best, tried = fastest_peer(shape, peers, first, steps)
        said = take_turns(shape, (mine, best), rounds, steps)
        rates = {rate: mine.about[f"{rate}_flops_per_s"] for rate in ("measured_matmul", "datasheet")}
        found = figures(shape, todo, said, rates)
    finally:
        for side in (mine, *peers):
            side.stop()
    return found | {
        **{f"{rate}_flops_per_s": per_s for rate, per_s in rates.items()},
        "peer": best.name,
        "peers_step_s": {name: seconds and round(seconds, 4) for name, seconds in tried.items()},
        "device": mine.about["device"],
        "machine": processor(),
        "python": platform.python_version(),
        "versions": mine.about["versions"] | best.about["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", default=str(ORACLE), help="interpreter that has PyTorch and transformers")
    parser.add_argument("--shape", choices=SHAPES, default="cpu15m", help="glm_block needs a GPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of each side in a round")
    parser.add_argument("--out", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    if shutil.which(arguments.torch_python) is None:
        sys.exit(f"--torch_python={arguments.torch_python}: no such interpreter; `make oracle` makes one")
    with tempfile.TemporaryDirectory() as folder:
        shape = SHAPES[arguments.shape]
        found = race(shape, arguments.torch_python, Path(folder), arguments.rounds, arguments.steps)
    line = json.dumps({"shape": arguments.shape, **found})
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
