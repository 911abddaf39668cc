"""Template files, found, read and checked against the tasks.

Owns which templates a recipe uses and which of them asks for recommendations. Renders nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from genrec.errors import RecipeError, TemplateError, join_problems
from genrec.prompts.recipe import PromptsRecipe, Template, TemplateFile
from genrec.prompts.render import (
    RECOMMEND_TARGETS,
    CompiledTemplate,
    compile_template,
    find_template_faults,
)
from genrec.prompts.sandbox import find_filtered, find_names
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.sequential import SEQUENTIAL
from genrec.prompts.tasks.task import Field, Task
from genrec.recipe import (
    find_choice,
    find_recipe,
    parse_recipe,
    read_yaml,
    strip_header,
    suggest_name,
)


@dataclass(frozen=True, slots=True)
class Library:
    """The templates that a recipe uses.

    Attributes:
        templates: all of them, unseen ones too.
        tasks: the tasks that the recipe writes, by name.
        recommend: the place in `templates` of the one that recommendation uses.
        families: for each of `templates` the name of the file that it came from.
    """

    templates: tuple[CompiledTemplate, ...]
    tasks: Mapping[str, Task]
    recommend: int
    families: tuple[str, ...]

    def find_task(self, place: int) -> Task:
        """The task of the template at a place, whether or not the recipe trains it."""
        name = self.templates[place].template.task
        return self.tasks[name] if name in self.tasks else TASKS[name]

    def find_seen(self, task: str) -> list[int]:
        """The places in `templates` of a task's training templates."""
        return [
            place
            for place, compiled in enumerate(self.templates)
            if compiled.template.task == task and compiled.template.mark == "seen"
        ]


def build_library(recipe: PromptsRecipe) -> Library:
    """The templates and tasks that a recipe names, checked.

    Raises:
        RecipeError: an unknown task, template file or template id.
        TemplateError: templates that break a rule, a task without a template, or no single
            template for recommendation.
    """
    tasks = {
        name: find_choice("task", name, TASKS) for name, times in recipe.tasks.items() if times > 0
    }
    sources = {
        template: path
        for name in recipe.templates
        for path in [find_recipe(name, "templates")]
        for template in read_templates(path, tasks)
    }
    kept = _keep_templates(sources, recipe)
    compiled = tuple(compile_template(template, str(sources[template])) for template in kept)
    families = tuple(sources[template].stem for template in kept)
    library = Library(compiled, tasks, _choose_recommend(kept, recipe), families)
    bare = [name for name in tasks if not library.find_seen(name)]
    if bare:
        raise TemplateError(
            f"no template marked seen for task {', '.join(map(repr, bare))} in templates: "
            f"{', '.join(recipe.templates)}; add a file that has one, or set the task to 0"
        )
    return library


def read_templates(path: Path, tasks: Mapping[str, Task] | None = None) -> tuple[Template, ...]:
    """A file's templates, every one checked by itself and against its task's fields.

    Args:
        path: a YAML file of kind templates.
        tasks: tasks that are known beside the built-in ones.

    Raises:
        RecipeError: the file is not one of templates.
        TemplateError: templates that break a rule, all in one message.
    """
    values = read_yaml(path)
    declared = values.get("kind")
    if declared not in (None, "templates"):
        raise RecipeError(f"{path} is of kind {declared!r}, but 'templates' is needed here")
    file = parse_recipe(TemplateFile, strip_header(values), source=str(path))
    known = {**TASKS, **(tasks or {})}
    problems = [
        f"template {template.id!r}: {fault}"
        for template in file.templates
        for fault in find_faults(template, known)
    ]
    if problems:
        raise TemplateError(join_problems(str(path), problems))
    return file.templates


def find_faults(template: Template, tasks: Mapping[str, Task] = TASKS) -> list[str]:
    """What is wrong with a template by itself or against its task, one sentence each."""
    return find_template_faults(template) or list(_find_task_faults(template, tasks))


def _find_task_faults(template: Template, tasks: Mapping[str, Task]) -> Iterator[str]:
    task = tasks.get(template.task)
    if task is None:
        yield f"unknown task {template.task!r}; {suggest_name(template.task, tasks)}"
        return
    yield from _find_field_faults("input", template.input, task.input_fields)
    yield from _find_field_faults("target", template.target, task.target_fields)


def _find_field_faults(part: str, text: str, offered: Mapping[str, Field]) -> Iterator[str]:
    for name in sorted(find_names(text) - offered.keys()):
        yield f"{part}: unknown field {name!r}; {suggest_name(name, offered)}"
    for name in sorted(find_filtered(text) & offered.keys()):
        if offered[name].trusted:
            yield (
                f"{part}: field {name!r} holds semantic ids, and no filter may change those; "
                f"remove the filter"
            )


def _keep_templates(sources: Mapping[Template, Path], recipe: PromptsRecipe) -> list[Template]:
    by_id: dict[str, Template] = {}
    for template, path in sources.items():
        if template.id in by_id:
            raise TemplateError(
                f"template id {template.id!r} is in {sources[by_id[template.id]]} and in {path}; "
                f"rename one"
            )
        by_id[template.id] = template
    wanted = [*recipe.only, *([recipe.recommend_template] if recipe.recommend_template else [])]
    unknown = [
        f"unknown template {name!r}; {suggest_name(name, by_id)}"
        for name in wanted
        if name not in by_id
    ]
    if unknown:
        raise RecipeError(join_problems(f"templates of {', '.join(recipe.templates)}", unknown))
    return [by_id[name] for name in by_id if not recipe.only or name in wanted]


def _choose_recommend(templates: list[Template], recipe: PromptsRecipe) -> int:
    marked = [place for place, template in enumerate(templates) if template.recommend]
    if recipe.recommend_template is not None:
        ids = [template.id for template in templates]
        marked = [ids.index(recipe.recommend_template)]
    if len(marked) != 1:
        names = ", ".join(templates[place].id for place in marked) or "none"
        raise TemplateError(
            f"exactly one template must be marked `recommend: true`, and in "
            f"{', '.join(recipe.templates)} it is: {names}; set recommend_template in the recipe"
        )
    chosen = templates[marked[0]]
    is_usable = chosen.mark == "seen" and chosen.task == SEQUENTIAL
    if not is_usable or chosen.target not in RECOMMEND_TARGETS:
        raise TemplateError(
            f"template {chosen.id!r} cannot be used for recommendation: that needs task "
            f"'{SEQUENTIAL}', mark 'seen' and target '{{{{ sid }}}}' or '{{{{ title }}}}' (it has "
            f"{chosen.task!r}, {chosen.mark!r}, {chosen.target!r}); choose another "
            f"recommend_template"
        )
    return marked[0]
