"""Training with users as soft tokens, from marks in rows to a recommender that uses them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from genrec.artifact import write_artifact
from genrec.decode.soft_users import UserVectors
from genrec.errors import DataError, RecipeError
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.step import make_instructions
from genrec.recipe import Recipe
from genrec.recommender import Recommender
from genrec.tokenizers.vectors import write_shards
from genrec.train.batches import Collator
from genrec.train.estimate import estimate_run
from genrec.train.monitor import Monitor
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRow, EncodedRows, pack_rows
from genrec.train.soft_users import (
    TrainedUsers,
    add_mark,
    add_projector,
    check_soft_users,
    load_projector,
    read_soft_users,
    repeat_marks,
    save_projector,
)
from genrec.train.step import make_model
from tests.train.made_inputs import write_data, write_tokenizer

MARK = 9


def make_rows(*rows: tuple[list[int], int]) -> EncodedRows:
    return pack_rows(
        [
            EncodedRow(np.array(ids, dtype=np.int32), n_prompt, 0, user)
            for user, (ids, n_prompt) in enumerate(rows)
        ]
    )


def known_users(n_tokens: int = 3, n_users: int = 2) -> UserVectors:
    vectors = np.arange(n_users * 2, dtype=np.float32).reshape(n_users, 2)
    return UserVectors(tuple(f"u{user}" for user in range(n_users)), vectors, MARK, n_tokens)


def test_marks_are_repeated_and_prompts_grow() -> None:
    rows = make_rows(([1, MARK, 2, 5, 6], 3), ([1, 2, 3], 2), ([MARK, 4, 7], 2))
    longer = repeat_marks(rows, known_users(), max_tokens=10)
    assert longer[0].input_ids.tolist() == [1, MARK, MARK, MARK, 2, 5, 6]
    assert [longer[row].n_prompt for row in range(3)] == [5, 2, 4]
    assert longer[1].input_ids.tolist() == [1, 2, 3]
    assert longer[2].input_ids.tolist() == [MARK, MARK, MARK, 4, 7]
    assert longer.users.tolist() == [0, 1, 2]


def test_rows_that_grow_too_long_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(([1, MARK, 2, 5, 6], 3), ([1, 2, 3], 2))
    with caplog.at_level("WARNING"):
        kept = repeat_marks(rows, known_users(), max_tokens=6)
    assert len(kept) == 1
    assert "1 of 2 rows are longer than max_tokens 6 with their users' soft tokens" in caplog.text
    with pytest.raises(DataError, match="all 2 rows are longer than max_tokens 2 with 3 soft"):
        repeat_marks(rows, known_users(), max_tokens=2)


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_shows_its_users_in_the_order_of_their_marks(packed: bool) -> None:
    rows = make_rows(([1, MARK, MARK, 2, 8], 4), ([1, 2, 3], 2), ([MARK, MARK, 7], 2))
    users = TrainedUsers(known_users(2, 3), torch.arange(6.0).view(3, 2))
    batch = Collator(0, packed=packed, token_users=True)([rows[0], rows[1], rows[2]])
    shown = users.find_shown(batch["input_ids"], batch["about"]["token_users"])
    expected = [[4.0, 5.0], [0.0, 1.0]]  # packed: shortest first
    assert shown.tolist() == (expected if packed else expected[::-1])


def instructions(shown: bool) -> Any:
    return SimpleNamespace(
        path=Path("instructions"),
        manifest=SimpleNamespace(facts={"user_soft": True} if shown else {}),
    )


@pytest.mark.parametrize(
    ("shown", "n_tokens", "vectors", "message"),
    [
        (True, 0, None, r"show users as soft tokens \(field user_soft\); set soft_user_tokens"),
        (True, 4, None, "give --user-vectors"),
        (False, 4, Path("v"), "soft_user_tokens is 4, but no prompt of instructions has the field"),
        (False, 0, Path("v"), "user vectors were given, but soft_user_tokens is 0"),
    ],
)
def test_recipe_prompts_and_vectors_must_agree(
    shown: bool, n_tokens: int, vectors: Path | None, message: str
) -> None:
    recipe = TrainRecipe(soft_user_tokens=n_tokens)
    with pytest.raises(RecipeError, match=message):
        check_soft_users(recipe, instructions(shown), vectors)


def test_agreement_is_silent() -> None:
    check_soft_users(TrainRecipe(), instructions(False), None)
    check_soft_users(TrainRecipe(soft_user_tokens=2), instructions(True), Path("v"))


def write_vectors(out: Path, ids: list[str], vectors: np.ndarray, subject: str = "users") -> Path:
    with write_artifact(out, step="embed", recipe=Recipe()) as work:
        work.facts["subject"] = subject
        write_shards(iter([vectors.astype(np.float32)]), work.path)
        pl.DataFrame({"item_id": ids}).write_parquet(work.path / "items.parquet")
    return out


def write_users(folder: Path, n_users: int) -> Path:
    folder.mkdir(exist_ok=True)
    table = {"user_index": range(n_users), "user_id": [f"u{user}" for user in range(n_users)]}
    pl.DataFrame(table).write_parquet(folder / "users.parquet")
    return folder


@pytest.fixture
def opened(bases: Any) -> Any:
    from genrec.train.checkpoint import load_checkpoint

    return load_checkpoint(bases("qwen3"), torch.float32)


def test_users_without_an_embedding_are_the_mean(
    opened: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = write_vectors(tmp_path / "v", ["u2", "u0"], np.array([[1.0, 3.0], [5.0, 7.0]]))
    data = write_users(tmp_path / "data", 3)
    with caplog.at_level("INFO"):
        users = read_soft_users(TrainRecipe(soft_user_tokens=2), opened.tokenizer, data, vectors)
    assert users.by_index.tolist() == [[5.0, 7.0], [3.0, 5.0], [1.0, 3.0]]
    assert "1 of 3 users have no embedding" in caplog.text
    token = opened.tokenizer.convert_tokens_to_ids("<|genrec_user|>")
    assert users.known.token_id == token
    assert users.is_new
    add_mark(opened.model, opened.tokenizer, users)
    assert opened.model.get_input_embeddings().weight.shape[0] > token


def test_vectors_of_other_users_are_refused(opened: Any, tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path / "v", ["x"], np.ones((1, 2)))
    data = write_users(tmp_path / "data", 3)
    with pytest.raises(DataError, match=r"embeddings of 1 users, and none of the 3 users"):
        read_soft_users(TrainRecipe(soft_user_tokens=2), opened.tokenizer, data, vectors)


def test_the_projector_starts_by_seed_and_survives_a_checkpoint(
    opened: Any, tmp_path: Path
) -> None:
    users = TrainedUsers(known_users(), torch.zeros(2, 2))
    before = torch.random.get_rng_state()
    add_projector(opened.model, users, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    first = {name: value.clone() for name, value in opened.model.soft_users.state_dict().items()}
    save_projector(opened.model, tmp_path)
    for parameter in opened.model.soft_users.parameters():
        parameter.data.zero_()
    load_projector(opened.model, tmp_path)
    for name, value in opened.model.soft_users.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=0)


def test_a_model_without_users_saves_nothing(opened: Any, tmp_path: Path) -> None:
    save_projector(opened.model, tmp_path)
    load_projector(opened.model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_items_are_refused(opened: Any, tmp_path: Path) -> None:
    # Ids of items and users are often the same small numbers.
    vectors = write_vectors(tmp_path / "v", ["u0"], np.ones((1, 2)), subject="items")
    data = write_users(tmp_path / "data", 3)
    with pytest.raises(DataError, match=r"holds embeddings of items, not of users"):
        read_soft_users(TrainRecipe(soft_user_tokens=2), opened.tokenizer, data, vectors)


def test_a_base_that_has_the_mark_keeps_its_row(opened: Any, tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path / "v", ["u0"], np.ones((1, 2)))
    data, recipe = write_users(tmp_path / "data", 3), TrainRecipe(soft_user_tokens=2)
    users = read_soft_users(recipe, opened.tokenizer, data, vectors)
    add_mark(opened.model, opened.tokenizer, users)
    rows = opened.model.get_input_embeddings().weight.data
    rows[users.known.token_id] = 7.0
    again = read_soft_users(recipe, opened.tokenizer, data, vectors)
    assert not again.is_new
    add_mark(opened.model, opened.tokenizer, again)
    assert bool((rows[users.known.token_id] == 7.0).all())


def test_an_estimate_counts_the_projector_and_the_soft_tokens(
    told_apart: dict[str, Path], bases: Any, tmp_path: Path
) -> None:
    recipe = TrainRecipe(
        rank=4, dropout=0.0, batch_size=20, epochs=1, eval_every=0, precision="fp32",
        soft_user_tokens=2,
    )  # fmt: skip
    inputs = [told_apart[name] for name in ("instructions", "tokenizer", "data")]
    words = {"user_vectors": told_apart["vectors"]}
    found = estimate_run(recipe, bases("qwen3"), *inputs, **words)
    made = make_model(recipe, bases("qwen3"), *inputs, tmp_path / "model", **words)
    facts = made.manifest.facts
    assert (found.parameters, found.trained) == (facts["parameters"], facts["trained_parameters"])
    assert (found.updates, found.tokens) == (facts["updates"], facts["tokens"])
    with pytest.raises(RecipeError, match="give --user-vectors"):
        estimate_run(recipe, bases("qwen3"), *inputs)


@pytest.fixture(scope="module")
def told_apart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data in which only a user's embedding says what follows i0 and i3: i1 for every other user.

    Of the second half of the users the answer is the validation item.
    """
    folder = tmp_path_factory.mktemp("soft")
    data = write_data(folder / "made", 12)
    n_users = 80
    answers = [1 + user % 2 for user in range(n_users)]
    known = ["train"] * 3
    asked = ["train", "train", "valid"]
    with write_artifact(folder / "data", step="data", recipe=Recipe()) as work:
        items = pl.read_parquet(data.path / "items.parquet")
        items.write_parquet(work.path / "items.parquet")
        write_users(work.path, n_users)
        pl.DataFrame(
            {
                "user_index": [user for user in range(n_users) for _ in range(3)],
                "item_index": [item for answer in answers for item in (0, 3, answer)],
                "position": list(range(3)) * n_users,
                "split": known * (n_users // 2) + asked * (n_users // 2),
            }
        ).write_parquet(work.path / "interactions.parquet")
    tokenizer = write_tokenizer(folder / "tokenizer", work.artifact, 12)
    recipe = PromptsRecipe(
        tasks={"sequential": 1},
        templates=("uqabench",),
        only=("uqa-next-item",),
        min_history=2,
        audit=False,
    )
    make_instructions(recipe, folder / "data", tokenizer.path, folder / "instructions")
    random = np.random.default_rng(0)
    sides = np.where(np.arange(n_users)[:, None] % 2, 1.0, -1.0)
    vectors = sides * np.array([1.0, -1.0, 0.5, 0.0]) + 0.1 * random.normal(size=(n_users, 4))
    ids = [f"u{user}" for user in range(n_users)]
    write_vectors(folder / "vectors", ids, vectors)
    return {name: folder / name for name in ("data", "tokenizer", "instructions", "vectors")}


@pytest.mark.parametrize(("method", "packing"), [("lora", True), ("lora", False), ("full", True)])
def test_a_model_learns_who_the_user_is(
    told_apart: dict[str, Path], bases: Any, tmp_path: Path, method: Any, packing: bool
) -> None:
    recipe = TrainRecipe(
        method=method, packing=packing, rank=4, alpha=8, dropout=0.0,
        learning_rate=2e-2 if method == "lora" else 3e-3,
        batch_size=20, max_steps=60, eval_every=20, patience=0, precision="fp32",
        soft_user_tokens=2, stop_metric="HR@1", metric_users=20,
    )  # fmt: skip
    inputs = [told_apart[name] for name in ("instructions", "tokenizer", "data")]
    out = tmp_path / "model"
    made = make_model(recipe, bases("qwen3"), *inputs, out, user_vectors=told_apart["vectors"])
    assert made.manifest.facts["best_eval_HR@1"] >= 0.9
    assert made.manifest.inputs["user_vectors"]
    recommender = Recommender.from_pretrained(out)
    assert recommender.needs_users
    histories = [["i0", "i3"]] * 4
    users = ["u0", "u1", "u2", "u3"]
    answers = recommender.recommend_batch(histories, 1, user_ids=users)
    assert [answer[0].item_id for answer in answers] == ["i1", "i2", "i1", "i2"]
    alone = recommender.recommend(["i0", "i3"], 1, user_id="u1")
    assert alone[0].item_id == "i2"
    assert recommender.recommend(["i0", "i3"], 1, user_id="a stranger")  # the mean of all users
    with pytest.raises(DataError, match="says who the user is, and no user was given"):
        recommender.recommend(["i0", "i3"], 1)
    with pytest.raises(DataError, match="1 user ids were given for 2 histories"):
        recommender.recommend_batch(histories[:2], 1, user_ids=["u0"])
    weights = load_file(str(out / "model.safetensors"))
    assert not any("soft_users" in name for name in weights)


def test_a_killed_run_goes_on_with_its_projector(
    told_apart: dict[str, Path], bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainRecipe(
        rank=4, learning_rate=1e-2, batch_size=20, max_steps=6, eval_every=2, precision="fp32",
        patience=0, soft_user_tokens=2,
    )  # fmt: skip
    inputs = [told_apart[name] for name in ("instructions", "tokenizer", "data")]
    words = {"user_vectors": told_apart["vectors"]}
    make_model(recipe, bases("qwen3"), *inputs, tmp_path / "whole", **words)

    def die_late(self: Monitor, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt
        return before(self, args, state, control)

    before = Monitor.on_step_end
    monkeypatch.setattr(Monitor, "on_step_end", die_late)
    with pytest.raises(KeyboardInterrupt):
        make_model(recipe, bases("qwen3"), *inputs, tmp_path / "killed", **words)
    monkeypatch.undo()
    make_model(recipe, bases("qwen3"), *inputs, tmp_path / "killed", **words)
    for name in ("model.safetensors", "soft_users/projector.safetensors"):
        whole = load_file(str(tmp_path / "whole" / name))
        again = load_file(str(tmp_path / "killed" / name))
        assert whole.keys() == again.keys()
        different = [key for key in whole if not torch.equal(whole[key], again[key])]
        assert not different
