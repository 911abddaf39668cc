from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from genrec.errors import ArtifactError, CapacityError, DataError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.controls import (
    draw_codes,
    make_random,
    make_sequential,
    write_digits,
)
from genrec.tokenizers.recipe import TokenizeRecipe

from .made_data import make_given, write_data

NOTHING = np.zeros((0, 3), dtype=np.int32)


def build_recipe(**values: object) -> TokenizeRecipe:
    return TokenizeRecipe.model_validate({"codebook_sizes": [10, 10, 10], **values})


@pytest.fixture
def given(tmp_path: Path) -> FitInput:
    choices = [(0, 4, "train"), (0, 2, "train"), (0, 1, "test"), (1, 2, "train"), (1, 5, "train"),
               (1, 0, "valid")]  # fmt: skip
    return make_given(write_data(tmp_path / "data", 7, choices))


@pytest.mark.parametrize("sizes", [(10, 10, 10), (7, 1, 9), (65_536,) * 8])
def test_drawn_codes_are_distinct_and_free(sizes: tuple[int, ...]) -> None:
    nothing = np.zeros((0, len(sizes)), dtype=np.int32)
    first = draw_codes(30, sizes, nothing, seed=1)
    more = draw_codes(20, sizes, first, seed=2)
    both = np.concatenate([first, more])
    assert both.dtype == np.int32
    assert len(np.unique(both, axis=0)) == 50
    assert (both < np.array(sizes)).all()
    np.testing.assert_array_equal(first, draw_codes(30, sizes, nothing, seed=1))
    assert not np.array_equal(first, draw_codes(30, sizes, nothing, seed=3))


def test_all_codes_can_be_drawn_and_no_more() -> None:
    codes = draw_codes(27, (3, 3, 3), NOTHING, seed=0)
    assert len(np.unique(codes, axis=0)) == 27
    last = draw_codes(1, (3, 3, 3), codes[:-1], seed=0)
    np.testing.assert_array_equal(last, codes[-1:])
    with pytest.raises(CapacityError, match="28 items cannot have unique codes"):
        draw_codes(1, (3, 3, 3), codes, seed=0)


def test_drawn_codes_are_spread_evenly() -> None:
    codes = draw_codes(4000, (16, 16, 256), NOTHING, seed=0)
    counts = np.bincount(codes[:, 0], minlength=16)
    assert counts.min() > 180
    assert counts.max() < 320


def test_digits_write_numbers() -> None:
    codes = write_digits(np.array([0, 9, 10, 123, 999]), (10, 10, 10))
    assert codes.tolist() == [[0, 0, 0], [0, 0, 9], [0, 1, 0], [1, 2, 3], [9, 9, 9]]
    assert write_digits(np.array([5]), (2, 3)).tolist() == [[1, 2]]


def test_random_knows_its_items_and_extends(given: FitInput) -> None:
    random = make_random(build_recipe(quantizer="random"), 0)
    assert random.fit(given) == []
    codes = random.encode(given)
    more = random.extend_codes(5, codes)
    assert len(np.unique(np.concatenate([codes, more]), axis=0)) == 12
    with pytest.raises(DataError, match=r"(?s)'random' knows the 7 items .*  - 'item-9'"):
        random.encode(FitInput(("item-1", "item-9")))
    with pytest.raises(CapacityError, match="7 items cannot"):
        make_random(build_recipe(quantizer="random", codebook_sizes=[2, 3]), 0).fit(given)


def test_items_are_numbered_as_they_appear(
    given: FitInput, caplog: pytest.LogCaptureFixture
) -> None:
    numbered = make_sequential(build_recipe(quantizer="sequential"), 0)
    with caplog.at_level(logging.WARNING, logger="genrec"):
        numbered.fit(given)
    assert "neighbouring numbers tell who chose what together; use" in caplog.text
    # Training order is 2, 4, 5; the others follow in the catalogue's order.
    assert (numbered.encode(given) @ [100, 10, 1]).tolist() == [3, 4, 0, 5, 1, 2, 6]


def test_all_splits_leak_and_say_so(given: FitInput, caplog: pytest.LogCaptureFixture) -> None:
    values = {"quantizer": "sequential", "sequential": {"splits": "all"}}
    numbered = make_sequential(build_recipe(**values), 0)
    with caplog.at_level(logging.WARNING, logger="genrec"):
        numbered.fit(given)
    assert "validation and test choices included" in caplog.text
    assert (numbered.encode(given) @ [100, 10, 1]).tolist() == [3, 0, 1, 5, 2, 4, 6]


def test_new_items_get_the_smallest_free_numbers() -> None:
    numbered = make_sequential(build_recipe(quantizer="sequential"), 0)
    taken = np.array([[0, 0, 0], [0, 0, 2], [0, 0, 3], [9, 9, 9]], dtype=np.int32)
    assert numbered.extend_codes(3, taken).tolist() == [[0, 0, 1], [0, 0, 4], [0, 0, 5]]
    full = write_digits(np.arange(1000), (10, 10, 10))
    with pytest.raises(CapacityError, match="1,001 items"):
        numbered.extend_codes(1, full)


def test_codes_that_do_not_fit_their_items_are_refused(given: FitInput) -> None:
    random = make_random(build_recipe(quantizer="random"), 0)
    random.fit(given)
    weights = random.list_weights()
    weights["named.codes"] = weights["named.codes"][:3]
    with pytest.raises(ArtifactError, match=r"shape \(3, 3\) do not fit 7 items and 3 levels"):
        make_random(build_recipe(quantizer="random"), 0).restore_weights(weights)
