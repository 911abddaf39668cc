"""The order of rows, and the batches made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.train.batches import (
    ABOUT,
    IGNORED_LABEL,
    Collator,
    LengthGroups,
    collate_rows,
    count_cycles,
    group_rows,
    lay_rows,
    list_passes,
)
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import NO_USER, EncodedRow, EncodedRows, pack_rows
from genrec.train.settings import count_updates


def make_row(n_prompt: int, n_target: int, start: int = 10, **facts: int) -> EncodedRow:
    ids = np.arange(start, start + n_prompt + n_target, dtype=np.int32)
    return EncodedRow(ids, n_prompt, **facts)


def make_rows(lengths: np.ndarray, passes: list[int] | None = None) -> EncodedRows:
    rows = [EncodedRow(np.zeros(length, np.int32), 1) for length in lengths.tolist()]
    return pack_rows(rows, passes=passes)


def test_collated_targets_end_at_the_right_edge() -> None:
    batch = collate_rows([make_row(4, 2, 10), make_row(1, 3, 30, task=2)], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15], [0, 0, 30, 31, 32, 33]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [0, 0, 1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]]
    assert batch["logits_to_keep"].tolist() == [2, 3, 4]
    assert batch["labels"].tolist() == [
        [IGNORED_LABEL, IGNORED_LABEL, 14, 15],
        [IGNORED_LABEL, 31, 32, 33],
    ]
    about = {name: value.tolist() for name, value in batch[ABOUT].items()}
    assert about == {
        "tasks": [0, 2],
        "tokens": [6, 4],
        "target_rows": [[0, 0, 0], [1, 1, 1]],
    }


def test_laid_rows_are_end_to_end_and_shortest_first() -> None:
    batch = lay_rows([make_row(4, 2, 10), make_row(1, 3, 30, task=2), make_row(3, 2, 50)])
    assert batch["input_ids"].tolist() == [[*range(30, 34), *range(50, 55), *range(10, 16)]]
    assert batch["position_ids"].tolist() == [[*range(4), *range(5), *range(6)]]
    assert batch["labels"].tolist() == [[IGNORED_LABEL, 31, 32, 33, 53, 54, 14, 15]]
    assert batch["logits_to_keep"].tolist() == [0, 1, 2, 6, 7, 12, 13]
    assert batch["attention_mask"].shape == (1, 1, 1, 15)
    assert int(batch["attention_mask"].sum()) == 15
    about = {name: value.tolist() for name, value in batch[ABOUT].items()}
    assert about == {
        "tasks": [0, 2, 0],
        "tokens": [6, 4, 5],
        "target_rows": [[1, 1, 1, 2, 2, 0, 0]],
    }


def test_first_token_of_a_row_is_never_a_target() -> None:
    rows = [make_row(0, 3), make_row(0, 1, start=40)]
    padded, laid = collate_rows(rows, 0), lay_rows(rows)
    assert padded["labels"].tolist() == [[IGNORED_LABEL, 11, 12], [IGNORED_LABEL] * 3]
    assert padded["logits_to_keep"].tolist() == [0, 1]
    assert laid["labels"].tolist() == [[IGNORED_LABEL, 11, 12]]
    assert laid["logits_to_keep"].tolist() == [1, 2]


def test_runs_of_like_length_stretch_no_row_by_more_than_half() -> None:
    lengths = sorted(np.random.default_rng(0).integers(3, 400, 60).tolist())
    start = 0
    for n_rows, width, places in group_rows(lengths):
        run = lengths[start : start + n_rows]
        assert max(run) == width <= 1.5 * min(run)
        assert places is not None
        expected = [row * width + place for row, n in enumerate(run) for place in range(n)]
        assert places.tolist() == expected
        start += n_rows
    assert start == len(lengths)
    assert group_rows([7, 7, 7]) == ((3, 7, None),)


@pytest.mark.parametrize("packed", [True, False])
def test_tokens_say_whose_they_are_when_asked(packed: bool) -> None:
    rows = [make_row(2, 2, user=7), make_row(1, 1, user=NO_USER), make_row(1, 2, user=3)]
    batch = Collator(0, packed=packed, token_users=True)(rows)
    expected = [[-1, -1, 3, 3, 3, 7, 7, 7, 7]]
    if not packed:
        expected = [[7, 7, 7, 7], [-1, -1, -1, -1], [-1, 3, 3, 3]]
    assert batch[ABOUT]["token_users"].tolist() == expected
    assert batch[ABOUT]["token_users"].shape == batch["input_ids"].shape
    assert "token_users" not in Collator(0, packed=packed)(rows)[ABOUT]
    assert torch.equal(Collator(0, packed=packed)(rows)["input_ids"], batch["input_ids"])


def test_every_row_is_drawn_once_an_epoch_and_batches_have_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 1003)
    grouped = LengthGroups(make_rows(lengths), 16, seed=1, group=True)
    order = np.array(list(grouped))
    assert len(grouped) == 1003
    assert sorted(order.tolist()) == list(range(1003))

    def padding(order: np.ndarray) -> int:
        batches = np.split(order[:992], 62)
        return sum(int(lengths[b].max() * len(b) - lengths[b].sum()) for b in batches)

    plain = np.array(list(LengthGroups(make_rows(lengths), 16, seed=1, group=False)))
    assert padding(order) < padding(plain) / 10


def test_order_depends_on_seed_and_epoch_alone() -> None:
    rows = make_rows(np.arange(1, 101))
    sampler = LengthGroups(rows, 4, seed=3, group=True)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(LengthGroups(rows, 4, seed=4, group=True)) != first


@pytest.mark.parametrize("group", [True, False])
def test_each_pass_is_an_epoch_of_its_own(group: bool) -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 300)
    passes = [0] * 90 + [1] * 110 + [3] * 100
    sampler = LengthGroups(make_rows(lengths, passes), 16, seed=1, group=group)
    order = np.array(list(sampler))
    assert len(sampler) == 300
    assert sorted(order[:90].tolist()) == list(range(90))
    assert sorted(order[90:200].tolist()) == list(range(90, 200))
    assert sorted(order[200:].tolist()) == list(range(200, 300))
    sampler.set_epoch(1)
    assert list(sampler) != order.tolist()
    if group:  # batches that end in the next pass leave its own of like length
        spread = [int(np.ptp(lengths[order[at : at + 16]])) for at in range(0, 288, 16)]
        assert np.median(spread) < 25


def test_epochs_are_counted_in_passes() -> None:
    rows = make_rows(np.full(300, 5), [0] * 100 + [1] * 50 + [2] * 150)
    assert list_passes(rows) == [0, 1, 2]
    cycles = [count_cycles(rows, epochs) for epochs in (1, 1.5, 2, 3, 4)]
    assert cycles == pytest.approx([100 / 300, 125 / 300, 150 / 300, 1, 1 + 100 / 300])
    plain = make_rows(np.full(10, 5))
    assert [count_cycles(plain, epochs) for epochs in (0.3, 1, 2.5)] == [0.3, 1, 2.5]
    recipe = TrainRecipe(batch_size=10, epochs=3.0)
    assert count_updates(300, recipe, 1, cycles=1 / 3) == 10
    assert count_updates(300, recipe, 1) == 90
