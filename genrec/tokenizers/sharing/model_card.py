"""The README of a tokenizer's directory, which a model hub shows as its card.

Owns the wording, and the form that other cards of genrec share with it. Knows what `config.json`
and `quality.json` hold, and reads neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from genrec.tokenizers.recipe import TokenizeRecipe

CARD_FILE = "README.md"
NAMELESS = "OWNER/NAME or a directory"
TAGS = ("semantic-ids", "generative-recommendation", "recommender-systems", "genrec")
_RECIPE_NOTE = "Sections with default values are left out; `config.json` has every value."


def render_card(
    config: Mapping[str, Any], quality: Mapping[str, Any] | None, name: str = NAMELESS
) -> str:
    """The card as Markdown, with the front matter that a hub reads.

    Args:
        config: what `config.json` holds.
        quality: what `quality.json` holds; None where it is not known.
        name: what to load the tokenizer by.
    """
    subject, n_items = config["subject"], config["n_items"]
    sizes = " x ".join(str(size) for size in config["codebook_sizes"])
    parts = [
        *render_front(library_name="genrec"),
        "",
        f"# Semantic IDs of {n_items:,} {subject}",
        "",
        f"Every one of {n_items:,} {subject} has a code sequence of its own: {config['n_levels']} "
        f"levels of {sizes} codes, by the quantizer `{config['quantizer']}` of genrec, version "
        f"{config['version']} of this vocabulary.",
        "",
        "## Use",
        "",
        "```python",
        "from genrec import SemanticIdTokenizer",
        "",
        f'tokenizer = SemanticIdTokenizer.from_pretrained("{name}")',
        "sids = tokenizer.encode(list(tokenizer.item_ids[:3]))",
        "item_ids = tokenizer.decode(sids)",
        "```",
        "",
    ]
    if quality is not None:
        parts += ["## Quality", "", *_describe_quality(quality), ""]
    parts += [
        "## Recipe",
        "",
        _RECIPE_NOTE,
        "",
        *indent_recipe(_choose_told(config["recipe"])),
        "",
        *_list_files(config),
    ]
    return "\n".join(parts) + "\n"


def render_front(**values: Any) -> list[str]:
    """The front matter that a hub reads, as lines: genrec's tags and what else is said.

    Args:
        values: fields of huggingface_hub's ModelCardData.
    """
    tags = [*TAGS, *values.pop("tags", ())]
    return ["---", ModelCardData(tags=tags, **values).to_yaml(), "---"]


def indent_recipe(values: Mapping[str, Any]) -> list[str]:
    """A recipe as an indented block, which nothing in it can end."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=90)
    return [f"    {line}" for line in text.splitlines()]


def _describe_quality(quality: Mapping[str, Any]) -> Iterator[str]:
    collisions, moved = quality["collision_rate"], quality["moved"]
    yield "| measure | value | what it means |"
    yield "|---|--:|---|"
    yield (
        f"| collisions before | {collisions['before']:.2%} | items that the quantizer alone "
        f"could not tell apart; lower is better |"
    )
    yield f"| collisions after | {collisions['after']:.2%} | what is left of them |"
    yield (
        f"| moved | {moved['items']:,} ({moved['share']:.2%}) | items that got other codes than "
        f"the quantizer's so that all are unique |"
    )
    if quality["reconstruction"] is not None:
        after = quality["reconstruction"]["after"]
        yield (
            f"| reconstruction, cosine | {after['cosine']:.4f} | likeness of a vector to what its "
            f"codes stand for; higher is better |"
        )
        yield (
            f"| reconstruction, relative error | {after['relative_error']:.4f} | 1 is no better "
            f"than the mean vector; lower is better |"
        )
    yield ""
    yield "| level | codes | used | perplexity | entropy (bits) | Gini |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in quality["levels"]:
        yield (
            f"| {row['level']} | {row['codes']:,} | {row['used']:,} | {row['perplexity']:.1f} | "
            f"{row['entropy_bits']:.2f} | {row['gini']:.3f} |"
        )
    yield ""
    yield (
        "Perplexity is how many codes, used evenly, would tell as much. "
        "`genrec tokenize report` measures more."
    )


def _choose_told(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the sections that have their default values."""
    defaults = TokenizeRecipe().model_dump(mode="json")
    told = {
        key: value
        for key, value in recipe.items()
        if not isinstance(value, dict) or value != defaults.get(key)
    }
    return {"kind": "tokenize", **told}


def _list_files(config: Mapping[str, Any]) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "- `config.json`: sizes, recipe and the digests of the files below"
    yield "- `model.safetensors`: the quantizer's weights"
    yield "- `codes.parquet`: item id, codes and their text, one row an item"
    if "retired.parquet" in config["files"]:
        yield "- `retired.parquet`: removed items, whose codes stay reserved"
