"""The Ray path: the same result as in one process, on a local cluster of two nodes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from genrec import cli
from genrec.errors import ClusterError, MissingExtraError, ModelError, RecipeError
from genrec.tokenizers import cluster as cluster_module
from genrec.tokenizers.cluster import RayEngine, find_engine
from genrec.tokenizers.embedding.embed import load_embeddings, make_embeddings
from genrec.tokenizers.embedding.lsa import LsaEncoder
from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import make_tokenizer

from .conftest import plant_clusters
from .test_embed import write_embeddings

pytest.importorskip("ray.data", reason="the extra [ray] is not installed")


def sentence_recipe(model: Path) -> EmbedRecipe:
    return EmbedRecipe.model_validate(
        {
            "encoder": "sentence-transformers",
            "sentence_transformers": {"model": str(model), "device": "cpu"},
            "shard_items": 8,
        }
    )


def test_engines_are_found_by_name() -> None:
    assert find_engine("local") is None
    assert isinstance(find_engine("ray"), RayEngine)
    with pytest.raises(RecipeError, match="engine 'rya' is unknown; did you mean 'ray'"):
        find_engine("rya")
    with pytest.raises(RecipeError, match="--ray-address head:6379 is of use with --engine ray"):
        find_engine("local", "head:6379")


def test_a_missing_ray_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed.*genrec\[ray\]"):
        find_engine("ray")


def test_an_encoder_that_needs_all_texts_is_refused() -> None:
    recipe = EmbedRecipe()
    with pytest.raises(RecipeError, match=r"'lsa' looks at all texts at once.*leave --engine ray"):
        RayEngine().split_texts(recipe, LsaEncoder(recipe))


def test_nothing_is_started_for_no_work() -> None:
    assert list(RayEngine("nowhere:1").run_parts(lambda: pytest.fail("called"), [], "cpu")) == []


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(address: str, **_: Any) -> None:
        raise ConnectionError(f"cannot reach {address}\nand much more")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    runs = RayEngine().run_parts(lambda: pytest.fail("called"), [{"part": 0}], "cpu")
    with pytest.raises(ClusterError, match="no Ray cluster at 'head:6379': cannot reach head:63"):
        list(runs)


def test_a_worker_refuses_another_model(tiny_encoder: Path) -> None:
    recipe = sentence_recipe(tiny_encoder)
    with pytest.raises(ModelError, match="is not the one that it loads where the run was started"):
        cluster_module._load_encoder(recipe, "another digest", torch.get_num_threads())


@pytest.mark.slow
def test_two_nodes_embed_what_one_process_does(
    two_nodes: str,
    make_catalogue: Any,
    texts: list[str],
    tiny_encoder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe, data = sentence_recipe(tiny_encoder), make_catalogue(texts)
    make_embeddings(recipe, data, tmp_path / "local", cache=tmp_path / "cache")
    engine = RayEngine(two_nodes)
    with caplog.at_level(logging.INFO):
        made = make_embeddings(
            recipe, data, tmp_path / "ray", cache=tmp_path / "other", engine=engine
        )
    local, ray = (load_embeddings(tmp_path / name) for name in ("local", "ray"))
    # Codes are equal bit by bit, below; a vector may differ in its last bits on another processor.
    np.testing.assert_allclose(ray.vectors[:], local.vectors[:], rtol=1e-5, atol=1e-6)
    assert ray.item_ids == local.item_ids
    assert made.manifest.recipe_digest == local.artifact.manifest.recipe_digest
    assert sum(engine.parts_by_node.values()) == 8
    assert len(engine.parts_by_node) == 2
    assert "8 parts by 2 workers on 2 nodes" in caplog.text
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "ray" not in shown.err.lower()


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["rqkmeans", "rqvae"])
def test_two_nodes_encode_what_one_process_does(
    two_nodes: str, quantizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_items = 5 * 512 + 7
    monkeypatch.setattr("genrec.tokenizers.vectors.CHUNK_ROWS", 512)
    recipe = TokenizeRecipe.model_validate(
        {
            "quantizer": quantizer,
            "codebook_sizes": [16, 16, 16],
            "rqvae": {"hidden_sizes": [16], "latent_size": 4, "max_epochs": 3, "warmup_epochs": 1},
        }
    )
    vectors = plant_clusters(n_items, n_clusters=64, noise=0.5)
    source = write_embeddings(
        tmp_path / "embeddings", vectors, [f"item-{row}" for row in range(n_items)]
    )
    engine = RayEngine(two_nodes)
    local = make_tokenizer(recipe, source, tmp_path / "local")
    ray = make_tokenizer(recipe, source, tmp_path / "ray", engine=engine)
    assert ray.manifest.digest == local.manifest.digest
    codes = [SemanticIdTokenizer.from_pretrained(tmp_path / n).raw_codes for n in ("local", "ray")]
    np.testing.assert_array_equal(*codes)
    assert len(engine.parts_by_node) == 2
    assert sum(engine.parts_by_node.values()) == 6


@pytest.mark.slow
def test_a_fault_in_a_worker_is_one_message(two_nodes: str) -> None:
    def load() -> Any:
        def work(part: Any) -> Any:
            if part["part"] == 3:
                raise ValueError("this part cannot be done")
            return np.zeros(1)

        return work

    parts = [{"part": number} for number in range(6)]
    with pytest.raises(ClusterError) as caught:
        list(RayEngine(two_nodes).run_parts(load, parts, "cpu"))
    message = str(caught.value)
    assert message.startswith(
        "a worker on the Ray cluster failed: ValueError: this part cannot be done\n"
    )
    assert len(message.splitlines()) == 2


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(two_nodes: str, tmp_path: Path) -> None:
    mark = tmp_path / "died"

    def load() -> Any:
        def work(part: Any) -> Any:
            if part["part"] == 3 and not mark.exists():
                mark.touch()
                os._exit(1)
            return np.full((2, 2), part["part"], dtype=np.float32)

        return work

    parts = [{"part": number} for number in range(8)]
    found = dict(RayEngine(two_nodes).run_parts(load, parts, "cpu"))
    assert mark.exists()
    assert sorted(found) == list(range(8))
    np.testing.assert_array_equal(found[3], np.full((2, 2), 3))


@pytest.mark.slow
def test_the_command_line_takes_a_cluster(
    two_nodes: str, make_catalogue: Any, texts: list[str], tmp_path: Path
) -> None:
    data = make_catalogue(texts)
    arguments = ["embed", "--data", str(data), "-o", str(tmp_path / "out"), "--engine", "ray"]
    done = CliRunner().invoke(cli.app, [*arguments, "--ray-address", two_nodes])
    assert isinstance(done.exception, RecipeError)
    assert "'lsa' looks at all texts at once" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_workers_read_the_data_where_the_quantizer_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from genrec.tokenizers.inputs import DATA, VECTORS, FitInput
    from genrec.tokenizers.quantizers import quantizer as quantizer_module
    from genrec.tokenizers.quantizers.quantizer import QuantizerKind, build_quantizer
    from genrec.tokenizers.quantizers.rqkmeans import RqKMeans

    seen: list[FitInput] = []

    class Needy(RqKMeans):
        def encode(self, given: FitInput) -> Any:
            seen.append(given)
            return super().encode(given)

    kind = QuantizerKind(Needy, lambda _: frozenset({VECTORS, DATA}))
    monkeypatch.setitem(quantizer_module.QUANTIZERS, "needy", kind)
    monkeypatch.setattr("genrec.data.dataset.load_dataset", lambda path: f"dataset of {path}")
    monkeypatch.setattr(ray, "get", lambda value: value)
    vectors = plant_clusters(20, n_clusters=4)
    source = write_embeddings(tmp_path / "embeddings", vectors, list("abcdefghijklmnopqrst"))
    recipe = TokenizeRecipe(quantizer="needy", codebook_sizes=(4, 4))
    fitted = build_quantizer(recipe, 16)
    fitted.fit(FitInput(tuple("abcdefghijklmnopqrst"), vectors))
    work = cluster_module._load_quantizer(
        recipe, "users", fitted.list_weights(), {"embed": source, "data": tmp_path / "data"}
    )
    codes = work({"part": 1, "start": 17, "ids": np.array(["r", "s", "t"])})
    assert codes.shape == (3, 2)
    (given,) = seen
    assert given.item_ids == ("r", "s", "t")
    assert given.subject == "users"
    assert given.dataset == f"dataset of {tmp_path / 'data'}"
    assert given.data_rows is not None
    assert given.data_rows.tolist() == [17, 18, 19]
    np.testing.assert_array_equal(given.rows[:], vectors[17:])
