"""The engine that answers for a trained model: over semantic-ID tokens, or over titles.

Owns what of the model's files it is made from, and that they belong together. Knows no history and
no file format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from transformers import AutoConfig

from genrec.decode.soft_users import FOLDER
from genrec.decode.title_engine import TitleEngine
from genrec.decode.titles import build_trained_titles
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.decode.vllm_engine import VllmEngine
from genrec.decode.vllm_items import VllmItems
from genrec.decode.vllm_open import open_vllm
from genrec.errors import ModelError
from genrec.prompts.chat import read_chat
from genrec.prompts.render import HistoryPrompt
from genrec.tokenizers.sid_text import format_token
from genrec.types import IndexArray


def build_engine(
    model: Any,
    tokenizer: Any,
    index: pl.DataFrame,
    settings: Mapping[str, Any],
    prompt: HistoryPrompt,
) -> TorchEngine | TitleEngine:
    """The engine of a model that was trained to answer this prompt.

    Args:
        model: with its head, adapters merged.
        tokenizer: its own.
        index: title and codes of the items, in item_index order.
        settings: what `genrec.json` holds.
        prompt: whose target says whether answers are titles.

    Raises:
        ModelError: weights, tokenizer and item index do not belong together.
    """
    if prompt.asks_title:
        titles, chat = index["title"].fill_null("").to_list(), read_chat(settings.get("chat"))
        return TitleEngine(model, build_trained_titles(tokenizer, titles, prompt, chat))
    codes = np.array(index["codes"].to_list(), dtype=np.int64)
    n_rows = model.get_input_embeddings().weight.shape[0]
    level_tokens = find_tokens(tokenizer, settings["codebook_sizes"], n_rows)
    return TorchEngine(model, Trie.from_codes(codes), level_tokens)


def build_vllm_engine(
    path: Path,
    tokenizer: Any,
    index: pl.DataFrame,
    settings: Mapping[str, Any],
    prompt: HistoryPrompt,
    **vllm_args: Any,
) -> VllmEngine:
    """The engine of a model directory in a vLLM that is started for it.

    Args:
        path: the model directory.
        tokenizer: as for `build_engine`.
        index: as for `build_engine`.
        settings: as for `build_engine`.
        prompt: as for `build_engine`.
        vllm_args: as for `open_vllm`.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: a model that vLLM cannot be searched with.
    """
    items = build_items(path, tokenizer, index, settings, prompt)
    llm = open_vllm(path, **vllm_args)
    return VllmEngine(llm, items.trie, items.token_ids, vllm_args.get("adapters"))


def build_items(
    path: Path,
    tokenizer: Any,
    index: pl.DataFrame,
    settings: Mapping[str, Any],
    prompt: HistoryPrompt,
    **vllm_args: Any,
) -> VllmItems:
    """What an engine needs of a model directory to search a model that runs elsewhere.

    Args:
        path: the model directory.
        tokenizer: as for `build_engine`.
        index: as for `build_engine`.
        settings: as for `build_engine`.
        prompt: as for `build_engine`.
        vllm_args: `block_size` if it is known; others do not matter here.

    Raises:
        ModelError: a model that vLLM cannot be searched with.
    """
    if prompt.asks_title or (path / FOLDER).is_dir():
        kind = "answers with titles" if prompt.asks_title else "has soft user tokens"
        raise ModelError(
            f"the model at {path} {kind}; engine vllm decodes semantic IDs after tokens only, so "
            f"use engine torch"
        )
    n_rows = AutoConfig.from_pretrained(path).get_text_config(decoder=True).vocab_size
    level_tokens = find_tokens(tokenizer, settings["codebook_sizes"], n_rows)
    trie = Trie.from_codes(np.array(index["codes"].to_list(), dtype=np.int64))
    return VllmItems(trie, level_tokens, n_rows, vllm_args.get("block_size"))


def find_tokens(tokenizer: Any, codebook_sizes: Sequence[int], n_rows: int) -> list[IndexArray]:
    """For each level the token id of every code; the vocabulary must hold each as one token.

    Raises:
        ModelError: it does not.
    """
    levels = []
    vocabulary = tokenizer.get_vocab()
    for level, size in enumerate(codebook_sizes):
        tokens = [format_token(level, code) for code in range(size)]
        missing = [token for token in tokens if token not in vocabulary]
        if missing:
            raise ModelError(
                f"the model's tokenizer lacks {len(missing)} of {size} tokens of level "
                f"{level + 1}, such as {missing[0]!r}; model, tokenizer and item index do not "
                f"belong together: run `genrec train` again"
            )
        ids = np.array([vocabulary[token] for token in tokens], dtype=np.int64)
        if ids.max() >= n_rows:
            raise ModelError(
                f"token id {int(ids.max())} has no row in the model's {n_rows} embeddings; "
                f"model and tokenizer do not belong together: run `genrec train` again"
            )
        levels.append(ids)
    return levels
