"""Figures: the right panels and labels, what is drawn is what came in, and nothing else loaded."""

import base64
import html
import inspect
import io
import json
import math
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure
from PIL import Image

from g2sf_lib import plots
from g2sf_lib.plots import (
    ablations,
    clouds,
    distributions,
    features,
    maps,
    page,
    results,
    scans,
    training,
)
from g2sf_lib.plots.scans import square_around


def scan(side=64, with_defect=True):
    """A dome 0.4 m away with a colour ramp; rows 0-7 have no point; a bump of 1 mm."""
    rows, columns = np.indices((side, side)) / side - 0.5
    depth = 0.4 + 0.005 * (rows**2 + columns**2)
    mask = np.zeros((side, side), dtype=bool)
    if with_defect:
        mask[30:38, 40:50] = True
        depth = depth - 0.001 * mask
    xyz = np.stack([0.1 * columns, 0.1 * rows, depth], axis=-1).astype(np.float32)
    xyz[:8] = 0
    rgb = (255 * np.stack([rows + 0.5, columns + 0.5, 0 * rows], axis=-1)).astype(np.uint8)
    return SimpleNamespace(rgb=rgb, xyz=xyz, mask=mask)


@pytest.fixture(scope="module")
def history():
    epochs = np.arange(6)
    table = {"epoch": epochs, "heldout": [9.0, 8.0, 5.0, 3.0, 4.0, 6.0]}
    for term in ("sep", "mar", "cns", "sc", "cma"):
        table[term] = np.where(epochs > 0, 1.0 / (1 + epochs), np.nan)
        table[f"heldout_{term}"] = 2.0 / (1 + epochs)
    for mod in ("pcd", "rgb"):
        table[f"sigma_{mod}"] = np.full(6, 0.5)
        for side, level in (("normal", 0.6), ("synthetic", 2.0)):
            table[f"w_{side}_{mod}"] = np.linspace(1, level, 6)
            table[f"w_std_{side}_{mod}"] = np.full(6, 0.1)
    return pd.DataFrame(table)


def panels(fig):
    """The axes that show data: neither colour bars nor hidden ones."""
    return [ax for ax in fig.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]


