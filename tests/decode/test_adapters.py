"""Several adapters over one base answer as each one's merged model does; wrong ones are refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from typer.testing import CliRunner

from genrec.cli import app
from genrec.decode.adapters import Adapters, find_adapters
from genrec.decode.writer import Writer
from genrec.errors import ModelError, RecipeError
from genrec.manifest import MANIFEST
from genrec.model_weights import (
    find_adapted,
    find_home,
    find_switch,
    parse_dtype,
    read_domains,
)
from genrec.opening import ModelChoice, open_recommender
from genrec.recommender import Recommender
from genrec.serve.assemble import Parts, assemble_server
from genrec.serve.settings import ServeSettings
from genrec.train.checkpoint import quiet_transformers
from genrec.train.corpus import train_tokenizer
from genrec.train.delta import digest_weights
from genrec.train.recipe import TrainRecipe
from genrec.train.step import make_model
from tests.contracts.engine_contract import assert_same_answers
from tests.decode.conftest import build_model
from tests.train.made_domains import DOMAINS, write_domains
from tests.train.made_inputs import PROMPT, build_tiny, item_text

HISTORY = ["i1", "i20", "i3"]


@dataclass(frozen=True)
class Shelf:
    """A model with `base/`, and adapters over it by the names that requests say."""

    model: Path
    adapters: dict[str, Path]


Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A function from name, base (None is an untrained one) and recipe values to a model."""
    folder = tmp_path_factory.mktemp("adapters")
    tokenizer = train_tokenizer([item_text(item) for item in range(40)], (PROMPT,), 320)
    with quiet_transformers():
        build_tiny("qwen3", tokenizer).save_pretrained(folder / "tiny")
        tokenizer.save_pretrained(folder / "tiny")
    inputs = write_domains(folder)
    recipe = TrainRecipe(
        rank=4, alpha=8, dropout=0.0, learning_rate=0.05, scheduler="constant", batch_size=16,
        eval_every=0.0, precision="fp32", max_steps=2,
    )  # fmt: skip

    def train(name: str, base: Path | None, **values: Any) -> Path:
        given, out = recipe.model_copy(update=values), folder / name
        make_model(
            given, base or folder / "tiny", inputs.instructions, inputs.tokenizer, inputs.data, out
        )
        return out

    return train


@pytest.fixture(scope="module")
def shelf(train: Train) -> Shelf:
    model = train("model", None, export_base=True)
    frozen = {"token_rows": "frozen"}
    adapters = {domain: train(domain, model, domain=domain, **frozen) for domain in DOMAINS}
    adapters["dora.v1"] = train("dora", model, method="dora", **frozen)
    return Shelf(model, adapters)


def recommend(recommender: Recommender) -> list[tuple[str, float]]:
    return [(a.item_id, a.score) for a in recommender.recommend(HISTORY, k=8)]


def assert_same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [item for item, _ in found] == [item for item, _ in expected]
    assert np.allclose([s for _, s in found], [s for _, s in expected], atol=1e-4)


@pytest.fixture(scope="module")
def loaded(shelf: Shelf) -> Recommender:
    return Recommender.from_pretrained(shelf.model, device="cpu", adapters=shelf.adapters)


def test_each_adapter_answers_as_its_merged_model(shelf: Shelf, loaded: Recommender) -> None:
    merged = {
        name: recommend(Recommender.from_pretrained(path, device="cpu"))
        for name, path in {None: shelf.model, **shelf.adapters}.items()
    }
    assert len({str(answers) for answers in merged.values()}) == 4
    assert_same(recommend(loaded), merged[None])
    for name in (*shelf.adapters, None, *reversed(shelf.adapters)):
        with loaded.use_adapter(name):
            assert find_switch(loaded.engine).current == name
            assert_same(recommend(loaded), merged[name])
        assert_same(recommend(loaded), merged[None])


