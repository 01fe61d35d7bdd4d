"""What each command does once its configuration is resolved. Every function returns an exit code."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.config import get
from intellect_jax.errors import UserError
from intellect_jax.monitor import watchdog
from intellect_jax.monitor.closing import closing_lines
from intellect_jax.monitor.console import Console, Progress
from intellect_jax.monitor.metrics import Metrics, read_metrics
from intellect_jax.monitor.summary import LAUNCHER, write_summary
from intellect_jax.parallel import hosts
from intellect_jax.transport.weights import WeightStore
from launch import addresses, heap, joining, preflight, preparation, reporting, roles, rundir, vllm_folder
from launch.arguments import Arguments
from launch.configuration import Resolved, resolve
from launch.dry_run import dry_run
from launch.exit_codes import DONE, FAILED
from launch.plan import main as planning
from launch.plan.compile import CompilationFailed
from launch.plan.targets import TARGETS
from launch.restarts import Death
from launch.supervisor import Supervisor

ALL_ROLES = ("trainer", "orchestrator", "sampler", "env")


def run(arguments: Arguments) -> int:
    """Every role on this machine until the run is done, then its summary."""
    resolved = resolve(arguments)
    return _train(arguments, resolved, ALL_ROLES if resolved.config.trainer.max_steps else ("trainer",))


def sft(arguments: Arguments) -> int:
    """Only the supervised steps: the trainer alone, no RL step. The main command continues the run later."""
    resolved = resolve(arguments, forced={"trainer.max_steps": 0})
    if resolved.config.sft.steps == 0:
        raise UserError("sft.steps=0: must be at least 1 for `launch sft`")
    return _train(arguments, resolved, ("trainer",))


def evaluate(arguments: Arguments) -> int:
    """One evaluation, in ``<run>/eval``: of the run's newest published version, or of what ``sampler.urls`` serves."""
    resolved = resolve(arguments, _evaluation_keys(resolve(arguments)))
    if not resolved.config.envs:
        raise UserError("envs=(): must name an environment, e.g. config.envs = (env('reverse_text'),)")
    roles_here = ("orchestrator", "sampler", "env")
    preflight.refuse(resolved, roles_here)
    if arguments.dry_run:
        return dry_run(resolved)
    with rundir.locked(resolved.run_dir):
        addresses.choose(resolved.config)
        rundir.set_aside(resolved.run_dir)
        code = _supervise(resolved, roles_here)
    for row in read_metrics(resolved.run_dir):
        if "eval/reward" in row:
            print("  ".join(f"{name} {value:g}" for name, value in row.items() if name.startswith("eval/")))
    return code


def _evaluation_keys(trained: Resolved) -> dict[str, Any]:
    """What an evaluation of a run changes in its configuration; raises UserError when there is nothing to evaluate."""
    keys = {"eval.only": True, "run.root": str(trained.run_dir), "run.name": "eval"}
    if (trained.run_dir / "tokenizer").is_dir():
        keys["tokenizer.path"] = str(trained.run_dir / "tokenizer")
    if not addresses.given(trained.config, "sampler.urls"):
        weights = trained.config.eval.weights or str(trained.run_dir / "weights")
        if WeightStore(weights).latest() is None:
            raise UserError(f"{weights}: no published weights to evaluate: train first, or give --config.eval.weights")
        keys["eval.weights"] = weights
    return keys


def export(arguments: Arguments) -> int:
    """A checkpoint as a Hugging Face folder."""
    resolved = resolve(arguments)
    out = Path(arguments.out) if arguments.out else resolved.run_dir / "export"
    if not any(folder.name.isdecimal() for folder in (resolved.run_dir / "checkpoints").glob("*")):
        raise UserError(f"{resolved.run_dir} has no checkpoint to export: train first, or give another run.name")
    preflight.refuse_unwritable("--out", out)
    if arguments.dry_run:
        return dry_run(resolved, write=False)
    os.environ |= roles.environment(resolved.config, "trainer")
    from launch.export import main  # only now: it imports JAX

    return main(resolved.config, resolved.run_dir, out, arguments.checkpoint)