def image_of(fig):
    """The figure as pixels, as `show` draws it."""
    text = page.bundle(fig, "alt")["text/html"]
    data = re.search(r"data:image/png;base64,([^\"]+)", text)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def results(by="category"):
    rows = [
        {"method": m, by: c, "i_auroc": 0.7 + 0.01 * i + 0.02 * j, "se": 0.03}
        for i, m in enumerate(["G2SF", "maximum", "RGB"])
        for j, c in enumerate(["cookie", "dowel", "foam", "rope"])
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def all_figures(history):
    """Every function of the module once: name -> (figure, number of panels)."""
    rng = np.random.default_rng(0)
    scans, titles = [scan(), scan()], ["one", "two"]
    maps = [rng.random((30, 30)) for _ in scans]
    curve = (np.linspace(0, 1, 500), np.linspace(0, 1, 500) ** 0.5)
    return {
        "defect_gallery": (scans.defect_gallery(scans, titles, margin=8), 6),
        "score_histograms": (
            features.score_histograms([rng.random(99)] * 3, [rng.random(9)] * 3, ["a", "b", "c"]),
            3,
        ),
        "loss_curves": (training.loss_curves(history), 6),
        "scale_curve": (training.scale_curve(history), 2),
        "sigma_curve": (training.sigma_curve(history), 1),
        "score_maps": (maps.score_maps(scans, {"RGB": maps}, titles, is_shared=True), 6),
        "quantity_maps": (maps.quantity_maps(scans, {"w": maps, "s": maps}, titles), 6),
        "cell_classes": (
            maps.cell_classes(scans, [{"a": np.eye(4).ravel() > 0}] * 2, (4, 4), titles),
            2,
        ),
        "method_dots": (results.method_dots(results()), 4),
        "defect_dots": (results.defect_dots(results("defect")), 4),
        "pro_curves": (results.pro_curves({"every threshold": curve}), 2),
        "method_panels": (maps.method_panels(scans, {"RGB": maps, "G2SF": maps}, titles), 10),
        "alarm_rates": (distributions.alarm_rates(alarms()), 2),
        "effect_dots": (ablations.effect_dots(*effects(), "the run"), 2),
        "curve_with_bands": (ablations.curve_with_bands(by_number(), "J", ["i_auroc"], "J"), 1),
    }


def alarms():
    rows = [("pixel", "CFM", 0.01, 0.02, 0.0, 0.03), ("image", "CFM", 0.1, 0.2, 0.1, 0.3)]
    columns = ["level", "method", "promised", "observed", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def effects():
    rows = [("first", m, c, 0, 0.1) for m in ("i_auroc", "p_auroc") for c in ("cookie", "foam")]
    points = pd.DataFrame(rows, columns=["variant", "metric", "category", "seed", "difference"])
    means = points.groupby(["variant", "metric"], sort=False)["difference"].mean()
    return points, means.reset_index().assign(se=0.02)


def by_number():
    rows = [(j, c, s, 0.1 * j + s / 50) for j in (0, 1) for c in ("cookie", "foam") for s in (0, 1)]
    return pd.DataFrame(rows, columns=["J", "category", "seed", "i_auroc"])


def test_every_figure_has_its_panels_and_says_what_they_show(all_figures):
    for name, (fig, num_panels) in all_figures.items():
        assert isinstance(fig, Figure), name
        assert len(panels(fig)) == num_panels, name
        is_plot = [bool(ax.lines or ax.patches or ax.containers) for ax in panels(fig)]
        xlabels = [ax.get_xlabel() for ax in panels(fig)] + [fig.get_supxlabel()]
        ylabels = [ax.get_ylabel() or ax.get_yticklabels() for ax in panels(fig)]
        titles = [ax.get_title() for ax in panels(fig)]
        # Panels of one row or column share a label; a picture has a title or a row label.
        assert any(xlabels) and any(ylabels) if any(is_plot) else any(titles), name
    assert plt.get_fignums() == []  # nothing was left behind in pyplot


def test_every_public_figure_is_tested_and_documented(all_figures):
    public = set()
    for module in vars(plots).values():
        if inspect.ismodule(module) and not module.__name__.endswith((".style", ".toy")):
            functions = inspect.getmembers(module, inspect.isfunction)
            of_module = {name for name, value in functions if value.__module__ == module.__name__}
            public |= {name for name in of_module if not name.startswith("_")}
    assert public - set(plots.__all__) == {"shaded", "square_around"}
    public &= set(plots.__all__)
    assert public - set(all_figures) == {"show", "bundle", "cloud", "height_mm"}
    assert all(getattr(plots, name).__doc__ for name in public)


def test_every_figure_is_drawn_in_the_one_colour_map(all_figures):
    for name, (fig, _) in all_figures.items():
        for ax in fig.axes:
            for image in ax.images:
                is_mask = image.get_array().dtype == bool
                if image.get_array().ndim == 2 and not is_mask:
                    # Differences have a middle, and so have their colours.
                    expected = "cividis"
                    assert image.get_cmap().name == expected, name


def test_style_does_not_leak(history):
    before = dict(plt.rcParams)
    training.loss_curves(history)
    assert dict(plt.rcParams) == before


def test_height_counts_from_the_farthest_point_in_mm():
    xyz = np.zeros((10, 10, 3), dtype=np.float32)
    xyz[2:] = [0.01, 0.01, 0.450]
    xyz[5, 5, 2] = 0.447
    height = scans.height_mm(xyz)
    assert np.isnan(height[:2]).all()
    assert height[5, 5] == pytest.approx(3.0, abs=1e-3)
    assert height[8, 8] == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ValueError, match="no point"):
        scans.height_mm(np.zeros((4, 4, 3)))


def test_relief_shows_a_bump_that_the_shape_hides():
    fig = scans.defect_gallery([scan()], ["bulge"], margin=10)
    relief = panels(fig)[2].images[0].get_array()
    window = square_around(scan().mask, 10)
    mask = scan().mask[window]
    assert relief.shape == mask.shape
    assert relief[mask].mean() - relief[~mask].mean() == pytest.approx(1.0, abs=0.2)  # mm, raised


def test_a_window_stays_inside_the_image():
    mask = np.zeros((50, 40), dtype=bool)
    mask[0:4, 36:40] = True
    window = square_around(mask, 24)
    assert mask[window].sum() == 16
    assert 0 <= window[0].start and window[1].stop <= 40
    with pytest.raises(ValueError, match="mask is empty"):
        square_around(np.zeros((5, 5), dtype=bool), 2)


def test_loss_curves_mark_the_epoch_that_was_kept(history):
    fig = training.loss_curves(history)
    assert "epoch 3 is kept" in panels(fig)[5].get_title()
    assert list(panels(fig)[0].lines[1].get_ydata()) == list(history["heldout_sep"])


def test_score_maps_share_a_scale_over_rows_and_only_then_over_methods():
    scans = [scan(), scan()]
    low, high = [np.zeros((9, 9)), np.ones((9, 9))], [np.ones((9, 9)), np.full((9, 9), 5.0)]
    limits = [
        ax.images[0].get_clim()
        for ax in panels(maps.score_maps(scans, {"a": low, "b": high}, "xy"))
    ]
    assert limits[2::4] == [(0, 1), (0, 1)] and limits[3::4] == [(1, 5), (1, 5)]
    shared = maps.score_maps(scans, {"a": low, "b": high}, "xy", is_shared=True)
    clims = [ax.images[0].get_clim() for ax in panels(shared)]
    assert clims[2:4] == clims[6:8] == [(0, 5), (0, 5)]


def test_a_score_map_lies_on_the_scan_whatever_its_size():
    fig = maps.score_maps([scan(side=64)], {"a": [np.eye(28)]}, ["x"])
    assert panels(fig)[2].images[0].get_extent() == [-0.5, 63.5, 63.5, -0.5]


def test_quantity_maps_share_a_scale_over_rows_of_a_quantity():
    low, high = [np.zeros((9, 9)), np.ones((9, 9))], [np.ones((9, 9)), np.full((9, 9), 5.0)]
    fig = maps.quantity_maps([scan(), scan()], {"a": low, "b": high}, "xy")
    limits = [ax.images[0].get_clim() for ax in panels(fig)]
    assert limits[1::3] == [(0, 1)] * 2 and limits[2::3] == [(1, 5)] * 2


def test_cell_classes_put_each_cell_where_it_is_and_once():
    first, second = np.zeros(16, dtype=bool), np.zeros(16, dtype=bool)
    first[[0, 5]] = True
    second[5] = True  # in both: drawn as the later one
    fig = maps.cell_classes([scan(64)], [{"near": first, "far": second}], (4, 4), ["x"])
    ax = panels(fig)[0]
    near, far = (c.get_offsets().tolist() for c in ax.collections[:2])
    assert near == [[7.5, 7.5]]
    assert far == [[23.5, 23.5]]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["near", "far"]


def test_method_dots_draw_each_value_and_the_best_apart():
    table = results()
    for ax, category in zip(
        panels(results.method_dots(table)), table["category"].unique(), strict=True
    ):
        values = table.loc[table["category"] == category, "i_auroc"]
        plain, best = (bars.lines[0].get_xdata().tolist() for bars in ax.containers)
        assert ax.get_title() == category
        assert plain == sorted(values)[:-1] and best == [values.max()]


def test_pro_curves_thin_long_curves_but_keep_their_ends():
    fpr = np.linspace(0, 1, 100_000)
    fig = results.pro_curves({"every": (fpr, fpr)}, limits=(0.3,))
    drawn = panels(fig)[0].lines[0]
    assert len(drawn.get_xdata()) <= 1000
    assert drawn.get_xdata()[0] == 0 and drawn.get_xdata()[-1] > 0.3
    assert drawn.get_marker() == "None"
    few = results.pro_curves({"published": (fpr[::1000], fpr[::1000])}, limits=(0.3,))
    assert panels(few)[0].lines[0].get_marker() == "o"


def test_matplotlib_bundle_is_an_image_with_alternative_text(history):
    content = page.bundle(training.sigma_curve(history), 'sigma "starts" at <1/2>')
    assert 'alt="sigma &quot;starts&quot; at &lt;1/2&gt;"' in content["text/html"]
    assert content["text/plain"] == 'sigma "starts" at <1/2>'
    assert image_of(training.sigma_curve(history)).std() > 0  # something is drawn
    assert np.array_equal(
        image_of(training.sigma_curve(history)), image_of(training.sigma_curve(history))
    )


def test_show_publishes_the_bundle(history, monkeypatch):
    published = []
    monkeypatch.setattr(plots.page, "display", lambda data, raw: published.append((data, raw)))
    page.show(training.sigma_curve(history), "influence of the modalities")
    ((data, raw),) = published
    assert raw and 'alt="influence of the modalities"' in data["text/html"]
    with pytest.raises(ValueError, match="alt is empty"):
        page.show(training.sigma_curve(history), " ")


def decoded(values):
    """A plotly array as numbers, from the base64 that the page decodes."""
    return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])


