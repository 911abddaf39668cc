"""genrec: LLM-based generative recommendation, from raw files to valid item ids.

The public face is small and loads lazily, so that `import genrec` brings in neither torch nor
transformers: `genrec.Recommender`, `genrec.SemanticIdTokenizer` and `genrec.load_dataset`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrec.data.dataset import load_dataset
    from genrec.recommender import Recommender
    from genrec.tokenizers.semantic_id import SemanticIdTokenizer

__all__ = ["Recommender", "SemanticIdTokenizer", "__version__", "load_dataset"]

_LAZY = {
    "Recommender": "genrec.recommender",
    "SemanticIdTokenizer": "genrec.tokenizers.semantic_id",
    "load_dataset": "genrec.data.dataset",
}

try:
    __version__ = version("genrec")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """The public name, imported on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'genrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
