"""New versions of a tokenizer: what each change keeps, as properties, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import CapacityError, DataError, UnknownItemError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.quantizer import QUANTIZERS
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import fit_tokenizer
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.tokenizers.update import Changes, add_items, diff_tokenizers, remove_items

from .conftest import plant_clusters

VECTORS = plant_clusters(120, n_clusters=5, dimensions=4, noise=0.02)
POLICIES = ("assign", "sinkhorn", "suffix")


def take(rows: list[int] | range) -> FitInput:
    return FitInput(tuple(f"i{row}" for row in rows), VECTORS[list(rows)])


def fit(policy: str, n_items: int = 30) -> SemanticIdTokenizer:
    recipe = TokenizeRecipe.model_validate(
        {
            "quantizer": "rqkmeans",
            "codebook_sizes": [4, 40],
            "unique": policy,
            "uniqueness": {"suffix_room": 60},
        }
    )
    return fit_tokenizer(recipe, take(range(n_items))).tokenizer


FITTED = {policy: fit(policy) for policy in POLICIES}


def list_codes(tokenizer: SemanticIdTokenizer) -> dict[str, tuple[int, ...]]:
    return dict(zip(tokenizer.item_ids, map(tuple, tokenizer.codes.tolist()), strict=True))


def list_retired(tokenizer: SemanticIdTokenizer) -> dict[str, tuple[int, ...]]:
    lineage = tokenizer.lineage
    codes = map(tuple, lineage.retired_codes.tolist())
    return dict(zip(lineage.retired_ids, codes, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    steps=st.lists(
        st.tuples(st.booleans(), st.sets(st.integers(0, 69), min_size=1, max_size=12)), max_size=5
    ),
    reuse=st.booleans(),
)
def test_nothing_ever_moves_and_no_code_is_given_twice(
    policy: str, steps: list[tuple[bool, set[int]]], reuse: bool
) -> None:
    tokenizer = FITTED[policy]
    for is_addition, rows in steps:
        before, retired = list_codes(tokenizer), list_retired(tokenizer)
        known = [row for row in sorted(rows) if f"i{row}" in before]
        fresh = [row for row in sorted(rows) if f"i{row}" not in before]
        if is_addition and fresh:
            new, changes = add_items(tokenizer, take(fresh), reuse_removed=reuse)
            assert changes.added == tuple(f"i{row}" for row in fresh)
            assert new.item_ids == (*tokenizer.item_ids, *changes.added)
            assert set(changes.returned) == {item for item in changes.added if item in retired}
        elif not is_addition and known and len(known) < tokenizer.n_items:
            new, changes = remove_items(tokenizer, [f"i{row}" for row in known])
            assert set(changes.removed) == {f"i{row}" for row in known}
        else:
            continue
        after, left = list_codes(new), list_retired(new)
        assert all(before[item] == after[item] for item in before if item in after)
        assert all(retired[item] == after[item] for item in changes.returned)
        assert not changes.moved
        assert reuse or not changes.reused
        assert not set(after.values()) & set(left.values())
        assert len({*after.values(), *left.values()}) == len(after) + len(left)
        assert new.lineage.version == tokenizer.lineage.version + 1
        assert new.raw_codes is not None and len(new.raw_codes) == new.n_items
        assert diff_tokenizers(tokenizer, new) == changes
        tokenizer = new


@pytest.mark.parametrize("policy", POLICIES)
def test_adding_and_removing_gives_the_old_set(policy: str) -> None:
    old = FITTED[policy]
    added, _ = add_items(old, take(range(30, 60)))
    back, changes = remove_items(added, [f"i{row}" for row in range(30, 60)])
    assert list_codes(back) == list_codes(old)
    assert changes.count_all() == {
        "added": 0, "removed": 30, "returned": 0, "reused": 0, "moved": 0
    }  # fmt: skip
    assert list_retired(back) == {
        item: code for item, code in list_codes(added).items() if item not in old.item_ids
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_one_batch_or_two_keep_the_same_promises(policy: str) -> None:
    old = FITTED[policy]
    at_once, _ = add_items(old, take(range(30, 60)))
    again, _ = add_items(old, take(range(30, 60)))
    first, _ = add_items(old, take(range(30, 45)))
    second, _ = add_items(first, take(range(45, 60)))
    assert list_codes(at_once) == list_codes(again)
    assert second.item_ids == at_once.item_ids
    np.testing.assert_array_equal(second.raw_codes, at_once.raw_codes)
    assert list_codes(second).items() >= list_codes(first).items()
    if policy == "suffix":  # which counts up, so that it does not matter how items come
        assert list_codes(second) == list_codes(at_once)


def test_a_removed_item_that_comes_back_has_its_codes_again() -> None:
    old = FITTED["assign"]
    gone, _ = remove_items(old, ["i3", "i7", "i3"])
    assert list_retired(gone) == {item: list_codes(old)[item] for item in ("i3", "i7")}
    back, changes = add_items(gone, take([7, 31, 3]))
    assert changes == Changes(added=("i7", "i31", "i3"), returned=("i7", "i3"))
    assert list_codes(back).items() >= list_codes(old).items()
    assert list_retired(back) == {}


def test_codes_of_removed_items_are_given_out_only_when_asked() -> None:
    old = FITTED["assign"]
    gone, _ = remove_items(old, ["i3"])
    # The same vector under another id: it would get the very codes of i3.
    twin = FitInput(("twin",), VECTORS[3:4])
    careful, changes = add_items(gone, twin)
    assert list_codes(careful)["twin"] != list_codes(old)["i3"]
    assert changes.reused == ()
    assert list_retired(careful) == list_retired(gone)
    again, changes = add_items(gone, twin, reuse_removed=True, parent="abc")
    assert list_codes(again)["twin"] == list_codes(old)["i3"]
    assert changes == Changes(added=("twin",), reused=("twin",))
    assert list_retired(again) == {}
    assert again.lineage.parent == "abc"
    # The way back is closed: i3 is an item like any other now.
    late, changes = add_items(again, take([3]), reuse_removed=True)
    assert changes == Changes(added=("i3",))
    assert list_codes(late)["i3"] != list_codes(old)["i3"]


def test_a_diff_of_strangers_counts_what_moved() -> None:
    changes = diff_tokenizers(FITTED["assign"], FITTED["suffix"])
    assert changes.moved == FITTED["assign"].item_ids
    other = fit("assign", 40)
    changes = diff_tokenizers(FITTED["assign"], other)
    assert len(changes.added) == 10 and changes.removed == ()
    assert changes.describe()["counts"]["added"] == 10
    assert changes.describe()["added"][0] == "i30"


def test_known_and_repeated_items_are_all_named() -> None:
    old = FITTED["assign"]
    with pytest.raises(DataError, match=r"--skip-known\): 2 problems\n.*'i2' has.*\n.*'i4' has"):
        add_items(old, take([2, 31, 4]))
    with pytest.raises(DataError, match="'i31' comes twice"):
        add_items(old, take([31, 31]))
    with pytest.raises(DataError, match="nothing to add"):
        add_items(old, take([]))
    with pytest.raises(DataError, match="names items, but these are users"):
        add_items(old, replace(take([31]), subject="users"))
    with pytest.raises(DataError, match="2 dimensions, but the tokenizer was fitted to 4"):
        add_items(old, FitInput(("x",), VECTORS[:1, :2]))
    with pytest.raises(DataError, match="NaN or infinity"):
        add_items(old, FitInput(("x",), VECTORS[:1] * np.nan))


def test_removals_that_make_no_sense_are_refused() -> None:
    old = FITTED["assign"]
    with pytest.raises(UnknownItemError, match=r"knows 30 items(.|\n)*'nope'(.|\n)*'none'"):
        remove_items(old, ["i1", "nope", "none"])
    with pytest.raises(DataError, match="all 30 items would be removed"):
        remove_items(old, old.item_ids)
    with pytest.raises(DataError, match="no item to remove was named"):
        remove_items(old, [])


def test_a_full_code_space_is_refused() -> None:
    recipe = TokenizeRecipe(quantizer="rqkmeans", codebook_sizes=(4, 8))
    full = fit_tokenizer(recipe, take(range(32))).tokenizer
    with pytest.raises(CapacityError, match="of which 32 are taken"):
        add_items(full, take([40]))
    gone, _ = remove_items(full, ["i5"])
    with pytest.raises(CapacityError, match="of which 32 are taken"):
        add_items(gone, take([40]))
    assert add_items(gone, take([40]), reuse_removed=True)[1].reused == ("i40",)
    suffixes = fit_tokenizer(
        TokenizeRecipe(quantizer="rqkmeans", codebook_sizes=(2, 2), unique="suffix"),
        take(range(32)),
    ).tokenizer
    with pytest.raises(CapacityError, match=r"uniqueness\.suffix_room"):
        add_items(suffixes, take(range(40, 100)))


class Numbers:
    """A control: items are numbered, and their IDs are words."""

    codebooks = ()
    codebook_sizes = (3, 10)

    def __init__(self, recipe: TokenizeRecipe, dimensions: int) -> None:
        self.dimensions = dimensions

    def fit(self, given: FitInput) -> list[dict[str, float]]:
        return []

    def encode(self, given: FitInput) -> CodeArray:
        return np.array([divmod(int(item[1:]), 10) for item in given.item_ids], dtype=np.int32)

    def list_weights(self) -> dict[str, np.ndarray]:
        return {}

    def restore_weights(self, weights: dict[str, np.ndarray]) -> None:
        assert not weights

    def spell_codes(self, codes: CodeArray) -> list[str]:
        return [f"number {tens}{ones}" for tens, ones in codes.tolist()]


class FreeNumbers(Numbers):
    """The same, where a new item takes the next number that is free."""

    def extend_codes(self, n_items: int, taken: CodeArray) -> CodeArray:
        used = set(map(tuple, taken.tolist()))
        free = [divmod(number, 10) for number in range(30) if divmod(number, 10) not in used]
        return np.array(free[:n_items], dtype=np.int32)


@pytest.mark.parametrize("kind", [Numbers, FreeNumbers])
def test_codes_that_come_from_no_vector_are_extended(
    kind: type[Numbers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(QUANTIZERS, "numbers", kind)
    recipe = TokenizeRecipe(quantizer="numbers")
    old = fit_tokenizer(recipe, FitInput(("i0", "i1", "i2"))).tokenizer
    gone, _ = remove_items(old, ["i1"])
    assert gone.sids == ("number 00", "number 02")
    new, changes = add_items(gone, FitInput(("i12", "i1", "i20")))
    assert changes == Changes(added=("i12", "i1", "i20"), returned=("i1",))
    wanted = {"i12": (0, 3), "i20": (0, 4)} if kind is FreeNumbers else {"i12": (1, 2)}
    assert list_codes(new).items() >= wanted.items()
    assert list_codes(new)["i1"] == (0, 1) and new.encode(["i1"]) == ["number 01"]
    np.testing.assert_array_equal(new.raw_codes, new.codes)
    if kind is Numbers:
        with pytest.raises(DataError, match=r"codes that others have(.|\n)*1 problem(.|\n)*'x12'"):
            add_items(new, FitInput(("x12", "i13")))
