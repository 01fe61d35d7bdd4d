"""The hardware that ``plan`` knows, as its makers' datasheets state it. Bytes are powers of ten where they use them.

Rates are peaks of one device; links are one direction. Sources:
NVIDIA H100 and H200 datasheets (SXM): 989.4 TFLOP/s dense bf16, 494.7 dense TF32, 3.35 and 4.8 TB/s, NVLink 900 GB/s
both directions; NVIDIA HGX B200: 2250 and 1100 TFLOP/s, 8 TB/s, NVLink 1.8 TB/s. Between nodes the reference design of
all three has one 400 Gb/s port a GPU (DGX SuperPOD). Google Cloud's TPU pages: v5p 459 TFLOP/s, 2765 GB/s, 1200 GB/s of
interconnect both directions over 6 ports; v6e 918 TFLOP/s, 1638 GB/s, 800 GB/s over 4 ports; 50 Gb/s between slices. A
ring over one mesh axis uses two ports. TPU slices are one "node"; float32 matmuls run there as bf16 by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from intellect_jax.errors import UserError

GIB = 2**30
USABLE = 0.92  # of memory: the rest is the driver's context, collectives' buffers and fragmentation


@dataclass(frozen=True)
class Target:
    """One kind of device and how many of them are joined."""

    name: str
    compiler: str  # cuda, tpu or cpu: whose compiler makes its programs
    bf16: float  # FLOP/s, dense
    fp32: float  # FLOP/s at JAX's default precision of float32 matmuls
    memory: float  # bytes
    bandwidth: float  # bytes/s of that memory
    link: float  # bytes/s to other devices of its node
    network: float  # bytes/s to other nodes
    per_node: int
    multiprocessors: int = 0  # CUDA: what its compiler must know besides
    l2_bytes: int = 0
    clock_ghz: float = 0.0
    capability: int = 0
    torus: int = 0  # TPU: dimensions of a slice

    def flops(self, dtype: str) -> float:
        return self.fp32 if dtype in ("f32", "f64") else self.bf16


TARGETS = {
    target.name: target
    for target in (
        Target("h100", "cuda", 989.4e12, 494.7e12, 80e9, 3.35e12, 450e9, 50e9, 8, 132, 50 * 2**20, 1.98, 9),
        Target("h200", "cuda", 989.4e12, 494.7e12, 141e9, 4.8e12, 450e9, 50e9, 8, 132, 50 * 2**20, 1.98, 9),
        Target("b200", "cuda", 2250e12, 1100e12, 180e9, 8.0e12, 900e9, 50e9, 8, 148, 126 * 2**20, 1.965, 10),
        Target("v5p", "tpu", 459e12, 459e12, 95 * GIB, 2765e9, 200e9, 6.25e9, 8960, torus=3),
        Target("v6e", "tpu", 918e12, 918e12, 32e9, 1638e9, 200e9, 6.25e9, 256, torus=2),
        # A core of a laptop's CPU; devices are cores that share its memory. Only for trying `plan` itself.
        Target("cpu", "cpu", 80e9, 80e9, 4 * GIB, 10e9, 5e9, 1e9, 8),
    )
}


def topology(target: Target, devices: int) -> str:
    """The name that ``jax.experimental.topologies`` knows so many devices by; raises UserError where there is none."""
    if target.compiler == "cuda":
        per_node = min(devices, target.per_node)
        if devices % per_node:
            raise UserError(f"--devices={devices}: {target.name} comes in nodes of {target.per_node}: take a multiple")
        return f"1x{devices // per_node}x{per_node}"
    if devices < 4 or devices & (devices - 1) or devices > target.per_node:
        raise UserError(
            f"--devices={devices}: slices of {target.name} have 4, 8, 16, ... {_largest_slice(target)} chips"
        )
    doublings = int(log2(devices))
    sides = [2 ** ((doublings + place) // target.torus) for place in range(target.torus)]
    if doublings == 2 and target.torus == 3:
        sides = [2, 2, 1]  # the smallest slice is flat
    return f"{target.name}:" + "x".join(map(str, sides))


def _largest_slice(target: Target) -> int:
    return 2 ** int(log2(target.per_node))


def gpu_description(target: Target) -> str:
    """XLA's GpuTargetConfigProto as text: what its compiler asks of a GPU that is not there.

    Limits that Hopper and Blackwell share are those of CUDA's compute capabilities 9.0 and 10.0.
    """
    return f"""
    platform_name: "CUDA"
    device_description_str: "{target.name}"
    dnn_version_info {{ major: 9 minor: 10 }}
    gpu_device_info {{
      name: "{target.name}"
      device_vendor: "NVIDIA Corporation"
      cuda_compute_capability {{ major: {target.capability} feature_extension: ACCELERATED_FEATURES }}
      core_count: {target.multiprocessors}
      fpus_per_core: 128
      clock_rate_ghz: {target.clock_ghz}
      device_memory_size: {int(target.memory)}
      memory_bandwidth: {int(target.bandwidth)}
      l2_cache_size: {target.l2_bytes}
      device_address_bits: 64
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      registers_per_block_limit: 65536
      registers_per_core_limit: 65536
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: 232448
      shared_memory_per_core: 233472
      driver_version: "13.0.0"
      runtime_version: "13.0.0"
      compile_time_toolkit_version: "13.0.0"
      dnn_version: "9.10.0"
      device_interconnect_info {{ active_links: 18 }}
    }}
    """
