from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from genrec.figures import LIGHT, STAND_INS, choose_style
from genrec.tokenizers.measures.categories import Categories
from genrec.tokenizers.measures.code_tree import Arc, build_arcs, place_items
from genrec.tokenizers.measures.report_plots import (
    Picture,
    choose_hues,
    draw_lines,
    draw_map,
    draw_tree,
)

from .conftest import plant_clusters


def test_rings_by_hand() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0]], dtype=np.int32)
    known = Categories(1, ("hair", "skin"), np.arange(4), np.array([1, 1, 0, 0]))
    arcs = build_arcs(codes, known)
    assert arcs == [
        Arc(0, 0.0, 0.25, 0, 1.0),
        Arc(1, 0.0, 0.25, 0, 1.0),
        Arc(0, 0.25, 1.0, 1, pytest.approx(2 / 3)),
        Arc(1, 0.25, 0.5, 0, 1.0),
        Arc(1, 0.5, 1.0, 1, 1.0),
    ]


def test_each_ring_is_whole() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(30, size=(3_000, 3)).astype(np.int32)
    known = Categories(1, ("a", "b", "c"), np.arange(2_000), rng.integers(3, size=2_000))
    arcs = build_arcs(codes, known)
    for ring in (0, 1):
        spans = [(arc.start, arc.end) for arc in arcs if arc.ring == ring]
        assert spans[0][0] == 0.0
        assert spans[-1][1] == pytest.approx(1.0)
        for before, after in pairwise(spans):
            assert before[1] == pytest.approx(after[0])
    assert sum(arc.ring == 0 for arc in arcs) == 30
    assert sum(arc.ring == 1 for arc in arcs) < 300, "small pairs are drawn together"
    assert all(0 <= arc.purity <= 1 + 1e-9 for arc in arcs)


def test_rings_without_categories_and_of_one_level() -> None:
    arcs = build_arcs(np.array([[0], [0], [1]], dtype=np.int32), None)
    assert [arc.label for arc in arcs] == [-1] * 4
    assert [arc.purity for arc in arcs] == [1.0] * 4


def test_near_items_are_near_on_the_map() -> None:
    vectors = plant_clusters(60, n_clusters=3)
    rows, places = place_items(vectors)
    again = place_items(vectors)[1]
    np.testing.assert_array_equal(places, again)
    assert rows.tolist() == list(range(60))
    centres = np.stack([places[cluster::3].mean(axis=0) for cluster in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres[None], axis=2).argmin(axis=1)
    assert nearest.tolist() == [row % 3 for row in range(60)]


def test_maps_of_few_or_equal_items() -> None:
    rows, places = place_items(np.ones((5, 3), dtype=np.float32))
    assert (rows.tolist(), places.tolist()) == ([0, 1, 2, 3, 4], [[0, 0]] * 5)
    places = place_items(plant_clusters(5))[1]
    assert len(np.unique(places, axis=0)) == 5
    line = np.arange(20, dtype=np.float32)[:, None]
    assert np.isfinite(place_items(line)[1]).all()


def test_codes_on_one_side_share_a_hue() -> None:
    places = np.array([[1, 0], [1.1, 0], [-1, 0], [-1.1, 0]], dtype=np.float32)
    tidy = choose_hues(places, np.array([4, 4, 9, 9]))
    assert tidy[0] == tidy[1]
    assert tidy[2] == tidy[3]
    assert tidy[0] != tidy[2]


def test_one_drawing_serves_page_and_file(tmp_path) -> None:
    arcs = build_arcs(
        np.array([[0, 0], [1, 0], [2, 0]], dtype=np.int32),
        Categories(1, ("$a$ <b>", "b"), np.arange(2), np.array([0, 1])),
    )
    picture = Picture("rings", 'A "title" <x>', "", lambda p: draw_tree(p, arcs, ["$a$ <b>", "b"]))
    svg = picture.render_svg()
    assert "var(--series-0)" in svg
    assert "var(--card)" in svg
    assert "#0303" not in svg
    assert "$a$ &lt;b&gt;" in svg
    assert 'aria-label="A &quot;title&quot; &lt;x&gt;"' in svg
    assert svg == picture.render_svg()
    picture.write_png(tmp_path)
    assert (tmp_path / "rings.png").read_bytes().startswith(b"\x89PNG")


def test_lines_break_where_a_value_is_missing() -> None:
    lines = [(f"_{row}", [0.5, None, -0.1]) for row in range(8)]
    axes = draw_lines(LIGHT, lines, "agreement").axes[0]
    assert len(axes.get_lines()) == 8
    assert np.isnan(axes.get_lines()[0].get_ydata()[1])
    assert axes.get_ylim()[0] < -0.1
    assert draw_lines(LIGHT, lines[:1], "items", log=True).axes[0].get_yscale() == "log"


def test_every_item_of_a_map_is_drawn() -> None:
    places = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    picture = Picture("map", "t", "", lambda p: draw_map(p, places, np.arange(30) % 4))
    assert len(re.findall(r"<use ", picture.render_svg())) == 30


def test_palettes_have_as_many_colours() -> None:
    assert len(STAND_INS.series) == len(LIGHT.series)
    assert choose_style(LIGHT)["text.color"] == LIGHT.ink
