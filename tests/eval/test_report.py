from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from genrec.eval.recipe import EvalRecipe
from genrec.eval.report import _format_share, _pick_users
from genrec.eval.step import make_report
from tests.eval.tiny import HOSTILE, N_USERS, NextItem, write_data

QUICK = EvalRecipe(
    metrics=("HR@5", "NDCG@10"), n_bootstrap=100, n_permutations=100, n_examples=N_USERS
)
VOID = {"meta", "br", "img", "link", "input", "hr"}


def render(out, data, recipe=QUICK, systems=(), model=None):
    artifact = make_report(recipe, data, out, systems=systems, model=model)
    return (artifact.path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory, data_path, model_path):
    out = tmp_path_factory.mktemp("page") / "report"
    return render(out, data_path, systems=[NextItem()], model=model_path)


class Reader(HTMLParser):
    """Collects the elements and the text, and checks that elements are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_well_formed_and_whole_in_itself(page):
    reader = Reader(page)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in reader.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\((?!#)|@import", page)


def test_scripts_would_be_stopped_by_the_page_itself(page):
    policies = [
        attributes["content"]
        for tag, attributes in Reader(page).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_titles_are_shown_as_they_are(page):
    shown = "".join(Reader(page).text)
    for title in HOSTILE:
        assert title in shown
    assert "49 " not in shown


def test_ids_are_unique(page):
    ids = [a["id"] for _, a in Reader(page).elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_phone_and_a_dark_room_are_served(page):
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    assert 'content="light dark"' in page


@pytest.mark.parametrize(
    "text",
    [
        "NDCG@10",
        "popularity",
        "markov",
        "oracle",
        "1.0000",
        "✓ chosen",
        "found at place 1",
        "id-29",  # an item without a title
        "Perplexity by level: 4, 4, 4",
        "25.00% before",
        "Loss",
        "Code use",
        "level 3: 2/8",
        "1234",  # a fact of the train step
        "n_bootstrap",
        "train interactions",
        "0 without a test item, 0 without a history",
        "paired randomisation test",
    ],
)
def test_the_page_says(page, text):
    assert text in "".join(Reader(page).text)


def test_counts_of_every_stage_are_shown(page):
    assert re.search(
        r"<td>read</td><td class=\"number\">40</td>\s*<td class=\"number\">30</td>", page
    )


def test_marks_tell_better_and_worse_than_the_first_system(page, tmp_path, data_path):
    assert "▼</span>" in page
    better = render(
        tmp_path / "out",
        data_path,
        recipe=QUICK.model_copy(update={"systems": ("popularity", "oracle")}),
    )
    assert "▲</span>" in better


def test_without_a_model_nothing_of_it_is_shown(tmp_path, data_path):
    recipe = QUICK.model_copy(update={"systems": ("popularity",), "n_examples": 0, "max_users": 9})
    page = render(tmp_path / "out", data_path, recipe)
    assert "Code use" not in page
    assert "<h2>Loss" not in page
    assert "<h2>Examples" not in page
    assert "All comparisons" not in page
    assert "paired randomisation" not in page
    assert "(sampled)" in page


def test_a_model_without_a_quality_summary_is_still_drawn(tmp_path, data_path):
    from tests.eval.tiny import write_model

    model = write_model(tmp_path / "model", data_path, quality=False)
    page = render(tmp_path / "out", data_path, systems=[NextItem()], model=model.path)
    assert "few codes carry most items" in page


def test_users_whose_target_is_out_of_reach_are_counted(tmp_path):
    # 6 items and walks of up to 7: some come back to an item of their own history
    data = write_data(tmp_path / "data", n_items=6, oracle=False, titles=())
    recipe = QUICK.model_copy(update={"metrics": ("HR@5",)})
    page = render(tmp_path / "out", data.path, recipe)
    assert re.search(r"\d+ users whose only targets are in their own history", page)


def test_examples_are_half_hits_where_there_are_enough():
    rank = np.array([0] * 20 + [1] * 20)
    chosen = _pick_users(rank, 6, seed=0)
    assert sum(rank[row] > 0 for row in chosen) == 3
    assert chosen == _pick_users(rank, 6, seed=0)
    assert chosen != _pick_users(rank, 6, seed=1)
    assert len(_pick_users(np.array([1, 1, 1, 0]), 4, seed=0)) == 4
    assert len(_pick_users(np.array([0, 0, 0, 1]), 4, seed=0)) == 4
    assert len(_pick_users(np.array([0, 1]), 4, seed=0)) == 2
    assert _pick_users(np.array([0, 1]), 0, seed=0) == []


def test_only_all_reads_as_all():
    assert _format_share(1.0) == "100%"
    assert _format_share(0.99999) == "99.99%"
    assert _format_share(0.0) == "0.00%"
