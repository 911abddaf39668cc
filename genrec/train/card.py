"""The README of a model directory, which a model hub shows as its card.

Owns the wording: what the model was made from and how, what it reached, how to load it and what
lies beside the card. Knows which files there can be, and opens none. Says nothing about licences:
those of base and data are their owners' to state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genrec.decode.soft_users import FOLDER as SOFT_USERS
from genrec.prompts.render import USERS_FILE
from genrec.tokenizers.sharing.hub import names_repository
from genrec.tokenizers.sharing.model_card import indent_recipe, render_front
from genrec.train.delta import ADAPTER_FOLDER, BASE_FOLDER, LORA_FOLDER
from genrec.train.recipe import ADAPTER_METHODS, TrainRecipe

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_FILES = {
    "config.json": "with `generation_config.json`, the model's shape",
    "model.safetensors": "all weights, adapter and token rows merged in",
    "model.safetensors.index.json": "which of the `model-*.safetensors` holds which weight; "
    "adapter and token rows are merged in",
    "tokenizer.json": "with `tokenizer_config.json`, the tokenizer with the semantic-ID tokens",
    "chat_template.jinja": "the base's chat template",
    f"{ADAPTER_FOLDER}/": "the adapter as it was trained, token rows and all (PEFT)",
    f"{BASE_FOLDER}/": "the base with the trained token rows and no adapter: a plain checkpoint",
    f"{LORA_FOLDER}/": "the LoRA weights alone, over the base that its `adapter_config.json` names",
    "item_index.parquet": "which semantic ID is which item",
    "genrec.json": "sizes, base, domain, and the digests that keep model and catalogue together",
    f"{SOFT_USERS}/": "users as soft tokens: their vectors and what projects them",
    USERS_FILE: "users by semantic ID, where prompts name them so",
    "recommend.json": "the prompt that asks for the next item",
    "training.jsonl": "loss and learning rate along the run",
}


def render_card(
    settings: Mapping[str, Any], recipe: TrainRecipe, facts: Mapping[str, Any], folder: Path
) -> str:
    """The card as Markdown, with the front matter that a hub reads.

    Args:
        settings: what `genrec.json` holds.
        recipe: what the model was trained by.
        facts: the manifest's; what they lack is left out.
        folder: the model directory, all but the card in it.
    """
    base = str(settings["base"])
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if names_repository(base):  # the hub refuses a path
        front["base_model"] = base
    if recipe.method in ADAPTER_METHODS:
        front["tags"] = ["lora"]
    levels = " x ".join(str(size) for size in settings["codebook_sizes"])
    domain = settings.get("domain")
    parts = [
        *render_front(**front),
        "",
        f"# A generative recommender of {settings['n_items']:,} items",
        "",
        f"Made by genrec from `{base}`. Asked what a user will choose next, it answers with the "
        + (
            f"semantic ID of an item: {settings['n_levels']} tokens, of codebooks {levels}."
            if levels
            else "title of an item."
        )
        + (f" It was tuned for the domain `{domain}`." if domain else ""),
        "",
        "## Use",
        "",
        *_show_use(recipe, base, folder),
        "## Data",
        "",
        *_tabulate(_list_data(facts, domain)),
        "",
        "## Training",
        "",
        *_tabulate(_list_training(recipe, facts, base)),
        "",
        "## Metrics",
        "",
        *_tabulate(_list_metrics(recipe, facts)),
        "",
        *_tabulate_tasks(facts.get("tasks", {})),
        "Losses are means over target tokens of validation rows. `genrec eval` measures hit rate "
        "and NDCG over the whole catalogue, with intervals and against baselines.",
        "",
        "## Recipe",
        "",
        *indent_recipe({"kind": "train", **recipe.model_dump(mode="json", exclude_defaults=True)}),
        "",
        "Values that are not here have their defaults; `manifest.json` has every one, and the "
        "versions of the libraries.",
        "",
        "## Files",
        "",
        *(f"- `{name}`: {text}" for name, text in _FILES.items() if (folder / name).exists()),
        "- `manifest.json`: recipe, inputs, versions and the digest of every file",
    ]
    return "\n".join(parts) + "\n"


def _show_use(recipe: TrainRecipe, base: str, folder: Path) -> Iterator[str]:
    yield from _show_code(
        "With genrec, which answers with items that exist, and only with those:",
        "from genrec.recommender import Recommender",
        "",
        'Recommender.from_pretrained("this directory").recommend(["an item id"], k=10)',
    )
    yield from _show_code(
        "With transformers (without genrec's constraint an answer may be no item):",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("this directory")',
        'tokenizer = AutoTokenizer.from_pretrained("this directory")',
    )
    rank = min((rank for rank in _VLLM_RANKS if rank >= recipe.rank), default=None)
    if not (folder / LORA_FOLDER).is_dir() or rank is None:
        yield from _show_code("With vLLM:", "vllm serve 'this directory'", language="bash")
        return
    if (folder / BASE_FOLDER).is_dir():
        base = "this directory/base"
    yield from _show_code(
        "With PEFT, as an adapter beside others over one base:",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        'model = PeftModel.from_pretrained(base, "this directory/lora", adapter_name="one")',
        'model.load_adapter("another directory/lora", adapter_name="two")',
    )
    yield from _show_code(
        "With vLLM, merged or as an adapter beside others:",
        "vllm serve 'this directory'",
        f"vllm serve '{base}' --enable-lora --max-lora-rank {rank} \\",
        "    --lora-modules one='this directory/lora' two='another directory/lora'",
        language="bash",
    )


def _show_code(title: str, *lines: str, language: str = "python") -> Iterator[str]:
    yield from (title, "", f"```{language}", *lines, "```", "")


def _tabulate(rows: Iterator[tuple[str, Any]]) -> Iterator[str]:
    """A table of two columns; a line that says so where nothing is known."""
    known = [(name, value) for name, value in rows if value is not None]
    if not known:
        yield "Not known."
        return
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {_format_value(value)} |" for name, value in known)


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_value(part)}" for name, part in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _list_data(facts: Mapping[str, Any], domain: str | None) -> Iterator[tuple[str, Any]]:
    data = facts.get("data", {})
    yield from ((name, data.get(name)) for name in ("source", "users", "items", "interactions"))
    yield "split", data.get("split")
    yield "domain", f"`{domain}`" if domain else None


def _list_training(
    recipe: TrainRecipe, facts: Mapping[str, Any], base: str
) -> Iterator[tuple[str, Any]]:
    instructions = facts.get("instructions", {})
    yield "base", f"`{base}`"
    yield "method", recipe.method
    if recipe.method in ADAPTER_METHODS:
        yield "rank, alpha, dropout", f"{recipe.rank}, {recipe.alpha:g}, {recipe.dropout:g}"
        yield "token rows", "frozen" if recipe.token_rows == "frozen" else "trained as rows"
    yield "rows", facts.get("rows")
    yield "rows by task, before filters", instructions.get("tasks")
    yield "templates", instructions.get("templates")
    if recipe.max_steps is None:
        yield "epochs at most", recipe.epochs
    for name in ("updates", "tokens", "parameters", "trained_parameters"):
        yield name.replace("_", " "), facts.get(name)
    yield "seed", recipe.seed
    yield "items added since, removed since", _list_changes(facts)


def _list_changes(facts: Mapping[str, Any]) -> str | None:
    if "items_added" not in facts:
        return None
    return f"{facts['items_added']:,}, {facts['items_removed']:,} (`genrec tokenize apply`)"


def _list_metrics(recipe: TrainRecipe, facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "best validation loss", facts.get("best_eval_loss")
    if recipe.stop_metric != "loss":
        yield (
            f"{recipe.stop_metric} on validation users",
            facts.get(f"best_eval_{recipe.stop_metric}"),
        )


def _tabulate_tasks(tasks: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    if not tasks:
        return
    columns = ("rows", "target_tokens", "loss", "eval_loss")
    yield "| task | rows seen | target tokens | last training loss | validation loss |"
    yield "|---|--:|--:|--:|--:|"
    for task, figures in tasks.items():
        values = (_format_value(figures.get(name, "")) for name in columns)
        yield f"| {task} | {' | '.join(values)} |"
    yield ""
