"""The `tokenize` step: items to a `tokenizer/` artefact.

Owns the order of the work: fit, encode, make unique, measure, write. Knows no quantizer's inside.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from genrec.artifact import Artifact, write_artifact
from genrec.manifest import write_json
from genrec.tokenizers.inputs import FitInput, read_input
from genrec.tokenizers.measures.quality import Vocabulary, format_quality, measure_quality
from genrec.tokenizers.quantizers.quantizer import (
    FixesLevels,
    LossHistory,
    Quantizer,
    SpellsCodes,
    build_quantizer,
    check_vectors,
    find_quantizer,
)
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.tokenizer_files import Fitted
from genrec.tokenizers.uniqueness.assign import Assignment, CodeArray, check_capacity
from genrec.tokenizers.uniqueness.unique import Collisions, keep_codes, make_unique

HISTORY_FILE = "history.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fitted tokenizer with its quality summary and loss history."""

    tokenizer: SemanticIdTokenizer
    quality: dict[str, Any]
    history: LossHistory


class CodeEngine(Protocol):
    """Encodes items elsewhere than in this process, with the same result."""

    def encode_items(
        self, recipe: TokenizeRecipe, quantizer: Quantizer, given: FitInput
    ) -> CodeArray:
        """The codes of each item of artefacts on disk, by a fitted quantizer."""
        ...


def make_tokenizer(
    recipe: TokenizeRecipe,
    embeddings: Path | None,
    out: Path,
    *,
    data: Path | None = None,
    engine: CodeEngine | None = None,
) -> Artifact:
    """The `tokenizer/` artefact: a fitted quantizer, and codes of its own for every item.

    Args:
        recipe: quantizer, codebooks and policy.
        embeddings: an `embeddings/` artefact; None for a quantizer that needs no vectors.
        out: the directory to write.
        data: a `data/` artefact, for quantizers that look at interactions, titles or domains.
        engine: where items are encoded once the quantizer is fitted; None is here.

    Raises:
        ArtifactError: an input is no complete artefact, or `out` cannot be written.
        CapacityError: more items than the codebooks can name.
        ClusterError: a cluster that cannot be reached, or a fault on it.
        DataError: vectors that are not finite, or an input that the quantizer needs is missing.
        RecipeError: an unknown quantizer.
    """
    needs = find_quantizer(recipe).find_needs(recipe)
    given = read_input(needs, embeddings, data, who=recipe.quantizer)
    check_input(recipe, given, str(embeddings))
    with write_artifact(out, step="tokenize", recipe=recipe, inputs=given.artifacts) as work:
        result = _fit_checked(recipe, given, engine)
        write_result(result, work.path)
        work.facts.update(describe_tokenizer(result.tokenizer, result.quality))
    _log.info("tokenize: %s", format_quality(result.quality))
    return work.artifact


def write_result(result: FitResult, folder: Path) -> None:
    """Write the tokenizer, its quality summary and its loss history."""
    result.tokenizer.quality = result.quality
    result.tokenizer.save_pretrained(folder)
    write_json(folder / HISTORY_FILE, result.history)


def describe_tokenizer(tokenizer: SemanticIdTokenizer, quality: dict[str, Any]) -> dict[str, Any]:
    """The facts that the manifest keeps of a tokenizer."""
    return {
        "items": tokenizer.n_items,
        "subject": tokenizer.fitted.subject,
        "n_levels": tokenizer.n_levels,
        "codebook_sizes": list(tokenizer.codebook_sizes),
        "collision_rate": quality["collision_rate"],
        "version": tokenizer.lineage.version,
    }


def check_input(recipe: TokenizeRecipe, given: FitInput, source: str) -> None:
    """Raise unless the items can be tokenized by this recipe; before any long work.

    Raises:
        CapacityError: more items than the codebooks can name.
        DataError: vectors that are not finite.
    """
    if given.vectors is not None:
        check_vectors(given.vectors, source)
    # A suffix makes room for any number of items; a quantizer without codebooks checks itself.
    # Nor are all codes open to each item where some levels are fixed: that quantizer checks, too.
    quantizer = build_quantizer(recipe, given.dimensions)
    if recipe.unique != "suffix" and quantizer.codebooks and not _count_fixed(quantizer):
        check_capacity(given.n_items, recipe.codebook_sizes)


def _count_fixed(quantizer: Quantizer) -> int:
    return quantizer.fixed_levels if isinstance(quantizer, FixesLevels) else 0


def fit_tokenizer(
    recipe: TokenizeRecipe, given: FitInput, engine: CodeEngine | None = None
) -> FitResult:
    """A tokenizer fitted to items in memory or memory-mapped.

    Raises:
        CapacityError: more items than the codebooks can name.
        DataError: vectors that are not finite.
    """
    check_input(recipe, given, "the vectors to tokenize")
    return _fit_checked(recipe, given, engine)


def _fit_checked(recipe: TokenizeRecipe, given: FitInput, engine: CodeEngine | None) -> FitResult:
    """The same for items that `check_input` has seen, since it reads every vector."""
    quantizer = build_quantizer(recipe, given.dimensions)
    history = quantizer.fit(given)
    return code_items(recipe, quantizer, given, history, engine)


def code_items(
    recipe: TokenizeRecipe,
    quantizer: Quantizer,
    given: FitInput,
    history: LossHistory,
    engine: CodeEngine | None = None,
) -> FitResult:
    """What follows a fit: the items encoded, their codes made unique, and the result measured.

    Memory grows with the ids and codes of the items, not with their vectors.

    Raises:
        CapacityError: more items than the codebooks can name.
    """
    # Codes that come from no vector are there already once they are fitted.
    if engine is not None and quantizer.codebooks:
        raw = engine.encode_items(recipe, quantizer, given)
    else:
        raw = quantizer.encode(given)
    assignment = separate_items(recipe, quantizer, given, raw)
    quality = measure_quality(
        Vocabulary(
            vectors=given.vectors if quantizer.codebooks else None,
            raw=raw,
            assignment=assignment,
            quantizer=quantizer,
        )
    )
    fitted = Fitted(
        recipe,
        quantizer.list_weights(),
        given.dimensions,
        assignment.codebook_sizes,
        given.subject,
    )
    sids = quantizer.spell_codes(raw) if isinstance(quantizer, SpellsCodes) else None
    tokenizer = SemanticIdTokenizer(
        given.item_ids,
        assignment.codes,
        fitted,
        raw_codes=raw,
        sids=sids,
        quality=quality,
    )
    return FitResult(tokenizer, quality, history)


def separate_items(
    recipe: TokenizeRecipe,
    quantizer: Quantizer,
    given: FitInput,
    raw: CodeArray,
    *,
    taken: CodeArray | None = None,
    suffix_size: int | None = None,
) -> Assignment:
    """The quantizer's codes made unique by the recipe's policy; kept where there are no codebooks.

    Args:
        recipe: names the policy.
        quantizer: a fitted one.
        given: the items.
        raw: their codes.
        taken: final codes of other items, which these may not get.
        suffix_size: how many suffix codes there are, where that is decided already.

    Raises:
        CapacityError: there is no room for every item.
    """
    if not quantizer.codebooks:
        return keep_codes(raw, quantizer.codebook_sizes)
    collisions = Collisions(
        codes=raw,
        codebooks=quantizer.codebooks,
        read_latents=lambda rows: quantizer.project(given.select_items(rows)),
        taken=taken,
        suffix_size=suffix_size,
        fixed_levels=_count_fixed(quantizer),
    )
    return make_unique(recipe.unique, collisions, recipe.uniqueness)
