"""GLM-4.5-Air's shape, RL at 65,536 context on 128 devices; the argument is the number of layers."""

from intellect_jax.config import default_config, env
from tests.launch.plan.test_model_flops import GLM45_AIR


def get_config(arg: str | None = None):
    config = default_config()
    config.envs = (env("reverse_text"),)
    config.model.update(GLM45_AIR)
    config.model.num_hidden_layers = int(arg or 46)
    config.parallel.fsdp, config.parallel.expert, config.parallel.context = 8, 8, 2
    trainer, orchestrator, sampler = config.trainer, config.orchestrator, config.sampler
    trainer.rows, trainer.seq_buckets, trainer.microbatch_buckets, trainer.remat = 64, (65536,), (64,), "full"
    orchestrator.batch_size, orchestrator.max_new_tokens, orchestrator.max_inflight_groups = 4096, 64512, 512
    sampler.max_len, sampler.prefill_buckets = 65536, (65536,)
    return config
