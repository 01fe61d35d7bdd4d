"""The sampler as the process that the launcher starts."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.config import to_plain
from intellect_jax.monitor.metrics import read_metrics
from tests.samplers import sampler_config


@pytest.fixture
def run_dir(tmp_path):
    config = sampler_config(prefill_buckets=(256,), prefill_rows=1)
    config.model.update({"hidden_size": 32, "num_hidden_layers": 2, "n_routed_experts": 4})
    (tmp_path / "config.json").write_text(json.dumps(to_plain(config)))
    write_character_tokenizer(tmp_path / "tokenizer")
    return tmp_path


CODE = """
import json, sys, logging
from pathlib import Path
from intellect_jax.config import from_plain
from intellect_jax.sampler.main import main
logging.basicConfig(level="INFO")
run_dir = Path(sys.argv[1])
sys.exit(main(from_plain(json.loads((run_dir / "config.json").read_text())), run_dir, 0))
"""


def start(run_dir):
    command = [sys.executable, "-c", CODE, str(run_dir)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def health(run_dir):
    url = json.loads((run_dir / "config.json").read_text())["sampler"]["urls"][0]
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_for(condition, process, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end(process):
    """Seconds from SIGTERM to the end, exit code and log."""
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    return time.monotonic() - asked, process.returncode, log


def test_it_serves_logs_metrics_and_ends_cleanly_on_sigterm(run_dir):
    process = start(run_dir)
    wait_for(lambda: health(run_dir) == 200, process)
    seconds, code, log = end(process)
    assert code == 0 and seconds < 5, log
    assert "Traceback" not in log and "stopped" in log
    rows = [row for row in read_metrics(run_dir) if row["role"] == "sampler-0"]
    assert rows and rows[-1]["version/number"] == -1 and rows[-1]["compile/after_warmup"] == 0


def test_sigterm_while_it_compiles_ends_it_too(run_dir):
    process = start(run_dir)
    wait_for(lambda: health(run_dir) == 503, process)
    seconds, code, log = end(process)
    assert code == 0 and seconds < 10, log
    assert "Traceback" not in log
