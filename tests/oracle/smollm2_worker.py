"""Runs in the oracle environment (PyTorch, transformers, gguf): SmolLM2 as transformers computes and tokenises it.

python smollm2_worker.py MODEL_FOLDER WORK: WORK/in.json has ``texts`` (lists of token ids), ``question`` (token ids)
and ``new_tokens``; WORK/out.npz gets ``logits_<i>`` float32 [tokens, V] for each text, ``greedy`` int64 [new_tokens].

python smollm2_worker.py FILE.gguf WORK: WORK/texts.json has a list of texts; WORK/ids.json gets the token ids that
transformers' own reading of the GGUF file's tokenizer gives each of them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def compute(folder: Path, work: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = json.loads((work / "in.json").read_text())
    with torch.no_grad():
        out = {f"logits_{i}": model(torch.tensor([t])).logits[0].numpy() for i, t in enumerate(asked["texts"])}
        history = torch.tensor([asked["question"]])
        for _ in range(asked["new_tokens"]):
            history = torch.cat([history, model(history).logits[:, -1].argmax(-1, keepdim=True)], 1)
    np.savez(work / "out.npz", **out, greedy=history[0, len(asked["question"]) :].numpy())


def tokenise(gguf: Path, work: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    texts = json.loads((work / "texts.json").read_text())
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    (work / "ids.json").write_text(json.dumps(ids))


source, work = map(Path, sys.argv[1:])
(compute if source.is_dir() else tokenise)(source, work)