def test_a_block_that_fails_ends_all_the_same(shelf: Shelf, loaded: Recommender) -> None:
    switch = find_switch(loaded.engine)
    with pytest.raises(ZeroDivisionError), loaded.use_adapter("beauty"):
        raise ZeroDivisionError
    assert switch.current is None
    with (
        loaded.use_adapter("beauty"),
        pytest.raises(AssertionError, match="an adapter is in use"),
        switch.use(None),
    ):
        pass
    assert switch.names == tuple(shelf.adapters)


def test_an_engine_of_other_items_has_the_same_adapters(loaded: Recommender) -> None:
    other = loaded.engine.replace_trie(loaded.engine.trie.remove([0, 1]))
    assert find_switch(other) is find_switch(loaded.engine)


def test_texts_are_written_with_an_adapter_too(shelf: Shelf, loaded: Recommender) -> None:
    @dataclass(frozen=True)
    class Job:
        prompt: tuple[int, ...]
        adapter: str | None = None
        max_tokens: int = 8
        temperature: float = 0.0
        top_p: float = 1.0
        seed: int | None = None
        stop: tuple[str, ...] = ()

    def write(recommender: Recommender, *jobs: Job) -> list[str]:
        switch = find_switch(recommender.engine)
        use = None if switch is None else switch.use
        writer = Writer(recommender.engine.model, recommender.tokenizer, use_adapter=use)
        texts = {writer.add(job): "" for job in jobs}
        while not writer.is_idle:
            for number, part in writer.step():
                texts[number] += f"{part.text}|"
        return list(texts.values())

    prompt = tuple(loaded.tokenizer("red shoe")["input_ids"])
    alone = [
        write(Recommender.from_pretrained(path, device="cpu"), Job(prompt))[0]
        for path in (shelf.model, shelf.adapters["sports"])
    ]
    assert write(loaded, Job(prompt), Job(prompt, "sports"), Job(prompt)) == [*alone, alone[0]]


def test_a_model_that_is_an_adapter_itself_finds_its_base(shelf: Shelf) -> None:
    first, second = (shelf.adapters[domain] for domain in DOMAINS)
    recommender = Recommender.from_pretrained(first, device="cpu", adapters={"x": second / "lora"})
    assert_same(recommend(recommender), recommend(Recommender.from_pretrained(first)))
    with recommender.use_adapter("x"):
        assert_same(recommend(recommender), recommend(Recommender.from_pretrained(second)))


@pytest.mark.slow
def test_adapters_lie_over_a_merged_checkpoint_where_that_is_their_base(train: Train) -> None:
    model = train("own", None)
    over = train("over", model, token_rows="frozen")
    recommender = Recommender.from_pretrained(model, device="cpu", adapters={"x": over})
    assert find_adapted(model, {"x": over}).own is None
    assert_same(recommend(recommender), recommend(Recommender.from_pretrained(model)))
    with recommender.use_adapter("x"):
        assert_same(recommend(recommender), recommend(Recommender.from_pretrained(over)))


def test_an_unknown_adapter_is_an_error(shelf: Shelf, loaded: Recommender) -> None:
    with pytest.raises(RecipeError, match="unknown adapter 'beuty'; did you mean 'beauty'"):
        loaded.use_adapter("beuty")
    plain = Recommender.from_pretrained(shelf.model, device="cpu")
    with pytest.raises(RecipeError, match=r"none was loaded; open the model with adapters=\{'x'"):
        plain.use_adapter("x")
    with plain.use_adapter(None):
        assert find_switch(plain.engine) is None
    assert find_switch(object()) is None


def test_domains_are_those_that_adapters_were_tuned_for(shelf: Shelf) -> None:
    beauty = shelf.adapters["beauty"]
    found = read_domains({**shelf.adapters, "again": beauty / "lora"})
    assert found == {"beauty": ["beauty", "again"], "sports": ["sports"]}
    assert find_home(beauty / "lora") == find_home(beauty) == beauty


def copy_adapter(source: Path, out: Path) -> Path:
    shutil.copytree(source, out)
    return out


