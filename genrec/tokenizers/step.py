"""The `tokenize` step: vectors to a `tokenizer/` artefact.

Owns the order of the work: fit, encode, make unique, measure, write. Knows no quantizer's inside.
"""

from __future__ import annotations

import logging
from pathlib import Path

from genrec.artifact import Artifact, write_artifact
from genrec.manifest import write_json
from genrec.tokenizers.assign import assign_unique, check_capacity
from genrec.tokenizers.embed import load_embeddings
from genrec.tokenizers.quality import Vocabulary, format_quality, measure_quality
from genrec.tokenizers.quantizer import build_quantizer, check_vectors
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.types import FloatArray

QUALITY_FILE = "quality.json"
HISTORY_FILE = "history.json"
_log = logging.getLogger(__name__)


def make_tokenizer(recipe: TokenizeRecipe, embeddings: Path, out: Path) -> Artifact:
    """The `tokenizer/` artefact: a fitted quantizer, and codes of its own for every item.

    Raises:
        ArtifactError: `embeddings` is no complete artefact, or `out` cannot be written.
        CapacityError: more items than the codebooks can name.
        DataError: vectors that are not finite.
        RecipeError: an unknown quantizer.
    """
    source = load_embeddings(embeddings)
    check_vectors(source.vectors, str(embeddings))
    check_capacity(len(source.item_ids), recipe.codebook_sizes)
    inputs = {"embed": source.artifact}
    with write_artifact(out, step="tokenize", recipe=recipe, inputs=inputs) as work:
        tokenizer, quality, history = fit_tokenizer(recipe, source.item_ids, source.vectors)
        tokenizer.save_pretrained(work.path)
        write_json(work.path / QUALITY_FILE, quality)
        write_json(work.path / HISTORY_FILE, history)
        work.facts["items"] = tokenizer.n_items
        work.facts["n_levels"] = tokenizer.n_levels
        work.facts["codebook_sizes"] = list(tokenizer.codebook_sizes)
        work.facts["collision_rate"] = quality["collision_rate"]
    _log.info("tokenize: %s", format_quality(quality))
    return work.artifact


def fit_tokenizer(
    recipe: TokenizeRecipe, item_ids: tuple[str, ...], vectors: FloatArray
) -> tuple[SemanticIdTokenizer, dict[str, object], list[dict[str, float]]]:
    """A tokenizer fitted to vectors in memory, its quality summary and its loss history.

    Shapes:
        vectors: (N, D) float32, row i for `item_ids[i]`.
    """
    check_vectors(vectors, "the vectors to tokenize")
    check_capacity(len(item_ids), recipe.codebook_sizes)
    quantizer = build_quantizer(recipe, vectors.shape[1])
    history = quantizer.fit_vectors(vectors)
    raw = quantizer.encode_vectors(vectors)
    assignment = assign_unique(quantizer.project_vectors(vectors), raw, quantizer.codebooks)
    quality = measure_quality(
        Vocabulary(
            vectors=vectors,
            raw=raw,
            assignment=assignment,
            codebook_sizes=recipe.codebook_sizes,
            decoded_raw=quantizer.decode_codes(raw),
            decoded=quantizer.decode_codes(assignment.codes),
        )
    )
    tokenizer = SemanticIdTokenizer(
        item_ids, assignment.codes, recipe, quantizer.list_weights(), vectors.shape[1]
    )
    return tokenizer, quality, history
