"""Which rows are written, with which wording, in which order.

Owns all the chance in the step: repeats, wordings, the sample and the shuffle, each from the
recipe's seed and the pass. A plan is three arrays, far smaller than the rows would be. Writes
nothing.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.errors import TemplateError, join_problems
from genrec.prompts.corpus import Corpus
from genrec.prompts.library import Library
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.tasks.task import Field, Task
from genrec.types import IndexArray

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Rows to be written, in order.

    Shapes:
        template: (R,) int64, places in the library's templates.
        subject: (R,) int64, subjects of that template's task.
        number: (R,) int64, the pass that each row belongs to; rising.
    """

    template: IndexArray
    subject: IndexArray
    number: IndexArray

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.subject)

    def take(self, rows: IndexArray) -> RowPlan:
        """The plan of these rows, in this order."""
        return RowPlan(self.template[rows], self.subject[rows], self.number[rows])


def plan_train(corpus: Corpus, library: Library, recipe: PromptsRecipe) -> RowPlan:
    """The training rows, pass by pass, each drawn anew, shuffled, and cut to `max_rows`.

    Raises:
        TemplateError: templates that show semantic ids, and items have none.
    """
    _check_ids(corpus, library)
    return _join_plans(
        [_plan_pass(corpus, library, recipe, number) for number in range(recipe.passes)]
    )


def _check_ids(corpus: Corpus, library: Library) -> None:
    """Raise where rows would show ids that items do not have: their titles are their ids."""
    if corpus.has_sids:
        return
    problems = []
    for place, compiled in enumerate(library.templates):
        needed = _list_needed(library, library.find_task(place), place)
        names = sorted({n for n, field in needed if field.trusted and not n.startswith("user_")})
        if names:
            problems.append(f"template {compiled.template.id!r} shows {', '.join(names)}")
    if problems:
        subject = (
            "the tokenizer's IDs are titles, and no item has tokens such as <a_12>; use templates "
            "of titles, as `title-prompts` does, or a tokenizer of another recipe"
        )
        raise TemplateError(join_problems(subject, problems))


def _plan_pass(corpus: Corpus, library: Library, recipe: PromptsRecipe, number: int) -> RowPlan:
    drawn = corpus.with_pass(number)
    whole = _join_plans(
        [
            RowPlan(*rows, np.full(len(rows[0]), number, dtype=np.int64))
            for name, task in library.tasks.items()
            for rows in _plan_task(drawn, library, recipe, name, task, number)
        ]
    )
    order = _make_generator(recipe, "order", number).permutation(len(whole))
    return whole.take(order[: recipe.max_rows])


def _join_plans(plans: Sequence[RowPlan]) -> RowPlan:
    return RowPlan(
        np.concatenate([plan.template for plan in plans]),
        np.concatenate([plan.subject for plan in plans]),
        np.concatenate([plan.number for plan in plans]),
    )


def plan_valid(corpus: Corpus, library: Library, recipe: PromptsRecipe) -> RowPlan:
    """The validation rows: each user's last place in the walks, worded as for recommendation."""
    offsets = corpus.walks.offsets
    subject = offsets[1:][np.diff(offsets) > 1] - 1
    chosen = library.find_task(library.recommend)
    for name in library.templates[library.recommend].target.names:
        subject = subject[chosen.target_fields[name].find_filled(corpus, subject)]
    most = recipe.max_valid_rows
    if most is not None and most < len(subject):
        drawn = _make_generator(recipe, "valid").choice(len(subject), size=most, replace=False)
        subject = subject[np.sort(drawn)]
    return RowPlan(
        np.full(len(subject), library.recommend, dtype=np.int64), subject, np.zeros_like(subject)
    )


def _plan_task(
    corpus: Corpus, library: Library, recipe: PromptsRecipe, name: str, task: Task, number: int
) -> Iterator[tuple[IndexArray, IndexArray]]:
    """Templates and subjects, for each time over that the task is written."""
    subjects = task.find_subjects(corpus, recipe)
    places = np.array(library.find_seen(name), dtype=np.int64)
    usable = np.stack([_find_usable(corpus, library, task, int(p), subjects) for p in places])
    if number == 0:
        _warn_unusable(corpus, library, task, places[usable.sum(axis=1) == 0], subjects)
    choices = usable.sum(axis=0)
    if number == 0 and not choices.any():
        _log.warning(
            "task %r writes no rows: %s",
            name,
            "every wording of it is off"
            if len(subjects)
            else f"no subject is left (min_history: {recipe.min_history}), or the data have none",
        )
    generator = _make_generator(recipe, name, number)
    first = generator.integers(0, np.iinfo(np.int32).max, size=len(subjects))
    whole, part = divmod(recipe.tasks[name], 1.0)
    drawn = generator.random(len(subjects)) < part
    for turn in range(int(whole) + 1):
        kept = choices > 0 if turn < whole else (choices > 0) & drawn
        # The next wording at each turn: repeats of a row differ as long as there are wordings.
        picked = (first[kept] + turn) % choices[kept]
        rank = np.cumsum(usable[:, kept], axis=0, dtype=np.int16) - 1
        chosen = np.argmax(usable[:, kept] & (rank == picked), axis=0)
        yield places[chosen], subjects[kept]


def _warn_unusable(
    corpus: Corpus, library: Library, task: Task, places: IndexArray, subjects: IndexArray
) -> None:
    for place in places.tolist() if len(subjects) else []:
        missing = find_missing(corpus, library, task, place, subjects)
        _log.warning(
            "template %r is off: no row has all its fields (%s)",
            library.templates[place].template.id,
            _explain_missing(missing) if missing else "never all of them at once",
        )


def _explain_missing(missing: list[str]) -> str:
    hint = "; --users names a tokenizer of users" if "user_sid" in missing else ""
    return f"without any value: {', '.join(missing)}{hint}"


def find_missing(
    corpus: Corpus, library: Library, task: Task, place: int, subjects: IndexArray
) -> list[str]:
    """The fields that a template cannot do without and that no subject has a value for."""
    needed = _list_needed(library, task, place)
    return sorted({n for n, field in needed if not field.find_filled(corpus, subjects).any()})


def _find_usable(
    corpus: Corpus, library: Library, task: Task, place: int, subjects: IndexArray
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(R,) whether each subject has a value for every field that the template cannot do without."""
    usable = np.ones(len(subjects), dtype=np.bool_)
    for _, field in _list_needed(library, task, place):
        usable &= field.find_filled(corpus, subjects)
    return usable


def _list_needed(library: Library, task: Task, place: int) -> list[tuple[str, Field]]:
    compiled = library.templates[place]
    optional = set(compiled.template.optional)
    return [
        (name, offered[name])
        for used, offered in (
            (compiled.input.names, task.input_fields),
            (compiled.target.names, task.target_fields),
        )
        for name in sorted(used - optional)
    ]


def _make_generator(recipe: PromptsRecipe, purpose: str, number: int = 0) -> np.random.Generator:
    # A stream for each purpose, so that adding a task leaves the other tasks' rows as they were,
    # and a first pass that is the same however many follow it.
    passes = [number] if number else []
    return np.random.default_rng([recipe.seed, zlib.crc32(purpose.encode()), *passes])
