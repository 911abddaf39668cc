"""The report's pictures, as SVG text that takes its colours and font from the page around it.

Owns how figures look. Draws what it is given and computes nothing. Matplotlib draws with stand-in
colours, which become CSS variables afterwards: one picture serves the light and the dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from genrec.eval.provenance import LossPoint
from genrec.types import IndexArray, MetricValue

N_SERIES = 6
_INK, _FAINT = "#010101", "#020202"
_SERIES = tuple(f"#03030{number}" for number in range(N_SERIES))
_MARKERS = ("o", "s", "D", "^", "v", "P")
_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--line)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES)
}
# As wide as a phone's screen in CSS pixels (4.6 in x 72), so that labels keep their size there.
_WIDTH_INCHES = 4.6
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "genrec",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def plot_metrics(systems: dict[str, dict[str, MetricValue]]) -> str:
    """Every metric with its interval, one mark a system."""
    metrics = list(next(iter(systems.values())))
    with mpl.rc_context(_STYLE):
        figure, axes = _start_figure(0.9 + len(metrics) * (0.17 + 0.14 * len(systems)))
        for row, (name, values) in enumerate(systems.items()):
            offset = (row - (len(systems) - 1) / 2) * 0.8 / max(len(systems), 2)
            means = np.array([values[metric].mean for metric in metrics])
            low = np.array([values[metric].low for metric in metrics])
            high = np.array([values[metric].high for metric in metrics])
            axes.errorbar(
                means,
                np.arange(len(metrics)) + offset,
                # A percentile interval need not hold the mean; matplotlib wants lengths from it.
                xerr=np.maximum([means - low, high - means], 0.0),
                fmt=_MARKERS[row % len(_MARKERS)],
                color=_SERIES[row % N_SERIES],
                markersize=4.5,
                elinewidth=1.6,
                capsize=2.5,
                label=_plain(name),
            )
        axes.set_yticks(np.arange(len(metrics)), metrics)
        axes.set_ylim(len(metrics) - 0.45, -0.55)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        _add_legend(figure, axes)
        return _export(figure, "metrics", "Metrics with intervals, by system")


def plot_losses(losses: Sequence[LossPoint]) -> str:
    """Training and validation loss over updates."""
    with mpl.rc_context(_STYLE):
        figure, axes = _start_figure(2.9)
        train = [(point.step, point.loss) for point in losses if point.loss is not None]
        valid = [(point.step, point.eval_loss) for point in losses if point.eval_loss is not None]
        if train:
            axes.plot(*zip(*train, strict=True), color=_SERIES[0], linewidth=1.4, label="training")
        if valid:
            axes.plot(
                *zip(*valid, strict=True),
                color=_SERIES[1],
                linewidth=1.4,
                marker="o",
                markersize=4,
                label="validation",
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("update")
        axes.set_ylabel("loss (nats a token)")
        _add_legend(figure, axes)
        return _export(figure, "losses", "Training and validation loss")


def plot_code_use(codes: IndexArray, codebook_sizes: Sequence[int]) -> str:
    """How evenly each level's codes are used: items a code, most used first.

    Args:
        codes: each item's codes.
        codebook_sizes: how many codes each level has.

    Shapes:
        codes: (N, L) int64.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _start_figure(2.9)
        for level, size in enumerate(codebook_sizes):
            counts = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
            used = int((counts > 0).sum())
            share = np.arange(1, size + 1) / size
            axes.step(
                100 * np.append(0.0, share[:used]),
                np.append(counts[0], counts[:used]),
                where="pre",
                color=_SERIES[level % N_SERIES],
                linewidth=1.4,
                label=f"level {level + 1}: {used}/{size}",
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0, 100)
        axes.set_xlabel("codes of the level, most used first (%)")
        axes.set_ylabel("items a code")
        _add_legend(figure, axes)
        return _export(figure, "codes", "Items a code, by level")


def _start_figure(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def _add_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, handlelength=1.6)


def _plain(text: str) -> str:
    """The text with what matplotlib would take for a formula made harmless."""
    return text.replace("$", r"\$").lstrip("_") or "system"


def _export(figure: Figure, name: str, title: str) -> str:
    """The figure as an <svg> element: no foreign address, its own ids, the page's colours."""
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
