"""What a training run will take: parameters, memory, updates, tokens and time, before it starts.

Owns the estimate and nothing else. The model is an `outline`, so neither weights nor memory are
needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from genrec.artifact import check_input, load_artifact
from genrec.errors import RecipeError
from genrec.tokenizers.sid_text import USER_PREFIX
from genrec.train.adapter import ROW_PARAMETER, count_parameters
from genrec.train.batches import count_cycles
from genrec.train.checkpoint import choose_dtype, frame_prompts, load_shape
from genrec.train.export import read_codebook_sizes
from genrec.train.outline import Batch, build_outline, build_random, run_outline
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRows
from genrec.train.settings import count_updates
from genrec.train.soft_users import TrainedUsers, check_soft_users, read_soft_users
from genrec.train.splits import encode_splits
from genrec.train.step import check_rows, choose_base
from genrec.train.users import read_users
from genrec.train.vocabulary import extend_tokenizer

MEMORY_FACTOR = 1.5
"""How far measured memory may lie from the estimate, either way; a test on the CPU holds it.

An allocator that keeps freed pieces adds to it: glibc's took up to 2.8 x on a small model until
MALLOC_MMAP_THRESHOLD_ was set.
"""
H100_FLOPS, H100_SHARE = 989e12, 0.4
"""Dense bf16 products a second of an H100 (its data sheet), and the share that training reaches."""
_FP32_BYTES = 4
# NF4 with double quantization: half a byte, one byte a block of 64 and four a 256 of such blocks.
_NF4_BYTES = 0.5 + (1 + 4 / 256) / 64
_TIMED_FLOPS = {"cpu": 1e11, "cuda": 2e13}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that training takes on each process, by what they hold.

    Attributes:
        weights: the model's, base and adapter.
        gradients: of what is trained, in float32.
        optimizer: AdamW's two moments of what is trained.
        activations: what the backward pass needs of the largest batch.
        logits: the head's output at the targets, its softmax and its gradient.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it; the parts are at their largest at about the same moment."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take.

    Attributes:
        parameters: of the model, adapter included.
        trained: how many of them are trained.
        rows: how many of those are token rows.
        memory: on each process, for the largest batch.
        updates: of the weights.
        tokens: of all rows in all epochs, unpadded.
        flops: products and sums of the whole run.
        seconds: on this machine, from a few timed steps; None where the model is too large for it.
    """

    parameters: int
    trained: int
    rows: int
    memory: Memory
    updates: int
    tokens: int
    flops: float
    seconds: float | None

    @property
    def h100_seconds(self) -> float:
        """On one H100, from the count of operations alone."""
        return self.flops / (H100_FLOPS * H100_SHARE)


def estimate_run(
    recipe: TrainRecipe,
    base: str | Path | None,
    instructions: Path,
    tokenizer: Path,
    data: Path,
    *,
    user_vectors: Path | None = None,
) -> Estimate:
    """What `make_model` would take with these values; nothing is trained or written.

    Args:
        recipe: all settings.
        base: hub name or directory; of a checkpoint, its config and tokenizer are enough.
        instructions: the prompts step's artefact.
        tokenizer: the tokenize step's artefact.
        data: the data step's artefact.
        user_vectors: an embeddings artefact of the data's users, for soft_user_tokens.

    Raises:
        RecipeError: no base is given, or a value does not fit it.
        ModelError: the base's config or tokenizer is unfit, or its token rows are to stay as they
            are and it has none.
        DataError: there is nothing to train on.
        ArtifactError: an input is missing, or the inputs do not belong together.
    """
    base = base or recipe.base
    if base is None:
        raise RecipeError(
            "no base model to estimate for; set base: in the train recipe, or give --base (a "
            "directory with config.json and a tokenizer is enough)"
        )
    made_from = {"data": load_artifact(data, step="data", verify=False)}
    made_from["tokenize"] = load_artifact(tokenizer, step="tokenize", verify=False)
    prompts = load_artifact(instructions, step="prompts", verify=False)
    for role, artifact in made_from.items():
        check_input(prompts, role, artifact)
    check_soft_users(recipe, prompts, user_vectors)
    checkpoint = load_shape(choose_base(base, recipe))
    extension = extend_tokenizer(checkpoint.tokenizer, read_codebook_sizes(tokenizer))
    users = read_users(instructions, made_from["data"])
    if users is not None:
        named = extend_tokenizer(checkpoint.tokenizer, users.codebook_sizes, prefix=USER_PREFIX)
        extension = replace(extension, users=named)
    check_rows(recipe, checkpoint.source, is_new=extension.is_new)
    soft = None
    if user_vectors is not None:
        soft = read_soft_users(recipe, checkpoint.tokenizer, data, user_vectors)
    rows, _ = encode_splits(recipe, frame_prompts(checkpoint, recipe), instructions, soft)
    n_tokenizer, config = len(checkpoint.tokenizer), checkpoint.model.config
    return estimate_model(config, recipe, extension.flat_ids(), n_tokenizer, rows, soft)


