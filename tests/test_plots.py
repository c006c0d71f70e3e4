"""Figures: the right panels and labels, what is drawn is what came in, and nothing else loaded."""

import base64
import html
import inspect
import io
import itertools
import json
import math
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from g2sf_lib import plots
from g2sf_lib.plots.scans import _window


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
    text = plots.bundle(fig, "alt")["text/html"]
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
    feat = {"pcd": rng.random((16, 33)), "rgb": rng.random((16, 9))}
    curve = (np.linspace(0, 1, 500), np.linspace(0, 1, 500) ** 0.5)
    w = rng.uniform(1 / math.e, math.e, (200, 2))
    return {
        "scan_gallery": (plots.scan_gallery(scans, titles), 4),
        "defect_gallery": (plots.defect_gallery(scans, titles, margin=8), 6),
        "sensor_noise": (plots.sensor_noise(*_depths()), 3),
        "feature_maps": (plots.feature_maps(scans[0].rgb, feat, (4, 4), np.arange(16) > 2), 3),
        "coverage_curve": (plots.coverage_curve({"pcd": 1 / np.arange(1, 50)}, chosen=40), 1),
        "score_histograms": (
            plots.score_histograms([rng.random(99)] * 3, [rng.random(9)] * 3, ["a", "b", "c"]),
            3,
        ),
        "isotropic_failure": (plots.isotropic_failure(scans, maps, maps, titles), 8),
        "loss_curves": (plots.loss_curves(history), 6),
        "scale_factors": (plots.scale_factors(w, w[:50]), 2),
        "scale_curve": (plots.scale_curve(history), 2),
        "sigma_curve": (plots.sigma_curve(history), 1),
        "score_maps": (plots.score_maps(scans, {"RGB": maps}, titles, is_shared=True), 6),
        "quantity_maps": (plots.quantity_maps(scans, {"w": maps, "s": maps}, titles), 6),
        "cell_classes": (
            plots.cell_classes(scans, [{"a": np.eye(4).ravel() > 0}] * 2, (4, 4), titles),
            2,
        ),
        "axis_shares": (plots.axis_shares({"normal": np.array([0.7, 0.2, 0.1])}), 1),
        "method_dots": (plots.method_dots(results()), 4),
        "defect_dots": (plots.defect_dots(results("defect")), 4),
        "pro_curves": (plots.pro_curves({"every threshold": curve}), 2),
        "scale_curves": (plots.scale_curves(costs(), limit_mb=8000), 2),
        "coreset_quality": (plots.coreset_quality(coresets()), 2),
        "method_panels": (plots.method_panels(scans, {"RGB": maps, "G2SF": maps}, titles), 10),
        "frame_rate_bars": (plots.frame_rate_bars(frame_times()), 2),
        "protocol_differences": (plots.protocol_differences(protocols()), 2),
        "difference_forest": (plots.difference_forest(differences()), 2),
        "difference_matrix": (plots.difference_matrix(*difference_tables()), 1),
        "cell_shift": (plots.cell_shift(shifts()), 1),
        "candidate_dots": (plots.candidate_dots(candidates()), 2),
        "score_densities": (plots.score_densities(np.linspace(0, 1, 5), densities()), 4),
        "spread_changes": (plots.spread_changes(changes()), 2),
        "alarm_rates": (plots.alarm_rates(alarms()), 2),
        "effect_dots": (plots.effect_dots(*effects(), "the run"), 2),
        "curve_with_bands": (plots.curve_with_bands(by_number(), "J", ["i_auroc"], "J"), 1),
    }


def costs():
    """Two steps at three sizes, the largest of the first one extrapolated; made up."""
    rows = [("bank", n, n / 100, n / 200, "measured") for n in (1000, 2000)]
    rows += [("bank", 4000, 40.0, np.nan, "extrapolated")]
    rows += [("epoch", n, n / 50, n / 100, "measured") for n in (1000, 2000, 4000)]
    return pd.DataFrame(rows, columns=["step", "cells", "seconds", "peak_mb", "kind"])


def coresets():
    rows = [("greedy", 0.5, 2.0, 60.0), ("greedy", 1.0, 1.5, 240.0), ("random", 0.5, 3.0, 0.0)]
    return pd.DataFrame(rows, columns=["coreset", "fraction", "radius", "seconds"])


