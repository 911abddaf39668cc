"""What every decoding `Engine` must do, whatever runs the model.

Use it by subclassing in a test module, with two fixtures (`prompts` may also come from a conftest):

    class TestMyEngine(EngineContract):
        @pytest.fixture(scope="class")
        @classmethod
        def engine(cls):
            return MyEngine(...)

        @pytest.fixture(scope="class")
        @classmethod
        def prompts(cls):
            return [[5, 8, 2], [7], ...]   # at least 4, of different lengths

The catalogue must hold at least 20 items; small is better, since the whole of it is ranked.
"""

from __future__ import annotations

import numpy as np
import pytest

from genrec.decode.engine import Engine, ItemFilter, Search
from genrec.errors import CapacityError, DataError, DecodeError, UnknownItemError
from genrec.types import RankedItems

SCORE_TOLERANCE = 1e-5
EVERY_NORMALIZE = pytest.mark.parametrize("normalize", ["vocab", "level", "child"])


def exclude(items):
    """A filter for each list of item_index."""
    return [ItemFilter(np.asarray(row, dtype=np.int64)) for row in items]


def assert_same_answers(first: RankedItems, second: RankedItems) -> None:
    """The same items in the same order, and scores equal but for rounding."""
    np.testing.assert_array_equal(first.item_index, second.item_index)
    np.testing.assert_allclose(first.scores, second.scores, atol=SCORE_TOLERANCE, rtol=1e-5)
    np.testing.assert_array_equal(first.certified, second.certified)


def assert_valid(ranked: RankedItems, n_items: int) -> None:
    """Every row holds real items once each, scores fall, and equal scores rise by item_index."""
    items, scores = ranked.item_index, ranked.scores
    assert ((items >= 0) & (items < n_items)).all()
    assert (np.diff(np.sort(items, axis=1), axis=1) > 0).all(), "an item was answered twice"
    assert np.isfinite(scores).all()
    steps = np.diff(scores, axis=1)
    assert (steps <= 0).all()
    assert (np.diff(items, axis=1)[steps == 0] > 0).all(), "ties go to the lower item_index"


