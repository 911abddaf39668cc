"""The vocabularies that a report compares, with the vectors and data that belong to them.

Owns finding and reading them: tokenizers, index files, and what a tokenizer was made from. Measures
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genrec.artifact import Artifact, load_artifact
from genrec.data.dataset import Dataset, load_dataset
from genrec.errors import ArtifactError, DataError, join_problems
from genrec.manifest import MANIFEST
from genrec.tokenizers.embedding.embed import Embeddings, load_embeddings
from genrec.tokenizers.measures.code_use import CodeTable
from genrec.tokenizers.quantizers.imported import IMPORTED
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sharing.peer_index import find_indexes, read_index
from genrec.tokenizers.tokenizer_files import CONFIG_FILE
from genrec.tokenizers.vectors import VectorRows
from genrec.types import IndexArray

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One vocabulary of a report.

    Attributes:
        name: what it is called, unlike any other of the report.
        source: its directory or index file.
        quality: its own summary from when it was fitted; None if unknown.
        own_vectors: whether its codes were made from these embeddings.
        missing: why vectors or data are not there, by `vectors` and `data`.

    Shapes:
        codes: (N, L) int32.
        raw_codes: (N, L') int32, before uniqueness; None if unknown.
        vector_rows, data_rows: (N,) int64, each item's row there.
    """

    name: str
    source: Path
    item_ids: tuple[str, ...]
    codes: CodeTable
    codebook_sizes: tuple[int, ...]
    subject: str
    raw_codes: CodeTable | None = None
    quality: dict[str, Any] | None = None
    tokenizer: SemanticIdTokenizer | None = None
    embeddings: Embeddings | None = None
    dataset: Dataset | None = None
    vector_rows: IndexArray | None = None
    data_rows: IndexArray | None = None
    own_vectors: bool = False
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def n_items(self) -> int:
        """N."""
        return len(self.item_ids)

    @property
    def kind(self) -> str:
        """`tokenizer`, or `index` for a file of another project."""
        return "index" if self.tokenizer is None else "tokenizer"

    @property
    def is_imported(self) -> bool:
        """Whether its codes were made elsewhere, whatever embeddings it was imported with."""
        return self.tokenizer is None or self.tokenizer.recipe.quantizer == IMPORTED

    @property
    def is_aligned(self) -> bool:
        """Whether row i of the embeddings is item i, and there are no others."""
        if self.embeddings is None or len(self.embeddings.item_ids) != self.n_items:
            return False
        return self.vector_rows is not None and np.array_equal(
            self.vector_rows, np.arange(self.n_items)
        )

    @cached_property
    def vectors(self) -> VectorRows | None:
        """(N, D), row i for item i; copied only where the embeddings are in another order."""
        if self.embeddings is None or self.vector_rows is None:
            return None
        rows = self.embeddings.vectors
        if self.is_aligned:
            return rows
        return rows[self.vector_rows]

    def read_column(self, name: str) -> list[str] | None:
        """A text column of the items in the data, empty where an item has none; None without it."""
        if self.dataset is None or self.data_rows is None:
            return None
        if name not in self.dataset.items.columns:
            return None
        values = self.dataset.items[name].to_list()
        return [str(values[row] or "") for row in self.data_rows.tolist()]

    def count_interactions(self) -> IndexArray | None:
        """(N,) how often each item was chosen in training; None without data."""
        if self.dataset is None or self.data_rows is None:
            return None
        chosen = self.dataset.sequences(("train",)).item_index
        return np.bincount(chosen, minlength=self.dataset.n_items)[self.data_rows]


def read_entries(
    sources: Sequence[Path], embeddings: Path | None = None, data: Path | None = None
) -> list[Entry]:
    """The vocabularies in directories and files, in that order, with what belongs to them.

    A tokenizer's embeddings and data are those of its manifest, where they still are. An index
    file borrows them from a tokenizer of the same items. `embeddings` and `data` stand above both.

    Raises:
        ArtifactError: a directory that is no complete tokenizer, or given artefacts unusable.
        DataError: no vocabulary, a file of another form, or items that given artefacts lack.
    """
    if not sources:
        raise DataError("name at least one tokenizer directory or index file to report on")
    read = [entry for source in sources for entry in _read_source(source)]
    entries = [
        replace(entry, name=name)
        for entry, name in zip(read, _choose_names([entry.source for entry in read]), strict=True)
    ]
    finder = _Finder(embeddings, data)
    found = [finder.attach(entry) for entry in entries]
    return [_align(_borrow(entry, found)) for entry in found]


def _read_source(source: Path) -> Iterator[Entry]:
    if not source.exists():
        raise DataError(f"{source} does not exist; name a tokenizer directory or an index file")
    if source.is_dir() and not any((source / name).exists() for name in (CONFIG_FILE, MANIFEST)):
        for path in find_indexes(source):
            yield _read_index(path)
    elif source.is_dir():
        yield _read_tokenizer(source)
    else:
        yield _read_index(source)


def _read_index(path: Path) -> Entry:
    index = read_index(path)
    return Entry("", path, index.item_ids, index.codes, index.codebook_sizes, index.subject)


def _read_tokenizer(folder: Path) -> Entry:
    tokenizer = SemanticIdTokenizer.from_pretrained(folder)
    return Entry(
        "",
        folder,
        tokenizer.item_ids,
        tokenizer.codes,
        tokenizer.codebook_sizes,
        tokenizer.fitted.subject,
        tokenizer.raw_codes,
        tokenizer.quality,
        tokenizer,
    )


