"""The chain: which step reads what, and how a recipe of several steps runs.

Owns chain recipes, the order of the steps, skipping what is up to date, and the record of time and
memory. Knows no step's inner working; each is one call that is imported when it runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from genrec.artifact import Artifact, find_current, refuse_foreign
from genrec.data.recipe import DataRecipe
from genrec.errors import ArtifactError, RecipeError
from genrec.eval.recipe import EvalRecipe
from genrec.manifest import hash_file, read_json, write_json
from genrec.memory import read_peak, reset_peak
from genrec.prompts.recipe import PromptsRecipe, TemplateFile
from genrec.recipe import (
    Recipe,
    apply_overrides,
    find_recipe,
    parse_recipe,
    read_yaml,
    strip_header,
    suggest_name,
)
from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe
from genrec.train.recipe import BaseRecipe, TrainRecipe

if TYPE_CHECKING:
    from genrec.tokenizers.cluster import RayEngine

_log = logging.getLogger(__name__)

RUN_RECORD = "run.json"
ROLE_STEPS: dict[str, str | None] = {"users": "tokenize", "user_vectors": "embed", "base": None}
"""The step that makes an input, where its role has another name; None is more than one step."""


class ChainRecipe(Recipe):
    """Values for the whole way from raw files to a report; each section is one step's recipe."""

    name: str = Field(default="", description="The data set's name in reports.")
    data: DataRecipe
    embed: EmbedRecipe = EmbedRecipe()
    tokenize: TokenizeRecipe = TokenizeRecipe()
    prompts: PromptsRecipe = PromptsRecipe()
    base: BaseRecipe | None = None
    train: TrainRecipe = TrainRecipe()
    eval: EvalRecipe = EvalRecipe()


