"""`tokenize add` and `tokenize remove`: a tokenizer's directory to that of its next version.

Owns the artefacts, the check that new vectors live in the old ones' space, and what a new version's
`quality.json` can say. Knows no quantizer's inside.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.artifact import Artifact, load_artifact, write_artifact
from genrec.errors import ArtifactError, DataError
from genrec.manifest import MANIFEST, hash_file, write_json
from genrec.tokenizers.inputs import FitInput, read_input
from genrec.tokenizers.measures.quality import Vocabulary, format_quality, measure_quality
from genrec.tokenizers.quantizers.quantizer import Quantizer, find_quantizer
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import HISTORY_FILE, describe_tokenizer
from genrec.tokenizers.tokenizer_files import CONFIG_FILE
from genrec.tokenizers.uniqueness.assign import Assignment
from genrec.tokenizers.uniqueness.nearest import DistanceArray, sum_codes
from genrec.tokenizers.update import Changes, add_items, remove_items
from genrec.tokenizers.vectors import CHUNK_ROWS
from genrec.types import IndexArray

CHANGES_FILE = "changes.json"
KEPT_SHARE = 0.5
"""Known items whose vectors quantize to the codes they had: fewer, and the space is another.

A frozen encoder keeps nearly all. Of 4,344 real items, LSA fitted again to four more kept 2.5%.
"""
_CHECKED_ITEMS = 2000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Old:
    """The version before: its directory, its digest, and its manifest where it has one."""

    path: Path
    tokenizer: SemanticIdTokenizer
    digest: str
    artifact: Artifact | None

    @property
    def inputs(self) -> dict[str, Artifact]:
        return {} if self.artifact is None else {"tokenize": self.artifact}


def add_to_artifact(
    tokenizer: Path,
    out: Path,
    *,
    embeddings: Path | None = None,
    data: Path | None = None,
    reuse_removed: bool = False,
    skip_known: bool = False,
    force_space: bool = False,
) -> tuple[Artifact, Changes]:
    """The artefact of a tokenizer's next version, with new items, and what changed.

    Args:
        tokenizer: the version before.
        out: another directory to write.
        embeddings: an `embeddings/` artefact that holds the new items.
        data: a `data/` artefact that holds them, for quantizers that need one.
        reuse_removed: whether codes of removed items may be given to others.
        skip_known: pass over items that have a semantic ID; otherwise they are an error.
        force_space: take vectors that seem to be of another space.

    Raises:
        ArtifactError: an input is no complete artefact, or `out` cannot be written.
        CapacityError: there is no room for every item.
        DataError: items that the tokenizer has, or vectors that it was not fitted to.
    """
    old = _open_old(tokenizer, out)
    recipe = old.tokenizer.recipe
    needs = find_quantizer(recipe).find_needs(recipe)
    given = read_input(needs, embeddings, data, who=recipe.quantizer)
    known = set(old.tokenizer.item_ids)
    is_known = np.array([item_id in known for item_id in given.item_ids], dtype=np.bool_)
    if given.vectors is not None and old.tokenizer.quantizer.codebooks:
        _check_space(old, given, np.flatnonzero(is_known), force_space)
    chosen = given.select_items(np.flatnonzero(~is_known)) if skip_known else given
    new, changes = add_items(old.tokenizer, chosen, reuse_removed=reuse_removed, parent=old.digest)
    quality = _measure_addition(old, new, given, chosen)
    return _write_version(old, new, changes, quality, out, given.artifacts), changes


def remove_from_artifact(
    tokenizer: Path, item_ids: Sequence[str], out: Path
) -> tuple[Artifact, Changes]:
    """The artefact of a tokenizer's next version, without some items, and what changed.

    Args:
        tokenizer: the version before.
        item_ids: items that go.
        out: another directory to write.

    Raises:
        ArtifactError: the tokenizer is unusable, or `out` cannot be written.
        DataError: no item named, or none would be left.
        UnknownItemError: ids that the tokenizer does not have, all of them named.
    """
    old = _open_old(tokenizer, out)
    new, changes = remove_items(old.tokenizer, item_ids, parent=old.digest)
    quality = _carry_quality(old, _measure_codes(new, None, np.zeros(new.n_items)))
    return _write_version(old, new, changes, quality, out, {}), changes


def read_item_ids(path: Path) -> list[str]:
    """The item ids in a file, one a line; blank lines are passed over.

    Raises:
        DataError: the file cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as a list of item ids: {error}; give a UTF-8 file with one a "
            f"line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _open_old(path: Path, out: Path) -> _Old:
    if out.resolve() == path.resolve():
        raise ArtifactError(
            f"{out} is the tokenizer itself, and a model may be using it; choose another --out "
            f"for its next version"
        )
    tokenizer = SemanticIdTokenizer.from_pretrained(path)
    if not (path / MANIFEST).is_file():
        return _Old(path, tokenizer, hash_file(path / CONFIG_FILE), None)
    artifact = load_artifact(path, step="tokenize", verify=False)
    return _Old(path, tokenizer, artifact.manifest.digest, artifact)


