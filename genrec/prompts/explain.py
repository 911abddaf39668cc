"""The prompt that asks why an item goes with a history, the same in training and when it is served.

Owns which wording a model is asked with, its file, and how it renders. Knows no dataset and no
language-model tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import ValidationError

from genrec.errors import ArtifactError, TemplateError
from genrec.manifest import read_json, write_json
from genrec.prompts.costs import TokenLimit
from genrec.prompts.library import Library, read_templates
from genrec.prompts.recipe import MAX_HISTORY_ITEMS, Template
from genrec.prompts.render import (
    UNTITLED,
    Rendered,
    check_sid,
    clean_text,
    compile_template,
    join_sids,
    join_titles,
)
from genrec.prompts.sandbox import CleanText, CompiledText, SidText
from genrec.recipe import find_recipe

EXPLAIN_FILE = "explain.json"
_SCHEMA = 1
_FIELDS = frozenset({"history", "history_titles", "sid", "title"})
_TASKS = ("explain-recommendation", "explanation")
_SHIPPED_FILE, _SHIPPED_ID = "explain-recommendation", "why-review-titles"
_MAX_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class ExplainPrompt:
    """The prompt for one item after one history.

    Attributes:
        template: its wording; the input may use `history`, `history_titles`, `sid` and `title`.
        max_history: how many items it shows; older ones are left out.
        max_text_characters: the longest that one title may be.
        limit: the most tokens that the history may have; None for any.
        is_trained: whether the model has seen answers to it.
    """

    template: Template
    max_history: int
    max_text_characters: int
    limit: TokenLimit | None = None
    is_trained: bool = True
    _input: CompiledText = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Parse the template once."""
        compiled = compile_template(self.template)
        foreign = compiled.input.names - _FIELDS
        if foreign:
            raise TemplateError(
                f"{compiled.input.label}: an explanation's prompt knows only "
                f"{', '.join(sorted(_FIELDS))}, not {', '.join(sorted(foreign))}; choose another"
            )
        object.__setattr__(self, "_input", compiled.input)

    def render(
        self, sids: Sequence[str], titles: Sequence[str], item_sid: str, item_title: str
    ) -> Rendered:
        """The prompt for one item.

        Args:
            sids: the history's semantic ids, oldest first; beyond the limits the oldest go.
            titles: the same items' titles.
            item_sid: of the item that is explained; empty where items have none.
            item_title: its title.

        Raises:
            DataError: a sid is none.
        """
        names, most = self._input.names, self.max_text_characters
        shown = [SidText("")] * len(sids)
        if "history" in names:
            shown = [check_sid(sid) for sid in sids]
        cleaned = [clean_text(title, most) for title in titles]
        shown, cleaned = shown[-self.max_history :], cleaned[-self.max_history :]
        if self.limit is not None:
            start = self.limit.find_start(self.template, shown, [t or UNTITLED for t in cleaned])
            shown, cleaned = shown[start:], cleaned[start:]
        separator = self.template.separator
        values: dict[str, str] = {
            "history": join_sids(shown, separator),
            "history_titles": join_titles(cleaned, separator),
            "sid": check_sid(item_sid) if "sid" in names else SidText(""),
            "title": clean_text(item_title, most) or CleanText(UNTITLED),
        }
        return self._input.render({name: values[name] for name in names})

    def save(self, folder: Path) -> None:
        """Write it as `explain.json` into a directory."""
        write_json(
            folder / EXPLAIN_FILE,
            {
                "schema": _SCHEMA,
                "template": self.template.model_dump(mode="json"),
                "max_history": self.max_history,
                "max_text_characters": self.max_text_characters,
                "limit": None if self.limit is None else asdict(self.limit),
            },
        )


def load_explain(folder: Path) -> ExplainPrompt | None:
    """The prompt that a model was trained to answer; None where it was trained for none.

    Raises:
        ArtifactError: the file is damaged.
    """
    file = folder / EXPLAIN_FILE
    if not file.is_file():
        return None
    values = read_json(file)
    try:
        if values["schema"] != _SCHEMA:
            raise ValueError(f"schema {values['schema']!r}, and this genrec reads {_SCHEMA}")
        return ExplainPrompt(
            Template.model_validate(values["template"]),
            int(values["max_history"]),
            int(values["max_text_characters"]),
            TokenLimit(**values["limit"]) if values["limit"] else None,
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{file} is no complete explanation prompt ({type(error).__name__}: {error}); restore "
            f"it, or run `genrec train` again"
        ) from error


def choose_explain(library: Library, rows: Mapping[str, int]) -> Template | None:
    """The wording of training rows that can be asked about any item and history; None without any.

    Words of people go before facts that items share, since an item that is asked about may share
    none; then the task about recommendations, then the most rows, then the first.

    Args:
        library: the recipe's templates.
        rows: how many training rows each template has, by its id.
    """
    usable = [
        compiled
        for compiled in library.templates
        if compiled.template.task in _TASKS
        and rows.get(compiled.template.id)
        and compiled.input.names <= _FIELDS
        and compiled.input.names & {"sid", "title"}
    ]
    best = max(
        usable,
        key=lambda compiled: (
            "explanation" in compiled.target.names,
            compiled.template.task == _TASKS[0],
            rows[compiled.template.id],
        ),
        default=None,
    )
    return None if best is None else best.template


def load_shipped_explain() -> ExplainPrompt:
    """The wording for a language model that was never trained to explain."""
    path = find_recipe(_SHIPPED_FILE, "templates")
    template = next(each for each in read_templates(path) if each.id == _SHIPPED_ID)
    return ExplainPrompt(template, MAX_HISTORY_ITEMS, _MAX_CHARACTERS, is_trained=False)
