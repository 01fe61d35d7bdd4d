"""What stands beside the weights in a Hugging Face folder: config, generation config, tokenizer, template. No JAX."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from intellect_jax.bridge import families
from intellect_jax.bridge.families import hf_config
from intellect_jax.bridge.source import TOKENIZER_FILES, Source
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.models.config import ModelConfig

Json = dict[str, Any]


def write_companions(
    folder: Path, cfg: ModelConfig, source: Source | None, dtype: str, tokenizer: str | Path | None
) -> None:
    """Everything but weights. ``tokenizer``: a folder; None: the source's. ``dtype``: that of the weights."""
    copy_tokenizer(tokenizer or (source.folder if source else None), folder)
    special = _special_ids(folder) if tokenizer else {}
    write_json(folder / "config.json", _with_ids(_config(cfg, source, dtype), special))
    write_json(folder / "generation_config.json", _with_ids(_generation_config(source), special))


def _config(cfg: ModelConfig, source: Source | None, dtype: str) -> Json:
    """The source's config.json with another dtype, or one of this policy's shape."""
    if source:
        named: Json = {key: dtype for key in ("dtype", "torch_dtype") if key in source.config}
        return {**source.config, **named}
    family = families.of(cfg)
    values = hf_config.write(cfg, family.MODEL_TYPE, family.ARCHITECTURE, family.to_hf_config(cfg))
    return {**values, "torch_dtype": dtype}


def _generation_config(source: Source | None) -> Json:
    path = source and source.folder / "generation_config.json"
    return json.loads(path.read_text()) if path and path.is_file() else {}


def copy_tokenizer(folder: str | Path | None, target: Path) -> None:
    for file in (Path(folder) / name for name in TOKENIZER_FILES) if folder else ():
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def _special_ids(folder: Path) -> dict[str, int]:
    """The ids of the tokenizer that config files name."""
    tokenizer = load_tokenizer(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value for name, value in ids.items() if value is not None}


def _with_ids(values: Json, special: dict[str, int]) -> Json:
    """``values`` with the special token ids, except where they are among several that ``values`` name."""

    def known(name: str, token: int) -> bool:
        value = values.get(name)
        return token in (value if isinstance(value, list) else [value])

    return {**values, **{name: token for name, token in special.items() if not known(name, token)}}


def write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