def frame_times():
    """A slow method with all steps, and a fast one without neighbours; made up."""
    rows = [
        ("G2SF", "features", 400.0, 390.0, 420.0),
        ("G2SF", "neighbours", 6.0, 5.5, 7.0),
        ("G2SF", "fusion", 3.0, 2.5, 3.5),
        ("G2SF", "post-processing", 2.0, 1.9, 2.1),
        ("G2SF", "total", 410.0, 400.0, 440.0),
        ("CFM", "features", 395.0, 390.0, 400.0),
        ("CFM", "fusion", 1.0, 0.5, 2.0),
        ("CFM", "post-processing", 2.0, 2.0, 2.0),
        ("CFM", "total", 8.0, 7.5, 9.0),
    ]
    return pd.DataFrame(rows, columns=["method", "step", "ms", "low", "high"])


def protocols():
    """At 1 % the published protocol exchanges the first two of three methods; made up."""
    rows = [
        ("G2SF", 0.3, 0.90, 0.89),
        ("G2SF", 0.01, 0.40, 0.27),
        ("sum", 0.3, 0.88, 0.88),
        ("sum", 0.01, 0.38, 0.30),
        ("RGB", 0.3, 0.70, 0.70),
        ("RGB", 0.01, 0.20, 0.19),
    ]
    return pd.DataFrame(rows, columns=["method", "limit", "every", "published"])


def differences():
    rows = [
        ("sum", "i_auroc", 0.05, 0.01, True),
        ("RGB", "i_auroc", -0.01, 0.02, False),
        ("sum", "frames a second", -2.0, 0.5, True),
        ("RGB", "frames a second", -9.0, 0.5, True),
    ]
    return pd.DataFrame(rows, columns=["method", "metric", "difference", "se", "is_real"])


def difference_tables():
    """Three methods at 0.9, 0.88 and 0.6: only the last differs for sure."""
    names, means = ["G2SF", "sum", "RGB"], np.array([0.9, 0.88, 0.6])
    difference = pd.DataFrame(means[:, None] - means, index=names, columns=names)
    return difference, difference.abs() > 0.1


def shifts():
    rows = [
        (group, quantity, 0.6 + 0.1 * i + 0.05 * j, 0.01 * (1 + j))
        for i, group in enumerate(["pastes", "geometry only"])
        for j, quantity in enumerate(["points alone", "w = 1", "trained"])
    ]
    return pd.DataFrame(rows, columns=["group", "quantity", "value", "error"])


def candidates():
    rows = [
        ("CFM", "50 epochs", "cookie", 0.6, False),
        ("CFM", "50 epochs", "foam", 0.8, False),
        ("CFM", "250 epochs", "cookie", 0.9, True),
        ("CFM", "250 epochs", "foam", 0.7, True),
        ("AST", "as published", "cookie", 0.5, True),
        ("AST", "as published", "foam", 0.6, True),
    ]
    columns = ["method", "candidate", "category", "value", "is_chosen"]
    return pd.DataFrame(rows, columns=columns)


def densities():
    each = {"normal": np.ones((2, 4)), "anomalous": np.ones((1, 4))}
    return {method: {"cookie": each, "foam": each} for method in ("CFM", "G2SF")}


def changes():
    rows = [("width", "ratio", "CFM", "cookie", 0.5), ("rate", "difference", "CFM", "cookie", -0.1)]
    return pd.DataFrame(rows, columns=["measure", "kind", "against", "category", "value"])


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


def _depths():
    clean = np.full((40, 40), 0.45)
    measured = clean + np.random.default_rng(1).normal(0, 0.00015, clean.shape)
    measured[:4] = 0
    return clean, measured


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
    assert public - set(plots.__all__) == {"shaded"}  # two modules share it
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
                    expected = "PuOr" if name == "difference_matrix" else "cividis"
                    assert image.get_cmap().name == expected, name


def test_style_does_not_leak(history):
    before = dict(plt.rcParams)
    plots.loss_curves(history)
    assert dict(plt.rcParams) == before


def test_a_mask_is_outlined_on_image_and_height():
    plain, marked = scan(with_defect=False), scan()
    without = plots.scan_gallery([plain], ["good"])
    with_mask = plots.scan_gallery([marked], ["dent"])
    assert [len(ax.collections) for ax in panels(without)] == [0, 0]
    assert [len(ax.collections) for ax in panels(with_mask)] == [2, 2]
    # The line runs around the mask, never over it.
    line = panels(with_mask)[0].collections[0].get_paths()[0].vertices
    inside = (line[:, 0] > 39) & (line[:, 0] < 50) & (line[:, 1] > 29) & (line[:, 1] < 38)
    assert not inside.any()