def edit_settings(path: Path, **values: Any) -> None:
    file = path / "genrec.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    seal(path)


def seal(path: Path) -> None:
    """Let the manifest say what the files are, as if they had been trained so."""
    from dataclasses import asdict

    from genrec.manifest import describe_folder, read_manifest
    from genrec.recipe import Recipe

    old = read_manifest(path, "model")
    new = describe_folder(path, "train", Recipe(), old.inputs, old.facts, 0.0)
    (path / MANIFEST).write_text(json.dumps(asdict(new) | {"digest": new.digest}))


Spoil = Callable[[Path], None]


def change_weights(path: Path) -> None:
    file = path / "lora" / "adapter_model.safetensors"
    state = load_file(file)
    state = {name: value + 1 for name, value in state.items()}
    save_file(state, file, metadata={"format": "pt"})


def add_soft_users(path: Path) -> None:
    (path / "soft_users").mkdir()


def change_prompt(path: Path) -> None:
    (path / "recommend.json").write_text("{}")
    seal(path)


def change_vocabulary(path: Path) -> None:
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].pop()
    file.write_text(json.dumps(tokenizer))
    seal(path)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda p: edit_settings(p, catalogue_digest="x"), "it has other items or semantic IDs"),
        (lambda p: edit_settings(p, base_weights="x"), "whose weights are not those of"),
        (lambda p: edit_settings(p, base_weights=None), "train it with token_rows: frozen"),
        (lambda p: edit_settings(p, user_digest="x"), "it has other users"),
        (lambda p: edit_settings(p, chat={}), "it has another chat template"),
        (lambda p: edit_settings(p, codebook_sizes=[1]), "other semantic-ID tokens"),
        (change_weights, r"lora/adapter_model\.safetensors was changed since"),
        (add_soft_users, "shows users as soft tokens; serve its own"),
        (change_prompt, r"trained with another prompt \(recommend\.json\)"),
        (change_vocabulary, "another vocabulary"),
        (lambda p: (p / MANIFEST).unlink(), "is no artefact"),
        (lambda p: (p / "genrec.json").unlink(), "no model directory of `genrec train`"),
        (lambda p: shutil.rmtree(p / "lora"), "it holds no adapter"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    shelf: Shelf, tmp_path: Path, spoil: Spoil, fault: str
) -> None:
    wrong = copy_adapter(shelf.adapters["sports"], tmp_path / "wrong")
    assert find_adapted(shelf.model, {"x": wrong}).folders == {"x": wrong / "lora"}
    spoil(wrong)
    with pytest.raises(ModelError, match=fault) as caught:
        find_adapted(shelf.model, {"fine": shelf.adapters["beauty"], "x": wrong})
    assert "'fine'" not in str(caught.value)


def test_all_that_is_wrong_is_in_one_message(shelf: Shelf) -> None:
    adapters = {
        "itself": shelf.model,
        "base": shelf.model / "base",
        "none": shelf.model / "nowhere",
    }
    with pytest.raises(ModelError, match="not of the model") as caught:
        Recommender.from_pretrained(shelf.model, device="cpu", adapters=adapters)
    message = str(caught.value)
    assert all(f"adapter {name!r}" in message for name in adapters)


def test_the_base_must_be_there_and_as_it_was(shelf: Shelf, tmp_path: Path) -> None:
    first, second = (shelf.adapters[domain] for domain in DOMAINS)
    moved = copy_adapter(first, tmp_path / "moved")
    edit_settings(moved, base=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="which is not there, and other adapters need that base"):
        find_adapted(moved, {"x": second})
    edit_settings(moved, base=str(second))
    with pytest.raises(ModelError, match="whose weights have changed since"):
        find_adapted(moved, {"x": second})
    add_soft_users(moved)
    with pytest.raises(ModelError, match="serve it without --adapter"):
        find_adapted(moved, {"x": second})


