"""Figures: the right panels and labels, what is drawn is what came in, and nothing else loaded."""

import base64
import io
import json
import math
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from g2sf_lib.plots import clouds, maps, page, results
from g2sf_lib.plots.ablations import curve_with_bands, effect_dots

LOW, HIGH = [np.zeros((9, 9)), np.ones((9, 9))], [np.ones((9, 9)), np.full((9, 9), 5.0)]


def scan(side=64):
    """A dome 0.4 m away with a colour ramp; rows 0-7 have no point; a bump of 1 mm."""
    rows, columns = np.indices((side, side)) / side - 0.5
    mask = np.zeros((side, side), dtype=bool)
    mask[30:38, 40:50] = True
    depth = 0.4 + 0.005 * (rows**2 + columns**2) - 0.001 * mask
    xyz = np.stack([0.1 * columns, 0.1 * rows, depth], axis=-1).astype(np.float32)
    xyz[:8] = 0
    rgb = (255 * np.stack([rows + 0.5, columns + 0.5, 0 * rows], axis=-1)).astype(np.uint8)
    return SimpleNamespace(rgb=rgb, xyz=xyz, mask=mask)


def panels(fig):
    """The axes that show data: neither colour bars nor hidden ones."""
    return [ax for ax in fig.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]


def by_method():
    rows = [
        {"method": m, "category": c, "i_auroc": 0.7 + 0.01 * i + 0.02 * j, "se": 0.03}
        for i, m in enumerate(["G2SF", "maximum", "RGB"])
        for j, c in enumerate(["cookie", "dowel", "foam", "rope"])
    ]
    return pd.DataFrame(rows)


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


def effects(se=0.02):
    means = points().groupby(["variant", "metric"], sort=False)["difference"].mean()
    return means.reset_index().assign(se=se)


def curve(seeds=(0, 1)):
    """i_auroc = J / 10 in foam and 1 - J / 10 in rope, 0.02 more with seed 1."""
    rows = [
        {"J": j, "category": c, "seed": s, "i_auroc": (j if c == "foam" else 10 - j) / 10 + s / 50}
        for j in (2, 0, 1)
        for c in ("foam", "rope")
        for s in seeds
    ]
    return pd.DataFrame(rows)


def figures():
    """Every function once: name -> (figure, number of panels)."""
    two, xy, area = [scan(), scan()], "xy", np.linspace(0, 1, 500)
    scores, classes = [np.arange(9.0)] * 3, [{"a": np.eye(4).ravel() > 0}] * 2
    return {
        "gallery": (maps.defect_gallery(two, xy), 6),
        "histograms": (results.score_histograms(scores, scores, "abc"), 3),
        "scores": (maps.score_maps(two, {"RGB": LOW}, xy), 6),
        "quantities": (maps.quantity_maps(two, {"w": LOW, "s": LOW}, xy), 6),
        "classes": (maps.cell_classes(two, classes, (4, 4), xy), 2),
        "methods": (results.method_dots(by_method()), 4),
        "curves": (results.pro_curves({"every threshold": (area, area**0.5)}), 2),
        "panels": (maps.method_panels(two, {"RGB": LOW, "G2SF": HIGH}, xy), 10),
        "effects": (effect_dots(points(), effects(), "the run"), 2),
        "bands": (curve_with_bands(curve(), "J", ["i_auroc"], "J"), 1),
    }


def test_every_figure_has_its_panels_and_says_what_they_show_and_style_does_not_leak():
    before = dict(plt.rcParams)
    for name, (fig, num_panels) in figures().items():
        assert len(panels(fig)) == num_panels, name
        is_plot = [bool(ax.lines or ax.patches or ax.containers) for ax in panels(fig)]
        xlabels = [ax.get_xlabel() for ax in panels(fig)] + [fig.get_supxlabel()]
        ylabels = [ax.get_ylabel() or ax.get_yticklabels() for ax in panels(fig)]
        titles = [ax.get_title() for ax in panels(fig)]
        # Panels of one row or column share a label; a picture has a title or a row label.
        assert any(xlabels) and any(ylabels) if any(is_plot) else any(titles), name
        for image in (image for ax in fig.axes for image in ax.images):
            is_map = image.get_array().ndim == 2 and image.get_array().dtype != bool
            assert image.get_cmap().name == "cividis" or not is_map, name
    assert plt.get_fignums() == []  # nothing was left behind in pyplot
    assert dict(plt.rcParams) == before


def test_height_counts_from_the_farthest_point_in_mm():
    xyz = np.zeros((10, 10, 3), dtype=np.float32)
    xyz[2:] = [0.01, 0.01, 0.450]
    xyz[5, 5, 2] = 0.447
    height = maps.height_mm(xyz)
    assert np.isnan(height[:2]).all()
    assert height[5, 5] == pytest.approx(3.0, abs=1e-3)
    assert height[8, 8] == pytest.approx(0.0, abs=1e-3)


