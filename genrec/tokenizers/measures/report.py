"""The vocabulary report: several vocabularies measured, side by side.

Owns what is measured and where it lies in `report.json`; `report_page.py` owns the page.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrec.errors import ArtifactError
from genrec.manifest import MANIFEST, write_json
from genrec.recipe import hash_values
from genrec.tokenizers.measures.categories import (
    Categories,
    find_leaf,
    find_root,
    measure_categories,
    split_paths,
)
from genrec.tokenizers.measures.code_tree import place_items
from genrec.tokenizers.measures.code_use import (
    count_groups,
    group_prefixes,
    measure_collisions,
    measure_use,
)
from genrec.tokenizers.measures.neighbours import Neighbours, find_neighbours, measure_neighbours
from genrec.tokenizers.measures.popularity import measure_groups, measure_popularity
from genrec.tokenizers.measures.quality import measure_reconstruction, name_level
from genrec.tokenizers.measures.report_input import Entry, read_entries
from genrec.tokenizers.measures.report_measures import compare_measures
from genrec.tokenizers.measures.report_page import Section, write_page
from genrec.types import FloatArray, IndexArray

SCHEMA = 1
REPORT_FILE = "report.json"
_LARGEST_CODES, _RANDOM_CODES, _EXAMPLES = 4, 3, 5
_LONGEST_TITLE = 120
_log = logging.getLogger(__name__)


def make_report(
    sources: Sequence[Path],
    out: Path,
    *,
    embeddings: Path | None = None,
    data: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What `report.json` holds, written beside `report.html` and the pictures as PNG files.

    Keys: `schema`, `seed`; `measures`, the side-by-side table (see `compare_measures`); and
    `vocabularies`, one object each: `name`, `source`, `kind`, `quantizer`, `subject`, `items`,
    `codebook_sizes`, `basis` (digests that tell whether two may be compared), `missing` (what was
    not measured, and why), `collisions`, `use` (by level and joint), `uniqueness` and
    `reconstruction` (from the fit), `neighbours`, `categories` (`root`, `leaf`), `groups` (by
    prefix length), `popularity` and `examples`. A measure that is missing is null.

    Args:
        sources: tokenizer directories, index files, or folders of index files.
        out: the directory to write; files of an older report are replaced.
        embeddings: vectors of the items; else those that a tokenizer was made from.
        data: a `data/` artefact; else the one that a tokenizer was made from.
        seed: of every sample.

    Raises:
        ArtifactError: a source is no complete tokenizer, or `out` cannot be written to.
        DataError: an index file of another form, or items that given artefacts lack.
    """
    _check_out(out)
    entries = read_entries(sources, embeddings, data)
    shelf = _Shelf(seed)
    measured = [_measure_entry(entry, shelf) for entry in entries]
    result = {
        "schema": SCHEMA,
        "seed": seed,
        "measures": compare_measures(measured),
        "vocabularies": measured,
    }
    out.mkdir(parents=True, exist_ok=True)
    sections = [
        Section(row, entry.codes, entry.codebook_sizes, _find_root(entry), shelf.place_items(entry))
        for row, entry in zip(measured, entries, strict=True)
    ]
    write_page(out, result, sections)
    write_json(out / REPORT_FILE, result)
    _log.info("report: %s", out / "report.html")
    return result


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file; a report needs a directory, choose another --out")
    if (out / MANIFEST).exists():
        raise ArtifactError(
            f"{out} is an artefact, which a report would add files to; choose another --out"
        )


