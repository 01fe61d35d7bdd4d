"""The demo with two real vLLM servers on this CPU in place of the JAX engine (`make vllm` first).

    python -m launch --config=configs/debug_vllm_cpu.py --fresh

Experts are not replayed: vLLM tells those that it chose on GPUs alone.
"""

from configs import debug_cpu


def get_config(arg: str | None = None):
    config = debug_cpu.get_config(arg)
    sampler = config.sampler
    sampler.backend = "vllm"
    sampler.python = ".venv-vllm/bin/python"
    sampler.platform = "cpu"
    sampler.num_servers = 2
    sampler.slots = 32
    config.trainer.router_replay = False
    return config
