"""The values that the `embed` and `tokenize` steps are made of.

Owns their names, defaults and bounds. Loads neither torch nor scikit-learn, so that the command
line can list and check recipes at once.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from genrec.recipe import Recipe

MAX_LEVELS = 26
"""A level is a letter in `<a_12><b_7>`, so there are no more than the alphabet has."""

CodebookSize = Annotated[int, Field(ge=1, le=65_536)]


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


class EmbedRecipe(Recipe):
    """How item text becomes vectors."""

    encoder: str = Field(
        default="lsa", description="lsa, sentence-transformers, or my_package.module:name."
    )
    lsa: LsaSection = Field(default=LsaSection(), description="Used by the encoder lsa.")
    sentence_transformers: SentenceSection = Field(
        default=SentenceSection(), description="Used by the encoder sentence-transformers."
    )
    options: dict[str, JsonValue] = Field(default={}, description="For an encoder of your own.")
    shard_items: int = Field(
        default=512, ge=1, description="Texts a cache file: the most that a kill can lose."
    )


class RqVaeSection(Section):
    """An autoencoder around a residual quantizer."""

    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(512,), description="Encoder layers between input and latent; mirrored to decode."
    )
    latent_size: int = Field(default=32, ge=1, description="Width that is quantized.")
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
    patience_epochs: int = Field(
        default=10, ge=1, description="Stop after so many epochs without a better validation."
    )
    valid_share: float = Field(
        default=0.05, gt=0, lt=1, description="Items held out to measure reconstruction."
    )
    kmeans_iterations: int = Field(default=20, ge=1, description="To place the first codes.")
    codebook_decay: float = Field(
        default=0.9, ge=0, lt=1, description="Memory of the moving averages that codes follow."
    )
    dead_code_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Codes used less than this share of an even use restart; 0 never does.",
    )
    rotation_trick: bool = Field(
        default=True, description="Gradients through the codes by rotation, else straight through."
    )


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


class TokenizeRecipe(Recipe):
    """How vectors become semantic IDs."""

    quantizer: str = Field(
        default="rqvae", description="rqvae, rqkmeans, or my_package.module:name."
    )
    codebook_sizes: tuple[CodebookSize, ...] = Field(
        default=(256, 256, 256, 256), min_length=1, description="Codes at each level, in order."
    )
    rqvae: RqVaeSection = Field(default=RqVaeSection(), description="Used by rqvae.")
    rqkmeans: RqKMeansSection = Field(default=RqKMeansSection(), description="Used by rqkmeans.")
    options: dict[str, JsonValue] = Field(default={}, description="For a quantizer of your own.")

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if len(self.codebook_sizes) > MAX_LEVELS:
            raise ValueError(
                f"codebook_sizes has {len(self.codebook_sizes)} levels, but each level is one "
                f"letter of a semantic ID and there are {MAX_LEVELS}; use fewer, with more codes"
            )
        return self
