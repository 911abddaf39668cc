"""The settings that vLLM is started with."""

from __future__ import annotations

import json
import os
import sys

import pytest

from genrec.decode.vllm_open import list_engine_args, open_vllm
from genrec.errors import MissingExtraError, ModelError
from tests.decode.fake_vllm import install_vllm

PLUGIN = "genrec.decode.vllm_plugin:NodeScores"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_LOGGING_STREAM", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "x")  # so that it is restored, whatever a test sets
        monkeypatch.delenv(name)


def write_adapter(folder, rank):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folder


def test_cpu_gets_its_blocks_precision_and_threads():
    with install_vllm() as opened:
        open_vllm("model", max_model_len=512)
    assert opened.args["model"] == "model"
    assert opened.args["block_size"] == 32 and opened.args["dtype"] == "float32"
    assert opened.args["enforce_eager"] and opened.args["enable_prefix_caching"]
    assert opened.args["max_logprobs"] == -1 and opened.args["max_model_len"] == 512
    assert opened.args["logits_processors"] == [PLUGIN]
    assert opened.args["logprobs_mode"] == "processed_logits"
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == cores
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr", "answers go to stdout"


def test_what_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    with install_vllm() as opened:
        open_vllm("model", block_size=64, dtype="bfloat16", max_logprobs=500)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0"
    assert opened.args["block_size"] == 64 and opened.args["dtype"] == "bfloat16"
    assert opened.args["max_logprobs"] == 500


def test_several_ranks_bind_their_threads_themselves():
    with install_vllm() as opened:
        open_vllm("model", tensor_parallel_size=2, data_parallel_size=2)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ
    assert opened.args["tensor_parallel_size"] == opened.args["data_parallel_size"] == 2


def test_a_gpu_gets_smaller_blocks_and_keeps_its_graphs():
    with install_vllm(is_cpu=False) as opened:
        open_vllm("model")
    assert opened.args["block_size"] == 16 and opened.args["dtype"] == "bfloat16"
    assert "enforce_eager" not in opened.args
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ


def test_without_the_plugin_log_probabilities_are_raw():
    args = list_engine_args("model", is_cpu=True, plugin=False)
    assert args["logprobs_mode"] == "raw_logprobs" and "logits_processors" not in args


def test_adapters_get_room_for_the_largest(tmp_path):
    ranks = {f"a{rank}": write_adapter(tmp_path / str(rank), rank) for rank in (4, 24)}
    args = list_engine_args("model", is_cpu=True, adapters=ranks)
    assert args["enable_lora"] and args["max_loras"] == args["max_cpu_loras"] == 2
    assert args["max_lora_rank"] == 32
    many = {f"a{number}": ranks["a4"] for number in range(20)}
    args = list_engine_args("model", is_cpu=True, adapters=many)
    assert (args["max_loras"], args["max_cpu_loras"], args["max_lora_rank"]) == (8, 20, 8)
    assert "enable_lora" not in list_engine_args("model", is_cpu=True, adapters={})


def test_adapters_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"adapter 'gone' at .* cannot be read \(FileNotFound"):
        list_engine_args("model", is_cpu=True, adapters={"gone": tmp_path / "gone"})
    large = write_adapter(tmp_path / "large", 1024)
    with pytest.raises(ModelError, match="rank 1024; vLLM takes at most 512: merge it"):
        list_engine_args("model", is_cpu=True, adapters={"large": large})
    (large / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"KeyError: 'r'\); give the lora/ directory"):
        list_engine_args("model", is_cpu=True, adapters={"large": large})


def test_a_missing_vllm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'genrec\[vllm\]'"):
        open_vllm("model")
