"""Fixtures that every test folder may use."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """The command line's log handler writes to the stderr of its own test, which closes with it."""
    logger = logging.getLogger("genrec")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def find_real_data() -> Callable[[str], Path]:
    """A function from a data set's name to its folder; skips the test where it is absent."""

    def find(name: str) -> Path:
        root = Path(os.environ.get("GENREC_DATA", REPOSITORY.parent / "shared" / "data"))
        folder = root / name
        if not (folder / "interactions.parquet").is_file():
            pytest.skip(f"real data set {name} is not in {root} (set GENREC_DATA)")
        return folder

    return find


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the whole chain that is too small to be good at anything, but is real."""
    from genrec.pipeline import parse_chain, run_chain

    values = {
        "seed": 3,
        "data": {"source": "synthetic", "n_items": 60, "n_users": 40},
        "embed": {"lsa": {"dimensions": 16}},
        "tokenize": {"quantizer": "rqkmeans", "codebook_sizes": [8, 8, 8]},
        "prompts": {"use": "small-decoder"},
        "base": {
            "hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "feed_forward_size": 32,
            "vocab_size": 400, "epochs": 0.2,
        },
        "train": {"use": "tiny", "max_steps": 4},
        "eval": {"metrics": ["HR@5", "NDCG@5"], "n_bootstrap": 100, "n_permutations": 100},
    }  # fmt: skip
    out = tmp_path_factory.mktemp("tiny") / "run"
    run_chain(parse_chain(values, source="tiny"), out)
    return out


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()
