"""The pictures of a vocabulary report.

Owns what is drawn. Draws what it is given and computes nothing; `genrec.figures` owns the look.
Every picture is drawn by a palette, so that the page's and the files' are the same.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from genrec.figures import (
    LIGHT,
    MARKERS,
    N_SERIES,
    STAND_INS,
    Palette,
    add_legend,
    choose_style,
    export_png,
    export_svg,
    plain_text,
    start_figure,
)
from genrec.tokenizers.measures.code_tree import Arc
from genrec.types import FloatArray, IndexArray

_RING_INNER, _RING_WIDTH = 0.32, 0.33
_CORNERS = 90  # of a whole ring: what is drawn straight turns 4 degrees at most
_LONGEST_LABEL = 24
_OTHER = N_SERIES - 1

Line = tuple[str, Sequence[float | None]]
"""A name and its values, one a prefix length."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure of the report, drawn when asked for."""

    name: str
    title: str
    note: str
    draw: Callable[[Palette], Figure]

    def render_svg(self) -> str:
        """The picture for a page."""
        with mpl.rc_context(choose_style(STAND_INS)):
            return export_svg(self.draw(STAND_INS), self.name, self.title)

    def write_png(self, folder: Path) -> None:
        """Write the picture as a file."""
        with mpl.rc_context(choose_style(LIGHT)):
            export_png(self.draw(LIGHT), folder / f"{self.name}.png")


def draw_lines(palette: Palette, lines: Sequence[Line], label: str, *, log: bool = False) -> Figure:
    """One line a vocabulary over the length of the prefix; a value that is None breaks it."""
    figure, axes = start_figure(2.9 + 0.2 * ((len(lines) + 1) // 2))
    for row, (name, values) in enumerate(lines):
        depths = np.arange(1, len(values) + 1)
        axes.plot(
            depths,
            [np.nan if value is None else value for value in values],
            color=palette.series[row % N_SERIES],
            marker=MARKERS[row % len(MARKERS)],
            markersize=5,
            linewidth=1.5,
            linestyle="-" if row < N_SERIES else "--",
            label=_shorten(name),
        )
    axes.set_xlabel("codes of the prefix")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), high + 0.05 * (high - min(0.0, low)))
    add_legend(figure, axes)
    return figure


def draw_code_use(
    palette: Palette, codes: IndexArray | Any, codebook_sizes: Sequence[int]
) -> Figure:
    """How evenly each level's codes are used: items a code, most used first.

    Args:
        palette: the colours.
        codes: each item's codes.
        codebook_sizes: how many codes each level has.

    Shapes:
        codes: (N, L) ints.
    """
    figure, axes = start_figure(2.9)
    for level, size in enumerate(codebook_sizes):
        counts = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
        used = int((counts > 0).sum())
        axes.step(
            100 * np.arange(used + 1) / size,
            np.append(counts[0], counts[:used]),
            where="pre",
            color=palette.series[level % N_SERIES],
            linestyle="-" if level < N_SERIES else "--",
            linewidth=1.4,
            label=f"level {level + 1}: {used}/{size}",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, 100)
    axes.set_xlabel("codes of the level, most used first (%)")
    axes.set_ylabel("items a code")
    add_legend(figure, axes)
    return figure


def draw_tree(palette: Palette, arcs: Sequence[Arc], names: Sequence[str]) -> Figure:
    """The first two levels as rings, coloured by commonest category, paler where it is mixed."""
    figure, axes = start_figure(4.6)
    series = [-1 if arc.label < 0 else min(arc.label, _OTHER) for arc in arcs]
    fill = [
        to_rgba(palette.series[max(place, 0)], 0.6 if place < 0 else 0.15 + 0.85 * arc.purity)
        for place, arc in zip(series, arcs, strict=True)
    ]
    rings = PolyCollection(
        [_bend_arc(arc) for arc in arcs],
        facecolors=fill,
        edgecolors=palette.page,
        linewidths=[min(0.5, 60 * (arc.end - arc.start)) for arc in arcs],
    )
    rings.set_clip_on(False)
    axes.add_collection(rings)
    axes.set_aspect("equal")
    edge = _RING_INNER + 2 * _RING_WIDTH
    axes.set_xlim(-edge, edge)
    axes.set_ylim(-edge, edge)
    axes.axis("off")
    handles = [
        Patch(
            color=palette.series[place],
            label=_shorten(names[place]) if place < _OTHER else "others",
        )
        for place in sorted(set(series) - {-1})
    ]
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1.2)
    return figure


def _bend_arc(arc: Arc) -> list[tuple[float, float]]:
    """The corners of a part of a ring, clockwise from the top; a few where it is short."""
    steps = 2 + int((arc.end - arc.start) * _CORNERS)
    turn = 2 * np.pi * np.linspace(arc.start, arc.end, steps)
    inner = _RING_INNER + _RING_WIDTH * arc.ring
    outer = inner + _RING_WIDTH
    rim = [(outer * float(np.sin(angle)), outer * float(np.cos(angle))) for angle in turn]
    hub = [(inner * float(np.sin(angle)), inner * float(np.cos(angle))) for angle in turn[::-1]]
    return rim + hub


def draw_map(palette: Palette, places: FloatArray, first: IndexArray) -> Figure:
    """Items on a plane, one colour a first code: the hue of the side on which its items lie.

    Args:
        palette: not used, for the colours are the codes'.
        places: where the items are.
        first: their first codes.

    Shapes:
        places: (n, 2) float32.
        first: (n,) ints.
    """
    del palette
    figure, axes = start_figure(4.6)
    axes.scatter(places[:, 0], places[:, 1], s=7, c=choose_hues(places, first), lw=0, clip_on=False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.axis("off")
    return figure


def choose_hues(places: FloatArray, first: IndexArray) -> list[tuple[float, float, float]]:
    """A colour an item, the same for all of a code: where a code gathers its items, hues are tidy.

    The hue turns with the direction from the middle of all items to the middle of the code's.
    """
    _, group, counts = np.unique(first, return_inverse=True, return_counts=True)
    middle = np.stack([np.bincount(group, weights=axis) / counts for axis in places.T], axis=1)
    offset = middle - np.median(places, axis=0)
    turn = np.arctan2(offset[:, 1], offset[:, 0]) / (2 * np.pi) % 1.0
    # Two lightnesses tell codes of one direction apart, and both show on light and dark pages.
    colors = [
        colorsys.hls_to_rgb(hue, (0.48, 0.63)[place % 2], 0.75)
        for place, hue in enumerate(turn.tolist())
    ]
    return [colors[place] for place in group.tolist()]


def _shorten(text: str) -> str:
    text = plain_text(text)
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
