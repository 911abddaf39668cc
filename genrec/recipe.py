"""Recipes: YAML files of values, parsed into frozen pydantic models.

Owns reading, overriding, checking and digesting recipes, finding the shipped ones, and looking
plug-ins up by name. Knows no step: each package declares its own recipe class. A recipe holds
values, never programs.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genrec.errors import RecipeError, join_problems

FOLDERS = ("eval", "train", "tokenizers", "prompts")
HEADER_KEYS = ("kind", "about")
# The C loader is as safe and many times as fast; a PyYAML built without it lacks the name.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_VARIABLE = re.compile(r"\$\{(\w+)\}")

R = TypeVar("R", bound="Recipe")
T = TypeVar("T")


class Recipe(BaseModel):
    """Values for one step: frozen, with defaults for everything, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    seed: int = Field(default=0, ge=0, description="Same seed, same result.")


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe file that ships with genrec."""

    name: str
    kind: str
    about: str
    path: Path


def suggest_name(name: str, known: Iterable[str]) -> str:
    """A did-you-mean clause for an unknown name, or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "none are known"


def parse_recipe(model: type[R], values: Mapping[str, Any], *, source: str = "recipe") -> R:
    """The recipe that a mapping describes.

    Args:
        model: the step's recipe class.
        values: keys and values, without the file header.
        source: where they came from, for messages.

    Raises:
        RecipeError: unknown keys (with a suggestion) and bad values, all in one message.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [_describe_fault(model, dict(fault)) for fault in error.errors()]
        raise RecipeError(join_problems(source, problems)) from None


def _describe_fault(model: type[BaseModel], fault: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"]) or "(top level)"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        return f"{where}: unknown key; {suggest_name(str(fault['loc'][-1]), known)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{where}: required, but not given"
    return f"{where}: {message} (got {fault.get('input')!r})"


def _known_keys(model: type[BaseModel], where: Sequence[int | str]) -> list[str]:
    current: type[BaseModel] | None = model
    for part in where:
        field = current.model_fields.get(str(part)) if current is not None else None
        if field is not None:
            current = _model_within(field.annotation)
        elif not isinstance(part, int):
            current = None
    return list(current.model_fields) if current is not None else []


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_within(argument)
        if found is not None:
            return found
    return None


def recipe_digest(recipe: BaseModel) -> str:
    """The sha256 of a recipe's values in canonical JSON, as hexadecimal."""
    return hash_values(recipe.model_dump(mode="json"))


def hash_values(values: Any) -> str:
    """The sha256 of JSON values, independent of key order, as hexadecimal."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def find_choice(kind: str, name: str, choices: Mapping[str, T]) -> T:
    """The plug-in of that name: one of `choices`, or any `my_package.module:name`.

    Raises:
        RecipeError: the name is unknown (with a suggestion), or the import fails.
    """
    if name in choices:
        return choices[name]
    if ":" not in name:
        raise RecipeError(
            f"unknown {kind} {name!r}; {suggest_name(name, choices)} "
            f"(your own is written my_package.module:name)"
        )
    module_name, _, attribute = name.partition(":")
    try:
        found: T = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"{kind} {name!r} cannot be imported: {error}") from error
    return found


def expand_path(text: str | Path) -> Path:
    """The path with `~` and `${VARIABLE}` filled in.

    Raises:
        RecipeError: a variable that is not set in the environment.
    """

    def fill(match: re.Match[str]) -> str:
        value = os.environ.get(match.group(1))
        if value is None:
            raise RecipeError(
                f"path {str(text)!r} needs the environment variable {match.group(1)}, "
                f"which is not set; set it, or write the path out in the recipe"
            )
        return value

    return Path(_VARIABLE.sub(fill, str(text))).expanduser()


def find_folder(name: str) -> Path:
    """The folder of shipped recipes of that name: in the wheel, or at the top of the checkout.

    Raises:
        RecipeError: the installation carries no such folder.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "recipes" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise RecipeError(
        f"recipe folder {name!r} is missing beside {package}; reinstall genrec, "
        f"or run from a complete checkout"
    )


