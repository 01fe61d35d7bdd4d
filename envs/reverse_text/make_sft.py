"""Writes supervised examples of reverse_text as JSONL, one {"prompt": …, "completion": …} a line.

    python envs/reverse_text/make_sft.py --out=sft.jsonl --count=2000 --min_length=2 --max_length=8

The texts are of the train split's kind, so none of them is a held-out prompt. ``--sloppy=0.8`` writes the answers of an
annotator who swaps each pair of neighbouring letters with that probability: a habit for RL to correct.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from reverse_text import random_text


def answer(rng: random.Random, text: str, sloppy: float) -> str:
    """``text`` backwards, each pair of its letters swapped with probability ``sloppy``."""
    pairs = (text[::-1][i : i + 2] for i in range(0, len(text), 2))
    return "".join(pair[::-1] if rng.random() < sloppy else pair for pair in pairs)


def write_examples(out: Path, count: int, min_length: int, max_length: int, sloppy: float, seed: int) -> None:
    """Writes ``count`` examples with texts of ``min_length`` to ``max_length`` letters; the file appears complete."""
    rng = random.Random(f"{seed}/sft")
    texts = (random_text(rng, min_length, max_length, "train") for _ in range(count))
    lines = (json.dumps({"prompt": text, "completion": answer(rng, text, sloppy)}) + "\n" for text in texts)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--count", type=int, default=2000, help="examples (default %(default)s)")
    parser.add_argument("--min_length", type=int, default=4, help="shortest text, letters (default %(default)s)")
    parser.add_argument("--max_length", type=int, default=16, help="longest text, letters (default %(default)s)")
    parser.add_argument("--sloppy", type=float, default=0.0, help="swap probability of a pair (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    args = parser.parse_args()
    if not 1 <= args.min_length <= args.max_length:
        parser.error(f"lengths {args.min_length} to {args.max_length}: must be 1 ≤ min ≤ max")
    if not 0 <= args.sloppy <= 1:
        parser.error(f"sloppy {args.sloppy}: must be between 0 and 1")
    write_examples(args.out, args.count, args.min_length, args.max_length, args.sloppy, args.seed)


if __name__ == "__main__":
    main()
