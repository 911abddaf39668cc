"""Random catalogues of every kind of key."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

# The largest codes make packed keys of few bits, of many, of exactly 64, and of too many.
LARGEST_CODES = (1, 3, 255, 2**15, 2**16 - 1, 2**31, 2**40)


@st.composite
def catalogues(draw):
    """Distinct code rows, in any order, with few and with very many codes a level."""
    n_levels = draw(st.integers(1, 4))
    largest = draw(st.sampled_from(LARGEST_CODES))
    code = st.integers(0, min(largest, 3)) | st.integers(0, largest)
    row = st.tuples(*[code] * n_levels)
    return np.array(draw(st.lists(row, min_size=1, max_size=40, unique=True)), dtype=np.int64)