def test_height_counts_from_the_farthest_point_in_mm():
    xyz = np.zeros((10, 10, 3), dtype=np.float32)
    xyz[2:] = [0.01, 0.01, 0.450]
    xyz[5, 5, 2] = 0.447
    height = plots.height_mm(xyz)
    assert np.isnan(height[:2]).all()
    assert height[5, 5] == pytest.approx(3.0, abs=1e-3)
    assert height[8, 8] == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ValueError, match="no point"):
        plots.height_mm(np.zeros((4, 4, 3)))


def test_relief_shows_a_bump_that_the_shape_hides():
    fig = plots.defect_gallery([scan()], ["bulge"], margin=10)
    relief = panels(fig)[2].images[0].get_array()
    window = _window(scan().mask, 10)
    mask = scan().mask[window]
    assert relief.shape == mask.shape
    assert relief[mask].mean() - relief[~mask].mean() == pytest.approx(1.0, abs=0.2)  # mm, raised


def test_a_window_stays_inside_the_image():
    mask = np.zeros((50, 40), dtype=bool)
    mask[0:4, 36:40] = True
    window = _window(mask, 24)
    assert mask[window].sum() == 16
    assert 0 <= window[0].start and window[1].stop <= 40
    with pytest.raises(ValueError, match="mask is empty"):
        _window(np.zeros((5, 5), dtype=bool), 2)


def test_sensor_noise_tells_spread_and_share_of_missing_points():
    fig = plots.sensor_noise(*_depths())
    assert panels(fig)[2].get_title() == "standard deviation 0.15 mm"
    assert panels(fig)[1].get_xlabel().startswith("10.0% missing")


def test_feature_maps_give_like_cells_like_colours_and_leave_background_white():
    groups = np.array([0, 1, 2, 3] * 4)
    feat = {"rgb": np.eye(8)[groups] * [1, 2, 3, 4, 5, 6, 7, 8]}
    foreground = np.arange(16) >= 4
    picture = panels(plots.feature_maps(scan().rgb, feat, (4, 4), foreground))[1].images[0]
    cells = np.asarray(picture.get_array()).reshape(16, 3)
    assert (cells[:4] == 1).all()
    for group in range(4):
        same = cells[4:][groups[4:] == group]
        assert np.allclose(same, same[0])
    assert len(np.unique(cells[4:].round(6), axis=0)) == 4


def test_loss_curves_mark_the_epoch_that_was_kept(history):
    fig = plots.loss_curves(history)
    assert "epoch 3 is kept" in panels(fig)[5].get_title()
    assert list(panels(fig)[0].lines[1].get_ydata()) == list(history["heldout_sep"])


def test_scale_factors_lie_between_the_limits_of_their_activation():
    w = np.full((40, 2), 1 / math.e)
    fig = plots.scale_factors(w, np.full((10, 2), math.e))
    for ax in panels(fig):
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1/e", "1", "2", "e"]
        assert ax.get_xticks() == pytest.approx([1 / math.e, 1, 2, math.e])
        assert ax.lines[0].get_xdata()[0] == 1  # the Euclidean metric


def test_score_maps_share_a_scale_over_rows_and_only_then_over_methods():
    scans = [scan(), scan()]
    low, high = [np.zeros((9, 9)), np.ones((9, 9))], [np.ones((9, 9)), np.full((9, 9), 5.0)]
    limits = [
        ax.images[0].get_clim()
        for ax in panels(plots.score_maps(scans, {"a": low, "b": high}, "xy"))
    ]
    assert limits[2::4] == [(0, 1), (0, 1)] and limits[3::4] == [(1, 5), (1, 5)]
    shared = plots.score_maps(scans, {"a": low, "b": high}, "xy", is_shared=True)
    clims = [ax.images[0].get_clim() for ax in panels(shared)]
    assert clims[2:4] == clims[6:8] == [(0, 5), (0, 5)]


def test_a_score_map_lies_on_the_scan_whatever_its_size():
    fig = plots.score_maps([scan(side=64)], {"a": [np.eye(28)]}, ["x"])
    assert panels(fig)[2].images[0].get_extent() == [-0.5, 63.5, 63.5, -0.5]


