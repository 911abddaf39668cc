"""A language model that was never tuned as a recommender: it is asked for titles.

Owns what stands in for training: the wording of the prompt, the chat frame, how a title begins, and
the catalogue of a data artefact. Knows no search.
"""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from genrec.data.dataset import load_dataset
from genrec.decode.int8 import quantize_engine
from genrec.decode.title_engine import TitleEngine
from genrec.decode.titles import MAX_TITLE_TOKENS, build_title_trie, choose_start
from genrec.errors import DataError, TemplateError
from genrec.model_weights import choose_numbers
from genrec.prompts.chat import build_chat
from genrec.prompts.encode import find_end_token
from genrec.prompts.explain import load_shipped_explain
from genrec.prompts.library import read_templates
from genrec.prompts.recipe import MAX_HISTORY_ITEMS, Template
from genrec.prompts.render import HistoryPrompt
from genrec.prompts.sandbox import find_names
from genrec.recipe import find_recipe
from genrec.recommender import Recommender
from genrec.train.checkpoint import Checkpoint, load_checkpoint

TEMPLATE_FILE = "next-title"
_MAX_CHARACTERS = 200
_INDEX_COLUMNS = ("item_id", "title", "categories")
_log = logging.getLogger(__name__)


def load_zero_shot(
    checkpoint: str | Path,
    data: str | Path,
    *,
    template: str | Path | None = None,
    max_history: int = MAX_HISTORY_ITEMS,
    max_title_tokens: int = MAX_TITLE_TOKENS,
    device: str | None = None,
    dtype: str | None = None,
) -> Recommender:
    """A recommender of a data artefact's items by any language model, as it is.

    Histories are shown by title, and the answer is the item whose title the model would most likely
    write. Items with equal titles have equal scores; items without a title are no answers.

    Args:
        checkpoint: a Hugging Face checkpoint directory or hub name, or an adapter's directory.
        data: what `genrec data` wrote; its items need titles.
        template: a file of templates, by shipped name or path, whose template marked `recommend`
            words the prompt; `next-title` when unset.
        max_history: how many items a prompt shows; older ones are left out.
        max_title_tokens: longer titles are cut behind so many tokens.
        device: `cpu`, `cuda`, `cuda:1`, ...; the GPU if there is one when unset.
        dtype: `float32` or `bfloat16`; float32 on CPU and bfloat16 on GPU when unset. `int8`,
            on CPU alone, is quicker and approximate; a log line says how much.

    Raises:
        ArtifactError: no data artefact is there.
        DataError: the items have no titles.
        ModelError: the checkpoint cannot be opened, or is not decoder-only.
        RecipeError: no such dtype, or int8 elsewhere than on CPU.
        TemplateError: the template does not ask for a title by titles.
    """
    device, numbers = choose_numbers(device, dtype)
    wording = _choose_template(template or TEMPLATE_FILE)
    prompt = HistoryPrompt(wording, max_history, _MAX_CHARACTERS)
    index = _read_index(Path(data))
    opened = load_checkpoint(checkpoint, numbers)
    opened.model.to(device)
    recommender = _join_parts(opened, prompt, index, max_title_tokens)
    if dtype == "int8":
        quantize_engine(recommender.engine, recommender.make_up_prompts())
    return recommender


def _join_parts(
    opened: Checkpoint, prompt: HistoryPrompt, index: pl.DataFrame, max_title_tokens: int
) -> Recommender:
    chat = build_chat(opened.tokenizer)
    prompt_end = prompt.template.input if chat is None else chat.after
    trie = build_title_trie(
        opened.tokenizer,
        index["title"].to_list(),
        find_end_token(opened.tokenizer, chat),
        start=choose_start(prompt_end),
        max_characters=prompt.max_text_characters,
        max_title_tokens=max_title_tokens,
    )
    _log.info(
        "zero-shot: %s answers with %s titles, asked %s",
        opened.source,
        f"{trie.n_titles:,}",
        "in plain text" if chat is None else "in its chat template",
    )
    engine = TitleEngine(opened.model, trie)
    recommender = Recommender(engine, opened.tokenizer, prompt, index, chat)
    recommender.explain_prompt = load_shipped_explain()
    return recommender


def _choose_template(name: str | Path) -> Template:
    """The template of a file that asks an untuned model for a title."""
    path = find_recipe(name, "templates")
    marked = [template for template in read_templates(path) if template.recommend]
    if len(marked) != 1:
        raise TemplateError(
            f"exactly one template must be marked `recommend: true` to ask with, and in {path} "
            f"{len(marked)} are; choose another file, such as {TEMPLATE_FILE!r}"
        )
    names = find_names(marked[0].input)
    if names != {"history_titles"} or marked[0].target != "{{ title }}":
        raise TemplateError(
            f"template {marked[0].id!r} of {path} shows {', '.join(sorted(names)) or 'nothing'} "
            f"and asks for {marked[0].target!r}; a model that was not trained knows titles only: "
            f"show history_titles and ask for '{{{{ title }}}}', as {TEMPLATE_FILE!r} does"
        )
    return marked[0]


def _read_index(data: Path) -> pl.DataFrame:
    """The items as `Catalogue` takes them, in item_index order and without semantic IDs."""
    items = load_dataset(data).items.sort("item_index")
    present = [name for name in _INDEX_COLUMNS if name in items.columns]
    index = items.select(pl.col(present).cast(pl.String).fill_null(""), pl.lit("").alias("sid"))
    if not any(title.strip() for title in index["title"]):
        raise DataError(
            f"none of the {len(index):,} items of {data} has a title, and an untuned model knows "
            f"items by them; give the source a title column, or train a model with semantic ids"
        )
    return index
