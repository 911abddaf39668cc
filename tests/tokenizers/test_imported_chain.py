"""A vocabulary from an index file goes through prompts and train like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrec.artifact import load_artifact
from genrec.pipeline import STEPS, read_step
from genrec.recommender import Recommender
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sharing.peer_import import export_index, import_index

pytestmark = pytest.mark.slow


def test_an_imported_vocabulary_is_trained_and_recommended_with(
    tiny_run: Path, tmp_path: Path
) -> None:
    own = SemanticIdTokenizer.from_pretrained(tiny_run / "tokenizer")
    export_index(own, tmp_path / "index.json")
    inputs = {
        "data": load_artifact(tiny_run / "data"),
        "base": load_artifact(tiny_run / "base"),
        "tokenize": import_index(tmp_path / "index.json", tmp_path / "tokenizer"),
    }
    values = {"prompts": ("small-decoder", []), "train": ("tiny", ["max_steps=2"])}
    for name, (recipe, overrides) in values.items():
        step = next(step for step in STEPS if step.name == name)
        made = step.make(read_step(name, recipe, overrides), inputs, tmp_path / name)
        inputs[name] = made
    recommender = Recommender.from_pretrained(tmp_path / "train")
    answers = recommender.recommend([own.item_ids[0], own.item_ids[1]], k=3)
    assert len({answer.item_id for answer in answers} & set(own.item_ids)) == 3
    assert all(own.encode([answer.item_id]) == [answer.sid] for answer in answers)
