"""The values that the prompts step and its template files take.

Owns their names, defaults and bounds. Loads nothing heavy, so that the command line can list and
check recipes at once.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from genrec.recipe import Recipe

MAX_HISTORY_ITEMS = 20
"""What `max_history` is when neither the prompts recipe nor the data's recipe sets it."""

MOST_TIMES = 1000


class Template(BaseModel):
    """One wording of a task: what the model reads, and what it shall write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Unique among all templates.")
    task: str = Field(min_length=1, description="The task whose fields it may use.")
    source: str = Field(min_length=1, description="The paper that the idea comes from.")
    mark: Literal["seen", "unseen"] = Field(
        default="seen", description="unseen: kept out of training, for zero-shot tests."
    )
    recommend: bool = Field(default=False, description="The wording that recommendation uses.")
    input: str = Field(min_length=1, description="Jinja text of the prompt.")
    target: str = Field(min_length=1, description="Jinja text of the answer.")
    fields: tuple[str, ...] = Field(description="Every field that input and target use.")
    optional: tuple[str, ...] = Field(
        default=(), description="Fields that may be empty; others must have a value in a row."
    )
    separator: str = Field(
        default="",
        description="What stands between the items of a history; nothing is cheapest, and semantic "
        "ids need nothing.",
    )


class TemplateFile(Recipe):
    """A YAML file of templates."""

    templates: tuple[Template, ...] = Field(min_length=1)


class PromptsRecipe(Recipe):
    """How instruction rows are made."""

    tasks: dict[str, float] = Field(
        default={"sequential": 1.0, "item-to-sid": 1.0, "sid-to-item": 1.0},
        description="How many times each row of a task is written; 0.5 writes half of them.",
    )
    templates: tuple[str, ...] = Field(
        default=("sequential", "items"),
        min_length=1,
        description="Template files, by shipped name or path.",
    )
    only: tuple[str, ...] = Field(
        default=(), description="Template ids to keep; all of the files' templates when empty."
    )
    recommend_template: str | None = Field(
        default=None,
        description="Template id for recommendation; the file's marked one when unset.",
    )
    max_history: int | None = Field(
        default=None, ge=1, description="Most history items; the data's own value when unset."
    )
    min_history: int = Field(default=1, ge=1, description="Fewest history items of a training row.")
    targets: Literal["sliding", "last"] = Field(
        default="sliding", description="sliding: each training item is a target once; last: one."
    )
    max_rows: int | None = Field(
        default=None, ge=1, description="Most training rows, drawn by seed; all when unset."
    )
    max_valid_rows: int | None = Field(
        default=2000, ge=1, description="Most validation rows, drawn by seed; all when null."
    )
    max_text_characters: int = Field(
        default=200, ge=1, description="Longest text of one data value; the rest is cut."
    )

    max_review_characters: int = Field(
        default=600, ge=1, description="Longest review text; the rest is cut."
    )
    passes: int = Field(
        default=1,
        ge=1,
        le=100,
        description="How many times over all rows are drawn anew: other wordings, samples and "
        "candidates in each; epoch e of training reads pass e, and begins again after the last.",
    )
    max_history_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of a history, oldest items dropped first, never half an item; no "
        "limit when unset.",
    )
    count_with: str | None = Field(
        default=None,
        description="Hub name or directory of the language model's tokenizer, with which "
        "max_history_tokens counts titles; unset, three UTF-8 bytes count as a token.",
    )
    candidates: int = Field(
        default=20, ge=2, le=1000, description="Items to choose from, the right one among them."
    )
    negatives: Literal["uniform", "popularity"] = Field(
        default="popularity",
        description="How wrong candidates are drawn: any item alike, or by training choices.",
    )
    shots: int = Field(
        default=3, ge=1, le=20, description="Examples in a few-shot prompt, training ones only."
    )
    keywords: int = Field(
        default=5, ge=1, le=50, description="Keywords that stand for an item, a query or a user."
    )
    weak_history: int = Field(
        default=5, ge=1, description="A user with at most so many training items is a weak one."
    )
    audit: bool = Field(
        default=True, description="Look for leaks from held-out parts, and fail where one is found."
    )
    ties: Literal["file", "by-item", "refuse"] = Field(
        default="file",
        description="Choices of one moment: in the file's order (the data step's rule), which must "
        "not be that of item ids; by-item: it is, and that is accepted; refuse: none of them may "
        "be held out.",
    )

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: dict[str, float]) -> dict[str, float]:
        negative = [name for name, times in tasks.items() if not 0 <= times <= MOST_TIMES]
        if negative:
            raise ValueError(f"times of {', '.join(negative)} must be from 0 to {MOST_TIMES}")
        if not any(tasks.values()):
            raise ValueError("at least one task must be written more than 0 times")
        return tasks