def list_recipes() -> list[RecipeFile]:
    """Every recipe that ships with genrec, found by walking the folders."""
    return [_read_header(name, path) for name, path in _find_files()]


def _find_files() -> Iterator[tuple[str, Path]]:
    """The name and path of every shipped recipe, unread."""
    for folder in FOLDERS:
        root = find_folder(folder)
        for path in sorted(root.rglob("*.yaml")):
            if path.parent.name != "accelerate":  # accelerate's own format, not ours
                yield path.relative_to(root).with_suffix("").as_posix(), path


def _read_header(name: str, path: Path) -> RecipeFile:
    values = read_yaml(path)
    return RecipeFile(name, str(values.get("kind", "")), str(values.get("about", "")), path)


def find_recipe(name: str | Path, kind: str | None = None) -> Path:
    """The file of a recipe, given by path or by shipped name.

    Args:
        name: a path to a YAML file, or the name `genrec recipes list` prints.
        kind: only recipes of this kind, where the name alone could mean several.

    Raises:
        RecipeError: neither a file nor a shipped name; a name that several recipes share.
    """
    path = expand_path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise RecipeError(
            f"recipe file {str(path)!r} does not exist; "
            f"`genrec recipes list` shows what ships with genrec"
        )
    # Reading them all takes long where a recipe names a dozen files: only those of the name.
    named = [_read_header(*f) for f in _find_files() if f"/{name}".endswith(f"/{f[0]}")]
    fitting = [r for r in named if kind is None or r.kind == kind]
    matches = [r for r in fitting if r.name == str(name) or f"{r.kind}/{r.name}" == str(name)]
    if len(matches) == 1:
        return matches[0].path
    if matches:
        full = ", ".join(f"{r.kind}/{r.name}" for r in matches)
        raise RecipeError(f"recipe {str(name)!r} could be any of: {full}; write one of these")
    shipped = [r for r in list_recipes() if kind is None or r.kind == kind]
    what = f"{kind} recipe" if kind else "recipe"
    raise RecipeError(
        f"unknown {what} {str(name)!r}; {suggest_name(str(name), (r.name for r in shipped))}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, its header keys included.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(
            f"recipe {path} must be a mapping of keys to values, not {type(values).__name__}"
        )
    return values


def read_recipe(
    model: type[R], name: str | Path, overrides: Sequence[str] = (), *, kind: str | None = None
) -> R:
    """The recipe in a file, or shipped under a name, with overrides laid over it.

    Args:
        model: the step's recipe class.
        name: path or shipped name.
        overrides: `key=value` or `section.key=value`, values in YAML.
        kind: the kind that the file must declare, if it declares one.
    """
    path = find_recipe(name, kind)
    values = read_yaml(path)
    declared = values.get("kind")
    if kind is not None and declared not in (None, kind):
        raise RecipeError(f"recipe {path} is of kind {declared!r}, but {kind!r} is needed here")
    merged = apply_overrides(strip_header(values), overrides)
    return parse_recipe(model, merged, source=str(path))


def strip_header(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without the `kind` and `about` that every recipe file begins with."""
    return {key: value for key, value in values.items() if key not in HEADER_KEYS}


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=value` set; the values are read as YAML.

    Raises:
        RecipeError: an override without `=`, or one that reaches into a plain value.
    """
    merged: dict[str, Any] = json.loads(json.dumps(values)) if values else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(
                f"override {override!r} must be written key=value, as in train.epochs=3"
            )
        target = merged
        *sections, last = key.split(".")
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise RecipeError(f"override {override!r}: {section!r} is a value, not a section")
        try:
            target[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"override {override!r}: {text!r} is not a YAML value") from error
    return merged


def split_values(values: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """The recipe's name, if one was given on the command line, and the overrides.

    Raises:
        RecipeError: more than one name.
    """
    names = [value for value in values or () if "=" not in value]
    if len(names) > 1:
        raise RecipeError(f"one recipe at a time, but {len(names)} were given: {', '.join(names)}")
    return (names[0] if names else None), [value for value in values or () if "=" in value]
