"""Every figure of the book: arrays or tables in, a Figure out.

The only owner of matplotlib, seaborn and plotly. Nothing here touches pyplot, so no figure
outlives its notebook cell; `show` puts one on the page, with its alternative text. Colours:
cividis for quantities, seaborn's "colorblind" (Okabe and Ito) for classes, always together
with a marker, a line style or a label, so that a figure survives a grey print.

"Scans" below are objects with `rgb` (H, W, 3) uint8, `xyz` (H, W, 3) in metres, zero where
there is no point, and `mask` (H, W) bool: `g2sf_lib.datasets.Sample` is one.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import seaborn as sns
from IPython.display import display
from matplotlib.colors import LightSource, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from scipy import ndimage

COLOUR_MAP = "cividis"
MODALITY_NAMES = {"pcd": "points", "rgb": "RGB"}
LOSS_NAMES = {
    "sep": "separation $L_{sep}$",
    "mar": "margin $L_{mar}$",
    "cns": "consistency $L_{cns}$",
    "sc": "scaling $L_{sc}$",
    "cma": "alignment $L_{cma}$",
}
METRIC_NAMES = {
    "i_auroc": "image AUROC",
    "p_auroc": "pixel AUROC",
    "aupro_30": "AUPRO at 30 %",
    "aupro_1": "AUPRO at 1 %",
}
MAX_CLOUD_POINTS = 8000  # a page with a few clouds stays below a megabyte each
MM = 1000.0  # metres to millimetres
_BLUE, _ORANGE, _GREEN, _VERMILLION, _PURPLE = sns.color_palette("colorblind").as_hex()[:5]
_OF_MODALITY = {"pcd": (_GREEN, "-", "o"), "rgb": (_PURPLE, "--", "s")}
_OF_CLASS = {"normal": (_BLUE, "-"), "anomalous": (_VERMILLION, "--")}
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.5,
    "image.cmap": COLOUR_MAP,
    "image.interpolation": "nearest",
}
_styled = matplotlib.rc_context(_STYLE)  # a decorator: the style holds inside, and nowhere else
# Plotly offers, by default, a logo that links to its maker and a button that uploads the data.
_PLOTLY_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
}
_WIDTH_INCHES = 7.5  # the text column of the book, at 96 px an inch
_DPI = 144


def show(fig: Figure | go.Figure, alt: str) -> None:
    """Put a figure on the page, in JupyterLab and in the built book alike.

    A matplotlib figure becomes an image that carries its alternative text with it. A plotly
    figure becomes a bundle: its JSON, which JupyterLab draws, and for the book a div and the
    few lines that draw into it with a `Plotly` that the page has loaded once, from its own
    files. Neither asks another host for anything.

    Args:
        fig: what a function of this module returned.
        alt: what a reader who cannot see the figure should know.

    Raises:
        ValueError: if `alt` is empty.
    """
    display(bundle(fig, alt), raw=True)


def bundle(fig: Figure | go.Figure, alt: str) -> dict[str, Any]:
    """Return the MIME bundle that `show` displays: media type -> content."""
    if not alt.strip():
        raise ValueError("alt is empty; expected a sentence for readers who cannot see the figure")
    text = html.escape(alt, quote=True)
    if isinstance(fig, Figure):
        png = io.BytesIO()
        fig.savefig(png, format="png", dpi=_DPI)
        data = base64.b64encode(png.getvalue()).decode()
        width = round(fig.get_figwidth() * 96)
        image = (
            f'<img src="data:image/png;base64,{data}" alt="{text}" width="{width}" '
            'style="max-width:100%;height:auto;background:white">'
        )
        return {"text/html": image, "text/plain": alt}
    plain = json.loads(fig.to_json()) | {"config": _PLOTLY_CONFIG}
    # "</" would end the script element early.
    arguments = ", ".join(
        json.dumps(plain[key]).replace("</", "<\\/") for key in ("data", "layout", "config")
    )
    height = plain["layout"].get("height", 450)
    division = (
        f'<div class="g2sf-figure" role="img" aria-label="{text}" '
        f'style="width:100%;height:{height}px"></div>\n'
        "<script>(function () {\n"
        "  const place = document.currentScript.previousElementSibling;\n"
        f"  const draw = () => Plotly.newPlot(place, {arguments});\n"
        '  if (window.Plotly) { draw(); } else { window.addEventListener("load", draw); }\n'
        "})();</script>"
    )
    return {"application/vnd.plotly.v1+json": plain, "text/html": division, "text/plain": alt}


# ---------------------------------------------------------------- scans


@_styled
def scan_gallery(samples: Sequence[Any], titles: Sequence[str]) -> Figure:
    """Return a column a scan: its image, and its height, shaded; masks are outlined.

    Args:
        samples: N scans.
        titles: N titles.

    Returns:
        2 x N panels and one colour bar, height above the farthest point in mm.
    """
    fig, axes = _panels(2, len(samples))
    heights = [height_mm(sample.xyz) for sample in samples]
    norm = Normalize(0, max(float(np.nanmax(height)) for height in heights))
    for column, (sample, height) in enumerate(zip(samples, heights, strict=True)):
        axes[0, column].imshow(sample.rgb)
        axes[0, column].set_title(titles[column])
        axes[1, column].imshow(_shaded(height, norm))
        for ax in axes[:, column]:
            _outline(ax, sample.mask)
    _label_rows(axes, ["image", "height"])
    _colour_bar(fig, axes[1], norm, "height (mm)")
    return fig


@_styled
def defect_gallery(samples: Sequence[Any], titles: Sequence[str], margin: int = 24) -> Figure:
    """Return a column a defective scan: whole, near its defect, and the surface there.

    The third row is the height less the plane that fits the window best, so that a dent of
    a millimetre is not lost in the shape of a part of thirty.

    Args:
        samples: N scans with a mask that is not empty.
        titles: N titles.
        margin: px of surroundings that the window shows on each side of the defect.

    Returns:
        3 x N panels; the last row shares one colour scale, in mm.
    """
    fig, axes = _panels(3, len(samples))
    windows = [_window(sample.mask, margin) for sample in samples]
    reliefs = [
        _relief_mm(sample.xyz[window]) for sample, window in zip(samples, windows, strict=True)
    ]
    reach = max(float(np.nanpercentile(np.abs(relief), 98)) for relief in reliefs)
    norm = Normalize(-reach, reach)
    for column, (sample, window) in enumerate(zip(samples, windows, strict=True)):
        axes[0, column].imshow(sample.rgb)
        axes[0, column].set_title(titles[column])
        axes[1, column].imshow(sample.rgb[window])
        axes[2, column].imshow(reliefs[column], norm=norm)
        _outline(axes[0, column], sample.mask)
        for ax in axes[1:, column]:
            _outline(ax, sample.mask[window])
    _label_rows(axes, ["image", "near the defect", "relief there"])
    _colour_bar(fig, axes[2], norm, "height over\nlocal plane (mm)")
    return fig


@_styled
def sensor_noise(depth_clean: np.ndarray, depth_measured: np.ndarray) -> Figure:
    """Return what the sensor makes of a depth image: the map of errors and their histogram.

    Args:
        depth_clean: (H, W) true depth, metres; zero or not finite where there is nothing.
        depth_measured: (H, W) measured depth, metres; zero or not finite where missing.

    Returns:
        Three panels: true depth, error (missing points left out), histogram of the error
        with its standard deviation.
    """
    clean, measured = (
        np.where(np.isfinite(depth) & (depth != 0), depth, np.nan) * MM
        for depth in (depth_clean, depth_measured)
    )
    error = measured - clean
    known = error[np.isfinite(error)]
    missing = np.isfinite(clean) & ~np.isfinite(measured)
    reach = float(np.percentile(np.abs(known), 99))
    fig = Figure(figsize=(_WIDTH_INCHES, 2.6), layout="constrained")
    axes = fig.subplots(1, 3)
    for ax, image, norm, title in (
        (axes[0], clean, None, "true depth (mm)"),
        (axes[1], error, Normalize(-reach, reach), "measured - true (mm)"),
    ):
        drawn = ax.imshow(image, norm=norm)
        ax.set_title(title)
        _no_ticks(ax)
        fig.colorbar(drawn, ax=ax, shrink=0.8)
    axes[1].imshow(np.where(missing[..., None], _rgba(_VERMILLION), 0.0))
    axes[1].set_xlabel(f"{missing.sum() / np.isfinite(clean).sum():.1%} missing (orange)")
    axes[2].hist(known, bins=60, range=(-1.5 * reach, 1.5 * reach), density=True, color=_BLUE)
    axes[2].set_title(f"standard deviation {known.std():.2f} mm")
    axes[2].set_xlabel("measured - true (mm)")
    axes[2].set_ylabel("density (1/mm)")
    return fig


def cloud(
    xyz: np.ndarray,
    title: str,
    colour: np.ndarray | None = None,
    values: np.ndarray | None = None,
    label: str = "score",
) -> go.Figure:
    """Return a point cloud that can be turned, seen from the sensor's side, in mm.

    More than `MAX_CLOUD_POINTS` points are thinned at random, always the same way; the
    outermost point on each side and the largest value are kept, so that neither the extent
    nor the peak changes.

    Args:
        xyz: (..., 3) metres in the sensor's frame (x right, y down, z away); rows of zeros
            are no points.
        title: above the cloud.
        colour: (..., 3) uint8, the colour of each point; or
        values: (...) a quantity that becomes a colour, with a colour bar.
        label: what `values` are, with their unit.

    Raises:
        ValueError: if there is no point, or not exactly one of `colour` and `values`.
    """
    if (colour is None) == (values is None):
        raise ValueError("cloud needs either colour or values")
    points = np.asarray(xyz).reshape(-1, 3)
    there = np.isfinite(points).all(axis=1) & (points != 0).any(axis=1)
    if not there.any():
        raise ValueError("xyz holds no point; expected at least one row that is not zero")
    points = points[there] * MM
    paint = np.asarray(values).reshape(-1)[there] if colour is None else None
    kept = _thinned(points, paint)
    points = points[kept].astype(np.float32)
    if colour is None:
        marker = {
            "color": paint[kept].astype(np.float32),
            "colorscale": COLOUR_MAP,
            "colorbar": {"title": {"text": label}, "thickness": 14},
        }
    else:
        tones = np.asarray(colour).reshape(-1, 3)[there][kept]
        marker = {
            "color": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in tones.tolist()]
        }
    trace = go.Scatter3d(
        x=points[:, 0],
        y=points[:, 1],
        z=points[:, 2],
        mode="markers",
        marker=marker | {"size": 2.2},
        hovertemplate="x %{x:.1f}, y %{y:.1f}, z %{z:.1f} mm<extra></extra>",
    )
    low, high = points.min(axis=0), points.max(axis=0)
    extent = np.maximum(high - low, 1.0)  # mm; a flat cloud still needs a box
    ratio = extent / extent.max()  # a millimetre is as long on every axis
    axes = {
        f"{name}axis": {
            "title": {"text": f"{name} (mm)"},
            "nticks": max(2, round(8 * ratio[i])),
            # y and z count down and away, as the sensor does, so that up is up on the page.
            "range": [low[i], low[i] + extent[i]] if i == 0 else [low[i] + extent[i], low[i]],
        }
        for i, name in enumerate("xyz")
    }
    scene = axes | {
        "aspectmode": "manual",
        "aspectratio": dict(zip("xyz", ratio.tolist(), strict=True)),
        "dragmode": "orbit",
        "camera": {"up": {"x": 0, "y": 1, "z": 0}, "eye": {"x": 0.3, "y": -0.7, "z": 1.0}},
    }
    layout = go.Layout(
        template="none",
        title={"text": title, "font": {"size": 14}},
        height=450,
        margin={"l": 0, "r": 0, "t": 40, "b": 0},
        scene=scene,
    )
    return go.Figure(trace, layout)


# ---------------------------------------------------------------- features and bank


@_styled
def feature_maps(
    image: np.ndarray,
    feat: Mapping[str, Any],
    grid: tuple[int, int],
    foreground: Any,
) -> Figure:
    """Return the image beside the cells of each modality in false colour.

    Red, green and blue are the first three principal components over the foreground cells,
    each stretched between its 2nd and 98th percentile: cells of like colour have like
    features. Colours of two modalities, or of two figures, are not comparable.

    Args:
        image: (H, W, 3) uint8.
        feat: mod -> (N, D_mod) features, cells in row-major order, D_mod >= 3.
        grid: (rows, columns), rows * columns = N.
        foreground: (N,) bool; other cells are left white.
    """
    fig, axes = _panels(1, 1 + len(feat))
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image")
    foreground = np.asarray(foreground, dtype=bool)
    for ax, (mod, features) in zip(axes[0, 1:], feat.items(), strict=True):
        features = np.asarray(features, dtype=np.float64)[foreground]
        centred = features - features.mean(axis=0)
        _, directions = np.linalg.eigh(centred.T @ centred)  # rising order
        components = centred @ directions[:, :-4:-1]  # (foreground cells, 3)
        low, high = np.percentile(components, (2, 98), axis=0)
        picture = np.ones((len(foreground), 3))
        picture[foreground] = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
        ax.imshow(picture.reshape(*grid, 3))
        ax.set_title(f"{MODALITY_NAMES[mod]}, false colour")
    return fig


@_styled
def coverage_curve(radius: Mapping[str, np.ndarray], chosen: int | None = None) -> Figure:
    """Return how the largest distance to a prototype falls with their number.

    Args:
        radius: name -> (num,) radius after 1, 2, ... prototypes, in units of the features;
            a name is a modality ("pcd", "rgb") or any text.
        chosen: the number of prototypes that the bank keeps, marked by a line.
    """
    fig, ax = _axes("number of prototypes", "coverage radius\n(units of the features)")
    styles = [(_BLUE, "-"), (_ORANGE, "--"), (_GREEN, "-."), (_VERMILLION, ":")]
    for order, (name, values) in enumerate(radius.items()):
        colour, line = _OF_MODALITY.get(name, styles[order % len(styles)])[:2]
        values = np.asarray(values)
        ax.plot(
            np.arange(1, len(values) + 1),
            values,
            color=colour,
            linestyle=line,
            label=MODALITY_NAMES.get(name, name),
        )
    if chosen is not None:
        ax.axvline(chosen, color="0.3", linestyle=":", label=f"bank: {chosen:,}")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.legend()
    return fig


@_styled
def score_histograms(
    normal: Sequence[Any], anomalous: Sequence[Any], names: Sequence[str]
) -> Figure:
    """Return the distributions of a score over good and anomalous cells, a panel a score.

    Args:
        normal: a (N,) array a score.
        anomalous: a (N,) array a score.
        names: what each score is called.
    """
    fig = Figure(figsize=(_WIDTH_INCHES, 2.5), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(names)))
    for ax, good, bad, name in zip(axes, normal, anomalous, names, strict=True):
        good, bad = np.asarray(good).ravel(), np.asarray(bad).ravel()
        high = float(max(np.percentile(good, 99.9), np.percentile(bad, 99)))
        low = float(min(good.min(), bad.min()))
        bins = np.linspace(low, max(high, low + 1e-9), 50)
        for kind, values in (("normal", good), ("anomalous", bad)):
            colour, line = _OF_CLASS[kind]
            shared = {"bins": bins, "density": True, "color": colour}
            ax.hist(values, histtype="stepfilled", alpha=0.25, **shared)
            ax.hist(values, histtype="step", linestyle=line, label=kind, **shared)
        ax.set_xlabel(name)
    axes[0].set_ylabel("density")
    axes[-1].legend()
    return fig


def isotropic_failure(
    samples: Sequence[Any],
    maps_rgb: Sequence[Any],
    maps_pcd: Sequence[Any],
    titles: Sequence[str],
) -> Figure:
    """Return the two isotropic scores s_i0 beside image and truth, a row a scan.

    Args:
        samples: N scans.
        maps_rgb: N maps (h, w) of the distance to the nearest RGB prototype.
        maps_pcd: N maps (h, w) of the distance to the nearest point prototype.
        titles: N row labels.
    """
    return score_maps(
        samples, {"$s^R$ (RGB alone)": maps_rgb, "$s^P$ (points alone)": maps_pcd}, titles
    )


# ---------------------------------------------------------------- training


@_styled
def loss_curves(history: pd.DataFrame) -> Figure:
    """Return each term of Eq. 10 over the epochs, and the held-out criterion.

    Args:
        history: columns `epoch`, `sep`, `mar`, `cns`, `sc`, `cma` (mean over training
            batches), `heldout` (L_sep + alpha L_mar on held-out images), and where there
            are any `heldout_sep` ... `heldout_cma`. A column with gaps is drawn with gaps.

    Returns:
        2 x 3 panels; the epoch with the lowest `heldout` after epoch 0 is marked.
    """
    fig = Figure(figsize=(_WIDTH_INCHES, 4.0), layout="constrained")
    axes = fig.subplots(2, 3, sharex=True).ravel()
    epoch = history["epoch"]
    trained = history[epoch > 0]
    best = trained.loc[trained["heldout"].idxmin(), "epoch"]
    for ax, (term, name) in zip(axes, LOSS_NAMES.items(), strict=False):
        ax.plot(epoch, history[term], color=_BLUE, label="training")
        if f"heldout_{term}" in history:
            ax.plot(epoch, history[f"heldout_{term}"], "--", color=_ORANGE, label="held-out images")
        ax.set_title(name)
    axes[0].legend()
    axes[5].plot(epoch, history["heldout"], "--", color=_ORANGE)
    axes[5].set_title(f"held-out $L_{{sep}} + \\alpha L_{{mar}}$\n(epoch {best:g} is kept)")
    for ax in axes:
        ax.axvline(best, color="0.4", linestyle=":")
    for ax in axes[3:]:
        ax.set_xlabel("epoch")
    for ax in (axes[0], axes[3]):
        ax.set_ylabel("loss, mean over cells")
    return fig


@_styled
def scale_factors(w_normal: Any, w_synthetic: Any) -> Figure:
    """Return the distribution of w_i0 over normal and synthetic cells, a panel a modality.

    Args:
        w_normal: (N, 2) scale factors of normal cells, columns ("pcd", "rgb").
        w_synthetic: (N, 2) those of synthetic anomalies.
    """
    fig = Figure(figsize=(_WIDTH_INCHES, 2.6), layout="constrained")
    axes = fig.subplots(1, 2, sharex=True)
    bins = np.linspace(1 / math.e, math.e, 61)
    for column, (ax, mod) in enumerate(zip(axes, MODALITY_NAMES, strict=True)):
        for kind, w in (("normal", w_normal), ("anomalous", w_synthetic)):
            colour, line = _OF_CLASS[kind]
            values = np.asarray(w)[:, column]
            shared = {"bins": bins, "density": True, "color": colour}
            name = "synthetic anomalies" if kind == "anomalous" else "normal cells"
            ax.hist(values, histtype="stepfilled", alpha=0.25, **shared)
            ax.hist(values, histtype="step", linestyle=line, label=name, **shared)
        ax.axvline(1, color="0.3", linestyle=":")
        ax.set_title(MODALITY_NAMES[mod])
        ax.set_xlabel("scale factor $w_{i,0}$")
        ax.set_xticks([1 / math.e, 1, 2, math.e], ["1/e", "1", "2", "e"])
    axes[0].set_ylabel("density")
    axes[1].legend()
    return fig


@_styled
def scale_curve(history: pd.DataFrame) -> Figure:
    """Return mean w_i0 and its spread over the epochs, by class, a panel a modality.

    Args:
        history: columns `epoch` and, for both modalities, `w_normal_pcd`,
            `w_synthetic_pcd` (means over held-out cells), `w_std_normal_pcd`,
            `w_std_synthetic_pcd` (standard deviations).
    """
    fig = Figure(figsize=(_WIDTH_INCHES, 2.6), layout="constrained")
    axes = fig.subplots(1, 2, sharex=True, sharey=True)
    for ax, mod in zip(axes, MODALITY_NAMES, strict=True):
        for side, kind in (("normal", "normal"), ("synthetic", "anomalous")):
            colour, line = _OF_CLASS[kind]
            mean, spread = history[f"w_{side}_{mod}"], history[f"w_std_{side}_{mod}"]
            ax.fill_between(history["epoch"], mean - spread, mean + spread, color=colour, alpha=0.2)
            ax.plot(history["epoch"], mean, linestyle=line, color=colour, label=side)
        ax.axhline(1, color="0.3", linestyle=":")
        ax.set_title(MODALITY_NAMES[mod])
        ax.set_xlabel("epoch")
        ax.set_yticks([1 / math.e, 1, 2, math.e], ["1/e", "1", "2", "e"])
        ax.set_ylim(0.3, 2.8)
    axes[0].set_ylabel("$w_{i,0}$: mean, one\nstandard deviation")
    axes[1].legend()
    return fig


@_styled
def sigma_curve(history: pd.DataFrame) -> Figure:
    """Return the influence sigma of each modality over the epochs.

    Args:
        history: columns `epoch`, `sigma_pcd`, `sigma_rgb`.
    """
    fig, ax = _axes("epoch", "influence $\\sigma$ (sum 1)")
    for mod, name in MODALITY_NAMES.items():
        colour, line, _ = _OF_MODALITY[mod]
        values = history[f"sigma_{mod}"]
        ax.plot(history["epoch"], values, color=colour, linestyle=line, label=name)
    ax.set_ylim(0, 1)
    ax.legend()
    return fig


# ---------------------------------------------------------------- results


@_styled
def score_maps(
    samples: Sequence[Any],
    maps: Mapping[str, Sequence[Any]],
    titles: Sequence[str],
    is_shared: bool = False,
    label: str = "score",
) -> Figure:
    """Return image, truth and score maps, a row a scan, a column a method.

    Args:
        samples: N scans.
        maps: method -> N maps (h, w); their size may differ from the scans'.
        titles: N row labels.
        is_shared: whether one colour scale serves all methods. Otherwise each method has
            its own, since scores of different methods have different units; in either case
            all rows share it.
        label: below the colour bars, what the maps show.

    Returns:
        N x (2 + methods) panels. A scale runs from the lowest score to the highest one.
    """
    stacks = {name: [np.asarray(one) for one in column] for name, column in maps.items()}
    limits = {
        name: (min(float(one.min()) for one in column), max(float(one.max()) for one in column))
        for name, column in stacks.items()
    }
    if is_shared:
        lows, highs = zip(*limits.values(), strict=True)
        limits = dict.fromkeys(limits, (min(lows), max(highs)))
    fig, axes = _panels(len(samples), 2 + len(maps))
    for row, sample in enumerate(samples):
        axes[row, 0].imshow(sample.rgb)
        axes[row, 1].imshow(sample.mask, cmap="gray", vmin=0, vmax=1)
        height, width = sample.mask.shape
        for ax, name in zip(axes[row, 2:], stacks, strict=True):
            low, high = limits[name]
            # In the scan's own pixels, so that the outline fits whatever the map's size.
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            ax.imshow(stacks[name][row], vmin=low, vmax=high, extent=extent)
            _outline(ax, sample.mask)
    for ax, title in zip(axes[0], ["image", "truth", *stacks], strict=True):
        ax.set_title(title)
    _label_rows(axes, titles)
    if is_shared:
        _colour_bar(fig, axes, Normalize(*next(iter(limits.values()))), label)
    else:
        for column, name in enumerate(stacks, start=2):
            norm = Normalize(*limits[name])
            _colour_bar(fig, axes[:, column], norm, label, location="bottom")
    return fig


def method_dots(results: pd.DataFrame, value: str = "i_auroc", error: str = "se") -> Figure:
    """Return a metric of every method, a panel a category.

    Args:
        results: columns `method`, `category`, `value` and, where it is known, `error`; one
            row a pair. Methods are drawn in the order they come in.
        value: the column with the metric, in [0, 1].
        error: the column with its standard error.
    """
    return _dots(results, "category", value, error)


def defect_dots(results: pd.DataFrame, value: str = "i_auroc", error: str = "se") -> Figure:
    """Return a metric of every method, a panel a kind of defect.

    Args:
        results: columns `method`, `defect`, `value` and, where it is known, `error`.
        value: the column with the metric, in [0, 1].
        error: the column with its standard error.
    """
    return _dots(results, "defect", value, error)


@_styled
def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Return ROC curves of methods.

    Args:
        curves: method -> (false positive rate, true positive rate).
    """
    fig, ax = _axes("false positive rate", "true positive rate", size=(4.2, 3.6))
    for (name, (fpr, tpr)), (colour, line) in zip(curves.items(), _line_styles(), strict=False):
        ax.plot(fpr, tpr, color=colour, linestyle=line, label=name)
    ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
    ax.set_aspect("equal")
    ax.legend(loc="lower right")
    return fig


