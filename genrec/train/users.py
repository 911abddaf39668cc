"""The users that instructions name by semantic id.

Owns reading who they are, their codes, and what each of them chose for training. Knows no token and
no model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from genrec.artifact import Artifact
from genrec.data.dataset import Dataset
from genrec.prompts.render import USER_CODES_FILE, USERS_FILE
from genrec.recipe import hash_values
from genrec.tokenizers.sid_text import USER_PREFIX, parse_sid
from genrec.types import IndexArray


@dataclass(frozen=True, slots=True)
class UserVocabulary:
    """Users with semantic ids that chose something for training.

    Attributes:
        codebook_sizes: K of each level.
        digest: the sha256 over which user has which semantic id, those without a choice too.

    Shapes:
        codes: (U, L) int32.
        offsets: (U + 1,) int64; user u chose item_index[offsets[u]:offsets[u + 1]].
        item_index: (M,) int64.
    """

    codebook_sizes: tuple[int, ...]
    digest: str
    codes: NDArray[np.int32]
    offsets: IndexArray
    item_index: IndexArray


def read_user_sids(folder: Path) -> dict[str, str]:
    """Semantic ids by user id, of an instructions or model directory; empty where it has none."""
    path = folder / USERS_FILE
    if not path.is_file():
        return {}
    table = pl.read_parquet(path)
    return dict(zip(table["user_id"].to_list(), table["sid"].to_list(), strict=True))


def read_users(instructions: Path, data: Artifact) -> UserVocabulary | None:
    """The users of an instructions artefact; None where it has no user ids.

    Args:
        instructions: the prompts step's directory.
        data: the data artefact that it was made from.
    """
    if not (instructions / USER_CODES_FILE).is_file():
        return None
    sizes = json.loads((instructions / USER_CODES_FILE).read_text(encoding="utf-8"))
    sids = pl.read_parquet(instructions / USERS_FILE)
    dataset = Dataset(data)
    chosen = dataset.sequences(("train",))
    known = pl.DataFrame(
        {"user_index": chosen.user_index, "place": np.arange(len(chosen.user_index))}
    )
    rows = dataset.users.select("user_index", "user_id").join(known, on="user_index")
    rows = sids.join(rows, on="user_id", maintain_order="left")
    histories = chosen.histories()
    choices = [histories[place] for place in rows["place"].to_list()]
    lengths = [len(history) for history in choices]
    levels = len(sizes["codebook_sizes"])
    codes = [parse_sid(sid, USER_PREFIX) for sid in rows["sid"].to_list()]
    return UserVocabulary(
        codebook_sizes=tuple(int(size) for size in sizes["codebook_sizes"]),
        digest=hash_values([list(pair) for pair in sids.select("user_id", "sid").rows()]),
        codes=np.array(codes, dtype=np.int32).reshape(-1, levels),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        item_index=np.concatenate([*choices, np.empty(0, np.int64)]).astype(np.int64),
    )
