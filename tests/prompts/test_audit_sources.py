"""Ids that know the future: P5's sequential ids, and ids made from what is held out here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.artifact import Artifact, load_artifact, write_artifact
from genrec.data.dataset import load_dataset
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.errors import LeakError
from genrec.prompts.audit_ids import audit_ids
from genrec.prompts.audit_sources import audit_sources
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.step import make_instructions
from genrec.recipe import Recipe
from genrec.tokenizers.quantizers.quantizer import QUANTIZERS
from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe
from genrec.tokenizers.sharing.peer_import import import_index
from genrec.tokenizers.sharing.peer_index import write_index
from genrec.tokenizers.step import make_tokenizer

N_ITEMS, N_USERS = 400, 120
SIZES = (10, 10, 10)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    random = np.random.default_rng(0)
    walks = [random.permutation(N_ITEMS)[:8] for _ in range(N_USERS)]
    return pl.DataFrame(
        [(f"u{user}", f"i{item}", place, f"Review {place} of user {user}")
         for user, walk in enumerate(walks) for place, item in enumerate(walk.tolist())],
        schema=["user_id", "item_id", "position", "review_text"], orient="row",
    )  # fmt: skip


def write_log(rows: pl.DataFrame, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    rows.write_csv(folder / "log.csv")
    recipe = DataRecipe(source="table", interactions=str(folder / "log.csv"))
    return make_data(recipe, folder / "data").path


@pytest.fixture(scope="module")
def data(rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(rows, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def longer(rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same users two choices later: what `data` holds out is training here."""
    more = rows.with_columns(pl.col("position") + 8).filter(pl.col("position") < 10)
    return write_log(pl.concat([rows, more]), tmp_path_factory.mktemp("longer"))


def fit(data: Path, out: Path, **values: object) -> Path:
    recipe = TokenizeRecipe.model_validate({"codebook_sizes": SIZES} | values)
    return make_tokenizer(recipe, None, out, data=data).path


def build(recipe: PromptsRecipe, data: Path, tokenizer: Path, out: Path) -> Artifact:
    alone = recipe.model_copy(update={"tasks": {"sequential": 1.0}})
    return make_instructions(alone, data, tokenizer, out)


def test_p5_sequential_ids_of_training_choices_pass(
    tmp_path: Path, recipe: PromptsRecipe, data: Path
) -> None:
    artifact = build(
        recipe, data, fit(data, tmp_path / "t", quantizer="sequential"), tmp_path / "out"
    )
    facts = artifact.manifest.facts["audit"]
    assert facts["sources"]["read_choices"][0]["same_data"] is True
    assert facts["ids"]["id_neighbours"]["1"] < 8


def test_p5_sequential_ids_of_whole_sequences_fail(
    tmp_path: Path, recipe: PromptsRecipe, data: Path
) -> None:
    """Made by our own quantizer, and made elsewhere and imported."""
    tokenizer = fit(data, tmp_path / "t", quantizer="sequential", sequential={"splits": "all"})
    with pytest.raises(LeakError) as caught:
        build(recipe, data, tokenizer, tmp_path / "out")
    assert "2 problems" in str(caught.value)
    assert "sequential.splits: all), held-out choices included" in str(caught.value)
    codes = pl.read_parquet(tokenizer / "codes.parquet")
    write_index(
        tmp_path / "index.json",
        codes["item_id"].to_list(),
        np.array(codes["codes"].to_list(), dtype=np.int32),
        "",
    )
    imported = import_index(tmp_path / "index.json", tmp_path / "imported").path
    with pytest.raises(LeakError, match=r"1 problem\n.*the semantic ids know the future: for \d+ of"
                       r" 1\d\d users .*numbered along whole sequences") as caught:  # fmt: skip
        build(recipe, data, imported, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["random", "both ways", "backwards"])
