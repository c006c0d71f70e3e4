"""Metrics of every method, and distributions of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from g2sf_lib.plots import style


@style.styled
def method_dots(
    results: pd.DataFrame, value: str = "i_auroc", error: str = "se", panel: str = "category"
) -> Figure:
    """Return the metric `value` of every method, a panel a category; a diamond marks the highest.

    `results` has a row a method and `panel`: columns ``method``, `panel`, `value` and, where it is
    known, `error`, the standard error. Methods are drawn in the order they come in.
    """
    methods, panels = list(results["method"].unique()), results.groupby(panel, sort=False)
    names, height = [str(name) for name, _ in panels], 0.75 + 0.2 * len(methods)
    fig, axes = style.titled_panels(names, min(len(names), 3), height, sharex=True, sharey=True)
    for ax, (_, rows) in zip(axes, panels, strict=True):
        rows = rows.set_index("method").reindex(methods).reset_index()
        is_best = rows[value] == rows[value].max()
        for chosen, marker, colour in (
            (~is_best, "o", style.BLUE),
            (is_best, "D", style.VERMILLION),
        ):
            part = rows[chosen]
            width = part[error].fillna(0) if error in rows else None
            look = {"fmt": marker, "color": colour, "markersize": 5, "elinewidth": 1, "capsize": 2}
            ax.errorbar(part[value], part.index, xerr=width, **look)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    bars = ", bars: one standard error" if error in results else ""
    fig.supxlabel(f"{style.METRIC_NAMES.get(value, value)} (diamond: highest{bars})", fontsize=9)
    return fig


@style.styled
def pro_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], limits: Sequence[float] = (0.3, 0.01)
) -> Figure:
    """Return per-region overlap over false positive rate, a panel a limit of AUPRO.

    AUPRO is the area below the curve left of the dotted line, divided by the limit. `curves` are
    name -> (fpr, pro) of `g2sf_lib.evaluation.pro_curve`; those of few points show their points.
    """
    titles = [f"AUPRO at {limit:.0%}" for limit in limits]
    fig, axes = style.titled_panels(titles, len(limits), 2.9)
    for ax, limit in zip(axes, limits, strict=True):
        for (name, (fpr, pro)), look in zip(
            curves.items(), style.line_styles(len(curves)), strict=True
        ):
            last = min(int(np.searchsorted(fpr, 1.25 * limit, side="right")) + 1, len(fpr))
            shown = np.unique(np.linspace(0, last - 1, min(last, 1000)).astype(int))
            marker = "o" if len(fpr) <= 200 else None
            ax.plot(fpr[shown], pro[shown], look[1], color=look[0], marker=marker, ms=3, label=name)
        ax.axvline(limit, color="0.3", linestyle=":")
        ax.set(xlim=(0, 1.2 * limit), ylim=(0, 1.02), xlabel="false positive rate")
    axes[0].set_ylabel("per-region overlap")
    axes[0].legend(loc="lower right")
    return fig


@style.styled
def score_histograms(
    normal: Sequence[Any], anomalous: Sequence[Any], names: Sequence[str]
) -> Figure:
    """Return the distributions of some scores over normal and anomalous cells, a panel a score."""
    fig = Figure(figsize=(style.WIDTH_INCHES, 2.5), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(names)))
    for ax, good, bad, name in zip(axes, normal, anomalous, names, strict=True):
        good, bad = np.asarray(good).ravel(), np.asarray(bad).ravel()
        low = float(min(good.min(), bad.min()))
        high = float(max(np.percentile(good, 99.9), np.percentile(bad, 99), 1.1 * low, 1e-9))
        for kind, values in (("normal", good), ("anomalous", bad)):
            colour, line = style.OF_CLASS[kind]
            shared = {"bins": np.linspace(low, high, 50), "density": True, "color": colour}
            ax.hist(values, histtype="stepfilled", alpha=0.25, **shared)
            ax.hist(values, histtype="step", linestyle=line, label=kind, **shared)
        ax.set_xlabel(name)
    axes[0].set_ylabel("density")
    axes[-1].legend()
    return fig
