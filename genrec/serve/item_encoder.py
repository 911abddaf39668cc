"""Texts and vectors to semantic IDs, by the tokenizer that the model was trained with.

Owns finding what that tokenizer was made with (the data's text fields, the encoder), and how much
of it is there. Knows no catalogue version and no model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.catalogue import read_field
from genrec.data.recipe import DataRecipe
from genrec.data.text import parse_price, render_fields
from genrec.errors import ArtifactError, DataError, ModelError
from genrec.manifest import MANIFEST, Manifest, read_manifest
from genrec.recipe import parse_recipe, strip_header
from genrec.tokenizers.embedding.encoder import TextEncoder, build_later_encoder
from genrec.tokenizers.inputs import DATA, FitInput
from genrec.tokenizers.quantizers.quantizer import check_vectors, find_quantizer
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sid_text import format_sids
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.tokenizers.update import code_fresh
from genrec.tokenizers.update_step import KEPT_SHARE
from genrec.types import FloatArray

_TEXTS_AT_ONCE = 32
_CHECKED_ITEMS = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """What a tokenizer was made with, as far as it is there.

    Attributes:
        embed: the manifest of the embeddings.
        data: the manifest of the data that they were made from, and
        data_folder: where it lies.
        missing: what was not found, for messages; empty where all was.
    """

    embed: Manifest | None = None
    data: Manifest | None = None
    data_folder: Path | None = None
    missing: str = ""


class ItemEncoder:
    """Gives items and texts codes; threads may share it. The encoder loads when first needed."""

    def __init__(self, tokenizer: SemanticIdTokenizer, sources: Sources) -> None:
        """Join a tokenizer with what its vectors came from.

        Args:
            tokenizer: frozen: nothing here changes it.
            sources: from `find_sources`.

        Raises:
            DataError: a tokenizer that has no codes to give to items that come later.
        """
        recipe = tokenizer.recipe
        if not tokenizer.is_spelled or DATA in find_quantizer(recipe).find_needs(recipe):
            raise DataError(
                f"quantizer {recipe.quantizer!r} needs more of an item than its text, so items "
                f"cannot be added while the server runs; leave --tokenizer out (items can still be "
                f"removed), and add items with `genrec tokenize add` and `genrec tokenize apply`"
            )
        self.tokenizer = tokenizer
        self._sources = sources
        self._lock = threading.Lock()

    @property
    def can_render(self) -> bool:
        """Whether it is known what an item's text is made of."""
        return self._sources.data is not None

    @cached_property
    def retired(self) -> dict[str, tuple[int, ...]]:
        """The codes of items that were removed before the model was made; they are theirs."""
        lineage = self.tokenizer.lineage
        rows = map(tuple, lineage.retired_codes.tolist())
        return dict(zip(lineage.retired_ids, rows, strict=True))

    def render_text(self, values: Mapping[str, object]) -> str:
        """The text of an item, made of its fields as `genrec data` makes it.

        Raises:
            DataError: the data's recipe is not there.
        """
        fields, most_chars = self._text_fields
        clean: dict[str, object] = {
            name: parse_price(value) if name == "price" else read_field(value)
            for name, value in values.items()
        }
        return render_fields(clean, fields, most_chars)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Vectors (N, D) of texts, in the space of the tokenizer's own items.

        Raises:
            DataError: what the encoder is made from is not there, or it gives other vectors than
                the tokenizer was fitted to.
            ModelError: the encoder's model cannot be loaded.
        """
        parts = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            with self._lock:  # a large batch lets a request's single text in between
                parts.append(self._encoder.encode_texts(texts[start : start + _TEXTS_AT_ONCE]))
        return np.concatenate(parts)

    def code_items(
        self, item_ids: Sequence[str], vectors: FloatArray | None, taken: CodeArray
    ) -> CodeArray:
        """Codes (N, L) for new items, unique under the tokenizer's own policy.

        Args:
            item_ids: N ids that no item has had.
            vectors: (N, D); None for a quantizer that is not fitted to any.
            taken: (M, L) codes that none of them gets.

        Raises:
            CapacityError: no room for all of them.
            DataError: vectors of another width, or not finite.
        """
        fitted = self.tokenizer.fitted
        if vectors is not None:
            check_vectors(vectors, "the embeddings of the new items", fitted.dimensions)
        given = FitInput(tuple(item_ids), vectors, subject=fitted.subject)
        quantizer = self.tokenizer.quantizer
        with self._lock:
            raw = np.zeros((len(item_ids), self.tokenizer.n_levels), dtype=np.int32)
            if quantizer.codebooks:
                raw = quantizer.encode(given)
            return code_fresh(self.tokenizer, given, raw, taken)

    def encode_texts(self, texts: Sequence[str]) -> list[str]:
        """The semantic ID that each text is nearest to, whoever has it.

        A text that is no item's is read as an item of which only the title is known.

        Raises:
            DataError: as for `embed_texts`.
            ModelError: as for `embed_texts`.
        """
        if not texts:
            return []
        rendered = [self.render_text({"title": text}) or read_field(text) for text in texts]
        vectors = self.embed_texts(rendered)
        with self._lock:
            codes = self.tokenizer.quantize(vectors)
        # Where a last level only tells alike items apart, the first of them stands for all.
        missing = self.tokenizer.n_levels - codes.shape[1]
        codes = np.pad(codes, ((0, 0), (0, missing)))
        return format_sids(codes, self.tokenizer.fitted.prefix).to_list()

    @cached_property
    def _text_fields(self) -> tuple[tuple[str, ...], int | None]:
        if self._sources.data is None:
            raise DataError(self._explain_missing())
        values = strip_header(self._sources.data.recipe)
        recipe = parse_recipe(DataRecipe, values, source=f"{self._sources.data_folder}/{MANIFEST}")
        return recipe.text_fields, recipe.max_field_chars

    @cached_property
    def _encoder(self) -> TextEncoder:
        """The encoder, once it has shown that it gives known items the codes that they have."""
        if self._sources.embed is None or not self.tokenizer.fitted.dimensions:
            raise DataError(self._explain_missing())
        recipe = parse_recipe(EmbedRecipe, strip_header(self._sources.embed.recipe))
        _log.info("loading the encoder %s of the items' texts", recipe.encoder)
        encoder = build_later_encoder(recipe, self._read_texts)
        self._check_space(encoder)
        return encoder

    def _read_texts(self) -> list[str]:
        return self._read_items()["text"].to_list()

    def _read_items(self) -> pl.DataFrame:
        assert self._sources.data_folder is not None, "the caller has looked"
        path = self._sources.data_folder / "items.parquet"
        try:
            table = pl.read_parquet(path, columns=["item_id", "text"])
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"the encoder needs the items' texts, and {path} cannot be read: {error}; restore "
                f"it, or send `embedding` with the items"
            ) from error
        return table.with_columns(pl.col("text").fill_null(""))

    def _check_space(self, encoder: TextEncoder) -> None:
        """Raise unless known items get the codes that they had when the tokenizer was made."""
        raw, folder = self.tokenizer.raw_codes, self._sources.data_folder
        if raw is None or folder is None or not (folder / "items.parquet").is_file():
            return
        items = self._read_items().filter(pl.col("item_id").is_in(list(self.tokenizer.item_ids)))
        items = items.gather_every(max(1, len(items) // _CHECKED_ITEMS))
        if items.is_empty():
            return
        found = self.tokenizer.quantize(encoder.encode_texts(items["text"].to_list()))
        rows = self.tokenizer.find_rows(items["item_id"].to_list())
        share = float((found == raw[rows]).all(axis=1).mean())
        if share < KEPT_SHARE:
            raise DataError(
                f"of {len(rows)} items that the tokenizer knows, the encoder gives only "
                f"{share:.0%} the codes that they have (at least {KEPT_SHARE:.0%} are needed): it "
                f"is not the one that the tokenizer was fitted with; restore that one, or send "
                f"`embedding` with the items"
            )

    def _explain_missing(self) -> str:
        why = self._sources.missing or (
            f"the codes of quantizer {self.tokenizer.recipe.quantizer!r} do not come from texts"
        )
        return (
            f"this server cannot embed texts: {why}; send `embedding` with the items (the vector "
            f"of {self.tokenizer.fitted.dimensions} numbers that your encoder gives), or put the "
            f"artefact back and start again"
        )


def open_encoder(path: Path, sids: Mapping[str, str], codebook_sizes: Sequence[int]) -> ItemEncoder:
    """The encoder of a tokenizer artefact.

    Args:
        path: the artefact, or what `save_pretrained` wrote.
        sids: the semantic ID of each of the model's items.
        codebook_sizes: of the model's tokens.

    Raises:
        ArtifactError: no tokenizer.
        DataError: a tokenizer that has no codes to give to items that come later.
        ModelError: not the tokenizer that the model has its items from.
    """
    tokenizer = SemanticIdTokenizer.from_pretrained(path)
    own = dict(zip(tokenizer.item_ids, tokenizer.sids, strict=True))
    if own != sids or tokenizer.codebook_sizes != tuple(codebook_sizes):
        differ = sum(own.get(item_id) != sid for item_id, sid in sids.items())
        raise ModelError(
            f"{path} is not the tokenizer that the model has its items from: {differ:,} of the "
            f"model's {len(sids):,} items have another semantic ID there, or none, and it names "
            f"{len(own):,}; give the version that the model was trained on or refreshed with"
        )
    sources = find_sources(path)
    if sources.missing:
        _log.warning("texts cannot be embedded, only `embedding` is taken: %s", sources.missing)
    return ItemEncoder(tokenizer, sources)


def find_encoder(
    named: Path | None,
    model: Path | None,
    sids: Mapping[str, str],
    codebook_sizes: Sequence[int],
    *,
    loss: str,
) -> tuple[ItemEncoder | None, str]:
    """The encoder of a server's model, and why there is none where there is none.

    Args:
        named: a tokenizer artefact that must do; None takes the one that the model names, where it
            is still there and works.
        model: the model's directory; None if it has none.
        sids: as for `open_encoder`.
        codebook_sizes: as for `open_encoder`.
        loss: what goes without it, for the log.

    Raises:
        GenrecError: a tokenizer that was named and is not the model's, as `open_encoder` says.
    """
    chosen = named or (find_tokenizer(model) if model else None)
    if chosen is None:
        return None, "it was started without the model's tokenizer, and that is not beside it"
    try:
        return open_encoder(chosen, sids, codebook_sizes), ""
    except (ArtifactError, DataError, ModelError) as error:
        if named is not None:
            raise
        _log.warning("%s: %s", loss, error)
        return None, str(error)


def find_tokenizer(model: Path) -> Path | None:
    """The tokenizer artefact that a model was trained on or refreshed with, if it is still there.

    It is looked for where it was then, and beside the model.
    """
    manifest = _read_manifest(model)
    if manifest is None or "tokenize" not in manifest.inputs:
        return None
    found = _find_input(manifest, "tokenize", model)
    return found[0] if found else None


def find_sources(tokenizer: Path) -> Sources:
    """What a tokenizer was made with: looked for where it was then, and beside the tokenizer."""
    found = _read_manifest(tokenizer)
    if found is None:
        return Sources(missing=f"{tokenizer} does not say which embeddings it was fitted to")
    folder, manifest = tokenizer, found
    while "embed" not in manifest.inputs:
        # A version with items removed names only the one before.
        if "tokenize" not in manifest.inputs:
            return Sources()
        parent = _find_input(manifest, "tokenize", folder)
        if parent is None:
            return Sources(missing=_describe_input(manifest, "tokenize"))
        folder, manifest = parent
    embed = _find_input(manifest, "embed", folder)
    if embed is None:
        return Sources(missing=_describe_input(manifest, "embed"))
    data = _find_input(embed[1], "data", folder)
    if data is None:
        return Sources(embed[1], missing=_describe_input(embed[1], "data"))
    return Sources(embed[1], data[1], data[0])


def _find_input(manifest: Manifest, step: str, beside: Path) -> tuple[Path, Manifest] | None:
    """An input's directory and manifest; no other artefact is taken for it."""
    record = manifest.inputs[step]
    for folder in _list_places(Path(record["path"]), beside, step):
        found = _read_manifest(folder)
        if found is not None and found.digest == record["digest"]:
            return folder, found
    return None


def _list_places(recorded: Path, beside: Path, step: str) -> Iterator[Path]:
    yield recorded
    yield beside.parent / recorded.name
    yield beside.parent / {"embed": "embeddings", "tokenize": "tokenizer"}.get(step, step)


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder, "the artefact")
    except ArtifactError:
        return None


def _describe_input(manifest: Manifest, step: str) -> str:
    record = manifest.inputs[step]
    return (
        f"the {step} artefact that it was made with (digest {record['digest'][:12]}) is neither at "
        f"{record['path']} nor beside the tokenizer (of data and embeddings the {MANIFEST} is "
        f"enough, of lsa's data also items.parquet)"
    )