def test_cloud_bundle_needs_nothing_but_the_plotly_of_the_page():
    fig = clouds.cloud(scan(200).xyz, "</script> part", values=scan(200).mask, label="score")
    content = page.bundle(fig, "a part that can be turned")
    page = content["text/html"]
    assert 'role="img" aria-label="a part that can be turned"' in page
    assert len(page) < 300_000  # plotly.min.js alone is 4 MB
    assert not re.search(r"https?:|//cdn|src=", page)
    assert page.count("</script>") == 1 and page.endswith("</script>")
    plain = content["application/vnd.plotly.v1+json"]
    assert json.loads(json.dumps(plain)) == plain
    assert plain["config"]["showSendToCloud"] is False and plain["config"]["plotlyServerURL"] == ""
    assert html.escape(plain["layout"]["title"]["text"]) == "&lt;/script&gt; part"


def test_cloud_thins_but_keeps_extent_and_peak_in_mm():
    rng = np.random.default_rng(2)
    xyz = rng.normal(0, 0.01, (300, 100, 3)) + [0, 0, 0.45]
    values = rng.random((300, 100))
    values[123, 45] = 7.0
    xyz[:5] = 0
    xyz[9, 9] = np.nan
    trace = clouds.cloud(xyz, "noise", values=values).data[0]
    assert 7000 < len(trace.x) <= clouds.MAX_CLOUD_POINTS
    there = xyz[5:].reshape(-1, 3)
    there = there[np.isfinite(there).all(axis=1)] * 1000
    for axis, drawn in enumerate((trace.x, trace.y, trace.z)):
        assert drawn.min() == pytest.approx(there[:, axis].min(), rel=1e-5)
        assert drawn.max() == pytest.approx(there[:, axis].max(), rel=1e-5)
    assert max(trace.marker.color) == 7.0
    again = clouds.cloud(xyz, "noise", values=values).data[0]
    assert np.array_equal(again.x, trace.x)  # thinned the same way every time
    assert np.allclose(
        decoded(
            page.bundle(go.Figure(trace), "a")["application/vnd.plotly.v1+json"]["data"][0]["x"]
        ),
        trace.x,
    )


