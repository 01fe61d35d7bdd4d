"""The whole loop on one GPU: trainer and JAX engine share it, in bfloat16 and with flash attention.

    pip install 'intellect-jax[cuda]' tokamax
    python -m launch --config=configs/debug_gpu.py --fresh

The demo of configs/debug_cpu.py with a policy of 77 M parameters, 14 M of them active, for an H100 or H200: supervised
on sloppy demonstrations first, then RL on the reward. Not yet run on a GPU: expect minutes, and a reward that rises
from about 0.5 as the demo's does. On a machine without a GPU the same loop runs, slowly and smaller:

    python -m launch --config=configs/debug_gpu.py:cpu --fresh
"""

from intellect_jax.config import default_config, env


def get_config(arg: str | None = None):
    config = default_config()
    cpu = arg == "cpu"
    config.run.name = "debug_gpu-cpu" if cpu else ""
    platform = "cpu" if cpu else "cuda"

    config.envs = (env("reverse_text", min_length=8, max_length=14, eval_min_length=12, eval_max_length=14),)

    model = config.model
    model.hidden_size = 64 if cpu else 512
    model.num_hidden_layers = 2 if cpu else 8
    model.num_attention_heads = 2 if cpu else 8
    model.num_key_value_heads = 2
    model.head_dim = 64
    model.intermediate_size = 128 if cpu else 1536
    model.moe_intermediate_size = 32 if cpu else 256
    model.n_routed_experts = 8 if cpu else 32
    model.num_experts_per_tok = 2 if cpu else 4
    model.rope_theta = 100.0  # contexts are short
    model.initializer_range = 0.02
    model.compute_dtype = "bfloat16"
