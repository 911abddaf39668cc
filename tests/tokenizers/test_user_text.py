from __future__ import annotations

import logging
from pathlib import Path

import polars as pl
import pytest

from genrec.artifact import write_artifact
from genrec.errors import DataError
from genrec.recipe import Recipe
from genrec.tokenizers.embedding.user_text import read_user_texts

Row = tuple[int, int, str, str | None, str | None]

ROWS: list[Row] = [
    (0, 0, "train", "Loud", "oldest words"),
    (0, 1, "train", None, "newest\nwords "),
    (0, 2, "valid", "Hidden", "validwort"),
    (0, 3, "test", "Hidden", "testwort"),
    (1, 0, "train", "", "  "),
    (1, 1, "test", None, "testwort"),
    (2, 0, "train", "Only a title", None),
    (2, 1, "test", None, None),
]


def write_reviews(out: Path, rows: list[Row] = ROWS, *, reviews: bool = True) -> Path:
    """A data artefact with the files that user texts are read from."""
    names = ["user_index", "position", "split", "review_title", "review_text"]
    frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    if not reviews:
        frame = frame.drop("review_title", "review_text")
    with write_artifact(out, step="data", recipe=Recipe()) as work:
        frame.write_parquet(work.path / "interactions.parquet")
        pl.DataFrame({"user_index": [0, 1, 2], "user_id": ["ann", "bob", "cem"]}).write_parquet(
            work.path / "users.parquet"
        )
    return out


def test_each_user_gets_the_training_reviews_newest_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        user_ids, texts = read_user_texts(write_reviews(tmp_path / "data"))
    assert user_ids == ["ann", "cem"]
    assert texts == ["newest words\nLoud oldest words", "Only a title"]
    assert "1 of 3 users wrote no training review" in caplog.text


def test_no_word_of_a_held_out_review_is_seen(tmp_path: Path) -> None:
    _, texts = read_user_texts(write_reviews(tmp_path / "data"))
    assert not any(word in text for text in texts for word in ("testwort", "validwort", "Hidden"))


@pytest.mark.parametrize(
    ("rows", "reviews", "message"),
    [
        (ROWS, False, r"holds no reviews.* `reviews: true`"),
        (ROWS[2:6], True, r"none of the training interactions.* has a review text"),
    ],
)
def test_data_without_reviews_is_refused(
    tmp_path: Path, rows: list[Row], reviews: bool, message: str
) -> None:
    data = write_reviews(tmp_path / "data", rows, reviews=reviews)
    with pytest.raises(DataError, match=message):
        read_user_texts(data)