def test_cloud_keeps_all_of_a_small_scan_with_its_colours():
    xyz = np.array([[0, 0, 0], [0.01, 0, 0.4], [0, 0.02, 0.4]])
    colour = np.array([[9, 9, 9], [255, 0, 16], [0, 128, 255]], dtype=np.uint8)
    trace = clouds.cloud(xyz, "two points", colour=colour).data[0]
    assert list(trace.x) == pytest.approx([10, 0])
    assert list(trace.marker.color) == ["#ff0010", "#0080ff"]


def test_a_millimetre_is_as_long_on_every_axis_of_a_cloud():
    rng = np.random.default_rng(3)
    xyz = rng.uniform([-0.05, -0.02, 0.4], [0.05, 0.02, 0.41], (500, 3))
    scene = clouds.cloud(xyz, "slab", values=xyz[:, 2]).layout.scene
    length = {name: abs(np.ptp(scene[f"{name}axis"].range)) for name in "xyz"}
    per_mm = [scene.aspectratio[name] / length[name] for name in "xyz"]
    assert per_mm == pytest.approx([per_mm[0]] * 3)
    assert scene.yaxis.range[0] > scene.yaxis.range[1]  # y counts down, as in the image


def test_cloud_refuses_nothing_to_draw():
    with pytest.raises(ValueError, match="no point"):
        clouds.cloud(np.zeros((4, 4, 3)), "empty", values=np.zeros((4, 4)))