RECIPE_KINDS: dict[str, type[Recipe]] = {
    "data": DataRecipe,
    "embed": EmbedRecipe,
    "tokenize": TokenizeRecipe,
    "templates": TemplateFile,
    "prompts": PromptsRecipe,
    "base": BaseRecipe,
    "train": TrainRecipe,
    "eval": EvalRecipe,
    "chain": ChainRecipe,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the chain: its name is its command, its section and its manifest's step.

    Attributes:
        make: from a recipe, the input artefacts by role and a directory to an artefact; `embed` and
            `tokenize` also take the `engine` that does their heavy work, `prompts` the `workers`.
    """

    name: str
    folder: str
    inputs: tuple[str, ...]
    make: Callable[..., Artifact]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a step cost; memory is the process's highest resident size while it ran."""

    step: str
    skipped: bool
    seconds: float
    peak_memory_bytes: int


def _make_data(recipe: DataRecipe, inputs: Mapping[str, Artifact], out: Path) -> Artifact:
    del inputs
    from genrec.data.step import make_data  # noqa: PLC0415

    return make_data(recipe, out)


def _make_embeddings(
    recipe: EmbedRecipe,
    inputs: Mapping[str, Artifact],
    out: Path,
    engine: RayEngine | None = None,
) -> Artifact:
    from genrec.tokenizers.embedding.embed import make_embeddings  # noqa: PLC0415

    return make_embeddings(recipe, inputs["data"].path, out, engine=engine)


def _make_tokenizer(
    recipe: TokenizeRecipe,
    inputs: Mapping[str, Artifact],
    out: Path,
    engine: RayEngine | None = None,
) -> Artifact:
    from genrec.tokenizers.step import make_tokenizer  # noqa: PLC0415

    embeddings, data = inputs.get("embed"), inputs.get("data")
    return make_tokenizer(
        recipe,
        embeddings.path if embeddings else None,
        out,
        data=data.path if data else None,
        engine=engine,
    )


def _make_instructions(
    recipe: PromptsRecipe,
    inputs: Mapping[str, Artifact],
    out: Path,
    workers: int | None = None,
) -> Artifact:
    from genrec.prompts.step import make_instructions  # noqa: PLC0415

    users = inputs.get("users")
    return make_instructions(
        recipe,
        inputs["data"].path,
        inputs["tokenize"].path,
        out,
        users=users.path if users else None,
        workers=workers,
    )


def _make_base(recipe: BaseRecipe, inputs: Mapping[str, Artifact], out: Path) -> Artifact:
    from genrec.train.base import make_base  # noqa: PLC0415

    return make_base(recipe, inputs["data"].path, out)


def _make_model(recipe: TrainRecipe, inputs: Mapping[str, Artifact], out: Path) -> Artifact:
    from genrec.train.step import make_model  # noqa: PLC0415

    base = inputs["base"].path if "base" in inputs else recipe.base
    user_vectors = inputs.get("user_vectors")
    check_base(recipe, "base" in inputs)
    assert base is not None, "check_base has just seen it"
    return make_model(
        recipe,
        base,
        inputs["prompts"].path,
        inputs["tokenize"].path,
        inputs["data"].path,
        out,
        user_vectors=user_vectors.path if user_vectors else None,
    )


def _make_report(recipe: EvalRecipe, inputs: Mapping[str, Artifact], out: Path) -> Artifact:
    from genrec.eval.step import make_report  # noqa: PLC0415
    from genrec.recommender import Recommender  # noqa: PLC0415

    model = inputs["train"].path
    systems = [Recommender.from_pretrained(model)]
    return make_report(recipe, inputs["data"].path, out, systems=systems, model=model)


STEPS: tuple[Step, ...] = (
    Step("data", "data", (), _make_data),
    Step("embed", "embeddings", ("data",), _make_embeddings),
    Step("tokenize", "tokenizer", ("data", "embed"), _make_tokenizer),
    Step("prompts", "instructions", ("data", "tokenize"), _make_instructions),
    Step("base", "base", ("data",), _make_base),
    Step("train", "model", ("data", "tokenize", "prompts", "base"), _make_model),
    Step("eval", "report", ("data", "train"), _make_report),
)


def parse_chain(values: Mapping[str, Any], *, source: str) -> ChainRecipe:
    """The chain that a mapping describes: `use:` filled in, the chain's seed handed to its steps.

    Raises:
        RecipeError: unknown keys and bad values, all in one message.
    """
    filled = dict(values)
    for step in STEPS:
        section = filled.get(step.name, None if step.name == "base" else {})
        if isinstance(section, dict):
            seed = {"seed": values["seed"]} if "seed" in values else {}
            filled[step.name] = seed | _fill_section(section, step.name)
    if "name" in values and isinstance(filled["eval"], dict):
        filled["eval"] = {"name": values["name"]} | filled["eval"]
    return parse_recipe(ChainRecipe, filled, source=source)


def _fill_section(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A section's values, those of the shipped recipe that `use` names below its own."""
    own = dict(values)
    name = own.pop("use", None)
    if name is None:
        return own
    return {**strip_header(read_yaml(find_recipe(name, kind))), **own}


def read_chain(name: str | Path, overrides: Sequence[str] = ()) -> ChainRecipe:
    """The chain recipe in a file, or shipped under a name, with overrides laid over it.

    Raises:
        RecipeError: no such recipe, another kind, unknown keys or bad values.
    """
    path = find_recipe(name, None if Path(name).suffix else "chain")
    values = read_yaml(path)
    if values.get("kind", "chain") != "chain":
        raise RecipeError(
            f"recipe {path} is of kind {values['kind']!r}: it holds one step's values; "
            f"`genrec run` needs a chain, as `genrec recipes list` marks them"
        )
    return parse_chain(apply_overrides(strip_header(values), overrides), source=str(path))


def read_step(kind: str, name: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of one step: defaults, a file of that kind, or that section of a chain.

    Args:
        kind: the step, as in `RECIPE_KINDS`.
        name: path or shipped name; None for the defaults.
        overrides: `key=value` for that step.
    """
    model = RECIPE_KINDS[kind]
    if name is None:
        return parse_recipe(model, apply_overrides({}, overrides), source=f"{kind} overrides")
    try:
        path = find_recipe(name, kind)
    except RecipeError:
        path = find_recipe(name)
    values = read_yaml(path)
    declared = values.get("kind", kind)
    if declared == "chain":
        section = values.get(kind) or {}
        values = _fill_section({"seed": values.get("seed", 0), **section}, kind)
    elif declared != kind:
        raise RecipeError(
            f"recipe {path} is of kind {declared!r}, but {kind!r} (or a chain) is needed here"
        )
    return parse_recipe(model, apply_overrides(strip_header(values), overrides), source=str(path))


def check_recipe(path: Path) -> str:
    """The kind of a recipe file that parses in full; nothing is run.

    Raises:
        RecipeError: no kind, an unknown kind, or values that do not parse.
        TemplateError: a template that does not parse or names an undeclared field.
    """
    values = read_yaml(path)
    kind = str(values.get("kind", ""))
    if kind not in RECIPE_KINDS:
        raise RecipeError(f"{path}: kind {kind!r} is unknown; {suggest_name(kind, RECIPE_KINDS)}")
    if kind == "chain":
        read_chain(path)
    elif kind == "templates":
        from genrec.prompts.library import read_templates  # noqa: PLC0415

        read_templates(path)
    else:
        read_step(kind, path)
    return kind


def run_chain(
    recipe: ChainRecipe, out: str | Path, *, until: str | None = None, force: bool = False
) -> dict[str, Artifact]:
    """The artefacts of all steps by step name; what is up to date is skipped, and the log says so.

    Args:
        recipe: the chain.
        out: the directory that holds one folder a step.
        until: the last step to run; all when unset.
        force: run every step anew.

    Raises:
        RecipeError: `until` names no step of this chain.
        GenrecError: whatever a step raises; the steps before it stay complete.
    """
    out = Path(out)
    steps = _select_steps(recipe, until)
    if steps[-1].name in ("train", "eval"):
        check_base(recipe.train, recipe.base is not None)
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file; a run needs a directory, choose another --out")
    for step in steps:  # before any long work
        refuse_foreign(out / step.folder)
    out.mkdir(parents=True, exist_ok=True)
    made: dict[str, Artifact] = {}
    records = []
    for number, step in enumerate(steps, start=1):
        inputs = {name: made[name] for name in step.inputs if name in made}
        title = f"[{number}/{len(steps)}] {step.name}"
        artifact, record = _run_step(step, recipe, inputs, out, force, title)
        made[step.name] = artifact
        records.append(record)
        _write_record(out, records)
    return made


def check_base(recipe: TrainRecipe, made_here: bool) -> None:
    """Raise unless there is a model to start training from.

    Raises:
        RecipeError: no `base` artefact is made, and the recipe names no checkpoint.
    """
    if not made_here and not recipe.base:
        raise RecipeError(
            "no base model: give train.base (a hub name or a checkpoint directory), or add a "
            "`base:` section, which makes a small one from the catalogue's text"
        )


def _select_steps(recipe: ChainRecipe, until: str | None) -> list[Step]:
    steps = [step for step in STEPS if getattr(recipe, step.name) is not None]
    names = [step.name for step in steps]
    if until is None:
        return steps
    if until not in names:
        raise RecipeError(f"no step {until!r} in this chain; {suggest_name(until, names)}")
    return steps[: names.index(until) + 1]


def _run_step(
    step: Step,
    recipe: ChainRecipe,
    inputs: Mapping[str, Artifact],
    out: Path,
    force: bool,
    title: str,
) -> tuple[Artifact, StepRecord]:
    values: Recipe = getattr(recipe, step.name)
    folder = out / step.folder
    current = None if force else find_current(folder, step=step.name, recipe=values, inputs=inputs)
    if current is not None and _sources_unchanged(current):
        _log.info("%s: up to date, skipped (%s)", title, folder)
        return current, StepRecord(step.name, True, 0.0, 0)
    _log.info("%s: %s", title, folder)
    reset_peak()
    started = time.monotonic()
    artifact = step.make(values, inputs, folder)
    seconds = time.monotonic() - started
    return artifact, StepRecord(step.name, False, round(seconds, 2), read_peak())


def _sources_unchanged(artifact: Artifact) -> bool:
    """Whether the raw files that a data artefact was made from are still the same."""
    for record in artifact.manifest.facts.get("files", []):
        path = Path(record["path"])
        if path.is_file() and hash_file(path) != record["sha256"]:
            _log.info("%s has changed since %s was made from it", path, artifact.path)
            return False
    return True


def _write_record(out: Path, records: Sequence[StepRecord]) -> None:
    """Keep the costs of a step from the run that made it, where this run skipped it."""
    path = out / RUN_RECORD
    before = read_json(path) if path.exists() else {}
    known = {record["step"]: record for record in before.get("steps", [])}
    for record in records:
        if not (record.skipped and record.step in known):
            known[record.step] = asdict(record)
    write_json(path, {"schema": 1, "steps": list(known.values())})
