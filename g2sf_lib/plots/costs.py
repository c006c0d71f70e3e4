"""What a run takes: time, memory, frame rates."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from g2sf_lib.plots.style import MARKERS, WIDTH_INCHES, line_styles, require_columns, styled

STEP_HATCHES = {"features": "", "neighbours": "//", "fusion": "..", "post-processing": "xx"}


@styled
def scale_curves(rows: pd.DataFrame, limit_mb: float | None = None) -> Figure:
    """Return time (both axes logarithmic) and memory of every step over the number of cells.

    Args:
        rows: columns ``step`` (its name), ``cells``, ``seconds``, ``peak_mb`` (may be missing),
            ``kind``: "measured" rows have filled markers, "extrapolated" ones hollow markers.
        limit_mb: memory to stay below, drawn as a line.

    Returns:
        Two panels: seconds, and peak memory in GB from zero.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    axes = fig.subplots(1, 2)
    handles = []
    steps = rows.groupby("step", sort=False)
    styles = line_styles(len(steps))
    for order, ((name, of_step), style) in enumerate(zip(steps, styles, strict=True)):
        colour, line = style
        look = {"color": colour, "linestyle": line, "linewidth": 1}
        point = {"marker": MARKERS[order % len(MARKERS)], "markersize": 6}
        point |= {"markeredgecolor": colour}
        for ax, values in zip(axes, (of_step["seconds"], of_step["peak_mb"] / 1000), strict=True):
            known = values.notna()
            cells, values = of_step["cells"][known] / 1000, values[known]
            ax.plot(cells, values, label=name, **look)
            for kind, fill in (("measured", colour), ("extrapolated", "white")):
                of_kind = of_step.loc[known, "kind"] == kind
                look_of_kind = {"linestyle": "none", "markerfacecolor": fill} | point
                ax.plot(cells[of_kind], values[of_kind], **look_of_kind)
        handles.append(Line2D([], [], label=name, markerfacecolor=colour, **look, **point))
    for ax, label in zip(axes, ("time (s)", "peak memory (GB)"), strict=True):
        ax.set_xlabel("cells (thousands)")
        ax.set_ylabel(label)
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[0].xaxis.set_minor_locator(NullLocator())
    if limit_mb is not None:
        axes[1].axhline(limit_mb / 1000, color="0.3", linestyle=":", linewidth=1)
        place = {"xy": (0.02, limit_mb / 1000), "xycoords": ("axes fraction", "data")}
        axes[1].annotate(f"{limit_mb / 1000:.0f} GB", **place, va="bottom", fontsize=8)
    top = axes[1].get_ylim()[1]
    axes[1].set_ylim(0, 1.08 * top)
    axes[1].set_xlim(left=0)
    for kind, fill in (("measured", "0.3"), ("extrapolated", "white")):
        point = {"marker": "o", "markeredgecolor": "0.3", "markerfacecolor": fill}
        handles.append(Line2D([], [], label=kind, linestyle="none", **point))
    fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return fig


