"""The recipes of the `embed` and `tokenize` steps.

Owns the two classes and the checks between their values. Loads neither torch nor scikit-learn.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from genrec.recipe import Recipe
from genrec.tokenizers.sections import (
    CollaborativeSection,
    FsqSection,
    GmcSection,
    LetterSection,
    LsaSection,
    ProductSection,
    RqKMeansSection,
    RqVaeSection,
    SentenceSection,
    SequentialSection,
    TitleSection,
    UlmRecSection,
    UniqueSection,
)

MAX_LEVELS = 26
"""A level is a letter in `<a_12><b_7>`, so there are no more than the alphabet has."""

CodebookSize = Annotated[int, Field(ge=1, le=65_536)]


class EmbedRecipe(Recipe):
    """How text becomes vectors."""

    subject: Literal["items", "users"] = Field(
        default="items", description="Item texts, or what each user wrote in training reviews."
    )
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


class TokenizeRecipe(Recipe):
    """How items or users become semantic IDs."""

    quantizer: str = Field(
        default="rqvae",
        description="rqvae, letter, gmc, ulmrec-users, fsq, rqkmeans, opq, random, sequential, "
        "collaborative, title, or my_package.module:name.",
    )
    codebook_sizes: tuple[CodebookSize, ...] = Field(
        default=(256, 256, 256, 256), min_length=1, description="Codes at each level, in order."
    )
    unique: Literal["assign", "sinkhorn", "suffix"] = Field(
        default="assign", description="How items that share all codes are told apart."
    )
    uniqueness: UniqueSection = Field(default=UniqueSection(), description="Values of `unique`.")
    rqvae: RqVaeSection = Field(
        default=RqVaeSection(), description="Used by rqvae, letter, gmc, ulmrec-users, fsq."
    )
    letter: LetterSection = Field(default=LetterSection(), description="Used by letter.")
    gmc: GmcSection = Field(default=GmcSection(), description="Used by gmc.")
    ulmrec: UlmRecSection = Field(default=UlmRecSection(), description="Used by ulmrec-users.")
    fsq: FsqSection = Field(default=FsqSection(), description="Used by fsq.")
    rqkmeans: RqKMeansSection = Field(default=RqKMeansSection(), description="Used by rqkmeans.")
    opq: ProductSection = Field(default=ProductSection(), description="Used by opq.")
    sequential: SequentialSection = Field(
        default=SequentialSection(), description="Used by sequential."
    )
    collaborative: CollaborativeSection = Field(
        default=CollaborativeSection(), description="Used by collaborative."
    )
    title: TitleSection = Field(default=TitleSection(), description="Used by title.")
    options: dict[str, JsonValue] = Field(default={}, description="For a quantizer of your own.")

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if len(self.codebook_sizes) > MAX_LEVELS:
            raise ValueError(
                f"codebook_sizes has {len(self.codebook_sizes)} levels, but each level is one "
                f"letter of a semantic ID and there are {MAX_LEVELS}; use fewer, with more codes"
            )
        return self
