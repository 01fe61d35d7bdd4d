"""``python -m intellect_jax.monitor.report RUN_DIR [--every=SECONDS]``: writes the report once, or again and again."""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

from intellect_jax.monitor.report.build import write_report

SHARE = 0.05  # of a processor goes into writing, at most: a long run's report is written less often

log = logging.getLogger("report")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m intellect_jax.monitor.report", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--every", type=float, help="seconds between two writings; once when not given")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if arguments.every is None:
        print(write_report(arguments.run_dir))
    else:
        _write_for_ever(arguments.run_dir, arguments.every)


def _write_for_ever(run_dir: Path, every: float) -> None:
    """Until killed, with low priority. What cannot be written now is tried again: the run matters more than this."""
    os.nice(10)
    pause = every
    while True:
        time.sleep(pause)
        start = time.process_time()
        try:
            write_report(run_dir)
        except Exception:
            log.exception("no report this time")
        pause = max(every, (time.process_time() - start) / SHARE)


if __name__ == "__main__":
    main()
