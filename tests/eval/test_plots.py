from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from genrec.eval.plots import plot_code_use, plot_losses, plot_metrics
from genrec.eval.provenance import LossPoint
from genrec.types import MetricValue

LOSSES = [LossPoint(1, 3.0, None), LossPoint(2, 2.0, None), LossPoint(2, None, 2.5)]
SYSTEMS = {
    name: {metric: MetricValue(metric, 0.2, 0.1, 0.3) for metric in ("HR@5", "NDCG@10")}
    for name in ("genrec", "a<b>&$c$", "_hidden")
}
CODES = np.array([[0, 1], [0, 2], [3, 3], [1, 1]])
PLOTS = {
    "metrics": lambda: plot_metrics(SYSTEMS),
    "losses": lambda: plot_losses(LOSSES),
    "codes": lambda: plot_code_use(CODES, (4, 16)),
}


@pytest.fixture(scope="module", params=PLOTS)
def named_plot(request):
    return request.param, PLOTS[request.param]()


def test_a_plot_is_one_whole_element_without_foreign_addresses(named_plot):
    _, text = named_plot
    assert text.startswith('<svg role="img" aria-label="')
    assert text.rstrip().endswith("</svg>")
    assert "http" not in text
    root = ElementTree.fromstring(text.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert root.attrib["viewBox"]


def test_a_plot_takes_its_colours_and_font_from_the_page(named_plot):
    _, text = named_plot
    assert "var(--ink)" in text
    assert "var(--series-0)" in text
    assert "DejaVu" not in text
    left = set(re.findall(r"#[0-9a-f]{6}\b", text))
    assert left <= {"#ffffff", "#000000"}


def test_a_plot_s_ids_are_its_own(named_plot):
    name, text = named_plot
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert ids
    assert all(found.startswith(f"{name}-") for found in ids)
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert target in ids


def test_the_same_figures_give_the_same_text():
    assert plot_metrics(SYSTEMS) == plot_metrics(SYSTEMS)
    assert plot_code_use(CODES, (4, 16)) == plot_code_use(CODES, (4, 16))


def test_system_names_are_escaped_and_no_formula():
    text = plot_metrics(SYSTEMS)
    assert "a&lt;b&gt;&amp;$c$" in text
    assert "hidden" in text


def test_an_interval_beside_its_mean_is_drawn():
    values = {"genrec": {"HR@5": MetricValue("HR@5", 0.2, 0.21, 0.3)}}
    assert "HR@5" in plot_metrics(values)


@pytest.mark.parametrize("kept", [LOSSES[:2], LOSSES[2:]])
def test_either_loss_may_be_missing(kept):
    text = plot_losses(kept)
    assert (">training<" in text) == (kept[0].loss is not None)
    assert (">validation<" in text) == (kept[0].eval_loss is not None)


def test_code_use_counts_used_codes():
    text = plot_code_use(CODES, (4, 16))
    assert "level 1: 3/4" in text
    assert "level 2: 3/16" in text
