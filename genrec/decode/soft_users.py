"""Users as soft tokens: an embedding of a user, projected to rows that a prompt holds.

Owns the projector, its files, and how its rows take the place of a marker token in a forward pass.
Knows neither how user embeddings are made nor how the projector is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu

from genrec.errors import ArtifactError, DataError, ModelError
from genrec.manifest import read_json, write_json
from genrec.prompts.render import USER_MARK

FOLDER = "soft_users"
_GELU_SPREAD = 0.65
"""The root mean square of GELU over a unit normal."""
_HELD = "_genrec_soft_users"
_WEIGHTS, _CONFIG, _USERS = "projector.safetensors", "config.json", "users.parquet"


class SoftUsers(nn.Module):
    """A user's embedding as `n_tokens` rows of a language model's input.

    Source:
        UQABench (Liu et al., KDD 2025): user embeddings as soft prompts. Its adapter is one of
        several; this one is a two-layer perceptron over a normalised embedding.
    """

    def __init__(self, n_dimensions: int, n_tokens: int, width: int, token_id: int) -> None:
        """Project embeddings of `n_dimensions` to `n_tokens` rows of `width` each.

        Args:
            n_dimensions: of a user's embedding.
            n_tokens: soft tokens a user.
            width: of the language model.
            token_id: of `USER_MARK`, which a prompt holds `n_tokens` times in a row.
        """
        super().__init__()
        self.n_tokens = n_tokens
        self.token_id = token_id
        self.n_dimensions = n_dimensions
        self.norm = nn.LayerNorm(n_dimensions, elementwise_affine=False)
        self.first = nn.Linear(n_dimensions, width)
        self.last = nn.Linear(width, n_tokens * width)
        self._shown: Tensor | None = None
        self.is_off = False

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        """Begin where the language model's own rows lie: their mean, spread as they are.

        Shapes:
            rows: (V, D), the input embeddings.
        """
        nn.init.normal_(self.first.weight, std=self.first.in_features**-0.5)
        nn.init.zeros_(self.first.bias)
        width = self.last.in_features
        nn.init.normal_(
            self.last.weight, std=float(rows.float().std()) / (_GELU_SPREAD * width**0.5)
        )
        self.last.bias.copy_(rows.float().mean(0).repeat(self.n_tokens))

    def forward(self, vectors: Tensor) -> Tensor:
        """The soft tokens of users.

        Shapes:
            vectors: (R, n_dimensions) in, (R, n_tokens, D) out.
        """
        hidden = gelu(self.first(self.norm(vectors.to(self.first.weight.dtype))))
        rows: Tensor = self.last(hidden)
        return rows.view(len(vectors), self.n_tokens, -1)

    @contextmanager
    def show(self, vectors: Tensor | None) -> Iterator[None]:
        """A block in which the marks of a forward pass, row by row, stand for these users.

        Shapes:
            vectors: (R, n_dimensions), in the order in which their marks come; None shows nobody.
        """
        self._shown = vectors
        try:
            yield
        finally:
            self._shown = None

    def fill(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """The embedded tokens with users in the place of marks.

        Shapes:
            ids: (U, T) int64; embedded: (U, T, D) in and out.

        Raises:
            ModelError: there are more or fewer marks than users are shown.
        """
        if self.is_off:
            return embedded
        marks = ids == self.token_id
        n_marks = int(marks.sum())
        if n_marks == 0:
            # Zero, but a path for gradients: DDP waits for those of every parameter in every step.
            unused = sum((weight.sum() for weight in self.parameters()), torch.zeros(()))
            return embedded + 0.0 * unused if self.training else embedded
        n_users = 0 if self._shown is None else len(self._shown)
        if self._shown is None or n_marks != n_users * self.n_tokens:
            raise ModelError(
                f"the prompts hold {n_marks} marks {USER_MARK}, and {n_users} users are shown, of "
                f"{self.n_tokens} marks each; give each prompt that asks for one its user"
            )
        rows = self(self._shown.to(embedded.device)).to(embedded.dtype)
        return embedded.masked_scatter(marks[..., None], rows)


def attach_users(model: Any, users: SoftUsers) -> None:
    """Make `users` part of a model: its parameters count, and marks become its soft tokens.

    They are found again by the input embeddings, which a model and the adapted model around it
    share.
    """

    def fill_marks(
        module: nn.Module, given: tuple[Any, ...], words: dict[str, Any], out: Tensor
    ) -> Tensor:
        return users.fill(given[0] if given else words["input"], out)

    embeddings = model.get_input_embeddings()
    hook = embeddings.register_forward_hook(fill_marks, with_kwargs=True)
    model.soft_users = users
    # Not as a submodule: the embeddings' own weights keep their names.
    vars(embeddings)[_HELD] = (users, hook)


def find_users(model: Any) -> SoftUsers | None:
    """The soft users of a model, or of the adapted model around it; None where it has none."""
    held = vars(model.get_input_embeddings()).get(_HELD)
    return None if held is None else held[0]


def detach_users(model: Any) -> SoftUsers | None:
    """Take the soft users out of the model that they were attached to; None without any."""
    embeddings = model.get_input_embeddings()
    if _HELD not in vars(embeddings):
        return None
    users, hook = vars(embeddings).pop(_HELD)
    hook.remove()
    del model.soft_users
    found: SoftUsers = users
    return found


@contextmanager
def ignore_marks(model: Any) -> Iterator[None]:
    """A block in which a mark is a token like any other, for checks that have no users."""
    users = find_users(model)
    if users is None:
        yield
        return
    users.is_off = True
    try:
        yield
    finally:
        users.is_off = False


@dataclass(frozen=True, slots=True)
class UserVectors:
    """Embeddings of the users that a model knows, and how its prompts ask for one.

    Attributes:
        user_ids: outside ids.
        vectors: (users, dimensions) float32, in that order.
        token_id: of `USER_MARK`.
        n_tokens: soft tokens a user.
    """

    user_ids: tuple[str, ...]
    vectors: NDArray[np.float32]
    token_id: int
    n_tokens: int

    def repeat_marks(self, ids: Sequence[int]) -> list[int]:
        """Token ids with each mark as often as a user has soft tokens."""
        return [
            token
            for one in ids
            for token in ([one] * self.n_tokens if one == self.token_id else [one])
        ]

    def find(self, user_ids: Sequence[str]) -> NDArray[np.float32]:
        """(R, dimensions) the users' embeddings; the mean of all for one that has none."""
        row_of = {user_id: row for row, user_id in enumerate(self.user_ids)}
        rows = np.array([row_of.get(user_id, -1) for user_id in user_ids], dtype=np.int64)
        return np.where(rows[:, None] < 0, self.vectors.mean(axis=0), self.vectors[rows])


