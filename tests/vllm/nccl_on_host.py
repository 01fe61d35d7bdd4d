"""Runs inside vLLM's worker (see test_nccl.py): vLLM's own NCCL engine over host memory and the stand-in library.

Only what needs a GPU is another's: the communicator's tensors lie in host memory, and there is no stream.
"""

import os

import torch
from vllm.distributed.device_communicators.pynccl_wrapper import (
    NCCLLibrary,
    buffer_type,
    cudaStream_t,
    ncclDataTypeEnum,
    ncclRedOpTypeEnum,
)
from vllm.distributed.weight_transfer import nccl_engine

from intellect_jax.sampler.vllm_plugin import nccl
from intellect_jax.sampler.vllm_plugin.extension import Extension

__all__ = ["Extension"]


class Communicator:
    def __init__(self, info, parallel):
        self.nccl = NCCLLibrary()  # VLLM_NCCL_SO_PATH
        unique_id = self.nccl.unique_id_from_bytes(info.nccl_unique_id_bytes)
        self.comm = self.nccl.ncclCommInitRank(info.world_size, unique_id, parallel.rank + info.rank_offset)
        one = torch.ones(1)
        at, kind = buffer_type(one.data_ptr()), ncclDataTypeEnum.from_torch(one.dtype)
        self.nccl.ncclAllReduce(at, at, 1, kind, ncclRedOpTypeEnum.ncclSum, self.comm, cudaStream_t())

    def broadcast(self, tensor, src, stream):
        assert tensor.is_contiguous()
        kind = ncclDataTypeEnum.from_torch(tensor.dtype)
        at = buffer_type(tensor.data_ptr())
        self.nccl.ncclBroadcast(buffer_type(), at, tensor.numel(), kind, src, self.comm, cudaStream_t())

    def destroy(self):
        self.nccl.ncclCommAbort(self.comm)


nccl._LEAST_S = float(os.environ.get("NCCL_LEAST_S", nccl._LEAST_S))
nccl_engine.worker_init_process_group = Communicator
torch.cuda.current_stream = lambda device=None: None
