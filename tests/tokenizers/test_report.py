from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec.artifact import load_artifact, write_artifact
from genrec.cli import app
from genrec.errors import ArtifactError, DataError
from genrec.tokenizers.measures import report as module
from genrec.tokenizers.measures.report import make_report
from genrec.tokenizers.measures.report_input import read_entries
from genrec.tokenizers.measures.report_measures import MEASURES, compare_measures
from genrec.tokenizers.measures.report_page import list_notes, write_page
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sharing.peer_import import import_index
from genrec.tokenizers.tokenizer_files import Fitted

from .conftest import plant_clusters
from .made_report import (
    HOSTILE,
    N_ITEMS,
    name_items,
    plant_codes,
    write_all,
    write_data,
    write_imported,
    write_index_file,
    write_vectors,
)

# Pictures take a second a vocabulary and t-SNE more: both have tests of their own, and most tests
# here look at what was measured only.
pytestmark = pytest.mark.usefixtures("undrawn")


def place_first(vectors: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A map of the first twenty items, by their first two dimensions."""
    del seed
    rows = np.arange(min(20, len(vectors)))
    return rows, np.asarray(vectors[0 : len(rows)])[:, :2]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "place_items", place_first)
    monkeypatch.setattr(module, "write_page", lambda out, result, sections: None)


@pytest.fixture
def drawn(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page and its pictures after all."""
    monkeypatch.setattr(module, "write_page", write_page)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, `embeddings`, `tokenizer`, and two index files in `peers`."""
    folder = tmp_path_factory.mktemp("made")
    write_all(folder)
    (folder / "peers").mkdir()
    write_index_file(folder / "peers" / "good.index.json", plant_codes())
    mixed = np.random.default_rng(0).permutation(plant_codes())
    mixed[1] = mixed[0]
    write_index_file(folder / "peers" / "mixed.index.json", mixed, name_items()[::-1])
    return folder


@pytest.fixture(scope="module")
def written(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the tokenizer and both index files."""
    out = tmp_path_factory.mktemp("report") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "place_items", place_first)
        make_report([made / "tokenizer", made / "peers"], out)
    return out


def read_report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)


def test_every_vocabulary_is_measured(written: Path) -> None:
    report = read_report(written)
    assert report["schema"] == 1
    rows = report["vocabularies"]
    assert [row["name"] for row in rows] == ["tokenizer", "good.index", "mixed.index"]
    assert [row["kind"] for row in rows] == ["tokenizer", "index", "index"]
    assert [row["quantizer"] for row in rows] == ["rqkmeans", None, None]
    own, good, mixed = rows
    assert own["missing"] == []
    assert [entry["measure"] for entry in good["missing"]] == [
        "cost of uniqueness",
        "reconstruction",
    ]
    assert mixed["collisions"]["lost"] == 1
    assert own["basis"]["vectors"] == good["basis"]["vectors"]
    assert [row["basis"]["own_vectors"] for row in rows] == [True, False, False]
    assert good["categories"]["root"]["depth"] == 2
    assert good["categories"]["root"]["categories"] == 6
    assert good["popularity"]["interactions"] == 120


def test_a_planted_vocabulary_beats_a_shuffled_one(written: Path) -> None:
    _, good, mixed = read_report(written)["vocabularies"]
    near = [row["neighbours"]["prefixes"][0]["agreement"] for row in (good, mixed)]
    assert near[0] == pytest.approx(1.0)
    assert abs(near[1]) < 0.15
    root = [row["categories"]["root"]["prefixes"][0]["ami"] for row in (good, mixed)]
    assert root[0] == pytest.approx(1.0)
    assert abs(root[1]) < 0.15
    assert good["neighbours"]["rank_correlation"] > 0.7


def test_the_table_marks_the_best_and_says_what_values_mean(written: Path) -> None:
    rows = {row["key"]: row for row in read_report(written)["measures"]}
    assert set(rows) == {measure.key for measure in MEASURES}
    assert rows["collisions_after"]["best"] == ["tokenizer", "good.index"]
    assert rows["collisions_after"]["texts"]["mixed.index"] == "0.83% (1 of 120)"
    assert rows["collisions_after"]["verdicts"]["mixed.index"] == "some IDs name several items"
    assert "mixed.index" not in rows["agreement_1"]["best"]
    assert rows["added_distance"]["best"] == []
    assert rows["moved"]["values"].keys() == {"tokenizer"}
    for row in rows.values():
        assert row["meaning"].endswith(".")
        assert all(row["verdicts"].values())


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_in_itself(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = _Page(text)
    assert {"script", "img", "link", "iframe"}.isdisjoint(page.tags)
    assert page.tags.count("svg") == 4 + 3 * 3
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "Content-Security-Policy" in text
    assert "#0303" not in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    shown = " ".join("".join(page.text).split())
    assert "made from other embeddings than those in which neighbours are looked for" in shown
    assert "an index file holds no quantizer" in shown


def test_pictures_are_files_too(written: Path) -> None:
    names = {path.name for path in written.glob("*.png")}
    compared = {f"compare-{name}.png" for name in ("neighbours", "root", "leaf", "groups")}
    own = {f"v{row}-{name}.png" for row in (1, 2, 3) for name in ("tree", "codes", "map")}
    assert names == compared | own
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.glob("*.png"))


