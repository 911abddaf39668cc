"""Fixtures of the evaluation tests; `tests.eval.tiny` makes what they hold."""

from __future__ import annotations

import pytest

from genrec.data.dataset import load_dataset
from tests.eval.tiny import NextItem, write_data, write_model


@pytest.fixture(scope="session")
def data_path(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("eval") / "data").path


@pytest.fixture(scope="session")
def dataset(data_path):
    return load_dataset(data_path)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory, data_path):
    return write_model(tmp_path_factory.mktemp("eval") / "model", data_path).path


@pytest.fixture
def next_item():
    return NextItem()
