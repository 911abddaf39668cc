"""As much of vLLM's asynchronous side as the engine calls, over a tiny model."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import make_dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.decode.fake_vllm import LLM, LoRARequest


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


class RequestOutputKind:
    FINAL_ONLY, DELTA = "final", "delta"


class SamplingParams(SimpleNamespace):
    """Takes what it is given, as the real one does, and refuses one thing that it refuses."""

    def __init__(self, **values: Any) -> None:
        if values.get("top_p", 1.0) > 1:
            raise ValueError("top_p must be in (0, 1]")
        super().__init__(**{"logprobs": None, "logprob_token_ids": None, "extra_args": None}
                         | values)  # fmt: skip


class AsyncLLM:
    """One request a call; it says who met whom, what is inside, and dies when told."""

    def __init__(self, model: Any, **changes: Any) -> None:
        self.llm = LLM(model, **changes)
        self.model_config = self.llm.model_config
        self.adapters: dict[str, Any] = self.llm.adapters
        self.loaded: list[str] = []
        self.refused: set[str] = set()
        self.inside: dict[str, bool] = {}
        self.have_met = False
        self.errored = False
        self.is_shut = False
        self.pause = 0.0
        self.fault: Exception | None = None

    async def add_lora(self, lora: LoRARequest) -> bool:
        await asyncio.sleep(0)
        if lora.lora_path in self.refused:
            raise Exception(f"cannot load {lora.lora_path}")
        self.loaded.append(lora.lora_name)
        return True

    async def generate(self, prompt, params, request_id, *, lora_request=None):
        assert prompt["type"] == "token" and request_id not in self.inside
        self.inside[request_id] = lora_request is not None
        self.have_met |= len(set(self.inside.values())) > 1
        try:
            for piece in self._list_pieces(prompt, params, lora_request):
                await asyncio.sleep(self.pause)
                if self.errored:
                    raise EngineDeadError("EngineCore encountered an issue")
                if self.fault is not None:
                    raise EngineGenerateError from self.fault
                yield piece
        finally:
            del self.inside[request_id]

    def _list_pieces(self, prompt: Any, params: Any, lora: LoRARequest | None) -> Iterator[Any]:
        if params.output_kind == "delta":
            yield from self._write(prompt["prompt_token_ids"], params)
            return
        given = None if lora is None else [lora]
        yield from self.llm.generate([prompt], [params], lora_request=given, use_tqdm=False)

    def _write(self, tokens: list[int], params: Any) -> Iterator[Any]:
        for number in range(1, params.max_tokens + 1):
            with torch.inference_mode():
                token = int(self.llm.model(torch.tensor([tokens])).logits[0, -1].argmax())
            tokens = [*tokens, token]
            finish = "length" if number == params.max_tokens else None
            finish = "stop" if token in params.stop_token_ids else finish
            said = SimpleNamespace(text=f"<{token}>", token_ids=[token], finish_reason=finish)
            yield SimpleNamespace(outputs=[said])
            if finish:
                return

    def shutdown(self) -> None:
        self.is_shut = True


@contextmanager
def install_async_vllm(*, is_cpu: bool = True) -> Iterator[dict[str, Any]]:
    """A block in which `import vllm` finds the above; `llm` of what it gives is what starts."""
    starts: dict[str, Any] = {}
    names = ["model", "tokenizer", "block_size", "enable_prefix_caching", "max_logprobs", "dtype",
             "logprobs_mode", "disable_log_stats", "generation_config", "logits_processors",
             "enforce_eager", "enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank",
             "tensor_parallel_size"]  # fmt: skip
    args_class = make_dataclass("AsyncEngineArgs", [(name, Any, None) for name in names])

    def start(args: Any) -> Any:
        starts["args"] = vars(args)
        if isinstance(starts["llm"], Exception):
            raise starts["llm"]
        return starts["llm"]

    modules = {
        "vllm": {"SamplingParams": SamplingParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.sampling_params": {"RequestOutputKind": RequestOutputKind},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: is_cpu)},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": args_class},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {
            "EngineDeadError": EngineDeadError,
            "EngineGenerateError": EngineGenerateError,
        },
        "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=start)},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_WORKER_MULTIPROC_METHOD"):
            patch.setenv(name, "as-it-was")  # so that what the start sets is taken back
        for name, members in modules.items():
            module = ModuleType(name)
            module.__dict__.update(members)
            module.__spec__ = ModuleSpec(name, None)
            patch.setitem(sys.modules, name, module)
        yield starts
