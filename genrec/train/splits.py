"""The instructions' two splits as token ids.

Owns which rows of an instructions artefact a run trains on and validates with. Knows no model.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from genrec.decode.align import find_padding
from genrec.errors import DataError
from genrec.train.align import list_first_tokens, pad_rows
from genrec.train.checkpoint import Checkpoint
from genrec.train.domains import check_domain, choose_domain
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRows, encode_rows
from genrec.train.soft_users import TrainedUsers, repeat_marks

_log = logging.getLogger(__name__)


def encode_splits(
    recipe: TrainRecipe,
    checkpoint: Checkpoint,
    instructions: Path,
    soft: TrainedUsers | None = None,
) -> tuple[EncodedRows, EncodedRows | None]:
    """Training rows, and validation rows by length; None where nothing is validated.

    Args:
        recipe: domain, max_tokens, align and the sample for validation.
        checkpoint: tokenizer, extended, and the frame that prompts stand in.
        instructions: the prompts step's directory.
        soft: the users whom rows show as soft tokens.

    Raises:
        DataError: there is nothing to train on, no row is short enough, or stop_metric has no
            validation to be measured at.
    """
    tokenizer = checkpoint.tokenizer
    padding = find_padding(recipe.align, tokenizer)

    def encode(split: Any, name: str) -> EncodedRows:
        rows = encode_rows(tokenizer, split, recipe.max_tokens, name, checkpoint.chat)
        if padding is not None:
            return pad_rows(rows, padding, list_first_tokens(tokenizer), recipe.max_tokens)
        return rows if soft is None else repeat_marks(rows, soft.known, recipe.max_tokens)

    train = _load_split(instructions / "train")
    check_domain(train, recipe.domain, instructions)
    rows = encode(choose_domain(train, recipe.domain), "training")
    valid = choose_domain(_load_split(instructions / "valid"), recipe.domain)
    if len(valid) == 0 or recipe.eval_every == 0:
        if recipe.stop_metric != "loss":
            raise DataError(
                f"stop_metric {recipe.stop_metric} is measured at validations, and there are no "
                f"validation rows; write some (max_valid_rows of the prompts recipe), or use "
                f"stop_metric: loss"
            )
        _log.info("train: no validation; the last weights are kept")
        return rows, None
    if len(valid) > recipe.eval_rows:
        random = np.random.default_rng(recipe.seed)
        chosen = random.choice(len(valid), size=recipe.eval_rows, replace=False)
        valid = valid.select(np.sort(chosen))
    encoded = encode(valid, "validation")
    return rows, encoded.select(np.argsort(encoded.lengths, kind="stable"))


def _load_split(folder: Path) -> Any:
    """The split's `datasets.Dataset`; an empty list where it has no rows."""
    from datasets import load_from_disk  # noqa: PLC0415  (slow to import, needed only here)

    # datasets 5.2 writes a data set of no rows without files, and then cannot open it.
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return load_from_disk(str(folder)) if state["_data_files"] else []