def test_quantity_maps_share_a_scale_over_rows_of_a_quantity():
    low, high = [np.zeros((9, 9)), np.ones((9, 9))], [np.ones((9, 9)), np.full((9, 9), 5.0)]
    fig = plots.quantity_maps([scan(), scan()], {"a": low, "b": high}, "xy")
    limits = [ax.images[0].get_clim() for ax in panels(fig)]
    assert limits[1::3] == [(0, 1)] * 2 and limits[2::3] == [(1, 5)] * 2


def test_cell_classes_put_each_cell_where_it_is_and_once():
    first, second = np.zeros(16, dtype=bool), np.zeros(16, dtype=bool)
    first[[0, 5]] = True
    second[5] = True  # in both: drawn as the later one
    fig = plots.cell_classes([scan(64)], [{"near": first, "far": second}], (4, 4), ["x"])
    ax = panels(fig)[0]
    near, far = (c.get_offsets().tolist() for c in ax.collections[:2])
    assert near == [[7.5, 7.5]]
    assert far == [[23.5, 23.5]]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["near", "far"]


def test_axis_shares_add_up_to_one():
    fig = plots.axis_shares({"normal": np.array([0.7, 0.2, 0.1])})
    line = panels(fig)[0].lines[0]
    assert list(line.get_ydata()) == pytest.approx([0, 0.7, 0.9, 1.0])
    assert list(line.get_xdata()) == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_method_dots_draw_each_value_with_its_error_and_the_best_apart():
    table = results()
    fig = plots.method_dots(table)
    for ax, category in zip(panels(fig), ["cookie", "dowel", "foam", "rope"], strict=True):
        assert ax.get_title() == category
        rows = table[table["category"] == category]
        dots = [bars.lines[0] for bars in ax.containers]
        assert [dot.get_xdata()[0] for dot in dots] == list(rows["i_auroc"])
        assert [dot.get_marker() for dot in dots] == ["o", "o", "D"]
    assert "AUROC" in fig.get_supxlabel() and "standard error" in fig.get_supxlabel()
    assert "error" not in plots.method_dots(table.drop(columns="se")).get_supxlabel()
    with pytest.raises(ValueError, match=r"method_dots: .* lacks the columns \['category'\]"):
        plots.method_dots(table.drop(columns="category"))


def test_pro_curves_thin_long_curves_but_keep_their_ends():
    fpr = np.linspace(0, 1, 100_000)
    fig = plots.pro_curves({"every": (fpr, fpr)}, limits=(0.3,))
    drawn = panels(fig)[0].lines[0]
    assert len(drawn.get_xdata()) <= 1000
    assert drawn.get_xdata()[0] == 0 and drawn.get_xdata()[-1] > 0.3
    assert drawn.get_marker() == "None"
    few = plots.pro_curves({"published": (fpr[::1000], fpr[::1000])}, limits=(0.3,))
    assert panels(few)[0].lines[0].get_marker() == "o"


def test_matplotlib_bundle_is_an_image_with_alternative_text(history):
    content = plots.bundle(plots.sigma_curve(history), 'sigma "starts" at <1/2>')
    assert 'alt="sigma &quot;starts&quot; at &lt;1/2&gt;"' in content["text/html"]
    assert content["text/plain"] == 'sigma "starts" at <1/2>'
    assert image_of(plots.sigma_curve(history)).std() > 0  # something is drawn
    assert np.array_equal(
        image_of(plots.sigma_curve(history)), image_of(plots.sigma_curve(history))
    )


def test_show_publishes_the_bundle(history, monkeypatch):
    published = []
    monkeypatch.setattr(plots.page, "display", lambda data, raw: published.append((data, raw)))
    plots.show(plots.sigma_curve(history), "influence of the modalities")
    ((data, raw),) = published
    assert raw and 'alt="influence of the modalities"' in data["text/html"]
    with pytest.raises(ValueError, match="alt is empty"):
        plots.show(plots.sigma_curve(history), " ")


def decoded(values):
    """A plotly array as numbers, from the base64 that the page decodes."""
    return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])


