"""The measures that a report puts side by side, in words that a person can read.

Owns their names, what they mean, which way is better and how a value is judged. Computes nothing
but what is best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genrec.tokenizers.measures.report_rows import (
    Better,
    Measure,
    Measured,
    format_value,
    grade_value,
    list_levels,
    mean_levels,
    pick_value,
    sum_levels,
)

_SAME = 1e-9


def _show_purity(depth: str) -> Callable[[Measured], str]:
    row = pick_value("categories", depth, "prefixes", 0)

    def show(measured: Measured) -> str:
        values = row(measured)
        return f"{values['purity']:.1%} (chance {values['purity_chance']:.1%})"

    return show


def _show_moved(measured: Measured) -> str:
    cost = measured["uniqueness"]
    return f"{cost['items']:,} ({cost['share']:.2%})"


def _show_collisions(measured: Measured) -> str:
    row = measured["collisions"]
    return f"{row['after']:.2%} ({row['lost']:,} of {measured['items']:,})"


_NEAR = grade_value(
    (0.7, "most neighbours are together"),
    (0.4, "many neighbours are together"),
    (0.1, "some neighbours are together"),
    rest="hardly better than chance",
)
_KNOWS = grade_value(
    (0.5, "codes follow the categories closely"),
    (0.25, "codes follow the categories clearly"),
    (0.1, "codes follow the categories loosely"),
    rest="codes say little about categories",
)

MEASURES: tuple[Measure, ...] = (
    Measure(
        "collisions_before",
        "Collisions, quantizer alone",
        "lower",
        "items",
        "The share of items that the quantizer's own codes could not tell from an item before "
        "them: 1 - distinct code sequences / items (as LC-Rec counts).",
        pick_value("collisions", "before"),
        format_value(pick_value("collisions", "before"), ".2%"),
        grade_value(
            (0.1, "many items shared all their codes"),
            (0.01, "some items shared all their codes"),
            rest="nearly every item had codes of its own",
        ),
    ),
    Measure(
        "collisions_after",
        "Collisions, as shipped",
        "lower",
        "items",
        "The same for the codes that a model learns. Above 0, an ID names several items, and a "
        "model that generates it cannot choose among them.",
        pick_value("collisions", "after"),
        _show_collisions,
        grade_value((_SAME, "some IDs name several items"), rest="every item has an ID of its own"),
    ),
    Measure(
        "largest_group",
        "Most items on one ID",
        "lower",
        "items",
        "How many items share the ID that most share, as shipped.",
        pick_value("collisions", "largest"),
        format_value(pick_value("collisions", "largest"), ",d"),
        grade_value((2, "they cannot be told apart"), rest="no ID is shared"),
    ),
    Measure(
        "moved",
        "Moved to be unique",
        "lower",
        "items",
        "How many items got other codes than the quantizer's, so that no two are alike.",
        pick_value("uniqueness", "share"),
        _show_moved,
        grade_value(
            (0.1, "many items had to give way"),
            (0.01, "some items had to give way"),
            rest="almost nobody had to give way",
        ),
    ),
    Measure(
        "added_distance",
        "Added distance a moved item",
        "neither",
        "items",
        "How much further (squared, in the quantizer's own latent space) a moved item is from what "
        "its codes stand for. Latent spaces differ, so this compares runs of one quantizer only.",
        pick_value("uniqueness", "added_distance_mean"),
        format_value(pick_value("uniqueness", "added_distance_mean"), ".4g"),
        lambda value: "the price of uniqueness, in the quantizer's own units",
    ),
    Measure(
        "utilisation",
        "Codes used",
        "higher",
        "items",
        "The share of the codes that any item has, mean over levels; used codes by level.",
        mean_levels("utilisation"),
        list_levels("used", ",d"),
        grade_value(
            (0.99, "almost no code lies idle"),
            (0.9, "few codes lie idle"),
            rest="many codes lie idle",
        ),
    ),
    Measure(
        "dead_codes",
        "Dead codes",
        "lower",
        "items",
        "Codes that nobody has, over all levels. An index file does not say how many codes there "
        "are; the next power of two is taken.",
        sum_levels("dead"),
        list_levels("dead", ",d"),
        grade_value((1, "their tokens are never learned"), rest="none"),
    ),
    Measure(
        "perplexity",
        "Perplexity",
        "higher",
        "items",
        "How many codes, used evenly, would tell as much, by level; ranked by its share of the "
        "level's codes, mean over levels.",
        mean_levels("perplexity", "codes"),
        list_levels("perplexity", ".0f"),
        grade_value(
            (0.85, "codes are used evenly"),
            (0.6, "codes are used rather evenly"),
            rest="few codes carry most items",
        ),
    ),
    Measure(
        "entropy",
        "Entropy (bits)",
        "higher",
        "items",
        "What naming the code of a level tells about the item, in bits, by level; ranked by the "
        "sum. The whole ID can tell no more than log2 of the number of items.",
        sum_levels("entropy_bits"),
        list_levels("entropy_bits", ".2f"),
        lambda value: f"{value:.1f} bits if levels were independent",
    ),
    Measure(
        "gini",
        "Gini of code use",
        "lower",
        "items",
        "0 where every code of a level has as many items, near 1 where one has all; by level, "
        "ranked by the mean.",
        mean_levels("gini"),
        list_levels("gini", ".2f"),
        grade_value(
            (0.6, "few codes carry most items"),
            (0.35, "uneven"),
            rest="even",
        ),
    ),
    Measure(
        "cosine",
        "Reconstruction, cosine",
        "higher",
        "vectors",
        "Mean cosine of an item's vector and what its (unique) codes stand for.",
        pick_value("reconstruction", "after", "cosine"),
        format_value(pick_value("reconstruction", "after", "cosine"), ".4f"),
        grade_value(
            (0.9, "codes keep most of a vector"),
            (0.7, "codes keep much of a vector"),
            rest="codes keep little of a vector",
        ),
    ),
    Measure(
        "relative_error",
        "Reconstruction, relative error",
        "lower",
        "vectors",
        "Mean squared error as a share of the vectors' variance: 0 is perfect, 1 no better than "
        "the mean vector.",
        pick_value("reconstruction", "after", "relative_error"),
        format_value(pick_value("reconstruction", "after", "relative_error"), ".4f"),
        grade_value((0.6, "much is lost"), (0.3, "some is lost"), rest="little is lost"),
    ),
    Measure(
        "agreement_1",
        "Neighbours on the first code",
        "higher",
        "vectors",
        "Of the 10 nearest items by embedding, how many share the first code: 0 is chance, 1 the "
        "most that the sizes of the groups allow, so large groups win nothing by their size.",
        pick_value("neighbours", "prefixes", 0, "agreement"),
        format_value(pick_value("neighbours", "prefixes", 0, "agreement"), ".3f"),
        _NEAR,
    ),
    Measure(
        "agreement_2",
        "Neighbours on two codes",
        "higher",
        "vectors",
        "The same for the first two codes.",
        pick_value("neighbours", "prefixes", 1, "agreement"),
        format_value(pick_value("neighbours", "prefixes", 1, "agreement"), ".3f"),
        _NEAR,
    ),
    Measure(
        "rank_correlation",
        "Longer prefix, nearer item",
        "higher",
        "vectors",
        "Spearman's rank correlation of the length of the shared prefix and the cosine, over pairs "
        "of near and of random items: 1 where each further shared code means nearer.",
        pick_value("neighbours", "rank_correlation"),
        format_value(pick_value("neighbours", "rank_correlation"), ".3f"),
        grade_value(
            (0.7, "a shared code means near"),
            (0.4, "a shared code often means near"),
            rest="a shared code says little about nearness",
        ),
    ),
    Measure(
        "ami_root",
        "Main categories in the first code",
        "higher",
        "data",
        "Adjusted mutual information of first codes and main categories: 0 is chance however many "
        "codes there are, 1 is the same division. It cannot reach 1 with more codes than "
        "categories.",
        pick_value("categories", "root", "prefixes", 0, "ami"),
        format_value(pick_value("categories", "root", "prefixes", 0, "ami"), ".3f"),
        _KNOWS,
    ),
    Measure(
        "ami_leaf",
        "Fine categories in the first code",
        "higher",
        "data",
        "The same for whole category paths.",
        pick_value("categories", "leaf", "prefixes", 0, "ami"),
        format_value(pick_value("categories", "leaf", "prefixes", 0, "ami"), ".3f"),
        _KNOWS,
    ),
    Measure(
        "purity_root",
        "Purity of the first code",
        "higher",
        "data",
        "The share of items whose main category is the commonest of their first code. More codes "
        "are purer by chance alone: compare with the value for shuffled categories.",
        pick_value("categories", "root", "prefixes", 0, "purity"),
        _show_purity("root"),
        grade_value(
            (0.9, "first codes hold one main category"),
            (0.7, "first codes hold mostly one main category"),
            rest="first codes mix main categories",
        ),
    ),
    Measure(
        "popularity_gini",
        "Gini of demand on first codes",
        "lower",
        "data",
        "How unevenly training interactions fall on first codes: 0 where each is chosen as often, "
        "near 1 where one is chosen always.",
        pick_value("popularity", "gini"),
        format_value(pick_value("popularity", "gini"), ".3f"),
        grade_value(
            (0.6, "few first codes carry most choices"),
            (0.4, "uneven"),
            rest="demand is spread well",
        ),
    ),
    Measure(
        "size_correlation",
        "Group size and popularity",
        "neither",
        "data",
        "Rank correlation of how many items a first code has and how often one of them is chosen; "
        "0 is no relation, below 0 popular items sit in small groups.",
        pick_value("popularity", "size_correlation"),
        format_value(pick_value("popularity", "size_correlation"), "+.3f"),
        grade_value(
            (0.3, "popular items sit in large groups"),
            (-0.3, "no strong relation"),
            rest="popular items sit in small groups",
        ),
    ),
)


def compare_measures(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The side-by-side table: one row a measure that any vocabulary has; plain JSON values.

    Keys of a row: `key`, `title`, `better`, `meaning`, `comparable` (whether all rest on the same
    items, vectors or data), and by vocabulary `values`, `texts`, `verdicts`, and `best`, the names
    of the best; empty where nothing can be called that.
    """
    rows = []
    for measure in MEASURES:
        values = {row["name"]: measure.read(row) for row in measured}
        known = {name: float(value) for name, value in values.items() if value is not None}
        if not known:
            continue
        having = [row for row in measured if row["name"] in known]
        comparable = len({row["basis"][measure.basis] for row in having}) == 1
        rows.append(
            {
                "key": measure.key,
                "title": measure.title,
                "better": measure.better,
                "meaning": measure.meaning,
                "comparable": comparable,
                "values": known,
                "texts": {row["name"]: measure.show(row) for row in having},
                "verdicts": {name: measure.judge(value) for name, value in known.items()},
                "best": _find_best(known, measure.better) if comparable else [],
            }
        )
    return rows


def _find_best(known: Mapping[str, float], better: Better) -> list[str]:
    """The names with the best value; none where nothing is better, or all are alike."""
    if better == "neither" or max(known.values()) - min(known.values()) <= _SAME:
        return []
    best = max(known.values()) if better == "higher" else min(known.values())
    return [name for name, value in known.items() if abs(value - best) <= _SAME]
