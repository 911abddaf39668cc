"""The `eval` step: a report artefact from data, a model and baselines.

Owns the order of the work and the files of the artefact. Takes the systems as they are handed over
and loads no model: whoever has one passes it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from genrec.artifact import Artifact, load_artifact, write_artifact
from genrec.data.dataset import Dataset, load_dataset
from genrec.errors import RecipeError
from genrec.eval.baselines import BASELINES
from genrec.eval.protocol import (
    Question,
    evaluate_systems,
    sample_users,
    take_rankings,
    take_users,
)
from genrec.eval.provenance import ModelRecord, read_model, trace_steps
from genrec.eval.recipe import EvalRecipe
from genrec.eval.report import ReportInput, write_report
from genrec.eval.summary import Summary, summarize, tabulate_rankings, tabulate_users
from genrec.manifest import find_versions, write_json
from genrec.recipe import find_choice
from genrec.types import IndexArray, RankedItems, RanksItems

ORACLE = "oracle"
_log = logging.getLogger(__name__)


def make_report(
    recipe: EvalRecipe,
    data: str | Path,
    out: str | Path,
    *,
    systems: Sequence[RanksItems] = (),
    model: str | Path | None = None,
) -> Artifact:
    """The report artefact: metrics.json, per_user.parquet, rankings.parquet and report.html.

    Args:
        recipe: what is measured, on whom, beside which baselines.
        data: the data artefact.
        out: the directory to write.
        systems: what is evaluated, loaded and ready; the first is the one the report is about.
        model: the model artefact that the first system was loaded from, for the report.

    Raises:
        ArtifactError: an input is missing, half written or changed.
        DataError: nobody to evaluate, or a system, model and data that do not belong together.
        CapacityError: a cutoff above the catalogue's size.
        RecipeError: an unknown baseline, or nothing to evaluate.
    """
    dataset = load_dataset(data)
    inputs = {"data": dataset.artifact}
    record: ModelRecord | None = None
    if model is not None:
        inputs["train"] = load_artifact(model, step="train")
        record = read_model(inputs["train"], dataset)
    question, rows = _ask_question(recipe, dataset)
    everyone = [*systems, *_fit_baselines(recipe, dataset)]
    known = _find_oracle(recipe, dataset, rows)
    if not everyone and not known:
        raise RecipeError("there is no system to evaluate; name a baseline in `systems`")
    results = evaluate_systems(question, everyone, known=known, batch_size=recipe.batch_size)
    summary = summarize(results, recipe, recipe.name or name_dataset(dataset))
    with write_artifact(out, step="eval", recipe=recipe, inputs=inputs) as work:
        write_json(work.path / "metrics.json", summary.as_json())
        user_index = question.holdout.user_index
        tabulate_users(results, user_index).write_parquet(work.path / "per_user.parquet")
        tabulate_rankings(results, user_index).write_parquet(work.path / "rankings.parquet")
        given = ReportInput(
            recipe=recipe,
            summary=summary,
            results=results,
            question=question,
            dataset=dataset,
            model=record,
            steps=trace_steps(*inputs.values()),
            versions=find_versions(),
        )
        write_report(work.path / "report.html", given)
        work.facts["users"] = summary.users
        work.facts["seconds"] = {
            result.name: round(result.seconds, 3)
            for result in results
            if result.seconds is not None
        }
    _log_summary(summary, work.artifact.path)
    return work.artifact


def name_dataset(dataset: Dataset) -> str:
    """What to call the data: the folder or file it was read from, else its source."""
    recipe = dataset.artifact.manifest.recipe
    named = recipe.get("name") or recipe.get("path") or recipe.get("interactions")
    if named:
        return Path(str(named)).name or str(named)
    return str(recipe.get("source") or dataset.artifact.path.name)


def _ask_question(recipe: EvalRecipe, dataset: Dataset) -> tuple[Question, IndexArray]:
    """The question, and which rows of the split's users it asks about."""
    holdout = dataset.holdout(recipe.split)
    rows = sample_users(holdout, recipe.max_users, recipe.seed)
    user_ids = dataset.users.sort("user_index")["user_id"].to_list()
    question = Question(
        holdout=take_users(holdout, rows),
        user_ids=tuple(user_ids[user] for user in holdout.user_index[rows].tolist()),
        n_items=dataset.n_items,
        metrics=recipe.parsed_metrics,
        exclude_seen=recipe.exclude_seen,
    )
    return question, rows


def _fit_baselines(recipe: EvalRecipe, dataset: Dataset) -> list[RanksItems]:
    """The recipe's baselines, fitted on the training split, whichever split is evaluated."""
    chosen = [find_choice("baseline", name, BASELINES) for name in recipe.systems if name != ORACLE]
    sequences = dataset.sequences(("train",)).histories() if chosen else []
    return [fit(sequences, dataset.n_items, seed=recipe.seed) for fit in chosen]


def _find_oracle(recipe: EvalRecipe, dataset: Dataset, rows: IndexArray) -> dict[str, RankedItems]:
    """The best possible ranking where it is known and asked for, and answers this question."""
    if ORACLE not in recipe.systems:
        return {}
    oracle = dataset.oracle() if recipe.split == "test" and recipe.exclude_seen else None
    if oracle is None:
        _log.info("eval: no oracle is known for this data and split; its row is left out")
        return {}
    if oracle.item_index.shape[1] < recipe.depth:
        _log.info(
            "eval: the oracle ranks %d items, a metric wants %d; its row is left out",
            oracle.item_index.shape[1],
            recipe.depth,
        )
        return {}
    return {ORACLE: take_rankings(oracle, rows, recipe.depth)}


def _log_summary(summary: Summary, path: Path) -> None:
    for name, values in summary.systems.items():
        shown = ", ".join(f"{metric} {value.mean:.4f}" for metric, value in values.items())
        _log.info("eval: %s: %s", name, shown)
    _log.info("eval: the report is %s", path / "report.html")
