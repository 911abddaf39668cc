"""Pictures for reports: SVG that takes its colours and font from the page, and PNG files.

Owns how figures look. Draws nothing by itself and computes nothing. Matplotlib draws an SVG with
stand-in colours, which become CSS variables afterwards: one picture serves the light and the dark
page.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

N_SERIES = 6
MARKERS = ("o", "s", "D", "^", "v", "P")
# As wide as a phone's screen in CSS pixels (4.6 in x 72), so that labels keep their size there.
WIDTH_INCHES = 4.6
_PNG_DOTS = 160


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours that a figure is drawn with."""

    ink: str
    faint: str
    page: str
    series: tuple[str, ...]


STAND_INS = Palette("#010101", "#020202", "#020203", tuple(f"#03030{n}" for n in range(N_SERIES)))
"""Colours that `export_svg` turns into the page's."""
LIGHT = Palette(
    "#1c2330",
    "#d9dee6",
    "#ffffff",
    ("#1f5fbf", "#c2500c", "#0f8a63", "#a3398f", "#8a6d00", "#5b6577"),
)
"""The light page's colours, for files."""
_VARIABLES = {
    STAND_INS.ink: "var(--ink)",
    STAND_INS.faint: "var(--line)",
    STAND_INS.page: "var(--card)",
} | {color: f"var(--series-{number})" for number, color in enumerate(STAND_INS.series)}


def choose_style(palette: Palette) -> dict[Any, Any]:
    """The matplotlib settings that every figure is drawn and exported with."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "genrec",
        "font.size": 10.5,
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette.faint,
        "grid.linewidth": 0.6,
        "xtick.color": palette.faint,
        "ytick.color": palette.faint,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "legend.frameon": False,
        "legend.fontsize": 10,
    }


def start_figure(height_inches: float) -> tuple[Figure, Axes]:
    """An empty figure of the reports' width."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def add_legend(figure: Figure, axes: Axes) -> None:
    """Name what is drawn, above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, handlelength=1.6)


def plain_text(text: str) -> str:
    """The text with what matplotlib would take for a formula made harmless."""
    return text.replace("$", r"\$").lstrip("_") or "system"


def export_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an <svg> element: no foreign address, its own ids, the page's colours.

    Args:
        figure: drawn with `STAND_INS`.
        name: put before every id, so that figures on one page do not share any.
        title: what is read out in its place.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def export_png(figure: Figure, path: Path) -> None:
    """Write the figure, drawn with `LIGHT`, as a picture file."""
    figure.savefig(path, format="png", dpi=_PNG_DOTS, facecolor="white")