def save_users(users: SoftUsers, known: UserVectors, model: Path) -> None:
    """Write projector and embeddings into a model's directory."""
    folder = model / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: weight.detach().cpu().float() for name, weight in users.state_dict().items()}
    save_file(state, str(folder / _WEIGHTS))
    write_json(folder / _CONFIG, {"n_tokens": users.n_tokens, "n_dimensions": users.n_dimensions})
    pl.DataFrame(
        {"user_id": known.user_ids, "vector": known.vectors},
        schema_overrides={"vector": pl.Array(pl.Float32, known.vectors.shape[1])},
    ).write_parquet(folder / _USERS)


def load_users(model: Any, tokenizer: Any, path: Path) -> UserVectors | None:
    """The users of a model directory, their projector attached to `model`; None without any.

    Raises:
        ArtifactError: the files do not fit the model.
    """
    folder = path / FOLDER
    if not folder.is_dir():
        return None
    config = read_json(folder / _CONFIG)
    weight = model.get_input_embeddings().weight
    token_id = tokenizer.convert_tokens_to_ids(USER_MARK)
    if token_id in (None, tokenizer.unk_token_id):
        raise ArtifactError(
            f"{folder} shows users at the mark {USER_MARK}, and the tokenizer of {path} lacks it; "
            f"restore its tokenizer.json, or run `genrec train` again"
        )
    users = SoftUsers(
        int(config["n_dimensions"]), int(config["n_tokens"]), weight.shape[1], int(token_id)
    )
    try:
        users.load_state_dict(load_file(str(folder / _WEIGHTS)))
    except RuntimeError as error:
        raise ArtifactError(
            f"{folder} was not trained with this model: {error}; run `genrec train` again"
        ) from error
    attach_users(model, users.to(weight.device).eval())
    table = pl.read_parquet(folder / _USERS)
    vectors = table["vector"].to_numpy().astype(np.float32)
    return UserVectors(tuple(table["user_id"]), vectors, users.token_id, users.n_tokens)


def check_vectors(vectors: NDArray[np.float32], n_dimensions: int) -> Tensor:
    """Users' embeddings as a tensor.

    Raises:
        DataError: another width than the model was trained with, or values that are not finite.
    """
    if vectors.ndim != 2 or vectors.shape[1] != n_dimensions:  # noqa: PLR2004  (a table)
        raise DataError(
            f"user embeddings of shape {vectors.shape} were given, and the model was trained with "
            f"{n_dimensions} dimensions; embed users with the same recipe"
        )
    if not np.isfinite(vectors).all():
        raise DataError("user embeddings hold values that are not finite; embed the users again")
    return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
