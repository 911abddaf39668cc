"""genrec: LLM-based generative recommendation, from raw files to valid item ids.

The public face is small and loads lazily, so that `import genrec` brings in neither torch nor
transformers: `genrec.Recommender`, `genrec.SemanticIdTokenizer`, `genrec.load_dataset` and
`genrec.load_zero_shot`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrec.data.dataset import load_dataset
    from genrec.recommender import Recommender
    from genrec.tokenizers.semantic_id import SemanticIdTokenizer
    from genrec.zero_shot import load_zero_shot

    __version__: str

__all__ = ["Recommender", "SemanticIdTokenizer", "__version__", "load_dataset", "load_zero_shot"]

_LAZY = {
    "Recommender": "genrec.recommender",
    "SemanticIdTokenizer": "genrec.tokenizers.semantic_id",
    "load_dataset": "genrec.data.dataset",
    "load_zero_shot": "genrec.zero_shot",
}


def __getattr__(name: str) -> Any:
    """The public name, imported on first use; `__version__` is read from the installed metadata."""
    if name == "__version__":
        return _read_version()
    if name not in _LAZY:
        raise AttributeError(f"module 'genrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def _read_version() -> str:
    metadata = importlib.import_module("importlib.metadata")
    try:
        return str(metadata.version("genrec"))
    except metadata.PackageNotFoundError:  # a checkout on the path that was never installed
        return "0+unknown"