def test_other_orders_of_ids(data: Path, kind: str) -> None:
    dataset = load_dataset(data)
    numbers = np.random.default_rng(1).permutation(N_ITEMS)
    if kind != "random":  # numbered along whole sequences, of every second user from the end
        walks = dataset.sequences(("train", "valid", "test")).histories()
        turned = [walk[:: -1 if kind == "both ways" and user % 2 else 1]
                  for user, walk in enumerate(walks)]  # fmt: skip
        _, first = np.unique(np.concatenate(turned), return_index=True)
        numbers = N_ITEMS - 1 - np.argsort(np.argsort(first))
    sids = [f"<a_{n // 20}><b_{n % 20}>" for n in numbers.tolist()]
    found = audit_ids(dataset, sids)
    if kind == "backwards":
        assert "the very next to that of the last training item" in found.faults[0]
    else:  # ids that say what an item is like have neighbours in both directions
        assert not found.faults
    assert set(found.facts["id_neighbours"]) == {str(n) for n in range(-5, 6) if n}


def test_ids_of_other_data(tmp_path: Path, recipe: PromptsRecipe, data: Path, longer: Path) -> None:
    """A scheme that read choices must not have read those that are held out here."""
    values = {"quantizer": "collaborative", "collaborative": {"clusters": 4, "max_items": 20}}
    tokenizer = fit(longer, tmp_path / "t", **values, codebook_sizes=SIZES)
    told = (
        r"the quantizer collaborative read 240 choices of .* that are held out in .*, such as that "
        r"of item 'i\d+' by user 'u0'"
    )
    with pytest.raises(LeakError, match=told):
        build(recipe, data, tokenizer, tmp_path / "out")
    # The other way round is what happens as data grow: the earlier training choices are no secret.
    earlier = fit(data, tmp_path / "t2", **values, codebook_sizes=SIZES)
    facts = build(recipe, longer, earlier, tmp_path / "out").manifest.facts["audit"]
    assert facts["sources"]["read_choices"][0]["held_out_choices_read"] == 0
    assert facts["sources"]["read_choices"][0]["same_data"] is False


def test_a_quantizer_that_reads_no_choices_may_come_from_anywhere(
    tmp_path: Path, recipe: PromptsRecipe, data: Path, longer: Path
) -> None:
    tokenizer = fit(longer, tmp_path / "t", quantizer="random")
    assert build(recipe, data, tokenizer, tmp_path / "out").manifest.facts["audit"]["audit"]


def fake_users(folder: Path, data: Path, quantizer: str = "ulmrec-users") -> Artifact:
    """A tokenizer of users, made from an embedding of what they wrote in that data."""
    source = load_artifact(data)
    embed = EmbedRecipe(subject="users")
    with write_artifact(folder / "embed", step="embed", recipe=embed, inputs={"data": source}) as e:
        (e.path / "x").write_text("vectors")
    recipe = TokenizeRecipe(quantizer=quantizer)
    inputs = {"embed": e.artifact}
    with write_artifact(folder / "users", step="tokenize", recipe=recipe, inputs=inputs) as work:
        ids = [f"u{user}" for user in range(N_USERS)]
        sids = [f"<ua_{user}><ub_0>" for user in range(N_USERS)]
        pl.DataFrame({"item_id": ids, "sid": sids}).write_parquet(work.path / "codes.parquet")
        (work.path / "config.json").write_text('{"codebook_sizes": [256, 1]}')
    return work.artifact


def test_a_user_index_of_all_reviews(
    tmp_path: Path, recipe: PromptsRecipe, data: Path, longer: Path
) -> None:
    tokenizer = fit(data, tmp_path / "t", quantizer="random")
    good = fake_users(tmp_path / "good", data)
    bad = fake_users(tmp_path / "bad", longer)
    make_instructions(recipe.model_copy(update={"tasks": {"sequential": 1.0}}), data, tokenizer,
                      tmp_path / "out", users=good.path)  # fmt: skip
    with pytest.raises(LeakError, match=r"users' reviews read 240 choices of .* that are held out"):
        make_instructions(recipe, data, tokenizer, tmp_path / "out", users=bad.path)


