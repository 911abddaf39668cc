"""Recipe values of the `base` and `train` steps.

Owns what can be chosen and the rules between choices. Loads neither torch nor transformers, because
the command line imports it to show help.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from genrec.recipe import Recipe

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_METRIC = re.compile(r"(?:HR|NDCG)@[1-9]\d*")
ADAPTER_METHODS = ("lora", "rslora", "dora", "qlora")
"""Methods that train an adapter; `full` trains every weight."""


class BaseRecipe(Recipe):
    """A small decoder-only language model, made from nothing but the catalogue's text."""

    vocab_size: int = Field(
        default=2048,
        ge=320,
        le=200_000,
        description="Byte-level BPE tokens; more makes prompts shorter and the head slower.",
    )
    extra_text: tuple[str, ...] = Field(
        default=(),
        description="Sentences to know besides item text, such as your prompt templates.",
    )
    hidden_size: int = Field(
        default=128, ge=8, description="Width of the model; a multiple of heads."
    )
    layers: int = Field(default=4, ge=1, description="Decoder layers.")
    heads: int = Field(default=4, ge=1, description="Query heads.")
    kv_heads: int = Field(default=2, ge=1, description="Key-value heads; must divide heads.")
    feed_forward_size: int = Field(
        default=384, ge=8, description="Width inside the MLP; about 3 x hidden."
    )
    max_positions: int = Field(
        default=2048, ge=16, description="Longest sequence the config allows."
    )
    tied_embeddings: bool = Field(
        default=True, description="One matrix for input rows and LM head."
    )
    epochs: float = Field(default=8.0, gt=0, description="Passes over the catalogue's text.")
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Stop pretraining after this long; the result then depends on the machine.",
    )
    block_tokens: int = Field(default=128, ge=8, description="Length of the packed blocks of text.")
    batch_size: int = Field(default=16, ge=1, description="Blocks a step.")
    learning_rate: float = Field(
        default=3e-3, gt=0, description="Peak learning rate (cosine, AdamW)."
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW weight decay.")

    @model_validator(mode="after")
    def _check_shape(self) -> BaseRecipe:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be an even multiple of heads {self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")
        if self.block_tokens > self.max_positions:
            raise ValueError(
                f"block_tokens {self.block_tokens} must not exceed "
                f"max_positions {self.max_positions}"
            )
        return self


class TrainRecipe(Recipe):
    """LoRA or full fine-tuning of a decoder-only model on instructions."""

    base: str | None = Field(
        default=None,
        description="Hub name or checkpoint directory to start from, unless the command names one.",
    )
    method: Literal["lora", "rslora", "dora", "qlora", "full"] = Field(
        default="lora",
        description="An adapter: lora; rslora scales it by alpha / sqrt(rank), for high ranks; "
        "dora learns size and direction apart; qlora keeps the base in 4 bits. Or full: every "
        "weight.",
    )
    rank: int = Field(default=16, ge=1, description="LoRA rank; more learns more and costs more.")
    alpha: float = Field(
        default=32.0, gt=0, description="LoRA scale; the update is multiplied by alpha / rank."
    )
    dropout: float = Field(default=0.05, ge=0, lt=1, description="LoRA dropout.")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear", description="Layers that get an adapter: all-linear, or names."
    )
    row_noise: float = Field(
        default=0.1,
        ge=0,
        description="Noise where new token rows start, as a share of the text rows' spread.",
    )
    token_rows: Literal["train", "frozen"] = Field(
        default="train",
        description="The rows of the semantic-id tokens; frozen only where the base has learnt "
        "them, as for one adapter of several over one base.",
    )
    row_warmup: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the updates in which only the token rows learn, the rest after it.",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="Peak learning rate.")
    row_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Peak learning rate of the token rows; as the rest if unset.",
    )
    batch_size: int = Field(
        default=32, ge=1, description="Rows a step and process, before accumulation."
    )
    eval_batch_size: int = Field(default=128, ge=1, description="Rows a validation step.")
    gradient_accumulation: int = Field(
        default=1, ge=1, description="Steps added up before an update."
    )
    epochs: float = Field(default=3.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Stop after so many updates; overrides epochs."
    )
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        description="Stop after this long; the result then depends on the machine.",
    )
    warmup: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the updates that warm up."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW weight decay.")
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="How the learning rate falls."
    )
    gradient_clip: float = Field(
        default=1.0, ge=0, description="Longest gradient allowed; 0 is no limit."
    )
    max_tokens: int = Field(
        default=1024, ge=8, description="Rows longer than this are left out, and counted."
    )
    align: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Prompts that a semantic ID answers are filled up with line breaks to a "
        "multiple of so many tokens, in training and ever after, so that vLLM keeps them whole in "
        "its prefix cache: 16 for a GPU, 32 for a CPU; 0 does not.",
    )
    packing: bool = Field(
        default=True,
        description="Rows of a batch laid end to end without padding, each attending to itself "
        "only; false pads them to one length. The result is the same.",
    )
    group_by_length: bool = Field(
        default=True,
        description="Rows of like length share a batch: less padding, a little less shuffling.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target spread over V."
    )
    eval_every: float = Field(
        default=0.1,
        ge=0,
        description="Updates between validations; below 1 a share of all; 0 never validates.",
    )
    eval_rows: int = Field(
        default=2000, ge=1, description="Validation rows used, drawn once with the seed."
    )
    patience: int = Field(
        default=3,
        ge=0,
        description="Validations without a better loss before stopping; 0 never stops early.",
    )
    stop_metric: str = Field(
        default="loss",
        description="What early stopping and the kept checkpoint go by: loss, or HR@k or NDCG@k of "
        "constrained decoding on a sample of validation users.",
    )
    metric_users: int = Field(
        default=200, ge=1, description="Validation users of stop_metric, drawn once with the seed."
    )
    domain: str | None = Field(
        default=None,
        description="Train on the rows of this domain only (the items' column `domain`).",
    )
    chat: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: prompts stand in the base's chat template where it has one; never: "
        "plain text.",
    )
    system: str = Field(
        default="", description="The system message, where a chat template is used."
    )
    export_base: bool = Field(
        default=False,
        description="Also write the base with the token rows merged in (base/) and the adapter "
        "alone (lora/), which vLLM serves: several adapters side by side over one base.",
    )
    soft_user_tokens: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Soft tokens a prompt that a user's embedding is projected to; 0 is none.",
    )
    save_every: float = Field(
        default=0.0,
        ge=0,
        description="Updates between checkpoints besides those of validations; below 1 a share.",
    )
    log_every: int = Field(default=10, ge=1, description="Updates between lines of training.jsonl.")
    report_to: tuple[str, ...] = Field(
        default=(),
        description="Trackers that the Trainer knows: tensorboard, wandb, trackio, mlflow, ...",
    )
    precision: Precision = Field(
        default="auto", description="auto is bf16 on a GPU that has it, else fp32."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: about a third slower, far less memory."
    )

    @model_validator(mode="after")
    def _check_intervals(self) -> TrainRecipe:
        for name in ("eval_every", "save_every"):
            value = getattr(self, name)
            if value >= 1 and value != int(value):
                raise ValueError(
                    f"{name} {value} must be a whole number of updates, or a share below 1"
                )
        return self

    @model_validator(mode="after")
    def _check_align(self) -> TrainRecipe:
        if self.align and self.soft_user_tokens:
            raise ValueError(
                f"align {self.align} is for vLLM, which runs no soft_user_tokens "
                f"({self.soft_user_tokens}); set one of them to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_method(self) -> TrainRecipe:
        problems = []
        if self.method == "full" and self.token_rows == "frozen":
            problems.append("token_rows: frozen needs an adapter; method full trains every row")
        if self.method == "full" and (self.row_warmup or self.row_learning_rate):
            problems.append(
                "row_warmup and row_learning_rate need an adapter; with method full the token rows "
                "are part of matrices that learn as a whole"
            )
        if self.token_rows == "frozen" and (self.row_warmup or self.row_learning_rate):
            problems.append("row_warmup and row_learning_rate need token_rows: train")
        if self.export_base and self.method == "full":
            problems.append("export_base needs an adapter (method lora, rslora or qlora)")
        if self.export_base and self.method == "dora":
            problems.append(
                "export_base does not go with method dora, whose adapters vLLM 0.32 refuses; use "
                "method rslora or lora, or export_base: false and serve the merged checkpoint"
            )
        if self.stop_metric != "loss" and not _METRIC.fullmatch(self.stop_metric):
            problems.append(
                f"stop_metric {self.stop_metric!r} must be loss, HR@k or NDCG@k, such as NDCG@10"
            )
        if self.stop_metric != "loss" and self.eval_every == 0:
            problems.append(
                f"stop_metric {self.stop_metric} is measured at validations; set eval_every above 0"
            )
        if self.system and self.chat == "never":
            problems.append("system stands in a chat template; it needs chat: auto")
        if problems:
            raise ValueError("; ".join(problems))
        return self
