"""HR@k or NDCG@k on validation users, by constrained decoding with a model that is in training.

Owns who is asked, with which prompts, and the search over the live model, adapter and token rows
included. Knows nothing of the training loop: it is called, and leaves the model and all chance as
they were.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.integrations.fsdp import is_fsdp_enabled

from genrec.artifact import Artifact
from genrec.data.dataset import Dataset, HoldOut
from genrec.decode.align import find_padding
from genrec.decode.engine import ItemFilter
from genrec.decode.filtered import rank_filtered
from genrec.decode.probe import max_positions
from genrec.decode.prompt_cache import PromptCache
from genrec.decode.soft_users import UserVectors
from genrec.decode.title_engine import TitleEngine
from genrec.decode.title_trie import TitleTrie
from genrec.decode.titles import build_trained_titles
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.errors import DataError, RecipeError
from genrec.eval.metrics import Metric, pad_lists, score_users
from genrec.prompts.chat import ChatFrame
from genrec.prompts.encode import encode_history
from genrec.prompts.render import HistoryPrompt
from genrec.train.export import Catalogue
from genrec.train.processes import is_sharded
from genrec.train.recipe import TrainRecipe
from genrec.train.users import read_user_sids
from genrec.types import IndexArray

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Questions:
    """What validation users are asked, and what they chose.

    Attributes:
        prompts: token ids that ask for each user's next item.
        seen: each user's history as distinct item_index, which is no answer.
        targets: what each user chose next.
        vectors: each user's embedding, where prompts have marks for them.
    """

    prompts: list[list[int]]
    seen: list[IndexArray]
    targets: list[IndexArray]
    vectors: NDArray[np.float32] | None = None

    def take_share(self, place: int, of: int) -> Questions:
        """Every `of`-th user from `place` on."""
        share = slice(place, None, of)
        vectors = None if self.vectors is None else self.vectors[share]
        return Questions(self.prompts[share], self.seen[share], self.targets[share], vectors)


def ask_users(
    recipe: TrainRecipe,
    data: Artifact,
    instructions: Path,
    catalogue: Catalogue,
    tokenizer: Any,
    *,
    chat: ChatFrame | None = None,
    vectors: UserVectors | None = None,
) -> Questions:
    """The questions to `metric_users` validation users, drawn with the seed.

    A user without a training history is not asked, and neither is one whose semantic ids the prompt
    needs and the instructions lack; with a `domain`, only those who chose an item of it.

    Args:
        recipe: metric_users, domain, align and seed.
        data: the data artefact.
        instructions: the prompts step's directory.
        catalogue: the items.
        tokenizer: the extended tokenizer.
        chat: the frame that prompts stand in.
        vectors: the users' embeddings, where the model has soft user tokens.

    Raises:
        DataError: there is nobody to ask.
    """
    dataset = Dataset(data)
    prompt = HistoryPrompt.load(instructions)
    held = dataset.holdout("valid")
    user_ids = dataset.users.sort("user_index")["user_id"].to_list()
    sid_of = read_user_sids(instructions) if prompt.needs_user else {}
    rows = _find_askable(recipe, dataset, held)
    known = rows
    if prompt.needs_user and "user_sid" not in prompt.template.optional:
        known = [row for row in rows if user_ids[held.user_index[row]] in sid_of]
    if not known:
        within = "" if recipe.domain is None else f" in domain {recipe.domain!r}"
        raise DataError(
            f"stop_metric {recipe.stop_metric} has nobody to ask{within}: of the data's users "
            f"{held.n_without_target:,} have no validation item, {held.n_without_history:,} no "
            f"history before it, and {len(rows):,} no semantic ids, which the prompt needs; use "
            f"stop_metric: loss, or a split with validation items"
        )
    rows = known
    if len(rows) > recipe.metric_users:
        random = np.random.default_rng(recipe.seed)
        rows = sorted(random.choice(rows, recipe.metric_users, replace=False).tolist())
    ids = [user_ids[held.user_index[row]] for row in rows]
    prompts = [
        encode_history(
            tokenizer,
            prompt,
            [catalogue.sids[item] for item in held.histories[row]],
            [catalogue.titles[item] for item in held.histories[row]],
            chat,
            sid_of.get(user_id, ""),
        )
        for row, user_id in zip(rows, ids, strict=True)
    ]
    if vectors is not None:
        prompts = [vectors.repeat_marks(ids) for ids in prompts]
    padding = find_padding(recipe.align, tokenizer)
    if padding is not None:
        prompts = [padding.pad(ids) for ids in prompts]
    return Questions(
        prompts,
        [np.unique(held.histories[row]) for row in rows],
        [held.targets[row] for row in rows],
        vectors.find(ids) if vectors is not None and prompt.needs_embedding else None,
    )


def _find_askable(recipe: TrainRecipe, dataset: Dataset, held: HoldOut) -> list[int]:
    rows = range(len(held.user_index))
    if recipe.domain is None:
        return list(rows)
    domains = dataset.items["domain"].to_list()
    return [row for row in rows if domains[held.targets[row][0]] == recipe.domain]


def build_trie(
    instructions: Path, catalogue: Catalogue, tokenizer: Any, chat: ChatFrame | None
) -> Trie | TitleTrie:
    """What the trained model answers with: code sequences, or titles where its prompt asks so.

    Args:
        instructions: the prompts step's directory.
        catalogue: the items.
        tokenizer: the extended tokenizer.
        chat: the frame that prompts stand in.
    """
    prompt = HistoryPrompt.load(instructions)
    if prompt.asks_title:
        return build_trained_titles(tokenizer, catalogue.titles, prompt, chat)
    return Trie.from_codes(catalogue.codes.astype(np.int64))


class StopMetric:
    """A metric of constrained decoding, measured on a model as it stands."""

    def __init__(
        self,
        name: str,
        model: Any,
        trie: Trie | TitleTrie,
        level_token_ids: Sequence[IndexArray],
        questions: Questions,
    ) -> None:
        """Check that the model can be searched, before it is trained.

        Args:
            name: `HR@k` or `NDCG@k`.
            model: prepared for training; its weights are read anew at each measurement.
            trie: the catalogue's code sequences, or its titles.
            level_token_ids: for each level the token id of code 0, 1, 2 and so on; not used with
                titles.
            questions: whom to ask.

        Raises:
            RecipeError: k is above the catalogue's size, the head itself has an adapter, or
                processes share the weights.
            DataError: a prompt is longer than the model's positions.
            ModelError: a model whose logits the search does not reproduce.
        """
        if is_fsdp_enabled():  # most processes have opened the model without its weights
            raise _explain_shards(name)
        self.metric = Metric.parse(name)
        if self.metric.k > trie.n_items:
            raise RecipeError(
                f"stop_metric {name} looks at more answers than the catalogue's {trie.n_items:,} "
                f"items; use a k of at most {trie.n_items}, such as NDCG@{min(trie.n_items, 10)}"
            )
        self._model = model
        if isinstance(self._model.get_output_embeddings(), BaseTunerLayer):
            raise RecipeError(
                f"stop_metric {name} reads the rows of the head, and target_modules gives the head "
                f"an adapter of its own; leave it out of target_modules, or use stop_metric: loss"
            )
        self._trie = trie
        self._level_token_ids = level_token_ids
        self._questions = questions
        self._check_lengths()
        with _in_eval_mode(self._model):
            self._way = self._open_engine().way

    def measure(self, accelerator: Accelerator) -> float:
        """The mean over all users; every process asks a share of them and learns the whole.

        Args:
            accelerator: of the loop that trains the model.
        """
        started = time.monotonic()
        mine = self._questions.take_share(accelerator.process_index, accelerator.num_processes)
        with _in_eval_mode(self._model):
            engine = self._open_engine(self._way)
            filters = [ItemFilter(items) for items in mine.seen]
            ranked = rank_filtered(
                engine, mine.prompts, filters, self.metric.k, user_vectors=mine.vectors
            )
        scores = score_users(ranked.item_index, pad_lists(mine.targets), [self.metric])
        total: Any = torch.tensor(
            [float(scores[self.metric].sum()), float(len(mine.prompts))], device=accelerator.device
        )
        total = accelerator.reduce(total, "sum").tolist()
        value = total[0] / total[1]
        _log.info(
            "train: %s %.4f on %d validation users, %.1f s",
            self.metric,
            value,
            int(total[1]),
            time.monotonic() - started,
        )
        return float(value)

    def _open_engine(self, way: type[PromptCache] | None = None) -> TorchEngine | TitleEngine:
        if isinstance(self._trie, TitleTrie):
            return TitleEngine(self._model, self._trie, way=way)
        return TorchEngine(self._model, self._trie, self._level_token_ids, way=way)

    def _check_lengths(self) -> None:
        most, longest = max_positions(self._model), max(map(len, self._questions.prompts))
        n_steps = self._trie.n_levels - 1
        if most is not None and longest > most - n_steps:
            raise DataError(
                f"stop_metric {self.metric} asks with prompts of up to {longest:,} tokens, and the "
                f"base model takes {most - n_steps:,}; lower max_history in the prompts recipe"
            )


def check_whole(accelerator: Accelerator, name: str) -> None:
    """Raise unless every process holds the whole model, which a search needs.

    Raises:
        RecipeError: the weights are cut into shards.
    """
    if is_sharded(accelerator):
        raise _explain_shards(name)


def _explain_shards(name: str) -> RecipeError:
    return RecipeError(
        f"stop_metric {name} needs the whole model in every process, and FSDP and ZeRO-3 cut it "
        f"into shards; use stop_metric: loss, or launch with ddp.yaml or ZeRO-2"
    )


@contextmanager
def _in_eval_mode(model: Any) -> Any:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