@styled
def coreset_quality(rows: pd.DataFrame) -> Figure:
    """Return coverage radius, and the time that it took, of each kind of coreset over the size.

    Args:
        rows: columns ``coreset`` (its name), ``fraction`` of the paper's size, ``radius`` in
            units of the features, ``seconds`` (0: at once, left out of the second panel).

    Returns:
        Two panels; a lower radius is the better coreset.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 2.8), layout="constrained")
    axes = fig.subplots(1, 2)
    kinds = rows.groupby("coreset", sort=False)
    for (name, of_kind), marker, (colour, line) in zip(
        kinds, MARKERS, line_styles(rows["coreset"].nunique()), strict=False
    ):
        took_time = of_kind[of_kind["seconds"] > 0]  # a logarithmic axis has no zero
        for ax, kept, column in (
            (axes[0], of_kind, "radius"),
            (axes[1], took_time, "seconds"),
        ):
            ax.plot(
                100 * kept["fraction"],
                kept[column],
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=5,
                label=name,
            )
    for ax, label in zip(
        axes, ("coverage radius\n(units of the features)", "time (s)"), strict=True
    ):
        ax.set_xlabel("% of the paper's size")
        ax.set_ylabel(label)
    axes[0].set_ylim(bottom=0)
    axes[1].set_yscale("log")
    axes[0].legend()
    return fig


@styled
def frame_rate_bars(table: pd.DataFrame) -> Figure:
    """Return the time of a scan by method and step, and again without the features' share.

    Features take most of the time and are nearly the same for all methods; the second panel
    shows what the method itself takes.

    Args:
        table: columns ``method``, ``step`` ("features", "neighbours", "fusion",
            "post-processing", and "total": the whole scan, measured, since a median of sums is
            not the sum of medians), ``ms`` (median), ``low``, ``high`` (quartiles). A method
            need not have every step, but it needs its total.

    Returns:
        Two panels: all steps, with the quartiles of the total and the scans a second at its
        median; then the steps after the features, each with its quartiles.

    Raises:
        ValueError: a column or a method's total is missing, a step has another name, a method
            has a step twice, or a median is not between its quartiles.

    Source:
        Table 6, which gives the frame rate alone.
    """
    require_columns("frame_rate_bars", table, ["method", "step", "ms", "low", "high"])
    methods = list(dict.fromkeys(table["method"]))
    unknown = sorted(set(table["step"]) - {*STEP_HATCHES, "total"})
    if unknown:
        raise ValueError(
            f"frame_rate_bars: steps {unknown} are unknown; expected "
            f"{', '.join(STEP_HATCHES)} and total"
        )
    if table.duplicated(["method", "step"]).any():
        raise ValueError("frame_rate_bars: a method has a step twice; expected one row each")
    if not ((table["low"] <= table["ms"]) & (table["ms"] <= table["high"])).all():
        raise ValueError("frame_rate_bars: ms is not between low and high in every row")
    wide = table.pivot(index="method", columns="step", values=["ms", "low", "high"])
    wide = wide.reindex(methods)
    if ("ms", "total") not in wide or wide["ms", "total"].isna().any():
        raise ValueError("frame_rate_bars: a method has no row with the step total")
    steps = [step for step in STEP_HATCHES if ("ms", step) in wide]
    colours = dict(zip(STEP_HATCHES, line_styles(len(STEP_HATCHES)), strict=True))
    fig = Figure(figsize=(WIDTH_INCHES, 1.2 + 0.28 * len(methods)), layout="constrained")
    whole, rest = fig.subplots(1, 2, sharey=True)
    for ax, shown in ((whole, steps), (rest, [step for step in steps if step != "features"])):
        start = pd.Series(0.0, index=methods)
        for order, step in enumerate(shown):
            width = wide["ms", step].fillna(0.0)
            look = {"color": colours[step][0], "hatch": STEP_HATCHES[step], "edgecolor": "white"}
            ax.barh(range(len(methods)), width, left=start, height=0.7, label=step, **look)
            if ax is rest:  # one above the other, or the lines would cover each other
                shift = 0.2 * (order - (len(shown) - 1) / 2)
                ends = start + width
                _quartiles(ax, ends, start + wide["low", step], start + wide["high", step], shift)
            start = start + width
    total = wide.xs("total", axis=1, level=1)
    _quartiles(whole, total["ms"], total["low"], total["high"], 0.0)
    for place, (median, high) in enumerate(zip(total["ms"], total["high"], strict=True)):
        rate = 1000 / median
        whole.annotate(
            f"{rate:.0f}/s" if rate >= 100 else f"{rate:#.3g}/s",
            (high, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    whole.set_xlim(0, 1.25 * total["high"].max())  # room for the rates
    whole.set_yticks(range(len(methods)), methods)
    whole.set_ylim(len(methods) - 0.5, -0.5)
    whole.set_xlabel("ms a scan, and scans a second\n(line: quartiles of the total)")
    rest.set_xlabel("ms a scan, without features\n(lines: quartiles of each step)")
    for ax in (whole, rest):
        ax.grid(False, axis="y")
    handles, names = whole.get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    return fig


def _quartiles(ax, middle: pd.Series, low: pd.Series, high: pd.Series, shift: float) -> None:
    """Draw a line from quartile to quartile at each bar, `shift` rows below its middle."""
    reach = [middle - low, high - middle]
    places = np.arange(len(middle)) + shift
    ax.errorbar(middle, places, xerr=reach, fmt="none", ecolor="black", elinewidth=1, capsize=2)
