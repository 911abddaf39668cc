"""The `base` step: a small decoder-only language model, made from the catalogue's text alone.

Owns its architecture, its pretraining and its directory, which opens with AutoModelForCausalLM like
any checkpoint. Knows nothing of semantic IDs; `genrec train` adds them.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import polars as pl
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from genrec.artifact import Artifact, load_artifact, write_artifact
from genrec.errors import DataError, ModelError
from genrec.progress import show_progress
from genrec.train.checkpoint import choose_dtype, quiet_transformers
from genrec.train.corpus import pack_blocks, train_tokenizer
from genrec.train.recipe import BaseRecipe
from genrec.train.settings import LOG_FILE

_LOG_EVERY = 10
_log = logging.getLogger(__name__)


def make_base(recipe: BaseRecipe, data: Path, out: Path) -> Artifact:
    """Make and pretrain a base model; a killed run starts clean, for it takes seconds to minutes.

    Args:
        recipe: shape, tokenizer and pretraining.
        data: the data step's artefact.
        out: the base artefact's directory, a Hugging Face checkpoint.

    Raises:
        ArtifactError: `data` is missing or broken.
        DataError: the catalogue has no text.
        ModelError: the loss is not finite.
    """
    source = load_artifact(data, step="data")
    texts = _read_texts(source.path)
    with write_artifact(out, step="base", recipe=recipe, inputs={"data": source}) as work:
        tokenizer = train_tokenizer(texts, recipe.extra_text, recipe.vocab_size)
        blocks = pack_blocks(tokenizer, texts, recipe.block_tokens, recipe.seed)
        model: Any = build_model(recipe, tokenizer)
        with (work.path / LOG_FILE).open("w", encoding="utf-8") as log_file:
            loss, tokens_per_second = _pretrain(model, blocks, recipe, log_file)
        work.facts.update(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            vocabulary=len(tokenizer),
            text_tokens=blocks.numel(),
            loss=loss,
            tokens_per_second=round(tokens_per_second, 1),
        )
        _log.info(
            "base: %d parameters, %d tokens of text, loss %.3f, %.0f tokens/s",
            work.facts["parameters"],
            blocks.numel(),
            loss,
            tokens_per_second,
        )
        with quiet_transformers():
            model.to(torch.float32).save_pretrained(str(work.path))
            tokenizer.save_pretrained(str(work.path))
    return work.artifact


def _read_texts(data: Path) -> list[str]:
    items = pl.read_parquet(data / "items.parquet", columns=["item_index", "text"])
    texts = [text for text in items.sort("item_index")["text"].to_list() if text and text.strip()]
    if not texts:
        raise DataError(
            f"no item of {data} has any text, so there is nothing to make a language model of; "
            f"map a title or description column in the data recipe, or train on an existing base"
        )
    return texts


def build_model(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3-class decoder with random weights, the same for the same seed.

    Qwen3 because vLLM, PEFT and quantizers all know it, and its normed queries and keys stay stable
    at the high learning rates that short runs need.
    """
    set_seed(recipe.seed)
    build: Any = Qwen3ForCausalLM
    model: Qwen3ForCausalLM = build(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.feed_forward_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            head_dim=recipe.hidden_size // recipe.heads,
            max_position_embeddings=recipe.max_positions,
            tie_word_embeddings=recipe.tied_embeddings,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return model


def _pretrain(
    model: Any, blocks: torch.Tensor, recipe: BaseRecipe, log_file: TextIO
) -> tuple[float, float]:
    """The last steps' mean loss, and tokens a second; `model` is trained in place."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    n_steps = max(round(recipe.epochs * math.ceil(len(blocks) / recipe.batch_size)), 1)
    optimizer, schedule = _build_optimizer(model, recipe, n_steps)
    started = time.monotonic()
    total, recent, seen = torch.zeros((), device=device), math.nan, 0
    step = 0
    with show_progress("pretraining", n_steps, unit="steps") as advance:
        for step, batch in enumerate(_draw_batches(blocks, recipe, n_steps), start=1):
            loss = _take_step(model, batch.to(device), optimizer)
            schedule.step()
            total += loss
            seen += batch.numel()
            is_last = step == n_steps or _is_late(started, recipe)
            if step % _LOG_EVERY == 0 or is_last:
                recent = float(total) / ((step - 1) % _LOG_EVERY + 1)
                _check_loss(recent, step, recipe)
                rate = schedule.get_last_lr()[0]
                line = {"step": step, "loss": recent, "learning_rate": rate, "tokens": seen}
                log_file.write(json.dumps(line) + "\n")
                total.zero_()
            advance(1, note=f"loss {recent:.3f}")
            if is_last:
                break
    model.eval()
    return recent, seen / max(time.monotonic() - started, 1e-9)


def _build_optimizer(
    model: Any, recipe: BaseRecipe, n_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
    )
    warmup = max(round(recipe.warmup * n_steps), 1)

    def scale_rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(n_steps - warmup, 1))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale_rate)


def _draw_batches(blocks: torch.Tensor, recipe: BaseRecipe, n_steps: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(recipe.seed)
    drawn = 0
    while drawn < n_steps:
        order = torch.randperm(len(blocks), generator=generator)
        for start in range(0, len(order), recipe.batch_size):
            yield blocks[order[start : start + recipe.batch_size]]
            drawn += 1


def _take_step(model: Any, batch: torch.Tensor, optimizer: torch.optim.AdamW) -> torch.Tensor:
    dtype = choose_dtype("auto")
    with torch.autocast(batch.device.type, dtype=dtype, enabled=dtype == torch.bfloat16):
        logits = model(input_ids=batch, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _is_late(started: float, recipe: BaseRecipe) -> bool:
    return recipe.max_seconds is not None and time.monotonic() - started > recipe.max_seconds


def _check_loss(loss: float, step: int, recipe: BaseRecipe) -> None:
    if not math.isfinite(loss):
        raise ModelError(
            f"pretraining's loss is {loss} at step {step}; lower learning_rate (now "
            f"{recipe.learning_rate:g}) or raise warmup in the base recipe"
        )
