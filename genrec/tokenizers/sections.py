"""The values of single encoders and quantizers: one section of a step's recipe each.

Owns their names, defaults and bounds. Loads neither torch nor scikit-learn, so that the command
line can list and check recipes at once.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Values of one encoder or quantizer inside a step's recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class LsaSection(Section):
    """TF-IDF and truncated SVD: fitted to the catalogue itself, nothing to download."""

    dimensions: int = Field(
        default=256, ge=1, le=8192, description="Width; fewer if the catalogue has less to tell."
    )
    word_ngrams: tuple[int, int] = Field(default=(1, 2), description="Shortest and longest.")
    char_ngrams: tuple[int, int] | None = Field(
        default=None, description="Shortest and longest inside a word; None leaves them out."
    )
    min_items: int = Field(
        default=2, ge=1, description="A term found in fewer items than this is left out."
    )
    max_terms: int = Field(default=100_000, ge=1, description="The most frequent terms kept.")
    singular_power: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Exponent of the singular values: 1 plain LSA, 0 white.",
    )
    iterations: int = Field(default=4, ge=0, le=100, description="Power iterations of the SVD.")

    @model_validator(mode="after")
    def _check_ngrams(self) -> Self:
        for name in ("word_ngrams", "char_ngrams"):
            span = getattr(self, name)
            if span is not None and not 1 <= span[0] <= span[1]:
                raise ValueError(
                    f"{name} must be [shortest, longest] with 1 <= shortest <= longest"
                )
        return self


class SentenceSection(Section):
    """A sentence-transformers model, by hub name or path."""

    model: str = Field(
        default="sentence-transformers/sentence-t5-base", min_length=1, description="Name or path."
    )
    revision: str | None = Field(default=None, description="Hub branch, tag or commit.")
    batch_size: int = Field(default=64, ge=1, description="Texts a forward pass.")
    max_tokens: int | None = Field(
        default=None, ge=1, description="Longer texts are cut; None takes the model's own limit."
    )
    prompt: str = Field(default="", description="Put before each text, as some models want it.")
    normalize: bool = Field(default=True, description="Scale each vector to length 1.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps.")
    trust_remote_code: bool = Field(
        default=False, description="Run Python that the model's author ships with the model."
    )


class RqVaeSection(Section):
    """An autoencoder around a residual quantizer."""

    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(512,), description="Encoder layers between input and latent; mirrored to decode."
    )
    latent_size: int = Field(default=32, ge=1, description="Width that is quantized.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Before each layer.")
    commitment: float = Field(
        default=0.25, ge=0, description="Weight of the pull of latents towards their codes."
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="AdamW's peak.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's.")
    batch_size: int = Field(default=1024, ge=1, description="Items an optimizer step.")
    warmup_epochs: int = Field(
        default=20, ge=0, description="Epochs as a plain autoencoder, before codes exist."
    )
    max_epochs: int = Field(default=200, ge=1, description="Epochs at most, warm-up included.")
    max_seconds: float | None = Field(
        default=None, gt=0, description="Stop after this time; the result then depends on speed."
    )
    patience_epochs: int = Field(
        default=10, ge=1, description="Stop after so many epochs without a better validation."
    )
    valid_share: float = Field(
        default=0.05, gt=0, lt=1, description="Items held out to measure reconstruction."
    )
    codebook_init: Literal["kmeans", "random"] = Field(
        default="kmeans", description="How the first codes are placed."
    )
    kmeans_iterations: int = Field(default=20, ge=1, description="To place the first codes.")
    codebook_update: Literal["ema", "gradient"] = Field(
        default="ema", description="Codes follow moving averages, or the loss's gradient."
    )
    codebook_decay: float = Field(
        default=0.9, ge=0, lt=1, description="Memory of the moving averages that codes follow."
    )
    dead_code_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Codes used less than this share of an even use restart; 0 never does.",
    )
    rotation_trick: bool = Field(
        default=True, description="Gradients through the codes by rotation, else straight through."
    )
    quantize_dropout: bool = Field(
        default=False, description="Train some batches with the later levels left out."
    )
    sinkhorn_epsilon: float = Field(
        default=0.0,
        ge=0,
        description="Entropy of the even spread of a batch over the last level; 0: nearest code.",
    )
    sinkhorn_iterations: int = Field(default=50, ge=1, description="Of that spread.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1.")


class LetterSection(Section):
    """LETTER's two further losses of an RQ-VAE."""

    factors: str | None = Field(
        default=None,
        description="Parquet (item_id, factors), or .npy in item order; None: SVD of the training "
        "interactions.",
    )
    factor_dimensions: int = Field(default=32, ge=1, description="Width of that SVD.")
    alignment: float = Field(default=0.1, ge=0, description="Weight of the collaborative loss.")
    diversity: float = Field(default=1e-4, ge=0, description="Weight of the diversity loss.")
    clusters: int = Field(default=10, ge=2, description="Groups of a codebook, for diversity.")