@_styled
def pro_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], limits: Sequence[float] = (0.3, 0.01)
) -> Figure:
    """Return per-region overlap over false positive rate, a panel a limit of AUPRO.

    AUPRO is the area below the curve left of the dotted line, divided by the limit. Curves
    of few points show their points.

    Args:
        curves: method or protocol -> (fpr, pro) of `g2sf_lib.evaluation.pro_curve`.
        limits: false positive rates where the areas end.
    """
    fig = Figure(figsize=(_WIDTH_INCHES, 2.9), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(limits)))
    for ax, limit in zip(axes, limits, strict=True):
        for (name, (fpr, pro)), (colour, line) in zip(curves.items(), _line_styles(), strict=False):
            fpr, pro = np.asarray(fpr), np.asarray(pro)
            shown = _within(fpr, 1.25 * limit)
            marker = "o" if len(fpr) <= 200 else None
            fpr, pro = fpr[shown], pro[shown]
            ax.plot(fpr, pro, line, color=colour, marker=marker, markersize=3, label=name)
        ax.axvline(limit, color="0.3", linestyle=":")
        ax.set_xlim(0, 1.2 * limit)
        ax.set_ylim(0, 1.02)
        ax.set_title(f"AUPRO at {limit:.0%}")
        ax.set_xlabel("false positive rate")
    axes[0].set_ylabel("per-region overlap")
    axes[0].legend(loc="lower right")
    return fig


