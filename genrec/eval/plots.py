"""The report's pictures, as SVG text that takes its colours and font from the page around it.

Owns what is drawn. Draws what it is given and computes nothing; `genrec.figures` owns the look.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from genrec.eval.provenance import LossPoint
from genrec.figures import (
    MARKERS,
    N_SERIES,
    STAND_INS,
    add_legend,
    choose_style,
    export_svg,
    plain_text,
    start_figure,
)
from genrec.tokenizers.measures.report_plots import draw_code_use
from genrec.types import IndexArray, MetricValue

_SERIES = STAND_INS.series


def plot_metrics(systems: dict[str, dict[str, MetricValue]]) -> str:
    """Every metric with its interval, one mark a system."""
    metrics = list(next(iter(systems.values())))
    with mpl.rc_context(choose_style(STAND_INS)):
        figure, axes = start_figure(0.9 + len(metrics) * (0.17 + 0.14 * len(systems)))
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
                fmt=MARKERS[row % len(MARKERS)],
                color=_SERIES[row % N_SERIES],
                markersize=4.5,
                elinewidth=1.6,
                capsize=2.5,
                label=plain_text(name),
            )
        axes.set_yticks(np.arange(len(metrics)), metrics)
        axes.set_ylim(len(metrics) - 0.45, -0.55)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        add_legend(figure, axes)
        return export_svg(figure, "metrics", "Metrics with intervals, by system")


def plot_losses(losses: Sequence[LossPoint]) -> str:
    """Training and validation loss over updates."""
    with mpl.rc_context(choose_style(STAND_INS)):
        figure, axes = start_figure(2.9)
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
        add_legend(figure, axes)
        return export_svg(figure, "losses", "Training and validation loss")


def plot_code_use(codes: IndexArray, codebook_sizes: Sequence[int]) -> str:
    """How evenly each level's codes are used: items a code, most used first.

    Args:
        codes: each item's codes.
        codebook_sizes: how many codes each level has.

    Shapes:
        codes: (N, L) int64.
    """
    with mpl.rc_context(choose_style(STAND_INS)):
        figure = draw_code_use(STAND_INS, codes, codebook_sizes)
        return export_svg(figure, "codes", "Items a code, by level")
