"""Items to semantic IDs and back.

Owns the agreement of items, codes and spelling. Knows no prompt and no language model; the
quantizer behind the codes is opened only when vectors are quantized. Files are in
`tokenizer_files.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.errors import ArtifactError, DataError, UnknownItemError, join_problems
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.measures.code_use import count_groups
from genrec.tokenizers.quantizers.quantizer import Quantizer, build_quantizer, check_vectors
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.sharing.hub import fetch_folder, names_repository, send_folder
from genrec.tokenizers.sid_text import check_levels, format_sids, format_token, parse_sid
from genrec.tokenizers.tokenizer_files import (
    HUB_FILES,
    REMEDY,
    Fitted,
    Lineage,
    TokenizerRecord,
    read_record,
    write_record,
)
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray


class SemanticIdTokenizer:
    """A catalogue's semantic IDs: one item, one code sequence.

    Shapes:
        codes: (N, L) int32, row i for `item_ids[i]`, no two rows alike.
        raw_codes: (N, L) int32, the quantizer's own, before they were made unique; None if unknown.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: CodeArray,
        fitted: Fitted,
        *,
        raw_codes: CodeArray | None = None,
        sids: Sequence[str] | None = None,
        lineage: Lineage | None = None,
        quality: dict[str, Any] | None = None,
    ) -> None:
        """Take over codes that were made unique, and the quantizer that made them.

        Args:
            item_ids: N ids.
            codes: (N, L).
            fitted: the quantizer.
            raw_codes: (N, L) before uniqueness.
            sids: the text of each ID, where it is not spelled `<a_12><b_7>`.
            lineage: version and removed items.
            quality: what `measure_quality` gave, for the card; None if unknown.

        Raises:
            DataError: items or codes that are not unique, or do not fit each other or the recipe.
        """
        self.item_ids = tuple(item_ids)
        self.codes = np.ascontiguousarray(codes, dtype=np.int32)
        self.fitted = fitted
        self.raw_codes = raw_codes
        self.lineage = lineage or Lineage()
        self.quality = quality
        self._given_sids = None if sids is None else tuple(sids)
        problems = list(self._find_faults())
        if problems:
            raise DataError(join_problems("these semantic IDs cannot be used", problems))

    @property
    def recipe(self) -> TokenizeRecipe:
        """What the quantizer was made by."""
        return self.fitted.recipe

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has."""
        return self.fitted.codebook_sizes

    @property
    def n_levels(self) -> int:
        """How many tokens a semantic ID has."""
        return len(self.codebook_sizes)

    @property
    def n_items(self) -> int:
        """How many items have one."""
        return len(self.item_ids)

    @property
    def is_spelled(self) -> bool:
        """Whether IDs are tokens like `<a_12>`; otherwise they are words of their own."""
        return self._given_sids is None

    @cached_property
    def sids(self) -> tuple[str, ...]:
        """Every item's semantic ID, in the order of `item_ids`."""
        if self._given_sids is not None:
            return self._given_sids
        return tuple(format_sids(self.codes, self.fitted.prefix).to_list())

    @cached_property
    def quantizer(self) -> Quantizer:
        """The fitted quantizer.

        Raises:
            ArtifactError: the weights are not those of the recipe's quantizer.
        """
        quantizer = build_quantizer(self.recipe, self.fitted.dimensions)
        quantizer.restore_weights(self.fitted.weights)
        return quantizer

    @cached_property
    def _rows_by_item(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _items_by_sid(self) -> dict[str, str]:
        return dict(zip(self.sids, self.item_ids, strict=True))

    def encode(self, item_ids: Sequence[str]) -> list[str]:
        """The semantic IDs of items.

        Raises:
            UnknownItemError: ids that the catalogue does not hold, all of them named.
        """
        return [self.sids[row] for row in self.find_rows(item_ids)]

    def find_rows(self, item_ids: Sequence[str]) -> list[int]:
        """The rows of `codes` of items.

        Raises:
            UnknownItemError: ids that the catalogue does not hold, all of them named.
        """
        unknown = [item_id for item_id in item_ids if item_id not in self._rows_by_item]
        if unknown:
            raise UnknownItemError(
                join_problems(
                    f"the tokenizer knows {self.n_items:,} {self.fitted.subject}, but not these",
                    [repr(item_id) for item_id in unknown],
                )
            )
        return [self._rows_by_item[item_id] for item_id in item_ids]

    def decode(self, sids: Sequence[str]) -> list[str]:
        """The item ids that semantic IDs name.

        Raises:
            DataError: a text that is no semantic ID.
            UnknownItemError: semantic IDs that no item has, all of them named.
        """
        if self.is_spelled:
            for sid in sids:
                parse_sid(sid, self.fitted.prefix)
        found = [self._items_by_sid.get(sid) for sid in sids]
        unknown = [repr(sid) for sid, item in zip(sids, found, strict=True) if item is None]
        if unknown:
            raise UnknownItemError(
                join_problems(f"no item of {self.n_items:,} has these semantic IDs", unknown)
            )
        return [item_id for item_id in found if item_id is not None]

    def quantize(self, vectors: FloatArray) -> CodeArray:
        """The quantizer's own codes (N, L) for any vectors; items may share them.

        Raises:
            DataError: vectors of another width, or not finite; or codes do not come from vectors.
        """
        if not self.fitted.dimensions:
            raise DataError(
                f"the codes of quantizer {self.recipe.quantizer!r} do not come from vectors, so it "
                f"has none to give them; fit a quantizer of vectors, such as rqvae or rqkmeans"
            )
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        check_vectors(vectors, "the input", self.fitted.dimensions)
        # Names that no item or user has: some quantizers know those that they were fitted to.
        nobody = tuple(f"\0{row}" for row in range(len(vectors)))
        return self.quantizer.encode(FitInput(nobody, vectors, subject=self.fitted.subject))

    def tokens(self) -> tuple[tuple[str, ...], ...]:
        """Every token there can be, by level and code, used or not.

        Raises:
            DataError: the IDs are texts, which add no tokens.
        """
        if not self.is_spelled:
            raise DataError(
                f"the IDs of quantizer {self.recipe.quantizer!r} are texts in the language model's "
                f"own words; they add no tokens"
            )
        return tuple(
            tuple(format_token(level, code, self.fitted.prefix) for code in range(size))
            for level, size in enumerate(self.codebook_sizes)
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Write config, weights, codes and card into a directory, which is made if missing."""
        write_record(self._record, Path(path))

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Send what `save_pretrained` writes to a repository of a model hub; its address.

        Args:
            repo_id: OWNER/NAME; made if it is new.
            private: whether a new repository is hidden from others.
            token: of the account; None takes the one that `hf auth login` saved.

        Raises:
            ArtifactError: a bad name, or the account may not write there.
            ModelError: the hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            write_record(self._record, Path(folder), name=repo_id)
            return send_folder(Path(folder), repo_id, private=private, token=token)

    @property
    def _record(self) -> TokenizerRecord:
        return TokenizerRecord(
            self.item_ids,
            self.codes,
            self._given_sids,
            self.fitted,
            self.raw_codes,
            self.lineage,
            self.quality,
        )

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, revision: str | None = None
    ) -> SemanticIdTokenizer:
        """The tokenizer in a directory (an artefact, or by `save_pretrained`), or on a model hub.

        Args:
            path: a directory, or a hub's OWNER/NAME where no such directory is.
            revision: the hub's branch, tag or commit; None is the main branch.

        Raises:
            ArtifactError: files missing, half written, or not written together; or the hub has no
                such repository.
            ModelError: the hub cannot be reached.
        """
        if names_repository(path):
            path = fetch_folder(str(path), revision, HUB_FILES)
        record = read_record(Path(path))
        try:
            return cls(
                record.item_ids,
                record.codes,
                record.fitted,
                raw_codes=record.raw_codes,
                sids=record.sids,
                lineage=record.lineage,
                quality=record.quality,
            )
        except DataError as error:
            raise ArtifactError(f"{path} does not hold together: {error}; {REMEDY}") from error

    def _find_faults(self) -> list[str]:
        """One line for each way in which items, codes and codebooks do not fit."""
        sizes = self.codebook_sizes
        if self.is_spelled:
            check_levels(len(sizes))
        if self.codes.shape != (len(self.item_ids), len(sizes)):
            needed = (len(self.item_ids), len(sizes))
            return [f"codes have shape {self.codes.shape}, but need {needed}"]
        faults = []
        if ((self.codes < 0) | (self.codes >= np.array(sizes))).any():
            faults.append(f"codes lie outside codebooks of sizes {list(sizes)}")
        shared = len(self.codes) - len(count_groups(self.codes))
        if shared:
            faults.append(
                f"{shared:,} items share all their codes with another; assign unique ones"
            )
        # Python's sets and counters would take more memory than the ids themselves.
        ids = pl.Series(self.item_ids, dtype=pl.String)
        if ids.n_unique() < len(ids):
            repeated = ids.filter(ids.is_duplicated()).unique(maintain_order=True)
            faults.append(f"{len(repeated):,} item ids come twice, such as {repeated[0]!r}")
        return faults
