"""Users as soft tokens: what a mark becomes, in a plain forward and in the engine's search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from genrec.decode.soft_users import (
    SoftUsers,
    UserVectors,
    attach_users,
    check_vectors,
    detach_users,
    find_users,
    ignore_marks,
    load_users,
    save_users,
)
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.errors import ArtifactError, DataError, ModelError
from genrec.prompts.render import USER_MARK

from .conftest import build_model

MARK, N_TOKENS, DIMENSIONS = 7, 2, 5


class FakeTokenizer:
    """Only knows the mark."""

    unk_token_id = None

    def convert_tokens_to_ids(self, token: str) -> int:
        assert token == USER_MARK
        return MARK


@pytest.fixture
def model():
    made = build_model("qwen3")
    users = SoftUsers(DIMENSIONS, N_TOKENS, made.config.hidden_size, MARK)
    torch.manual_seed(5)
    users.start_from(made.get_input_embeddings().weight)
    attach_users(made, users.eval())
    return made


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(3, DIMENSIONS)).astype(np.float32)


def test_marks_become_the_projected_rows_in_order(model, vectors) -> None:
    ids = torch.tensor([[1, MARK, MARK, 4], [MARK, MARK, 2, 3]])
    shown = torch.from_numpy(vectors[:2])
    with torch.no_grad(), model.soft_users.show(shown):
        logits = model(input_ids=ids).logits
        rows = model.soft_users(shown)
        embedded = torch.nn.functional.embedding(ids, model.get_input_embeddings().weight)
        embedded[0, 1:3], embedded[1, 0:2] = rows[0], rows[1]
    with torch.no_grad():
        torch.testing.assert_close(model(inputs_embeds=embedded).logits, logits)


def test_the_projector_learns(model, vectors) -> None:
    ids = torch.tensor([[1, MARK, MARK, 4]])
    with model.soft_users.show(torch.from_numpy(vectors[:1])):
        model(input_ids=ids).logits.sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.soft_users.parameters())


def test_prompts_without_marks_are_left_alone(model) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        taken = detach_users(model)
        torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert find_users(model) is None
    assert isinstance(taken, SoftUsers)
    assert detach_users(model) is None
    assert not any("soft_users" in name for name in model.state_dict())


@pytest.mark.parametrize("n_users", [None, 2])
def test_a_mark_without_its_user_is_refused(model, vectors, n_users: int | None) -> None:
    shown = None if n_users is None else torch.from_numpy(vectors[:n_users])
    with (
        model.soft_users.show(shown),
        pytest.raises(ModelError, match=rf"2 marks .*{n_users or 0} users are shown, of 2 marks"),
    ):
        model(input_ids=torch.tensor([[MARK, MARK]]))


def test_starts_where_the_models_own_rows_lie(vectors) -> None:
    torch.manual_seed(4)
    rows = torch.randn(400, 64) * 0.3 + 0.1
    users = SoftUsers(DIMENSIONS, 4, 64, MARK)
    users.start_from(rows)
    many = torch.randn(500, DIMENSIONS)
    projected = users(many).detach()
    assert projected.shape == (500, 4, 64)
    assert 0.5 < float(projected.std() / rows.std()) < 2
    assert float((projected.mean((0, 1)) - rows.mean(0)).abs().mean()) < 0.5 * float(rows.std())


def test_a_mark_is_repeated_for_each_soft_token(vectors) -> None:
    known = UserVectors(("a", "b", "c"), vectors, MARK, 3)
    assert known.repeat_marks([1, MARK, 3]) == [1, MARK, MARK, MARK, 3]


def test_users_without_an_embedding_are_met_as_the_mean(vectors) -> None:
    known = UserVectors(("a", "b", "c"), vectors, MARK, N_TOKENS)
    found = known.find(["c", "nobody", "a"])
    np.testing.assert_array_equal(found[[0, 2]], vectors[[2, 0]])
    np.testing.assert_allclose(found[1], vectors.mean(0))


def test_files_round_trip(model, vectors, tmp_path: Path) -> None:
    ids = torch.tensor([[MARK, MARK, 3]])
    with torch.no_grad(), model.soft_users.show(torch.from_numpy(vectors[:1])):
        before = model(input_ids=ids).logits
    users = detach_users(model)
    assert users is not None
    save_users(users, UserVectors(("a", "b", "c"), vectors, MARK, N_TOKENS), tmp_path)
    known = load_users(model, FakeTokenizer(), tmp_path)
    assert known is not None
    assert known.user_ids == ("a", "b", "c")
    np.testing.assert_array_equal(known.vectors, vectors)
    with torch.no_grad(), model.soft_users.show(torch.from_numpy(vectors[:1])):
        torch.testing.assert_close(model(input_ids=ids).logits, before)


def test_a_model_without_users_has_none(model, tmp_path: Path) -> None:
    assert load_users(model, FakeTokenizer(), tmp_path) is None


def test_files_of_another_model_are_refused(model, vectors, tmp_path: Path) -> None:
    other = SoftUsers(DIMENSIONS, N_TOKENS, 48, MARK)
    save_users(other, UserVectors(("a", "b", "c"), vectors, MARK, N_TOKENS), tmp_path)
    with pytest.raises(ArtifactError, match="was not trained with this model"):
        load_users(model, FakeTokenizer(), tmp_path)


@pytest.mark.parametrize("found", [None, 3])
def test_a_tokenizer_without_the_mark_is_refused(model, vectors, tmp_path: Path, found) -> None:
    class Lacking:
        unk_token_id = 3

        def convert_tokens_to_ids(self, token: str) -> int | None:
            return found

    save_users(find_users(model), UserVectors(("u0",), vectors[:1], MARK, N_TOKENS), tmp_path)
    with pytest.raises(ArtifactError, match=r"lacks it; restore its tokenizer\.json"):
        load_users(build_model("qwen3"), Lacking(), tmp_path)


def test_vectors_are_checked(vectors) -> None:
    with pytest.raises(DataError, match=r"shape \(3, 5\).*trained with 6 dimensions"):
        check_vectors(vectors, 6)
    vectors[1, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        check_vectors(vectors, DIMENSIONS)


def test_a_check_without_users_can_ignore_marks(model) -> None:
    ids = torch.tensor([[MARK, MARK, 2]])
    with torch.no_grad():
        with ignore_marks(model):
            ignored = model(input_ids=ids).logits
        detach_users(model)
        with ignore_marks(model):
            torch.testing.assert_close(model(input_ids=ids).logits, ignored)


class TestEngine:
    """The search with users, against the same search over embedded prompts."""

    @pytest.fixture
    def engine(self, model, codes, token_ids) -> TorchEngine:
        return TorchEngine(model, Trie.from_codes(codes), token_ids)

    def test_users_change_the_answer_and_a_batch_is_its_members(self, engine, vectors) -> None:
        prompts = [[1, MARK, MARK, 4, 9], [3, 5, 8], [MARK, MARK, 6]]
        together = engine.rank_prompts(prompts, 5, user_vectors=vectors)
        for row, prompt in enumerate(prompts):
            alone = engine.rank_prompts([prompt], 5, user_vectors=vectors[row : row + 1])
            assert alone.item_index[0].tolist() == together.item_index[row].tolist()
            np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=1e-4)
        other = engine.rank_prompts(prompts, 5, user_vectors=vectors[::-1].copy())
        assert other.scores[0].tolist() != together.scores[0].tolist()
        assert other.scores[1].tolist() == pytest.approx(together.scores[1].tolist(), abs=1e-4)

    def test_the_best_item_is_the_plain_forwards(self, engine, model, codes, token_ids, vectors):
        prompt = [1, MARK, MARK, 4, 9]
        best = engine.rank_prompts([prompt], 1, user_vectors=vectors[:1])
        rows = np.stack([ids[codes[:, level]] for level, ids in enumerate(token_ids)], axis=1)
        ids = torch.tensor([prompt + row for row in rows.tolist()])
        shown = torch.from_numpy(vectors[:1]).expand(len(ids), -1)
        with torch.no_grad(), model.soft_users.show(shown):
            chances = model(input_ids=ids).logits.log_softmax(-1)
        places = torch.arange(len(prompt) - 1, len(prompt) + 3)
        targets = torch.from_numpy(rows)[..., None]
        scores = chances[:, places].gather(2, targets)[..., 0].sum(1)
        assert int(scores.argmax()) == int(best.item_index[0, 0])
        assert float(scores.max()) == pytest.approx(float(best.scores[0, 0]), abs=1e-3)

    def test_vectors_must_match_the_prompts(self, engine, vectors) -> None:
        with pytest.raises(DataError, match="3 user embeddings were given for 1 prompts"):
            engine.rank_prompts([[1, 2]], 2, user_vectors=vectors)

    def test_a_model_without_soft_users_takes_none(self, engine, model, vectors) -> None:
        detach_users(model)
        with pytest.raises(ModelError, match="without soft user tokens; leave them out"):
            engine.rank_prompts([[1, 2]], 2, user_vectors=vectors[:1])

    def test_a_prompt_that_asks_for_a_user_needs_one(self, engine) -> None:
        with pytest.raises(ModelError, match="0 users are shown"):
            engine.rank_prompts([[MARK, MARK, 2]], 2)