def _choose_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, file suffixes left out."""
    parts = [
        (*path.resolve().parts[:-1], path.stem if path.is_file() else path.resolve().name)
        for path in paths
    ]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({place})" for place, name in enumerate(names, start=1)]


class _Finder:
    """Finds embeddings and data for vocabularies, each loaded once."""

    def __init__(self, embeddings: Path | None, data: Path | None) -> None:
        self._embeddings = None if embeddings is None else load_embeddings(embeddings)
        self._dataset = None if data is None else load_dataset(data)
        self._loaded: dict[Path, Embeddings | Dataset] = {}

    def attach(self, entry: Entry) -> Entry:
        """The vocabulary with what was given for all, else with what it was made from."""
        made_from = _trace_inputs(entry) if entry.tokenizer else {}
        if self._embeddings is not None:
            rows = _match_items(entry, self._embeddings, "vector", "--embeddings")
            digest = self._embeddings.artifact.manifest.digest
            own = "embed" in made_from and made_from["embed"].manifest.digest == digest
            own = own and not entry.is_imported
            entry = replace(entry, embeddings=self._embeddings, vector_rows=rows, own_vectors=own)
        elif "embed" in made_from:
            entry = self._attach_own(entry, made_from["embed"])
        else:
            entry.missing["vectors"] = _explain_missing(entry, "embeddings")
        if entry.subject == "users":
            entry.missing["data"] = "this is a vocabulary of users; the data describes items"
        elif self._dataset is not None:
            rows = _match_items(entry, self._dataset, "row", "--data")
            entry = replace(entry, dataset=self._dataset, data_rows=rows)
        elif "data" in made_from:
            entry = self._attach_own(entry, made_from["data"])
        else:
            entry.missing["data"] = _explain_missing(entry, "data")
        return entry

    def _attach_own(self, entry: Entry, artifact: Artifact) -> Entry:
        step = artifact.manifest.step
        path = artifact.path
        if path not in self._loaded:
            load = load_embeddings if step == "embed" else load_dataset
            self._loaded[path] = load(path)
        source = self._loaded[path]
        rows = _find_rows(entry.item_ids, source.item_ids)
        role = "vectors" if step == "embed" else "data"
        absent = int((rows < 0).sum())
        if absent:
            option = "--embeddings" if step == "embed" else "--data"
            entry.missing[role] = (
                f"{path}, which it was made from, lacks {absent:,} of its items; name what holds "
                f"all with {option}"
            )
            return entry
        if isinstance(source, Embeddings):
            own = not entry.is_imported
            return replace(entry, embeddings=source, vector_rows=rows, own_vectors=own)
        return replace(entry, dataset=source, data_rows=rows)


def _explain_missing(entry: Entry, what: str) -> str:
    if entry.tokenizer is None:
        return f"an index file names no {what}; give --{what}"
    return f"the {what} that it was made from are unknown, moved or changed; give --{what}"


def _find_rows(item_ids: Sequence[str], known: Sequence[str]) -> IndexArray:
    place = {item_id: row for row, item_id in enumerate(known)}
    return np.array([place.get(item_id, -1) for item_id in item_ids], dtype=np.int64)


def _match_items(entry: Entry, source: Embeddings | Dataset, what: str, option: str) -> IndexArray:
    rows = _find_rows(entry.item_ids, source.item_ids)
    absent = np.flatnonzero(rows < 0).tolist()
    if absent:
        raise DataError(
            join_problems(
                f"{entry.source} and {option} {source.artifact.path} do not belong together",
                [f"item {entry.item_ids[row]!r} has codes, but no {what} there" for row in absent],
            )
        )
    return rows


def _trace_inputs(entry: Entry) -> dict[str, Artifact]:
    """The embeddings and data that a tokenizer was made from, where they are as they were."""
    found: dict[str, Artifact] = {}
    waiting = [entry.source]
    while waiting:
        folder = waiting.pop()
        if not (folder / MANIFEST).exists():
            continue
        for role, record in load_artifact(folder, verify=False).manifest.inputs.items():
            try:
                artifact = load_artifact(record["path"], verify=False)
            except ArtifactError as error:
                _log.debug("left out of the report: %s", error)
                continue
            if artifact.manifest.digest == record["digest"]:
                found.setdefault(role, artifact)
                waiting.append(artifact.path)
    return {role: found[role] for role in ("embed", "data") if role in found}


def _borrow(entry: Entry, others: Sequence[Entry]) -> Entry:
    """An index file with the vectors and data of a tokenizer in the report that names its items."""
    if entry.tokenizer is not None or entry.subject == "users":
        return entry
    for other in others:
        if other.tokenizer is None or set(entry.item_ids) != set(other.item_ids):
            continue
        if entry.embeddings is None and other.embeddings is not None:
            rows = _find_rows(entry.item_ids, other.embeddings.item_ids)
            entry = replace(entry, embeddings=other.embeddings, vector_rows=rows)
            entry.missing.pop("vectors", None)
        if entry.dataset is None and other.dataset is not None:
            rows = _find_rows(entry.item_ids, other.dataset.item_ids)
            entry = replace(entry, dataset=other.dataset, data_rows=rows)
            entry.missing.pop("data", None)
    return entry


def _align(entry: Entry) -> Entry:
    """The vocabulary in the order of its embeddings, so that their rows need not be copied."""
    rows = entry.vector_rows
    if rows is None or entry.embeddings is None or len(rows) != len(entry.embeddings.item_ids):
        return entry
    order = np.argsort(rows)
    return replace(
        entry,
        item_ids=tuple(entry.item_ids[row] for row in order.tolist()),
        codes=entry.codes[order],
        raw_codes=None if entry.raw_codes is None else entry.raw_codes[order],
        vector_rows=rows[order],
        data_rows=None if entry.data_rows is None else entry.data_rows[order],
    )
