"""``python -m launch``: the command line. Nothing here imports JAX, so that mistakes are told at once."""

from __future__ import annotations

import os
import sys

from intellect_jax.errors import UserError
from launch import arguments as command_line
from launch import commands
from launch.exit_codes import DONE, FAILED, WRONG_INPUT

USAGE = """\
python -m launch --config=FILE.py[:arg] [--config.key=value …] [--fresh] [--dry_run]
    every role on this machine, supervised: SFT if asked for, RL, evaluation, export

python -m launch sft     --config=…    only the supervised steps
python -m launch eval    --config=…    evaluate the run's newest version, or the servers of sampler.urls
python -m launch export  --config=… [--checkpoint=STEP] [--out=FOLDER]    a checkpoint as a Hugging Face folder
python -m launch plan    --config=… --devices=N --target=h100|h200|b200|v5p|v6e|cpu [--search] [--fleet_devices=N]
    [--out=FILE]    compile the step for hardware that is not there: memory, FLOPs, collectives, time, what bounds it
python -m launch bench   --config=…    the trainer's speed and memory on made-up data, as JSON lines
python -m launch vllm    --config=… --out=FOLDER    what a vLLM server of your own needs, and its command line
python -m launch trainer|orchestrator|sampler|env --config=… [--index=N]   one role, here
    Slurm, Kubernetes and several trainer processes: docs/multi_host.md
python -m launch sampler --join=RUN_DIRECTORY    one more sampler for a run that goes on, until Ctrl-C

--config may be a JSON file, too. A run that exists goes on; --fresh starts it anew and keeps the old one as
NAME.previous. --dry_run prints the configuration with the origin of each changed key, and starts nothing.
Every key, with its default and meaning: intellect_jax/config/keys."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns 0 when done, 2 when the user's configuration or input is wrong, 1 otherwise."""
    try:
        arguments = command_line.parse(sys.argv[1:] if argv is None else argv)
        if arguments.help:
            print(USAGE)
            return DONE
        return _command(arguments)
    except UserError as error:
        print(f"launch: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:  # before the supervisor took over
        print("launch: interrupted", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # whoever read our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _command(arguments: command_line.Arguments) -> int:
    by_name = {
        "run": commands.run,
        "sft": commands.sft,
        "eval": commands.evaluate,
        "export": commands.export,
        "plan": commands.plan,
        "bench": commands.bench,
        "vllm": commands.vllm,
    }
    return by_name.get(arguments.command, commands.role)(arguments)


if __name__ == "__main__":
    sys.exit(main())
