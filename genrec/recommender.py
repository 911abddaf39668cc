"""The trained model as a recommender: item ids in, item ids that exist out.

Owns the way from a history of item ids through the prompt, the constrained search and the item
index back to item ids. Knows nothing of training, metrics or servers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from transformers import AutoTokenizer

from genrec.artifact import load_artifact
from genrec.catalogue import Catalogue, change_items, check_unknown, frame_items
from genrec.decode.align import Align, Aligner, read_padding
from genrec.decode.engine import PLAIN, Engine, ItemFilter, Search, SwapsTrie
from genrec.decode.filtered import rank_filtered
from genrec.decode.int8 import quantize_engine
from genrec.decode.soft_users import UserVectors, load_users
from genrec.decode.trie import Trie
from genrec.errors import DataError, ModelError, join_problems
from genrec.model_engine import build_engine, build_items, build_vllm_engine
from genrec.model_weights import load_weights, use_adapter
from genrec.prompts.chat import ChatFrame, read_chat
from genrec.prompts.encode import encode_history
from genrec.prompts.explain import ExplainPrompt, load_explain
from genrec.prompts.render import HistoryPrompt
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.update import check_successor
from genrec.train.users import read_user_sids
from genrec.types import Filters, FloatArray, IndexArray, RankedItems, Recommendation, Unknown

NO_FILTERS = Filters()
_NO_ARGS: Mapping[str, Any] = {}
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
        self.tokenizer = tokenizer
        self._prompt = prompt
        self.chat = chat
        self.explain_prompt: ExplainPrompt | None = None  # None for a model that cannot explain
        self.aligner = Aligner()
        self.catalogue = Catalogue(index)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        engine: Literal["torch", "vllm", "items"] = "torch",
        vllm_args: Mapping[str, Any] = _NO_ARGS,
        adapters: Mapping[str, str | Path] | None = None,
        align: Align = "keep",
    ) -> Self:
        """The recommender in a model directory that `genrec train` wrote.

        Args:
            path: the model artefact.
            device: `cpu`, `cuda`, `cuda:1`, ...; the GPU if there is one when unset.
            dtype: `float32` or `bfloat16`; float32 on CPU and bfloat16 on GPU when unset. `int8`,
                on CPU alone, is quicker and approximate; a log line says how much.
            engine: what runs the model; vllm runs on what it was built for, whatever `device`;
                items loads no weights, for a model that runs elsewhere.
            vllm_args: for engine vllm, what `open_vllm` takes: adapters, tensor_parallel_size, ...
            adapters: for engine torch, model directories of adapters over this one, by name; see
                `use_adapter`.
            align: for engine vllm, what may be done to prompts that fill no whole blocks; see
                `decode.align`.

        Raises:
            ArtifactError: the directory is missing, half written or changed.
            MissingExtraError: vLLM is asked for and not installed.
            ModelError: weights, tokenizer and item index do not belong together.
        """
        artifact = load_artifact(path, step="train")
        tokenizer = AutoTokenizer.from_pretrained(artifact.path)
        index = pl.read_parquet(artifact.path / "item_index.parquet").sort("item_index")
        settings = json.loads((artifact.path / "genrec.json").read_text(encoding="utf-8"))
        prompt = HistoryPrompt.load(artifact.path / "recommend.json")
        runs: Engine
        vectors = None
        if engine != "torch":
            given = ({"dtype": dtype} if dtype else {}) | dict(vllm_args)
            build = build_items if engine == "items" else build_vllm_engine
            runs = build(artifact.path, tokenizer, index, settings, prompt, **given)
        else:
            model = load_weights(artifact.path, device, dtype, adapters)
            runs = build_engine(model, tokenizer, index, settings, prompt)
            # After the engine's own check of the model, whose made-up prompts have no users.
            vectors = load_users(model, tokenizer, artifact.path)
        users = KnownUsers(read_user_sids(artifact.path), vectors)
        opened = cls(runs, tokenizer, prompt, index, read_chat(settings.get("chat")), users)
        opened.explain_prompt = load_explain(artifact.path)
        opened.aligner = Aligner.choose(read_padding(settings.get("align")), align, runs)
        if dtype == "int8" and engine == "torch":
            quantize_engine(runs, opened.make_up_prompts())
        return opened

    def use_adapter(self, name: str | None) -> AbstractContextManager[None]:
        """A block in which answers are an adapter's; see `model_weights.use_adapter`."""
        return use_adapter(self.engine, name)

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
        engine = self._find_swapping()
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
        new = frame_items(
            ids,
            [titles[item_id] for item_id in ids],
            [tokenizer.sids[row] for row in added],
            [(categories or {}).get(item_id, "") for item_id in ids],
        )
        return self.replace_items(
            *change_items(engine.trie, known.index, removed, new, tokenizer.codes[added])
        )

    def replace_items(self, trie: Trie, index: pl.DataFrame) -> Self:
        """A recommender of other items over the same weights; this one goes on.

        Args:
            trie: their codes.
            index: item_id, title, sid and categories, in the trie's item_index order.

        Raises:
            ModelError: an engine whose items cannot change, or codes that it has no token for.
        """
        engine = self._find_swapping().replace_trie(trie)
        other = type(self)(engine, self.tokenizer, self._prompt, index, self.chat, self._users)
        other.explain_prompt, other.aligner = self.explain_prompt, self.aligner
        return other

    def _find_swapping(self) -> SwapsTrie:
        # An engine of titles has a trie, too, but not of codes.
        if isinstance(self.engine, SwapsTrie) and isinstance(self.engine.trie, Trie):
            return self.engine
        raise ModelError(
            f"a {type(self.engine).__name__} cannot change its items while it runs; make a model "
            f"directory with `genrec tokenize apply` and load that"
        )

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
        seen = _list_seen(rows, exclude_seen)
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
        wanted = [ItemFilter(seen) for seen in _list_seen(histories, exclude_seen)]
        return self.rank_filtered(histories, k, wanted, user_ids=user_ids)

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
        self.catalogue.check_histories(histories, k)
        users = self.check_users(user_ids, len(histories))
        prompts = self.encode_prompts(histories, users)
        shown = self.find_vectors(users)
        return rank_filtered(self.engine, prompts, filters, k, search, user_vectors=shown)

    def encode_prompts(
        self, histories: Sequence[IndexArray], user_ids: Sequence[str]
    ) -> list[list[int]]:
        """The tokens that the model reads for each user; "" names no user."""
        sids, titles = self.catalogue.sids, self.catalogue.titles
        return [
            self.encode_entries([sids[i] for i in history], [titles[i] for i in history], user_id)
            for history, user_id in zip(histories, user_ids, strict=True)
        ]

    def make_up_prompts(self, n_prompts: int = 32) -> list[list[int]]:
        """The prompts of random histories of 1 to 8 items, the same at each call."""
        random = np.random.default_rng(0)
        lengths = random.integers(1, 9, n_prompts)
        histories = [random.integers(0, self.n_items, length) for length in lengths]
        return self.encode_prompts(histories, [""] * n_prompts)

    def encode_entries(
        self, sids: Sequence[str], titles: Sequence[str], user_id: str = ""
    ) -> list[int]:
        """The tokens that the model reads for semantic ids and their titles, oldest first."""
        user_sid = self._users.sids.get(user_id, "")
        prompt, chat = self._prompt, self.chat

        def encode(start: int) -> list[int]:
            shown = sids[start:], titles[start:]
            ids = encode_history(self.tokenizer, prompt, *shown, chat, user_sid=user_sid)
            return self._users.vectors.repeat_marks(ids) if self._users.vectors else ids

        return self.aligner.align(encode, len(sids), prompt.max_history)

    def find_vectors(self, user_ids: Sequence[str]) -> FloatArray | None:
        """The embedding of each user, where the model's prompt shows them; else None."""
        vectors = self._users.vectors
        return vectors.find(user_ids) if vectors and self._prompt.needs_embedding else None

    def check_users(self, user_ids: Sequence[str] | None, n_histories: int) -> Sequence[str]:
        """The user ids, "" each where none were given and the prompt needs none."""
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


def _list_seen(histories: Sequence[IndexArray], exclude_seen: bool) -> list[IndexArray]:
    """For each history the items that are not to be its answers, each once."""
    nothing = np.empty(0, dtype=np.int64)
    return [np.unique(history) if exclude_seen else nothing for history in histories]