class GmcSection(Section):
    """GMC's domain-aware contrastive loss, and which item belongs to which domain."""

    domain_field: str = Field(
        default="domain",
        description="Column of the items that names the domain; a path (A > B) counts by its root.",
    )
    contrast: float = Field(default=0.1, ge=0, description="Weight of the contrastive loss.")
    temperature: float = Field(default=0.1, gt=0, description="Of the contrast's softmax.")
    domain_token: bool = Field(
        default=False, description="Put the domain before the codes, as a level of its own."
    )


class UlmRecSection(Section):
    """ULMRec's fusion of a user's review vector with a learned embedding of the user's id."""

    id_dimensions: int = Field(default=64, ge=1, description="Width of ids and attention.")
    heads: int = Field(default=4, ge=1, description="Attention heads; they divide that width.")
    id_share: float = Field(
        default=0.5, ge=0, le=1, description="Length of the id's part, reviews being 1."
    )
    id_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Users of a batch who train with the mean id instead."
    )

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.id_dimensions % self.heads:
            raise ValueError(
                f"heads ({self.heads}) must divide id_dimensions ({self.id_dimensions})"
            )
        return self


class RqKMeansSection(Section):
    """Residual k-means: no network, no training schedule."""

    iterations: int = Field(default=50, ge=1, description="Lloyd iterations a level at most.")
    restarts: int = Field(default=1, ge=1, description="Starts a level; the best is kept.")
    balance: float = Field(
        default=2.0,
        ge=0,
        le=4,
        description="Power of a residual's length by which its weight falls; 0 is plain k-means.",
    )
    refine_rounds: int = Field(
        default=5, ge=0, description="Rounds that fit all levels' centres to each other afterwards."
    )
    equal_sizes: bool = Field(
        default=False,
        description="Clusters of a level hold equally many items (OneRec); sets aside `balance` "
        "and `refine_rounds`.",
    )
    sample_items: int | None = Field(
        default=200_000, ge=1, description="Items that centres are fitted to, at most; None: all."
    )


class ProductSection(Section):
    """Product codes: each level quantizes its own part of the rotated vector."""

    rotation: Literal["opq", "pca", "none"] = Field(
        default="opq", description="Learned rotation, principal axes dealt out evenly, or none."
    )
    rotation_iterations: int = Field(default=20, ge=1, description="Rounds of OPQ's fit.")
    iterations: int = Field(default=25, ge=1, description="Lloyd iterations a level.")
    sample_items: int | None = Field(
        default=200_000, ge=1, description="Items that are fitted to, at most; None: all."
    )


class FsqSection(Section):
    """Finite scalar quantization: codes are cells of a fixed grid, nothing to place."""

    grid: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(8, 8, 4), min_length=1, description="Steps along each axis of one level's grid."
    )


class SequentialSection(Section):
    """Items numbered by order of appearance."""

    splits: Literal["train", "all"] = Field(
        default="train", description="Interactions that decide the order; all leaks the future."
    )


class CollaborativeSection(Section):
    """Spectral clusters of the co-occurrence graph."""

    clusters: int = Field(default=20, ge=2, description="Clusters a split makes (N).")
    max_items: int = Field(default=100, ge=1, description="Items of a cluster not split again (k).")


class TitleSection(Section):
    """Titles as token sequences."""

    tokenizer: str = Field(
        default="words", description="words, or a Hugging Face tokenizer's name or path."
    )
    max_tokens: int = Field(default=64, ge=1, description="Longer titles are cut.")
    lowercase: bool = Field(default=False, description="Fold case before tokens are made.")


class UniqueSection(Section):
    """How items that share all codes are told apart."""

    sinkhorn_epsilon: float = Field(default=0.003, gt=0, description="Entropy of the plan.")
    sinkhorn_iterations: int = Field(default=50, ge=1, description="Of the plan.")
    suffix_room: int = Field(
        default=0, ge=0, description="Suffix codes kept free for items that come later."
    )