def test_clouds_of_one_method_share_a_scale_that_begins_at_zero():
    xyz = scan().xyz
    alone = clouds.cloud(xyz, "a", values=xyz[..., 2]).data[0].marker
    assert alone.cmin is None and alone.cmax is None
    for factor in (0.1, 30.0):
        marker = clouds.cloud(xyz, "a", values=factor * xyz[..., 2], top=2.0).data[0].marker
        assert (marker.cmin, marker.cmax) == (0.0, 2.0)


def test_method_panels_paint_all_methods_on_one_scale_that_ends_where_it_is_told():
    low, high = [np.zeros((9, 9))] * 2, [np.full((28, 28), 7.0)] * 2
    fig = maps.method_panels([scan(), scan()], {"a": low, "b": high}, ["x", "y"], top=3.0)
    axes = panels(fig)
    titles = [ax.get_title() for ax in axes]
    assert titles == ["image", "points", "truth", "a", "b"] + 5 * [""]
    assert [ax.get_ylabel() for ax in axes[::5]] == ["x", "y"]
    for ax in axes[3:5] + axes[8:]:
        assert ax.images[0].get_clim() == (0, 3)
        assert ax.images[0].get_extent() == [-0.5, 63.5, 63.5, -0.5]
        assert len(ax.collections) == 2  # the truth, outlined
    assert np.array_equal(axes[2].images[0].get_array(), scan().mask)
    assert [float(ax.images[0].get_array().max()) for ax in axes[3:5]] == [0, 7]
    (bar,) = [ax for ax in fig.axes if ax.get_label() == "<colorbar>"]
    labels = [text.get_text() for text in bar.get_xticklabels()]
    ticks = dict(zip(bar.get_xticks(), labels, strict=True))
    assert ticks[1] == "1 = highest of normal scans" and ticks[3] == "3 and above"
    assert all(list(line.get_xdata()) == [1, 1] for line in bar.lines) and len(bar.lines) == 2


def test_method_panels_show_the_square_around_the_object():
    off = scan()
    points = np.zeros_like(off.xyz)
    points[10:21, 30:51] = (0.0, 0.0, 0.4)  # 11 rows, 21 columns
    off.xyz[:] = points
    for ax in panels(maps.method_panels([off], {"a": [np.zeros((9, 9))]}, ["x"])):
        assert ax.get_xlim() == pytest.approx((40 - 21 * 0.54, 40 + 21 * 0.54))
        assert ax.get_ylim() == pytest.approx((15 + 21 * 0.54, 15 - 21 * 0.54))  # rows run down


def test_eleven_methods_go_on_in_a_second_block_with_the_same_row_labels():
    maps = {f"m{i}": [np.full((9, 9), i + n / 10) for n in range(2)] for i in range(11)}
    axes = panels(maps.method_panels([scan(), scan()], maps, ["x", "y"]))
    grid = np.array(axes).reshape(4, 7)
    assert [ax.get_title() for ax in grid[0]] == ["image", "points", "truth", *list(maps)[:4]]
    assert [ax.get_title() for ax in grid[2]] == list(maps)[4:]
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["x", "y", "x", "y"]
    first, second = ([float(ax.images[0].get_array()[0, 0]) for ax in grid[r]] for r in (2, 3))
    assert first == list(range(4, 11)) and second == [i + 0.1 for i in range(4, 11)]
    ten = {name: maps[name] for name in list(maps)[:10]}  # 13 panels: the last place is empty
    assert len(panels(maps.method_panels([scan(), scan()], ten, ["x", "y"]))) == 26


def test_scale_factors_have_their_own_colours_around_one():
    maps = {"s": [np.full((9, 9), 0.5)], "w": [np.full((9, 9), 1.0)]}
    fig = maps.method_panels([scan()], maps, ["x"], factors=("w",))
    s, w = (ax.images[0] for ax in panels(fig)[3:])
    assert s.get_clim() == (0, 2) and w.get_clim() == pytest.approx((1 / math.e, math.e))
    assert w.norm(1.0) == pytest.approx(0.5)  # as far from either end, in equal ratios
    assert w.norm(2.0) - 0.5 == pytest.approx(0.5 - w.norm(0.5))
    middle, low, high = (w.cmap(x)[:3] for x in (0.5, 0.0, 1.0))
    assert min(middle) > 0.9 and low[2] > low[0] and high[0] > high[2]  # white, purple, orange
    assert sum(ax.get_label() == "<colorbar>" for ax in fig.axes) == 2
