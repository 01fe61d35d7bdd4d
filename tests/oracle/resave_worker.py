"""Runs in the oracle environment: folders as transformers itself writes them.

python resave_worker.py FOLDER...: for each ``FOLDER/model`` there will be ``FOLDER/split`` with experts one by one and
``FOLDER/fused`` with all experts of a layer in one tensor, both bfloat16 and in several files.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    for name, split in (("split", True), ("fused", False)):
        model.save_pretrained(folder / name, max_shard_size="30KB", save_original_format=split)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
