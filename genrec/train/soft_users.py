"""Training with users as soft tokens: their embeddings, the marks in the rows, the projector.

Owns what a run with `soft_user_tokens` needs besides what every run does. Knows no training loop.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from genrec.artifact import Artifact
from genrec.decode.soft_users import (
    SoftUsers,
    UserVectors,
    attach_users,
    check_vectors,
    find_users,
)
from genrec.errors import DataError, RecipeError
from genrec.prompts.render import USER_MARK
from genrec.tokenizers.embedding.embed import load_embeddings
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRows

_PREFIX = "soft_users."
"""What the projector's weights are called as part of a model."""
CHECKPOINT_FILE = "soft_users.safetensors"
NEEDS_VECTORS = "user_soft"
"""The fact of an instructions artefact that says whether its prompts show users as soft tokens."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedUsers:
    """The users of a run: their embeddings by user_index, and how prompts ask for them.

    Attributes:
        is_new: whether the base's tokenizer lacked the mark, whose row it must be given.

    Shapes:
        by_index: (users of the data, dimensions) float32.
    """

    known: UserVectors
    by_index: torch.Tensor
    is_new: bool = True

    def find_shown(self, ids: torch.Tensor, token_users: torch.Tensor) -> torch.Tensor:
        """The embeddings of the users whom a batch shows, in the order of their marks.

        Shapes:
            ids, token_users: (U, T) int64, tokens and the user_index of each token's row; returns
            (marked rows, dimensions) float32.
        """
        marked = token_users[ids == self.known.token_id]
        return self.by_index[marked[:: self.known.n_tokens].cpu()]


def check_soft_users(
    recipe: TrainRecipe, instructions: Artifact, user_vectors: Path | None
) -> None:
    """Raise unless recipe, instructions and user vectors agree on whether users are shown.

    Raises:
        RecipeError: one asks for users, and another has none.
    """
    shown = bool(instructions.manifest.facts.get(NEEDS_VECTORS, False))
    if shown and (not recipe.soft_user_tokens or user_vectors is None):
        raise RecipeError(
            f"the prompts of {instructions.path} show users as soft tokens (field user_soft); set "
            f"soft_user_tokens (4, for example) and give --user-vectors, the output of `genrec "
            f"embed subject=users`, or make instructions without such templates"
        )
    if recipe.soft_user_tokens and not shown:
        raise RecipeError(
            f"soft_user_tokens is {recipe.soft_user_tokens}, but no prompt of {instructions.path} "
            f"has the field user_soft; use templates that have it (`genrec prompts soft-users`), "
            f"or set soft_user_tokens=0"
        )
    if user_vectors is not None and not recipe.soft_user_tokens:
        raise RecipeError(
            "user vectors were given, but soft_user_tokens is 0; set it, or leave them out"
        )


def read_soft_users(
    recipe: TrainRecipe, tokenizer: Any, data: Path, user_vectors: Path
) -> TrainedUsers:
    """The embeddings of the data's users, and the mark's token in the tokenizer.

    Args:
        recipe: how many soft tokens.
        tokenizer: the base's; gets the mark.
        data: the data artefact.
        user_vectors: an `embeddings/` artefact of its users.

    Raises:
        ArtifactError: `user_vectors` is no complete embeddings artefact.
        DataError: it is not of users, of none of the data's users, or holds values that are not
            finite.
    """
    embedded = load_embeddings(user_vectors)
    if embedded.subject != "users":
        raise DataError(
            f"{user_vectors} holds embeddings of {embedded.subject}, not of users; make it with "
            f"`genrec embed subject=users` from this data"
        )
    user_ids = pl.read_parquet(data / "users.parquet").sort("user_index")["user_id"].to_list()
    row_of = {user_id: row for row, user_id in enumerate(embedded.item_ids)}
    found = [user_id for user_id in user_ids if user_id in row_of]
    if not found:
        raise DataError(
            f"{user_vectors} holds embeddings of {len(row_of):,} {embedded.subject}, and none of "
            f"the {len(user_ids):,} users of {data}; make it with `genrec embed subject=users` "
            f"from this data"
        )
    vectors = embedded.vectors[np.array([row_of[user_id] for user_id in found])]
    check_vectors(vectors, vectors.shape[1])
    if len(found) < len(user_ids):
        _log.info(
            "train: %s of %s users have no embedding, and are shown as the mean of the others",
            f"{len(user_ids) - len(found):,}",
            f"{len(user_ids):,}",
        )
    is_new = tokenizer.add_tokens([AddedToken(USER_MARK, normalized=False, special=False)]) > 0
    token_id = int(tokenizer.convert_tokens_to_ids(USER_MARK))
    known = UserVectors(tuple(found), vectors, token_id, recipe.soft_user_tokens)
    return TrainedUsers(known, torch.from_numpy(known.find(user_ids)), is_new)


def add_mark(model: Any, tokenizer: Any, users: TrainedUsers) -> None:
    """Give the model a row for the mark, unless it had one: an adapter's base stays as it is.

    Args:
        model: the base, extended by all other tokens.
        tokenizer: has the mark already.
        users: whose mark it is.
    """
    if not users.is_new:
        return
    token_id = users.known.token_id
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        # Nothing reads the row, but the head scores it: not by chance, so that runs are repeatable.
        with torch.no_grad():
            module.weight[token_id] = module.weight[:token_id].mean(0)


def add_projector(model: Any, users: TrainedUsers, seed: int) -> None:
    """Give a model that is ready to train the projector, which learns with it.

    Args:
        model: adapter or not; the projector is no part of an adapter.
        users: whose embeddings it will see.
        seed: of its first weights.
    """
    rows = model.get_input_embeddings().weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = _build_projector(users.known, rows.shape[1])
        projector.start_from(rows.detach().cpu())
    attach_users(model, projector.to(rows.device))


def attach_projector(model: Any, users: TrainedUsers) -> None:
    """Give a model a projector that has only its shape, for an estimate.

    Args:
        model: as for `add_projector`.
        users: whose embeddings it would see.
    """
    attach_users(model, _build_projector(users.known, model.get_input_embeddings().weight.shape[1]))


def _build_projector(known: UserVectors, width: int) -> SoftUsers:
    return SoftUsers(known.vectors.shape[1], known.n_tokens, width, known.token_id)


def repeat_marks(rows: EncodedRows, users: UserVectors, max_tokens: int) -> EncodedRows:
    """The rows with each mark as often as a user has soft tokens.

    Raises:
        DataError: no row is left that is short enough.
    """
    marks = rows.tokens == users.token_id
    counts = np.where(marks, users.n_tokens, 1)
    ends = np.concatenate([[0], np.cumsum(counts)])
    places = np.arange(len(rows.tokens)) - np.repeat(rows.offsets[:-1], rows.lengths)
    in_prompt = marks & (places < np.repeat(rows.prompt_lengths, rows.lengths))
    added = np.concatenate([[0], np.cumsum(in_prompt)])
    more = np.diff(added[rows.offsets]) * (users.n_tokens - 1)
    longer = EncodedRows(
        np.repeat(rows.tokens, counts),
        ends[rows.offsets].astype(np.int64),
        (rows.prompt_lengths + more).astype(np.int32),
        tasks=rows.tasks,
        users=rows.users,
        passes=rows.passes,
        task_names=rows.task_names,
    )
    return longer.drop_longer(
        max_tokens,
        "with their users' soft tokens",
        f"with {users.n_tokens} soft tokens a user; raise max_tokens or lower soft_user_tokens",
    )


def save_projector(model: Any, folder: Path) -> None:
    """Write a checkpoint's projector, where there is one; an adapter's files do not hold it."""
    users = find_users(model)
    if users is not None:
        state = {
            f"{_PREFIX}{name}": weight.detach().cpu() for name, weight in users.state_dict().items()
        }
        save_file(state, str(folder / CHECKPOINT_FILE))


def load_projector(model: Any, folder: Path) -> None:
    """Read a checkpoint's projector, where there is one."""
    users = find_users(model)
    if users is not None:
        state = load_file(str(folder / CHECKPOINT_FILE))
        users.load_state_dict({name.removeprefix(_PREFIX): state[name] for name in state})
