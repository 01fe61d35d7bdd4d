"""INTELLECT-3's reinforcement learning of GLM-4.5-Air (arXiv 2512.16144): 106 B parameters, 12 B of them active.

    python -m launch plan --config=configs/glm45_air_rl.py --devices=128 --target=h200 --fleet_devices=352
    python -m launch trainer|orchestrator|sampler|env --config=configs/glm45_air_rl.py --config.model.path=FOLDER …

Hardware: 480 H200s, 128 for the trainer and 352 for the fleet, on nodes that share a file system. The published run
took about 1,500 s a step and ended at AIME 2024 90.8, AIME 2025 88.0 and LiveCodeBench v6 69.3. Nothing here has run at
that size: the keys are the report's, the mesh is this project's own choice, and the environments are stand-ins, as
those of the report are no part of it. ``model.path`` is the folder that configs/glm45_air_sft.py ends with; without
one, the shape below with fresh weights is what ``plan`` and ``bench`` look at.
"""

from intellect_jax.config import default_config, env


def get_config(arg: str | None = None):
    config = default_config()
    config.seed = int(arg.removeprefix("seed=")) if arg else 0

    config.envs = (env("reverse_words"),)  # a stand-in: mathematics, code, science, logic, agents

    model = config.model  # of GLM-4.5-Air, where model.path gives none
    model.vocab_size = 151552
    model.hidden_size = 4096
    model.num_hidden_layers = 46
    model.num_attention_heads = 96
    model.num_key_value_heads = 8
    model.head_dim = 128
    model.intermediate_size = 10944
    model.moe_intermediate_size = 1408
    model.n_routed_experts = 128
    model.num_experts_per_tok = 8
    model.rope_theta = 1e6
    model.max_position_embeddings = 131072

    algorithm = config.algorithm
    algorithm.advantage = "group_mean"  # no standard deviation
    algorithm.loss = "icepop"
    algorithm.icepop.alpha = 0.5
    algorithm.icepop.beta = 5.0
    algorithm.icepop.rollout_floor = 1e-5

    trainer = config.trainer
    trainer.platform = "cuda"
    trainer.max_steps = 600
    trainer.optimizer.name = "muon"
    trainer.optimizer.learning_rate = 1e-6
    trainer.optimizer.schedule = "constant"
    trainer.seq_buckets = (65536,)
    trainer.rows = 32  # one for each group of devices that share a row
    trainer.microbatch_buckets = (16, 32, 128)  # 4,096 rollouts of 8, 16 and 65 thousand tokens
    trainer.remat = "full"
    trainer.router_replay = False  # 720 bytes a token; the report does without

    parallel = config.parallel
    parallel.data = 1
    parallel.fsdp = -1  # 32 of 128
    parallel.context = 4
    parallel.expert = 1  # grouped matmuls are busy enough without

    orchestrator = config.orchestrator
    orchestrator.batch_size = 256 * 16
    orchestrator.group_size = 16
    orchestrator.max_off_policy_steps = 8
    orchestrator.max_inflight_groups = 512
    orchestrator.max_new_tokens = 65536 - 4096
    orchestrator.temperature = 1.0

    sampler = config.sampler
    sampler.platform = "cuda"
    sampler.num_servers = 44  # of 8 devices each; sampler.urls names them
    sampler.max_len = 65536
    sampler.prefill_buckets = (4096, 16384, 65536)
    sampler.on_update = "reprefill"  # in flight
    sampler.request_timeout = 7200.0

    config.weights.keep = 10
    config.checkpoint.every = 25
    return config