def test_relief_shows_a_bump_that_the_shape_hides():
    relief = panels(maps.defect_gallery([scan(128)], ["bulge"]))[2].images[0].get_array()
    mask = scan(128).mask[maps.square_around(scan(128).mask)]
    assert relief.shape == mask.shape
    assert relief[mask].mean() - relief[~mask].mean() == pytest.approx(1.0, abs=0.2)  # mm, raised


def test_scores_share_one_scale_and_quantities_share_it_over_rows():
    two, both = [scan(), scan()], {"a": LOW, "b": HIGH}
    axes = panels(maps.score_maps(two, both, "xy"))
    clims = [ax.images[0].get_clim() for ax in axes]
    assert clims[2:4] == clims[6:8] == [(0, 5), (0, 5)]
    assert axes[2].images[0].get_extent() == [-0.5, 63.5, 63.5, -0.5]  # on the scan
    limits = [ax.images[0].get_clim() for ax in panels(maps.quantity_maps(two, both, "xy"))]
    assert limits[1::3] == [(0, 1)] * 2 and limits[2::3] == [(1, 5)] * 2


def test_cell_classes_put_each_cell_where_it_is_and_once():
    first, second = np.zeros(16, dtype=bool), np.zeros(16, dtype=bool)
    first[[0, 5]] = True
    second[5] = True  # in both: drawn as the later one
    fig = maps.cell_classes([scan(64)], [{"near": first, "far": second}], (4, 4), ["x"])
    near, far = (c.get_offsets().tolist() for c in panels(fig)[0].collections[:2])
    assert near == [[7.5, 7.5]] and far == [[23.5, 23.5]]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["near", "far"]


def test_method_dots_draw_each_value_and_the_best_apart():
    table = by_method()
    axes, categories = panels(results.method_dots(table)), table["category"].unique()
    for ax, category in zip(axes, categories, strict=True):
        values = table.loc[table["category"] == category, "i_auroc"]
        plain, best = (bars.lines[0].get_xdata().tolist() for bars in ax.containers)
        assert ax.get_title() == category
        assert plain == sorted(values)[:-1] and best == [values.max()]


# ---------------------------------------------------------------- panels of every method


def test_method_panels_paint_all_methods_on_one_scale():
    first, second = [np.zeros((9, 9))] * 2, [np.full((28, 28), 7.0)] * 2
    fig = maps.method_panels([scan(), scan()], {"a": first, "b": second}, ["x", "y"])
    axes = panels(fig)
    titles = [ax.get_title() for ax in axes]
    assert titles == ["image", "points", "truth", "a", "b"] + 5 * [""]
    assert [ax.get_ylabel() for ax in axes[::5]] == ["x", "y"]
    for ax in axes[3:5] + axes[8:]:
        assert ax.images[0].get_clim() == (0, 2)
        assert ax.images[0].get_extent() == [-0.5, 63.5, 63.5, -0.5]
        assert len(ax.collections) == 2  # the truth, outlined
    assert np.array_equal(axes[2].images[0].get_array(), scan().mask)
    assert [float(ax.images[0].get_array().max()) for ax in axes[3:5]] == [0, 7]


def test_method_panels_show_the_square_around_the_object():
    off = scan()
    off.xyz[:] = 0
    off.xyz[10:21, 30:51] = (0.0, 0.0, 0.4)  # 11 rows, 21 columns
    for ax in panels(maps.method_panels([off], {"a": [np.zeros((9, 9))]}, ["x"])):
        assert ax.get_xlim() == pytest.approx((40 - 21 * 0.54, 40 + 21 * 0.54))
        assert ax.get_ylim() == pytest.approx((15 + 21 * 0.54, 15 - 21 * 0.54))  # rows run down


def test_eleven_methods_go_on_in_a_second_block_with_the_same_row_labels():
    many = {f"m{i}": [np.full((9, 9), i + n / 10) for n in range(2)] for i in range(11)}
    axes = panels(maps.method_panels([scan(), scan()], many, ["x", "y"]))
    grid = np.array(axes).reshape(4, 7)
    assert [ax.get_title() for ax in grid[0]] == ["image", "points", "truth", *list(many)[:4]]
    assert [ax.get_title() for ax in grid[2]] == list(many)[4:]
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["x", "y", "x", "y"]
    first, second = ([float(ax.images[0].get_array()[0, 0]) for ax in grid[r]] for r in (2, 3))
    assert first == list(range(4, 11)) and second == [i + 0.1 for i in range(4, 11)]
    ten = {name: many[name] for name in list(many)[:10]}  # 13 panels: the last place is empty
    assert len(panels(maps.method_panels([scan(), scan()], ten, ["x", "y"]))) == 26


