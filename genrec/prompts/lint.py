"""Faults of wording that neither the parser nor a task can see.

Owns what makes templates bad company for each other: answers shown in the question, the same
wording twice, families out of balance, rows that grow too long. Renders with made-up values; knows
no data.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from typing import Literal

from genrec.errors import RecipeError
from genrec.prompts.library import find_faults
from genrec.prompts.recipe import Template, TemplateFile
from genrec.prompts.render import CleanText, SidText, compile_template
from genrec.prompts.sandbox import find_names
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.task import ITEM_COLUMNS
from genrec.recipe import find_recipe, list_recipes, parse_recipe, read_yaml, strip_header

MOST_CHARACTERS = 6000
"""Of a row with long values: some 1,500 tokens, half of what a small model is trained with."""

MOST_WORDS = 80
"""Of a template's own; they are paid for in every row."""

NEARLY_ALIKE = 0.93
LIST_ITEMS, TITLE_CHARACTERS, TEXT_CHARACTERS, REVIEW_CHARACTERS = 20, 60, 200, 600
_SID = "<a_255><b_255><c_255><d_255>"
_EXPRESSION = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_TELLING_WORDS = 3
_WORDS = re.compile(r"\w+")

Level = Literal["fault", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (fault) or looks wrong (warning)."""

    level: Level
    file: str
    template: str
    message: str


@dataclass(frozen=True, slots=True)
class _Wording:
    file: str
    template: Template


def lint_templates(names: Sequence[str | Path] = ()) -> list[Finding]:
    """What is wrong with template files, shipped ones and one's own; worst first, then by file.

    Args:
        names: paths or shipped names; all shipped ones when empty. Those named are compared with
            the shipped ones too.

    Raises:
        RecipeError: no such file, or not one of templates.
    """
    shipped = [file.path for file in list_recipes() if file.kind == "templates"]
    chosen = [find_recipe(name, "templates") for name in names] or shipped
    wordings = [w for path in chosen for w in _read_wordings(path)]
    others = [w for path in shipped if path not in chosen for w in _read_wordings(path)]
    sound = []
    found: list[Finding] = []
    for wording in wordings:
        faults = find_faults(wording.template)
        found += [_fault(wording, message) for message in faults]
        if not faults:
            sound.append(wording)
            found += _lint_alone(wording)
    found += _find_repeats(sound, [w for w in others if not find_faults(w.template)])
    for path in chosen:
        found += _lint_balance(str(path), [w for w in sound if w.file == str(path)])
    return sorted(found, key=lambda one: (one.level, one.file, one.template))


def _read_wordings(path: Path) -> list[_Wording]:
    values = read_yaml(path)
    if values.get("kind") not in (None, "templates"):
        raise RecipeError(
            f"{path} is of kind {values['kind']!r}, but lint reads files of kind 'templates'"
        )
    file = parse_recipe(TemplateFile, strip_header(values), source=str(path))
    return [_Wording(str(path), template) for template in file.templates]


def _fault(wording: _Wording, message: str) -> Finding:
    return Finding("fault", wording.file, wording.template.id, message)


def _warning(wording: _Wording, message: str) -> Finding:
    return Finding("warning", wording.file, wording.template.id, message)


def _lint_alone(wording: _Wording) -> Iterator[Finding]:
    template = wording.template
    shown, asked = find_names(template.input), find_names(template.target)
    yield from _find_leaks(wording, shown, asked)
    words = len(_WORDS.findall(_strip_fields(template.input + " " + template.target)))
    if words > MOST_WORDS:
        yield _warning(wording, f"{words} words of its own, and more than {MOST_WORDS} are paid "
                       f"for in every row; say it shorter")  # fmt: skip
    length = _measure(template)
    if length > MOST_CHARACTERS:
        yield _warning(
            wording,
            f"a row with long values has {length:,} characters (more than {MOST_CHARACTERS:,}); "
            f"show fewer fields, or use it with a lower max_history or with max_history_tokens",
        )


def _find_leaks(
    wording: _Wording, shown: frozenset[str], asked: frozenset[str]
) -> Iterator[Finding]:
    """Answers that the question tells."""
    same = shown & asked
    for name in sorted(same):
        yield _fault(wording, f"field {name!r} is in the input and in the target, so that the "
                     f"answer is copied; take it out of one")  # fmt: skip
    if "text" in shown:
        for name in sorted(asked & set(ITEM_COLUMNS) - {"text", "price"} - same):
            yield _fault(wording, f"the input shows 'text', which holds the {name} that the target "
                         f"asks for; show single fields instead")  # fmt: skip
    if not asked:
        yield _fault(wording, "the target has no field, so that the answer is the same in every "
                     "row and teaches nothing; use a field")  # fmt: skip
        return
    question = _normalise(_strip_fields(wording.template.input))
    for part in _EXPRESSION.split(wording.template.target):
        phrase = _normalise(part)
        if len(phrase.split()) >= _TELLING_WORDS and phrase in question:
            yield _warning(wording, f"the input has the target's own words {part.strip()!r}; the "
                           f"model learns to repeat them, so leave them out of one")  # fmt: skip


def _strip_fields(text: str) -> str:
    return _EXPRESSION.sub(" ", text)


def _normalise(text: str) -> str:
    return " ".join(_WORDS.findall(text.casefold()))


def _find_repeats(wordings: Sequence[_Wording], others: Sequence[_Wording]) -> Iterator[Finding]:
    """Ids and wordings that come twice, within the files and against the other shipped ones."""
    seen: dict[str, _Wording] = {}
    for wording in [*others, *wordings]:
        before = seen.setdefault(wording.template.id, wording)
        if before is not wording:
            yield _fault(wording, f"its id is also in {Path(before.file).name}; rename one")
    by_task: dict[str, list[_Wording]] = defaultdict(list)
    for wording in [*others, *wordings]:
        by_task[wording.template.task].append(wording)
    known = set(map(id, others))
    for group in by_task.values():
        texts = {id(w): _normalise(w.template.input + " -> " + w.template.target) for w in group}
        for one, two in combinations(group, 2):
            if id(two) not in known:
                yield from _compare(two, texts[id(two)], one, texts[id(one)])


def _compare(new: _Wording, text: str, old: _Wording, other: str) -> Iterator[Finding]:
    where = f"{old.template.id!r} in {Path(old.file).name}"
    if text == other:
        yield _fault(new, f"the same wording as {where}, punctuation aside; remove one")
        return
    matcher = SequenceMatcher(None, text, other, autojunk=False)
    if matcher.quick_ratio() >= NEARLY_ALIKE and matcher.ratio() >= NEARLY_ALIKE:
        yield _warning(new, f"nearly the same wording as {where}; say it differently")


def _lint_balance(file: str, wordings: Sequence[_Wording]) -> Iterator[Finding]:
    """Whether a family has wordings to train with and to keep back, and some of every task."""
    marks: dict[str, list[str]] = defaultdict(list)
    for wording in wordings:
        marks[wording.template.task].append(wording.template.mark)
    unseen = sum(mark.count("unseen") for mark in marks.values())
    if wordings and not unseen:
        yield Finding("warning", file, "", "no template is marked unseen, so that other wordings "
                      "cannot be tested; keep one back")  # fmt: skip
    elif wordings and unseen > len(wordings) / 2:
        yield Finding("warning", file, "", f"{unseen} of {len(wordings)} templates are unseen: "
                      f"more are kept back than trained")  # fmt: skip
    for task, own in marks.items():
        if own.count("seen") == 1:
            yield Finding("warning", file, "", f"task {task!r} has one wording to train with here; "
                          f"more make the model less dependent on it")  # fmt: skip
        elif not own.count("seen"):
            yield Finding("warning", file, "", f"task {task!r} has no wording to train with "
                          f"here")  # fmt: skip


def _measure(template: Template) -> int:
    """The length of a row whose values are long, lists of the default size."""
    compiled = compile_template(template)
    task = TASKS[template.task]
    fields = {**task.input_fields, **task.target_fields}
    values = {name: _make_long(name, fields[name].trusted, template.separator)
              for name in compiled.input.names | compiled.target.names}  # fmt: skip
    return len(compiled.input.render(values).text) + len(compiled.target.render(values).text)


def _make_long(name: str, trusted: bool, separator: str) -> str:
    many = LIST_ITEMS if re.search(r"history|candidate|ranked|chosen|titles", name) else 1
    if trusted:
        return SidText(separator.join([_SID] * many))
    if many > 1:
        return CleanText((separator or "; ").join(["x" * TITLE_CHARACTERS] * many))
    size = REVIEW_CHARACTERS if name.startswith("review_text") else TEXT_CHARACTERS
    return CleanText("x" * size)
