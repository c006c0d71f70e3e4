"""Distributions of scores, how they differ between methods, and rates of alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from g2sf_lib.plots.style import (
    MARKERS,
    OF_CLASS,
    WIDTH_INCHES,
    line_styles,
    require_columns,
    styled,
)

MAX_COLUMNS = 5  # of densities; more categories stand below


@styled
def score_densities(
    edges: np.ndarray,
    panels: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    marks: Mapping[str, Mapping[str, float]] | None = None,
    label: str = "normalised score",
) -> Figure:
    """Return densities of normal and anomalous scores, a row a method, a column a category.

    More than `MAX_COLUMNS` categories go on below, again with a row a method.

    Args:
        edges: (B + 1,) of the bins, rising.
        panels: method -> category -> "normal", "anomalous" -> (S, B) densities, one a seed.
        marks: method -> category -> where a dotted line stands; None: none.
        label: of the horizontal axis.

    Returns:
        Filled: the mean over seeds; thin lines: each seed. All panels share the horizontal axis,
        and the panels of a category the vertical one, so that widths and heights can be compared.

    Raises:
        ValueError: there is no panel, methods differ in categories, or a density has another
            number of bins.
    """
    edges = np.asarray(edges)
    columns = _checked_panels(edges, panels)
    num_columns = min(len(columns), MAX_COLUMNS)
    num_rows = len(panels) * math.ceil(len(columns) / num_columns)
    fig = Figure(figsize=(WIDTH_INCHES, 0.75 + 1.25 * num_rows), layout="constrained")
    axes = fig.subplots(num_rows, num_columns, sharex=True, squeeze=False)
    for place, category in enumerate(columns):
        block, column = divmod(place, num_columns)
        of_category = axes[block * len(panels) :, column][: len(panels)]
        of_category[0].set_title(category)
        for ax, (method, by_category) in zip(of_category, panels.items(), strict=True):
            _densities(ax, edges, by_category[category])
            if marks is not None:
                ax.axvline(marks[method][category], color="0.2", linestyle=":", linewidth=1.2)
            if column == 0:
                ax.set_ylabel(f"{method}\ndensity")
        of_category[-1].tick_params(labelbottom=True)  # also where nothing stands below
        top = max(ax.get_ylim()[1] for ax in of_category)
        for ax in of_category:
            ax.set_ylim(0, top)
    for ax in axes[-len(panels) :, (len(columns) - 1) % num_columns + 1 :].flat:
        ax.set_visible(False)
    axes[0, 0].set_xlim(edges[0], edges[-1])
    for kind, (colour, line) in OF_CLASS.items():
        axes[0, -1].plot([], [], color=colour, linestyle=line, label=f"{kind} pixels")
    if marks is not None:
        axes[0, -1].plot([], [], color="0.2", linestyle=":", label="finds 90 % of anomalous")
    fig.supxlabel(label, fontsize=9)
    handles, labels = axes[0, -1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return fig


def _densities(ax, edges: np.ndarray, kinds: Mapping[str, np.ndarray]) -> None:
    """Draw one panel of `score_densities`."""
    for kind, each in kinds.items():
        colour, line = OF_CLASS[kind]
        mean = np.mean(np.atleast_2d(each), axis=0)
        ax.stairs(mean, edges, fill=True, color=colour, alpha=0.3)
        ax.stairs(mean, edges, color=colour, linestyle=line, linewidth=1.2)
        for values in np.atleast_2d(each):
            ax.stairs(values, edges, color=colour, linewidth=0.5, alpha=0.5)
    ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(axis="y", labelsize=7)


def _checked_panels(edges: np.ndarray, panels: Mapping) -> list[str]:
    """Return the categories, which all methods have."""
    if not panels or not next(iter(panels.values())):
        raise ValueError("score_densities: there is nothing to draw")
    columns = list(next(iter(panels.values())))
    for method, by_category in panels.items():
        if list(by_category) != columns:
            raise ValueError(
                f"score_densities: {method} has the categories {list(by_category)}; expected "
                f"{columns}"
            )
        for category, kinds in by_category.items():
            for kind, each in kinds.items():
                bins = np.shape(each)[-1]
                if bins != len(edges) - 1:
                    raise ValueError(
                        f"score_densities: {method}, {category}, {kind} has {bins} bins; expected "
                        f"{len(edges) - 1}"
                    )
    return columns


@styled
def spread_changes(table: pd.DataFrame, subject: str = "G²SF") -> Figure:
    """Return what a method changes of some measures, against each of the others.

    Args:
        table: columns ``measure``, ``kind`` ("ratio", drawn on a logarithmic axis, or
            "difference"), ``against`` (the other method), ``category`` and ``value``. One row
            each.
        subject: the method.

    Returns:
        A panel a kind; a row a measure, in it a line of markers for each other method: small
        ones its categories, the large one their mean (of ratios the geometric one).

    Raises:
        ValueError: a column is missing, or a kind is unknown.
    """
    require_columns("spread_changes", table, ["measure", "kind", "against", "category", "value"])
    kinds = list(dict.fromkeys(table["kind"]))
    if not set(kinds) <= {"ratio", "difference"}:
        raise ValueError(f"spread_changes: kinds are {kinds}; expected 'ratio' and 'difference'")
    others = list(dict.fromkeys(table["against"]))
    counts = [table.loc[table["kind"] == kind, "measure"].nunique() for kind in kinds]
    height = 0.8 + sum(0.5 + count * (0.16 + 0.13 * len(others)) for count in counts)
    fig = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = fig.subplots(len(kinds), 1, squeeze=False, height_ratios=counts)[:, 0]
    for ax, kind in zip(axes, kinds, strict=True):
        rows = table[table["kind"] == kind]
        _changes(ax, rows, others, is_ratio=kind == "ratio")
        sign = "divided by" if kind == "ratio" else "minus"
        ax.set_xlabel(f"{subject} {sign} the other method (left of the line: {subject} less)")
    handles, labels = axes[0].get_legend_handles_labels()
    words = [f"against {label}" for label in labels]
    fig.legend(handles, words, loc="outside upper center", ncols=min(len(words), 3), frameon=False)
    return fig


def _changes(ax, rows: pd.DataFrame, others: list[str], is_ratio: bool) -> None:
    """Draw one panel of `spread_changes`."""
    measures = list(dict.fromkeys(rows["measure"]))
    step = 0.7 / len(others)
    styles = list(zip(others, line_styles(len(others)), MARKERS, strict=False))
    for order, (other, (colour, _), marker) in enumerate(styles):
        shift = step * (order - (len(others) - 1) / 2)
        for place, measure in enumerate(measures):
            chosen = (rows["measure"] == measure) & (rows["against"] == other)
            values = rows.loc[chosen, "value"].to_numpy()
            if not len(values):
                continue
            mean = np.exp(np.log(values).mean()) if is_ratio else values.mean()
            ax.plot(values, [place + shift] * len(values), marker, color=colour, alpha=0.5, ms=3)
            name = other if place == 0 else None
            ax.plot(mean, place + shift, marker, color=colour, ms=7, mec="black", label=name)
    if is_ratio:
        ax.set_xscale("log")
        _plain_log_ticks(ax, rows["value"])
    ax.axvline(1 if is_ratio else 0, color="0.3", linestyle=":", linewidth=1)
    ax.grid(False, axis="y")
    ax.set_yticks(range(len(measures)), measures)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(measures) - 0.5, -0.5)


def _plain_log_ticks(ax, values: pd.Series) -> None:
    """Label a logarithmic axis with 0.5, 1, 2 and the like, as many as there is room for."""
    low, high = min(values.min(), 1) / 1.1, max(values.max(), 1) * 1.1
    steps = np.arange(1, 10)
    for limit, fewer in ((4, (1, 1.5, 2, 3, 5, 7)), (20, (1, 2, 5)), (200, (1,))):
        steps = fewer if high / low > limit else steps
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    ticks += [1.1, 1.2, 1.5] if high / low < 2 else [1.5] if high / low <= 4 else []
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    ax.set_xlim(low, high)


@styled
def alarm_rates(table: pd.DataFrame) -> Figure:
    """Return the rates of false alarms that were seen over those that were promised.

    Args:
        table: columns ``level`` ("pixel" or "image"), ``method``, ``promised`` (by normal scans
            set aside, in (0, 1)), ``observed`` (seen, mean), ``low`` and ``high`` (its range, e.g.
            the lowest and the highest category). One row each.

    Returns:
        A panel a level, pixels on logarithmic axes; on the dotted diagonal a promise is kept.
        Methods stand side by side, so that their bars can be told apart.

    Raises:
        ValueError: a column is missing, or a level is unknown.
    """
    columns = ["level", "method", "promised", "observed", "low", "high"]
    require_columns("alarm_rates", table, columns)
    levels = list(dict.fromkeys(table["level"]))
    if not set(levels) <= {"pixel", "image"}:
        raise ValueError(f"alarm_rates: levels are {levels}; expected 'pixel' and 'image'")
    methods = list(dict.fromkeys(table["method"]))
    fig = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(levels)))
    styles = list(zip(methods, line_styles(len(methods)), MARKERS, strict=False))
    for ax, level in zip(axes, levels, strict=True):
        of_level = table[table["level"] == level]
        for order, (method, (colour, line), marker) in enumerate(styles):
            rows = of_level[of_level["method"] == method].sort_values("promised")
            shift = order - (len(methods) - 1) / 2
            is_log = level == "pixel"
            # beside each other: by a factor on a logarithmic axis, by a step on a linear one
            places = rows["promised"] * 1.06**shift if is_log else rows["promised"] + 0.006 * shift
            bars = np.stack([rows["observed"] - rows["low"], rows["high"] - rows["observed"]])
            ax.errorbar(places, rows["observed"], yerr=np.maximum(bars, 0), color=colour,
                        linestyle=line, linewidth=1, marker=marker, markersize=4.5, elinewidth=0.8,
                        capsize=2, label=method)  # fmt: skip
        _rate_axes(ax, of_level, level)
    axes[0].set_ylabel("alarm rate on good test scans")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))
    return fig


def _rate_axes(ax, rows: pd.DataFrame, level: str) -> None:
    """Scale one panel of `alarm_rates`, and draw its diagonal."""
    ax.set_xlabel(f"alarm rate promised, of {level}s")
    asked = sorted(rows["promised"].unique())
    digits = 1 if level == "pixel" else 2  # as asked for, or what so few scans can promise
    percent = FuncFormatter(lambda value, _: f"{float(f'{100 * value:.{digits}g}'):g} %")
    if level == "pixel":
        seen = rows.loc[rows["observed"] > 0, "observed"]
        low = min(asked[0], seen.min() if len(seen) else asked[0]) / 2.5
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(asked[0] / 1.6, min(asked[-1] * 1.6, 1))
        ax.set_ylim(low, min(max(asked[-1], rows["high"].max()) * 1.6, 1))
        ax.yaxis.set_major_locator(FixedLocator([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1]))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.set_xlim(0, min(asked[-1] + 0.1, 1))
        ax.set_ylim(-0.02, min(max(asked[-1], rows["high"].max()) + 0.1, 1.02))
    ax.xaxis.set_major_locator(FixedLocator(asked))
    ax.xaxis.set_major_formatter(percent)
    ax.yaxis.set_major_formatter(percent)
    line = np.array([1e-5, 1])
    ax.plot(line, line, color="0.3", linestyle=":", linewidth=1)
