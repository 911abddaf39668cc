"""Selection against a plain sort."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.beam import keep_best


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 8), st.data())
def test_the_best_are_kept_and_ties_go_to_the_lower_key(counts, width, data):
    # Few distinct scores, so that most selections cut through a tie.
    total = sum(counts)
    level = st.integers(-3, 0)
    scores = np.array(data.draw(st.lists(level, min_size=total, max_size=total)), dtype=np.float32)
    keys = np.array(data.draw(st.permutations(range(total))))
    user_row = np.repeat(np.arange(len(counts)), counts)
    kept = keep_best(torch.from_numpy(scores), user_row, len(counts), width, keys)
    assert kept.index.shape == (len(counts), min(width, max(counts)))
    for user in range(len(counts)):
        mine = np.flatnonzero(user_row == user)
        order = sorted(mine.tolist(), key=lambda row: (-scores[row], keys[row]))
        n_kept = min(width, len(mine))
        assert kept.index[user, :n_kept].tolist() == order[:n_kept]
        assert kept.scores[user, :n_kept].tolist() == scores[order[:n_kept]].tolist()
        assert (kept.index[user, n_kept:] == -1).all()
        assert np.isneginf(kept.scores[user, n_kept:]).all()
        left_out = scores[order[n_kept]] if len(order) > n_kept else -np.inf
        assert kept.best_left_out[user] == left_out
