"""What each user wrote in training reviews, as one text.

Owns which reviews count and their order. Knows no encoder.
"""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from genrec.data.dataset import load_dataset
from genrec.errors import DataError

_log = logging.getLogger(__name__)


def read_user_texts(data: Path) -> tuple[list[str], list[str]]:
    """The ids of users who wrote training reviews, and what each wrote, newest first.

    Reviews of the validation and test parts are never read: they describe the items that are to be
    predicted. An encoder that cuts long texts keeps the newest reviews.

    Args:
        data: a `data/` artefact.

    Raises:
        ArtifactError: `data` is no complete data artefact.
        DataError: there are no review texts.
    """
    dataset = load_dataset(data)
    way_out = (
        "make the data with `reviews: true` from a source that has reviews, such as amazon2018, or "
        "a table whose review_text column is named in `columns`"
    )
    if not dataset.has_reviews:
        raise DataError(f"{data} holds no reviews, and users are embedded by theirs; {way_out}")
    rows = (
        pl.scan_parquet(dataset.artifact.path / "interactions.parquet")
        .filter(pl.col("split") == "train")
        .select(
            "user_index",
            "position",
            # The texts are one line each, so that a title and its text stay together.
            review=pl.concat_str(
                [_strip(pl.col("review_title")), _strip(pl.col("review_text"))],
                separator=" ",
                ignore_nulls=True,
            ).str.strip_chars(),
        )
        .filter(pl.col("review") != "")
        .sort("user_index", "position", descending=[False, True])
        .group_by("user_index", maintain_order=True)
        .agg(pl.col("review").str.join("\n"))
        .collect()
    )
    if rows.is_empty():
        raise DataError(f"none of the training interactions in {data} has a review text; {way_out}")
    left_out = dataset.n_users - rows.height
    if left_out:
        _log.info(
            "%s of %s users wrote no training review and are left out",
            f"{left_out:,}",
            f"{dataset.n_users:,}",
        )
    user_ids = dataset.users["user_id"].gather(rows["user_index"]).to_list()
    return user_ids, rows["review"].to_list()


def _strip(column: pl.Expr) -> pl.Expr:
    return column.str.replace_all(r"\s+", " ").str.strip_chars()
