"""Metrics of every method, and of the settings that it could have had."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from g2sf_lib.plots.style import (
    BLUE,
    MARKERS,
    METRIC_NAMES,
    VERMILLION,
    WIDTH_INCHES,
    line_styles,
    one_panel,
    require_columns,
    styled,
)


def method_dots(results: pd.DataFrame, value: str = "i_auroc", error: str = "se") -> Figure:
    """Return a metric of every method, a panel a category.

    Args:
        results: columns `method`, `category`, `value` and, where it is known, `error`; one
            row a pair. Methods are drawn in the order they come in.
        value: the column with the metric, in [0, 1].
        error: the column with its standard error.
    """
    return _dots("method_dots", results, "category", value, error)


def defect_dots(results: pd.DataFrame, value: str = "i_auroc", error: str = "se") -> Figure:
    """Return a metric of every method, a panel a kind of defect.

    Args:
        results: columns `method`, `defect`, `value` and, where it is known, `error`.
        value: the column with the metric, in [0, 1].
        error: the column with its standard error.
    """
    return _dots("defect_dots", results, "defect", value, error)


@styled
def _dots(figure: str, results: pd.DataFrame, panel: str, value: str, error: str) -> Figure:
    require_columns(figure, results, ["method", panel, value])
    methods = list(dict.fromkeys(results["method"]))
    panels = list(dict.fromkeys(results[panel]))
    num_columns = min(len(panels), 3)
    num_rows = math.ceil(len(panels) / num_columns)
    height = num_rows * (0.75 + 0.2 * len(methods))
    fig = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = fig.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, panels, strict=False):
        rows = results[results[panel] == name].set_index("method").reindex(methods)
        spread = rows[error].fillna(0) if error in rows else None
        best = rows[value].max()
        for place, (method, score) in enumerate(rows[value].items()):
            width = None if spread is None else spread[method]
            is_best = score == best
            ax.errorbar(
                score,
                place,
                xerr=width,
                fmt="D" if is_best else "o",
                markersize=5,
                color=VERMILLION if is_best else BLUE,
                elinewidth=1,
                capsize=2,
            )
        ax.set_title(str(name))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    words = METRIC_NAMES.get(value, value)
    bars = ", bars: one standard error" if error in results else ""
    fig.supxlabel(f"{words} (diamond: highest{bars})", fontsize=9)
    return fig


@styled
def pro_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], limits: Sequence[float] = (0.3, 0.01)
) -> Figure:
    """Return per-region overlap over false positive rate, a panel a limit of AUPRO.

    AUPRO is the area below the curve left of the dotted line, divided by the limit. Curves
    of few points show their points.

    Args:
        curves: method or protocol -> (fpr, pro) of `g2sf_lib.evaluation.pro_curve`.
        limits: false positive rates where the areas end.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(limits)))
    styles = line_styles(len(curves))
    for ax, limit in zip(axes, limits, strict=True):
        for (name, (fpr, pro)), (colour, line) in zip(curves.items(), styles, strict=True):
            fpr, pro = np.asarray(fpr), np.asarray(pro)
            shown = _within(fpr, 1.25 * limit)
            marker = "o" if len(fpr) <= 200 else None
            fpr, pro = fpr[shown], pro[shown]
            ax.plot(fpr, pro, line, color=colour, marker=marker, markersize=3, label=name)
        ax.axvline(limit, color="0.3", linestyle=":")
        ax.set_xlim(0, 1.2 * limit)
        ax.set_ylim(0, 1.02)
        ax.set_title(f"AUPRO at {limit:.0%}")
        ax.set_xlabel("false positive rate")
    axes[0].set_ylabel("per-region overlap")
    axes[0].legend(loc="lower right")
    return fig


def _within(fpr: np.ndarray, limit: float) -> np.ndarray:
    """Return places of a rising curve up to one past the limit, at most about 1,000 of them."""
    last = min(int(np.searchsorted(fpr, limit, side="right")) + 1, len(fpr))
    return np.unique(np.linspace(0, last - 1, min(last, 1000)).astype(int))


