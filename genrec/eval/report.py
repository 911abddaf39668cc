"""The report: one HTML file that says what was run, what came out, and how sure that is.

Owns the choice and wording of what is shown; `report.html.j2` owns how. The file is whole in
itself: no script, no foreign address, pictures inline. Everything that comes from data is escaped
by the template engine, and a content security policy stands behind it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from genrec.data.dataset import Dataset
from genrec.eval.plots import plot_code_use, plot_losses, plot_metrics
from genrec.eval.protocol import Question, SystemResult
from genrec.eval.provenance import ModelRecord
from genrec.eval.recipe import EvalRecipe
from genrec.eval.summary import Summary
from genrec.html_page import render_page
from genrec.manifest import Manifest
from genrec.types import IndexArray

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_SHOWN_HISTORY = 8
_SHOWN_ANSWERS = 10
_LONGEST_VALUE = 400


@dataclass(frozen=True, slots=True)
class ReportInput:
    """All that a report is made of."""

    recipe: EvalRecipe
    summary: Summary
    results: Sequence[SystemResult]
    question: Question
    dataset: Dataset
    model: ModelRecord | None
    steps: Mapping[str, Manifest]
    versions: Mapping[str, str]


def write_report(path: Path, given: ReportInput) -> None:
    """Write the report to `path`."""
    path.write_text(render_report(given), encoding="utf-8")


def render_report(given: ReportInput) -> str:
    """The report as HTML text."""
    recipe, summary = given.recipe, given.summary
    held_out = len(given.dataset.holdout(recipe.split).user_index)
    return render_page(
        _TEMPLATE,
        recipe=recipe,
        summary=summary,
        version=given.versions.get("genrec", "from a checkout"),
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        sampled=summary.users < held_out,
        n_items=given.question.n_items,
        valid_rate=_format_share(summary.valid_item_rate),
        confidence=f"{recipe.confidence:.0%}",
        alpha=f"{1 - recipe.confidence:.2g}",
        results=_list_results(given),
        plots=list(_draw_plots(given)),
        examples=list(_pick_examples(given)),
        counts=_list_counts(given.dataset),
        data_facts=list(_list_data_facts(given, held_out)),
        steps=list(_list_steps(given)),
    )


def _format_share(share: float) -> str:
    # Rounded down, so that only all of them read as 100%.
    return "100%" if share == 1.0 else f"{np.floor(share * 10_000) / 100:.2f}%"


def _format_seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:,.1f} s"


def _list_results(given: ReportInput) -> list[dict[str, Any]]:
    summary = given.summary
    rivals = [name for name in summary.systems if name != "oracle"] or list(summary.systems)
    best = {
        metric: max(summary.systems[name][metric].mean for name in rivals)
        for metric in given.recipe.metrics
    }
    marks = _find_marks(summary, 1 - given.recipe.confidence)
    return [
        {
            "name": result.name,
            "valid": _format_share(result.valid_rate),
            "seconds": _format_seconds(result.seconds),
            "cells": [
                {
                    "mean": f"{value.mean:.4f}",
                    "low": f"{value.low:.4f}",
                    "high": f"{value.high:.4f}",
                    "best": result.name in rivals and value.mean == best[metric] > 0,
                    "mark": marks.get((result.name, metric), ""),
                }
                for metric, value in summary.systems[result.name].items()
            ],
        }
        for result in given.results
    ]


def _find_marks(summary: Summary, alpha: float) -> dict[tuple[str, str], str]:
    """How each system stands against the first, by system and metric."""
    lead = next(iter(summary.systems))
    marks = {}
    for row in summary.comparisons:
        if row.a == lead:
            sure = row.p_value < alpha
            marks[row.b, row.metric] = ("▼" if row.difference > 0 else "▲") if sure else "≈"
    return marks


def _draw_plots(given: ReportInput) -> Iterator[dict[str, Any]]:
    model = given.model
    yield {
        "title": "Metrics with intervals",
        "svg": Markup(plot_metrics(given.summary.systems)),
        "note": f"Bars are {given.recipe.confidence:.0%} bootstrap intervals over users.",
    }
    if model is not None and model.losses:
        yield {
            "title": "Loss",
            "svg": Markup(plot_losses(model.losses)),
            "note": "Training loss as logged, validation loss whenever it was measured.",
        }
    if model is not None and model.codes is not None:
        yield {
            "title": "Code use",
            "svg": Markup(plot_code_use(model.codes, model.codebook_sizes)),
            "note": _describe_quality(model.quality),
        }


def _describe_quality(quality: Mapping[str, Any]) -> str:
    collisions, levels = quality.get("collision_rate"), quality.get("levels")
    if not isinstance(collisions, dict) or not isinstance(levels, list):
        return "Flat is even use; steep means that few codes carry most items."
    perplexity = ", ".join(f"{level.get('perplexity', 0):.0f}" for level in levels)
    return (
        f"Perplexity by level: {perplexity}. Items that shared a code sequence: "
        f"{collisions.get('before', 0):.2%} before they were told apart, "
        f"{collisions.get('after', 0):.2%} after."
    )


def _pick_examples(given: ReportInput) -> Iterator[dict[str, Any]]:
    lead, holdout = given.results[0], given.question.holdout
    titles = _list_titles(given.dataset)
    for row in _pick_users(lead.target_rank, given.recipe.n_examples, given.recipe.seed):
        history, targets = holdout.histories[row], holdout.targets[row]
        answers = [item for item in lead.ranked.item_index[row] if 0 <= item < len(titles)]
        yield {
            "n_history": len(history),
            "first": max(0, len(history) - _SHOWN_HISTORY) + 1,
            "history": [titles[item] for item in history[-_SHOWN_HISTORY:]],
            "targets": [titles[item] for item in targets],
            "rank": int(lead.target_rank[row]),
            "answers": [
                {"title": titles[item], "hit": item in targets} for item in answers[:_SHOWN_ANSWERS]
            ],
        }


def _pick_users(target_rank: IndexArray, n_examples: int, seed: int) -> list[int]:
    """Rows drawn at random: as many hits as misses where there are enough of both."""
    rng = np.random.default_rng(seed)
    hits, misses = (
        rng.permutation(np.flatnonzero(found)) for found in (target_rank > 0, target_rank == 0)
    )
    n_hits = min(len(hits), max(n_examples - n_examples // 2, n_examples - len(misses)))
    chosen = np.concatenate([hits[:n_hits], misses[: n_examples - n_hits]])
    return [int(row) for row in chosen]


def _list_titles(dataset: Dataset) -> list[str]:
    """What to call each item: its title, or its id where it has none."""
    titles = dataset.items["title"].to_list() if "title" in dataset.items.columns else []
    if not titles:
        return list(dataset.item_ids)
    return [title or item_id for title, item_id in zip(titles, dataset.item_ids, strict=True)]


def _list_counts(dataset: Dataset) -> list[dict[str, str]]:
    counts = dataset.artifact.manifest.facts.get("counts", [])
    keys = ("users", "items", "interactions")
    return [
        {"stage": str(row["stage"])} | {key: f"{row.get(key, 0):,}" for key in keys}
        for row in counts
    ]


def _list_data_facts(given: ReportInput, held_out: int) -> Iterator[tuple[str, str]]:
    holdout, split = given.question.holdout, given.recipe.split
    for name in ("train", "valid", "test"):
        yield f"{name} interactions", f"{len(given.dataset.sequences((name,)).item_index):,}"
    yield f"users with a {split} item and a history", f"{held_out:,}"
    yield "users evaluated", f"{given.question.n_users:,}"
    yield (
        "users left out",
        (
            f"{holdout.n_without_target:,} without a {split} item, "
            f"{holdout.n_without_history:,} without a history"
        ),
    )
    lengths = [len(history) for history in holdout.histories]
    yield "items in a history", f"{np.median(lengths):g} (median), {max(lengths)} at most"
    pairs = zip(holdout.histories, holdout.targets, strict=True)
    repeats = sum(bool(np.isin(targets, history).all()) for history, targets in pairs)
    if repeats and given.recipe.exclude_seen:
        yield (
            "out of reach",
            f"{repeats:,} users whose only targets are in their own history, which is left out: "
            f"they score zero for every system",
        )


def _list_steps(given: ReportInput) -> Iterator[dict[str, Any]]:
    for name, manifest in given.steps.items():
        groups = [
            ("Recipe", dict(manifest.recipe)),
            ("Facts", {k: v for k, v in manifest.facts.items() if k != "counts"}),
            ("Versions", manifest.versions),
        ]
        yield {
            "name": name,
            "seed": manifest.seed,
            "time": f", {_format_seconds(manifest.seconds)}, {manifest.created}",
            "groups": [_make_group(title, values) for title, values in groups if values],
        }
    groups = [("Recipe", given.recipe.model_dump(mode="json")), ("Versions", dict(given.versions))]
    yield {
        "name": "eval",
        "seed": given.recipe.seed,
        "time": "",
        "groups": [_make_group(title, values) for title, values in groups],
    }


def _make_group(title: str, values: Mapping[str, Any]) -> dict[str, Any]:
    pairs = [(key, _shorten(value)) for key, value in values.items() if value is not None]
    return {"title": title, "pairs": pairs}


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
