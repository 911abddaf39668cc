"""A model directory, and adapters over it, as a vLLM backend and the recommender it answers for.

Owns which checkpoint vLLM loads, which LoRA directories it gets, and what of that can be wrong
before it starts. Knows no request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from genrec.decode.adapters import CONFIG_FILE, find_file_faults
from genrec.decode.vllm_async import LoraShelf, open_async_vllm
from genrec.decode.vllm_items import VllmItems
from genrec.decode.vllm_open import list_engine_args, runs_on_cpu
from genrec.errors import ModelError, RecipeError, join_problems
from genrec.manifest import read_json
from genrec.model_weights import find_adapted
from genrec.opening import ModelChoice
from genrec.prompts.chat import ChatFrame
from genrec.recommender import Recommender
from genrec.serve.metrics import ServeMetrics
from genrec.serve.settings import ServeSettings
from genrec.serve.vllm_backend import VllmBackend


def build_vllm_backend(
    choice: ModelChoice,
    settings: ServeSettings,
    metrics: ServeMetrics,
    adapters: Mapping[str, Path],
    engine_args: Mapping[str, Any],
) -> tuple[Recommender, VllmBackend]:
    """The recommender of a model directory, without weights, and the backend that has them.

    Args:
        choice: the model, and how prompts are aligned.
        settings: the backend's limits.
        metrics: the server's.
        adapters: model directories of adapters over this one, by name.
        engine_args: vLLM's own arguments; they win over genrec's.

    Raises:
        ArtifactError: the directory is missing, half written or changed.
        MissingExtraError: vLLM is not installed.
        ModelError: a model that vLLM cannot be searched with, or adapters that do not fit.
        RecipeError: a catalogue of titles.
    """
    if choice.catalogue is not None:
        raise RecipeError(
            "engine vllm decodes semantic IDs only; use engine torch for the titles of a catalogue"
        )
    checkpoint, shelf = choice.model, LoraShelf()
    if adapters:
        found = find_adapted(choice.model, adapters)
        shelf = LoraShelf(found.folders, found.own)
        checkpoint = found.base
        _check_adapters(shelf)
    given = ({"dtype": choice.dtype} if choice.dtype else {}) | dict(engine_args)
    args = list_engine_args(checkpoint, is_cpu=runs_on_cpu(), **given)
    recommender = Recommender.from_pretrained(
        choice.model,
        engine="items",
        vllm_args={"block_size": args["block_size"]},
        align=choice.align,
    )
    items = recommender.engine
    assert isinstance(items, VllmItems), "engine items gives these"
    # A base's own folder holds weights; the tokens' texts are the model's.
    start = partial(
        open_async_vllm, checkpoint, items, shelf, **{"tokenizer": str(choice.model), **given}
    )
    ends = read_ends(choice.model, recommender.tokenizer, recommender.chat)
    backend = VllmBackend(start, settings, metrics, tuple(shelf.folders), ends)
    return recommender, backend


def parse_engine_args(texts: Sequence[str]) -> dict[str, Any]:
    """VLLM's arguments from KEY=VALUE; values are JSON where they can be read so, else text.

    Raises:
        RecipeError: it lists those that are not KEY=VALUE.
    """
    args: dict[str, Any] = {}
    problems = []
    for text in texts:
        key, found, value = text.partition("=")
        name = key.strip().replace("-", "_")
        if not found or not name:
            problems.append(f"{text!r} is not KEY=VALUE, such as tensor_parallel_size=2")
            continue
        try:
            args[name] = json.loads(value)
        except ValueError:
            args[name] = value
    if problems:
        raise RecipeError(join_problems("--vllm-arg", problems))
    return args


def read_ends(path: Path, tokenizer: Any, chat: ChatFrame | None) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, the chat's, those of the generation config."""
    known = None
    if (path / "generation_config.json").is_file():
        known = GenerationConfig.from_pretrained(path).eos_token_id
    ends = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id}
    if chat is not None:
        ends.add(tokenizer.convert_tokens_to_ids(chat.end))
    return frozenset(int(end) for end in ends if end is not None)


def _check_adapters(shelf: LoraShelf) -> None:
    problems = []
    for name, folder in shelf.list_all().items():
        faults = find_file_faults(folder)
        if not faults and read_json(folder / CONFIG_FILE).get("use_dora"):
            faults = ["it is DoRA, which vLLM 0.32 refuses; serve its merged checkpoint by itself"]
        problems += [f"{name} ({folder}): {fault}" for fault in faults]
    if problems:
        raise ModelError(join_problems("adapters that cannot be used", problems))
