"""Artefacts with users and their choices, for the tests of what training does with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
from datasets import Dataset

from genrec.artifact import Artifact, write_artifact
from genrec.prompts.recipe import Template
from genrec.prompts.render import HistoryPrompt
from genrec.recipe import Recipe
from genrec.tokenizers.sid_text import USER_PREFIX, format_sid
from tests.train.made_inputs import Inputs, item_text, make_rows, write_tokenizer

N_ITEMS, N_USERS = 40, 12
USER_CODEBOOKS = (4, 3)
SPLITS = ("train", "train", "train", "valid", "test")


def walk_of(user: int) -> list[int]:
    """What a user chooses: each item follows from the last one as in `made_inputs.make_rows`."""
    items = [user * 3 % N_ITEMS]
    while len(items) < len(SPLITS):
        items.append((items[-1] * 7 + 3) % N_ITEMS)
    return items


def user_codes(user: int) -> list[int]:
    return [user % 3, user // 3 % 3]


def write_walks(out: Path, *, titles: dict[int, str] | None = None) -> Artifact:
    """Data with users; the last user has no training choice, and domains are a and b in turn."""
    texts = [item_text(item) for item in range(N_ITEMS)]
    names = [(titles or {}).get(item, text) for item, text in enumerate(texts)]
    rows = [
        (user, item, place, split, float(place))
        for user in range(N_USERS)
        for place, (item, split) in enumerate(zip(walk_of(user), SPLITS, strict=True))
        if user < N_USERS - 1 or split != "train"
    ]
    with write_artifact(out, step="data", recipe=Recipe()) as work:
        pl.DataFrame(
            {
                "item_index": np.arange(N_ITEMS),
                "item_id": [f"i{item}" for item in range(N_ITEMS)],
                "title": names,
                "text": texts,
                "domain": ["ab"[item % 2] for item in range(N_ITEMS)],
            }
        ).write_parquet(work.path / "items.parquet")
        pl.DataFrame(
            {"user_index": np.arange(N_USERS), "user_id": [f"u{user}" for user in range(N_USERS)]}
        ).write_parquet(work.path / "users.parquet")
        schema = ["user_index", "item_index", "position", "split", "timestamp"]
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(
            work.path / "interactions.parquet"
        )
    return work.artifact


def make_prompt(*, users: bool = False, titles: bool = False, soft: bool = False) -> HistoryPrompt:
    named = "User {{ user_sid }}. " if users else ""
    named += "{{ user_soft }}" if soft else ""
    shown = "{{ history_titles }}: " if titles else ""
    fields = ["history", "sid"]
    fields += ["user_sid"] if users else []
    fields += ["user_soft"] if soft else []
    fields += ["history_titles"] if titles else []
    template = Template(
        id="t1",
        source="ours",
        task="sequential",
        recommend=True,
        input=named + "The user chose: " + shown + "{{ history }}. Next:",
        target="{{ sid }}",
        fields=tuple(fields),
        separator=", ",
    )
    return HistoryPrompt(template, max_history=3, max_text_characters=80)


def write_named(
    out: Path,
    data: Artifact,
    tokenizer: Artifact,
    *,
    users: bool = False,
    titles: bool = False,
    n_train: int = 48,
    n_valid: int = 12,
) -> Artifact:
    """Instructions whose recommendation prompt can be rendered; with `users` it names the user."""
    inputs = {"data": data, "tokenize": tokenizer}
    with write_artifact(out, step="prompts", recipe=Recipe(), inputs=inputs) as work:
        for name, seed, n_rows in (("train", 0, n_train), ("valid", 1, n_valid)):
            rows = make_rows(max(n_rows, 1), N_ITEMS, seed)
            for number, row in enumerate(rows):
                row["domain"] = "ab"[row["item_index"] % 2]
                if users:
                    sid = format_sid(user_codes(number % N_USERS), USER_PREFIX)
                    row["prompt"] = f"User {sid}. {row['prompt']}"
                    row["prompt_spans"] = [
                        [start + len(sid) + 7, end + len(sid) + 7]
                        for start, end in row["prompt_spans"]
                    ]
            made = Dataset.from_list(rows).select(range(n_rows))
            made.save_to_disk(str(work.path / name), num_shards=None if n_rows else 1)
        make_prompt(users=users, titles=titles).save(work.path)
        if users:
            pl.DataFrame(
                {
                    "user_id": [f"u{user}" for user in range(N_USERS)],
                    "sid": [format_sid(user_codes(user), USER_PREFIX) for user in range(N_USERS)],
                }
            ).write_parquet(work.path / "users.parquet")
            sizes = json.dumps({"codebook_sizes": list(USER_CODEBOOKS)})
            (work.path / "user_codes.json").write_text(sizes)
    return work.artifact


def write_inputs(
    folder: Path,
    *,
    users: bool = False,
    titles: dict[int, str] | None = None,
    n_valid: int = 12,
) -> Inputs:
    """All three artefacts below `folder`."""
    data = write_walks(folder / "data", titles=titles)
    tokenizer = write_tokenizer(folder / "tokenizer", data)
    named = write_named(
        folder / "instructions",
        data,
        tokenizer,
        users=users,
        titles=titles is not None,
        n_valid=n_valid,
    )
    return Inputs(data.path, tokenizer.path, named.path)
