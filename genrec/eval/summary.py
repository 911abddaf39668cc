"""What an evaluation says: means with intervals, comparisons, and the tables behind them.

Owns the schema of `metrics.json`, `per_user.parquet` and `rankings.parquet`. Knows neither how
answers were found nor how a report looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec.eval.metrics import Metric
from genrec.eval.protocol import SystemResult
from genrec.eval.recipe import EvalRecipe
from genrec.eval.statistics import PairedTest, bootstrap_interval, compare_pairs
from genrec.types import IndexArray, MetricValue

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on one metric: the mean of a - b over users, with the paired test's p-value."""

    a: str
    b: str
    metric: str
    difference: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that `metrics.json` holds; the first system is the one the report is about."""

    dataset: str
    split: str
    users: int
    valid_item_rate: float
    systems: dict[str, dict[str, MetricValue]]
    comparisons: tuple[Comparison, ...]

    def as_json(self) -> dict[str, Any]:
        """The values of `metrics.json`, as DESIGN.md fixes them."""
        return {
            "schema": SCHEMA,
            "dataset": self.dataset,
            "split": self.split,
            "users": self.users,
            "valid_item_rate": self.valid_item_rate,
            "systems": {
                name: {
                    metric: {"mean": value.mean, "low": value.low, "high": value.high}
                    for metric, value in values.items()
                }
                for name, values in self.systems.items()
            },
            "comparisons": [
                {
                    "a": row.a,
                    "b": row.b,
                    "metric": row.metric,
                    "difference": row.difference,
                    "p_value": row.p_value,
                }
                for row in self.comparisons
            ],
        }


def summarize(results: Sequence[SystemResult], recipe: EvalRecipe, dataset: str) -> Summary:
    """Means with intervals of every system, and every pair of systems compared.

    Args:
        results: one a system, all over the same users.
        recipe: resamples, confidence and seed.
        dataset: the data set's name.
    """
    answered = [result.valid_rate for result in results if result.seconds is not None]
    return Summary(
        dataset=dataset,
        split=recipe.split,
        users=len(results[0].target_rank),
        # The worst system's rate, so that 1.0 means that no system gave an invalid answer.
        valid_item_rate=min(answered or [result.valid_rate for result in results]),
        systems={
            result.name: {
                str(metric): _find_interval(result, metric, recipe)
                for metric in recipe.parsed_metrics
            }
            for result in results
        },
        comparisons=tuple(
            _compare(first, second, metric, recipe)
            for first, second in combinations(results, 2)
            for metric in recipe.parsed_metrics
        ),
    )


def _find_interval(result: SystemResult, metric: Metric, recipe: EvalRecipe) -> MetricValue:
    interval = bootstrap_interval(
        result.scores[metric],
        n_bootstrap=recipe.n_bootstrap,
        confidence=recipe.confidence,
        seed=recipe.seed,
    )
    return MetricValue(str(metric), interval.mean, interval.low, interval.high)


def _compare(
    first: SystemResult, second: SystemResult, metric: Metric, recipe: EvalRecipe
) -> Comparison:
    test: PairedTest = compare_pairs(
        first.scores[metric],
        second.scores[metric],
        n_permutations=recipe.n_permutations,
        seed=recipe.seed,
    )
    return Comparison(first.name, second.name, str(metric), test.difference, test.p_value)


def tabulate_users(results: Sequence[SystemResult], user_index: IndexArray) -> pl.DataFrame:
    """One row a system and user: the target's rank (null if not found) and every metric's value."""
    return pl.concat(
        pl.DataFrame(
            {
                "system": pl.Series([result.name] * len(user_index), dtype=pl.String),
                "user_index": user_index,
                "target_rank": result.target_rank,
                **{str(metric): values for metric, values in result.scores.items()},
            }
        ).with_columns(pl.col("target_rank").replace(0, None))
        for result in results
    )


def tabulate_rankings(results: Sequence[SystemResult], user_index: IndexArray) -> pl.DataFrame:
    """One row a system and user: the answers as they were given, best first, with their scores."""
    return pl.concat(_tabulate_ranking(result, user_index) for result in results)


def _tabulate_ranking(result: SystemResult, user_index: IndexArray) -> pl.DataFrame:
    given = result.ranked.item_index != -1
    offsets = pa.array(np.append(0, np.cumsum(given.sum(axis=1))), type=pa.int64())
    # Through Arrow: polars would make lists of one length an array type, and so another schema.
    items = pa.LargeListArray.from_arrays(offsets, result.ranked.item_index[given])
    scores = pa.LargeListArray.from_arrays(offsets, result.ranked.scores[given])
    return pl.DataFrame(
        {
            "user_index": user_index,
            "system": pl.Series([result.name] * len(user_index), dtype=pl.String),
            "item_index": pl.Series(items),
            "scores": pl.Series(scores),
        }
    )
