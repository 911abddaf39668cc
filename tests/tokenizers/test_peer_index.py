from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import DataError
from genrec.tokenizers.sharing.peer_index import find_indexes, read_index, write_index


def write_text(folder: Path, text: str) -> Path:
    path = folder / "index.json"
    path.write_text(text)
    return path


def test_an_index_of_lcrecs_form_is_read(tmp_path: Path) -> None:
    path = write_text(tmp_path, '{"7": ["<a_12>", "<b_0>"], "8": ["<a_3>", "<b_0>"]}')
    index = read_index(path)
    assert index.item_ids == ("7", "8")
    assert index.codes.tolist() == [[12, 0], [3, 0]]
    assert index.codes.dtype == np.int32
    assert index.codebook_sizes == (16, 1)
    assert index.subject == "items"


def test_tokens_of_users_are_read(tmp_path: Path) -> None:
    index = read_index(write_text(tmp_path, '{"u": ["<ua_1>", "<ub_2>"]}'))
    assert (index.subject, index.codes.tolist()) == ("users", [[1, 2]])


@given(
    st.lists(st.lists(st.integers(0, 65_535), min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from(["", "u"]),
)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], prefix: str
) -> None:
    path = tmp_path_factory.mktemp("index") / "deep" / "index.json"
    codes = np.array(rows, dtype=np.int32)
    ids = [f'item "{row}"\n<a_0>' for row in range(len(rows))]
    write_index(path, ids, codes, prefix)
    index = read_index(path)
    assert index.item_ids == tuple(ids)
    assert index.codes.tolist() == codes.tolist()


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('{"1": ["<a_0>"], "1": ["<a_1>"]}', ["item '1': comes 2 times"]),
        ('{"1": ["<a_0>", "<b_1>"], "2": ["<a_0>"], "3": ["<a_0>", "<b_2>"], "4": []}',
         ["item '2': 1 tokens, where most items have 2", "item '4': 0 tokens"]),
        ('{"1": ["<b_0>"], "2": ["<a_x>"], "3": ["<a_01>"], "4": ["a_1"]}',
         ["item '1': token 1 is '<b_0>', but must be <a_N>", "item '2': token 1 is '<a_x>'",
          "item '3'", "item '4'"]),
        ('{"1": "<a_0>", "2": [3], "3": {"a": 1}, "4": null}',
         ["item '1': \"<a_0>\" is no list", "item '2': [3] is no list", "item '3'", "item '4'"]),
        ('{"1": ["<a_70000>"]}', ["'<a_70000>' has a code above 65,535"]),
        ('{"1": ["<a_0>", "<ub_0>"]}', ["'<ub_0>' is spelled unlike"]),
        ('{"1": ["<a_0>"], "2": ["<ua_0>"]}', ["of items (<a_0>) and of users (<ua_0>) are mixed"]),
        ('{"1": []}', ["item '1': 0 tokens"]),
        (json.dumps({"1": ["<a_0>"] * 27}), ["27 tokens an item, but levels are letters"]),
    ],
)  # fmt: skip
def test_all_problems_of_a_file_are_in_one_message(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    path = write_text(tmp_path, text)
    with pytest.raises(DataError, match="must have the form") as caught:
        read_index(path)
    message = str(caught.value)
    assert str(path) in message
    for problem in problems:
        assert problem in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "is no JSON"), ("[1]", "is no JSON object"), ("3", "no JSON object"), ("{}", "no item")],
)
def test_files_of_another_kind(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_index(write_text(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_index(tmp_path / "missing.json")
    (tmp_path / "index.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no JSON"):
        read_index(tmp_path / "index.json")


def test_index_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("peer_index_b.json", "A.index.json", "notes.json"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in find_indexes(tmp_path)] == ["A.index.json", "peer_index_b.json"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="neither a tokenizer nor holds an index file"):
        find_indexes(empty)
