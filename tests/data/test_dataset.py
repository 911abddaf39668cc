from __future__ import annotations

from pathlib import Path

import pytest

from genrec.data.dataset import load_dataset
from genrec.errors import ArtifactError
from tests.data.conftest import Make, Write

# a moment for each row; with 10 and 20 as the first moments of valid and test
ROWS = """user_id,item_id,timestamp
u,a,1
u,b,2
u,c,11
u,d,21
u,a,22
v,a,3
w,b,23
x,c,12
x,d,24
"""


@pytest.fixture
def values(write_text: Write) -> dict[str, object]:
    return {
        "source": "table",
        "interactions": str(write_text("log.csv", ROWS)),
        "split": "temporal",
        "valid_from": 10,
        "test_from": 20,
    }


def test_sequences_are_flat_and_chronological(make: Make, values: dict[str, object]) -> None:
    dataset = make(**values)
    train = dataset.sequences()
    assert train.user_index.tolist() == [0, 1]  # u, v
    assert train.offsets.tolist() == [0, 2, 3]
    named = [[dataset.item_ids[i] for i in history] for history in train.histories()]
    assert named == [["a", "b"], ["a"]]
    everything = dataset.sequences(("train", "valid", "test"))
    assert len(everything.item_index) == 9
    assert [len(history) for history in everything.histories()] == [5, 1, 1, 2]


def test_holdout_has_histories_targets_and_counts(make: Make, values: dict[str, object]) -> None:
    dataset = make(**values)
    test = dataset.holdout("test")
    users = dataset.users["user_id"].to_list()
    assert [users[u] for u in test.user_index] == ["u", "x"]
    named = [[dataset.item_ids[i] for i in items] for items in test.histories + test.targets]
    assert named == [["a", "b", "c"], ["c"], ["d", "a"], ["d"]]
    assert test.n_without_target == 1  # v
    assert test.n_without_history == 1  # w
    valid = dataset.holdout("valid")
    assert [users[u] for u in valid.user_index] == ["u"]
    assert valid.n_without_history == 1  # x
    assert dataset.oracle() is None


def test_empty_part_has_no_histories(make: Make, write_text: Write) -> None:
    path = write_text("log.csv", "user_id,item_id\nu,a\nu,b\n")
    dataset = make(source="table", interactions=str(path))
    assert dataset.sequences(("valid",)).histories() == []
    assert dataset.holdout("valid").histories == []


def test_loading_refuses_what_is_no_data_artefact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load_dataset(tmp_path / "absent")