def estimate_model(
    config: Any,
    recipe: TrainRecipe,
    row_ids: list[int],
    n_tokenizer: int,
    rows: EncodedRows,
    soft: TrainedUsers | None = None,
) -> Estimate:
    """What training a model of this config on these rows will take.

    Args:
        config: the base's.
        recipe: all settings.
        row_ids: the SID token ids.
        n_tokenizer: tokens of the extended tokenizer; the vocabulary grows to it.
        rows: the training rows.
        soft: the users whom rows show as soft tokens.
    """
    model = build_outline(config, recipe, row_ids, n_tokenizer, soft)
    cycles = count_cycles(rows, recipe.epochs)
    updates = count_updates(len(rows), recipe, cycles=cycles)
    seen = cycles
    if recipe.max_steps is not None:
        seen *= recipe.max_steps / count_updates(
            len(rows), recipe.model_copy(update={"max_steps": None}), cycles=cycles
        )
    batch = find_largest(rows, recipe)
    memory, forward = measure_memory(model, recipe, batch)
    # A frozen weight needs the gradient of its input alone, a trained one its own as well.
    passes = (3 if recipe.method == "full" else 2) + recipe.gradient_checkpointing
    flops_a_token = forward * passes / (batch.n_rows * batch.n_tokens)
    tokens = int(rows.lengths.sum() * seen)
    total, trained = count_parameters(model)
    row_parameters = sum(p.numel() for name, p in model.named_parameters() if ROW_PARAMETER in name)
    a_token = _time_token(config, recipe, row_ids, n_tokenizer, rows, flops_a_token, soft)
    return Estimate(
        parameters=total,
        trained=trained,
        rows=row_parameters,
        memory=memory,
        updates=updates,
        tokens=tokens,
        flops=flops_a_token * tokens,
        seconds=None if a_token is None else a_token * tokens,
    )


def find_largest(rows: EncodedRows, recipe: TrainRecipe) -> Batch:
    """The largest batch that the recipe can make of these rows."""
    order = rows.lengths.argsort()[::-1][: recipe.batch_size]
    lengths = rows.lengths[order]
    targets = lengths - rows.prompt_lengths[order]
    if recipe.packing:
        return Batch(1, int(lengths.sum()), int(targets.sum()))
    return Batch(len(order), int(lengths.max()), int(len(order) * targets.max()))


def measure_memory(model: Any, recipe: TrainRecipe, batch: Batch) -> tuple[Memory, float]:
    """Memory of training an outline with a batch, and the operations of one forward pass.

    Args:
        model: from `build_outline`.
        recipe: method, precision and gradient_checkpointing.
        batch: the largest one.
    """
    _, trained = count_parameters(model)
    saved, flops = run_outline(model, batch)
    size = choose_dtype(recipe.precision).itemsize
    weights = _count_weights(model, recipe)
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    if recipe.gradient_checkpointing:
        # One layer's at a time, and what went into each.
        inputs = layers * batch.n_rows * batch.n_tokens * config.hidden_size * size
        saved = inputs + saved // layers
    if recipe.method == "full" and size < _FP32_BYTES:
        saved += sum(p.numel() for p in model.parameters()) * size  # autocast's copies of weights
    vocabulary = model.get_output_embeddings().weight.shape[0]
    a_logit = 3 * _FP32_BYTES + (size if size < _FP32_BYTES else 0)
    memory = Memory(
        weights=weights,
        gradients=trained * _FP32_BYTES,
        optimizer=2 * trained * _FP32_BYTES,
        activations=saved,
        logits=batch.n_targets * vocabulary * a_logit,
    )
    return memory, flops


def _count_weights(model: Any, recipe: TrainRecipe) -> int:
    """Bytes of all parameters; trained ones are float32, and qlora's linear layers NF4."""
    sizes = {id(p): float(p.numel() * p.element_size()) for p in model.parameters()}
    if recipe.method == "qlora":
        head = model.get_output_embeddings()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
                weight = module.weight
                if not weight.requires_grad and module.weight is not head.weight:
                    sizes[id(weight)] = weight.numel() * _NF4_BYTES
    return int(sum(sizes.values()))


def _time_token(
    config: Any,
    recipe: TrainRecipe,
    row_ids: list[int],
    n_tokenizer: int,
    rows: EncodedRows,
    flops_a_token: float,
    soft: TrainedUsers | None,
) -> float | None:
    """Seconds a token on this machine, from a few steps of random weights; None if too slow."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width = max(int(rows.lengths.mean()), 2)
    n_rows = min(int(_TIMED_FLOPS[device] / (flops_a_token * width)), recipe.batch_size)
    if n_rows == 0 or recipe.method == "qlora":
        return None
    with torch.device(device):
        model = build_random(config, recipe, row_ids, n_tokenizer, soft)
    step = _make_step(model, recipe, n_rows, width, device)
    step()
    started = time.perf_counter()
    step()
    step()
    return (time.perf_counter() - started) / (2 * n_rows * width)


def _make_step(
    model: Any, recipe: TrainRecipe, n_rows: int, width: int, device: str
) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    dtype = choose_dtype(recipe.precision)
    ids = torch.ones((n_rows, width), dtype=torch.int64, device=device)

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=ids, logits_to_keep=2, use_cache=False).logits
        cross_entropy(logits.float().flatten(0, 1), ids[:, :2].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step
