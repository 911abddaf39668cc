"""Prompts from templates: text, and which characters of it came from data.

Owns the cleaning of data values, compiled templates, and the prompt that asks for a recommendation,
which training and inference share. Knows no dataset and no language-model tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genrec.errors import ArtifactError, DataError, TemplateError, join_problems
from genrec.prompts.costs import TokenLimit
from genrec.prompts.recipe import Template
from genrec.prompts.sandbox import (
    MARK_END,
    MARK_START,
    CleanText,
    CompiledText,
    Rendered,
    SidText,
    compile_text,
    find_names,
    find_text_faults,
)
from genrec.recipe import suggest_name

__all__ = [
    "CleanText",
    "CompiledTemplate",
    "HistoryPrompt",
    "Rendered",
    "SidText",
    "clean_text",
    "compile_template",
    "find_template_faults",
    "join_sids",
    "join_titles",
    "render_template",
]

HISTORY_FIELDS = frozenset({"history", "history_titles", "user_sid", "user_soft"})
"""All that a recommendation prompt can know: what the user chose, and who the user is."""

TITLE_TARGET = "{{ title }}"
RECOMMEND_TARGETS = ("{{ sid }}", TITLE_TARGET)
"""What constrained decoding can write."""

USER_MARK = "<|genrec_user|>"
"""The token that stands in a prompt where a user's soft tokens go."""

_MARK = SidText(USER_MARK)
RECOMMEND_FILE = "recommend.json"
USERS_FILE = "users.parquet"
"""user_id and sid of the users that rows name by semantic id."""
USER_CODES_FILE = "user_codes.json"
"""How many codes each level of those has."""
RECOMMEND_SCHEMA = 2
"""Schema 1 is the same without a limit in tokens, and is still read."""
UNTITLED = "untitled"

SID = re.compile(r"(?:<[a-z]_\d+>)+")
"""What reads as an item's semantic ID in a text."""
_USER_SID = re.compile(r"(?:<u[a-z]_\d+>)+")
# Control characters that are not white space, lone surrogates, byte-order marks, characters that
# reverse or hide text (bidirectional controls, zero-width marks, tags), and our own marks. The
# joiners U+200C and U+200D stay: several scripts and emoji need them.
_REMOVED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffe\uffff"
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069"
    f"\U000e0000-\U000e007f{MARK_START}{MARK_END}]"
)


@dataclass(frozen=True, slots=True)
class CompiledTemplate:
    """A template whose two texts are parsed."""

    template: Template
    input: CompiledText
    target: CompiledText


def clean_text(text: object, max_characters: int) -> CleanText:
    """A data value fit for a prompt: one line, nothing invisible, at most so many characters."""
    visible = " ".join(_REMOVED.sub("", str(text)).split())
    return CleanText(visible[:max_characters].rstrip())


def find_template_faults(template: Template) -> list[str]:
    """What is wrong with a template by itself, one sentence each."""
    faults = [
        f"{part}: {fault}"
        for part, text in (("input", template.input), ("target", template.target))
        for fault in find_text_faults(text)
    ]
    if faults:
        return faults
    used = find_names(template.input) | find_names(template.target)
    for name in sorted(used - set(template.fields)):
        hint = suggest_name(name, template.fields)
        faults.append(f"field {name!r} is used but not declared in `fields`; add it, or {hint}")
    for name in sorted(set(template.fields) - used):
        faults.append(f"field {name!r} is declared but never used; remove it from `fields`")
    for name in sorted(set(template.optional) - set(template.fields)):
        faults.append(f"optional field {name!r} is not declared in `fields`; add it there")
    if template.recommend and template.target not in RECOMMEND_TARGETS:
        faults.append(
            f"a recommend template's target must be '{{{{ sid }}}}' or '{{{{ title }}}}' and "
            f"nothing else, because constrained decoding writes only semantic ids or titles (got "
            f"{template.target!r})"
        )
    return faults


