"""Methods against each other: differences, whether they are real, and how protocols rank them."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from g2sf_lib.plots.style import (
    BLUE,
    MARKERS,
    METRIC_NAMES,
    WIDTH_INCHES,
    line_styles,
    no_ticks,
    require_columns,
    styled,
)

DIVERGING_MAP = "PuOr"  # orange below zero, purple above; both are told apart by everyone
WITHIN_95 = 1.96  # standard errors to either side of a mean


@styled
def protocol_differences(table: pd.DataFrame) -> Figure:
    """Return how AUPRO by the published protocol departs from AUPRO at every threshold.

    Args:
        table: columns ``method``, ``limit`` (false positive rate, in (0, 1)), ``every`` and
            ``published`` (AUPRO by either protocol); one row a method and limit, all methods at
            the lowest limit.

    Returns:
        Two panels: published - every over the limit (logarithmic), a line a method; and the
        ranks of the methods by both protocols at the lowest limit, with their AUPRO. A method's
        colour and marker are the same in both, so the ranks are the legend. Methods of equal
        AUPRO keep the table's order.

    Raises:
        ValueError: a column is missing, or a method's value at the lowest limit is.
    """
    require_columns("protocol_differences", table, ["method", "limit", "every", "published"])
    methods = list(dict.fromkeys(table["method"]))
    lowest = table["limit"].min()
    there = table[table["limit"] == lowest].set_index("method").reindex(methods)
    unknown = there[there[["every", "published"]].isna().any(axis=1)]
    if len(unknown):
        raise ValueError(
            f"protocol_differences: no AUPRO at {lowest:.0%} for {', '.join(unknown.index)}"
        )
    looks = {
        method: {"color": colour, "linestyle": line, "marker": MARKERS[order % len(MARKERS)]}
        for order, (method, (colour, line)) in enumerate(
            zip(methods, line_styles(len(methods)), strict=True)
        )
    }
    size = (WIDTH_INCHES, max(3.0, 1.2 + 0.2 * len(methods)))
    fig = Figure(figsize=size, layout="constrained")
    change, order = fig.subplots(1, 2, width_ratios=[1.7, 1])

    change.axhline(0, color="0.3", linewidth=1)
    for method in methods:
        rows = table[table["method"] == method].sort_values("limit")
        difference = rows["published"] - rows["every"]
        change.plot(rows["limit"], difference, markersize=4.5, **looks[method])
    change.set_xscale("log")
    change.set_xticks(sorted(table["limit"].unique()))
    change.xaxis.set_major_formatter(FuncFormatter(lambda limit, _: f"{100 * limit:g} %"))
    change.xaxis.set_minor_locator(NullLocator())
    change.set_xlabel("limit of the false positive rate")
    change.set_ylabel("AUPRO, published - every threshold")

    ranks = there[["every", "published"]].rank(ascending=False, method="first").astype(int)
    for method in methods:
        ends = ranks.loc[method, ["every", "published"]].tolist()
        order.plot([0, 1], ends, markersize=5, **looks[method])
        for side, protocol, rank in zip((0, 1), ("every", "published"), ends, strict=True):
            value = f"{there.loc[method, protocol]:.3f}"
            order.annotate(
                f"{method}  {value}" if side == 0 else f"{value}  {method}",
                (side, rank),
                xytext=(-7 if side == 0 else 7, 0),
                textcoords="offset points",
                ha="right" if side == 0 else "left",
                va="center",
                fontsize=8,
            )
    no_ticks(order)
    order.set_xticks([0, 1], ["every threshold", "published"])
    order.tick_params(axis="x", length=0)
    order.set_xlim(-0.1, 1.1)
    order.set_ylim(len(methods) + 0.5, 0.5)
    order.set_title(f"ranks by AUPRO at {lowest:.0%}")
    return fig


@styled
def difference_forest(table: pd.DataFrame) -> Figure:
    """Return G²SF minus every other method with 95 % intervals, a panel a metric.

    Args:
        table: columns ``method`` (the other one), ``metric`` (a key of `METRIC_NAMES`, or any
            text), ``difference`` (above 0: G²SF is better), ``se`` (its standard error) and
            ``is_real`` (bool: the test of the table says so). One row a pair.

    Returns:
        A panel a metric, each with its own scale; filled markers where ``is_real``, hollow ones
        elsewhere. That may differ from whether the interval holds zero, since a test of many
        pairs is stricter.

    Raises:
        ValueError: a column is missing.
    """
    columns = ["method", "metric", "difference", "se", "is_real"]
    require_columns("difference_forest", table, columns)
    methods = list(dict.fromkeys(table["method"]))
    metrics = list(dict.fromkeys(table["metric"]))
    num_columns = 2 if len(metrics) in (2, 4) else min(len(metrics), 3)
    num_rows = math.ceil(len(metrics) / num_columns)
    height = 0.4 + num_rows * (0.55 + 0.2 * len(methods))
    fig = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = fig.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        ax.axvline(0, color="0.3", linewidth=1)
        for row in table[table["metric"] == metric].itertuples():
            ax.errorbar(
                row.difference,
                methods.index(row.method),
                xerr=WITHIN_95 * row.se,
                fmt="o",
                markersize=5,
                color=BLUE,
                markerfacecolor=BLUE if row.is_real else "white",
                elinewidth=1,
                capsize=2,
            )
        ax.set_title(METRIC_NAMES.get(metric, metric))
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    fig.supxlabel("G²SF minus the method, 95 % intervals (filled: a real difference)", fontsize=9)
    return fig


@styled
def difference_matrix(
    difference: pd.DataFrame, is_real: pd.DataFrame, metric: str = "i_auroc"
) -> Figure:
    """Return every pairwise difference as a number on its colour, row minus column.

    Args:
        difference: methods x methods, row minus column; the diagonal, and cells that are NaN,
            stay empty.
        is_real: bool, the same methods in any order: where it is False, the number is grey and
            slanted.
        metric: a key of `METRIC_NAMES`, or any text: what differs.

    Returns:
        One panel; its colours are centred at zero.

    Raises:
        ValueError: rows and columns are not the same methods in the same order, or `is_real` is
            of other methods.
    """
    methods = list(difference.index)
    if list(difference.columns) != methods:
        raise ValueError(
            f"difference_matrix: rows are {methods}, columns {list(difference.columns)}; "
            "expected the same methods in the same order"
        )
    if set(is_real.index) != set(methods) or set(is_real.columns) != set(methods):
        raise ValueError(
            f"difference_matrix: is_real is of {list(is_real.index)} x {list(is_real.columns)}; "
            f"expected {methods}"
        )
    values = difference.to_numpy(dtype=float, copy=True)
    np.fill_diagonal(values, np.nan)
    is_real = is_real.loc[methods, methods].to_numpy(dtype=bool)
    reach = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0  # all alike: no colour at all
    norm = Normalize(-reach, reach)
    size = (WIDTH_INCHES, 1.2 + min(0.42 * len(methods), 5.0))
    fig = Figure(figsize=size, layout="constrained")
    ax = fig.subplots()
    drawn = ax.imshow(values, norm=norm, cmap=DIVERGING_MAP, aspect="auto")
    colours = matplotlib.colormaps[DIVERGING_MAP](norm(values))
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        is_dark = colours[row, column, :3] @ [0.3, 0.59, 0.11] < 0.5
        if is_real[row, column]:
            look = {"color": "white" if is_dark else "black", "weight": "bold"}
        else:
            look = {"color": "0.85" if is_dark else "0.35", "style": "italic"}
        ax.text(
            column,
            row,
            f"{value:+.3f}".replace("-", "−"),
            ha="center",
            va="center",
            fontsize=7,
            **look,
        )
    no_ticks(ax)
    ax.set_xticks(range(len(methods)), methods, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(methods)), methods)
    bar = fig.colorbar(drawn, ax=ax, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    ax.set_title(f"{METRIC_NAMES.get(metric, metric)}: row minus column")
    ax.set_xlabel("grey and slanted: no real difference")
    return fig
