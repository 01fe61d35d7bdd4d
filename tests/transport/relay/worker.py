"""A stand-in sampler: a process that brings its mirror to the versions that it reads from stdin, and tells how."""

import hashlib
import json
import logging
import sys
from pathlib import Path

from intellect_jax.transport.reading import WeightError
from intellect_jax.transport.relay.intake import Intake


def digest(tensors):
    """Of names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def main():
    source, cache = sys.argv[1:3]
    logging.basicConfig(level="INFO")
    intake = Intake(Path(cache), "127.0.0.1")
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            version = intake.advance(f"{source}/{line.strip()}/manifest.json")
            answer = {"version": str(version), "digest": digest(intake.mirror.tensors)}
        except WeightError as error:
            answer = {"error": str(error)}
        received = intake.fetcher.received if intake.fetcher else {}
        print(json.dumps({**answer, "received": dict(received)}), flush=True)


if __name__ == "__main__":
    main()
