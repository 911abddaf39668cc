"""What a prompts recipe would write, without writing it.

Owns counting rows, measuring their length on a sample, and choosing examples. Returns plain values,
fit for JSON; shows nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genrec.data.dataset import load_dataset
from genrec.errors import ModelError
from genrec.prompts.corpus import Corpus, hold_out_valid, read_corpus
from genrec.prompts.encode import encode_example
from genrec.prompts.library import Library, build_library
from genrec.prompts.plan import RowPlan, find_missing, plan_train, plan_valid
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.render import Rendered
from genrec.prompts.rows import write_tables
from genrec.types import IndexArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_ROWS = 200
"""Rows of each template that lengths are measured on."""

EXAMPLES = 3
LONGEST = 5
DOMINATING = 0.6
"""A wording with more of its task's rows, where there are three or more, hides the others."""

SPELLED = re.compile(r"<u?[a-z]_\d+>")
_FEW_WORDINGS = 3


@dataclass(frozen=True, slots=True)
class TemplateCount:
    """What one template gives.

    Attributes:
        rows: over all passes.
        off: why it gives none: the fields that no row has a value for, or another reason.
        characters: a row's mean, prompt and target together.
        sid_tokens: tokens of semantic ids in a row, in the mean.
        tokens: a row's mean by the language model's tokenizer; None without one.
        longest: the longest row's tokens, or characters where there is no tokenizer.
    """

    family: str
    task: str
    template: str
    mark: str
    rows: int
    off: str
    characters: float
    sid_tokens: float
    tokens: float | None
    longest: int