HOSTILE_NAME = "<b>$x$ {{ 1 }} & more than twenty-four characters"


def write_hostile(folder: Path, out: Path) -> Path:
    """The report on a file with a hostile name, over data with a hostile title."""
    if not folder.exists():
        folder.mkdir()
        write_index_file(folder / f"{HOSTILE_NAME}.index.json", plant_codes())
        write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_EXAMPLES", N_ITEMS)
        patch.setattr(module, "write_page", write_page)
        make_report([folder], out, data=folder / "data")
    return out


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    return write_hostile(folder / "in", folder / "out")


def test_hostile_texts_are_shown_as_text(hostile: Path) -> None:
    text = (hostile / "report.html").read_text()
    page = _Page(text)
    assert {"script", "alert"}.isdisjoint(page.tags)
    assert "<script" not in text
    assert HOSTILE in page.text
    assert f"Code tree of {HOSTILE_NAME}.index" in page.text
    assert "item-1" in page.text, "an item without a title is shown by its id"


def test_the_same_report_twice_is_the_same(hostile: Path, tmp_path: Path) -> None:
    write_hostile(hostile.parent / "in", tmp_path / "again")
    first, again = sorted(hostile.iterdir()), sorted((tmp_path / "again").iterdir())
    assert [path.name for path in first] == [path.name for path in again]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


