"""Every quantizer under the one contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.quantizer import QUANTIZERS, Quantizer
from tests.contracts.quantizer_contract import CLUSTERS, Case, QuantizerContract, fit

from .conftest import plant_clusters
from .made_data import draw_choices, make_given, write_data

N_ITEMS = 60
KINDS = ("lipstick", "cream", "brush", "soap")
NETWORK = {
    "hidden_sizes": [24], "latent_size": 6, "max_epochs": 60, "warmup_epochs": 15, "batch_size": 32,
}  # fmt: skip
SIZES = {"codebook_sizes": [8, 8, 8]}
CASES = {
    "rqvae": Case({"quantizer": "rqvae", **SIZES, "rqvae": NETWORK}),
    "letter": Case({"quantizer": "letter", **SIZES,
                    "rqvae": NETWORK | {"codebook_update": "gradient", "max_epochs": 30},
                    "letter": {"factor_dimensions": 4, "clusters": 2}}),
    "gmc": Case({"quantizer": "gmc", **SIZES, "rqvae": NETWORK, "gmc": {"domain_token": True}}),
    "ulmrec-users": Case({"quantizer": "ulmrec-users", **SIZES, "rqvae": NETWORK,
                          "ulmrec": {"id_dimensions": 8, "heads": 2}}, subject="users"),
    # Levels side by side: clusters show in the whole code, not in the first.
    "fsq": Case({"quantizer": "fsq", **SIZES, "rqvae": NETWORK, "fsq": {"grid": [4, 2]}},
                find_cluster=lambda codes: codes),
    "opq": Case({"quantizer": "opq", **SIZES}, find_cluster=lambda codes: codes),
    "rqkmeans": Case({"quantizer": "rqkmeans", **SIZES}),
    "random": Case({"quantizer": "random", **SIZES}, find_cluster=None),
    "sequential": Case({"quantizer": "sequential", **SIZES}, find_cluster=None),
    "collaborative": Case({"quantizer": "collaborative",
                           "collaborative": {"clusters": CLUSTERS, "max_items": 20}}),
    "title": Case({"quantizer": "title"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    group = [row % CLUSTERS for row in range(N_ITEMS)]
    columns = {
        "title": [f"{KINDS[cluster]} number {row}" for row, cluster in enumerate(group)],
        "domain": [KINDS[cluster] for cluster in group],
    }
    choices = draw_choices(group, n_users=80)
    return write_data(tmp_path_factory.mktemp("contract") / "data", N_ITEMS, choices, columns)


@pytest.fixture(scope="module")
def kept() -> dict[str, Quantizer]:
    return {}


def test_every_quantizer_has_a_case() -> None:
    # What was imported has no quantizer: tests/tokenizers/test_peer_import.py has its refusals.
    assert set(CASES) | {"imported"} == set(QUANTIZERS)


@pytest.mark.parametrize("name", sorted(CASES))
class TestEveryQuantizer(QuantizerContract):
    @pytest.fixture
    @classmethod
    def case(cls, name: str) -> Case:
        return CASES[name]

    @pytest.fixture
    @classmethod
    def given(cls, case: Case, data: Path) -> FitInput:
        needs_no_vectors = case.values["quantizer"] in ("random", "sequential", "collaborative",
                                                        "title")  # fmt: skip
        vectors = None if needs_no_vectors else plant_clusters(N_ITEMS, CLUSTERS, 12)
        return case.adapt(make_given(data, vectors))

    @pytest.fixture
    @classmethod
    def fitted(
        cls, name: str, case: Case, given: FitInput, kept: dict[str, Quantizer]
    ) -> Quantizer:
        if name not in kept:
            kept[name] = fit(case, given)
        return kept[name]
