"""A tokenizer made of another project's index file, and an index file made of a tokenizer.

Owns the two ways and what happens to items that share all their codes. The file's form is in
`peer_index.py`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from genrec.artifact import Artifact, write_artifact
from genrec.errors import DataError, join_problems
from genrec.manifest import hash_file
from genrec.tokenizers.embedding.embed import Embeddings, load_embeddings
from genrec.tokenizers.measures.code_use import count_groups
from genrec.tokenizers.measures.quality import Vocabulary, format_quality, measure_quality
from genrec.tokenizers.quantizers.imported import IMPORTED, Imported
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sharing.peer_index import PeerIndex, read_index, write_index
from genrec.tokenizers.step import FitResult, describe_tokenizer, write_result
from genrec.tokenizers.tokenizer_files import Fitted
from genrec.tokenizers.uniqueness.assign import Assignment
from genrec.tokenizers.uniqueness.unique import Collisions, keep_codes, make_unique
from genrec.tokenizers.vectors import VectorRows, read_chunks
from genrec.types import FloatArray

Telling = Literal["refuse", "suffix", "assign", "sinkhorn"]
"""What to do with items that share all their codes."""
_log = logging.getLogger(__name__)


def import_index(
    path: Path, out: Path, *, unique: Telling = "refuse", embeddings: Path | None = None
) -> Artifact:
    """The `tokenizer/` artefact of an index file: its items keep their codes, unless they share.

    With `suffix`, every item gets one more code. With `assign` and `sinkhorn`, items that share
    all their codes move to others of the last level, as after a fit; since the file has no
    codebooks, a code is taken to stand for the mean of what its items' vectors leave over from the
    levels before it, and one that nobody has for nothing more.

    Args:
        path: the index file.
        out: the directory to write.
        unique: what to do with items that share all their codes.
        embeddings: an `embeddings/` artefact of these items; they then come in its order.

    Raises:
        ArtifactError: embeddings that are unusable, or `out` cannot be written.
        CapacityError: more items than code sequences.
        DataError: a file of another form, other items than the embeddings', or items that share
            all their codes and may not.
    """
    index = read_index(path)
    source = None if embeddings is None else load_embeddings(embeddings)
    if source is not None:
        index = order_index(index, source, path)
    n_shared = len(index.codes) - len(count_groups(index.codes))
    _check_telling(path, index, n_shared, unique, source)
    recipe = TokenizeRecipe(
        quantizer=IMPORTED,
        codebook_sizes=index.codebook_sizes,
        unique="assign" if unique == "refuse" else unique,
        options={"source": path.name, "sha256": hash_file(path)},
    )
    inputs = {} if source is None else {"embed": source.artifact}
    with write_artifact(out, step="tokenize", recipe=recipe, inputs=inputs) as work:
        vectors = None if source is None else source.vectors
        assignment = _tell_apart(index, recipe, unique, vectors if n_shared else None)
        result = _describe_import(index, recipe, assignment)
        write_result(result, work.path)
        work.facts.update(describe_tokenizer(result.tokenizer, result.quality))
    _log.info("import: %s", format_quality(result.quality))
    return work.artifact


def order_index(index: PeerIndex, source: Embeddings, path: Path) -> PeerIndex:
    """The index with its items in the order of the embeddings.

    Raises:
        DataError: they hold other items.
    """
    place = {item_id: row for row, item_id in enumerate(index.item_ids)}
    problems = [
        f"{item_id!r} has a vector, but no codes"
        for item_id in source.item_ids
        if item_id not in place
    ]
    known = set(source.item_ids)
    problems += [
        f"{item_id!r} has codes, but no vector"
        for item_id in index.item_ids
        if item_id not in known
    ]
    if problems:
        where = source.artifact.path
        raise DataError(join_problems(f"{path} and {where} hold different items", problems))
    rows = [place[item_id] for item_id in source.item_ids]
    return replace(index, item_ids=source.item_ids, codes=index.codes[rows])


def _check_telling(
    path: Path, index: PeerIndex, n_shared: int, unique: Telling, source: Embeddings | None
) -> None:
    if not n_shared:
        return
    if unique == "refuse":
        raise DataError(
            f"{n_shared:,} of {len(index.codes):,} items in {path} have all their codes in common "
            f"with an item before them, so that one ID would name several items; tell them apart "
            f"with --unique suffix (one more code for every item), or with --unique assign and "
            f"--embeddings (these items move on the last level)"
        )
    if unique != "suffix" and source is None:
        raise DataError(
            f"--unique {unique} moves items to codes that are near, which takes their vectors; "
            f"name them with --embeddings, or use --unique suffix"
        )


def _tell_apart(
    index: PeerIndex, recipe: TokenizeRecipe, unique: Telling, vectors: VectorRows | None
) -> Assignment:
    if unique == "refuse" or (unique != "suffix" and vectors is None):
        return keep_codes(index.codes, index.codebook_sizes)
    if unique == "suffix":
        books = tuple(np.zeros((size, 0), dtype=np.float32) for size in index.codebook_sizes)
    else:
        assert vectors is not None, "checked above"
        books = estimate_codebooks(vectors, index)
    return make_unique(
        recipe.unique,
        Collisions(
            codes=index.codes,
            codebooks=books,
            read_latents=lambda rows: _read_rows(vectors, rows),
        ),
        recipe.uniqueness,
    )


def _read_rows(vectors: VectorRows | None, rows: np.ndarray) -> FloatArray:
    assert vectors is not None, "a suffix asks for no vector"
    return np.asarray(vectors[rows], dtype=np.float32)


def estimate_codebooks(vectors: VectorRows, index: PeerIndex) -> tuple[FloatArray, ...]:
    """What each code stands for, by the items that have it: the mean of what is left over.

    Level by level, as residual quantizers are built: the mean over a code's items of their vector
    less the earlier levels' means. Reads the vectors once a level.

    Shapes:
        vectors: (N, D).
        returns: L arrays (K, D) float32; zeros where nobody has the code.
    """
    books: list[FloatArray] = []
    for level, size in enumerate(index.codebook_sizes):
        total = np.zeros((size, vectors.shape[1]))
        for start, chunk in read_chunks(vectors):
            codes = index.codes[start : start + len(chunk)]
            rest = chunk.astype(np.float64)
            for before, book in enumerate(books):
                rest -= book[codes[:, before]]
            np.add.at(total, codes[:, level], rest)
        counts = np.bincount(index.codes[:, level], minlength=size)[:, None]
        books.append((total / np.maximum(counts, 1)).astype(np.float32))
    return tuple(books)


def _describe_import(index: PeerIndex, recipe: TokenizeRecipe, assignment: Assignment) -> FitResult:
    quantizer = Imported(recipe, 0)
    quality = measure_quality(Vocabulary(None, index.codes, assignment, quantizer))
    fitted = Fitted(recipe, {}, 0, assignment.codebook_sizes, index.subject)
    tokenizer = SemanticIdTokenizer(
        index.item_ids, assignment.codes, fitted, raw_codes=index.codes, quality=quality
    )
    return FitResult(tokenizer, quality, [])


def export_index(tokenizer: SemanticIdTokenizer, path: Path) -> None:
    """Write a tokenizer's IDs as an index file; imported again, they are the same.

    Raises:
        DataError: the IDs are words, not tokens, or `path` is a directory.
    """
    if not tokenizer.is_spelled:
        raise DataError(
            f"the IDs of quantizer {tokenizer.recipe.quantizer!r} are words, not tokens like "
            f"<a_12>, and an index file holds tokens; codes.parquet has them as text"
        )
    if path.is_dir():
        raise DataError(f"{path} is a directory; name the file to write, such as index.json")
    write_index(path, tokenizer.item_ids, tokenizer.codes, tokenizer.fitted.prefix)
