"""Each source's files, in small, with that source's quirks."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from genrec.data.recipe import DataRecipe
from genrec.data.sources import SOURCES, RawData, frames_data, read_source
from genrec.errors import DataError, RecipeError
from tests.data.conftest import Make, Write
from tests.data.made_rows import choices

REVIEW_2014 = {
    "reviewerID": "A1",
    "asin": "B1",
    "overall": 5.0,
    "unixReviewTime": 100,
    "reviewText": "Good &amp; cheap",
    "summary": "Nice",
}


def read_one(dataset_items: pl.DataFrame, item_id: str) -> dict[str, object]:
    return dataset_items.filter(pl.col("item_id") == item_id).row(0, named=True)


def test_amazon_2014(make: Make, write_jsonl: Write) -> None:
    reviews = [
        REVIEW_2014 | {"unixReviewTime": 300},
        repr(REVIEW_2014 | {"asin": "B2", "summary": "It's"}),
        REVIEW_2014 | {"asin": "B3", "unixReviewTime": 200},
    ]
    metadata = [
        "{'asin': 'B1', 'title': 'Soap', 'price': 3.5, 'brand': 'Dove', "
        "'categories': [['Beauty'], ['Beauty', 'Bath']], 'description': 'It\\'s soap'}",
        {"asin": "B2", "title": "Comb"},
        {"asin": "B2", "title": "Comb again"},
        {"asin": "B9", "title": "Nobody chose it"},
    ]
    dataset = make(
        source="amazon2014",
        interactions=str(write_jsonl("reviews_X.json.gz", reviews)),
        items=str(write_jsonl("meta_X.json.gz", metadata)),
    )
    assert choices(dataset, "A1") == [("B2", "train"), ("B3", "valid"), ("B1", "test")]
    assert dataset.item_ids == ("B1", "B2", "B3")
    soap = read_one(dataset.items, "B1")
    assert soap["text"] == (
        "title: Soap; brand: Dove; categories: Beauty > Bath; description: It's soap"
    )
    assert soap["price"] == 3.5
    assert read_one(dataset.items, "B2")["title"] == "Comb"
    assert read_one(dataset.items, "B3")["text"] == ""
    assert dataset.reviews()["review_text"].to_list() == ["Good & cheap"] * 3
    assert dataset.reviews()["review_title"].to_list() == ["It's", "Nice", "Nice"]


def test_amazon_2014_runs_no_code(write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl("r.json", [f"__import__('pathlib').Path({str(tmp_path)!r}, 'x').touch()"])
    with pytest.raises(
        DataError, match=r"one JSON object or Python literal: line 1 \(ValueError\)"
    ):
        read_source(DataRecipe(source="amazon2014", interactions=str(path)))
    assert not (tmp_path / "x").exists()


def test_amazon_2018(make: Make, write_jsonl: Write, tmp_path: Path) -> None:
    write_jsonl(
        "Gift_Cards_5.json", [REVIEW_2014 | {"asin": f"B{n}", "vote": "3"} for n in (1, 2, 3)]
    )
    write_jsonl(
        "meta_Gift_Cards.json",
        [
            {
                "asin": "B1",
                "title": "Card",
                "category": ["Gift Cards", "Food"],
                "description": ["One.", "Two."],
                "price": "$25.00",
                "brand": "Acme",
            },
            {
                "asin": "B2",
                "title": "var aPageStart = (new Date()).getTime();",
                "price": ".a-box{}",
            },
        ],
    )
    dataset = make(source="amazon2018", path=str(tmp_path))
    card = read_one(dataset.items, "B1")
    assert card["categories"] == "Gift Cards > Food"
    assert card["description"] == "One. Two."
    assert card["price"] == 25.0
    assert read_one(dataset.items, "B2")["title"] == ""
    assert read_one(dataset.items, "B2")["price"] is None
    assert choices(dataset, "A1") == [("B1", "train"), ("B2", "valid"), ("B3", "test")]


def test_amazon_2023(make: Make, write_jsonl: Write, tmp_path: Path) -> None:
    write_jsonl(
        "All_Beauty.jsonl",
        [
            {
                "user_id": "U",
                "parent_asin": f"P{n}",
                "asin": f"variant{n}",
                "timestamp": 1_600_000_000_500 - n,
                "rating": 4.0,
                "title": "Yes",
                "text": f"text {n}",
            }
            for n in (1, 2)
        ],
    )
    write_jsonl(
        "meta_All_Beauty.jsonl",
        [
            {
                "parent_asin": "P1",
                "title": "Brush",
                "main_category": "All Beauty",
                "store": None,
                "categories": [],
                "features": ["Soft."],
                "description": ["For hair."],
                "details": {"Brand": "Acme"},
                "price": None,
            },
            {"parent_asin": "P2", "store": "Shop", "categories": ["Beauty", "Hair"], "price": 9},
        ],
    )
    dataset = make(source="amazon2023", path=str(tmp_path))
    assert choices(dataset, "U") == [("P2", "train"), ("P1", "test")]
    assert dataset.interactions["timestamp"].to_list() == [1_600_000_000.498, 1_600_000_000.499]
    brush, other = dataset.items.rows(named=True)
    assert (brush["brand"], brush["categories"]) == ("Acme", "All Beauty")
    assert brush["description"] == "Soft. For hair."
    assert (other["brand"], other["categories"], other["price"]) == ("Shop", "Beauty > Hair", 9.0)


def test_movielens_100k(make: Make, write_text: Write, tmp_path: Path) -> None:
    write_text("u.data", "1\t10\t5\t300\n1\t20\t3\t100\n1\t30\t4\t200\n")
    flags = "|".join("1" if n in (1, 5) else "0" for n in range(19))
    none = "|".join("0" * 19)
    movies = [
        f"10|Café (1995)|01-Jan-1995||http://x|{flags}",
        f"20|B|||u|{none}",
        f"30|C|||u|{none}",
    ]
    write_text("u.item", "\n".join(movies) + "\n", "latin-1")
    dataset = make(source="movielens", path=str(tmp_path))
    assert choices(dataset, "1") == [("20", "train"), ("30", "valid"), ("10", "test")]
    assert read_one(dataset.items, "10")["text"] == (
        "title: Café (1995); categories: Action, Comedy"
    )


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_1m_and_10m(make: Make, write_text: Write, tmp_path: Path, encoding: str) -> None:
    write_text("ratings.dat", "1::10::5::300\n1::20::3.5::100\n")
    write_text("movies.dat", "10::Café::Drama|War\n20::B::(no genres listed)\n", encoding)
    dataset = make(source="movielens", path=str(tmp_path))
    assert dataset.items["title"].to_list() == ["Café", "B"]
    assert dataset.items["categories"].to_list() == ["Drama, War", ""]
    assert dataset.interactions["rating"].to_list() == [3.5, 5.0]


def test_movielens_csv(make: Make, write_text: Write, tmp_path: Path) -> None:
    write_text("ratings.csv", "userId,movieId,rating,timestamp\n1,10,5.0,300\n1,20,3.0,100\n")
    write_text("movies.csv", 'movieId,title,genres\n10,"Heat, The (1995)",Action|Crime\n20,B,C\n')
    dataset = make(source="movielens", path=str(tmp_path))
    assert dataset.items["title"].to_list() == ["Heat, The (1995)", "B"]


def test_movielens_needs_its_files(write_text: Write, tmp_path: Path) -> None:
    recipe = DataRecipe(source="movielens", path=str(tmp_path))
    with pytest.raises(DataError, match=r"none of u.data, ratings.dat and ratings.csv"):
        read_source(recipe)
    write_text("ratings.dat", "1::10::5::300\n")
    with pytest.raises(DataError, match=r"movies.dat: does not exist"):
        read_source(recipe)


def test_recbole(make: Make, write_text: Write, tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    write_text("set.inter", header + "u\ta\t5\t3\nu\tb\t4\t1\nu\tc\t4\t2\n")
    write_text(
        "set.item",
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\na\tToy Story\tFun Kids\n",
    )
    dataset = make(source="recbole", path=str(tmp_path))
    assert choices(dataset, "u") == [("b", "train"), ("c", "valid"), ("a", "test")]
    assert read_one(dataset.items, "a")["text"] == "title: Toy Story; categories: Fun Kids"
    by_prefix = read_source(DataRecipe(source="recbole", path=str(tmp_path / "set")))
    assert by_prefix.log.rows.height == 3
    by_name = read_source(DataRecipe(source="recbole", interactions=str(tmp_path / "set.inter")))
    assert by_name.catalogue.is_empty()


def test_recbole_needs_one_inter_file(write_text: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .inter file"):
        read_source(DataRecipe(source="recbole", path=str(tmp_path)))
    with pytest.raises(DataError, match=r"no .inter file at \(path not set\)"):
        read_source(DataRecipe(source="recbole"))
    for name in ("a.inter", "b.inter"):
        write_text(name, "user_id:token\titem_id:token\n")
    with pytest.raises(DataError, match=r"several .inter files: a.inter, b.inter"):
        read_source(DataRecipe(source="recbole", path=str(tmp_path)))


def test_own_csv_through_a_mapping(make: Make, write_text: Write) -> None:
    orders = write_text("orders.csv", 'who,what,when\nu,"1",2024-01-02\nu,2,2024-01-01T10:00:00\n')
    goods = write_text("goods.tsv", "sku\tname\tcolor\n1\tRed <b>mug</b>\tred\n2\tPlate\t\n")
    dataset = make(
        source="table",
        interactions=str(orders),
        items=str(goods),
        columns={"user_id": "who", "item_id": "what", "timestamp": "when"},
        item_columns={"item_id": "sku", "title": "name", "colour": "color"},
        timestamp_unit="iso",
        text_fields=["title", "colour"],
    )
    assert choices(dataset, "u") == [("2", "train"), ("1", "test")]
    assert dataset.items["text"].to_list() == ["title: Red <b>mug</b>; colour: red", "title: Plate"]
    assert dataset.items["colour"].to_list() == ["red", ""]


def test_own_parquet_with_dates_positions_and_float_ids(make: Make, tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "user_id": [1.0, 1.0],
            "item_id": [7, 8],
            "timestamp": pl.Series(["2024-01-02", "2024-01-01"]).str.to_datetime(),
        }
    ).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item_id": [8, 7], "categories": [["a", "b"], None]}).write_parquet(
        tmp_path / "items.parquet"
    )
    dataset = make(source="table", path=str(tmp_path))
    assert choices(dataset, "1") == [("8", "train"), ("7", "test")]
    assert dataset.items["text"].to_list() == ["categories: a, b", ""]


def test_own_file_without_header_and_with_a_long_separator(make: Make, write_text: Write) -> None:
    path = write_text("log.txt", "u || a\nu || b\nu || b\n")
    dataset = make(
        source="table", interactions=str(path), separator="||", header=["user_id", "item_id"]
    )
    assert choices(dataset, "u") == [("a", "train"), ("b", "test")]


def test_columns_that_begin_late_are_read(
    make: Make, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.data.rows.BLOCK_ROWS", 2)
    rows = [{"user_id": "u", "item_id": n} for n in range(3)]
    path = write_jsonl("log.jsonl", [*rows, {"user_id": "u", "item_id": 3, "rating": 2}])
    dataset = make(source="table", interactions=str(path))
    assert dataset.interactions["rating"].to_list() == [None, None, None, 2.0]


def test_a_folder_must_hold_one_file_for_each_role(write_text: Write, tmp_path: Path) -> None:
    recipe = DataRecipe(source="table", path=str(tmp_path))
    with pytest.raises(DataError, match=r"has no interactions file: .* holds none"):
        read_source(recipe)
    write_text("interactions.csv", "user_id,item_id\n")
    write_text("interactions.tsv", "user_id\titem_id\n")
    with pytest.raises(DataError, match=r"several files .*: interactions.csv, interactions.tsv"):
        read_source(recipe)
    with pytest.raises(DataError, match="no folder"):
        read_source(DataRecipe(source="table", path=str(tmp_path / "absent")))
    with pytest.raises(DataError, match="the recipe names none"):
        read_source(DataRecipe(source="table"))
    with pytest.raises(DataError, match=r"ending '.txt' says nothing.*set `separator`"):
        read_source(DataRecipe(source="table", interactions=str(tmp_path / "x.txt")))


def test_sources_by_name_and_plugins() -> None:
    assert {"amazon2014", "amazon2018", "amazon2023", "movielens", "recbole", "table"} < set(
        SOURCES
    )
    with pytest.raises(RecipeError, match="did you mean 'amazon2014'"):
        read_source(DataRecipe(source="amazon14"))
    raw = read_source(DataRecipe(source="tests.data.test_sources:read_plugin"))
    assert raw.log.user_ids == ["u"]


def read_plugin(recipe: DataRecipe) -> RawData:
    interactions = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["b", "a"]})
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", None, "C"], "size": [1, 2, 3]})
    return frames_data(interactions, items)


def test_plugin_frames_are_completed() -> None:
    raw = read_plugin(DataRecipe())
    assert raw.log.item_ids == ["b", "a"]
    assert raw.log.rows["item"].to_list() == [0, 1]
    assert raw.catalogue["title"].to_list() == ["A", "", "C"]
    assert raw.catalogue["size"].to_list() == ["1", "2", "3"]
    assert raw.catalogue["price"].to_list() == [None] * 3