def plan(arguments: Arguments) -> int:
    """What a training step takes on hardware that is not there."""
    resolved = resolve(arguments)
    if arguments.target not in TARGETS:
        raise UserError(f"--target={arguments.target}: must be one of {', '.join(TARGETS)}")
    if not arguments.devices:
        raise UserError("--devices: how many devices shall the trainer have? For example --devices=128")
    if arguments.dry_run:
        return dry_run(resolved, write=False)
    out = Path(arguments.out) if arguments.out else resolved.run_dir / "plan.json"
    preflight.refuse_unwritable("--out", out.parent)
    try:
        planning.plan(
            resolved.config,
            arguments.target,
            arguments.devices,
            out,
            search=arguments.search,
            fleet_devices=arguments.fleet_devices,
        )
    except CompilationFailed as error:
        print(f"launch: {error}", file=sys.stderr)
        return FAILED
    return DONE


def bench(arguments: Arguments) -> int:
    """The trainer's step on made-up batches. Neither data, environments nor a run directory are needed."""
    resolved = resolve(arguments)
    config = resolved.config
    _take_batch_shape(config)
    preflight.refuse_trainer(config)
    if arguments.dry_run:
        return dry_run(resolved, write=False)
    os.environ |= roles.environment(config, "trainer")
    heap.keep_on_a_cpu(config)
    from launch.bench.main import main  # only now: it imports JAX

    return main(config)


def vllm(arguments: Arguments) -> int:
    """The folder and the command of vLLM servers that the user starts, and names in ``sampler.urls``."""
    resolved = resolve(arguments)
    config = resolved.config
    if config.sampler.backend != "vllm":
        raise UserError(f"sampler.backend={config.sampler.backend}: must be vllm for `launch vllm`")
    if not arguments.out:
        raise UserError("--out: in which folder? The server's machine must see it, for example --out=vllm_server")
    out = Path(arguments.out).absolute()
    preflight.refuse_unwritable("--out", out)
    if arguments.dry_run:
        return dry_run(resolved, write=False)
    print(vllm_folder.write(config, out))
    return DONE


def _take_batch_shape(config: ConfigDict) -> None:
    """Leaves the trainer one batch shape: what ``bench`` asks for, the largest of the config where it asks for none."""
    asked, trainer = config.bench, config.trainer
    trainer.microbatch_buckets = (asked.microbatches or max(trainer.microbatch_buckets),)
    trainer.seq_buckets = (asked.length or max(trainer.seq_buckets),)
    trainer.rows = asked.rows or trainer.rows


def role(arguments: Arguments) -> int:
    """One role in this process: what the supervisor, Slurm or Kubernetes starts."""
    if arguments.join:
        return joining.join(arguments)
    resolved = resolve(arguments)
    config = resolved.config
    missing = [name for name in _needed_addresses(arguments.command, config) if not get(config, name)]
    if missing:
        raise UserError(f"{missing[0]} is empty: a role started alone must be told, as --config.{missing[0]}=…")
    index = _own_index(arguments, config)
    _refuse_taken_by_others(arguments.command, config, index)
    if arguments.dry_run:
        preflight.refuse(resolved, (arguments.command,))
        return dry_run(resolved, write=False)
    preparation.prepare_tokenizer(config, resolved.run_dir)
    return roles.run(arguments.command, config, resolved.run_dir, index)


def _own_index(arguments: Arguments, config: ConfigDict) -> int | None:
    """Which process of its role this is, None where the role has only one; raises UserError when there is no such."""
    if arguments.command == "trainer":
        return hosts.own_index(config.distributed, arguments.index, os.environ)
    if arguments.command not in roles.SERVICES:
        return None
    found = hosts.cluster_index(os.environ) if arguments.index is None else arguments.index
    index = found or 0
    if arguments.command == "sampler" and index >= len(config.sampler.urls):
        raise UserError(f"--index={index}: sampler.urls has {len(config.sampler.urls)} entries")
    return index


