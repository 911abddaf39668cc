"""Several processes train the model that one trains, and one of them writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from genrec.artifact import load_artifact
from genrec.errors import ModelError
from genrec.train import processes
from genrec.train.processes import copy_outline, is_sharded, load_weights, start_processes
from genrec.train.recipe import TrainRecipe
from genrec.train.step import make_model
from tests.train.made_inputs import Inputs
from tests.train.made_runs import begin, command, launch, weights

COMMON = """
compute_environment: LOCAL_MACHINE
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: "no"
use_cpu: true
main_training_function: main
"""
CONFIGS = {
    "ddp": f"distributed_type: MULTI_GPU{COMMON}",
    "fsdp": f"""distributed_type: FSDP{COMMON}fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
  fsdp_offload_params: false
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize(("method", "kind"), [("lora", "qwen3"), ("full", "llama")])
def test_two_processes_give_the_weights_of_one(
    way: str,
    method: str,
    kind: str,
    bases: Callable[[str], Path],
    inputs: Inputs,
    recipe: TrainRecipe,
    tmp_path: Path,
) -> None:
    values = {"method": method, "epochs": 1.0, "eval_every": 3.0, "max_steps": 5}
    recipe = recipe.model_copy(update=values)
    folders = (inputs.instructions, inputs.tokenizer, inputs.data)
    make_model(recipe, bases(kind), *folders, tmp_path / "one")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIGS[way])
    # The same rows an update, half of them in each process.
    half = recipe.model_copy(update={"batch_size": recipe.batch_size // 2})
    launch(config, command(half, bases(kind), inputs, tmp_path / "two"))
    one, two = (load_artifact(tmp_path / name, step="train") for name in ("one", "two"))
    assert one.manifest.files.keys() == two.manifest.files.keys()
    assert one.manifest.facts["tokens"] == two.manifest.facts["tokens"]
    first, second = (load_file(path.path / "model.safetensors") for path in (one, two))
    assert first.keys() == second.keys()
    # Sums in another order; AdamW makes of a rounding near zero a share of its step.
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name
    assert not (two.path / "checkpoints").exists()


def test_weights_of_a_checkpoint_come_back(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe, tmp_path: Path
) -> None:
    run = begin(recipe.model_copy(update={"method": "dora"}), bases("qwen3"), inputs)
    expected = weights(run.model)
    run.model.save_pretrained(tmp_path, save_embedding_layers=False)
    with torch.no_grad():
        for parameter in run.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    load_weights(run.model, tmp_path)
    assert all(expected[name].equal(value) for name, value in weights(run.model).items())


def test_weights_of_shards_come_back(tmp_path: Path) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = torch.nn.Linear(3, 2)
        value = {name: torch.full(p.shape, 7.0) for name, p in model.named_parameters()}
        save_file(value, tmp_path / "model.safetensors")
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        load_weights(model, tmp_path)
        assert all(p.full_tensor().eq(7).all() for p in model.parameters())
    finally:
        destroy_process_group()


def test_an_outline_is_filled_with_ties_kept(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    model = begin(recipe, bases("qwen3"), inputs).model
    outline = copy_outline(model)
    assert {p.untyped_storage().nbytes() for p in outline.parameters()} == {4}

    class Accelerator:
        is_main_process = False

        def get_state_dict(self, of: torch.nn.Module) -> dict[str, torch.Tensor]:
            return of.state_dict()

    processes.fill_outline(outline, Accelerator(), model)
    assert {p.untyped_storage().nbytes() for p in outline.parameters()} == {4}
    Accelerator.is_main_process = True
    processes.fill_outline(outline, Accelerator(), model)
    expected = weights(model)
    assert all(expected[name].equal(value) for name, value in weights(outline).items())
    base = outline.get_base_model()
    embedding = base.get_input_embeddings().token_adapter.base_layer.weight
    assert base.get_output_embeddings().token_adapter.base_layer.weight is embedding


@pytest.mark.parametrize(
    ("kind", "stage", "expected"),
    [("FSDP", 0, True), ("MULTI_GPU", 0, False), ("DEEPSPEED", 3, True), ("DEEPSPEED", 2, False)],
)
def test_who_holds_shares(kind: str, stage: int, expected: bool) -> None:
    accelerator = SimpleNamespace(
        distributed_type=DistributedType(kind),
        deepspeed_plugin=SimpleNamespace(zero_stage=stage),
    )
    assert is_sharded(accelerator) is expected


def test_fsdp_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class State:
        distributed_type = DistributedType.MULTI_CPU
        num_processes = 2

        def __init__(self, cpu: bool) -> None:
            assert cpu is not torch.cuda.is_available()

    monkeypatch.setattr(processes, "PartialState", State)
    assert start_processes().num_processes == 2
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        ModelError,
        match=r"fsdp_version must be 2; .*FULL_STATE_DICT, which export needs; .*use_cpu must",
    ):
        start_processes()
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    State.distributed_type = DistributedType.MULTI_GPU
    assert start_processes().num_processes == 2
