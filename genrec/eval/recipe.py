"""The recipe of the `eval` step.

Owns which values an evaluation has and what they mean. Imports nothing heavy: the command line
loads it to check recipes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from genrec.errors import RecipeError
from genrec.eval.metrics import Metric
from genrec.recipe import Recipe


class EvalRecipe(Recipe):
    """What is measured, on whom, beside which baselines, and how surely."""

    name: str = Field(
        default="", description="The data set's name in the report; by default that of the data."
    )
    split: Literal["test", "valid"] = Field(
        default="test", description="The held-out items to predict; choose settings on valid."
    )
    metrics: tuple[str, ...] = Field(
        default=("HR@5", "HR@10", "NDCG@5", "NDCG@10", "Recall@10", "MRR@10"),
        min_length=1,
        description="NAME@k, NAME one of HR, Recall, NDCG, MRR; the longest k costs time.",
    )
    systems: tuple[str, ...] = Field(
        default=("popularity", "markov", "oracle"),
        description="Baselines beside the model; oracle appears only where the data knows it.",
    )
    exclude_seen: bool = Field(
        default=True, description="Whether a user's own history is left out of the answers."
    )
    max_users: int | None = Field(
        default=None, ge=2, description="Evaluate a seeded sample of that many users; all if unset."
    )
    batch_size: int = Field(
        default=64, ge=1, description="Users ranked at once; more is faster and takes more memory."
    )
    n_bootstrap: int = Field(
        default=1000, ge=100, description="Resamples behind each interval; more steadies its ends."
    )
    n_permutations: int = Field(
        default=10_000, ge=100, description="Sign flips behind each p-value; 1/n is the smallest."
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1.0, description="Coverage of the intervals; higher is wider."
    )
    n_examples: int = Field(
        default=8, ge=0, description="Users shown with history and answers in the report."
    )

    @field_validator("metrics")
    @classmethod
    def _parse_metrics(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        problems, parsed = [], []
        for text in texts:
            try:
                parsed.append(str(Metric.parse(text)))
            except RecipeError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        return tuple(dict.fromkeys(parsed))

    @field_validator("systems")
    @classmethod
    def _drop_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))

    @property
    def parsed_metrics(self) -> tuple[Metric, ...]:
        """The metrics as values, in the recipe's order."""
        return tuple(Metric.parse(text) for text in self.metrics)

    @property
    def depth(self) -> int:
        """The largest cutoff: how many answers a user each system must give."""
        return max(metric.k for metric in self.parsed_metrics)
