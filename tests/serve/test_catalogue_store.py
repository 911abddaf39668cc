"""The store with a real model: what readers see of changes, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from genrec.errors import ArtifactError, CapacityError, DataError, ModelError, UnknownItemError
from genrec.recommender import Recommender
from genrec.serve import item_codes
from genrec.serve.backend import Edition
from genrec.serve.catalogue_store import CatalogueStore, open_store
from genrec.serve.item_codes import NewItem
from genrec.serve.journal import Journal, StoreFullError
from genrec.serve.version_log import Pace
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sid_text import format_sid
from genrec.types import Filters

OpenStore = Callable[..., CatalogueStore]
LAMP = NewItem("lamp", "Pennywise Folding Lamp", categories="Home > Lamps", description="A lamp.")


@pytest.fixture
def open_it(recommender: Recommender, tiny_run: Path, tmp_path: Path) -> Iterator[OpenStore]:
    """A function that opens the one store of a test, closing it first if it is open."""
    held: list[CatalogueStore] = []

    def open_again(path: Path = tmp_path / "store", **values: object) -> CatalogueStore:
        while held:
            held.pop().close()
        given = {"model": tiny_run / "model"} | values
        store = open_store(path, recommender, **given)  # type: ignore[arg-type]
        held.append(store)
        return store

    yield open_again
    while held:
        held.pop().close()


@pytest.fixture
def store(open_it: OpenStore) -> CatalogueStore:
    """A store that holds the model's own items."""
    return open_it()


def answer_all(edition: Edition) -> set[str]:
    """The ids of everything that an edition can answer with."""
    recommender = edition.recommender
    mask = Filters(mask=edition.available)
    n_items = recommender.n_items if edition.available is None else int(edition.available.sum())
    history = [recommender.item_ids[0]]
    found = recommender.recommend(history, n_items, exclude_seen=False, filters=mask)
    return {answer.item_id for answer in found}


def read_content(edition: Edition) -> dict[str, tuple[str, str, bool]]:
    """What readers see of each item: title, semantic ID, whether it can be had."""
    catalogue = edition.recommender.catalogue
    available = np.ones(catalogue.n_items, bool) if edition.available is None else edition.available
    rows = zip(catalogue.item_ids, catalogue.titles, catalogue.sids, available, strict=True)
    return {item_id: (title, sid, bool(had)) for item_id, title, sid, had in rows}


def check_edition(edition: Edition) -> None:
    """The trie's leaves are the catalogue's semantic IDs, each the item's own."""
    recommender = edition.recommender
    trie = recommender.engine.trie  # type: ignore[attr-defined]
    level, nodes = 0, np.zeros(1, dtype=np.int64)
    spelled: list[list[int]] = [[]]
    while level < trie.n_levels:
        children = trie.expand(level, nodes)
        pairs = zip(children.parent_row.tolist(), children.code.tolist(), strict=True)
        spelled = [[*spelled[parent], code] for parent, code in pairs]
        nodes, level = children.node, level + 1
    items = trie.items(nodes).tolist()
    assert len(items) == recommender.n_items == len(recommender.catalogue.rows)
    for item, codes in zip(items, spelled, strict=True):
        assert recommender.catalogue.sids[item] == format_sid(codes)
    assert edition.available is None or len(edition.available) == recommender.n_items


def test_a_new_item_can_be_answered_with(store: CatalogueStore) -> None:
    before = store.edition
    done = store.add_items([LAMP, NewItem("desk", "Desk", price="$1,200.50")])
    assert (done.version, done.n_items, before.version) == (2, 62, 1)
    assert [(item_id, status) for item_id, _, status in done.entries] == [
        ("lamp", "added"),
        ("desk", "added"),
    ]
    after = store.edition
    check_edition(after)
    only = after.recommender.recommend(["B0001"], 1, filters=Filters(allow=["lamp"]))
    assert [(a.item_id, a.title, a.sid) for a in only] == [
        ("lamp", "Pennywise Folding Lamp", done.entries[0][1])
    ]
    assert after.recommender.recommend(["lamp", "desk"], 3)
    by_category = after.recommender.recommend(["B0001"], 1, filters=Filters(categories=["lamps"]))
    assert by_category[0].item_id == "lamp"
    assert answer_all(after) == {*before.recommender.item_ids, "lamp", "desk"}
    # Who holds the edition before goes on with it.
    assert answer_all(before) == set(before.recommender.item_ids)
    assert before.recommender.n_items == 60
    assert before.recommender.engine._model is after.recommender.engine._model  # type: ignore[attr-defined]


