"""Ablations: what a change of one thing does to a metric, and metrics over a number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from g2sf_lib.plots.style import (
    MARKERS,
    METRIC_NAMES,
    WIDTH_INCHES,
    line_styles,
    require_columns,
    styled,
)


@styled
def effect_dots(points: pd.DataFrame, effects: pd.DataFrame, reference: str = "") -> Figure:
    """Return what each row of an ablation differs by from a reference, a panel a metric.

    Args:
        points: columns ``variant`` (as text), ``metric`` (a key of `METRIC_NAMES`, or any text),
            ``category`` and ``difference`` (variant minus reference); one row a variant, metric,
            category and seed. Variants are drawn in the order they come in, from above.
        effects: columns ``variant``, ``metric``, ``difference`` (mean) and ``se`` (its standard
            error, NaN where it is unknown); one row a variant and metric.
        reference: what is subtracted, in words.

    Returns:
        A panel a metric, each with its own scale: a small mark a category and seed, one below
        them with a bar for mean and standard error; the line at 0 is the reference.

    Raises:
        ValueError: a column is missing, or the two tables are not of the same variants and
            metrics.
    """
    require_columns("effect_dots", points, ["variant", "metric", "category", "difference"])
    require_columns("effect_dots", effects, ["variant", "metric", "difference", "se"])
    variants = list(dict.fromkeys(points["variant"]))
    metrics = list(dict.fromkeys(points["metric"]))
    for column, known in (("variant", variants), ("metric", metrics)):
        if set(effects[column]) != set(known):
            raise ValueError(
                f"effect_dots: effects are of the {column}s {sorted(set(effects[column]))}; "
                f"expected {sorted(known)}, as in points"
            )
    categories = list(dict.fromkeys(points["category"]))
    looks = _category_looks(categories)
    num_columns = 2 if len(metrics) in (2, 4) else min(len(metrics), 3)
    num_rows = math.ceil(len(metrics) / num_columns)
    height = 0.8 + num_rows * (0.55 + 0.32 * len(variants))
    fig = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = fig.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        ax.axvline(0, color="0.3", linewidth=1)
        of_metric = points[points["metric"] == metric]
        for category, (colour, marker) in looks.items():
            rows = of_metric[of_metric["category"] == category]
            places = [variants.index(variant) - 0.15 for variant in rows["variant"]]
            ax.plot(
                rows["difference"], places, marker, color=colour, markersize=4, alpha=0.65,
                markeredgewidth=0, label=category,
            )  # fmt: skip
        for row in effects[effects["metric"] == metric].itertuples():
            ax.errorbar(
                row.difference,
                variants.index(row.variant) + 0.2,
                xerr=None if math.isnan(row.se) else row.se,
                fmt="D",
                markersize=5,
                color="black",
                elinewidth=1.2,
                capsize=2.5,
            )
        for between in range(1, len(variants)):
            ax.axhline(between - 0.5, color="0.88", linewidth=0.8)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.set_title(METRIC_NAMES.get(metric, metric))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    axes[0, 0].set_yticks(range(len(variants)), variants)
    axes[0, 0].set_ylim(len(variants) - 0.5, -0.5)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=min(len(names), 6), frameon=False)
    bars = " with standard error" if effects["se"].notna().any() else ""
    minus = f"difference from {reference}; " if reference else "difference; "
    fig.supxlabel(f"{minus}small marks: each category and seed, diamond: mean{bars}", fontsize=9)
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
    """Return metrics over a number, a panel a metric: their mean, and each category.

    Args:
        table: columns `over`, ``category``, ``seed`` and `values`; one row a combination.
        over: the column with the number, e.g. an epoch, or J of "min over j = 0 ... J".
        values: the columns with the metrics.
        label: what `over` is, in words.
        marked: a number that a dotted line stands at; None: no line.
        is_log: whether the number is drawn on a logarithmic axis.
        is_relative: whether each value is shown minus that at `marked`, in the same category and
            for the same seed. Categories differ by more than the number changes, as a rule.
        is_shared: whether all panels have one scale.
        unit: what the values are, where the panels' names do not say it.

    Returns:
        In each panel the mean over categories and seeds, around it, where there are several
        seeds, a band of one standard deviation over them of the mean over categories, and a thin
        line a category (mean over seeds).

    Raises:
        ValueError: a column is missing; there is nothing at `marked` to be relative to; or
            the number is not above 0 on a logarithmic axis.
    """
    require_columns("curve_with_bands", table, [over, "category", "seed", *values])
    if is_log and table[over].min() <= 0:
        raise ValueError(f"curve_with_bands: {over} is {table[over].min():g}; expected above 0")
    wide = table.pivot(index=over, columns=["category", "seed"], values=list(values)).sort_index()
    if is_relative:
        if marked not in wide.index:
            raise ValueError(
                f"curve_with_bands: nothing at {over} = {marked} to be relative to; there are "
                f"{', '.join(f'{number:g}' for number in wide.index)}"
            )
        wide = wide - wide.loc[marked]
    looks = _category_looks(list(dict.fromkeys(table["category"])))
    num_columns = 2 if len(values) in (2, 4) else min(len(values), 3)
    num_rows = math.ceil(len(values) / num_columns)
    fig = Figure(figsize=(WIDTH_INCHES, 0.6 + 2.1 * num_rows), layout="constrained")
    axes = fig.subplots(num_rows, num_columns, sharex=True, sharey=is_shared, squeeze=False)
    for ax, value in zip(axes.flat, values, strict=False):
        by_category = wide[value].T.groupby(level="category").mean().T
        for category, (colour, marker) in looks.items():
            ax.plot(
                by_category[category], marker=marker, markersize=3, color=colour, linewidth=0.8,
                alpha=0.7, label=category,
            )  # fmt: skip
        by_seed = wide[value].T.groupby(level="seed").mean().T
        mean = by_seed.mean(axis=1)
        if by_seed.shape[1] > 1:
            spread = by_seed.std(axis=1)
            ax.fill_between(mean.index, mean - spread, mean + spread, color="black", alpha=0.15)
        ax.plot(mean, color="black", linewidth=2.2, label="mean")
        if marked is not None:
            ax.axvline(marked, color="0.3", linestyle=":", linewidth=1)
        if is_relative:
            ax.axhline(0, color="0.3", linewidth=0.8)
        ax.ticklabel_format(axis="y", style="plain", useOffset=False)
        _number_axis(ax, [float(number) for number in wide.index], is_log)
        ax.set_title(METRIC_NAMES.get(value, value))
    for ax in axes.flat[len(values) :]:
        ax.set_visible(False)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=min(len(names), 6), frameon=False)
    minus = f"minus that at {marked:g}" if is_relative else ""
    fig.supylabel(", ".join(filter(None, [unit, minus])), fontsize=9)
    band = " (band: ± one standard deviation over seeds)" if table["seed"].nunique() > 1 else ""
    fig.supxlabel(f"{label}{band}", fontsize=9)
    return fig


def _number_axis(ax, numbers: list[float], is_log: bool) -> None:
    """Put ticks where the numbers are, or a few of them where there are many."""
    if is_log:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
    if len(numbers) <= 11:
        ax.set_xticks(numbers)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    elif not is_log:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=all(x.is_integer() for x in numbers)))


def _category_looks(categories: list[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker a category."""
    styles = line_styles(len(categories))
    return {
        category: (colour, MARKERS[order % len(MARKERS)])
        for order, (category, (colour, _)) in enumerate(zip(categories, styles, strict=True))
    }