# ---------------------------------------------------------------- parts of figures


def height_mm(xyz: np.ndarray) -> np.ndarray:
    """Return (H, W) height above the farthest point in mm, NaN where there is no point."""
    depth = np.where((xyz != 0).any(axis=-1), xyz[..., 2], np.nan) * MM
    if np.isnan(depth).all():
        raise ValueError("xyz holds no point; expected at least one pixel that is not zero")
    # A percentile, since one stray point would squeeze all others into one colour.
    return np.clip(np.nanpercentile(depth, 99.8) - depth, 0, None)


def _shaded(height: np.ndarray, norm: Normalize) -> np.ndarray:
    """Return (H, W, 4): height as colour, lit from the upper left; white where unknown."""
    known = np.isfinite(height)
    filled = np.where(known, height, 0.0)
    light = LightSource(azdeg=315, altdeg=50)
    colours = matplotlib.colormaps[COLOUR_MAP](norm(filled))[..., :3]
    lit = light.shade_rgb(colours, filled, vert_exag=1.0, dx=0.5, dy=0.5, blend_mode="soft")
    return np.dstack([np.where(known[..., None], lit, 1.0), np.ones(height.shape)])


def _relief_mm(xyz: np.ndarray) -> np.ndarray:
    """Return (h, w) height in mm over the plane that fits best, NaN where there is no point."""
    rows, columns = np.indices(xyz.shape[:2])
    known = (xyz != 0).any(axis=-1)
    if known.sum() < 3:
        return np.full(xyz.shape[:2], np.nan)
    terms = np.stack([rows, columns, np.ones_like(rows)], axis=-1).astype(float)
    plane, *_ = np.linalg.lstsq(terms[known], -xyz[known][:, 2].astype(float), rcond=None)
    return np.where(known, -xyz[..., 2] - terms @ plane, np.nan) * MM


