"""One way to open a model for use, whichever kind it is and whatever runs it.

Owns which opener goes with which choice; the command line, batch workers and the server come
through here. Knows no option's name and no protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genrec.decode.align import Align
from genrec.decode.remote_engine import RemoteEngine
from genrec.decode.vllm_items import VllmItems
from genrec.errors import RecipeError
from genrec.model_weights import find_switch
from genrec.recommender import Recommender
from genrec.zero_shot import load_zero_shot

EngineName = Literal["torch", "vllm"]
_ANSWERING = "the one that answers"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model to open, and how; small enough to be sent to a worker.

    Attributes:
        model: a model directory of `genrec train`.
        engine: what runs it.
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
        dtype: of the weights; None takes float32 on CPU and bfloat16 on GPU.
        catalogue: a data artefact, whose items are recommended by title; `model` is then any
            checkpoint directory or hub name. None is for a model of `genrec train`.
        adapter: a model directory of an adapter over the same base, which then answers.
        align: for engine vllm, what may be done to prompts; see `decode.align`.
    """

    model: Path
    engine: EngineName = "torch"
    device: str | None = None
    dtype: str | None = None
    catalogue: Path | None = None
    adapter: Path | None = None
    align: Align = "keep"


def open_recommender(
    choice: ModelChoice, adapters: Mapping[str, Path] | None = None
) -> Recommender:
    """The recommender of a choice.

    Args:
        choice: which model, and how.
        adapters: further adapters by name, for `Recommender.use_adapter`.

    Raises:
        ArtifactError: a directory is missing, half written or changed.
        DataError: a catalogue without titles.
        MissingExtraError: engine vllm, and vLLM is not installed.
        ModelError: the model cannot be used.
        RecipeError: a catalogue, and an engine that decodes no titles; adapters where they have
            no place.
    """
    wanted = dict(adapters or {}) | ({_ANSWERING: choice.adapter} if choice.adapter else {})
    if wanted and (choice.engine != "torch" or choice.catalogue is not None):
        raise RecipeError(
            f"adapters ({', '.join(map(str, wanted.values()))}) lie over a trained model in engine "
            f"torch; with another engine give the adapter's own directory as the model: it holds a "
            f"merged checkpoint"
        )
    if choice.catalogue is None:
        recommender = Recommender.from_pretrained(
            choice.model,
            device=choice.device,
            dtype=choice.dtype,
            engine=choice.engine,
            adapters=wanted,
            align=choice.align,
        )
        switch = find_switch(recommender.engine)
        if choice.adapter and switch:
            switch.keep(_ANSWERING)
        return recommender
    if choice.engine != "torch":
        raise RecipeError(
            f"engine {choice.engine} decodes semantic IDs only; use engine torch for the titles of "
            f"a catalogue"
        )
    # A name on the hub looks like a path, and must not be taken for one.
    return load_zero_shot(
        str(choice.model), choice.catalogue, device=choice.device, dtype=choice.dtype
    )


def open_remote(
    model: Path,
    url: str,
    *,
    name: str | None = None,
    api_key: str | None = None,
    block_tokens: int | None = None,
    align: Align = "keep",
) -> Recommender:
    """The recommender of a model directory whose weights run in a stock vLLM server.

    Args:
        model: the model directory; its weights are not read.
        url: of the server, which serves the same directory.
        name: what the server calls the model; None takes its first.
        api_key: what the server asks for.
        block_tokens: the server's --block-size, which `align="drop"` needs to know.
        align: what may be done to prompts; see `decode.align`.

    Raises:
        ArtifactError: the directory is missing, half written or changed.
        ModelError: a model that vLLM cannot be searched with, or a server that cannot be used.
        RecipeError: align="drop" without block_tokens.
    """
    recommender = Recommender.from_pretrained(
        model, engine="items", vllm_args={"block_size": block_tokens}, align=align
    )
    items = recommender.engine
    assert isinstance(items, VllmItems), "engine items gives these"
    recommender.engine = RemoteEngine(url, items, name, api_key=api_key)
    return recommender
