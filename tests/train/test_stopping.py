"""Early stopping by constrained decoding on a live model: who is asked, and what is measured."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import TrainerState

from genrec.artifact import load_artifact
from genrec.data.dataset import load_dataset
from genrec.decode.trie import Trie
from genrec.errors import DataError, RecipeError
from genrec.eval.metrics import Metric, pad_lists, score_users
from genrec.recommender import Recommender
from genrec.train import stopping
from genrec.train.adapter import prepare_model
from genrec.train.checkpoint import load_checkpoint
from genrec.train.export import read_catalogue
from genrec.train.monitor import Monitor
from genrec.train.recipe import TrainRecipe
from genrec.train.soft_users import add_mark, add_projector, read_soft_users
from genrec.train.step import make_model
from genrec.train.stopping import Questions, StopMetric, ask_users, check_whole
from genrec.train.trainer import CompletionTrainer
from genrec.train.users import read_users
from genrec.train.vocabulary import extend_vocabulary
from tests.train.made_inputs import CODEBOOKS, Inputs
from tests.train.made_users import (
    N_USERS,
    make_prompt,
    walk_of,
    write_inputs,
    write_named,
)
from tests.train.test_soft_users import write_vectors

Start = Callable[..., tuple[Any, StopMetric, Questions]]


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("walks"))


@pytest.fixture
def stopping_recipe(recipe: TrainRecipe) -> TrainRecipe:
    return recipe.model_copy(update={"stop_metric": "NDCG@5", "dropout": 0.1})


def make(recipe: TrainRecipe, base: Path, inputs: Inputs, out: Path) -> Any:
    return make_model(recipe, base, inputs.instructions, inputs.tokenizer, inputs.data, out)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


@pytest.fixture
def start(bases: Callable[[str], Path], walks: Inputs) -> Start:
    """A model prepared for training, with its adapter shaken, and a metric on it."""

    def begin(recipe: TrainRecipe, kind: str = "qwen3", inputs: Inputs = walks) -> Any:
        checkpoint = load_checkpoint(bases(kind), torch.float32)
        catalogue = read_catalogue(inputs.data, inputs.tokenizer, CODEBOOKS)
        data = load_artifact(inputs.data)
        extension = extend_vocabulary(
            checkpoint.model,
            checkpoint.tokenizer,
            CODEBOOKS,
            catalogue.texts,
            catalogue.codes,
            noise=0.1,
            seed=0,
            users=read_users(inputs.instructions, data),
        )
        model = prepare_model(checkpoint.model, recipe, extension.flat_ids())
        questions = ask_users(recipe, data, inputs.instructions, catalogue, checkpoint.tokenizer)
        trie = Trie.from_codes(catalogue.codes.astype(np.int64))
        return (
            model,
            StopMetric(recipe.stop_metric, model, trie, extension.token_ids, questions),
            (questions),
        )

    return begin


def shake(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("qwen3", "lora"),
        ("llama", "lora"),
        pytest.param("gpt2", "lora", marks=pytest.mark.slow),
        pytest.param("llama", "full", marks=pytest.mark.slow),
    ],
)
def test_the_metric_of_the_live_model_is_that_of_the_exported_one(
    kind: str,
    method: str,
    stopping_recipe: TrainRecipe,
    bases: Callable[[str], Path],
    walks: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"method": method, "max_steps": 2, "learning_rate": 0.05, "eval_every": 1.0}
    changes["gradient_checkpointing"] = kind == "llama"
    recipe = stopping_recipe.model_copy(update=changes)
    seen: list[float] = []
    ranked: list[np.ndarray] = []
    rank = stopping.rank_filtered

    def spy(*arguments: Any, **words: Any) -> Any:
        found = rank(*arguments, **words)
        ranked.append(found.item_index)
        return found

    monkeypatch.setattr(stopping, "rank_filtered", spy)
    artifact = make(recipe, bases(kind), walks, tmp_path / "model")
    log = [line for line in read_log(artifact.path) if "eval_loss" in line]
    seen = [line["eval_NDCG@5"] for line in log]
    facts = artifact.manifest.facts
    assert facts["best_eval_NDCG@5"] == max(seen)
    assert facts["best_eval_loss"] == log[seen.index(max(seen))]["eval_loss"]
    best = ranked[seen.index(max(seen))]
    held = load_dataset(walks.data).holdout("valid")
    found = Recommender.from_pretrained(artifact.path).rank_items(held.histories, 5)
    assert np.array_equal(found.item_index, best)
    metric = Metric("NDCG", 5)
    values = score_users(found.item_index, pad_lists(held.targets), [metric])[metric]
    assert float(values.mean()) == pytest.approx(max(seen), abs=1e-6)


def test_it_follows_the_weights_and_leaves_model_and_chance_alone(
    start: Start, stopping_recipe: TrainRecipe
) -> None:
    model, metric, _ = start(stopping_recipe.model_copy(update={"stop_metric": "NDCG@40"}))
    model.train()
    model.get_decoder().layers[0].eval()
    modes = [module.training for module in model.modules()]
    before, chance = metric.measure(Accelerator(cpu=True)), torch.get_rng_state()
    numbers = np.random.get_state()[1]
    assert metric.measure(Accelerator(cpu=True)) == before
    assert torch.equal(chance, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])
    assert modes == [module.training for module in model.modules()]
    shake(model)
    assert metric.measure(Accelerator(cpu=True)) != before


def test_each_process_asks_a_share_and_learns_the_whole(
    start: Start, stopping_recipe: TrainRecipe
) -> None:
    model, metric, questions = start(stopping_recipe)
    shake(model)
    whole = metric.measure(Accelerator(cpu=True))
    sums: list[torch.Tensor] = []

    def collect(total: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        sums.append(total)
        return total

    for place in range(3):
        process = SimpleNamespace(
            process_index=place, num_processes=3, device=torch.device("cpu"), reduce=collect
        )
        metric.measure(process)  # type: ignore[arg-type]
    total = torch.stack(sums).sum(0)
    assert float(total[1]) == len(questions.prompts) == 11
    assert float(total[0] / total[1]) == pytest.approx(whole, abs=1e-6)
    lonely = questions.take_share(11, 12)
    assert lonely.prompts == []


def test_users_without_history_are_not_asked_and_others_are_drawn(
    start: Start, stopping_recipe: TrainRecipe
) -> None:
    _, _, questions = start(stopping_recipe)
    assert [targets.tolist() for targets in questions.targets] == [
        [walk_of(user)[3]] for user in range(11)
    ]
    few = stopping_recipe.model_copy(update={"metric_users": 4})
    drawn = [start(few)[2].targets for _ in range(2)]
    assert len(drawn[0]) == 4
    assert [t.tolist() for t in drawn[0]] == [t.tolist() for t in drawn[1]]


def test_a_domain_has_its_own_users(start: Start, stopping_recipe: TrainRecipe) -> None:
    _, _, questions = start(stopping_recipe.model_copy(update={"domain": "a"}))
    assert questions.targets
    assert all(int(targets[0]) % 2 == 0 for targets in questions.targets)


def test_prompts_name_users_where_the_template_does(
    start: Start, stopping_recipe: TrainRecipe, tmp_path: Path
) -> None:
    inputs = write_inputs(tmp_path, users=True)
    _, metric, questions = start(stopping_recipe, "llama", inputs)
    assert len({tuple(prompt) for prompt in questions.prompts}) == 11
    assert 0 <= metric.measure(Accelerator(cpu=True)) <= 1


def test_soft_users_are_shown(
    stopping_recipe: TrainRecipe, bases: Callable[[str], Path], walks: Inputs, tmp_path: Path
) -> None:
    recipe = stopping_recipe.model_copy(update={"soft_user_tokens": 2, "stop_metric": "NDCG@40"})
    ids = [f"u{user}" for user in range(N_USERS)]
    vectors = write_vectors(tmp_path / "v", ids, np.random.default_rng(0).normal(size=(12, 4)))
    make_prompt(soft=True).save(tmp_path)
    checkpoint = load_checkpoint(bases("qwen3"), torch.float32)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    catalogue = read_catalogue(walks.data, walks.tokenizer, CODEBOOKS)
    extension = extend_vocabulary(
        model, tokenizer, CODEBOOKS, catalogue.texts, catalogue.codes, noise=0.1, seed=0
    )
    soft = read_soft_users(recipe, tokenizer, walks.data, vectors)
    add_mark(model, tokenizer, soft)
    model = prepare_model(model, recipe, extension.flat_ids())
    add_projector(model, soft, 0)
    data = load_artifact(walks.data)
    questions = ask_users(recipe, data, tmp_path, catalogue, tokenizer, vectors=soft.known)
    assert questions.vectors is not None and questions.vectors.shape == (11, 4)
    assert all(prompt.count(soft.known.token_id) == 2 for prompt in questions.prompts)
    trie = Trie.from_codes(catalogue.codes.astype(np.int64))
    metric = StopMetric(recipe.stop_metric, model, trie, extension.token_ids, questions)
    before = metric.measure(Accelerator(cpu=True))
    with torch.no_grad():
        model.soft_users.last.weight.mul_(-30)
    assert metric.measure(Accelerator(cpu=True)) != before


def test_nobody_to_ask_is_an_error(start: Start, stopping_recipe: TrainRecipe) -> None:
    with pytest.raises(DataError, match=r"NDCG@5 has nobody to ask in domain 'c': .*stop_metric:"):
        start(stopping_recipe.model_copy(update={"domain": "c"}))


def test_users_whom_the_prompt_cannot_name_are_not_asked(
    stopping_recipe: TrainRecipe, bases: Callable[[str], Path], walks: Inputs, tmp_path: Path
) -> None:
    make_prompt(users=True).save(tmp_path)
    catalogue = read_catalogue(walks.data, walks.tokenizer, CODEBOOKS)
    tokenizer = load_checkpoint(bases("qwen3"), torch.float32).tokenizer
    with pytest.raises(DataError, match=r"nobody to ask: .* and 11 no semantic ids, which the pro"):
        ask_users(stopping_recipe, load_artifact(walks.data), tmp_path, catalogue, tokenizer)


def test_no_validation_rows_is_an_error(
    stopping_recipe: TrainRecipe, bases: Callable[[str], Path], walks: Inputs, tmp_path: Path
) -> None:
    data, tokenizer = load_artifact(walks.data), load_artifact(walks.tokenizer)
    bare = write_named(tmp_path / "bare", data, tokenizer, n_valid=0)
    inputs = Inputs(data.path, tokenizer.path, bare.path)
    with pytest.raises(DataError, match=r"is measured at validations, and there are no validation"):
        make(stopping_recipe, bases("qwen3"), inputs, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_prompts_that_the_model_cannot_take_are_found_before_training(
    start: Start, stopping_recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "max_positions", lambda _: 10)
    with pytest.raises(DataError, match=r"of up to \d+ tokens, and the base model takes 8; lower"):
        start(stopping_recipe)


def test_more_answers_than_items_are_refused(start: Start, stopping_recipe: TrainRecipe) -> None:
    with pytest.raises(RecipeError, match=r"HR@41 looks at more answers than the catalogue's 40"):
        start(stopping_recipe.model_copy(update={"stop_metric": "HR@41"}))


def test_an_adapter_on_the_head_is_refused(start: Start, stopping_recipe: TrainRecipe) -> None:
    changes = {"target_modules": ("q_proj", "lm_head"), "token_rows": "frozen"}
    with pytest.raises(RecipeError, match=r"target_modules gives the head an adapter of its own"):
        start(stopping_recipe.model_copy(update=changes), "llama")


@pytest.mark.parametrize(
    ("kind", "stage", "refused"),
    [
        (DistributedType.FSDP, 0, True),
        (DistributedType.DEEPSPEED, 3, True),
        (DistributedType.DEEPSPEED, 2, False),
        (DistributedType.MULTI_CPU, 0, False),
    ],
)
def test_a_model_in_shards_is_refused(kind: DistributedType, stage: int, refused: bool) -> None:
    accelerator: Any = SimpleNamespace(
        distributed_type=kind, deepspeed_plugin=SimpleNamespace(zero_stage=stage)
    )
    if not refused:
        check_whole(accelerator, "HR@10")
        return
    with pytest.raises(RecipeError, match=r"HR@10 needs the whole model in every process"):
        check_whole(accelerator, "HR@10")


def test_a_model_opened_without_weights_is_refused(
    start: Start, stopping_recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "is_fsdp_enabled", lambda: True)
    with pytest.raises(RecipeError, match=r"NDCG@5 needs the whole model in every process"):
        start(stopping_recipe)


def test_patience_and_the_best_weights_go_by_the_metric(
    stopping_recipe: TrainRecipe,
    bases: Callable[[str], Path],
    walks: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = iter([0.1, 0.4, 0.3, 0.2, 0.3])
    monkeypatch.setattr(StopMetric, "measure", lambda *_: next(values))
    changes = {"patience": 2, "eval_every": 1.0, "max_steps": 20}
    with caplog.at_level(logging.INFO):
        artifact = make(
            stopping_recipe.model_copy(update=changes), bases("qwen3"), walks, tmp_path / "model"
        )
    assert artifact.manifest.facts["updates"] == 4
    assert artifact.manifest.facts["best_eval_NDCG@5"] == 0.4
    assert "no better validation NDCG@5 for 2 times; stopping, the best was 0.4000" in caplog.text
    losses = [line["eval_loss"] for line in read_log(artifact.path) if "eval_loss" in line]
    assert artifact.manifest.facts["best_eval_loss"] == losses[1]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(
    stopping_recipe: TrainRecipe,
    bases: Callable[[str], Path],
    walks: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = stopping_recipe.model_copy(update={"max_steps": 6, "eval_every": 2.0})
    step = CompletionTrainer.training_step

    def kill(self: CompletionTrainer, *arguments: Any, **words: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **words)

    with monkeypatch.context() as patch:
        patch.setattr(CompletionTrainer, "training_step", kill)
        with pytest.raises(KeyboardInterrupt):
            make(recipe, bases("qwen3"), walks, tmp_path / "killed")
    with caplog.at_level(logging.INFO):
        resumed = make(recipe, bases("qwen3"), walks, tmp_path / "killed")
    assert "resuming from checkpoint-2" in caplog.text
    assert "on 11 validation users" in caplog.text
    whole = make(recipe, bases("qwen3"), walks, tmp_path / "whole")
    files = [a.manifest.files["model.safetensors"].sha256 for a in (resumed, whole)]
    assert files[0] == files[1]


def test_greater_is_better_only_for_metrics(recipe: TrainRecipe, tmp_path: Path) -> None:
    state = TrainerState(
        log_history=[
            {"eval_loss": loss, "eval_HR@10": rate, "step": step}
            for step, (loss, rate) in enumerate([(3.0, 0.1), (2.0, 0.3), (2.5, 0.3), (1.0, 0.2)])
        ]
    )
    for name, loss, stopped in (("loss", 1.0, False), ("HR@10", 2.0, True)):
        chosen = recipe.model_copy(update={"stop_metric": name, "patience": 2})
        monitor = Monitor(chosen, tmp_path / "log", 10)
        assert monitor.find_loss(state) == loss
        assert monitor.has_stopped(state) == stopped
        assert monitor.find_loss(TrainerState()) is None


def test_nobody_right_yet_is_no_reason_to_stop(recipe: TrainRecipe, tmp_path: Path) -> None:
    chosen = recipe.model_copy(update={"stop_metric": "HR@10", "patience": 2})
    monitor = Monitor(chosen, tmp_path / "log", 10)
    falling = [{"eval_loss": 3.0 - step, "eval_HR@10": 0.0, "step": step} for step in range(3)]
    assert not monitor.has_stopped(TrainerState(log_history=falling))
    rising = [{"eval_loss": 3.0 + step, "eval_HR@10": 0.0, "step": step} for step in range(3)]
    assert monitor.has_stopped(TrainerState(log_history=rising))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    stopping_recipe: TrainRecipe, bases: Callable[[str], Path], walks: Inputs, tmp_path: Path
) -> None:
    # So small a rate leaves the weights as they are: one process and two then ask the same model.
    changes = {"max_steps": 2, "eval_every": 1.0, "learning_rate": 1e-12, "stop_metric": "NDCG@40"}
    recipe = stopping_recipe.model_copy(update=changes)
    one = make(recipe, bases("llama"), walks, tmp_path / "one")
    script = tmp_path / "launch.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from genrec.train.recipe import TrainRecipe\n"
        "from genrec.train.step import make_model\n"
        "recipe, base, *folders = sys.argv[1:]\n"
        "make_model(TrainRecipe.model_validate_json(recipe), base, *map(Path, folders))\n"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    launcher += ["--main_process_port=0", str(script), recipe.model_dump_json()]
    folders = [bases("llama"), walks.instructions, walks.tokenizer, walks.data, tmp_path / "two"]
    subprocess.run(
        [*launcher, *map(str, folders)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        timeout=240,
    )
    measured = [
        [line["eval_NDCG@40"] for line in read_log(folder) if "eval_loss" in line]
        for folder in (one.path, tmp_path / "two")
    ]
    assert len(measured[0]) == 2
    assert measured[1] == pytest.approx(measured[0], abs=1e-6)