def _window(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Return the square around a mask, with a margin, inside the image."""
    if not mask.any():
        raise ValueError("mask is empty; expected a defect")
    rows, columns = np.nonzero(mask)
    half = max(np.ptp(rows), np.ptp(columns)) // 2 + margin
    slices = []
    for places, size in zip((rows, columns), mask.shape, strict=True):
        side = min(2 * half, size)
        start = int(np.clip((places.min() + places.max()) // 2 - half, 0, size - side))
        slices.append(slice(start, start + side))
    return slices[0], slices[1]


def _thinned(points: np.ndarray, values: np.ndarray | None) -> np.ndarray:
    """Return at most `MAX_CLOUD_POINTS` rows that keep the extent and the largest value."""
    if len(points) <= MAX_CLOUD_POINTS:
        return np.arange(len(points))
    outermost = [*points.argmin(axis=0), *points.argmax(axis=0)]
    if values is not None:
        outermost += [int(values.argmin()), int(values.argmax())]
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(points), MAX_CLOUD_POINTS - len(outermost), replace=False)
    return np.unique(np.concatenate([drawn, outermost]))


def _within(fpr: np.ndarray, limit: float) -> np.ndarray:
    """Return places of a rising curve up to one past the limit, at most about 1,000 of them."""
    last = min(int(np.searchsorted(fpr, limit, side="right")) + 1, len(fpr))
    return np.unique(np.linspace(0, last - 1, min(last, 1000)).astype(int))


@_styled
def _dots(results: pd.DataFrame, panel: str, value: str, error: str) -> Figure:
    missing = {"method", panel, value} - set(results.columns)
    if missing:
        raise ValueError(
            f"results lack the columns {sorted(missing)}; they have {sorted(results.columns)}"
        )
    methods = list(dict.fromkeys(results["method"]))
    panels = list(dict.fromkeys(results[panel]))
    num_columns = min(len(panels), 3)
    num_rows = math.ceil(len(panels) / num_columns)
    height = num_rows * (0.75 + 0.2 * len(methods))
    fig = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    axes = fig.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, panels, strict=False):
        rows = results[results[panel] == name].set_index("method").reindex(methods)
        spread = rows[error].fillna(0) if error in rows else None
        best = rows[value].max()
        for place, (method, score) in enumerate(rows[value].items()):
            width = None if spread is None else spread[method]
            is_best = score == best
            ax.errorbar(
                score,
                place,
                xerr=width,
                fmt="D" if is_best else "o",
                markersize=5,
                color=_VERMILLION if is_best else _BLUE,
                elinewidth=1,
                capsize=2,
            )
        ax.set_title(str(name))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    words = METRIC_NAMES.get(value, value)
    bars = ", bars: one standard error" if error in results else ""
    fig.supxlabel(f"{words} (diamond: highest{bars})", fontsize=9)
    return fig


def _axes(xlabel: str, ylabel: str, size: tuple[float, float] = (4.8, 2.8)):
    """Return a figure and its only axes."""
    fig = Figure(figsize=size, layout="constrained")
    ax = fig.subplots()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return fig, ax


def _panels(num_rows: int, num_columns: int):
    """Return a figure and (num_rows, num_columns) square axes for images, without ticks."""
    side = min(1.9, _WIDTH_INCHES / num_columns)
    size = (side * num_columns + 0.6, side * num_rows + 0.5)
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(num_rows, num_columns, squeeze=False)
    for ax in axes.flat:
        _no_ticks(ax)
    return fig, axes


def _no_ticks(ax) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _label_rows(axes: np.ndarray, labels: Sequence[str]) -> None:
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)


def _outline(ax, mask: np.ndarray) -> None:
    """Draw a line around a mask: dark below light, so that it shows on any ground."""
    around = ndimage.binary_dilation(mask, iterations=3)  # outside, or it would hide a thin cut
    if around.any() and not around.all():
        ax.contour(around, levels=[0.5], colors="black", linewidths=1.6)
        ax.contour(around, levels=[0.5], colors=[_ORANGE], linewidths=0.8)


def _colour_bar(fig: Figure, axes, norm: Normalize, label: str, location: str = "right") -> None:
    scale = matplotlib.cm.ScalarMappable(norm=norm, cmap=COLOUR_MAP)
    bar = fig.colorbar(scale, ax=list(np.ravel(axes)), location=location, shrink=0.85, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _line_styles() -> list[tuple[str, str]]:
    colours = sns.color_palette("colorblind").as_hex()
    return list(zip(colours, ["-", "--", "-.", ":"] * 3, strict=False))


def _rgba(colour: str) -> np.ndarray:
    return np.array(matplotlib.colors.to_rgba(colour))


# ---------------------------------------------------------------- quantities of cells and pixels


@_styled
def quantity_maps(
    samples: Sequence[Any], maps: Mapping[str, Sequence[Any]], titles: Sequence[str]
) -> Figure:
    """Return quantities of different kinds beside the image, a row a scan, a column a quantity.

    Args:
        samples: N scans.
        maps: name, with its unit -> N maps (h, w); their size may differ from the scans'.
        titles: N row labels.

    Returns:
        N x (1 + quantities) panels. All rows of a quantity share its colour scale.
    """
    fig, axes = _panels(len(samples), 1 + len(maps))
    axes[0, 0].set_title("image")
    for row, sample in enumerate(samples):
        axes[row, 0].imshow(sample.rgb)
        _outline(axes[row, 0], sample.mask)
    for column, (name, values) in enumerate(maps.items(), start=1):
        norm = Normalize(
            min(float(np.min(v)) for v in values), max(float(np.max(v)) for v in values)
        )
        axes[0, column].set_title(name)
        for row, (sample, value) in enumerate(zip(samples, values, strict=True)):
            height, width = sample.mask.shape
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes[row, column].imshow(np.asarray(value), norm=norm, extent=extent)
            _outline(axes[row, column], sample.mask)
        _colour_bar(fig, axes[:, column], norm, "", location="bottom")
    _label_rows(axes, titles)
    return fig


@_styled
def cell_classes(
    samples: Sequence[Any],
    classes: Sequence[Mapping[str, Any]],
    grid: tuple[int, int],
    titles: Sequence[str],
) -> Figure:
    """Return images with their cells in classes: a colour and a sign a class.

    Args:
        samples: N scans.
        classes: a dict a scan, the same names in each: name -> (rows * columns,) bool. A cell of
            two classes is drawn as the later one.
        grid: (rows, columns).
        titles: N titles.

    Returns:
        N panels with one legend.
    """
    fig, axes = _panels(1, len(samples))
    colours, signs = [_BLUE, _VERMILLION, _GREEN, _PURPLE], ["o", "x", "s", "^"]
    rows, columns = (part.ravel() for part in np.indices(grid))
    for ax, sample, of_scan, title in zip(axes[0], samples, classes, titles, strict=True):
        grey = np.repeat(sample.rgb.mean(axis=-1, keepdims=True), 3, axis=-1) / 255
        ax.imshow(0.5 + 0.5 * grey)  # pale, so that signs show
        height, width = sample.mask.shape
        x, y = (columns + 0.5) * width / grid[1] - 0.5, (rows + 0.5) * height / grid[0] - 0.5
        shown = np.full(len(rows), -1)
        for number, member in enumerate(of_scan.values()):
            shown[np.asarray(member, dtype=bool)] = number
        for number, name in enumerate(of_scan):
            places = shown == number
            style = {"s": 7 * 28 / grid[0], "color": colours[number], "marker": signs[number]}
            ax.scatter(x[places], y[places], linewidths=0.8, label=name, **style)
        _outline(ax, sample.mask)
        ax.set_title(title)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, names, loc="outside lower center", ncols=len(names), fontsize=8, markerscale=2
    )
    return fig


@_styled
def axis_shares(shares: Mapping[str, np.ndarray]) -> Figure:
    """Return how much of the directions lies in their leading principal axes.

    Args:
        shares: name -> (D,) share of each axis, falling, with sum 1.

    Returns:
        Cumulated share over the fraction of axes; the diagonal is an even spread.
    """
    fig, ax = _axes("fraction of the principal axes", "share of the directions")
    for (name, values), (colour, line) in zip(shares.items(), _line_styles(), strict=False):
        share = np.concatenate([[0.0], np.cumsum(values)])
        ax.plot(np.linspace(0, 1, len(share)), share, color=colour, linestyle=line, label=name)
    ax.plot([0, 1], [0, 1], color="0.4", linestyle=":", linewidth=1, label="all directions alike")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.legend(loc="lower right")
    return fig


# ---------------------------------------------------------------- what a run takes


@_styled
def scale_curves(rows: pd.DataFrame, limit_mb: float | None = None) -> Figure:
    """Return time (both axes logarithmic) and memory of every step over the number of cells.

    Args:
        rows: columns ``step`` (its name), ``cells``, ``seconds``, ``peak_mb`` (may be missing),
            ``kind``: "measured" rows have filled markers, "extrapolated" ones hollow markers.
        limit_mb: memory to stay below, drawn as a line.

    Returns:
        Two panels: seconds, and peak memory in GB from zero.
    """
    fig = Figure(figsize=(_WIDTH_INCHES, 3.6), layout="constrained")
    axes = fig.subplots(1, 2)
    markers = ["o", "s", "^", "D", "v", "P"]
    handles = []
    steps = rows.groupby("step", sort=False)
    for order, ((name, of_step), style) in enumerate(zip(steps, _line_styles(), strict=False)):
        colour, line = style
        look = {"color": colour, "linestyle": line, "linewidth": 1}
        point = {"marker": markers[order % len(markers)], "markersize": 6}
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


@_styled
def coreset_quality(rows: pd.DataFrame) -> Figure:
    """Return coverage radius, and the time that it took, of each kind of coreset over the size.

    Args:
        rows: columns ``coreset`` (its name), ``fraction`` of the paper's size, ``radius`` in
            units of the features, ``seconds`` (0: at once, left out of the second panel).

    Returns:
        Two panels; a lower radius is the better coreset.
    """
    fig = Figure(figsize=(_WIDTH_INCHES, 2.8), layout="constrained")
    axes = fig.subplots(1, 2)
    markers = ["o", "s", "^", "D"]
    kinds = rows.groupby("coreset", sort=False)
    for (name, of_kind), marker, (colour, line) in zip(
        kinds, markers, _line_styles(), strict=False
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
