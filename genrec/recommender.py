"""The trained model as a recommender: item ids in, item ids that exist out.

Owns the way from a history of item ids through the prompt, the constrained search and the item
index back to item ids. Knows nothing of training, metrics or servers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from genrec.artifact import load_artifact
from genrec.catalogue import Catalogue, check_unknown
from genrec.decode.engine import PLAIN, Engine, ItemFilter, Search
from genrec.decode.filtered import rank_filtered
from genrec.decode.soft_users import UserVectors, load_users
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.errors import (
    CapacityError,
    DataError,
    ModelError,
    RecipeError,
    UnknownItemError,
    join_problems,
)
from genrec.prompts.chat import ChatFrame, read_chat
from genrec.prompts.encode import encode_history
from genrec.prompts.render import HistoryPrompt
from genrec.recipe import suggest_name
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sid_text import format_token
from genrec.tokenizers.update import check_successor
from genrec.train.users import read_user_sids
from genrec.types import Filters, IndexArray, RankedItems, Recommendation, Unknown

NO_FILTERS = Filters()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownUsers:
    """The users that a model was trained with: semantic ids by user id, and embeddings."""

    sids: Mapping[str, str]
    vectors: UserVectors | None


class Recommender:
    """A model directory, ready to answer; meets `genrec.types.RanksItems`."""

    name = "genrec"

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        prompt: HistoryPrompt,
        index: pl.DataFrame,
        chat: ChatFrame | None = None,
        users: KnownUsers | None = None,
    ) -> None:
        """Join an engine with the tokenizer, prompt and item index it was trained with.

        Args:
            engine: answers prompts with rows of `index`.
            tokenizer: the language model's Hugging Face tokenizer, SID tokens included.
            prompt: renders a history the way training did.
            index: item_index, item_id, title, sid, codes; row order is item_index.
            chat: what stood around every prompt in training; None for plain text.
            users: who the model knows, where its prompts say who the user is.
        """
        self._users = users or KnownUsers({}, None)
        self.engine = engine
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._chat = chat
        self.catalogue = Catalogue(index)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str | None = None, dtype: str | None = None
    ) -> Self:
        """The recommender in a model directory that `genrec train` wrote.

        Args:
            path: the model artefact.
            device: `cpu`, `cuda`, `cuda:1`, ...; the GPU if there is one when unset.
            dtype: `float32` or `bfloat16`; float32 on CPU and bfloat16 on GPU when unset.

        Raises:
            ArtifactError: the directory is missing, half written or changed.
            ModelError: weights, tokenizer and item index do not belong together.
        """
        artifact = load_artifact(path, step="train")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        disable_progress_bar()  # transformers draws one for each load, terminal or not
        tokenizer = AutoTokenizer.from_pretrained(artifact.path)
        model = AutoModelForCausalLM.from_pretrained(artifact.path, dtype=_parse_dtype(dtype))
        model.eval().to(device)
        index = pl.read_parquet(artifact.path / "item_index.parquet").sort("item_index")
        settings = json.loads((artifact.path / "genrec.json").read_text(encoding="utf-8"))
        codes = np.array(index["codes"].to_list(), dtype=np.int64)
        level_tokens = _find_tokens(tokenizer, settings["codebook_sizes"], model)
        engine = TorchEngine(model, Trie.from_codes(codes), level_tokens)
        prompt = HistoryPrompt.load(artifact.path / "recommend.json")
        # After the engine's own check of the model, whose made-up prompts have no users.
        known = load_users(model, tokenizer, artifact.path)
        users = KnownUsers(read_user_sids(artifact.path), known)
        return cls(engine, tokenizer, prompt, index, read_chat(settings.get("chat")), users)

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        return self.catalogue.n_items

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The catalogue's item ids, in item_index order."""
        return self.catalogue.item_ids

    def update_items(
        self,
        tokenizer: SemanticIdTokenizer,
        titles: Mapping[str, str],
        categories: Mapping[str, str] | None = None,
        *,
        allow_reuse: bool = False,
    ) -> Self:
        """A recommender of a newer tokenizer's items over the same weights; this one goes on.

        The trie is updated, not built anew: items that stay keep their order, new ones follow.

        Args:
            tokenizer: a later version of the one that the model was trained with.
            titles: at least those of the new items.
            categories: those of new items that have any.
            allow_reuse: whether a new item may have the ID of one that is gone.

        Raises:
            DataError: a new item without a title.
            ModelError: no such version, or an engine whose items cannot change.
        """
        engine = self.engine
        if not isinstance(engine, TorchEngine):
            raise ModelError(
                f"a {type(engine).__name__} cannot change its items while it runs; make a model "
                f"directory with `genrec tokenize apply` and load that"
            )
        known = self.catalogue
        sids = dict(zip(known.item_ids, known.sids, strict=True))
        check_successor(sids, engine.codebook_sizes, tokenizer, allow_reuse=allow_reuse)
        added = [row for row, item in enumerate(tokenizer.item_ids) if item not in known.rows]
        ids = [tokenizer.item_ids[row] for row in added]
        untitled = [repr(item_id) for item_id in ids if item_id not in titles]
        if untitled:
            raise DataError(join_problems("new items need a title, even an empty one", untitled))
        left = set(tokenizer.item_ids)
        removed = [row for row, item_id in enumerate(self.item_ids) if item_id not in left]
        trie = engine.trie.remove(removed) if removed else engine.trie
        trie = trie.insert(tokenizer.codes[added]) if added else trie
        new = pl.DataFrame(
            {
                "item_id": ids,
                "title": [titles[item_id] for item_id in ids],
                "sid": [tokenizer.sids[row] for row in added],
                "categories": [(categories or {}).get(item_id, "") for item_id in ids],
            },
            schema=dict.fromkeys(("item_id", "title", "sid", "categories"), pl.String),
        )
        columns = [name for name in new.columns if name in known.index.columns]
        stays = known.index.filter(pl.col("item_id").is_in(list(left)))
        index = pl.concat([stays.select(columns), new.select(columns)])
        engine = engine.replace_trie(trie)
        return type(self)(engine, self._tokenizer, self._prompt, index, self._chat, self._users)

    def recommend(
        self,
        history_item_ids: Sequence[str],
        k: int = 10,
        exclude_seen: bool = True,
        unknown: Unknown = "error",
        user_id: str | None = None,
        *,
        filters: Filters = NO_FILTERS,
        search: Search = PLAIN,
    ) -> list[Recommendation]:
        """The k best next items for one history, best first.

        Args:
            history_item_ids: what the user chose, oldest first.
            k: how many answers.
            exclude_seen: never answer with an item of the history.
            unknown: what to do with ids outside the catalogue: `error`, or `skip` them.
            user_id: whose history it is; of use where `needs_users`.
            filters: which items may be answered; fewer than k come back only where fewer are legal.
            search: how to search.

        Raises:
            UnknownItemError: an id outside the catalogue, and `unknown` is `error`.
            DataError: the history is empty, or nothing of it is left after skipping; or the model's
                prompt names the user, and no user was given that it knows.
            CapacityError: k is below 1 or above the catalogue's size.
        """
        user_ids = None if user_id is None else [user_id]
        found = self.recommend_batch(
            [history_item_ids], k, exclude_seen, unknown, user_ids, filters=filters, search=search
        )
        return found[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool = True,
        unknown: Unknown = "error",
        user_ids: Sequence[str] | None = None,
        *,
        filters: Filters = NO_FILTERS,
        search: Search = PLAIN,
    ) -> list[list[Recommendation]]:
        """The same as `recommend` for many histories at once, in their order."""
        check_unknown(unknown)
        rows = [self.catalogue.find_rows(history, unknown) for history in histories]
        self._check_histories(rows, k)
        nothing = np.empty(0, dtype=np.int64)
        seen = [np.unique(history) if exclude_seen else nothing for history in rows]
        wanted = self.catalogue.build_filters(filters, seen, available=None)
        ranked = self.rank_filtered(rows, k, wanted, search, user_ids=user_ids)
        return [
            [
                self.catalogue.describe(int(item), rank, float(score))
                for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
                if item >= 0
            ]
            for items, scores in zip(ranked.item_index, ranked.scores, strict=True)
        ]

    def find_titles(self, item_ids: Sequence[str]) -> list[str]:
        """The titles of items; empty for an id outside the catalogue."""
        return self.catalogue.find_titles(item_ids)

    @property
    def needs_users(self) -> bool:
        """Whether the model's prompt says who the user is, so that `user_id` must be given."""
        return self._prompt.needs_user or self._prompt.needs_embedding

    def rank_items(
        self, histories: Sequence[IndexArray], k: int, *, exclude_seen: bool = True
    ) -> RankedItems:
        """Rank the catalogue for histories of item_index; see `RanksItems.rank_items`."""
        return self._rank(histories, k, exclude_seen, None)

    def rank_users(
        self,
        user_ids: Sequence[str],
        histories: Sequence[IndexArray],
        k: int,
        *,
        exclude_seen: bool = True,
    ) -> RankedItems:
        """Rank the catalogue for users with these histories; see `RanksUsers.rank_users`."""
        return self._rank(histories, k, exclude_seen, user_ids)

    def _rank(
        self,
        histories: Sequence[IndexArray],
        k: int,
        exclude_seen: bool,
        user_ids: Sequence[str] | None,
    ) -> RankedItems:
        self._check_histories(histories, k)
        nothing = np.empty(0, dtype=np.int64)
        seen = [np.unique(history) if exclude_seen else nothing for history in histories]
        return self.rank_filtered(histories, k, [ItemFilter(s) for s in seen], user_ids=user_ids)

    def rank_filtered(
        self,
        histories: Sequence[IndexArray],
        k: int,
        filters: Sequence[ItemFilter],
        search: Search = PLAIN,
        *,
        user_ids: Sequence[str] | None = None,
    ) -> RankedItems:
        """Rank what each user may be answered with; -1 where fewer than k items are legal.

        Args:
            histories: as for `RanksItems.rank_items`.
            k: answers a user.
            filters: one a user.
            search: how to search.
            user_ids: whose histories they are; of use where `needs_users`.
        """
        self._check_histories(histories, k)
        users = self._check_users(user_ids, len(histories))
        prompts = self.encode_prompts(histories, users)
        vectors = self._users.vectors
        shown = vectors.find(users) if vectors and self._prompt.needs_embedding else None
        return rank_filtered(self.engine, prompts, filters, k, search, user_vectors=shown)

    def encode_prompts(
        self, histories: Sequence[IndexArray], user_ids: Sequence[str]
    ) -> list[list[int]]:
        """The tokens that the model reads for each user; "" names no user."""
        return [
            self._encode_history(history, user_id)
            for history, user_id in zip(histories, user_ids, strict=True)
        ]

    def _check_users(self, user_ids: Sequence[str] | None, n_histories: int) -> Sequence[str]:
        if user_ids is None:
            if self.needs_users:
                raise DataError(
                    f"this model's prompt ({self._prompt.template.id!r}) says who the user is, and "
                    f"no user was given; pass user_id (in a file of users: the column user_id)"
                )
            return [""] * n_histories
        if len(user_ids) != n_histories:
            raise DataError(
                f"{len(user_ids)} user ids were given for {n_histories} histories; give one each"
            )
        return user_ids

    def _check_histories(self, histories: Sequence[IndexArray], k: int) -> None:
        if not 1 <= k <= self.n_items:
            raise CapacityError(
                f"k={k} answers were asked for, but the catalogue has {self.n_items:,} items; "
                f"choose k from 1 to {self.n_items}"
            )
        for history in histories:
            if len(history) == 0:
                raise DataError("a history is empty; it needs at least one item")
            if history.min() < 0 or history.max() >= self.n_items:
                raise UnknownItemError(
                    f"a history holds item_index {int(history.max())} or {int(history.min())}, "
                    f"outside 0..{self.n_items - 1}; indices must come from this model's catalogue"
                )

    def _encode_history(self, history: IndexArray, user_id: str) -> list[int]:
        ids = encode_history(
            self._tokenizer,
            self._prompt,
            [self.catalogue.sids[item] for item in history],
            [self.catalogue.titles[item] for item in history],
            self._chat,
            user_sid=self._users.sids.get(user_id, ""),
        )
        return self._users.vectors.repeat_marks(ids) if self._users.vectors else ids


def _parse_dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise RecipeError(f"unknown dtype {name!r}; {suggest_name(name, known)}")
    return known[name]


def _find_tokens(tokenizer: Any, codebook_sizes: Sequence[int], model: Any) -> list[IndexArray]:
    """For each level the token id of every code; the vocabulary must hold each as one token."""
    levels = []
    n_rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    for level, size in enumerate(codebook_sizes):
        tokens = [format_token(level, code) for code in range(size)]
        missing = [token for token in tokens if token not in vocabulary]
        if missing:
            raise ModelError(
                f"the model's tokenizer lacks {len(missing)} of {size} tokens of level "
                f"{level + 1}, such as {missing[0]!r}; model, tokenizer and item index do not "
                f"belong together: run `genrec train` again"
            )
        ids = np.array([vocabulary[token] for token in tokens], dtype=np.int64)
        if ids.max() >= n_rows:
            raise ModelError(
                f"token id {int(ids.max())} has no row in the model's {n_rows} embeddings; "
                f"model and tokenizer do not belong together: run `genrec train` again"
            )
        levels.append(ids)
    return levels