def test_no_code_moves_and_none_comes_twice(store: CatalogueStore, tiny_run: Path) -> None:
    own = SemanticIdTokenizer.from_pretrained(tiny_run / "tokenizer")
    given = dict(zip(own.item_ids, own.sids, strict=True))
    many = [NewItem(f"same{number}", "Pennywise Folding Lamp") for number in range(20)]
    sids = {item_id: sid for item_id, sid, _ in store.add_items(many).entries}
    assert len(set(sids.values()) | set(given.values())) == 80
    store.remove_items(["same3", own.item_ids[5]])
    reserved = {sids["same3"], given[own.item_ids[5]]}
    later = store.add_items([NewItem(f"late{number}", many[0].title) for number in range(20)])
    assert not reserved & {sid for _, sid, _ in later.entries}
    back = store.add_items([many[3], NewItem(own.item_ids[5], "Own title")])
    assert back.entries == (
        ("same3", sids["same3"], "returned"),
        (own.item_ids[5], given[own.item_ids[5]], "returned"),
    )
    assert {k: sid for k, (_, sid, _) in read_content(store.edition).items() if k in given} == given
    check_edition(store.edition)


def test_the_same_request_again_changes_nothing(open_it: OpenStore) -> None:
    store = open_it()
    first = store.add_items([LAMP])
    again = store.add_items([LAMP])
    assert (again.version, again.entries[0][1:]) == (2, (first.entries[0][1], "unchanged"))
    changed = store.add_items([NewItem("lamp", "Lamp, new name")])
    assert (changed.version, changed.entries[0][1:]) == (3, (first.entries[0][1], "updated"))
    assert store.edition.recommender.find_titles(["lamp"]) == ["Lamp, new name"]
    own = store.edition.recommender.catalogue
    title, categories = own.titles[0], own.index["categories"][0]
    same = NewItem(own.item_ids[0], title, categories=categories, description="other words")
    assert store.add_items([same]).entries[0][2] == "unchanged"
    assert store.set_availability({"lamp": True}).version == 3
    assert store.roll_back(3).version == 3
    assert store.info.updated == 1


def test_removed_items_are_never_answered(store: CatalogueStore) -> None:
    before = store.edition
    gone = list(before.recommender.item_ids[10:20])
    done = store.remove_items(gone)
    assert (done.version, done.n_items, done.removed) == (2, 50, tuple(gone))
    assert answer_all(store.edition) == set(before.recommender.item_ids) - set(gone)
    check_edition(store.edition)
    with pytest.raises(UnknownItemError, match=r"\(version 2\) lacks(.|\n)*2 problems"):
        store.remove_items(["B0030", gone[0], "nothing"])
    assert store.info.version == 2
    assert store.remove_items(["B0030", gone[0]], unknown="skip").removed == ("B0030",)
    assert store.remove_items([gone[0]], unknown="skip").version == 3


def test_items_that_cannot_be_had_are_never_answered(store: CatalogueStore) -> None:
    off = ["B0003", "B0004"]
    recommender = store.edition.recommender
    done = store.set_availability(dict.fromkeys(off, False))
    assert (done.version, done.n_switched, store.n_unavailable) == (2, 2, 2)
    assert answer_all(store.edition) == set(recommender.item_ids) - set(off)
    assert store.edition.recommender is recommender  # nothing was built anew
    assert recommender.recommend(["B0003"], 2)  # but a history may hold it
    store.add_items([NewItem("new", "Seasonal Lamp", available=False)])
    assert store.n_unavailable == 3 and "new" not in answer_all(store.edition)
    store.add_items([NewItem("new", "Seasonal Lamp", available=True)])
    store.set_availability({"B0003": True, "B0004": False})
    assert answer_all(store.edition) == {*recommender.item_ids, "new"} - {"B0004"}
    store.remove_items(["B0004"])
    assert store.edition.available is None and store.n_unavailable == 0
    with pytest.raises(UnknownItemError, match="'B0004'"):
        store.set_availability({"B0004": True})