def test_cloud_bundle_needs_nothing_but_the_plotly_of_the_page():
    fig = plots.cloud(scan(200).xyz, "</script> part", values=scan(200).mask, label="score")
    content = plots.bundle(fig, "a part that can be turned")
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
    trace = plots.cloud(xyz, "noise", values=values).data[0]
    assert 7000 < len(trace.x) <= plots.MAX_CLOUD_POINTS
    there = xyz[5:].reshape(-1, 3)
    there = there[np.isfinite(there).all(axis=1)] * 1000
    for axis, drawn in enumerate((trace.x, trace.y, trace.z)):
        assert drawn.min() == pytest.approx(there[:, axis].min(), rel=1e-5)
        assert drawn.max() == pytest.approx(there[:, axis].max(), rel=1e-5)
    assert max(trace.marker.color) == 7.0
    again = plots.cloud(xyz, "noise", values=values).data[0]
    assert np.array_equal(again.x, trace.x)  # thinned the same way every time
    assert np.allclose(
        decoded(
            plots.bundle(go.Figure(trace), "a")["application/vnd.plotly.v1+json"]["data"][0]["x"]
        ),
        trace.x,
    )


def test_cloud_keeps_all_of_a_small_scan_with_its_colours():
    xyz = np.array([[0, 0, 0], [0.01, 0, 0.4], [0, 0.02, 0.4]])
    colour = np.array([[9, 9, 9], [255, 0, 16], [0, 128, 255]], dtype=np.uint8)
    trace = plots.cloud(xyz, "two points", colour=colour).data[0]
    assert list(trace.x) == pytest.approx([10, 0])
    assert list(trace.marker.color) == ["#ff0010", "#0080ff"]


def test_a_millimetre_is_as_long_on_every_axis_of_a_cloud():
    rng = np.random.default_rng(3)
    xyz = rng.uniform([-0.05, -0.02, 0.4], [0.05, 0.02, 0.41], (500, 3))
    scene = plots.cloud(xyz, "slab", values=xyz[:, 2]).layout.scene
    length = {name: abs(np.ptp(scene[f"{name}axis"].range)) for name in "xyz"}
    per_mm = [scene.aspectratio[name] / length[name] for name in "xyz"]
    assert per_mm == pytest.approx([per_mm[0]] * 3)
    assert scene.yaxis.range[0] > scene.yaxis.range[1]  # y counts down, as in the image


def test_cloud_refuses_nothing_to_draw():
    with pytest.raises(ValueError, match="no point"):
        plots.cloud(np.zeros((4, 4, 3)), "empty", values=np.zeros((4, 4)))
    with pytest.raises(ValueError, match="either colour or values"):
        plots.cloud(np.ones((4, 4, 3)), "neither")


def test_measured_costs_are_filled_and_extrapolated_ones_hollow():
    fig = plots.scale_curves(costs(), limit_mb=8000)
    time, memory = panels(fig)
    assert time.get_xscale() == time.get_yscale() == "log"
    assert memory.get_yscale() == "linear" and memory.get_ylim()[0] == 0
    hollow = [line for line in time.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[4.0], []]
    curves = [line for line in time.lines if line.get_linestyle() != "None"]
    assert [line.get_label() for line in curves] == ["bank", "epoch"]
    assert list(curves[0].get_ydata()) == [10.0, 20.0, 40.0]
    # a size whose memory is not known is left out, not drawn at zero
    of_bank = [line for line in memory.lines if line.get_label() == "bank"]
    assert list(of_bank[0].get_ydata()) == [0.005, 0.01]
    limit = [line for line in memory.lines if line.get_linestyle() == ":"]
    assert any(list(line.get_ydata()) == [8.0, 8.0] for line in limit)
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == ["bank", "epoch", "measured", "extrapolated"]


def test_a_coreset_that_takes_no_time_has_no_place_on_a_logarithmic_axis():
    radius, seconds = panels(plots.coreset_quality(coresets()))
    assert [list(line.get_ydata()) for line in radius.lines] == [[2.0, 1.5], [3.0]]
    assert [list(line.get_ydata()) for line in seconds.lines] == [[60.0, 240.0], []]
    assert radius.get_ylim()[0] == 0 and radius.get_legend() is not None


def test_clouds_of_one_method_share_a_scale_that_begins_at_zero():
    xyz = scan().xyz
    alone = plots.cloud(xyz, "a", values=xyz[..., 2]).data[0].marker
    assert alone.cmin is None and alone.cmax is None
    for factor in (0.1, 30.0):
        marker = plots.cloud(xyz, "a", values=factor * xyz[..., 2], top=2.0).data[0].marker
        assert (marker.cmin, marker.cmax) == (0.0, 2.0)
    for wrong in ({"values": xyz[..., 2], "top": 0.0}, {"colour": scan().rgb, "top": 2.0}):
        with pytest.raises(ValueError, match="expected a positive number, and values"):
            plots.cloud(xyz, "a", **wrong)


