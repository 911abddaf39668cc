"""Who a row is about, for every task whose subjects lead to a user."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import Template
from genrec.prompts.render import USER_MARK, SidText, clean_text
from genrec.prompts.tasks.task import Field, always
from genrec.types import IndexArray

FindUsers = Callable[[Corpus, IndexArray], IndexArray]


def user_fields(find_users: FindUsers) -> dict[str, Field]:
    """`user_sid`, `user_soft` and `user_id`: three ways of saying who the row is about.

    `user_sid` is the user's semantic ids, where a tokenizer of users was given. `user_soft` is the
    mark that training replaces by a projection of the user's embedding (see `train.soft_users`).
    `user_id` is the outside id as text from data; models that shall know users by name need one of
    the others, which they learn.

    Args:
        find_users: (R,) subjects to (R,) user_index.
    """

    def read_sids(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        sids = corpus.user_sids
        if sids is None:
            return [SidText("") for _ in subjects]
        return [sids[user] for user in find_users(corpus, subjects).tolist()]

    def find_known(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        if corpus.user_sids is None:
            return np.zeros(len(subjects), dtype=np.bool_)
        known = np.fromiter(map(bool, corpus.user_sids), dtype=np.bool_)
        return known[find_users(corpus, subjects)]

    def read_ids(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        most = corpus.max_text_characters
        users = find_users(corpus, subjects).tolist()
        return [clean_text(corpus.user_ids[user], most) for user in users]

    def read_marks(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        return [SidText(USER_MARK)] * len(subjects)

    return {
        "user_soft": Field(read_marks, always, trusted=True),
        "user_sid": Field(read_sids, find_known, trusted=True),
        "user_id": Field(read_ids, always),
    }
