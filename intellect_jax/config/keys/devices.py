"""On what it trains: the mesh and the processes that share it."""

from __future__ import annotations

from intellect_jax.config.checks import at_least, axis_size, host_port, one_of, zero_or_at_least
from intellect_jax.config.key import Key, Section

PARALLEL: Section = {
    "data": Key(1, "replicas of the fully sharded groups (-1: what is left)", axis_size),
    "fsdp": Key(-1, "devices over which parameters and batch are sharded (-1: what is left)", axis_size),
    "expert": Key(1, "devices over which experts are sharded", axis_size),
    "context": Key(1, "devices over which a sequence is sharded", axis_size),
    "tensor": Key(1, "devices over which heads and MLP width are sharded", axis_size),
    "context_strategy": Key(
        "ring",
        "how devices that share a row attend: ring passes keys around, ulysses exchanges tokens for heads",
        one_of("ring", "ulysses"),
    ),
    "expert_strategy": Key(
        "auto",
        "with an expert axis: every token to all its devices (ring), or to those with experts of its, in messages "
        "of the length needed (ragged; not on CPUs) or of a bounded one (padded)",
        one_of("auto", "ring", "ragged", "padded"),
    ),
    "expert_capacity": Key(
        2.0,
        "buffers of an expert shard hold so many times a balanced load; a larger load is computed in pieces, "
        "exactly (0: buffers for any load)",
        zero_or_at_least(1.0),
    ),
    "expert_chunks": Key(2, "parts of a shard's tokens, so that one is sent while another computes", at_least(1)),
}

DISTRIBUTED: Section = {
    "processes": Key(0, "trainer processes, which share one mesh; 0: those of Slurm or Kubernetes, or 1", at_least(0)),
    "coordinator": Key(
        "",
        "host:port where trainer process 0 meets the others; empty: chosen at start, or by the cluster",
        host_port,
    ),
    "local_devices": Key(0, "devices of each trainer process (0: JAX's own choice)", at_least(0)),
    "start_timeout": Key(300.0, "longest wait for all trainer processes to start, seconds", at_least(1.0)),
    "heartbeat_timeout": Key(10.0, "silence of a trainer process that ends the others, seconds", at_least(2.0)),
}
