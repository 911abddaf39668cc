"""SID tokens of items and users in tokenizers and models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, normalizers, pre_tokenizers

from genrec.artifact import load_artifact
from genrec.errors import ModelError
from genrec.train.checkpoint import load_checkpoint
from genrec.train.users import UserVocabulary, read_users
from genrec.train.vocabulary import Extension, extend_tokenizer, extend_vocabulary
from tests.train.made_inputs import CODEBOOKS, item_codes, item_text
from tests.train.made_users import N_USERS, USER_CODEBOOKS, user_codes, walk_of, write_inputs

TEXTS = [item_text(item) for item in range(40)]


def extend(
    checkpoint: Any, noise: float = 0.0, seed: int = 0, users: UserVocabulary | None = None
) -> Extension:
    return extend_vocabulary(
        checkpoint.model,
        checkpoint.tokenizer,
        CODEBOOKS,
        TEXTS,
        item_codes(40),
        noise=noise,
        seed=seed,
        users=users,
    )


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_rows_start_from_the_mean_of_the_text_they_encode(
    kind: str, bases: Callable[[str], Path]
) -> None:
    checkpoint = load_checkpoint(bases(kind), torch.float32)
    matrices = [checkpoint.model.get_input_embeddings().weight.detach().clone()]
    if kind == "llama":
        matrices.append(checkpoint.model.get_output_embeddings().weight.detach().clone())
    ids = [checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    extension = extend(checkpoint)
    after = [
        checkpoint.model.get_input_embeddings().weight,
        checkpoint.model.get_output_embeddings().weight,
    ]
    assert (after[0] is after[1]) == (kind != "llama")
    for before, matrix in zip(matrices, after, strict=False):
        chosen = np.flatnonzero(item_codes(40)[:, 1] == 2)
        expected = torch.stack([before[ids[item]].mean(0) for item in chosen]).mean(0)
        assert torch.allclose(matrix[int(extension.token_ids[1][2])], expected, atol=1e-6)
        kept = min(extension.flat_ids())
        assert torch.equal(matrix[:kept], before[:kept])
        # No item has code 4 of the first level: it starts from the mean over all items.
        everything = torch.stack([before[row].mean(0) for row in ids]).mean(0)
        assert torch.allclose(matrix[int(extension.token_ids[0][4])], everything, atol=1e-6)


def test_noise_is_seeded_and_small(bases: Callable[[str], Path]) -> None:
    rows = []
    for noise, seed in ((0.0, 0), (0.1, 0), (0.1, 0), (0.1, 1)):
        checkpoint = load_checkpoint(bases("qwen3"), torch.float32)
        extension = extend(checkpoint, noise, seed)
        rows.append(checkpoint.model.get_input_embeddings().weight[extension.flat_ids()].detach())
    spread = checkpoint.model.get_input_embeddings().weight.detach().std()
    assert torch.equal(rows[1], rows[2])
    assert not torch.equal(rows[1], rows[3])
    assert 0.05 * spread < (rows[1] - rows[0]).std() < 0.2 * spread


def test_spare_rows_are_used_before_the_matrix_grows(bases: Callable[[str], Path]) -> None:
    checkpoint = load_checkpoint(bases("llama"), torch.float32)
    size = len(checkpoint.tokenizer)
    extend_vocabulary(
        checkpoint.model, checkpoint.tokenizer, (2, 2), TEXTS, item_codes(40) % 2, noise=0, seed=0
    )
    assert checkpoint.model.get_input_embeddings().weight.shape[0] == size + 4


def test_tokens_are_plain_added_tokens(bases: Callable[[str], Path]) -> None:
    tokenizer = load_checkpoint(bases("qwen3"), torch.float32).tokenizer
    extension = extend_tokenizer(tokenizer, CODEBOOKS)
    ids = tokenizer("red <a_1><b_2><c_3> hat", add_special_tokens=False)["input_ids"]
    assert [int(extension.token_ids[level][level + 1]) for level in range(3)] == [
        token for token in ids if token in set(extension.flat_ids())
    ]
    assert "<a_1>" in tokenizer.decode(ids, skip_special_tokens=True)


def test_the_same_vocabulary_is_kept_and_another_refused(bases: Callable[[str], Path]) -> None:
    checkpoint = load_checkpoint(bases("qwen3"), torch.float32)
    extend(checkpoint, noise=0.1)
    rows = checkpoint.model.get_input_embeddings().weight.detach().clone()
    again = extend(checkpoint, noise=0.1, seed=7)
    assert not again.added
    assert torch.equal(rows, checkpoint.model.get_input_embeddings().weight)
    with pytest.raises(ModelError, match="semantic-ID tokens of another vocabulary"):
        extend_tokenizer(checkpoint.tokenizer, (9, 9))


def test_item_text_that_spells_a_token_reads_no_new_row(bases: Callable[[str], Path]) -> None:
    checkpoint = load_checkpoint(bases("qwen3"), torch.float32)
    texts = ["<a_0><b_1><c_2>", "", *TEXTS[2:]]
    extend_vocabulary(
        checkpoint.model,
        checkpoint.tokenizer,
        CODEBOOKS,
        texts,
        item_codes(40),
        noise=0.0,
        seed=0,
    )
    assert torch.isfinite(checkpoint.model.get_input_embeddings().weight).all()


def test_a_tokenizer_that_splits_tokens_is_caught(
    bases: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_checkpoint(bases("qwen3"), torch.float32).tokenizer
    # Tokens that must stand alone as words are not found inside a semantic ID.
    monkeypatch.setattr(
        "genrec.train.vocabulary._plain_token", lambda token: AddedToken(token, single_word=True)
    )
    with pytest.raises(ModelError, match="splits or changes the semantic ID"):
        extend_tokenizer(tokenizer, CODEBOOKS)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> UserVocabulary:
    made = write_inputs(tmp_path_factory.mktemp("users"), users=True)
    found = read_users(made.instructions, load_artifact(made.data))
    assert found is not None
    return found


def test_users_are_read_with_what_they_chose_for_training(users: UserVocabulary) -> None:
    assert users.codebook_sizes == USER_CODEBOOKS
    assert users.codes.tolist() == [user_codes(user) for user in range(N_USERS - 1)]
    chosen = np.split(users.item_index, users.offsets[1:-1])
    assert [walk.tolist() for walk in chosen] == [walk_of(user)[:3] for user in range(N_USERS - 1)]


def test_instructions_without_user_ids_have_no_user_tokens(tmp_path: Path) -> None:
    made = write_inputs(tmp_path)
    assert read_users(made.instructions, load_artifact(made.data)) is None


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_user_rows_start_from_the_text_of_what_they_chose(
    kind: str, bases: Callable[[str], Path], users: UserVocabulary
) -> None:
    checkpoint = load_checkpoint(bases(kind), torch.float32)
    matrices = [checkpoint.model.get_input_embeddings().weight.detach().clone()]
    if kind == "llama":
        matrices.append(checkpoint.model.get_output_embeddings().weight.detach().clone())
    ids = [checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    extension = extend(checkpoint, users=users)
    assert extension.users is not None
    assert len(extension.flat_ids()) == sum(CODEBOOKS) + sum(USER_CODEBOOKS)
    named = checkpoint.tokenizer.convert_ids_to_tokens(extension.users.token_ids[1].tolist())
    assert named == ["<ub_0>", "<ub_1>", "<ub_2>"]
    after = [
        checkpoint.model.get_input_embeddings().weight,
        checkpoint.model.get_output_embeddings().weight,
    ]
    for before, matrix in zip(matrices, after, strict=False):
        means = torch.stack([before[row].mean(0) for row in ids])
        chosen = [u for u in range(N_USERS - 1) if user_codes(u)[0] == 1]
        expected = torch.stack([means[walk_of(user)[:3]].mean(0) for user in chosen]).mean(0)
        assert torch.allclose(matrix[int(extension.users.token_ids[0][1])], expected, atol=1e-6)
        # No user has code 3 of the first level.
        nobody = matrix[int(extension.users.token_ids[0][3])]
        assert torch.allclose(nobody, means.mean(0), atol=1e-6)


def test_users_change_nothing_about_item_rows_and_can_come_later(
    bases: Callable[[str], Path], users: UserVocabulary
) -> None:
    plain = load_checkpoint(bases("qwen3"), torch.float32)
    named = load_checkpoint(bases("qwen3"), torch.float32)
    extension = extend(plain, noise=0.1)
    extend(named, noise=0.1, users=users)
    ids = extension.flat_ids()
    rows = [c.model.get_input_embeddings().weight[ids].detach().clone() for c in (plain, named)]
    assert torch.equal(rows[0], rows[1])
    later = extend(plain, noise=0.1, users=users)
    assert not later.added
    assert later.users is not None and later.users.added
    assert torch.equal(rows[0], plain.model.get_input_embeddings().weight[ids])
    again = extend(plain, users=users)
    assert again.users is not None and not again.users.added


def test_users_nobody_has_seen_still_have_rows(
    bases: Callable[[str], Path], users: UserVocabulary
) -> None:
    nobody = UserVocabulary(
        (2, 2), "", np.empty((0, 2), np.int32), np.zeros(1, np.int64), np.empty(0, np.int64)
    )
    checkpoint = load_checkpoint(bases("qwen3"), torch.float32)
    extend(checkpoint, users=nobody)
    assert torch.isfinite(checkpoint.model.get_input_embeddings().weight).all()


@pytest.mark.parametrize(
    ("prefix", "message"),
    [("", "already has 1 semantic-ID tokens .*15, 1 of them"), ("u", "1 user tokens .*15, 1 of")],
)
def test_a_part_of_the_vocabulary_is_another_one(
    prefix: str, message: str, bases: Callable[[str], Path]
) -> None:
    tokenizer = load_checkpoint(bases("qwen3"), torch.float32).tokenizer
    tokenizer.add_tokens([f"<{prefix}a_0>"])
    with pytest.raises(ModelError, match=message):
        extend_tokenizer(tokenizer, CODEBOOKS, prefix=prefix)


@pytest.mark.parametrize(("prefix", "taken"), [("", "<a_1><b"), ("u", "x<ua_1")])
def test_tokens_of_the_base_that_swallow_ours_are_caught(
    prefix: str, taken: str, bases: Callable[[str], Path]
) -> None:
    tokenizer = load_checkpoint(bases("qwen3"), torch.float32).tokenizer
    tokenizer.add_tokens([AddedToken(taken, normalized=False)])
    with pytest.raises(ModelError, match="splits or changes the semantic ID"):
        extend_tokenizer(tokenizer, CODEBOOKS, prefix=prefix)


def test_a_normaliser_that_lowers_case_and_a_splitter_leave_tokens_whole(
    bases: Callable[[str], Path],
) -> None:
    tokenizer = load_checkpoint(bases("qwen3"), torch.float32).tokenizer
    core = tokenizer.backend_tokenizer
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel()]
    )
    for prefix in ("", "u"):
        extension = extend_tokenizer(tokenizer, CODEBOOKS, prefix=prefix)
        ids = tokenizer(f"RED <{prefix}a_1><{prefix}b_2>", add_special_tokens=False)["input_ids"]
        assert ids[-2:] == [int(extension.token_ids[0][1]), int(extension.token_ids[1][2])]
