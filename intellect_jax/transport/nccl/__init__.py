"""Weights from the trainer's GPU to vLLM's by NCCL, in place of files.

The trainer is rank 0 of a communicator of its own with each server, and needs no PyTorch: it makes the communicator's
id, and vLLM's own NCCL engine joins by it (vLLM 0.32, ``vllm/distributed/weight_transfer/nccl_common.py``). A tensor
crosses as it lies in the trainer's memory; the server turns round what Hugging Face has the other way.
"""
