"""Ablations: what a change of one thing does to a metric, and metrics over a number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from g2sf_lib.plots.style import (
    MARKERS,
    METRIC_NAMES,
    WIDTH_INCHES,
    line_styles,
    require_columns,
    styled,
)


@styled
def effect_dots(points: pd.DataFrame, effects: pd.DataFrame, reference: str) -> Figure:
    """Return what each row of an ablation differs by from a reference, a panel a metric.

    Args:
        points: columns ``variant`` (as text), ``metric``, ``category`` and ``difference``, a row a
            variant, metric, category and seed: the small marks. Variants are drawn in the order
            they come in, from above.
        effects: columns ``variant``, ``metric``, ``difference`` and ``se`` (NaN: unknown), a row a
            variant and metric: the diamonds.
        reference: what is subtracted, in words.
    """
    require_columns("effect_dots", points, ["variant", "metric", "category", "difference"])
    variants, metrics = list(points["variant"].unique()), list(points["metric"].unique())
    fig, axes = _panels(metrics, 0.55 + 0.32 * len(variants), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        ax.axvline(0, color="0.3", linewidth=1)
        of_metric = points[points["metric"] == metric]
        for category, colour, marker in _looks(points):
            rows = of_metric[of_metric["category"] == category]
            places = [variants.index(variant) - 0.15 for variant in rows["variant"]]
            ax.plot(
                rows["difference"], places, marker, color=colour, markersize=4, alpha=0.65,
                markeredgewidth=0, label=category,
            )  # fmt: skip
        means = effects[effects["metric"] == metric]
        places = [variants.index(variant) + 0.2 for variant in means["variant"]]
        ax.errorbar(
            means["difference"], places, xerr=means["se"], fmt="D", color="black", markersize=5,
            elinewidth=1.2, capsize=2.5, label="_mean",
        )  # fmt: skip
        for between in range(1, len(variants)):
            ax.axhline(between - 0.5, color="0.88", linewidth=0.8)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].set_ylim(len(variants) - 0.5, -0.5)
    _legend(fig, axes[0])
    bars = " with standard error" if effects["se"].notna().any() else ""
    marks = f"small marks: each category and seed, diamond: mean{bars}"
    fig.supxlabel(f"difference from {reference}; {marks}", fontsize=9)
    return fig


@styled
def curve_with_bands(
    table: pd.DataFrame,
    over: str,
    values: Sequence[str],
    label: str,
    marked: float | None = None,
    is_log: bool = False,
    is_relative: bool = False,
    is_shared: bool = False,
    unit: str = "",
) -> Figure:
    """Return metrics over a number, a panel a metric: mean, band over seeds, a line a category.

    Args:
        table: columns `over`, ``category``, ``seed`` and `values`; one row a combination.
        over: the column with the number, e.g. an epoch, or J of "min over j = 0 ... J".
        values: the columns with the metrics.
        label: what `over` is, in words.
        marked: a number that a dotted line stands at; None: no line.
        is_log: whether the number is drawn on a logarithmic axis.
        is_relative: whether values are shown minus that at `marked`, of their category and seed.
        is_shared: whether all panels have one scale.
        unit: what the values are, where the panels' names do not say it.
    """
    require_columns("curve_with_bands", table, [over, "category", "seed", *values])
    wide = table.pivot(index=over, columns=["category", "seed"], values=list(values)).sort_index()
    if is_relative:
        wide = wide - wide.loc[marked]
    fig, axes = _panels(values, 2.1, sharex=True, sharey=is_shared)
    for ax, value in zip(axes, values, strict=True):
        by_category = wide[value].T.groupby(level="category").mean().T
        for category, colour, marker in _looks(table):
            ax.plot(
                by_category[category], marker=marker, markersize=3, color=colour, linewidth=0.8,
                alpha=0.7, label=category,
            )  # fmt: skip
        by_seed = wide[value].T.groupby(level="seed").mean().T
        mean, spread = by_seed.mean(axis=1), by_seed.std(axis=1)
        if by_seed.shape[1] > 1:
            ax.fill_between(mean.index, mean - spread, mean + spread, color="black", alpha=0.15)
        ax.plot(mean, color="black", linewidth=2.2, label="mean")
        if marked is not None:
            ax.axvline(marked, color="0.3", linestyle=":", linewidth=1)
        if is_relative:
            ax.axhline(0, color="0.3", linewidth=0.8)
        ax.ticklabel_format(axis="y", style="plain", useOffset=False)
        _number_axis(ax, [float(number) for number in wide.index], is_log)
    _legend(fig, axes[0])
    minus = f"minus that at {marked:g}" if is_relative else ""
    fig.supylabel(", ".join(filter(None, [unit, minus])), fontsize=9)
    band = " (band: ± one standard deviation over seeds)" if table["seed"].nunique() > 1 else ""
    fig.supxlabel(f"{label}{band}", fontsize=9)
    return fig


def _panels(metrics: Sequence[str], height: float, **shared):
    """Return a figure and a list of axes with their titles, one a metric."""
    num_columns = 2 if len(metrics) in (2, 4) else min(len(metrics), 3)
    num_rows = math.ceil(len(metrics) / num_columns)
    fig = Figure(figsize=(WIDTH_INCHES, 0.7 + height * num_rows), layout="constrained")
    axes = list(fig.subplots(num_rows, num_columns, squeeze=False, **shared).flat)
    for ax in axes[len(metrics) :]:
        ax.set_visible(False)
    for ax, metric in zip(axes, metrics, strict=False):
        ax.set_title(METRIC_NAMES.get(metric, metric))
    return fig, axes[: len(metrics)]


def _legend(fig: Figure, ax) -> None:
    handles, names = ax.get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=min(len(names), 6), frameon=False)


def _number_axis(ax, numbers: list[float], is_log: bool) -> None:
    """Put ticks where the numbers are, or a few of them where there are many."""
    if is_log:
        ax.set_xscale("log")
    if len(numbers) <= 11:
        ax.set_xticks(numbers, [f"{number:g}" for number in numbers])
        ax.xaxis.set_minor_locator(NullLocator())
    elif not is_log:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=all(x.is_integer() for x in numbers)))


def _looks(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return category, colour and marker of each category."""
    categories = list(table["category"].unique())
    colours = [colour for colour, _ in line_styles(len(categories))]
    return [(name, colours[n], MARKERS[n % len(MARKERS)]) for n, name in enumerate(categories)]