def test_scale_factors_have_their_own_colours_around_one():
    two = {"s": [np.full((9, 9), 0.5)], "w": [np.full((9, 9), 1.0)]}
    fig = maps.method_panels([scan()], two, ["x"], factors=("w",))
    s, w = (ax.images[0] for ax in panels(fig)[3:])
    assert s.get_clim() == (0, 2) and w.get_clim() == pytest.approx((1 / math.e, math.e))
    assert w.norm(1.0) == pytest.approx(0.5)  # as far from either end, in equal ratios
    assert w.norm(2.0) - 0.5 == pytest.approx(0.5 - w.norm(0.5))
    assert sum(ax.get_label() == "<colorbar>" for ax in fig.axes) == 2


# ---------------------------------------------------------------- ablations


@pytest.mark.parametrize("se", [0.02, np.nan])
def test_effects_are_drawn_where_they_are(se):
    fig = effect_dots(points(), effects(se), "the run")
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
    assert not curve_with_bands(curve(seeds=(0,)), "J", ["i_auroc"], "J").axes[0].collections


def test_a_relative_curve_is_zero_at_the_mark_and_a_logarithmic_one_has_ticks_at_the_numbers():
    table = curve().assign(J=lambda rows: rows["J"].map({0: 0.01, 1: 0.1, 2: 1.0}))
    how = {"marked": 0.1, "is_relative": True, "is_log": True, "unit": "share"}
    fig = curve_with_bands(table, "J", ["i_auroc"], "fraction", **how)
    assert np.allclose(lines_of(fig)["foam"], [-0.1, 0, 0.1])
    assert np.allclose(lines_of(fig)["mean"], 0)
    assert fig.get_supylabel() == "share, minus that at 0.1"
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["0.01", "0.1", "1"]


# ---------------------------------------------------------------- the page, and clouds


def test_show_publishes_an_image_with_alternative_text(monkeypatch):
    published = []
    monkeypatch.setattr(page, "display", lambda data, raw: published.append((data, raw)))
    fig = results.pro_curves({"a": (np.linspace(0, 1, 9), np.linspace(0, 1, 9))})
    page.show(fig, 'sigma "starts" at <1/2>')
    ((content, raw),) = published
    assert raw and 'alt="sigma &quot;starts&quot; at &lt;1/2&gt;"' in content["text/html"]
    assert content["text/plain"] == 'sigma "starts" at <1/2>'
    data = re.search(r"data:image/png;base64,([^\"]+)", content["text/html"])[1]
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).std() > 0


def test_cloud_bundle_needs_nothing_but_the_plotly_of_the_page():
    fig = clouds.cloud(scan(200).xyz, "</script> part", values=scan(200).mask, label="score")
    content = page.bundle(fig, "a part that can be turned")
    text = content["text/html"]
    assert 'role="img" aria-label="a part that can be turned"' in text
    assert len(text) < 300_000  # plotly.min.js alone is 4 MB
    assert not re.search(r"https?:|//cdn|src=", text)
    assert text.count("</script>") == 1 and text.endswith("</script>")
    plain = content["application/vnd.plotly.v1+json"]
    assert json.loads(json.dumps(plain)) == plain
    assert plain["config"]["showSendToCloud"] is False and plain["config"]["plotlyServerURL"] == ""


def test_cloud_thins_but_keeps_extent_and_peak_in_mm():
    rng = np.random.default_rng(2)
    xyz = rng.normal(0, 0.01, (300, 100, 3)) + [0, 0, 0.45]
    values = rng.random((300, 100))
    values[123, 45] = 7.0
    xyz[:5] = 0
    xyz[9, 9] = np.nan
    trace = clouds.cloud(xyz, "noise", values=values).data[0]
    assert 7000 < len(trace.x) <= clouds.MAX_CLOUD_POINTS
    there = xyz[5:].reshape(-1, 3) * 1000
    drawn = np.stack([trace.x, trace.y, trace.z], axis=-1)
    for end in (np.nanmin, np.nanmax):
        assert end(drawn, axis=0) == pytest.approx(end(there, axis=0), rel=1e-5)
    assert max(trace.marker.color) == 7.0
    again = clouds.cloud(xyz, "noise", values=values).data[0]
    assert np.array_equal(again.x, trace.x)  # thinned the same way every time


def test_a_millimetre_is_as_long_on_every_axis_of_a_cloud():
    xyz = np.random.default_rng(3).uniform([-0.05, -0.02, 0.4], [0.05, 0.02, 0.41], (500, 3))
    fig = clouds.cloud(xyz, "slab", values=xyz[:, 2], top=2.0)
    scene, marker = fig.layout.scene, fig.data[0].marker
    length = {name: abs(np.ptp(scene[f"{name}axis"].range)) for name in "xyz"}
    per_mm = [scene.aspectratio[name] / length[name] for name in "xyz"]
    assert per_mm == pytest.approx([per_mm[0]] * 3)
    assert scene.yaxis.range[0] > scene.yaxis.range[1]  # y counts down, as in the image
    assert (marker.cmin, marker.cmax) == (0.0, 2.0)
