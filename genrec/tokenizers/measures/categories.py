"""Whether codes agree with the categories that items are known to have.

Owns category paths, purity and mutual information. Knows no vector.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from genrec.tokenizers.measures.code_use import CodeTable, group_prefixes
from genrec.types import IndexArray

MAX_ITEMS = 50_000
_LARGEST_SHARE = 0.9
_ARROW = " > "
# A comma that ends a step has no space behind it: "Tapes, Adhesives & Sealants,Adhesive Tapes".
_COMMA = re.compile(r",(?! )")


@dataclass(frozen=True, slots=True)
class Categories:
    """One category an item, at one depth of their paths.

    Attributes:
        depth: how many steps of the path are looked at; 0 stands for all of them.
        names: the categories, most frequent first.

    Shapes:
        rows: (M,) int64, the items that have one, rising.
        labels: (M,) int64, places in `names`.
    """

    depth: int
    names: tuple[str, ...]
    rows: IndexArray
    labels: IndexArray


def split_paths(values: Sequence[str]) -> list[tuple[str, ...]]:
    """The steps of category paths, `A > B > C` or `A,B,C`; empty where an item has none.

    The arrow is taken for all where any path has it: names may hold commas.
    """
    arrows = any(_ARROW in value for value in values)
    paths = []
    for value in values:
        steps = value.split(_ARROW) if arrows else _COMMA.split(value)
        paths.append(tuple(step.strip() for step in steps if step.strip()))
    return paths


def find_root(paths: Sequence[tuple[str, ...]]) -> Categories | None:
    """The shallowest categories that tell items apart; None where none do.

    A step that nine tenths of the items share (often the shop's department) is passed over, unless
    no deeper one varies.
    """
    deepest = max(map(len, paths), default=0)
    varied = None
    for depth in range(1, deepest + 1):
        found = _label_paths([path[:depth] if len(path) >= depth else () for path in paths], depth)
        if found is None or len(found.names) < 2:  # noqa: PLR2004
            continue
        if np.bincount(found.labels).max() <= _LARGEST_SHARE * len(found.labels):
            return found
        varied = varied or found
    return varied


def find_leaf(paths: Sequence[tuple[str, ...]]) -> Categories | None:
    """The whole paths as categories; None where fewer than two differ."""
    found = _label_paths(paths, 0)
    return found if found is not None and len(found.names) > 1 else None


def _label_paths(paths: Sequence[tuple[str, ...]], depth: int) -> Categories | None:
    counts = Counter(path for path in paths if path)
    if not counts:
        return None
    order = sorted(counts, key=lambda path: (-counts[path], path))
    place = {path: number for number, path in enumerate(order)}
    rows = np.array([row for row, path in enumerate(paths) if path], dtype=np.int64)
    labels = np.array([place[path] for path in paths if path], dtype=np.int64)
    # A root is named by its last step: those before it are shared or shown beside it.
    names = tuple(path[-1] if depth else _ARROW.join(path) for path in order)
    return Categories(depth, names, rows, labels)


def measure_categories(codes: CodeTable, known: Categories, seed: int = 0) -> dict[str, Any]:
    """How well prefixes and single levels agree with categories; plain JSON values.

    At most 50,000 items are looked at, a seeded sample of those with a category.
    """
    rng = np.random.default_rng(seed)
    places = np.arange(len(known.rows))
    if len(places) > MAX_ITEMS:
        places = np.sort(rng.choice(places, MAX_ITEMS, replace=False))
    labels, chosen = known.labels[places], codes[known.rows[places]]
    shuffled = rng.permutation(labels)
    depths = range(1, codes.shape[1] + 1)
    prefixes = [group_prefixes(chosen, depth)[0] for depth in depths]
    return {
        "depth": known.depth,
        "categories": len(known.names),
        "items": len(labels),
        "prefixes": [
            {"depth": depth, **_compare_groups(group, labels, shuffled)}
            for depth, group in zip(depths, prefixes, strict=True)
        ],
        "levels": [
            {
                "level": level,
                **_compare_groups(chosen[:, level - 1].astype(np.int64), labels, shuffled),
            }
            for level in depths
        ],
    }


def _compare_groups(
    group: IndexArray, labels: IndexArray, shuffled: IndexArray
) -> dict[str, float]:
    """Purity, normalised and adjusted mutual information of one grouping.

    Purity and the normalised information rise with the number of groups alone; `purity_chance`
    (the same groups, categories shuffled) and the adjusted information take that off.

    Source: purity and NMI: Manning et al. 2008, section 16.3; AMI: Vinh et al. 2010, arithmetic
    mean of the entropies, as scikit-learn has them.
    """
    with warnings.catch_warnings():  # integer categories by the thousand look like a regression
        warnings.simplefilter("ignore", UserWarning)
        nmi = float(normalized_mutual_info_score(labels, group))
        ami = float(adjusted_mutual_info_score(labels, group))
    return {
        "purity": measure_purity(group, labels),
        "purity_chance": measure_purity(group, shuffled),
        "nmi": nmi,
        "ami": ami,
    }


def measure_purity(group: IndexArray, labels: IndexArray) -> float:
    """The share of items whose category is the commonest in their group."""
    return float(_commonest_by_group(group, labels)[1].sum() / len(labels))


def find_dominant(group: IndexArray, labels: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Each group's commonest label (the smallest of equals), and how many items have it.

    Shapes:
        group: (M,) int64 from 0; each number below the largest that occurs may be absent.
        returns: (G,) and (G,) int64; label -1 and count 0 for absent groups.
    """
    n_groups = int(group.max()) + 1
    label, count = np.full(n_groups, -1, dtype=np.int64), np.zeros(n_groups, dtype=np.int64)
    held, commonest, best = _commonest_by_group(group, labels)
    label[held], count[held] = best, commonest
    return label, count


def _commonest_by_group(
    group: IndexArray, labels: IndexArray
) -> tuple[IndexArray, IndexArray, IndexArray]:
    n_labels = int(labels.max()) + 1
    cells, counts = np.unique(group * n_labels + labels, return_counts=True)
    home, label = np.divmod(cells, n_labels)
    order = np.lexsort((label, -counts, home))
    first = np.append(True, home[order][1:] != home[order][:-1])
    chosen = order[first]
    return home[chosen], counts[chosen], label[chosen]