def test_method_panels_paint_all_methods_on_one_scale_that_ends_where_it_is_told():
    low, high = [np.zeros((9, 9))] * 2, [np.full((28, 28), 7.0)] * 2
    fig = plots.method_panels([scan(), scan()], {"a": low, "b": high}, ["x", "y"], top=3.0)
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
    for ax in panels(plots.method_panels([off], {"a": [np.zeros((9, 9))]}, ["x"])):
        assert ax.get_xlim() == pytest.approx((40 - 21 * 0.54, 40 + 21 * 0.54))
        assert ax.get_ylim() == pytest.approx((15 + 21 * 0.54, 15 - 21 * 0.54))  # rows run down


def test_eleven_methods_go_on_in_a_second_block_with_the_same_row_labels():
    maps = {f"m{i}": [np.full((9, 9), i + n / 10) for n in range(2)] for i in range(11)}
    axes = panels(plots.method_panels([scan(), scan()], maps, ["x", "y"]))
    grid = np.array(axes).reshape(4, 7)
    assert [ax.get_title() for ax in grid[0]] == ["image", "points", "truth", *list(maps)[:4]]
    assert [ax.get_title() for ax in grid[2]] == list(maps)[4:]
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["x", "y", "x", "y"]
    first, second = ([float(ax.images[0].get_array()[0, 0]) for ax in grid[r]] for r in (2, 3))
    assert first == list(range(4, 11)) and second == [i + 0.1 for i in range(4, 11)]
    ten = {name: maps[name] for name in list(maps)[:10]}  # 13 panels: the last place is empty
    assert len(panels(plots.method_panels([scan(), scan()], ten, ["x", "y"]))) == 26


def test_method_panels_refuse_a_scale_without_room_and_a_map_too_few():
    with pytest.raises(ValueError, match=r"top is 1\.0; expected more than 1"):
        plots.method_panels([scan()], {"a": [np.eye(3)]}, ["x"], top=1.0)
    with pytest.raises(ValueError, match="a has 1 maps; expected 2"):
        plots.method_panels([scan(), scan()], {"a": [np.eye(3)]}, ["x", "y"])


def bars_of(ax):
    """Bars of a stacked chart: label -> [(left, width) of each row]."""
    stacks = [stack for stack in ax.containers if stack.get_label() in plots.costs.STEP_HATCHES]
    return {
        stack.get_label(): [(bar.get_x(), bar.get_width()) for bar in stack] for stack in stacks
    }


def error_lines(ax):
    """Ends and height of every error bar: (low, high, y)."""
    lines = [
        line
        for bars in ax.containers
        if bars.get_label() not in plots.costs.STEP_HATCHES
        for line in bars.lines[2][0].get_segments()
    ]
    return [(line[0, 0], line[1, 0], line[0, 1]) for line in lines if len(line)]


def test_frame_rates_stack_the_steps_and_show_the_rest_apart():
    whole, rest = panels(plots.frame_rate_bars(frame_times()))
    assert [tick.get_text() for tick in whole.get_yticklabels()] == ["G2SF", "CFM"]
    assert bars_of(whole) == {
        "features": [(0, 400), (0, 395)],
        "neighbours": [(400, 6), (395, 0)],
        "fusion": [(406, 3), (395, 1)],
        "post-processing": [(409, 2), (396, 2)],
    }
    assert bars_of(rest) == {
        "neighbours": [(0, 6), (0, 0)],
        "fusion": [(6, 3), (0, 1)],
        "post-processing": [(9, 2), (1, 2)],
    }
    # The total is measured, not added up: its quartiles and its rate are those of the table.
    assert error_lines(whole) == [(400, 440, 0), (7.5, 9, 1)]
    assert [text.get_text() for text in whole.texts] == ["2.44/s", "125/s"]
    assert whole.get_xlim()[1] > 440
    ends = sorted((low, high) for low, high, place in error_lines(rest) if abs(place) < 0.5)
    assert ends == [(5.5, 7), (8.5, 9.5), (10.9, 11.1)]
    handles = panels_legend(whole.figure)
    assert handles == ["features", "neighbours", "fusion", "post-processing"]


