"""Rates of alarms: those that were seen over those that were promised."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from g2sf_lib.plots.style import MARKERS, WIDTH_INCHES, line_styles, styled


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
    """
    levels = list(dict.fromkeys(table["level"]))
    methods = list(dict.fromkeys(table["method"]))
    fig = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(levels)))
    styles = list(zip(methods, line_styles(len(methods)), MARKERS, strict=False))
    for ax, level in zip(axes, levels, strict=True):
        of_level = table[table["level"] == level]
        for order, (method, (colour, line), marker) in enumerate(styles):
            rows = of_level[of_level["method"] == method].sort_values("promised")
            shift = order - (len(methods) - 1) / 2
            # beside each other: by a factor on a logarithmic axis, by a step on a linear one
            factor, step = (1.06**shift, 0) if level == "pixel" else (1, 0.006 * shift)
            bars = np.stack([rows["observed"] - rows["low"], rows["high"] - rows["observed"]])
            look = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4.5}
            look |= {"linewidth": 1, "elinewidth": 0.8, "capsize": 2, "label": method}
            places = rows["promised"] * factor + step
            ax.errorbar(places, rows["observed"], yerr=np.maximum(bars, 0), **look)
        _rate_axes(ax, of_level, level)
    axes[0].set_ylabel("alarm rate on good test scans")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))
    return fig


def _rate_axes(ax, rows: pd.DataFrame, level: str) -> None:
    """Scale one panel of `alarm_rates`, and draw its diagonal."""
    ax.set_xlabel(f"alarm rate promised, of {level}s")
    asked, top = sorted(rows["promised"].unique()), rows[["promised", "high"]].to_numpy().max()
    digits = 1 if level == "pixel" else 2  # as asked for, or what so few scans can promise
    percent = FuncFormatter(lambda value, _: f"{float(f'{100 * value:.{digits}g}'):g} %")
    if level == "pixel":
        low = min(asked[0], rows["observed"].where(rows["observed"] > 0).min()) / 2.5
        ax.set(xscale="log", yscale="log", ylim=(low, min(top * 1.6, 1)))
        ax.set_xlim(asked[0] / 1.6, min(asked[-1] * 1.6, 1))
        ax.yaxis.set_major_locator(FixedLocator([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1]))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.set(xlim=(0, min(asked[-1] + 0.1, 1)), ylim=(-0.02, min(top + 0.1, 1.02)))
    ax.xaxis.set_major_locator(FixedLocator(asked))
    ax.xaxis.set_major_formatter(percent)
    ax.yaxis.set_major_formatter(percent)
    ax.plot([1e-5, 1], [1e-5, 1], color="0.3", linestyle=":", linewidth=1)
