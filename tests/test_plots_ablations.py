"""Figures of ablations: what is drawn is what came in."""

import numpy as np
import pandas as pd
import pytest

from g2sf_lib.plots.ablations import curve_with_bands, effect_dots


def points():
    """Two variants, two metrics, two categories, two seeds; made up."""
    rows = [
        (v, m, c, s, 0.1 * i + 0.01 * (c == "rope") + 0.001 * s)
        for i, v in enumerate(["first", "second"])
        for m in ("i_auroc", "a metric of one's own")
        for c in ("foam", "rope")
        for s in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["variant", "metric", "category", "seed", "difference"])


@pytest.mark.parametrize("se", [0.02, np.nan])
def test_effects_are_drawn_where_they_are(se):
    table = points()
    means = table.groupby(["variant", "metric"], sort=False)["difference"].mean()
    fig = effect_dots(table, means.reset_index().assign(se=se), "the run")
    first, second = fig.axes
    assert [first.get_title(), second.get_title()] == ["image AUROC", "a metric of one's own"]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["first", "second"]
    assert first.get_ylim() == (1.5, -0.5)  # the first from above
    drawn = {line.get_label(): line for line in first.get_lines()}
    assert np.allclose(drawn["rope"].get_xdata(), [0.01, 0.011, 0.11, 0.111])
    assert np.allclose(drawn["rope"].get_ydata(), [-0.15, -0.15, 0.85, 0.85])
    (diamonds,) = [line for line in first.get_lines() if line.get_marker() == "D"]
    assert np.allclose(diamonds.get_xdata(), [0.0055, 0.1055])
    bars = [np.ptp(path.vertices[:, 0]) for part in first.collections for path in part.get_paths()]
    assert np.allclose(bars[:2], 0.04) or np.isnan(se)
    assert ("standard error" in fig.get_supxlabel()) is not np.isnan(se)


def curve(seeds=(0, 1)):
    """i_auroc = J / 10 in foam and 1 - J / 10 in rope, 0.02 more with seed 1."""
    rows = [
        {"J": j, "category": c, "seed": s, "i_auroc": (j if c == "foam" else 10 - j) / 10 + s / 50}
        for j in (2, 0, 1)
        for c in ("foam", "rope")
        for s in seeds
    ]
    return pd.DataFrame(rows)


def lines_of(fig):
    return {line.get_label(): line.get_ydata() for line in fig.axes[0].get_lines()}


def test_a_curve_is_the_mean_over_categories_with_a_line_each():
    fig = curve_with_bands(curve(), "J", ["i_auroc"], "how many", marked=1)
    lines = lines_of(fig)
    assert np.allclose(lines["foam"], [0.01, 0.11, 0.21])  # in order, whatever it came in
    assert np.allclose(lines["rope"], [1.01, 0.91, 0.81])
    assert np.allclose(lines["mean"], 0.51)
    # by seed the mean over categories is 0.5 and 0.52: a deviation of 0.02 / sqrt(2)
    band = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert np.allclose([band.min(), band.max()], [0.51 - 0.02 / 2**0.5, 0.51 + 0.02 / 2**0.5])
    one = curve_with_bands(curve(seeds=(0,)), "J", ["i_auroc"], "how many")
    assert not one.axes[0].collections and one.get_supxlabel() == "how many"


def test_a_relative_curve_is_zero_at_the_mark():
    fig = curve_with_bands(curve(), "J", ["i_auroc"], "J", marked=1, is_relative=True, unit="share")
    assert np.allclose(lines_of(fig)["foam"], [-0.1, 0, 0.1])
    assert np.allclose(lines_of(fig)["mean"], 0)
    assert fig.get_supylabel() == "share, minus that at 1"


def test_a_logarithmic_axis_has_ticks_at_the_numbers():
    table = curve().assign(J=lambda rows: rows["J"].map({0: 0.01, 1: 0.1, 2: 1.0}))
    (ax,) = curve_with_bands(table, "J", ["i_auroc"], "fraction", is_log=True).axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.01", "0.1", "1"]
