"""What the launcher makes for a vLLM server and what it reads from one, without vLLM."""

import json
from pathlib import Path

import pytest

from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.models.transformer import init_params
from intellect_jax.monitor.server_stats import parse
from intellect_jax.orchestrator.generation import lacks_weights
from intellect_jax.sampler.vllm_plugin import EXPECTED
from intellect_jax.sampler.vllm_server import command
from intellect_jax.sampler.vllm_server.model_folder import link_plugin, make_model_folder
from launch.configuration import load

ROOT = Path(__file__).parents[2]
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="policy"} 3.0
vllm:num_requests_waiting{engine="0",model_name="policy"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="policy"} 0.25
vllm:generation_tokens_total{engine="0",model_name="policy"} 1200.0
vllm:generation_tokens_total{engine="1",model_name="policy"} 34.0
vllm:generation_tokens_created{engine="0",model_name="policy"} 1.7e+09
"""


@pytest.fixture
def config():
    return load(ROOT / "configs" / "debug_vllm_cpu.py")


def test_the_model_folder_lists_exactly_the_tensors_of_a_version(config, tmp_path):
    write_character_tokenizer(tmp_path / "tokenizer")
    cfg = make_model_folder(config, tmp_path, tmp_path / "model")
    expected = json.loads((tmp_path / "model" / EXPECTED).read_text())
    published = dict(to_hf(init_params(cfg, 0), cfg, config.weights.dtype))
    assert expected == {name: ["F32", list(array.shape)] for name, array in published.items()}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == ["Glm4MoeForCausalLM"]
    assert (tmp_path / "model" / "tokenizer.json").is_file()


def test_what_is_read_counts_for_bfloat16_versions_too(config, tmp_path):
    write_character_tokenizer(tmp_path / "tokenizer")
    config.weights.dtype = "bfloat16"
    cfg = make_model_folder(config, tmp_path, tmp_path / "model")
    expected = json.loads((tmp_path / "model" / EXPECTED).read_text())
    dtypes = {name: array.dtype.name for name, array in to_hf(init_params(cfg, 0), cfg, "bfloat16")}
    assert {name: {"BF16": "bfloat16", "F32": "float32"}[dtype] for name, (dtype, _) in expected.items()} == dtypes


def test_nothing_but_our_package_is_put_into_vllms_way(tmp_path):
    for _ in range(2):  # a restarted role finds its own link there
        folder = link_plugin(tmp_path / "plugin")
    assert [path.name for path in folder.iterdir()] == ["intellect_jax"]
    assert (folder / "intellect_jax" / "sampler" / "vllm_plugin" / "engine.py").is_file()


def test_the_command_line_says_what_the_configuration_says(config, tmp_path):
    config.sampler.arguments = ("--tensor-parallel-size=2",)
    argv = command.argv(config, "http://127.0.0.1:8123", tmp_path)
    assert argv[0] == config.sampler.python and argv[-1] == "--tensor-parallel-size=2"
    for wanted in ("--port=8123", "--max-model-len=36", "--dtype=float32", "--logprobs-mode=processed_logprobs"):
        assert wanted in argv
    assert "--enforce-eager" in argv
    assert '--hf-overrides={"head_dtype": "float32"}' in argv
    config.sampler.head_dtype = "model"
    assert not any("head_dtype" in word for word in command.argv(config, "http://127.0.0.1:8123", tmp_path))
    config.trainer.router_replay = True
    experts = "--enable-return-routed-experts"
    assert experts not in command.argv(config, "http://127.0.0.1:8123", tmp_path)
    config.sampler.platform = "cuda"
    assert "--enforce-eager" not in command.argv(config, "http://127.0.0.1:8123", tmp_path)
    assert experts in command.argv(config, "http://127.0.0.1:8123", tmp_path)
    assert experts not in command.argv(config, "http://127.0.0.1:8123", tmp_path, moe=False)
    config.trainer.router_replay = False
    assert experts not in command.argv(config, "http://127.0.0.1:8123", tmp_path)


def test_metrics_of_all_engines_are_summed():
    stats = parse(METRICS)
    assert (stats.generated, stats.running, stats.waiting, stats.cache) == (1234, 3, 1, 0.25)
    with pytest.raises(ValueError, match="vllm:kv_cache_usage_perc"):
        parse(METRICS.replace("kv_cache_usage_perc", "another"))


def test_an_answer_from_weights_that_nobody_gave_is_known():
    def answer(*versions):
        return {"choices": [{"weight_versions": [{"version": v, "start": 0, "end": 1} for v in versions]}]}

    assert lacks_weights(answer("default")) and lacks_weights(answer("default", "0.1"))
    assert not lacks_weights(answer("0.1")) and not lacks_weights({})
