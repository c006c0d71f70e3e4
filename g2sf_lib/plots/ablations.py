"""Ablations: what a change of one thing does to a metric, and metrics over a number."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from g2sf_lib.plots.style import MARKERS, METRIC_NAMES, line_styles, styled, titled_panels


@styled
def effect_dots(points: pd.DataFrame, effects: pd.DataFrame, reference: str) -> Figure:
    """Return what each row of an ablation differs by from a reference, a panel a metric.

    Args:
        points: columns ``variant``, ``metric``, ``category`` and ``difference``, a row a
            combination and seed: the small marks. Variants are drawn in this order, from above.
        effects: columns ``variant``, ``metric``, ``difference`` and ``se`` (NaN: unknown), a row a
            variant and metric: the diamonds.
        reference: what is subtracted, in words.
    """
    variants, metrics = list(points["variant"].unique()), list(points["metric"].unique())
    fig, axes = _panels(metrics, 0.55 + 0.32 * len(variants), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        ax.axvline(0, color="0.3", linewidth=1)
        of_metric = points[points["metric"] == metric]
        for category, colour, marker in _looks(points):
            rows = of_metric[of_metric["category"] == category]
            places = [variants.index(variant) - 0.15 for variant in rows["variant"]]
            look = {"color": colour, "markersize": 4, "alpha": 0.65, "markeredgewidth": 0}
            ax.plot(rows["difference"], places, marker, label=category, **look)
        means = effects[effects["metric"] == metric]
        places = [variants.index(variant) + 0.2 for variant in means["variant"]]
        look = {"fmt": "D", "color": "black", "markersize": 5, "elinewidth": 1.2, "capsize": 2.5}
        ax.errorbar(means["difference"], places, xerr=means["se"], label="_mean", **look)
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
        over: the column with the number, e.g. an epoch.
        values: the columns with the metrics.
        label: what `over` is, in words.
        marked: a number that a dotted line stands at.
        is_log: whether the number has a logarithmic axis.
        is_relative: whether values are shown minus that at `marked`.
        is_shared: whether all panels have one scale.
        unit: what the values are, where the panels' names do not say it.
    """
    wide = table.pivot(index=over, columns=["category", "seed"], values=list(values)).sort_index()
    if is_relative:
        wide = wide - wide.loc[marked]
    fig, axes = _panels(values, 2.1, sharex=True, sharey=is_shared)
    for ax, value in zip(axes, values, strict=True):
        by_category = wide[value].T.groupby(level="category").mean().T
        by_seed = wide[value].T.groupby(level="seed").mean().T
        for category, colour, marker in _looks(table):
            look = {"marker": marker, "markersize": 3, "color": colour, "linewidth": 0.8}
            ax.plot(by_category[category], alpha=0.7, label=category, **look)
        mean, spread = by_seed.mean(axis=1), by_seed.std(axis=1)
        if by_seed.shape[1] > 1:
            ax.fill_between(mean.index, mean - spread, mean + spread, color="black", alpha=0.15)
        ax.plot(mean, color="black", linewidth=2.2, label="mean")
        if marked is not None:
            ax.axvline(marked, color="0.3", linestyle=":", linewidth=1)
        if is_relative:
            ax.axhline(0, color="0.3", linewidth=0.8)
        ax.ticklabel_format(axis="y", style="plain", useOffset=False)
        if is_log:
            ax.set_xscale("log")
        if len(wide) <= 11:
            ax.set_xticks(wide.index, [f"{number:g}" for number in wide.index])
            ax.xaxis.set_minor_locator(NullLocator())
        elif not is_log:
            ax.xaxis.set_major_locator(MaxNLocator(8, integer=all(wide.index % 1 == 0)))
    _legend(fig, axes[0])
    minus = f"minus that at {marked:g}" if is_relative else ""
    fig.supylabel(", ".join(filter(None, [unit, minus])), fontsize=9)
    band = " (band: ± one standard deviation over seeds)" if table["seed"].nunique() > 1 else ""
    fig.supxlabel(f"{label}{band}", fontsize=9)
    return fig


def _panels(metrics: Sequence[str], height: float, **shared):
    names = [METRIC_NAMES.get(metric, metric) for metric in metrics]
    num_columns = 2 if len(names) in (2, 4) else min(len(names), 3)
    return titled_panels(names, num_columns, height, more=0.7, **shared)


def _legend(fig: Figure, ax) -> None:
    handles, names = ax.get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=min(len(names), 6), frameon=False)


def _looks(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return category, colour and marker of each category."""
    categories = list(table["category"].unique())
    colours = [colour for colour, _ in line_styles(len(categories))]
    return [(name, colours[n], MARKERS[n % len(MARKERS)]) for n, name in enumerate(categories)]