def _refuse_taken_by_others(role: str, config: ConfigDict, index: int | None) -> None:
    """Raises UserError when the user gave this role an address on which it cannot listen."""
    if role == "orchestrator":
        addresses.refuse_taken(config)
    elif role == "trainer" and not index:
        addresses.refuse_taken_by_weights(config)
    elif role == "sampler" and addresses.given(config, "sampler.urls"):
        addresses.refuse_unlistenable("sampler.urls", config.sampler.urls[index or 0])


def _needed_addresses(role: str, config: ConfigDict) -> list[str]:
    weights = ["weights.address"] if config.weights.transport != "folder" and not config.eval.only else []
    if role == "trainer":
        return ["orchestrator.address", *weights] if config.trainer.max_steps else []
    needed = {"sampler": ["sampler.urls"], "env": ["environments.address"]}
    return needed.get(role, ["orchestrator.address", "environments.address", "sampler.urls", *weights])


def _train(arguments: Arguments, resolved: Resolved, wanted: tuple[str, ...]) -> int:
    """Starts or resumes a run. Whatever the user has to put right is told before an earlier run is moved away."""
    if not arguments.fresh:
        rundir.refuse_changes(resolved.config, resolved.run_dir)
    preflight.refuse(resolved, wanted)
    if arguments.dry_run:
        return dry_run(resolved)
    with rundir.locked(resolved.run_dir):
        addresses.choose(resolved.config)
        if arguments.fresh and (previous := rundir.set_aside(resolved.run_dir)):
            print(f"The earlier run is now {previous}")
        with reporting.kept(resolved.run_dir):
            code = _supervise(resolved, wanted)
        summary = write_summary(resolved.run_dir)
        if problem := reporting.write_last(resolved.run_dir):
            print(problem)
    if code == DONE or summary["steps"] or summary["sft_steps"]:
        next_command = _next_command(arguments, resolved.run_dir, code)
        print("\n".join(closing_lines(summary, resolved.run_dir, next_command, code == DONE)))
    return code


def _supervise(resolved: Resolved, wanted: tuple[str, ...]) -> int:
    """Prepares the run directory, runs the roles to their end and notes start, deaths and end among the metrics."""
    config, run_dir = resolved.config, resolved.run_dir
    preparation.prepare_tokenizer(config, run_dir)
    specs = roles.specs(config, rundir.write_config(config, run_dir), wanted)
    metrics = Metrics(run_dir, LAUNCHER, tensorboard=config.monitor.tensorboard)
    console = Console(Progress(config.sft.steps, config.trainer.max_steps), run_dir, sys.stdout)

    def on_death(name: str, death: Death) -> None:
        with contextlib.suppress(OSError):  # a full disk, of which it may have died
            values = {f"deaths/{name}": 1, "process/exit_code": death.exit_code, "process/lived_s": death.lived}
            metrics.log(None, values)

    console.say(f"{run_dir}: {', '.join(spec.name for spec in specs)}; logs in {run_dir / 'logs'}")
    metrics.log(None, {"run/started": 1})
    supervisor = Supervisor(
        specs,
        run_dir / "logs",
        stop_timeout=config.launch.stop_timeout,
        heartbeats=run_dir / watchdog.FOLDER,
        heartbeat_timeout=config.launch.heartbeat_timeout,
        say=console.say,
        tick=console.tick,
        on_death=on_death,
    )
    try:
        return supervisor.run()
    finally:
        console.finish()
        metrics.log(None, {"run/ended": 1})
        metrics.close()


def _next_command(arguments: Arguments, run_dir: Path, code: int) -> str:
    """What a person most likely wants to do after a run."""
    if code == DONE and arguments.command == "run":
        return shlex.join(["python", "-m", "launch", "eval", f"--config={run_dir / 'config.json'}"])
    changes = [f"--config.{name}={value}" for name, value in arguments.overrides.items()]
    again = ["python", "-m", "launch", *([arguments.command] if code != DONE and arguments.command != "run" else [])]
    why = "goes on where this stopped" if code != DONE else "RL from here"
    return shlex.join([*again, f"--config={arguments.config}", *changes]) + f"   # {why}"