def test_a_user_index_whose_source_is_gone(tmp_path: Path, data: Path) -> None:
    users = fake_users(tmp_path, data)
    shutil.rmtree(tmp_path / "embed")
    found = audit_sources(load_dataset(data), {"users": users})
    assert "which is gone or has changed, so that nobody can tell whose reviews" in found.faults[0]


def test_a_source_of_choices_that_is_gone(tmp_path: Path, data: Path, longer: Path) -> None:
    copied = shutil.copytree(longer, tmp_path / "copied")
    tokenizer = load_artifact(fit(copied, tmp_path / "t", quantizer="sequential"))
    (copied / "items.parquet").unlink()
    found = audit_sources(load_dataset(data), {"tokenize": tokenizer})
    assert "is gone or has changed, and not of" in found.faults[0]


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"quantizer": "imported"}, "was imported: what its users' ids were made from"),
        ({"quantizer": "letter", "letter": {"factors": "f.npy"}}, "aligned with factors from a fi"),
    ],
)
def test_what_cannot_be_checked_is_said(
    tmp_path: Path, data: Path, values: dict[str, object], note: str
) -> None:
    recipe: Recipe = TokenizeRecipe.model_validate(values)
    inputs = {"data": load_artifact(data)}
    with write_artifact(tmp_path / "t", step="tokenize", recipe=recipe, inputs=inputs) as work:
        pass
    found = audit_sources(load_dataset(data), {"users": work.artifact})
    assert not found.faults and note in found.notes[0]


def test_letter_without_a_file_reads_the_data(tmp_path: Path, data: Path) -> None:
    inputs = {"data": load_artifact(data)}
    recipe = TokenizeRecipe(quantizer="letter")
    with write_artifact(tmp_path / "t", step="tokenize", recipe=recipe, inputs=inputs) as work:
        pass
    found = audit_sources(load_dataset(data), {"tokenize": work.artifact})
    assert [facts["who"] for facts in found.facts["read_choices"]] == ["the quantizer letter"]


def test_every_quantizer_is_known_to_read_choices_or_not() -> None:
    from genrec.prompts.audit_sources import READ_NO_CHOICES

    reading = {"letter", "sequential", "collaborative"}
    assert set(QUANTIZERS) == reading | (READ_NO_CHOICES & set(QUANTIZERS))


@pytest.mark.slow
def test_ids_on_real_data(find_real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Peers' ids and training-only sequential ids pass on Beauty; P5's stand out."""
    folder = find_real_data("amazon14-beauty")
    recipe = DataRecipe(source="table", interactions=str(folder / "interactions.parquet"),
                        items=str(folder / "items.parquet"))  # fmt: skip
    dataset = load_dataset(make_data(recipe, tmp_path / "data").path)
    tokenizer = import_index(folder / "peer_index_letter.json", tmp_path / "letter",
                             unique="suffix")  # fmt: skip
    assert not audit_ids(dataset, read_sids(tokenizer.path, dataset.item_ids)).faults
    for splits, leaks in (("train", False), ("all", True)):
        path = fit(dataset.artifact.path, tmp_path / splits, quantizer="sequential",
                   codebook_sizes=(32, 32, 32), sequential={"splits": splits})  # fmt: skip
        found = audit_ids(dataset, read_sids(path, dataset.item_ids))
        assert bool(found.faults) == leaks
    assert found.facts["id_neighbours"]["1"] > 300


def read_sids(path: Path, item_ids: tuple[str, ...]) -> list[str]:
    table = pl.read_parquet(path / "codes.parquet")
    sid_of = dict(zip(table["item_id"], table["sid"], strict=True))
    return [sid_of[item_id] for item_id in item_ids]