class EngineContract:
    """Tests to inherit; each needs only the fixtures `engine` and `prompts`."""

    k = 5
    normalizes = ("vocab", "level", "child")
    """What the engine under test can score by; an engine of titles has no levels."""

    @pytest.fixture(autouse=True)
    def knows_normalize(self, request) -> None:
        """Skip what the engine does not offer."""
        callspec = getattr(request.node, "callspec", None)
        wanted = callspec.params.get("normalize") if callspec else None
        if wanted is not None and wanted not in self.normalizes:
            pytest.skip(f"this engine has no normalize={wanted!r}")

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        raise NotImplementedError("a subclass gives the engine under test")

    def test_contract_meets_the_protocol(self, engine, prompts):
        assert isinstance(engine, Engine)
        assert engine.n_items >= 20
        assert len({len(prompt) for prompt in prompts}) > 1 and len(prompts) >= 4

    @EVERY_NORMALIZE
    def test_contract_answers_are_real_items_best_first(self, engine, prompts, normalize):
        ranked = engine.rank_prompts(prompts, self.k, Search(normalize=normalize))
        assert ranked.item_index.shape == ranked.scores.shape == (len(prompts), self.k)
        assert ranked.item_index.dtype == np.int64 and ranked.scores.dtype == np.float32
        assert ranked.certified.shape == (len(prompts),) and ranked.certified.dtype == np.bool_
        assert_valid(ranked, engine.n_items)
        assert (ranked.scores <= 0).all(), "scores are log-probabilities"

    @EVERY_NORMALIZE
    def test_contract_a_batch_answers_like_its_prompts_alone(self, engine, prompts, normalize):
        together = engine.rank_prompts(prompts, self.k, Search(normalize=normalize))
        alone = [
            engine.rank_prompts([prompt], self.k, Search(normalize=normalize)) for prompt in prompts
        ]
        assert_same_answers(
            together,
            RankedItems(
                np.concatenate([ranked.item_index for ranked in alone]),
                np.concatenate([ranked.scores for ranked in alone]),
                np.concatenate([ranked.certified for ranked in alone]),
            ),
        )

    def test_contract_answers_come_in_the_order_of_the_prompts(self, engine, prompts):
        forward = engine.rank_prompts(prompts, self.k)
        backward = engine.rank_prompts(prompts[::-1], self.k)
        np.testing.assert_array_equal(forward.item_index, backward.item_index[::-1])

    def test_contract_the_same_request_gives_the_same_answer(self, engine, prompts):
        first, second = (engine.rank_prompts(prompts, self.k) for _ in range(2))
        np.testing.assert_array_equal(first.item_index, second.item_index)
        np.testing.assert_array_equal(first.scores, second.scores)

    def test_contract_the_whole_catalogue_can_be_ranked(self, engine, prompts):
        ranked = engine.rank_prompts(prompts, engine.n_items)
        assert_valid(ranked, engine.n_items)
        assert ranked.certified.all(), "nothing is left unexplored"

    @EVERY_NORMALIZE
    def test_contract_certified_answers_are_the_true_ones(self, engine, prompts, normalize):
        exact = engine.rank_prompts(prompts, engine.n_items, Search(normalize=normalize))
        for width in (self.k, 2 * self.k, engine.n_items):
            ranked = engine.rank_prompts(prompts, self.k, Search(width=width, normalize=normalize))
            certain = ranked.certified
            np.testing.assert_array_equal(
                ranked.item_index[certain], exact.item_index[certain, : self.k]
            )
        assert certain.all(), "beams as many as items leave nothing out"

    def test_contract_excluded_items_do_not_appear_and_cost_no_place(self, engine, prompts):
        free = engine.rank_prompts(prompts, engine.n_items)
        excluded = [row[: 3 * user] for user, row in enumerate(free.item_index[:, :12])]
        ranked = engine.rank_prompts(
            prompts, self.k, Search(width=engine.n_items), filters=exclude(excluded)
        )
        assert_valid(ranked, engine.n_items)
        for user, banned in enumerate(excluded):
            want = free.item_index[user][~np.isin(free.item_index[user], banned)][: self.k]
            np.testing.assert_array_equal(ranked.item_index[user], want)

    def test_contract_all_but_k_items_can_be_excluded(self, engine, prompts):
        kept = np.arange(0, 3 * self.k, 3)
        banned = np.setdiff1d(np.arange(engine.n_items), kept)
        ranked = engine.rank_prompts(prompts, self.k, filters=exclude([banned] * len(prompts)))
        assert_valid(ranked, engine.n_items)
        np.testing.assert_array_equal(np.sort(ranked.item_index), [kept] * len(prompts))

    def test_contract_no_prompts_give_no_answers(self, engine):
        assert engine.rank_prompts([], self.k).item_index.shape == (0, self.k)

    @pytest.mark.parametrize("k", [0, -1])
    def test_contract_refuses_an_empty_list(self, engine, prompts, k):
        with pytest.raises(CapacityError, match=rf"k={k} .*{engine.n_items} items.* 1 to"):
            engine.rank_prompts(prompts, k)

    def test_contract_refuses_more_answers_than_items(self, engine, prompts):
        k = engine.n_items + 1
        with pytest.raises(CapacityError, match=rf"k={k} .*holds {engine.n_items} items"):
            engine.rank_prompts(prompts, k)

    def test_contract_refuses_more_answers_than_a_filter_leaves(self, engine, prompts):
        n_items = engine.n_items
        excluded = [np.arange(user) for user in range(len(prompts))]
        with pytest.raises(CapacityError) as error:
            engine.rank_prompts(prompts, n_items - 1, filters=exclude(excluded))
        assert f"k={n_items - 1} is more than" in str(error.value)
        assert f"prompt 2 has {n_items - 2} legal items: 2 of {n_items} excluded" in str(
            error.value
        )
        assert "prompt 1 " not in str(error.value)

    def test_contract_refuses_fewer_beams_than_answers(self, engine, prompts):
        with pytest.raises(CapacityError, match="width=4 beams cannot give k=5 answers"):
            engine.rank_prompts(prompts, 5, Search(width=4))

    def test_contract_refuses_empty_and_foreign_prompts_in_one_message(self, engine, prompts):
        with pytest.raises(DataError) as error:
            engine.rank_prompts([prompts[0], [], [-1], [10**9]], self.k)
        assert "3 problems" in str(error.value)
        assert "prompt 1 is empty" in str(error.value)
        assert "prompt 2 holds token -1" in str(error.value)
        assert "prompt 3 holds token 1000000000" in str(error.value)

    def test_contract_refuses_filters_that_do_not_match_the_prompts(self, engine, prompts):
        with pytest.raises(DataError, match=rf"2 filters for {len(prompts)} prompts"):
            engine.rank_prompts(prompts, self.k, filters=exclude([np.arange(2)] * 2))

    def test_contract_refuses_unknown_items_in_filters(self, engine, prompts):
        n_items = engine.n_items
        excluded = [np.array([-1]), np.array([n_items]), *[np.array([0])] * (len(prompts) - 2)]
        with pytest.raises(UnknownItemError) as error:
            engine.rank_prompts(prompts, self.k, filters=exclude(excluded))
        assert "prompt 0 excludes item_index -1" in str(error.value)
        assert f"prompt 1 excludes item_index {n_items}" in str(error.value)

    def test_contract_only_allowed_items_are_answered_and_the_list_is_full(self, engine, prompts):
        free = engine.rank_prompts(prompts, engine.n_items)
        mask = np.arange(engine.n_items) % 3 == 0
        own = np.arange(engine.n_items) % 2 == 0
        masks = [mask if user % 2 else own for user in range(len(prompts))]
        seen = [row[mask[row]][:2] for row in free.item_index]
        filters = [ItemFilter(items, m) for items, m in zip(seen, masks, strict=True)]
        ranked = engine.rank_prompts(prompts, self.k, Search(width=engine.n_items), filters=filters)
        assert_valid(ranked, engine.n_items)
        for user, row in enumerate(free.item_index):
            want = row[masks[user][row] & ~np.isin(row, seen[user])][: self.k]
            np.testing.assert_array_equal(ranked.item_index[user], want)

    def test_contract_a_mask_may_leave_just_enough(self, engine, prompts):
        mask = np.zeros(engine.n_items, dtype=np.bool_)
        mask[:: engine.n_items // self.k] = True
        mask[np.flatnonzero(mask)[self.k :]] = False
        ranked = engine.rank_prompts(
            prompts, self.k, filters=[ItemFilter(allowed=mask)] * len(prompts)
        )
        np.testing.assert_array_equal(
            np.sort(ranked.item_index), [np.flatnonzero(mask)] * len(prompts)
        )

    def test_contract_refuses_masks_of_another_catalogue(self, engine, prompts):
        filters = [ItemFilter(allowed=np.ones(3, dtype=np.bool_))] * len(prompts)
        with pytest.raises(DataError, match=rf"must be \({engine.n_items},\) bool.*\n.*shape"):
            engine.rank_prompts(prompts, self.k, filters=filters)

    def test_contract_says_what_it_looked_at_and_what_it_did_not(self, engine, prompts):
        narrow = engine.rank_prompts(prompts, self.k, Search(width=self.k))
        exact = engine.rank_prompts(prompts, engine.n_items)
        assert (narrow.evaluations >= 1).all() and (exact.bound == -np.inf).all()
        for user, row in enumerate(exact.item_index):
            missed = ~np.isin(row, narrow.item_index[user])
            assert (
                exact.scores[user][missed].max()
                <= max(narrow.bound[user], narrow.scores[user, -1]) + SCORE_TOLERANCE
            )

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"max_evaluations": 0}, "max_evaluations=0; use 1 or more"),
            ({"groups": 0}, "groups=0; use 1 for plain search"),
            ({"diversity": -1.0}, "diversity=-1.0; use 0 or more"),
            ({"length_penalty": float("nan")}, "length_penalty=nan; use 0"),
            ({"exact": True, "groups": 2}, "exact with groups=2; a diverse list has no exact"),
        ],
    )
    def test_contract_refuses_searches_that_mean_nothing(self, engine, prompts, values, message):
        with pytest.raises(DecodeError, match=message):
            engine.rank_prompts(prompts, self.k, Search(**values))

    def test_contract_refuses_an_unknown_normalize(self, engine, prompts):
        with pytest.raises(DecodeError, match="normalize='tokens' is unknown; use one of vocab"):
            engine.rank_prompts(prompts, self.k, Search(normalize="tokens"))