class _Shelf:
    """What several vocabularies share, found once."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._neighbours: dict[str, Neighbours | None] = {}
        self._places: dict[str, tuple[IndexArray, FloatArray]] = {}

    def find_neighbours(self, entry: Entry) -> Neighbours | None:
        """The nearest items in the vocabulary's vectors; None where there are too few."""
        assert entry.vectors is not None, "asked for where there are vectors"
        key = _name_rows(entry)
        if key not in self._neighbours:
            self._neighbours[key] = find_neighbours(entry.vectors, seed=self.seed)
        return self._neighbours[key]

    def place_items(self, entry: Entry) -> tuple[IndexArray, FloatArray] | None:
        """Some items on a plane, where they have vectors."""
        if entry.vectors is None:
            return None
        key = _name_rows(entry)
        if key not in self._places:
            self._places[key] = place_items(entry.vectors, seed=self.seed)
        return self._places[key]


def _name_rows(entry: Entry) -> str:
    """A key for the vocabulary's vectors: alike where they are the same rows in the same order."""
    assert entry.embeddings is not None, "vectors come from embeddings"
    digest = entry.embeddings.artifact.manifest.digest
    return digest if entry.is_aligned else f"{digest} for {entry.name}"


def _find_root(entry: Entry) -> Categories | None:
    """The main categories of a vocabulary's items, where they are known."""
    values = entry.read_column("categories")
    return None if values is None else find_root(split_paths(values))


def _measure_entry(entry: Entry, shelf: _Shelf) -> dict[str, Any]:
    _log.info("report: measuring %s (%s %s)", entry.name, f"{entry.n_items:,}", entry.subject)
    missing: list[dict[str, str]] = []
    measured = {
        "name": entry.name,
        "source": str(entry.source),
        "kind": entry.kind,
        "quantizer": entry.tokenizer.recipe.quantizer if entry.tokenizer else None,
        "subject": entry.subject,
        "items": entry.n_items,
        "codebook_sizes": list(entry.codebook_sizes),
        "basis": _describe_basis(entry),
        "missing": missing,
        "collisions": _measure_collisions(entry),
        "use": _measure_levels(entry),
        "uniqueness": _read_uniqueness(entry, missing),
        "reconstruction": _measure_reconstruction(entry, missing),
        "neighbours": _measure_neighbours(entry, shelf, missing),
        "categories": _measure_categories(entry, shelf, missing),
        "groups": measure_groups(entry.codes),
        "popularity": _measure_popularity(entry, missing),
        "examples": _pick_examples(entry, shelf),
    }
    return measured


def _describe_basis(entry: Entry) -> dict[str, Any]:
    """What the measures rest on; two vocabularies compare where these are the same."""
    return {
        "items": hash_values(sorted(entry.item_ids)),
        "vectors": entry.embeddings.artifact.manifest.digest if entry.embeddings else None,
        "data": entry.dataset.artifact.manifest.digest if entry.dataset else None,
        "own_vectors": entry.own_vectors,
    }


def _measure_collisions(entry: Entry) -> dict[str, Any]:
    sizes = count_groups(entry.codes)
    raw = entry.raw_codes
    return {
        "before": None if raw is None else measure_collisions(raw),
        "after": measure_collisions(entry.codes),
        "lost": entry.n_items - len(sizes),
        "shared_items": int(sizes[sizes > 1].sum()),
        "largest": int(sizes.max()),
        "largest_before": None if raw is None else int(count_groups(raw).max()),
    }


def _measure_levels(entry: Entry) -> dict[str, Any]:
    joint = measure_use(count_groups(entry.codes))
    return {
        "levels": [
            {
                "level": name_level(level),
                **measure_use(np.bincount(entry.codes[:, level], minlength=size)),
            }
            for level, size in enumerate(entry.codebook_sizes)
        ],
        # The code space is too large to count what is unused in it.
        "joint": {key: joint[key] for key in ("used", "perplexity", "entropy_bits", "gini")},
    }


def _read_uniqueness(entry: Entry, missing: list[dict[str, str]]) -> dict[str, Any] | None:
    if entry.quality is None:
        reason = "an index file does not say" if entry.kind == "index" else "it has no quality.json"
        missing.append({"measure": "cost of uniqueness", "reason": reason})
        return None
    moved: dict[str, Any] = entry.quality["moved"]
    return moved