def panels_legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_frame_rates_refuse_what_cannot_be_stacked():
    table = frame_times()
    with pytest.raises(ValueError, match=r"frame_rate_bars: .* lacks the columns \['ms'\]"):
        plots.frame_rate_bars(table.drop(columns="ms"))
    with pytest.raises(ValueError, match="no row with the step total"):
        plots.frame_rate_bars(table[:-1])
    with pytest.raises(ValueError, match=r"steps \['loading'\] are unknown"):
        plots.frame_rate_bars(table.replace({"step": {"fusion": "loading"}}))
    with pytest.raises(ValueError, match="has a step twice"):
        plots.frame_rate_bars(pd.concat([table, table[:1]]))
    with pytest.raises(ValueError, match="not between low and high"):
        plots.frame_rate_bars(table.assign(low=1000.0))


def test_protocols_differ_by_published_minus_every_and_are_ranked_at_the_lowest_limit():
    change, order = panels(plots.protocol_differences(protocols()))
    assert change.get_xscale() == "log"
    assert [tick.get_text() for tick in change.get_xticklabels()] == ["1 %", "30 %"]
    zero, *curves = change.lines
    assert list(zero.get_ydata()) == [0, 0]
    assert [list(line.get_xdata()) for line in curves] == [[0.01, 0.3]] * 3
    expected = [[-0.13, -0.01], [-0.08, 0.0], [-0.01, 0.0]]
    assert [list(line.get_ydata()) for line in curves] == [pytest.approx(e) for e in expected]
    assert [list(line.get_ydata()) for line in order.lines] == [[1, 2], [2, 1], [3, 3]]
    assert [(text.get_text(), text.xy) for text in order.texts[:2]] == [
        ("G2SF  0.400", (0, 1)),
        ("0.270  G2SF", (1, 2)),
    ]
    assert order.get_title() == "ranks by AUPRO at 1%"
    for curve, slope in zip(curves, order.lines, strict=True):  # the ranks are the legend
        assert curve.get_color() == slope.get_color()
        assert curve.get_marker() == slope.get_marker()


def test_eleven_methods_are_told_apart_by_colour_marker_and_line():
    table = pd.DataFrame({"method": list("abcdefghijk"), "limit": 0.01, "every": 0.5})
    _, order = panels(plots.protocol_differences(table.assign(published=0.4)))
    looks = {(line.get_color(), line.get_linestyle()) for line in order.lines}
    assert len(looks) == len({line.get_marker() for line in order.lines}) == 11
    curve = np.linspace(0, 1, 20)
    pro = panels(plots.pro_curves({name: (curve, curve) for name in "abcdefghijk"}))[0]
    assert len(pro.get_legend().get_texts()) == 11


def test_protocols_need_every_method_at_the_lowest_limit():
    with pytest.raises(ValueError, match="no AUPRO at 1% for RGB"):
        plots.protocol_differences(protocols()[:-1])
    with pytest.raises(ValueError, match=r"protocol_differences: .* \['every'\]"):
        plots.protocol_differences(protocols().drop(columns="every"))


def test_a_difference_has_its_interval_and_is_filled_where_it_is_real():
    image, speed = panels(plots.difference_forest(differences()))
    assert image.get_title() == "image AUROC" and speed.get_title() == "frames a second"
    assert [tick.get_text() for tick in image.get_yticklabels()] == ["sum", "RGB"]
    dots = [bars.lines[0] for bars in image.containers]
    assert [(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in dots] == [(0.05, 0), (-0.01, 1)]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True]
    low, high = image.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((0.05 - 1.96 * 0.01, 0.05 + 1.96 * 0.01))
    assert list(image.lines[0].get_xdata()) == [0, 0]
    assert image.get_ylim()[0] > image.get_ylim()[1]  # the first method on top
    with pytest.raises(ValueError, match=r"difference_forest: .* \['is_real'\]"):
        plots.difference_forest(differences().drop(columns="is_real"))
    with pytest.raises(ValueError, match="difference_forest: the table has no row"):
        plots.difference_forest(differences()[:0])


def test_pairwise_differences_are_centred_and_only_real_ones_stand_out():
    difference, is_real = difference_tables()
    fig = plots.difference_matrix(difference, is_real.loc[::-1, ::-1], metric="aupro_1")
    (ax,) = panels(fig)
    assert ax.images[0].get_clim() == pytest.approx((-0.3, 0.3))
    numbers = {text.get_position(): text for text in ax.texts}
    assert (0, 0) not in numbers and len(numbers) == 6  # nothing on the diagonal
    assert numbers[2, 0].get_text() == "+0.300" and numbers[0, 2].get_text() == "−0.300"
    assert numbers[2, 0].get_style() == "normal" and numbers[2, 0].get_weight() == "bold"
    assert numbers[1, 0].get_style() == "italic"  # 0.02: not real
    assert ax.get_title() == "AUPRO at 1 %: row minus column"
    alike = plots.difference_matrix(0 * difference, is_real)
    assert panels(alike)[0].images[0].get_clim() == (-1, 1)


