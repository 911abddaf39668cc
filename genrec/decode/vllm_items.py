"""The items of a model that runs elsewhere: what its search needs, without its weights.

Owns the trie and the tokens of its codes, and the search over them, for engines that are asked in
requests. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from numpy.typing import ArrayLike
from torch import Tensor

from genrec.decode.engine import PLAIN, ItemFilter, Search
from genrec.decode.head import check_token_ids
from genrec.decode.request import EngineLimits, Request
from genrec.decode.search import Question, drive_search, search_items
from genrec.decode.torch_engine import check_levels
from genrec.decode.trie import Trie
from genrec.decode.vllm_steps import StepRequest, StepWriter
from genrec.errors import ModelError
from genrec.types import IndexArray, RankedItems


class VllmItems:
    """A trie and its tokens; an `Engine` in form, so that a `Recommender` can hold it."""

    def __init__(
        self,
        trie: Trie,
        level_token_ids: Sequence[IndexArray],
        vocabulary_size: int,
        block_tokens: int | None = None,
    ) -> None:
        """Check that the trie and the tokens belong together.

        Args:
            trie: the legal code sequences; answers are its item_index.
            level_token_ids: for each level the token id of code 0, 1, 2 and so on.
            vocabulary_size: rows of the model's head.
            block_tokens: of the prefix cache of the engine that runs the model, where known.

        Raises:
            ModelError: tokens that do not fit.
        """
        check_levels(trie, level_token_ids)
        self.trie = trie
        self.token_ids = check_token_ids(level_token_ids, vocabulary_size)
        self.vocabulary_size = vocabulary_size
        self.block_tokens = block_tokens

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        return self.trie.n_items

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has a token for."""
        return tuple(len(ids) for ids in self.token_ids)

    def limit(self, max_model_tokens: int) -> EngineLimits:
        """What a request may hold where the model reads at most so many tokens."""
        # The longest request is the prompt, all codes but the last, and the one token asked.
        return EngineLimits(
            self.n_items, self.vocabulary_size, max_model_tokens - self.trie.n_levels
        )

    def replace_trie(self, trie: Trie) -> Self:
        """Other items of the same model; these stay as they are.

        Raises:
            ModelError: codes that there is no token for.
        """
        return type(self)(trie, self.token_ids, self.vocabulary_size, self.block_tokens)

    def search(
        self,
        request: Request,
        adapters: Sequence[str | None],
        score: Callable[[list[StepRequest]], Sequence[ArrayLike]],
    ) -> RankedItems:
        """What a request is answered with by an engine that is asked one level after another.

        Args:
            request: checked.
            adapters: for each prompt the adapter it is answered with; None is the model itself.
            score: gives for each of some prefixes the log-probabilities of its wanted tokens.
        """
        writer = StepWriter(request.prompts, self.token_ids, request.search.normalize, adapters)

        def answer(question: Question) -> Tensor:
            return writer.read_gains(question, score(writer.write_requests(question)))

        return drive_search(search_items(self.trie, request), answer)

    def rank_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        search: Search = PLAIN,
        *,
        filters: Sequence[ItemFilter] | None = None,
    ) -> RankedItems:
        """Nothing: there are no weights here.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "this recommender was opened with engine='items', which loads no weights; ask the "
            "engine or the server that runs them, or open it with engine='torch'"
        )