@styled
def cell_shift(table: pd.DataFrame) -> Figure:
    """Return how well scores tell cells apart, a row a group of cells: where training helps.

    Args:
        table: columns ``group`` (which anomalous cells: synthetic ones of the validation split,
            or real ones by what shows them), ``quantity`` (whose score it is), ``value`` (AUROC
            over cells, in [0, 1]) and ``error`` (its standard error; may be NaN). One row a pair.

    Returns:
        One panel: a row a group, in it a marker a quantity, one below the other; the dotted line
        at 0.5 is chance.

    Raises:
        ValueError: a column is missing.
    """
    require_columns("cell_shift", table, ["group", "quantity", "value", "error"])
    groups = list(dict.fromkeys(table["group"]))
    quantities = list(dict.fromkeys(table["quantity"]))
    height = 0.9 + len(groups) * (0.2 + 0.13 * len(quantities))
    fig, ax = one_panel("AUROC over cells (bars: one standard error)", "", (WIDTH_INCHES, height))
    step = 0.7 / len(quantities)
    styles = zip(quantities, line_styles(len(quantities)), strict=True)
    for order, (quantity, (colour, _)) in enumerate(styles):
        rows = table[table["quantity"] == quantity]
        places = np.array([groups.index(group) for group in rows["group"]])
        ax.errorbar(
            rows["value"],
            places + step * (order - (len(quantities) - 1) / 2),
            xerr=rows["error"].fillna(0),
            fmt=MARKERS[order % len(MARKERS)],
            markersize=5,
            color=colour,
            elinewidth=1,
            capsize=2,
            label=quantity,
        )
    for between in range(1, len(groups)):
        ax.axhline(between - 0.5, color="0.8", linewidth=0.8)
    ax.axvline(0.5, color="0.3", linestyle=":", linewidth=1)
    ax.grid(False, axis="y")
    ax.set_yticks(range(len(groups)), groups)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


@styled
def candidate_dots(table: pd.DataFrame, label: str = "value on validation scans") -> Figure:
    """Return what was tried for each method, and what was chosen, a panel a method.

    Args:
        table: columns ``method``, ``candidate`` (its settings, as text), ``category``, ``value``
            (what the choice is made by; higher is better) and ``is_chosen`` (bool, the same for
            all categories of a candidate). One row a candidate and category.
        label: what ``value`` is.

    Returns:
        A panel a method, one below the other: the mean over categories of each candidate, its
        categories as small points, a diamond for the one that was chosen,
        if it is among them.

    Raises:
        ValueError: a column is missing, or a method has more than one chosen candidate.
    """
    columns = ["method", "candidate", "category", "value", "is_chosen"]
    require_columns("candidate_dots", table, columns)
    methods = list(dict.fromkeys(table["method"]))
    for method in methods:
        of_method = table[table["method"] == method]
        chosen = sorted(of_method.loc[of_method["is_chosen"], "candidate"].unique())
        if len(chosen) > 1:
            raise ValueError(
                f"candidate_dots: {method} has the chosen candidates {chosen}; expected at most one"
            )
    counts = [table.loc[table["method"] == method, "candidate"].nunique() for method in methods]
    height = 0.5 + sum(0.4 + 0.22 * count for count in counts)
    fig = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = fig.subplots(len(methods), 1, sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    for ax, method in zip(axes, methods, strict=True):
        candidates = table[table["method"] == method].groupby("candidate", sort=False)
        for place, (_, rows) in enumerate(candidates):
            is_chosen = rows["is_chosen"].any()
            ax.plot(rows["value"], [place] * len(rows), ".", color="0.6", markersize=4)
            ax.plot(
                rows["value"].mean(),
                place,
                marker="D" if is_chosen else "o",
                markersize=6,
                color=VERMILLION if is_chosen else BLUE,
            )
        ax.set_yticks(range(len(candidates)), list(candidates.groups))
        ax.set_ylim(len(candidates) - 0.5, -0.5)
        ax.set_title(method)
    axes[-1].set_xlabel(f"{label}: mean (grey: each category; diamond: chosen)")
    return fig