def _measure_reconstruction(entry: Entry, missing: list[dict[str, str]]) -> dict[str, Any] | None:
    """As measured when the tokenizer was fitted, else from its own vectors."""
    tokenizer, reason = entry.tokenizer, ""
    if entry.quality is not None and entry.quality["reconstruction"] is not None:
        known: dict[str, Any] = entry.quality["reconstruction"]
        return known
    if tokenizer is None:
        reason = "an index file holds no quantizer"
    elif not tokenizer.quantizer.codebooks:
        reason = f"quantizer {tokenizer.recipe.quantizer!r} does not quantize vectors"
    elif entry.vectors is None:
        reason = entry.missing["vectors"]
    elif entry.vectors.shape[1] != tokenizer.fitted.dimensions:
        reason = (
            f"these vectors are {entry.vectors.shape[1]} wide, the tokenizer was fitted to "
            f"{tokenizer.fitted.dimensions}"
        )
    else:
        decode = tokenizer.quantizer.decode_codes
        raw = entry.raw_codes
        unique = entry.codes if raw is None else entry.codes[:, : raw.shape[1]]
        before = None if raw is None else measure_reconstruction(entry.vectors, raw, decode)
        return {"before": before, "after": measure_reconstruction(entry.vectors, unique, decode)}
    missing.append({"measure": "reconstruction", "reason": reason})
    return None


def _measure_neighbours(
    entry: Entry, shelf: _Shelf, missing: list[dict[str, str]]
) -> dict[str, Any] | None:
    if entry.vectors is None:
        missing.append({"measure": "neighbours and map", "reason": entry.missing["vectors"]})
        return None
    found = shelf.find_neighbours(entry)
    if found is None:
        reason = "fewer than three items have a vector that is not zero"
        missing.append({"measure": "neighbours", "reason": reason})
        return None
    return measure_neighbours(entry.codes, found)


def _measure_categories(
    entry: Entry, shelf: _Shelf, missing: list[dict[str, str]]
) -> dict[str, Any] | None:
    values = entry.read_column("categories")
    if values is None:
        reason = entry.missing.get("data", "the data has no column categories")
        missing.append({"measure": "categories", "reason": reason})
        return None
    root, leaf = _find_root(entry), find_leaf(split_paths(values))
    if root is None or leaf is None:
        reason = "the items have fewer than two different categories"
        missing.append({"measure": "categories", "reason": reason})
        return None
    return {
        "root": measure_categories(entry.codes, root, shelf.seed),
        "leaf": measure_categories(entry.codes, leaf, shelf.seed),
    }


def _measure_popularity(entry: Entry, missing: list[dict[str, str]]) -> dict[str, Any] | None:
    interactions = entry.count_interactions()
    if interactions is None:
        missing.append({"measure": "popularity and titles", "reason": entry.missing["data"]})
        return None
    return measure_popularity(entry.codes, interactions)


def _pick_examples(entry: Entry, shelf: _Shelf) -> list[dict[str, Any]]:
    """Items of some first codes: the largest ones, then some drawn at random."""
    rng = np.random.default_rng(shelf.seed)
    group, sizes = group_prefixes(entry.codes, 1)
    largest = np.argsort(-sizes, kind="stable")[:_LARGEST_CODES]
    others = np.setdiff1d(np.arange(len(sizes)), largest)
    drawn = np.sort(rng.permutation(others)[:_RANDOM_CODES])
    titles = entry.read_column("title")
    examples = []
    for number in [*largest.tolist(), *drawn.tolist()]:
        members = np.flatnonzero(group == number)
        chosen = np.sort(rng.permutation(members)[:_EXAMPLES]).tolist()
        examples.append(
            {
                "code": int(entry.codes[members[0], 0]),
                "items": len(members),
                "drawn": bool(number in drawn),
                "titles": [
                    (titles[row] if titles else "")[:_LONGEST_TITLE] or entry.item_ids[row]
                    for row in chosen
                ],
            }
        )
    return examples
