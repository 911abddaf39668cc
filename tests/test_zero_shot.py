"""Untuned models that recommend by title, and models trained to: from files to answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import load_from_disk
from transformers import AutoTokenizer
from typer.testing import CliRunner

import genrec
from genrec import cli
from genrec.artifact import load_artifact
from genrec.data.dataset import load_dataset
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.decode.engine import Search
from genrec.decode.title_engine import TitleEngine
from genrec.errors import DataError, ModelError, RecipeError, TemplateError
from genrec.eval.provenance import read_model
from genrec.opening import ModelChoice, open_recommender
from genrec.pipeline import parse_chain, run_chain
from genrec.recommender import Recommender
from genrec.train.estimate import estimate_run
from genrec.train.export import read_catalogue
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import encode_rows
from genrec.types import Filters, RanksItems
from genrec.zero_shot import load_zero_shot
from tests.contracts.recommender_contract import RecommenderContract

runner = CliRunner()
CHAT = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TITLES = ["Red Pen", "Red  Pen", "", "Red Pen Case", "Ünïcode 🎸 amp", "<|end|><a_1>", "Z", "Ink"]


def write_catalogue(folder: Path, titles: list[str] | None) -> Path:
    """A data artefact of items with these titles, and two users; None has no such column."""
    folder.mkdir()
    ids = [f"i{row}" for row in range(len(titles or "ab"))]
    items = {"item_id": ids, "categories": ["Toys", "Office"] * (len(ids) // 2)}
    pl.DataFrame(items | ({} if titles is None else {"title": titles})).write_csv(
        folder / "items.csv"
    )
    rows = [(user, item, row) for user in ("u", "v") for row, item in enumerate(ids)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        folder / "log.csv"
    )
    recipe = DataRecipe.model_validate(
        {
            "source": "table",
            "interactions": str(folder / "log.csv"),
            "items": str(folder / "items.csv"),
        }
    )
    return make_data(recipe, folder / "data").path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("hostile") / "made", TITLES)


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return load_zero_shot(tiny_run / "base", tiny_run / "data", max_history=4)


class TestZeroShot(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, recommender: Recommender) -> RanksItems:
        return recommender


def test_answers_are_items_of_the_catalogue_by_title(recommender: Recommender) -> None:
    answers = recommender.recommend(recommender.item_ids[:2], k=4)
    assert [answer.rank for answer in answers] == [1, 2, 3, 4]
    assert all(answer.title and answer.sid == "" for answer in answers)
    assert isinstance(recommender.engine, TitleEngine)
    proven = recommender.recommend(recommender.item_ids[:2], 4, search=Search(width=4, exact=True))
    assert proven[0].score >= answers[0].score - 1e-5


def test_titles_of_any_kind_are_answers_and_nothing_else(tiny_run: Path, hostile: Path) -> None:
    recommender = load_zero_shot(tiny_run / "base", hostile)
    answers = recommender.recommend(["i0"], k=8, exclude_seen=False)
    assert {answer.item_id for answer in answers} == {f"i{row}" for row in range(8)} - {"i2"}
    score = {answer.item_id: answer.score for answer in answers}
    assert score["i0"] == score["i1"], "white space makes no other title"
    seen = recommender.recommend(["i0", "i2"], k=8)
    assert "i1" in {answer.item_id for answer in seen} and len(seen) == 6
    toys = recommender.recommend(["i6"], k=8, filters=Filters(categories=["toys"]))
    assert {answer.item_id for answer in toys} == {"i0", "i4"}


def test_a_chat_model_is_asked_in_its_chat(tiny_run: Path, hostile: Path, tmp_path: Path) -> None:
    for file in (tiny_run / "base").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path)
    recommender = load_zero_shot(tmp_path, hostile)
    [prompt] = recommender.encode_prompts([np.array([0, 3])], [""])
    text = tokenizer.decode(prompt)
    assert text.startswith("<|start|>user\n") and text.endswith("<|end|>\n<|start|>assistant\n")
    assert "Red Pen; Red Pen Case" in text
    trie = recommender.engine.trie
    plain = load_zero_shot(tiny_run / "base", hostile).engine.trie
    first = {tokenizer.decode([token]) for token in trie.tokens[trie.offsets[:-1]].tolist()}
    assert not any(text.startswith(" ") for text in first)
    first = {tokenizer.decode([token]) for token in plain.tokens[plain.offsets[:-1]].tolist()}
    assert all(text.startswith(" ") for text in first), "behind a colon comes a space"


def test_another_wording_can_be_given(tiny_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"

    def write(**changes: object) -> Path:
        template = {
            "id": "mine", "task": "sequential", "source": "test", "recommend": True,
            "fields": ["history_titles", "title"], "separator": " | ",
            "input": "After {{ history_titles }} comes", "target": "{{ title }}", **changes,
        }  # fmt: skip
        file.write_text(json.dumps({"kind": "templates", "templates": [template]}))
        return file

    recommender = load_zero_shot(tiny_run / "base", tiny_run / "data", template=write())
    [prompt] = recommender.encode_prompts([np.array([0, 1])], [""])
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "base")
    first, second = recommender.catalogue.titles[:2]
    assert f"After {first} | {second} comes" in tokenizer.decode(prompt)
    with pytest.raises(TemplateError, match=r"shows history and asks for '\{\{ sid \}\}'"):
        fields = ["history", "sid"]
        path = write(input="{{ history }}", target="{{ sid }}", fields=fields)
        load_zero_shot(tiny_run / "base", tiny_run / "data", template=path)
    with pytest.raises(TemplateError, match=r"exactly one template must be marked.* 0 are"):
        load_zero_shot(tiny_run / "base", tiny_run / "data", template=write(recommend=False))


def test_a_catalogue_without_titles_is_refused_before_the_model_is_read(
    tiny_run: Path, tmp_path: Path
) -> None:
    for name, titles in (("empty", ["", " "]), ("bare", None)):
        data = write_catalogue(tmp_path / name, titles)
        with pytest.raises(DataError, match=r"none of the 2 items .* has a title.*semantic ids"):
            load_zero_shot(tmp_path / "no-model", data)
    with pytest.raises(ModelError, match="no-model' does not exist"):
        load_zero_shot(tmp_path / "no-model", tiny_run / "data")


def test_the_public_name_loads_lazily() -> None:
    assert genrec.load_zero_shot is load_zero_shot


def test_one_way_to_open_serves_every_command(tiny_run: Path) -> None:
    choice = ModelChoice(tiny_run / "base", catalogue=tiny_run / "data")
    assert isinstance(open_recommender(choice).engine, TitleEngine)
    assert open_recommender(ModelChoice(tiny_run / "model")).engine.n_items == 60
    with pytest.raises(RecipeError, match="engine vllm decodes semantic IDs only"):
        open_recommender(ModelChoice(tiny_run / "base", "vllm", catalogue=tiny_run / "data"))
    with pytest.raises(ModelError, match="some/name"):
        open_recommender(ModelChoice(Path("some/name"), catalogue=tiny_run / "data"))


def test_the_command_answers_by_title(tiny_run: Path, tmp_path: Path) -> None:
    items = pl.read_parquet(tiny_run / "data" / "items.parquet")["item_id"].to_list()
    where = ["-m", str(tiny_run / "base"), "--catalogue", str(tiny_run / "data")]
    done = runner.invoke(cli.app, ["recommend", *where, *items[:2], "-k", "3", "--format", "jsonl"])
    assert done.exit_code == 0, done.output
    line = next(line for line in done.output.splitlines() if line.startswith("{"))
    assert line.count('"rank"') == 3 and '"sid": ""' in line
    users, answers = tmp_path / "users.jsonl", tmp_path / "answers.jsonl"
    users.write_text(json.dumps({"user_id": "u", "history": items[:3]}) + "\n")
    done = runner.invoke(cli.app, ["recommend", *where, "-i", str(users), "-o", str(answers)])
    assert done.exit_code == 0, done.output
    assert len(answers.read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def title_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the whole chain whose model answers in titles."""
    values = {
        "seed": 3,
        "data": {"source": "synthetic", "n_items": 60, "n_users": 40},
        "embed": {"lsa": {"dimensions": 16}},
        "tokenize": {"use": "title"},
        "prompts": {"use": "title-prompts", "max_history": 4},
        "base": {
            "hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "feed_forward_size": 32,
            "vocab_size": 400, "epochs": 0.2,
        },
        "train": {"use": "tiny", "max_steps": 4, "stop_metric": "HR@5"},
        "eval": {"metrics": ["HR@5", "NDCG@5"], "n_bootstrap": 100, "n_permutations": 100},
    }  # fmt: skip
    out = tmp_path_factory.mktemp("titles") / "run"
    run_chain(parse_chain(values, source="titles"), out)
    return out


