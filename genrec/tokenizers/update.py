"""New versions of a tokenizer: items that come, go and return, while all others keep their codes.

Owns the rule of each change and how two versions differ. Knows neither artefacts nor models.

The quantizer stays as it was fitted. New items get its codes under the tokenizer's own policy, with
every code in use taken, so that no old item moves. The codes of a removed item stay reserved: a
model that knows the item would take a new one for it. They are the item's own if it comes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.errors import DataError, ModelError, join_problems
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.quantizer import ExtendsCodes, SpellsCodes, check_vectors
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import separate_items
from genrec.tokenizers.tokenizer_files import Lineage
from genrec.tokenizers.uniqueness.assign import CodeArray

Rows = set[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two versions, as item ids in the order of their version.

    Attributes:
        added: items of the new version only.
        removed: items of the old version only.
        returned: those added that had been removed before, and have their own codes again.
        reused: those added whose codes were a removed item's.
        moved: items of both whose codes differ; none where one was made from the other by `add`
            and `remove`.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()

    def count_all(self) -> dict[str, int]:
        """How many items each change has."""
        return {field.name: len(getattr(self, field.name)) for field in fields(self)}

    def describe(self) -> dict[str, Any]:
        """Plain JSON values: the counts first."""
        lists = {name: list(ids) for name, ids in asdict(self).items()}
        return {"schema": 1, "counts": self.count_all(), **lists}


def diff_tokenizers(old: SemanticIdTokenizer, new: SemanticIdTokenizer) -> Changes:
    """What differs from one tokenizer to another, related or not."""
    known = {item_id: row for row, item_id in enumerate(old.item_ids)}
    home = np.array([known.get(item_id, -1) for item_id in new.item_ids], dtype=np.int64)
    both = np.flatnonzero(home >= 0)
    if old.n_levels == new.n_levels:
        differs = (old.codes[home[both]] != new.codes[both]).any(axis=1)
    else:
        differs = np.ones(len(both), dtype=np.bool_)
    left = set(new.item_ids)
    removed = tuple(item_id for item_id in old.item_ids if item_id not in left)
    retired = _list_retired(old.lineage)
    gone = set(retired.values()) | _collect_rows(old.codes, [known[item] for item in removed])
    added = np.flatnonzero(home < 0).tolist()
    codes = [tuple(row) for row in new.codes[added].tolist()]
    ids = [new.item_ids[row] for row in added]
    pairs = list(zip(ids, codes, strict=True))
    returned = {item_id for item_id, code in pairs if retired.get(item_id) == code}
    return Changes(
        added=tuple(ids),
        removed=removed,
        returned=tuple(item_id for item_id in ids if item_id in returned),
        reused=tuple(item for item, code in pairs if code in gone and item not in returned),
        moved=tuple(new.item_ids[row] for row in both[differs].tolist()),
    )


def add_items(
    tokenizer: SemanticIdTokenizer,
    given: FitInput,
    *,
    reuse_removed: bool = False,
    parent: str | None = None,
) -> tuple[SemanticIdTokenizer, Changes]:
    """The next version of a tokenizer, with new items after the old ones, and what changed.

    Args:
        tokenizer: the version before; unchanged.
        given: the new items only, with vectors or data as the quantizer was fitted to.
        reuse_removed: whether codes of removed items may be given to others.
        parent: the digest of the version before, for the record.

    Raises:
        CapacityError: there is no room for every item.
        DataError: items that the tokenizer has already, all of them named, or input that the
            quantizer cannot encode.
    """
    _check_new(tokenizer, given)
    retired = _list_retired(tokenizer.lineage)
    returning = np.array([item_id in retired for item_id in given.item_ids], dtype=np.bool_)
    own = [retired[item_id] for item_id in given.item_ids if item_id in retired]
    kept_free = own if reuse_removed else list(retired.values())
    taken = np.concatenate([tokenizer.codes, _stack_rows(kept_free, tokenizer.n_levels)])
    codes = np.zeros((given.n_items, tokenizer.n_levels), dtype=np.int32)
    codes[returning] = _stack_rows(own, tokenizer.n_levels)
    raw = tokenizer.quantizer.encode(given) if tokenizer.quantizer.codebooks else codes
    fresh = np.flatnonzero(~returning)
    if len(fresh):
        codes[fresh] = code_fresh(tokenizer, given.select_items(fresh), raw[fresh], taken)
    in_use = _collect_rows(codes, range(len(codes)))
    left = {item: code for item, code in retired.items() if code not in in_use}
    new = _join_items(tokenizer, given.item_ids, codes, raw, _next(tokenizer, left, parent))
    return new, diff_tokenizers(tokenizer, new)


def remove_items(
    tokenizer: SemanticIdTokenizer, item_ids: Sequence[str], *, parent: str | None = None
) -> tuple[SemanticIdTokenizer, Changes]:
    """The next version of a tokenizer, without some items, and what changed.

    Their codes stay reserved. The other items keep their codes and their order.

    Args:
        tokenizer: the version before; unchanged.
        item_ids: items that go; repeats count once.
        parent: the digest of the version before, for the record.

    Raises:
        DataError: no item named, or none would be left.
        UnknownItemError: ids that the tokenizer does not have, all of them named.
    """
    rows = np.unique(np.array(tokenizer.find_rows(item_ids), dtype=np.int64))
    if not len(rows):
        raise DataError("no item to remove was named; give item ids, or a file with one a line")
    if len(rows) == tokenizer.n_items:
        raise DataError(
            f"all {tokenizer.n_items:,} {tokenizer.fitted.subject} would be removed, and a "
            f"tokenizer needs at least one; delete its directory instead"
        )
    retired = _list_retired(tokenizer.lineage)
    for row in rows.tolist():
        retired[tokenizer.item_ids[row]] = tuple(tokenizer.codes[row].tolist())
    stays = np.delete(np.arange(tokenizer.n_items), rows)
    new = SemanticIdTokenizer(
        [tokenizer.item_ids[row] for row in stays.tolist()],
        tokenizer.codes[stays],
        tokenizer.fitted,
        raw_codes=None if tokenizer.raw_codes is None else tokenizer.raw_codes[stays],
        sids=None if tokenizer.is_spelled else [tokenizer.sids[row] for row in stays.tolist()],
        lineage=_next(tokenizer, retired, parent),
    )
    return new, diff_tokenizers(tokenizer, new)


def check_successor(
    known: Mapping[str, str],
    codebook_sizes: Sequence[int],
    tokenizer: SemanticIdTokenizer,
    *,
    allow_reuse: bool = False,
) -> None:
    """Raise unless a model that knows these items may take over a tokenizer's items.

    What counts is what the model would see, not the versions between: tokens that it has, its own
    items where they were, and no stranger in a place that it knows another item by.

    Args:
        known: the semantic ID of each item that the model was trained with.
        codebook_sizes: of the model's tokens.
        tokenizer: the newer version.
        allow_reuse: whether an item may have the ID of one that is gone.

    Raises:
        ModelError: it is no descendant of the tokenizer that the model was trained with.
    """
    way_out = "give a version that `genrec tokenize add` or `remove` made, or train on this one"
    if tuple(codebook_sizes) != tokenizer.codebook_sizes:
        raise ModelError(
            f"the model has tokens for codebooks of {list(codebook_sizes)}, but this tokenizer has "
            f"{list(tokenizer.codebook_sizes)}; {way_out}"
        )
    sids = dict(zip(tokenizer.item_ids, tokenizer.sids, strict=True))
    holders = {sid: item_id for item_id, sid in known.items()}
    both = [item_id for item_id in known if item_id in sids]
    if not both:
        raise ModelError(
            f"the model and this tokenizer have no item in common ({len(known):,} and "
            f"{len(sids):,}); {way_out}"
        )
    problems = [
        f"{item_id!r} was {known[item_id]} and is {sids[item_id]}"
        for item_id in both
        if known[item_id] != sids[item_id]
    ]
    if problems:
        raise ModelError(
            join_problems(f"items have other semantic IDs than in training; {way_out}", problems)
        )
    reused = [
        f"{item_id!r} has {sid}, which was {holders[sid]!r}"
        for item_id, sid in sids.items()
        if holders.get(sid, item_id) != item_id
    ]
    if reused and not allow_reuse:
        raise ModelError(
            join_problems(
                "the model would take new items for ones that it knows; add them without "
                "--reuse-removed, or pass --allow-reuse",
                reused,
            )
        )


def _check_new(tokenizer: SemanticIdTokenizer, given: FitInput) -> None:
    fitted = tokenizer.fitted
    if given.subject != fitted.subject:
        raise DataError(
            f"the tokenizer names {fitted.subject}, but these are {given.subject}; "
            f"give embeddings of {fitted.subject}"
        )
    if not given.n_items:
        raise DataError("there is nothing to add: the tokenizer has all of these items already")
    known = set(tokenizer.item_ids)
    problems = [f"{item_id!r} has a semantic ID" for item_id in given.item_ids if item_id in known]
    counts = Counter(given.item_ids)
    problems += [f"{item_id!r} comes twice" for item_id, count in counts.items() if count > 1]
    if problems:
        raise DataError(
            join_problems("only new items can be added; leave these out (--skip-known)", problems)
        )
    if given.vectors is not None and fitted.dimensions:
        check_vectors(given.vectors, "the embeddings of the new items", fitted.dimensions)


def code_fresh(
    tokenizer: SemanticIdTokenizer, given: FitInput, raw: CodeArray, taken: CodeArray
) -> CodeArray:
    """Unique codes for items that no version has had, from the frozen quantizer.

    Args:
        tokenizer: whose quantizer and policy.
        given: the items.
        raw: their codes as the quantizer gave them.
        taken: (M, L) codes that none of them gets.

    Raises:
        CapacityError: there is no room for every item.
        DataError: a quantizer that cannot tell new items from old ones.
    """
    quantizer = tokenizer.quantizer
    if quantizer.codebooks:
        return separate_items(
            tokenizer.recipe,
            quantizer,
            given,
            raw,
            taken=taken,
            suffix_size=tokenizer.codebook_sizes[-1],
        ).codes
    if isinstance(quantizer, ExtendsCodes):
        return quantizer.extend_codes(given.n_items, taken)
    codes = quantizer.encode(given)
    seen = _collect_rows(taken, range(len(taken)))
    problems = []
    for item_id, row in zip(given.item_ids, map(tuple, codes.tolist()), strict=True):
        if row in seen:
            problems.append(f"{item_id!r}")
        seen.add(row)
    if problems:
        raise DataError(
            join_problems(
                f"quantizer {tokenizer.recipe.quantizer!r} gives these items codes that others "
                f"have; fit a tokenizer to the whole catalogue",
                problems,
            )
        )
    return codes


def _join_items(
    tokenizer: SemanticIdTokenizer,
    item_ids: Sequence[str],
    codes: CodeArray,
    raw: CodeArray,
    lineage: Lineage,
) -> SemanticIdTokenizer:
    sids: list[str] | None = None
    if not tokenizer.is_spelled:
        assert isinstance(tokenizer.quantizer, SpellsCodes), "other IDs are spelled by their codes"
        sids = [*tokenizer.sids, *tokenizer.quantizer.spell_codes(codes)]
    known = tokenizer.raw_codes
    return SemanticIdTokenizer(
        [*tokenizer.item_ids, *item_ids],
        np.concatenate([tokenizer.codes, codes]),
        tokenizer.fitted,
        raw_codes=None if known is None else np.concatenate([known, raw]),
        sids=sids,
        lineage=lineage,
    )


def _next(
    tokenizer: SemanticIdTokenizer, retired: dict[str, tuple[int, ...]], parent: str | None
) -> Lineage:
    codes = _stack_rows(list(retired.values()), tokenizer.n_levels)
    return Lineage(tokenizer.lineage.version + 1, parent, tuple(retired), codes)


def _list_retired(lineage: Lineage) -> dict[str, tuple[int, ...]]:
    """The removed items and their codes, in the order in which they went."""
    rows = (tuple(row) for row in lineage.retired_codes.tolist())
    return dict(zip(lineage.retired_ids, rows, strict=True))


def _collect_rows(codes: NDArray[np.int32], rows: Sequence[int]) -> Rows:
    return {tuple(row) for row in codes[np.array(rows, dtype=np.int64)].tolist()}


def _stack_rows(rows: Sequence[tuple[int, ...]], n_levels: int) -> CodeArray:
    return np.array(rows, dtype=np.int32).reshape(-1, n_levels)