def test_pairwise_differences_refuse_tables_of_other_methods():
    difference, is_real = difference_tables()
    with pytest.raises(ValueError, match="same methods in the same order"):
        plots.difference_matrix(difference.iloc[:, ::-1], is_real)
    with pytest.raises(ValueError, match="is_real is of"):
        plots.difference_matrix(difference, is_real.iloc[:2, :2])


def test_cell_shift_has_a_row_a_group_and_a_place_a_quantity():
    table = shifts()
    table.loc[0, "error"] = np.nan  # not known: no bar
    (ax,) = panels(plots.cell_shift(table))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["pastes", "geometry only"]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["points alone", "w = 1", "trained"]
    for bars, name in zip(ax.containers, names, strict=True):
        dots, rows = bars.lines[0], table[table["quantity"] == name]
        assert list(dots.get_xdata()) == list(rows["value"])
        assert [round(place) for place in dots.get_ydata()] == [0, 1]  # inside its row
        lengths = [np.ptp(line[:, 0]) for line in bars.lines[2][0].get_segments()]
        assert lengths == pytest.approx(2 * rows["error"].fillna(0))
    assert len({bars.lines[0].get_ydata()[0] for bars in ax.containers}) == 3
    assert len({bars.lines[0].get_marker() for bars in ax.containers}) == 3
    with pytest.raises(ValueError, match=r"cell_shift: .* \['error'\]"):
        plots.cell_shift(table.drop(columns="error"))


def test_candidates_show_their_mean_and_categories_and_mark_the_chosen_one():
    fig = plots.candidate_dots(candidates(), label="average precision")
    cfm, ast = panels(fig)
    assert (cfm.get_title(), ast.get_title()) == ("CFM", "AST")
    assert [tick.get_text() for tick in cfm.get_yticklabels()] == ["50 epochs", "250 epochs"]
    points, means = cfm.lines[::2], cfm.lines[1::2]
    assert [list(line.get_xdata()) for line in points] == [[0.6, 0.8], [0.9, 0.7]]
    assert [line.get_xdata()[0] for line in means] == pytest.approx([0.7, 0.8])
    assert [line.get_marker() for line in means] == ["o", "D"]
    assert ast.lines[1].get_marker() == "D"
    assert ast.get_xlabel().startswith("average precision: mean")


def test_candidates_have_at_most_one_choice_a_method():
    table = candidates()
    none = panels(plots.candidate_dots(table.assign(is_chosen=False)))
    assert {line.get_marker() for ax in none for line in ax.lines[1::2]} == {"o"}
    with pytest.raises(ValueError, match="CFM has the chosen candidates .* at most one"):
        plots.candidate_dots(table.assign(is_chosen=True))
    with pytest.raises(ValueError, match=r"candidate_dots: .* \['category'\]"):
        plots.candidate_dots(table.drop(columns="category"))


def texts_overlap(fig):
    """Pairs of texts that lie on each other, as drawn; slanted ones have no box to compare."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    found = [
        text
        for text in fig.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text.get_rotation() % 90 == 0
    ]
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in found]
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def test_no_text_of_eleven_methods_lies_on_another():
    names = ["G²SF", "w = 1", "RGB alone", "points alone", "sum", "product", "maximum"]
    names += ["concatenation", "M3DM (decision fusion)", "CFM", "AST"]
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"method": names, "limit": 0.01, "every": rng.random(11)})
    table["published"] = rng.random(11)
    times = pd.concat(
        [frame_times().query("method == 'G2SF'").assign(method=name) for name in names]
    )
    means = pd.DataFrame(rng.normal(0, 0.1, (11, 11)), index=names, columns=names)
    labels = ["cable gland, both", "cookie, appearance only"]
    maps = {name: [np.eye(9)] * 2 for name in names}
    for fig in (
        plots.protocol_differences(table),
        plots.frame_rate_bars(times),
        plots.difference_matrix(means, means > 0),
        plots.method_panels([scan(), scan()], maps, labels),
    ):
        assert texts_overlap(fig) == []
