"""How a vLLM is started for the constrained search.

Owns the settings without which it is wrong, slow or dead, and why. Knows no trie.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrec.decode.vllm_plugin import PLUGIN_NAME
from genrec.errors import MissingExtraError, ModelError, RecipeError

# Ranks that vLLM 0.32 has kernels for.
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vLLM keeps room in the device's memory for each; requests for more wait for a place.
_LORAS_AT_ONCE = 8
# A prompt is kept in whole blocks; every beam reads the rest anew. Smaller blocks than these the
# kernels of either device refuse or run slowly; CPU's own default, 128, costs 2 to 3 times as much.
_BLOCK_TOKENS = {True: 32, False: 16}


def list_engine_args(
    model_dir: str | Path,
    *,
    is_cpu: bool,
    plugin: bool = True,
    adapters: Mapping[str, str | Path] | None = None,
    **engine_args: Any,
) -> dict[str, Any]:
    """VLLM's arguments (of `LLM` and `AsyncEngineArgs`) that the search needs.

    Args:
        model_dir: a merged checkpoint.
        is_cpu: whether vLLM runs on CPU.
        plugin: whether scores come from genrec's logits processor; else from listed tokens.
        adapters: LoRA directories by name, for requests that name one.
        engine_args: any other argument of vLLM's, such as tensor_parallel_size or
            gpu_memory_utilization; they win.

    Raises:
        ModelError: an adapter that cannot be read or is too large.
        RecipeError: dtype int8, which is not vLLM's.
    """
    if engine_args.get("dtype") == "int8":
        raise RecipeError(
            "dtype 'int8' is for engine torch; leave it out, or give vLLM quantization=... of a "
            "checkpoint that was quantised for it"
        )
    chosen: dict[str, Any] = {
        "model": str(model_dir),
        "block_size": _BLOCK_TOKENS[is_cpu],
        "enable_prefix_caching": True,
        # A node has more children than the 20 that vLLM gives by default.
        "max_logprobs": -1,
        "logprobs_mode": "processed_logits" if plugin else "raw_logprobs",
        "dtype": "bfloat16",
        "disable_log_stats": True,
        # The checkpoint's own defaults (a top-k, a penalty) would change the scores.
        "generation_config": "vllm",
    }
    if plugin:
        chosen["logits_processors"] = [PLUGIN_NAME]
    if is_cpu:
        # bf16 products are slower there; compiling takes a minute, and needs a C++ compiler.
        chosen |= {"dtype": "float32", "enforce_eager": True}
    if adapters:
        ranks = [_read_rank(name, Path(path)) for name, path in adapters.items()]
        rank = next((known for known in _LORA_RANKS if known >= max(ranks)), None)
        if rank is None:
            raise ModelError(
                f"an adapter has rank {max(ranks)}; vLLM takes at most {_LORA_RANKS[-1]}: merge it "
                f"into a checkpoint of its own"
            )
        at_once = min(len(adapters), _LORAS_AT_ONCE)
        chosen |= {"enable_lora": True, "max_loras": at_once, "max_cpu_loras": len(adapters)}
        chosen |= {"max_lora_rank": rank}
    return chosen | engine_args


def open_vllm(
    model_dir: str | Path,
    *,
    plugin: bool = True,
    adapters: Mapping[str, str | Path] | None = None,
    **engine_args: Any,
) -> Any:
    """A `vllm.LLM` that `VllmEngine` can search; start it under `if __name__ == "__main__"`.

    Args:
        model_dir: a merged checkpoint.
        plugin: as for `list_engine_args`.
        adapters: as for `list_engine_args`.
        engine_args: as for `list_engine_args`.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: an adapter that cannot be used.
    """
    is_cpu = runs_on_cpu()
    args = list_engine_args(
        model_dir, is_cpu=is_cpu, plugin=plugin, adapters=adapters, **engine_args
    )
    if is_cpu:
        bind_threads(int(args.get("tensor_parallel_size", 1)))
    from vllm import LLM

    return LLM(**args)


def runs_on_cpu() -> bool:
    """Whether the vLLM that is installed runs on CPU.

    Raises:
        MissingExtraError: none is installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm")
    _set_environment()
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _set_environment() -> None:
    """What vLLM reads from the environment as it is imported, where the user chose nothing."""
    # Answers go to standard output; vLLM's log would lie between them.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # genrec reports nothing to anybody


def bind_threads(n_ranks: int) -> None:
    """Let vLLM's CPU kernels use every core that this process may use, unless the user chose.

    Left alone, vLLM 0.32 keeps one core back, which is half of two.
    """
    if n_ranks == 1:
        cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)


def _read_rank(name: str, path: Path) -> int:
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        return int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"adapter {name!r} at {path} cannot be read ({type(error).__name__}: {error}); give "
            f"the lora/ directory of a model trained with export_base=true"
        ) from error