def test_versions_survive_and_can_be_had_back(open_it: OpenStore) -> None:
    seen = {}
    store = open_it()

    def note() -> None:
        seen[store.info.version] = read_content(store.edition)

    note()
    for change in (
        lambda: store.add_items([LAMP, NewItem("B0007", "Another title")]),
        lambda: store.remove_items(["B0001", "B0007"]),
        lambda: store.set_availability({"B0002": False, "lamp": False}),
        lambda: store.add_items([NewItem("B0001", "B one is back"), NewItem("desk", "Desk")]),
        lambda: store.remove_items(["lamp"]),
        lambda: store.roll_back(4),
        lambda: store.roll_back(1),
        lambda: store.roll_back(6),
        lambda: store.roll_back(7),
    ):
        change()
        note()
    assert (seen[7], seen[8], seen[9], seen[10]) == (seen[4], seen[1], seen[6], seen[7])
    store = open_it()
    assert read_content(store.edition) == seen[10]
    check_edition(store.edition)
    told = [(i.action, i.added, i.updated, i.removed, i.switched) for i in store.list_versions()]
    assert told[:6] == [
        ("start", 0, 0, 0, 0),
        ("add", 1, 1, 0, 0),
        ("remove", 0, 0, 2, 0),
        ("availability", 0, 0, 0, 2),
        ("add", 2, 0, 0, 0),
        ("remove", 0, 0, 1, 0),
    ]
    assert [info.content_of for info in store.list_versions()[6:]] == [4, 1, 6, 7]
    assert [info.items for info in store.list_versions()] == [len(seen[v]) for v in range(1, 11)]
    for version, content in seen.items():
        store.roll_back(version)
        assert read_content(store.edition) == content
        check_edition(store.edition)
    for wrong in (0, 99):
        with pytest.raises(DataError, match=rf"version {wrong} is not there; 1 to \d+ can"):
            store.roll_back(wrong)


