"""INTELLECT-3's supervised fine-tuning of GLM-4.5-Air-Base (arXiv 2512.16144), in two stages.

    python -m launch sft --config=configs/glm45_air_sft.py:stage1 --config.model.path=FOLDER --config.sft.data=FILE
    python -m launch sft --config=configs/glm45_air_sft.py:stage2 --config.model.path=STAGE1 --config.sft.data=FILE

Stage 1, general: rows of 65,536 tokens. Stage 2, agents: rows of 98,304, from the folder ``export`` in stage 1's run
directory. About 33 million tokens a step. Hardware: 512 H200s, on each of their 64 hosts a trainer process. The report
gives neither the time nor a score of its own. A step is at most 1.0e19 and 1.3e19 model FLOPs (rows of one document
each): 50 and 64 s at 40% of what the datasheet says of 512 H200s. Nothing here has run at that size: learning rate,
optimizer, rows and tokens a step are the report's, the mesh is this project's own choice. Without ``model.path`` the
shape below with fresh weights is what ``plan`` and ``bench`` look at.
"""

from intellect_jax.config import default_config

STAGES = {  # row, devices that share one, microbatches: 33.6 and 31.5 million tokens of 512 devices
    "stage1": (65536, 4, 4),
    "stage2": (98304, 8, 5),
}


def get_config(arg: str | None = None):
    config = default_config()
    stage = arg or "stage1"
    if stage not in STAGES:
        raise ValueError(f"{stage}: a stage is one of {', '.join(STAGES)}")
    length, sharing, microbatches = STAGES[stage]
    config.run.name = f"glm45_air_sft-{stage}"

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

    sft = config.sft
    sft.data = "configs/data/reverse_text_sloppy.jsonl"  # a stand-in
    sft.steps = 1000
    sft.microbatches = microbatches
    sft.learning_rate = 5e-5
    sft.warmup_steps = 50
    sft.decay_steps = 200

    trainer = config.trainer
    trainer.platform = "cuda"
    trainer.max_steps = 0  # RL is configs/glm45_air_rl.py
    trainer.optimizer.name = "muon"
    trainer.seq_buckets = (length,)
    trainer.rows = 512 // sharing  # one for each group of devices that share a row
    trainer.microbatch_buckets = (microbatches,)
    trainer.remat = "full"
    trainer.router_replay = False

    parallel = config.parallel
    parallel.data = 2
    parallel.fsdp = -1  # 64, and 32 in stage 2
    parallel.context = sharing

    config.checkpoint.every = 100
    return config
