"""Small data and tokenizer artefacts, written as the contracts say, and tiny tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from genrec.artifact import write_artifact
from genrec.prompts.recipe import PromptsRecipe
from genrec.recipe import Recipe, find_folder

TITLES = (
    "Blue shoe",
    "Red <a_1><b_2> hat",
    "",
    "Old\x00 {{ lamp }}\nof\tbrass",
    "<|im_start|>system",
)
BRANDS = ("Acme", "", "Acme", "[INST] Brand", "Zed")


class FakeData(Recipe):
    """Stands for the data recipe; only what prompts inherits matters."""

    max_history: int | None = None


WriteData = Callable[..., Path]
WriteTokenizer = Callable[..., Path]


def sid_of(index: int) -> str:
    return f"<a_{index % 16}><b_{index // 16 % 16}><c_{index // 256}>"


@pytest.fixture
def write_data(tmp_path: Path) -> WriteData:
    """Writes a data artefact; the last item of each walk is test, the one before valid."""

    def write(
        walks: Sequence[Sequence[int]],
        n_items: int = 5,
        *,
        name: str = "data",
        titles: Sequence[str] = TITLES,
        max_history: int | None = None,
    ) -> Path:
        rows = [
            (user, item, place, _split_of(place, len(walk)), float(place))
            for user, walk in enumerate(walks)
            for place, item in enumerate(walk)
        ]
        out = tmp_path / name
        with write_artifact(out, step="data", recipe=FakeData(max_history=max_history)) as work:
            _item_table(n_items, titles).write_parquet(work.path / "items.parquet")
            users = pl.DataFrame(
                {"user_index": range(len(walks)), "user_id": [f"u{u}" for u in range(len(walks))]},
                schema={"user_index": pl.Int64, "user_id": pl.String},
            )
            users.write_parquet(work.path / "users.parquet")
            schema = {
                "user_index": pl.Int64,
                "item_index": pl.Int64,
                "position": pl.Int64,
                "split": pl.String,
                "timestamp": pl.Float64,
            }
            table = pl.DataFrame(rows, schema=schema, orient="row")
            table.write_parquet(work.path / "interactions.parquet")
            (work.path / "counts.json").write_text(json.dumps([]))
        return out

    return write


def _split_of(place: int, length: int) -> str:
    return {length - 1: "test", length - 2: "valid"}.get(place, "train")


def _item_table(n_items: int, titles: Sequence[str]) -> pl.DataFrame:
    title = [titles[i % len(titles)] if titles else "" for i in range(n_items)]
    return pl.DataFrame(
        {
            "item_index": range(n_items),
            "item_id": [f"i{i}" for i in range(n_items)],
            "title": title,
            "brand": [BRANDS[i % len(BRANDS)] for i in range(n_items)],
            "categories": ["Shoes > Blue"] * n_items,
            "description": [""] * n_items,
            "price": [None if i % 2 else 9.5 for i in range(n_items)],
            "text": [f"title: {text}; number {i}" for i, text in enumerate(title)],
        },
        schema_overrides={"item_index": pl.Int64, "price": pl.Float64},
    )


@pytest.fixture
def write_tokenizer(tmp_path: Path) -> WriteTokenizer:
    """Writes the part of a tokenizer artefact that prompts reads."""

    def write(
        n_items: int = 5,
        *,
        item_ids: Sequence[str] | None = None,
        sids: Sequence[str] | None = None,
        name: str = "tokenizer",
    ) -> Path:
        ids = list(item_ids) if item_ids is not None else [f"i{i}" for i in range(n_items)]
        texts = list(sids) if sids is not None else [sid_of(i) for i in range(len(ids))]
        out = tmp_path / name
        with write_artifact(out, step="tokenize", recipe=Recipe()) as work:
            # Reversed: rows are matched by id, never by place.
            table = pl.DataFrame({"item_id": ids[::-1], "sid": texts[::-1]})
            table.write_parquet(work.path / "codes.parquet")
        return out

    return write


@pytest.fixture
def recipe() -> PromptsRecipe:
    # By path, because finding shipped names reads every recipe there is.
    folder = find_folder("prompts")
    files = tuple(str(folder / f"{name}.yaml") for name in ("sequential", "items"))
    return PromptsRecipe(templates=files, max_valid_rows=None)


WORDS = ["blue shoe red hat old lamp history next item a b c 12 im_start system title"] * 5


def make_tokenizer(
    *,
    normalizer: normalizers.Normalizer | None = None,
    added: Sequence[str] = (),
    special: Sequence[str] = ("<|im_start|>", "<|im_end|>", "[INST]"),
    begin: str | None = "<s>",
    end: str | None = "</s>",
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a few hundred tokens, extended as a model's would be."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(WORDS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=begin, eos_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    sid_tokens = [f"<{level}_{code}>" for level in "abc" for code in range(16)]
    tokenizer.add_tokens([*sid_tokens, *added])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()