def test_a_change_that_the_disk_refuses_is_none(
    store: CatalogueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    store.follow(lambda edition: told.append(edition.version))

    def refuse(*_: object) -> None:
        raise StoreFullError("the disk is full")

    before = store.edition
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", refuse)
        for change in (
            lambda: store.add_items([LAMP]),
            lambda: store.remove_items(["B0001"]),
            lambda: store.set_availability({"B0001": False}),
        ):
            with pytest.raises(StoreFullError):
                change()
    assert store.edition is before and store.info.version == 1 and store.n_unavailable == 0
    assert store.add_items([LAMP]).entries[0][2] == "added"
    assert told == [1, 2]


def test_what_is_wrong_with_a_batch_is_said_at_once(store: CatalogueStore) -> None:
    with pytest.raises(
        DataError, match=r"'x' comes twice(.|\n)*' y' holds control(.|\n)*'a\\x00b'"
    ):
        store.add_items([NewItem(i, "t") for i in ("x", "x", " y", "a\0b", "\ud800")])
    for nothing in (
        lambda: store.add_items([]),
        lambda: store.remove_items([]),
        lambda: store.set_availability({}),
    ):
        with pytest.raises(DataError, match="names no item; give at least one"):
            nothing()
    with pytest.raises(DataError, match="all 60 items would be removed"):
        store.remove_items(list(store.edition.recommender.item_ids))
    with pytest.raises(DataError, match=r"2 problems\n.*'a': neither text nor(.|\n)*'b': an emb"):
        store.add_items([NewItem("a", " \0 "), NewItem("b", "t", embedding=[1.0, 2.0])])
    with pytest.raises(DataError, match="NaN or infinity"):
        store.add_items([NewItem("b", "t", embedding=[float("nan")] * 16)])
    assert store.info.version == 1


def test_a_whole_catalogue_can_be_renamed(store: CatalogueStore) -> None:
    renamed = [NewItem(i, f"new {i}") for i in store.edition.recommender.item_ids]
    assert store.add_items(renamed).n_items == 60
    check_edition(store.edition)
    store.roll_back(1)
    title = store.edition.recommender.find_titles(["B0001"])
    assert title and title != ["new B0001"]
    check_edition(store.edition)


def test_an_embedding_takes_the_place_of_a_text(
    store: CatalogueStore, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = SemanticIdTokenizer.from_pretrained(tiny_run / "tokenizer")
    vectors = np.eye(16, dtype=np.float32)[:2]
    monkeypatch.setattr(item_codes.ItemEncoder, "embed_texts", None)
    items = [NewItem(f"e{row}", "", embedding=vectors[row].tolist()) for row in range(2)]
    codes = tokenizer.quantize(vectors)
    for (_, sid, _), raw in zip(store.add_items(items).entries, codes, strict=True):
        assert sid.startswith(format_sid(raw[:2]))  # the last level may differ, to be unique


def test_hostile_titles_stay_text(store: CatalogueStore) -> None:
    hostile = [
        "<a_1><b_2><c_3>", "{{ 7 * 7 }}", "<|im_start|>system", "\0\x1b[31m\u202egnp", "</s>" * 50,
        "\ud83d half", '"}\n{"version": 99}',
    ]  # fmt: skip
    done = store.add_items([NewItem(f"h{n}", text) for n, text in enumerate(hostile)])
    assert done.n_items == 67
    titles = store.edition.recommender.find_titles([f"h{n}" for n in range(7)])
    assert titles[0] == "<a_1><b_2><c_3>" and titles[3] == "[31mgnp"
    recommender = store.edition.recommender
    found = recommender.recommend([f"h{n}" for n in range(7)], 60)
    assert {answer.item_id for answer in found} == set(recommender.item_ids[:60])


def test_no_room_for_an_item_is_no_change(store: CatalogueStore) -> None:
    most = 8**3 - 60
    many = [NewItem(f"m{n}", "", embedding=[1.0] * 16) for n in range(most + 1)]
    with pytest.raises(CapacityError):
        store.add_items(many)
    assert store.info.version == 1
    store.add_items(many[:-1])
    check_edition(store.edition)
    store.remove_items(["m0"])
    with pytest.raises(CapacityError):  # its codes stay reserved
        store.add_items(many[-1:])
    assert store.add_items(many[:1]).entries[0][2] == "returned"


def test_readers_always_see_a_whole_edition(store: CatalogueStore) -> None:
    done = threading.Event()
    faults: list[BaseException] = []

    def read() -> None:
        try:
            while not done.wait(0.002):
                edition = store.edition
                has_pair = [i in edition.recommender.catalogue.rows for i in ("one", "two")]
                assert has_pair[0] == has_pair[1]
                check_edition(edition)
        except AssertionError as fault:
            faults.append(fault)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    pair = [NewItem("one", "Lamp"), NewItem("two", "Desk")]
    for _ in range(3):
        store.add_items(pair)
        store.set_availability({"one": False, "two": False})
        store.remove_items(["one", "two"])
    done.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert store.info.version == 10


def test_writers_wait_for_each_other(store: CatalogueStore) -> None:
    told: list[int] = []
    store.follow(lambda edition: told.append(edition.version))
    writers = [
        threading.Thread(target=store.add_items, args=([NewItem(f"w{number}", "Lamp")],))
        for number in range(6)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert told == list(range(1, 8))
    assert {f"w{number}" for number in range(6)} < set(store.edition.recommender.item_ids)
    check_edition(store.edition)


def test_texts_of_a_history_get_the_nearest_codes(store: CatalogueStore, tiny_run: Path) -> None:
    import polars as pl

    items = pl.read_parquet(tiny_run / "data" / "items.parquet").head(20)
    tokenizer = SemanticIdTokenizer.from_pretrained(tiny_run / "tokenizer")
    found = store.encode_texts(items["title"].to_list())
    assert len(found) == 20 and store.encode_texts([]) == []
    near = sum(
        sid.split("><")[0] == own.split("><")[0]
        for sid, own in zip(found, tokenizer.encode(items["item_id"].to_list()), strict=True)
    )
    assert near > 8  # of 20, by the title alone; chance gives two or three
    assert store.encode_texts(["Lamp", "Lamp"])[0] == store.encode_texts(["Lamp"])[0]


def test_without_the_tokenizer_items_can_still_go_and_come_back(open_it: OpenStore) -> None:
    store = open_it(model=None)
    store.remove_items(["B0001"])
    assert store.add_items([NewItem("B0001", "Back")]).entries[0][2] == "returned"
    with pytest.raises(DataError, match=r"'new' is new and needs codes.*start it with --tokenizer"):
        store.add_items([NewItem("new", "New")])
    with pytest.raises(DataError, match="a text needs codes, and this server has none"):
        store.encode_texts(["x"])
    store = open_it()  # the tokenizer is back
    store.add_items([LAMP])
    content = read_content(store.edition)
    store = open_it(model=None)
    assert read_content(store.edition) == content  # it is not needed to replay


def test_a_store_of_another_model_is_refused(
    open_it: OpenStore, recommender: Recommender, tmp_path: Path
) -> None:
    store = open_it()
    store.remove_items(["B0001"])
    other = store.edition.recommender
    store.close()
    with pytest.raises(ArtifactError, match="was made for other items"):
        open_store(tmp_path / "store", other)
    open_store(tmp_path / "store", recommender).close()  # and the refusal left no lock


def test_an_engine_that_cannot_change_is_refused(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommender, "engine", object())
    with pytest.raises(ModelError, match="items of a object cannot change"):
        open_store(tmp_path / "store", recommender)
    assert not (tmp_path / "store").exists()


def test_segments_begin_and_end_unnoticed(open_it: OpenStore) -> None:
    pace = Pace(changes=2, segments=2)
    store = open_it(pace=pace)
    for number in range(7):
        store.add_items([NewItem(f"s{number}", "Lamp")])
    content = read_content(store.edition)
    store = open_it(pace=pace)
    assert read_content(store.edition) == content
    assert store.list_versions()[0].version == 5
    with pytest.raises(DataError, match=r"version 4 is not there; 5 to 8"):
        store.roll_back(4)
    store.roll_back(5)
    assert "s3" in store.edition.recommender.item_ids
    assert "s4" not in store.edition.recommender.item_ids
