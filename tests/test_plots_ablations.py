"""Figures of ablations: what is drawn is what came in, and what cannot be drawn is refused."""

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import plots


def points():
    """Two variants, two metrics, two categories, two seeds; made up."""
    rows = [
        {"variant": v, "metric": m, "category": c, "seed": s,
         "difference": 0.1 * i + 0.01 * (c == "rope") + 0.001 * s}
        for i, v in enumerate(["first", "second"])
        for m in ("i_auroc", "a metric of one's own")
        for c in ("foam", "rope")
        for s in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def effects(table, se=0.02):
    means = table.groupby(["variant", "metric"], sort=False)["difference"].mean()
    return means.reset_index().assign(se=se)


def panels(fig):
    return [ax for ax in fig.axes if ax.get_visible()]


def small_marks(ax):
    """Every small mark of a panel: (x, y), rounded."""
    lines = [line for line in ax.get_lines() if line.get_label() in ("foam", "rope")]
    return sorted(
        (round(float(x), 6), round(float(y), 6))
        for line in lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    )


def diamonds(ax):
    return [
        (round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6))
        for line in ax.get_lines()
        if line.get_marker() == "D" and len(line.get_xdata()) == 1
    ]


def test_effects_are_drawn_where_they_are():
    table = points()
    fig = plots.effect_dots(table, effects(table), "the run")
    first, second = panels(fig)
    assert [first.get_title(), second.get_title()] == ["image AUROC", "a metric of one's own"]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["first", "second"]
    assert small_marks(first) == sorted(
        (round(0.1 * i + 0.01 * rope + 0.001 * seed, 6), i - 0.15)
        for i in (0, 1) for rope in (0, 1) for seed in (0, 1)
    )  # fmt: skip
    assert diamonds(first) == [(0.0055, 0.2), (0.1055, 1.2)]  # mean of 0, 0.001, 0.01, 0.011
    assert first.get_ylim() == (1.5, -0.5)  # the first from above
    assert "difference from the run" in fig.get_supxlabel()
    assert "standard error" in fig.get_supxlabel()


def bar_lengths(ax):
    """Lengths of the error bars of a panel."""
    found = [path for part in ax.collections for path in part.get_paths()]
    return [round(float(np.ptp(path.vertices[:, 0])), 6) for path in found]


def test_a_bar_is_one_standard_error_to_either_side_and_none_where_it_is_unknown():
    table = points()
    assert bar_lengths(panels(plots.effect_dots(table, effects(table)))[0]) == [0.04, 0.04]
    unknown = plots.effect_dots(table, effects(table, se=np.nan))
    assert bar_lengths(panels(unknown)[0]) == []
    assert diamonds(panels(unknown)[0]) == [(0.0055, 0.2), (0.1055, 1.2)]
    assert "standard error" not in unknown.get_supxlabel()


def test_effects_of_other_rows_are_refused():
    table = points()
    with pytest.raises(ValueError, match=r"variants \['first'\]; expected \['first', 'second'\]"):
        plots.effect_dots(table, effects(table[table["variant"] == "first"]))
    with pytest.raises(ValueError, match="metrics"):
        plots.effect_dots(table, effects(table[table["metric"] == "i_auroc"]))
    with pytest.raises(ValueError, match=r"lacks the columns \['se'\]"):
        plots.effect_dots(table, effects(table).drop(columns="se"))
    with pytest.raises(ValueError, match="no row"):
        plots.effect_dots(table[:0], effects(table))


def curve(seeds=(0, 1)):
    """i_auroc = J / 10 in foam and 1 - J / 10 in rope, 0.02 more with seed 1."""
    rows = [
        {"J": j, "category": c, "seed": s, "i_auroc": (j if c == "foam" else 10 - j) / 10 + s / 50}
        for j in (2, 0, 1)
        for c in ("foam", "rope")
        for s in seeds
    ]
    return pd.DataFrame(rows)


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines() if line.get_label()[0] != "_"}


def test_a_curve_is_the_mean_over_categories_with_a_line_each():
    fig = plots.curve_with_bands(curve(), "J", ["i_auroc"], "how many", marked=1)
    (ax,) = panels(fig)
    lines = lines_of(ax)
    assert set(lines) == {"foam", "rope", "mean"}
    assert np.allclose(lines["foam"].get_xdata(), [0, 1, 2])  # in order, whatever it came in
    assert np.allclose(lines["foam"].get_ydata(), [0.01, 0.11, 0.21])
    assert np.allclose(lines["rope"].get_ydata(), [1.01, 0.91, 0.81])
    assert np.allclose(lines["mean"].get_ydata(), 0.51)
    # by seed the mean over categories is 0.5 and 0.52: a deviation of 0.02 / sqrt(2)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(band.max() - 0.51, 0.02 / 2**0.5)
    assert np.isclose(0.51 - band.min(), 0.02 / 2**0.5)
    assert any(line.get_linestyle() == ":" and line.get_xdata()[0] == 1 for line in ax.get_lines())
    assert "standard deviation over seeds" in fig.get_supxlabel()


def test_one_seed_has_no_band():
    fig = plots.curve_with_bands(curve(seeds=(0,)), "J", ["i_auroc"], "how many")
    assert not panels(fig)[0].collections
    assert fig.get_supxlabel() == "how many"


def test_a_relative_curve_is_zero_at_the_mark():
    fig = plots.curve_with_bands(
        curve(), "J", ["i_auroc"], "how many", marked=1, is_relative=True, unit="share"
    )
    lines = lines_of(panels(fig)[0])
    assert np.allclose(lines["foam"].get_ydata(), [-0.1, 0, 0.1])
    assert np.allclose(lines["rope"].get_ydata(), [0.1, 0, -0.1])
    assert np.allclose(lines["mean"].get_ydata(), 0)
    assert fig.get_supylabel() == "share, minus that at 1"
    with pytest.raises(ValueError, match="nothing at J = 7 to be relative to; there are 0, 1, 2"):
        plots.curve_with_bands(curve(), "J", ["i_auroc"], "J", marked=7, is_relative=True)


def test_a_logarithmic_axis_has_ticks_at_the_numbers_and_needs_them_above_zero():
    table = curve().assign(J=lambda rows: rows["J"].map({0: 0.01, 1: 0.1, 2: 1.0}))
    (ax,) = panels(plots.curve_with_bands(table, "J", ["i_auroc"], "fraction", is_log=True))
    assert ax.get_xscale() == "log"
    ticks = dict(zip(ax.get_xticks(), [t.get_text() for t in ax.get_xticklabels()], strict=True))
    assert ticks == {0.01: "0.01", 0.1: "0.1", 1.0: "1"}
    with pytest.raises(ValueError, match="J is 0; expected above 0"):
        plots.curve_with_bands(curve(), "J", ["i_auroc"], "J", is_log=True)


def test_panels_share_a_scale_where_it_is_asked_for():
    table = curve().assign(twice=lambda rows: 2 * rows["i_auroc"])
    for is_shared in (False, True):
        fig = plots.curve_with_bands(table, "J", ["i_auroc", "twice"], "J", is_shared=is_shared)
        first, second = panels(fig)
        assert (first.get_ylim() == second.get_ylim()) is is_shared


def test_a_curve_without_its_columns_is_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['p_auroc'\]"):
        plots.curve_with_bands(curve(), "J", ["i_auroc", "p_auroc"], "J")