@pytest.fixture(scope="module")
def trained(title_run: Path) -> Recommender:
    return Recommender.from_pretrained(title_run / "model")


@pytest.mark.slow
class TestTrainedOnTitles(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, trained: Recommender) -> RanksItems:
        return trained


def test_a_model_trained_on_titles_needs_no_new_tokens(title_run: Path, trained) -> None:
    settings = json.loads((title_run / "model" / "genrec.json").read_text())
    assert settings["n_levels"] == 0 and settings["codebook_sizes"] == []
    base, model = (
        AutoTokenizer.from_pretrained(title_run / folder) for folder in ("base", "model")
    )
    assert len(base) == len(model)
    index = pl.read_parquet(title_run / "model" / "item_index.parquet")
    assert set(index["sid"].to_list()) == {""} and index["codes"].list.len().max() == 0
    assert "answers with the title of an item" in (title_run / "model" / "README.md").read_text()
    answers = trained.recommend(trained.item_ids[:2], k=3)
    assert all(answer.title and answer.sid == "" for answer in answers)
    assert (title_run / "report" / "report.html").is_file()


def test_its_answers_are_scored_as_its_rows_were_trained(title_run: Path, trained) -> None:
    """The answer's tokens are those of a training row's target, its end token among them."""
    rows = load_from_disk(str(title_run / "instructions" / "train"))
    tokenizer = AutoTokenizer.from_pretrained(title_run / "model")
    encoded = encode_rows(tokenizer, rows.select(range(20)), 1024, "training")
    trie = trained.engine.trie
    by_item = {
        item: trie.tokens[trie.offsets[place] : trie.offsets[place + 1]].tolist()
        for place, item in enumerate(trie.order.tolist())
    }
    for row in range(len(encoded)):
        one = encoded[row]
        assert one.input_ids[one.n_prompt :].tolist() == by_item[rows[row]["item_index"]]


def test_what_a_run_takes_can_be_estimated(title_run: Path) -> None:
    recipe = TrainRecipe(max_steps=4)
    folders = [title_run / name for name in ("base", "instructions", "tokenizer", "data")]
    found = estimate_run(recipe, *folders)
    assert found.rows == 0 and found.trained > 0


def test_such_a_model_goes_on_from_its_own_catalogue_only(title_run: Path, tmp_path: Path) -> None:
    data, tokenizer = title_run / "data", title_run / "tokenizer"
    catalogue = read_catalogue(data, tokenizer, ())
    settings = json.loads((title_run / "model" / "genrec.json").read_text())
    assert catalogue.digest == settings["catalogue_digest"] and catalogue.codes.shape == (60, 0)
    record = read_model(load_artifact(title_run / "model", step="train"), load_dataset(data))
    assert record.codes is None and record.codebook_sizes == ()
    with pytest.raises(ModelError, match="TitleEngine cannot change its items while it runs"):
        Recommender.from_pretrained(title_run / "model").update_items(None, {})  # type: ignore[arg-type]
