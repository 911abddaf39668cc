"""How much of a history is shown: by items, by tokens, and alike in training and at inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from transformers import PreTrainedTokenizerFast

from genrec.data.dataset import load_dataset
from genrec.errors import ArtifactError, ModelError
from genrec.prompts.corpus import Corpus, read_corpus
from genrec.prompts.costs import (
    HistoryForm,
    TokenLimit,
    count_sid_tokens,
    count_text_tokens,
    find_form,
    find_starts,
)
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import UNTITLED, HistoryPrompt
from genrec.prompts.step import make_instructions
from genrec.prompts.windows import find_histories, find_windows
from genrec.recipe import find_folder

from .conftest import TITLES, WriteData, WriteTokenizer, sid_of

IDS = Template(
    id="ids", task="sequential", source="x", fields=("history", "sid"),
    input="{{ history }}", target="{{ sid }}",
)  # fmt: skip
TITLED = IDS.model_copy(
    update={"fields": ("history_titles", "sid"), "input": "{{ history_titles }}", "separator": "; "}
)
BOTH = TITLED.model_copy(update={"fields": ("history", "history_titles", "sid")})
WALK = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_bytes_count_where_no_tokenizer_is_named() -> None:
    assert count_text_tokens(["", "abc", "abcd", "é" * 3], None).tolist() == [0, 1, 2, 2]
    assert count_sid_tokens("<a_12><b_7><c_0>") == 3


def test_a_tokenizer_counts_titles(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "lm")
    texts = ["blue shoe", "old lamp of brass"]
    counted = count_text_tokens(texts, str(tmp_path / "lm"))
    assert counted.tolist() == [
        len(tokenizer.encode(text, add_special_tokens=False)) for text in texts
    ]
    with pytest.raises(ModelError, match=r"no tokenizer '.*nowhere' to count tokens with"):
        count_text_tokens(texts, str(tmp_path / "nowhere"))


def test_forms() -> None:
    assert find_form(IDS) == HistoryForm(1, 0, 0)
    assert find_form(TITLED) == HistoryForm(0, 1, 1)
    assert find_form(BOTH) == HistoryForm(1, 1, 2)
    bare = IDS.model_copy(update={"fields": ("sid",)})
    assert find_form(bare).ids == 1  # a field of another name that shows items shows their ids


def test_starts_equal_a_plain_search() -> None:
    random = np.random.default_rng(0)
    costs = random.integers(1, 9, size=60)
    for between in (0, 2):
        for most in (1, 5, 20, 1000):
            ends = np.arange(1, 61)
            earliest = np.maximum(0, ends - 12)
            found = find_starts(costs, between, ends, earliest, most)
            for end, first, start in zip(ends, earliest, found, strict=True):
                assert start == search(costs, between, end, first, most)


def search(costs: np.ndarray, between: int, end: int, first: int, most: int) -> int:
    for start in range(first, end):
        if costs[start:end].sum() + between * (end - start - 1) <= most:
            return start
    return end - 1  # the newest is shown whatever it costs


def read(recipe: PromptsRecipe, data: Path, tokenizer: Path) -> Corpus:
    return read_corpus(recipe, load_dataset(data), tokenizer)[0]


def test_items_are_whole_and_the_newest_stay(
    recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    data, tokenizer = write_data([[*WALK, 0, 1]]), write_tokenizer()
    places = np.arange(10)

    def show(template: Template, **values: object) -> list[list[int]]:
        limited = recipe.model_copy(update=values)
        return list(find_histories(read(limited, data, tokenizer), template, places))

    assert show(IDS)[9] == WALK[:9]
    assert show(IDS, max_history=2)[9] == WALK[7:9]
    # Three tokens an item: 7 hold two, 2 hold none, and the newest is shown all the same.
    assert show(IDS, max_history_tokens=7)[9] == WALK[7:9]
    assert show(IDS, max_history_tokens=2)[9] == WALK[8:9]
    assert show(IDS, max_history_tokens=7)[0] == []
    spaced = IDS.model_copy(update={"separator": " "})
    assert show(spaced, max_history_tokens=6)[9] == WALK[8:9]
    assert show(spaced, max_history_tokens=7)[9] == WALK[7:9]
    shown = show(TITLED, max_history_tokens=20)
    sizes = [-(-len((title.replace("\x00", "") or UNTITLED).encode()) // 3) for title in TITLES]
    for place, items in enumerate(shown[1:], start=1):
        assert items == WALK[place - len(items) : place]
        assert len(items) == 1 or sum(sizes[item] for item in items) + len(items) - 1 <= 20
    assert len(show(BOTH, max_history_tokens=20)[9]) < len(shown[9])


def test_without_a_limit_only_items_count(
    recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    corpus = read(recipe, write_data([[*WALK, 0, 1], [1, 2, 3, 4]]), write_tokenizer())
    assert find_windows(corpus, IDS, np.array([3, 9, 11])).tolist() == [0, 0, 10]


@pytest.mark.parametrize("counted", [False, True])
def test_training_and_inference_show_the_same(
    tmp_path: Path,
    recipe: PromptsRecipe,
    tokenizer: PreTrainedTokenizerFast,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
    counted: bool,
) -> None:
    tokenizer.save_pretrained(tmp_path / "lm")
    limited = PromptsRecipe.model_validate(
        recipe.model_dump()
        | {
            "templates": (str(find_folder("prompts") / "titles.yaml"),),
            "recommend_template": "titles-and-ids",
            "only": ("titles-and-ids",),
            "tasks": {"sequential": 1},
            "max_history_tokens": 30,
            "count_with": str(tmp_path / "lm") if counted else None,
        }
    )
    random = np.random.default_rng(1)
    walks = [random.integers(5, size=12).tolist() for _ in range(20)]
    out = tmp_path / "out"
    make_instructions(limited, write_data(walks), write_tokenizer(), out)
    prompt = HistoryPrompt.load(out)
    assert prompt.limit == TokenLimit(30, limited.count_with)
    lengths = set()
    for split in ("train", "valid"):
        for row in load_from_disk(str(out / split)).to_list():
            walk = walks[row["user_index"]][:-1]
            ends = [end for end in range(1, len(walk)) if walk[end] == row["item_index"]]
            rendered = [
                prompt.render([sid_of(i) for i in walk[:end]], [TITLES[i] for i in walk[:end]]).text
                for end in ends
            ]
            assert row["prompt"] in rendered
            lengths.add(row["prompt"].count("<a_"))
    assert 1 < len(lengths) and max(lengths) < 10  # the limit cuts, and not always alike


def test_the_limit_is_kept_and_older_files_are_read(tmp_path: Path) -> None:
    old = HistoryPrompt(TITLED, 5, 20)
    old.save(tmp_path)
    assert '"schema": 1' in (tmp_path / "recommend.json").read_text()
    assert HistoryPrompt.load(tmp_path) == old
    new = HistoryPrompt(TITLED, 5, 20, TokenLimit(9))
    new.save(tmp_path)
    text = (tmp_path / "recommend.json").read_text()
    assert '"schema": 2' in text
    assert HistoryPrompt.load(tmp_path) == new
    (tmp_path / "recommend.json").write_text(text.replace('"most"', '"least"'))
    with pytest.raises(ArtifactError, match="not a complete recommendation prompt"):
        HistoryPrompt.load(tmp_path)