def test_weights_are_known_wherever_they_lie(shelf: Shelf, tmp_path: Path) -> None:
    base = shelf.model / "base"
    moved = shutil.copytree(base, tmp_path / "base")
    assert digest_weights(base) == digest_weights(moved) != digest_weights(shelf.model)
    settings = json.loads((shelf.adapters["sports"] / "genrec.json").read_text())
    assert settings["base_weights"] == digest_weights(base)
    assert json.loads((shelf.model / "genrec.json").read_text())["base_weights"] is None
    assert digest_weights("Qwen/Qwen3-0.6B") is None
    assert parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(RecipeError, match="unknown dtype 'bf16'; did you mean"):
        parse_dtype("bf16")


def save_adapter(folder: Path, **config: Any) -> Path:
    """An adapter over a made model, as PEFT alone writes it."""
    values = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | config
    adapted = get_peft_model(build_model("qwen3"), LoraConfig(**values))
    with quiet_transformers():
        adapted.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    fine = save_adapter(tmp_path / "fine")
    assert Adapters(build_model("qwen3"), None, {"a.b": fine}).names == ("a.b",)
    head = save_adapter(tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(ModelError, match=r"adapter 'x' .*it changes lm_head"):
        Adapters(build_model("qwen3"), None, {"x": head})
    words = save_adapter(tmp_path / "words", target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match=r"it changes model\.embed_tokens"):
        Adapters(build_model("qwen3"), None, {"x": words})
    with pytest.raises(ModelError, match="size mismatch"):
        Adapters(build_model("llama", hidden_size=64), None, {"x": fine})
    with pytest.raises(ModelError, match="it is of another base"):
        Adapters(build_model("gpt2"), None, {"x": fine})

    state = load_file(fine / "adapter_model.safetensors")
    state.pop(min(state))
    less = copy_adapter(fine, tmp_path / "less")
    save_file(state, less / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"no weights for base_model.*it is of another base"):
        Adapters(build_model("qwen3"), None, {"x": less})


def test_files_that_are_no_safe_adapter_are_refused(tmp_path: Path) -> None:
    fine = save_adapter(tmp_path / "fine")

    def refuse(path: Path, fault: str) -> None:
        with pytest.raises(ModelError, match=fault):
            Adapters(build_model("qwen3"), path, {})

    pickled = copy_adapter(fine, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").unlink()
    refuse(pickled, r"own adapter .*it has no adapter_model\.safetensors")
    torch.save({}, pickled / "adapter_model.bin")
    refuse(pickled, r"\(adapter_model\.bin\) are pickled, which can run any program")
    torn = copy_adapter(fine, tmp_path / "torn")
    (torn / "adapter_config.json").write_text("{")
    refuse(torn, r"adapter_config\.json names no LoRA adapter \(peft_type is None\)")
    broken = copy_adapter(fine, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"x" * 20)
    refuse(broken, "it is of another base")
    rows = save_adapter(tmp_path / "rows", trainable_token_indices=[1, 2])
    refuse(rows, "it has token rows or whole layers of its own")
    config = json.loads((fine / "adapter_config.json").read_text())
    (torn / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    refuse(torn, "peft_type is 'IA3'")
    (torn / "adapter_config.json").unlink()
    refuse(torn, "names no LoRA adapter")


def test_a_model_without_adapters_has_none() -> None:
    assert find_adapters(build_model("qwen3")) is None


def run_cli(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["recommend", *map(str, arguments)])


def test_the_command_answers_with_an_adapter(shelf: Shelf, tmp_path: Path) -> None:
    adapter = shelf.adapters["beauty"]
    plain = run_cli("-m", adapter, *HISTORY, "-k", 3)
    adapted = run_cli("-m", shelf.model, "--adapter", adapter, *HISTORY, "-k", 3)
    assert adapted.exit_code == 0, adapted.output
    items = [
        [answer["item_id"] for answer in json.loads(result.stdout)["recommendations"]]
        for result in (plain, adapted)
    ]
    assert items[0] == items[1]

    users, out = tmp_path / "users.jsonl", tmp_path / "out.jsonl"
    users.write_text(json.dumps({"user_id": "u", "history": HISTORY}))
    given = ("-m", shelf.model, "--adapter", adapter / "lora", "-i", users, "-o", out)
    result = run_cli(*given, "-k", 3)
    assert result.exit_code == 0, result.output
    assert [a["item_id"] for a in json.loads(out.read_text())["recommendations"]] == items[0]


def test_adapters_need_a_trained_model_in_engine_torch(shelf: Shelf) -> None:
    choice = ModelChoice(shelf.model, "vllm", adapter=shelf.adapters["beauty"])
    with pytest.raises(RecipeError, match="give the adapter's own directory as the model"):
        open_recommender(choice)
    choice = ModelChoice(shelf.model, catalogue=shelf.model)
    with pytest.raises(RecipeError, match="lie over a trained model in engine torch"):
        open_recommender(choice, {"x": shelf.model})


def test_a_server_answers_each_domain_with_its_adapter(shelf: Shelf, loaded: Recommender) -> None:
    settings = ServeSettings(model_name="shared", domains={"toys": "dora.v1"})
    parts = Parts(ModelChoice(shelf.model, device="cpu"), shelf.adapters)
    _, app = assemble_server(parts, settings)
    with TestClient(app) as client:

        def ask(**values: Any) -> list[tuple[str, float]]:
            body = {"history": HISTORY, "k": 8, **values}
            answer = client.post("/v1/recommendations", json=body)
            assert answer.status_code == 200, answer.text
            return [(item["item_id"], item["score"]) for item in answer.json()["items"]]

        ways: list[tuple[str | None, dict[str, str]]] = [
            (None, {}),
            *((name, {"domain": name}) for name in DOMAINS),
            *((name, {"adapter": name}) for name in shelf.adapters),
            ("dora.v1", {"domain": "toys"}),
        ]
        for name, values in ways * 2:  # the second time the prompt's beginning is kept
            with loaded.use_adapter(name):
                assert_same(ask(**values), recommend(loaded))
        models = client.get("/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["shared", *shelf.adapters]


def test_a_kept_beginning_is_only_its_own_adapters(shelf: Shelf, loaded: Recommender) -> None:
    engine, rng = copy.copy(loaded.engine), np.random.default_rng(0)
    engine.keep_prefixes(1 << 24)
    histories = [rng.integers(0, loaded.n_items, 8) for _ in range(4)]
    prompts = loaded.encode_prompts(histories, [""] * 4)
    assert min(map(len, prompts)) > 16, "shorter than a block, and nothing would be kept"
    names = (None, *shelf.adapters)
    expected = {}
    for name in names:
        with loaded.use_adapter(name):
            expected[name] = loaded.engine.rank_prompts(prompts, 8)
    assert loaded.engine.prefix_stats.misses == 0, "the engine that keeps nothing"
    for turn in range(2):
        for name in names if turn == 0 else reversed(names):
            hits = engine.prefix_stats.hits
            with loaded.use_adapter(name):
                assert_same_answers(engine.rank_prompts(prompts, 8), expected[name])
            # None knows a prompt that the others have run.
            assert engine.prefix_stats.hits - hits == (4 if turn else 0)


def test_a_server_of_unclear_domains_does_not_start(shelf: Shelf) -> None:
    choice, beauty = ModelChoice(shelf.model, device="cpu"), shelf.adapters["beauty"]
    twice = Parts(choice, {"a": beauty, "b": beauty / "lora"})
    with pytest.raises(RecipeError, match="'a', 'b' were all tuned for domain 'beauty'; say which"):
        assemble_server(twice, ServeSettings())
    unclear = ServeSettings(domains={"beauty": "c"})
    with pytest.raises(RecipeError, match="to be answered by adapter 'c', which is not served"):
        assemble_server(twice, unclear)
    wrong = Parts(choice, {"a": shelf.model})
    with pytest.raises(ModelError, match=r"adapter 'a' .*whose weights are not those of"):
        assemble_server(wrong, ServeSettings())
