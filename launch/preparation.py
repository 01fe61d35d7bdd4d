"""What must stand in a run directory before the roles start."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from intellect_jax.errors import UserError

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "spiece.model",
)


def prepare_tokenizer(config: ConfigDict, run_dir: Path) -> None:
    """Puts the run's tokenizer into ``<run_dir>/tokenizer`` unless it is there: every role loads it from that folder.

    It is ``tokenizer.path``'s, else ``model.path``'s, else a character tokenizer.
    """
    folder = run_dir / "tokenizer"
    if folder.exists():
        return
    source = config.tokenizer.path or config.model.path
    run_dir.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".tokenizer-", dir=run_dir))
    unfinished.chmod(0o755)
    if not source:
        from intellect_jax.bridge.tokenizer import write_character_tokenizer

        write_character_tokenizer(unfinished)
    elif Path(source).is_dir():
        _copy_tokenizer(Path(source), unfinished)
    else:
        from intellect_jax.bridge.tokenizer import load_tokenizer

        load_tokenizer(source).save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # or else a role on another host was faster
            raise
        shutil.rmtree(unfinished)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies a tokenizer's files byte for byte; raises UserError when there are none."""
    files = {file for pattern in _TOKENIZER_FILES for file in source.glob(pattern)}
    if not files:
        raise UserError(f"{source}: no tokenizer files there; give tokenizer.path")
    for file in sorted(files):
        if file.is_dir():  # chat_templates/ and additional ones
            shutil.copytree(file, folder / file.name)
        else:
            shutil.copy2(file, folder / file.name)