def _check_space(old: _Old, given: FitInput, known: IndexArray, force: bool) -> None:
    """Raise unless the new vectors can be quantized by a quantizer that was fitted to the old."""
    source = given.artifacts["embed"]
    before = old.artifact.manifest.inputs.get("embed", {}) if old.artifact else {}
    if before.get("digest") == source.manifest.digest:
        return
    way_out = (
        "use an encoder that does not depend on the catalogue (encoder: sentence-transformers) "
        "and fit the tokenizer once more, or pass --force-space if you know better"
    )
    raw = old.tokenizer.raw_codes
    if len(known) and raw is not None:
        sample = known[:: max(1, len(known) // _CHECKED_ITEMS)]
        found = old.tokenizer.quantizer.encode(given.select_items(sample))
        rows = old.tokenizer.find_rows([given.item_ids[row] for row in sample.tolist()])
        share = float((found == raw[rows]).all(axis=1).mean())
        _log.info("tokenize add: %.1f%% of %d known items keep their codes", 100 * share, len(rows))
        problem = (
            f"of {len(rows):,} items in {source.path} that the tokenizer knows, only {share:.1%} "
            f"would get the codes they have (at least {KEPT_SHARE:.0%} are needed)"
        )
        is_same = share >= KEPT_SHARE
    else:
        is_same = source.manifest.recipe.get("encoder") != "lsa"
        problem = (
            f"{source.path} was made by lsa, whose vectors depend on the whole catalogue, and "
            f"holds no known item to compare"
        )
    if not is_same and not force:
        raise DataError(f"{problem}: these vectors live in another space; {way_out}")
    if not is_same:
        _log.warning("tokenize add: %s; the new codes may mean nothing", problem)


def _measure_addition(
    old: _Old, new: SemanticIdTokenizer, given: FitInput, chosen: FitInput
) -> dict[str, Any]:
    """The summary over all items, where all have vectors here.

    Else what codes tell, the rest as it was, and the new items' reconstruction beside it.
    """
    n_old = old.tokenizer.n_items
    quantizer = new.quantizer
    if given.vectors is None or not quantizer.codebooks or new.raw_codes is None:
        return _carry_quality(old, _measure_codes(new, None, np.zeros(new.n_items)))
    place = {item_id: row for row, item_id in enumerate(given.item_ids)}
    if all(item_id in place for item_id in new.item_ids):
        every = given.select_items(np.array([place[item_id] for item_id in new.item_ids]))
        return _measure_codes(new, every, _measure_added(new, every, 0))
    added = np.zeros(new.n_items)
    added[n_old:] = _measure_added(new, chosen, n_old)
    quality = _carry_quality(old, _measure_codes(new, None, added))
    part = _pick_codes(new, n_old, added)
    vocabulary = Vocabulary(chosen.vectors, new.raw_codes[n_old:], part, quantizer)
    quality["added"] = {
        "items": chosen.n_items,
        "reconstruction": measure_quality(vocabulary)["reconstruction"],
    }
    return quality


def _measure_codes(
    new: SemanticIdTokenizer, given: FitInput | None, added: DistanceArray
) -> dict[str, Any]:
    vectors = None if given is None else given.vectors
    raw = new.codes if new.raw_codes is None else new.raw_codes
    return measure_quality(Vocabulary(vectors, raw, _pick_codes(new, 0, added), new.quantizer))


def _pick_codes(new: SemanticIdTokenizer, start: int, added: DistanceArray) -> Assignment:
    codes, raw = new.codes[start:], new.raw_codes
    moved = np.zeros(len(codes), dtype=np.bool_)
    if raw is not None:
        moved = (codes[:, : raw.shape[1]] != raw[start:]).any(axis=1)
    return Assignment(codes, moved, added[start:], new.codebook_sizes)


def _measure_added(new: SemanticIdTokenizer, given: FitInput, start: int) -> DistanceArray:
    """How much further each item is from its codes than from its raw ones, a batch at a time."""
    quantizer: Quantizer = new.quantizer
    assert new.raw_codes is not None, "the caller has looked"
    raw, codes = new.raw_codes[start:], new.codes[start:]
    codes = codes[:, : raw.shape[1]]
    added = np.zeros(len(codes))
    moved = np.flatnonzero((codes != raw).any(axis=1))
    for begin in range(0, len(moved), CHUNK_ROWS):
        rows = moved[begin : begin + CHUNK_ROWS]
        latents = quantizer.project(given.select_items(rows))
        after, before = (
            ((latents - sum_codes(chosen[rows], quantizer.codebooks)) ** 2).sum(axis=1)
            for chosen in (codes, raw)
        )
        added[rows] = after - before
    return added


def _carry_quality(old: _Old, quality: dict[str, Any]) -> dict[str, Any]:
    """What needs vectors as the version before had it, and a note that says so."""
    before = old.tokenizer.quality or {}
    total = before.get("moved", {}).get("added_distance_total", 0.0)
    moved = quality["moved"]
    moved["added_distance_total"] += total
    moved["added_distance_mean"] = moved["added_distance_total"] / max(moved["items"], 1)
    for name in ("identical_vectors", "reconstruction"):
        if name in before:
            quality[name] = before[name]
    quality["carried"] = {
        "from_version": before.get("carried", {}).get(
            "from_version", old.tokenizer.lineage.version
        ),
        "values": ["identical_vectors", "reconstruction", "moved.added_distance_total"],
    }
    return quality


def _write_version(
    old: _Old,
    new: SemanticIdTokenizer,
    changes: Changes,
    quality: dict[str, Any],
    out: Path,
    inputs: dict[str, Artifact],
) -> Artifact:
    lineage = new.lineage
    with write_artifact(
        out, step="tokenize", recipe=new.recipe, inputs=old.inputs | inputs
    ) as work:
        new.quality = quality
        new.save_pretrained(work.path)
        record = {"version": lineage.version, "parent": lineage.parent} | changes.describe()
        write_json(work.path / CHANGES_FILE, record)
        if (old.path / HISTORY_FILE).is_file():
            shutil.copyfile(old.path / HISTORY_FILE, work.path / HISTORY_FILE)
        work.facts.update(describe_tokenizer(new, quality) | {"changes": changes.count_all()})
    _log.info("tokenize: %s", format_quality(quality))
    return work.artifact