@lru_cache(maxsize=1024)
def compile_template(template: Template, source: str = "given") -> CompiledTemplate:
    """The template, parsed; the same call again costs nothing.

    Args:
        template: what to parse.
        source: the file that it came from, for messages.

    Raises:
        TemplateError: it breaks a rule; all that it breaks are in the message.
    """
    label = f"template {template.id!r} ({source})"
    faults = find_template_faults(template)
    if faults:
        raise TemplateError(join_problems(label, faults))
    return CompiledTemplate(
        template,
        compile_text(template.input, f"{label}, input"),
        compile_text(template.target, f"{label}, target"),
    )


def render_template(
    template: Template,
    values: Mapping[str, object],
    *,
    max_text_characters: int,
    source: str = "given",
) -> tuple[Rendered, Rendered]:
    """Prompt and target of one row.

    Args:
        template: the wording.
        values: a value for each of its fields. `SidText` is trusted; anything else is cleaned and
            marked as data.
        max_text_characters: the longest that a value of data may be.
        source: the template's file, for messages.

    Raises:
        TemplateError: the template is wrong, or lacks a value.
    """
    compiled = compile_template(template, source)
    ready = {
        name: value
        if isinstance(value, SidText | CleanText)
        else clean_text(value, max_text_characters)
        for name, value in values.items()
    }
    return compiled.input.render(ready), compiled.target.render(ready)


def check_sid(text: str) -> SidText:
    """The text as semantic ids that may be trusted.

    Raises:
        DataError: it is anything but semantic ids.
    """
    if SID.fullmatch(text) is None:
        raise DataError(
            f"{text!r} is not a semantic id such as '<a_12><b_7>'; pass what the semantic-id "
            f"tokenizer's encode returns"
        )
    return SidText(text)


def check_user_sid(text: str) -> SidText:
    """The text as semantic ids of a user that may be trusted.

    Raises:
        DataError: it is anything but semantic ids of a user.
    """
    if _USER_SID.fullmatch(text) is None:
        raise DataError(
            f"{text!r} is not a user's semantic id such as '<ua_12><ub_7>'; use a tokenizer that "
            f"`genrec tokenize ulmrec-users` made"
        )
    return SidText(text)


def join_sids(sids: Sequence[str], separator: str) -> SidText:
    """Checked semantic ids as one text."""
    return SidText(separator.join(sids))


def join_titles(titles: Sequence[CleanText], separator: str) -> CleanText:
    """Cleaned titles as one value of data; an item without title is called untitled."""
    return CleanText(separator.join(title or UNTITLED for title in titles))


