from __future__ import annotations

import shutil

import pytest

from genrec.artifact import load_artifact
from genrec.errors import DataError
from genrec.eval.provenance import LossPoint, read_model, trace_steps
from tests.eval.tiny import N_ITEMS, write_data, write_model


def test_the_model_s_files_are_read(model_path, dataset):
    record = read_model(load_artifact(model_path), dataset)
    assert record.codes.shape == (N_ITEMS, 3)
    assert record.codebook_sizes == (4, 4, 8)
    assert record.quality["collision_rate"]["before"] == 0.25
    assert record.losses[0] == LossPoint(1, 5.0, None)
    assert record.losses[-1] == LossPoint(20, None, 0.4)
    assert len(record.losses) == 21  # the line without any loss is none


def test_a_model_of_another_catalogue_is_refused(tmp_path, data_path, dataset):
    item_ids = [f"id-{item}" for item in range(N_ITEMS)]
    item_ids[3] = "other"
    model = write_model(tmp_path / "model", data_path, item_ids=item_ids)
    with pytest.raises(DataError, match=r"another catalogue .* differ from item_index 3 on"):
        read_model(model, dataset)


def test_a_longer_catalogue_is_refused(tmp_path, data_path, dataset):
    item_ids = [f"id-{item}" for item in range(N_ITEMS + 1)]
    model = write_model(tmp_path / "model", data_path, item_ids=item_ids)
    with pytest.raises(DataError, match=rf"31 items\).*differ from item_index {N_ITEMS} on"):
        read_model(model, dataset)


def test_what_is_missing_is_left_out(tmp_path, data_path, dataset):
    model = write_model(tmp_path / "model", data_path, quality=False)
    for name in ("item_index.parquet", "training.jsonl", "genrec.json"):
        (model.path / name).unlink()
    record = read_model(model, dataset)
    assert (record.losses, record.codes, record.codebook_sizes, record.quality) == (
        (),
        None,
        (),
        {},
    )


def test_code_sizes_fall_back_to_the_codes(tmp_path, data_path, dataset):
    model = write_model(tmp_path / "model", data_path)
    (model.path / "genrec.json").write_text("[]")
    assert read_model(model, dataset).codebook_sizes == (4, 4, 2)


def test_steps_are_traced_from_the_first_on(data_path, model_path):
    steps = trace_steps(load_artifact(data_path), load_artifact(model_path))
    assert list(steps) == ["data", "train"]
    assert steps["train"].facts == {"parameters": 1234}


def test_steps_behind_a_model_are_found_without_the_data(model_path):
    assert list(trace_steps(load_artifact(model_path))) == ["data", "train"]


def test_inputs_that_are_gone_or_made_anew_are_left_out(tmp_path):
    data = write_data(tmp_path / "data")
    model = write_model(tmp_path / "model", data.path)
    shutil.rmtree(data.path)
    assert list(trace_steps(model)) == ["train"]
    write_data(tmp_path / "data", n_users=5)
    assert list(trace_steps(model)) == ["train"]
