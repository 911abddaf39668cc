"""As much of vLLM as the engine calls, over a tiny model: the rest of it is in tests/vllm."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from genrec.decode.vllm_plugin import NodeScoresBody


class RequestOutputKind(enum.Enum):
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    detokenize: bool
    flat_logprobs: bool
    skip_clone: bool
    output_kind: RequestOutputKind
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Gives next-token values as vLLM 0.32 does: the sampled token first, then those asked for."""

    def __init__(self, model: Any, *, plugin: bool = True, **changes: Any) -> None:
        self.model = model
        self.adapters: dict[str, Any] = {}
        self.batches: list[list[list[int]]] = []
        self.plugin = plugin
        config = {
            "max_model_len": 128,
            "max_logprobs": -1,
            "dtype": torch.float32,
            "logprobs_mode": "processed_logits" if plugin else "raw_logprobs",
            "get_vocab_size": lambda: model.config.vocab_size,
        }
        self.model_config = SimpleNamespace(**config | changes)
        cache = SimpleNamespace(block_size=16, num_gpu_blocks=64)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache))

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        params: list[SamplingParams],
        *,
        lora_request: list[LoRARequest] | None,
        use_tqdm: bool,
    ) -> list[Any]:
        assert not use_tqdm and len(prompts) == len(params)
        sequences = [prompt["prompt_token_ids"] for prompt in prompts]
        self.batches.append(sequences)
        if lora_request is None:
            logits = self._run(self.model, sequences)
        else:
            assert len(lora_request) == len(prompts), "on CPU the two kinds may not meet"
            names = [lora.lora_name for lora in lora_request]
            found = {name: self._run(self.adapters[name], sequences) for name in set(names)}
            logits = torch.stack([found[name][row] for row, name in enumerate(names)])
        raw = torch.log_softmax(logits, dim=1)
        if self.plugin:
            processor = NodeScoresBody("config", "device", False)
            added = [(row, one, None, []) for row, one in enumerate(params)]
            processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
            logits = processor.apply(logits)
        values = raw if self.model_config.logprobs_mode == "raw_logprobs" else logits
        return [
            self._say(one, row_values, int(row.argmax()))
            for one, row_values, row in zip(params, values, logits, strict=True)
        ]

    @staticmethod
    def _run(model: Any, sequences: list[list[int]]) -> torch.Tensor:
        longest = max(map(len, sequences))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in sequences])
        with torch.inference_mode():
            logits = model(tokens).logits
        last = torch.tensor([len(row) - 1 for row in sequences])
        return logits[torch.arange(len(sequences)), last].clone()

    @staticmethod
    def _say(params: SamplingParams, values: torch.Tensor, sampled: int) -> Any:
        if params.logprob_token_ids is not None:
            assert len(params.logprob_token_ids) <= 128
            tokens = params.logprob_token_ids
        elif params.logprobs == -1:
            tokens = list(range(len(values)))
        else:
            tokens = values.topk(params.logprobs).indices.tolist()
        tokens = [sampled, *tokens]
        said = SimpleNamespace(token_ids=tokens, logprobs=values[tokens].tolist())
        return SimpleNamespace(outputs=[SimpleNamespace(logprobs=said)])


@dataclass
class Opened:
    """What `vllm.LLM` was started with."""

    args: dict[str, Any] = field(default_factory=dict)


@contextmanager
def install_vllm(*, is_cpu: bool = True) -> Iterator[Opened]:
    """A block in which `import vllm` finds the above."""
    opened = Opened()

    def start(**args: Any) -> Opened:
        opened.args = args
        return opened

    class BatchProcessor:
        """Stands for the older runner's abstract class."""

    class SlotProcessor:
        """Stands for the newer one's."""

    modules = {
        "vllm": {"SamplingParams": SamplingParams, "LLM": start},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.sampling_params": {"RequestOutputKind": RequestOutputKind},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: is_cpu)},
        "vllm.v1.sample.logits_processor": {"LogitsProcessor": BatchProcessor},
        "vllm.v1.worker.gpu.sample.logits_processor": {"LogitsProcessor": SlotProcessor},
    }
    for name in list(modules):
        for end in range(1, name.count(".") + 1):
            modules.setdefault(".".join(name.split(".")[:end]), {})
    with pytest.MonkeyPatch.context() as patch:
        for name, members in modules.items():
            module = ModuleType(name)
            module.__dict__.update(members)
            module.__spec__ = ModuleSpec(name, None)
            patch.setitem(sys.modules, name, module)
        yield opened