@dataclass(frozen=True, slots=True)
class HistoryPrompt:
    """The prompt that asks for a user's next item, the same in training and at inference.

    Attributes:
        template: its wording; the input may use `history` and `history_titles`.
        max_history: how many items it shows; older ones are left out.
        max_text_characters: the longest that one title may be.
        limit: the most tokens that the items may have together; None for any.
    """

    template: Template
    max_history: int
    max_text_characters: int
    limit: TokenLimit | None = None
    source: str = field(default="given", compare=False)
    _input: CompiledText = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Parse the template once."""
        compiled = compile_template(self.template, self.source)
        foreign = compiled.input.names - HISTORY_FIELDS
        if foreign:
            raise TemplateError(
                f"{compiled.input.label}: a recommendation prompt knows only "
                f"{', '.join(sorted(HISTORY_FIELDS))}, not {', '.join(sorted(foreign))}; choose "
                f"another recommend_template"
            )
        if self.asks_title and "user_soft" in compiled.input.names:
            raise TemplateError(
                f"{compiled.input.label}: answers in titles do not go with user_soft; remove that "
                f"field, or choose a recommend_template that answers with semantic ids"
            )
        object.__setattr__(self, "_input", compiled.input)

    @property
    def needs_titles(self) -> bool:
        """Whether `render` must be given titles."""
        return "history_titles" in self._input.names

    @property
    def asks_title(self) -> bool:
        """Whether the answer is an item's title rather than its semantic id."""
        return self.template.target == TITLE_TARGET

    @property
    def needs_user(self) -> bool:
        """Whether `render` must be told the user's semantic ids."""
        return "user_sid" in self._input.names

    @property
    def needs_embedding(self) -> bool:
        """Whether the prompt has a mark for the user's soft tokens."""
        return "user_soft" in self._input.names

    def render(
        self,
        sids: Sequence[str],
        titles: Sequence[str] | None = None,
        *,
        user_sid: str = "",
    ) -> Rendered:
        """The prompt for one history.

        Args:
            sids: the history's semantic ids, oldest first; beyond the limits the oldest go.
            titles: the items' titles in the same order, where `needs_titles`.
            user_sid: the user's semantic ids, where `needs_user`; "" for a user without, where the
                template can do without them.

        Raises:
            DataError: the history is empty, a sid is none, titles are missing or too few, or the
                user has no semantic ids and the template needs them.
        """
        if not sids:
            raise DataError(
                "the history is empty, and a recommendation prompt needs at least one item; give "
                "one, or recommend by popularity for new users"
            )
        recent = sids[-self.max_history :]
        # Where only titles are shown, items need no semantic ids.
        with_ids = "history" in self._input.names
        shown = [check_sid(sid) for sid in recent] if with_ids else [SidText("")] * len(recent)
        cleaned = self._clean_titles(titles, len(sids)) if self.needs_titles else []
        if self.limit is not None:
            named = [title or UNTITLED for title in cleaned]
            start = self.limit.find_start(self.template, shown, named)
            shown, cleaned = shown[start:], cleaned[start:]
        separator = self.template.separator
        values: dict[str, str] = {"history": join_sids(shown, separator), "user_soft": _MARK}
        if self.needs_titles:
            values["history_titles"] = join_titles(cleaned, separator)
        if self.needs_user:
            values["user_sid"] = self._check_user(user_sid)
        return self._input.render(values)

    def _clean_titles(self, titles: Sequence[str] | None, n_items: int) -> list[CleanText]:
        if titles is None or len(titles) != n_items:
            got = "none" if titles is None else str(len(titles))
            raise DataError(
                f"template {self.template.id!r} shows titles: {n_items} are needed, one a "
                f"history item, and {got} were given"
            )
        shown, most = titles[-self.max_history :], self.max_text_characters
        return [clean_text(title, most) for title in shown]

    def _check_user(self, user_sid: str) -> SidText:
        if user_sid:
            return check_user_sid(user_sid)
        if "user_sid" not in self.template.optional:
            raise DataError(
                f"template {self.template.id!r} names the user by semantic id, and this user has "
                f"none in the model; give the id of a user that it was trained with, or train with "
                f"a template where user_sid is optional"
            )
        return SidText("")

    def save(self, path: str | Path) -> None:
        """Write everything that rendering needs, as JSON, to a file or into a directory."""
        values = {
            # Without a limit the file is one of schema 1, which older versions read too.
            "schema": 1 if self.limit is None else RECOMMEND_SCHEMA,
            "template": self.template.model_dump(mode="json"),
            "max_history": self.max_history,
            "max_text_characters": self.max_text_characters,
        }
        if self.limit is not None:
            values["limit"] = asdict(self.limit)
        text = json.dumps(values, indent=2, ensure_ascii=False)
        _recommend_file(Path(path)).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> HistoryPrompt:
        """The prompt that `save` wrote.

        Args:
            path: the JSON file, or the directory that holds `recommend.json`.

        Raises:
            ArtifactError: missing, not JSON, of another schema, or incomplete.
        """
        file = _recommend_file(Path(path))
        values = _read_recommend(file)
        try:
            return cls(
                template=Template.model_validate(values["template"]),
                max_history=int(values["max_history"]),
                max_text_characters=int(values["max_text_characters"]),
                limit=TokenLimit(**values["limit"]) if "limit" in values else None,
                source=str(file),
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise ArtifactError(
                f"{file} is not a complete recommendation prompt ({type(error).__name__}: {error});"
                f" run `genrec prompts` again"
            ) from error


def _recommend_file(path: Path) -> Path:
    return path / RECOMMEND_FILE if path.is_dir() else path


def _read_recommend(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{file} does not exist; `genrec prompts` writes it") from error
    except ValueError as error:
        raise ArtifactError(f"{file} is not JSON: {error}; run `genrec prompts` again") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if not isinstance(values, dict) or schema not in (1, RECOMMEND_SCHEMA):
        raise ArtifactError(
            f"{file} has schema {schema!r}, and this genrec reads 1 to {RECOMMEND_SCHEMA}; run "
            f"`genrec prompts` again with this version"
        )
    return values