@pytest.mark.usefixtures("drawn")
def test_an_older_report_is_replaced(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("notes", "v3-map", "compare-root"):
        (tmp_path / "out" / f"{name}.png").write_text("old")
    make_report([made / "peers" / "good.index.json"], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {"compare-groups.png", "v1-tree.png", "v1-codes.png", "notes.png"}


def test_an_index_alone_says_what_is_missing(made: Path, tmp_path: Path) -> None:
    report = make_report([made / "peers" / "good.index.json"], tmp_path / "out")
    [row] = report["vocabularies"]
    reasons = {entry["measure"]: entry["reason"] for entry in row["missing"]}
    assert reasons["neighbours and map"] == "an index file names no embeddings; give --embeddings"
    assert reasons["categories"] == "an index file names no data; give --data"
    assert row["neighbours"] is row["categories"] is row["popularity"] is None
    assert row["collisions"]["before"] is None
    assert row["examples"][0]["titles"][0].startswith("item-")


def test_embeddings_and_data_can_be_given(made: Path, tmp_path: Path) -> None:
    options = {"embeddings": made / "embeddings", "data": made / "data"}
    report = make_report([made / "peers" / "mixed.index.json"], tmp_path / "out", **options)
    [row] = report["vocabularies"]
    assert len(row["missing"]) == 2
    assert row["neighbours"]["sampled_items"] == N_ITEMS
    [own] = read_entries([made / "tokenizer"], **options)
    assert own.own_vectors


def test_an_imported_vocabulary_was_made_elsewhere(made: Path, tmp_path: Path) -> None:
    import_index(
        made / "peers" / "good.index.json", tmp_path / "own", embeddings=made / "embeddings"
    )
    for given in (None, made / "embeddings"):
        [entry] = read_entries([tmp_path / "own"], given)
        assert entry.vectors is not None
        assert entry.kind == "tokenizer"
        assert not entry.own_vectors


def test_items_that_given_artefacts_lack_are_all_named(made: Path, tmp_path: Path) -> None:
    ids = [*name_items()[:-2], "new-1", "new-2"]
    path = write_index_file(tmp_path / "index.json", plant_codes(), ids)
    for option, what in (("embeddings", "vector"), ("data", "row")):
        with pytest.raises(DataError, match="do not belong together: 2 problems") as caught:
            make_report([path], tmp_path / "out", **{option: made / option})
        assert f"item 'new-1' has codes, but no {what} there" in str(caught.value)
        assert "new-2" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_some_of_the_items_take_their_rows(made: Path, tmp_path: Path) -> None:
    half = np.arange(0, N_ITEMS, 2)
    ids = [name_items()[row] for row in half]
    path = write_index_file(tmp_path / "index.json", plant_codes()[half], ids)
    [entry] = read_entries([path], made / "embeddings", made / "data")
    assert not entry.is_aligned
    assert entry.vectors is not None
    np.testing.assert_array_equal(entry.vectors, plant_clusters(N_ITEMS, 6)[half])
    titles = entry.read_column("title")
    assert titles is not None
    assert titles[1] == "Title 2"
    report = make_report([path, made / "tokenizer"], tmp_path / "out")
    rows = {row["key"]: row for row in report["measures"]}
    assert not rows["collisions_after"]["comparable"]
    assert rows["collisions_after"]["best"] == []
    assert "name different items" in next(iter(list_notes(report)))


def test_inputs_that_moved_are_said_to_be_missing(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "made")
    shutil.rmtree(tmp_path / "made" / "embeddings")
    shutil.rmtree(tmp_path / "made" / "data")
    [row] = make_report([folder], tmp_path / "out")["vocabularies"]
    reasons = {entry["measure"]: entry["reason"] for entry in row["missing"]}
    assert "unknown, moved or changed; give --embeddings" in reasons["neighbours and map"]
    assert row["reconstruction"] is not None, "known from when it was fitted"


def test_inputs_that_changed_are_not_taken(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "made")
    shutil.rmtree(tmp_path / "made" / "embeddings")
    write_vectors(tmp_path / "made" / "embeddings", plant_clusters(N_ITEMS, 3))
    [entry] = read_entries([folder])
    assert entry.embeddings is None
    assert entry.dataset is None


def test_a_tokenizer_with_more_items_than_its_inputs(made: Path, tmp_path: Path) -> None:
    codes = np.concatenate([plant_codes(), [[7, 0]]]).astype(np.int32)
    fitted = Fitted(TokenizeRecipe(quantizer="imported", codebook_sizes=(8, 20)), {}, 0, (8, 20))
    grown = SemanticIdTokenizer([*name_items(), "new"], codes, fitted)
    inputs = {"embed": load_artifact(made / "embeddings")}
    with write_artifact(
        tmp_path / "grown", step="tokenize", recipe=fitted.recipe, inputs=inputs
    ) as work:
        grown.save_pretrained(work.path)
    [entry] = read_entries([tmp_path / "grown"])
    assert "lacks 1 of its items; name what holds all with --embeddings" in entry.missing["vectors"]
    assert "name what holds all with --data" in entry.missing["data"]
    assert entry.vectors is None


def test_different_embeddings_are_not_compared() -> None:
    basis = {"items": "x", "own_vectors": True}
    rows = [
        {"name": name, "neighbours": {}, "basis": basis | {"vectors": name}} for name in ("p", "q")
    ]
    [note] = list_notes({"vocabularies": rows})
    assert note == "Neighbours were looked for in different embeddings, which do not compare."


def test_reconstruction_is_measured_where_it_is_not_known(made: Path, tmp_path: Path) -> None:
    tokenizer = SemanticIdTokenizer.from_pretrained(made / "tokenizer")
    known = tokenizer.quality["reconstruction"]
    tokenizer.quality = None
    tokenizer.save_pretrained(tmp_path / "plain")
    [row] = make_report([tmp_path / "plain"], tmp_path / "a", embeddings=made / "embeddings")[
        "vocabularies"
    ]
    assert row["reconstruction"]["after"] == pytest.approx(known["after"])
    assert row["reconstruction"]["before"] == pytest.approx(known["before"])
    assert row["uniqueness"] is None
    [row] = make_report([tmp_path / "plain"], tmp_path / "b")["vocabularies"]
    reasons = {entry["measure"]: entry["reason"] for entry in row["missing"]}
    assert "give --embeddings" in reasons["reconstruction"]
    wide = write_vectors(tmp_path / "wide", plant_clusters(N_ITEMS, 6, dimensions=20))
    [row] = make_report([tmp_path / "plain"], tmp_path / "c", embeddings=wide)["vocabularies"]
    reasons = {entry["measure"]: entry["reason"] for entry in row["missing"]}
    assert "20 wide, the tokenizer was fitted to 16" in reasons["reconstruction"]


def test_a_quantizer_without_vectors_has_no_reconstruction(made: Path, tmp_path: Path) -> None:
    folder = write_imported(tmp_path / "imported", plant_codes(), (6, 20))
    [row] = make_report([folder], tmp_path / "out", data=made / "data")["vocabularies"]
    reasons = {entry["measure"]: entry["reason"] for entry in row["missing"]}
    assert reasons["reconstruction"] == "quantizer 'imported' does not quantize vectors"


def test_data_without_categories(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", categories=False)
    path = write_index_file(tmp_path / "index.json", plant_codes())
    [row] = make_report([path], tmp_path / "out", data=data)["vocabularies"]
    reasons = {entry["measure"]: entry["reason"] for entry in row["missing"]}
    assert reasons["categories"] == "the data has no column categories"
    assert row["popularity"] is not None


def test_users_have_no_items_data(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text('{"item-0": ["<ua_0>"], "item-1": ["<ua_1>"], "item-2": ["<ua_1>"]}')
    [row] = make_report([path], tmp_path / "out", data=made / "data")["vocabularies"]
    assert row["subject"] == "users"
    reasons = {entry["measure"]: entry["reason"] for entry in row["missing"]}
    assert reasons["popularity and titles"].startswith("this is a vocabulary of users")


@pytest.mark.parametrize("n_items", [1, 2])
def test_tiny_vocabularies_are_reported(tmp_path: Path, n_items: int) -> None:
    data = write_data(tmp_path / "data", n_items)
    vectors = np.ones((n_items, 2), dtype=np.float32)
    embeddings = write_vectors(tmp_path / "embeddings", vectors)
    path = write_index_file(tmp_path / "index.json", np.zeros((n_items, 2), dtype=np.int32))
    report = make_report([path], tmp_path / "out", embeddings=embeddings, data=data)
    [row] = report["vocabularies"]
    assert row["collisions"]["after"] == (n_items - 1) / n_items
    reasons = {entry["measure"]: entry["reason"] for entry in row["missing"]}
    assert "fewer than three items" in reasons["neighbours"]
    assert read_report(tmp_path / "out") == report


def test_an_empty_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(DataError, match="names no item"):
        make_report([tmp_path / "index.json"], tmp_path / "out")


def test_faults_are_found_before_work(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name at least one tokenizer"):
        make_report([], tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        make_report([tmp_path / "none"], tmp_path / "out")
    with pytest.raises(ArtifactError, match="is an artefact"):
        make_report([made / "tokenizer"], made / "tokenizer")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"):
        make_report([made / "tokenizer"], tmp_path / "file")


def test_names_are_as_long_as_needed(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
    pair = [made / "tokenizer", tmp_path / "tokenizer"]
    names = [entry.name for entry in read_entries(pair)]
    assert names == [f"{path.parent.name}/tokenizer" for path in pair]
    twice = [entry.name for entry in read_entries([made / "tokenizer"] * 2)]
    assert len(set(twice)) == 2
    assert twice[0].endswith("(1)")


def test_two_values_alike_are_no_best() -> None:
    use = {"levels": [{"dead": 0, "codes": 1, "used": 1, "utilisation": 1.0, "perplexity": 1.0,
                       "entropy_bits": 0.0, "gini": 0.0}]}  # fmt: skip
    base = {
        "items": 1, "use": use, "basis": {"items": 1, "vectors": None, "data": None},
        "collisions": {"before": None, "after": 0.0, "lost": 0, "largest": 1},
        "uniqueness": None, "reconstruction": None, "neighbours": None, "categories": None,
        "popularity": None,
    }  # fmt: skip
    rows = compare_measures([base | {"name": "x"}, base | {"name": "y"}])
    assert all(row["best"] == [] for row in rows)
    assert {row["key"] for row in rows} >= {"collisions_after", "gini"}


def test_the_commands_report_export_import(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner(env={"COLUMNS": "200"}).invoke
    shown = run(app, ["tokenize", "report", str(made / "tokenizer"), str(made / "peers")])
    assert shown.exit_code == 0, shown.output
    assert re.search(r"Collisions, as shipped ↓ +│ +0.00% \(0 of 120\) \* │", shown.output)
    assert "good.index: reconstruction not measured: an index file holds no quant" in shown.output
    assert (tmp_path / "tokenize-report" / "report.json").is_file()
    index = str(tmp_path / "index.json")
    shown = run(app, ["tokenize", "export", str(made / "tokenizer"), "-o", index])
    assert "index.json: 120 items" in shown.output.replace("\n", "")
    shown = run(app, ["tokenize", "import", index, "-o", str(tmp_path / "again")])
    assert "120 items imported" in shown.output.replace("\n", "")
    again = SemanticIdTokenizer.from_pretrained(tmp_path / "again")
    assert again.sids == SemanticIdTokenizer.from_pretrained(made / "tokenizer").sids


def test_the_command_push(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def push(self: SemanticIdTokenizer, repo_id: str, *, private: bool) -> str:
        asked.append((repo_id, private))
        return f"https://hub.example/{repo_id}"

    monkeypatch.setattr(SemanticIdTokenizer, "push_to_hub", push)
    args = ["tokenize", "push", str(made / "tokenizer"), "me/ids", "--private"]
    shown = CliRunner().invoke(app, args)
    assert "sent: https://hub.example/me/ids" in shown.output
    assert asked == [("me/ids", True)]
