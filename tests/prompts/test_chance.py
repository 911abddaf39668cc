"""Chance by row: the same for the same row, and fair."""

from __future__ import annotations

import numpy as np

from genrec.prompts.chance import draw_below, draw_distinct


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    rows = np.arange(50)
    sizes = rows % 9
    whole = draw_distinct(1, "x", rows, sizes, 4)
    assert (draw_distinct(1, "x", rows[7:9], sizes[7:9], 4) == whole[7:9]).all()
    assert (draw_distinct(2, "x", rows, sizes, 4) != whole).any()
    assert (draw_distinct(1, "y", rows, sizes, 4) != whole).any()
    assert (draw_below(1, "x", rows, 6, 3) < 6).all()


def test_distinct_draws_are_distinct_and_fit() -> None:
    sizes = np.array([0, 1, 3, 4, 9])
    drawn = draw_distinct(0, "x", np.arange(5), sizes, 4)
    assert drawn[:3].tolist() == [[-1, -1, -1, -1], [-1, -1, -1, 0], [-1, 0, 1, 2]]
    assert drawn[3].tolist() == [0, 1, 2, 3]
    assert len(set(drawn[4].tolist())) == 4 and 0 <= drawn[4].min() and drawn[4].max() < 9


def test_distinct_draws_are_uniform() -> None:
    rows = np.arange(20_000)
    drawn = draw_distinct(0, "x", rows, np.full(len(rows), 7), 3)
    counts = np.bincount(drawn.ravel(), minlength=7)
    expected = len(rows) * 3 / 7
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)