def preview_rows(
    recipe: PromptsRecipe,
    data: str | Path,
    tokenizer: str | Path,
    *,
    users: str | Path | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """Rows by pass, task, family and template, their lengths, and examples of every family.

    Args:
        recipe: what would be written.
        data: the data artefact.
        tokenizer: the items' tokenizer artefact.
        users: a tokenizer artefact of the users.
        base: directory or hub name of a language model or its tokenizer, which tokens are counted
            with; without it there are characters and tokens of semantic ids.

    Raises:
        ArtifactError: an input is unusable.
        ModelError: no tokenizer can be loaded from `base`.
        RecipeError: an unknown task, template file or template.
        TemplateError: a template that breaks a rule.
    """
    library = build_library(recipe)
    dataset = load_dataset(Path(data))
    corpus, _ = read_corpus(recipe, dataset, tokenizer, users)
    counter = None if base is None else _load_tokenizer(base, corpus)
    plan = plan_train(corpus, library, recipe)
    valid = plan_valid(hold_out_valid(corpus, dataset), library, recipe)
    samples = {
        place: _Sample(corpus, library, plan, place, counter)
        for place in range(len(library.templates))
    }
    counts = [
        _count_template(corpus, library, recipe, place, sample) for place, sample in samples.items()
    ]
    rows = np.bincount(plan.number, minlength=recipe.passes).tolist()
    return {
        "rows": len(plan),
        "rows_by_pass": rows,
        "valid_rows": len(valid),
        "templates": [asdict(count) for count in counts],
        "tasks": _add_up(counts, "task"),
        "families": _add_up(counts, "family"),
        "totals": _add_up(counts, None)["all"] | {"base": base},
        "dominating": _find_dominating(counts),
        "longest": _list_longest(library, samples),
        "examples": _choose_examples(library, samples),
    }


class _Sample:
    """Some rows of one template, rendered and measured."""

    def __init__(
        self,
        corpus: Corpus,
        library: Library,
        plan: RowPlan,
        place: int,
        counter: PreTrainedTokenizerBase | None,
    ) -> None:
        chosen = np.flatnonzero(plan.template == place)
        self.n_rows = len(chosen)
        sample = chosen[np.linspace(0, len(chosen) - 1, min(SAMPLE_ROWS, len(chosen))).astype(int)]
        self.rows = _render(corpus, library, plan, sample)
        self.characters = [len(row["prompt"]) + len(row["target"]) for row in self.rows]
        self.sid_tokens = [
            len(SPELLED.findall(row["prompt"])) + len(SPELLED.findall(row["target"]))
            for row in self.rows
        ]
        self.tokens = None if counter is None else [_count(counter, row) for row in self.rows]


def _render(
    corpus: Corpus, library: Library, plan: RowPlan, rows: IndexArray
) -> list[dict[str, Any]]:
    if not len(rows):
        return []
    tables = write_tables(corpus, library, plan.take(rows))
    return [row for table in tables for row in table.to_pylist()]


def _count(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> int:
    prompt, target = (
        Rendered(row[part], tuple((start, end) for start, end in row[f"{part}_spans"]))
        for part in ("prompt", "target")
    )
    return len(encode_example(tokenizer, prompt, target)[0])


def _load_tokenizer(base: str, corpus: Corpus) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, with the semantic ids' tokens as training adds them."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, and only here

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"no tokenizer can be loaded from {base!r} ({first}); name the directory or hub name "
            f"of a language model, or leave --lm out to count characters"
        ) from error
    spelled = {token for sid in [*corpus.sids, *(corpus.user_sids or [])]
               for token in SPELLED.findall(sid)}  # fmt: skip
    tokenizer.add_tokens(sorted(spelled))
    return tokenizer


def _count_template(
    corpus: Corpus, library: Library, recipe: PromptsRecipe, place: int, sample: _Sample
) -> TemplateCount:
    template = library.templates[place].template
    lengths = sample.tokens if sample.tokens is not None else sample.characters
    return TemplateCount(
        family=library.families[place],
        task=template.task,
        template=template.id,
        mark=template.mark,
        rows=sample.n_rows,
        off="" if sample.n_rows else _explain_off(corpus, library, recipe, place),
        characters=_mean(sample.characters),
        sid_tokens=_mean(sample.sid_tokens),
        tokens=None if sample.tokens is None else _mean(sample.tokens),
        longest=max(lengths, default=0),
    )


def _mean(values: Sequence[int]) -> float:
    return round(float(np.mean(values)), 1) if values else 0.0


def _explain_off(corpus: Corpus, library: Library, recipe: PromptsRecipe, place: int) -> str:
    """Why a template gives no row."""
    template = library.templates[place].template
    if template.mark == "unseen":
        return "unseen: kept back for tests"
    if template.task not in library.tasks:
        return f"the recipe writes no {template.task} rows"
    task = library.find_task(place)
    subjects = task.find_subjects(corpus.with_pass(0), recipe)
    if not len(subjects):
        return f"the data has nothing for {template.task} rows"
    missing = find_missing(corpus, library, task, place, subjects)
    if missing:
        hint = "; give --users" if "user_sid" in missing else ""
        return f"no value for {', '.join(missing)}{hint}"
    return "no row has all its fields, or none was drawn"


def _add_up(counts: Sequence[TemplateCount], by: str | None) -> dict[str, dict[str, float | None]]:
    """Rows, characters and tokens over templates; each mean counts as often as it has rows."""
    groups: dict[str, list[TemplateCount]] = defaultdict(list)
    for count in counts:
        groups[getattr(count, by) if by else "all"].append(count)
    return {
        name: {
            "rows": sum(count.rows for count in group),
            "characters": round(sum(count.rows * count.characters for count in group)),
            "sid_tokens": round(sum(count.rows * count.sid_tokens for count in group)),
            "tokens": None
            if any(count.tokens is None for count in group)
            else round(sum(count.rows * (count.tokens or 0) for count in group)),
        }
        for name, group in groups.items()
    }


def _find_dominating(counts: Sequence[TemplateCount]) -> dict[str, float]:
    """Templates that write most of their task's rows, with their share."""
    by_task: dict[str, list[TemplateCount]] = defaultdict(list)
    for count in counts:
        if count.mark == "seen":
            by_task[count.task].append(count)
    return {
        count.template: round(count.rows / total, 3)
        for group in by_task.values()
        for total in [sum(count.rows for count in group)]
        for count in group
        if len(group) >= _FEW_WORDINGS and total and count.rows / total > DOMINATING
    }


def _list_longest(library: Library, samples: dict[int, _Sample]) -> list[dict[str, Any]]:
    """The longest rows of the sample, one a template."""
    found: list[dict[str, Any]] = []
    for place, sample in samples.items():
        if not sample.rows:
            continue
        lengths = sample.tokens if sample.tokens is not None else sample.characters
        row = int(np.argmax(lengths))
        found.append(
            {
                "template": library.templates[place].template.id,
                "characters": sample.characters[row],
                "tokens": None if sample.tokens is None else sample.tokens[row],
                "prompt": sample.rows[row]["prompt"],
                "target": sample.rows[row]["target"],
            }
        )
    by = "characters" if any(row["tokens"] is None for row in found) else "tokens"
    return sorted(found, key=lambda row: -row[by])[:LONGEST]


def _choose_examples(
    library: Library, samples: dict[int, _Sample]
) -> dict[str, list[dict[str, str]]]:
    """A few rows of every family, of as many templates as there are."""
    families: dict[str, list[Iterator[dict[str, Any]]]] = defaultdict(list)
    for place, sample in samples.items():
        if sample.rows:
            families[library.families[place]].append(iter(sample.rows))
    examples: dict[str, list[dict[str, str]]] = {}
    for family, sources in families.items():
        chosen: list[dict[str, Any]] = []
        for turn in range(EXAMPLES):
            source = sources[turn * max(len(sources) // EXAMPLES, 1) % len(sources)]
            chosen += [row for row in [next(source, None)] if row is not None]
        examples[family] = [
            {name: row[name] for name in ("template", "task", "prompt", "target")} for row in chosen
        ]
    return examples
