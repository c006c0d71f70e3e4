"""Scans: height and defects, and scores and other quantities on the scans they belong to.

A scan has `rgb` (H, W, 3) uint8, `xyz` (H, W, 3) in metres, zero where there is no point, and
`mask` (H, W) bool: `g2sf_lib.datasets.Sample` is one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LightSource, LogNorm, Normalize
from matplotlib.figure import Figure

from g2sf_lib.plots import style

MAX_COLUMNS = 8  # narrower panels would hide a small defect
_TOP = 2.0  # where colours of scores end; 1 is the highest of normal scans
_SCORES = (Normalize(0, _TOP), None)
_FACTORS = (LogNorm(1 / np.e, np.e), "PuOr_r")  # of w: white is 1, orange stretches a distance


def _scale_of(maps: Sequence[Any]) -> Normalize:
    """Return the scale from the lowest to the highest value of some maps."""
    return Normalize(min(float(np.min(x)) for x in maps), max(float(np.max(x)) for x in maps))


def _on_scan(ax, values: Any, mask: np.ndarray, norm, colours=None, width: float = 1.0) -> None:
    """Draw a map in the scan's own pixels, whatever its size, with the truth outlined."""
    height, across = mask.shape
    extent = (-0.5, across - 0.5, height - 0.5, -0.5)
    ax.imshow(np.asarray(values), norm=norm, cmap=colours, extent=extent)
    style.outline(ax, mask, width)


@style.styled
def score_maps(
    samples: Sequence[Any],
    maps: Mapping[str, Sequence[Any]],
    titles: Sequence[str],
    label: str = "score",
) -> Figure:
    """Return image, truth and score maps on one colour scale, a row a scan, a column a method.

    `maps` are method -> N maps (h, w), of what `label` says; their size may differ from the scans'.
    """
    every = [one for column in maps.values() for one in column]
    norm = _scale_of(every)
    fig, axes = style.image_panels(len(samples), 2 + len(maps))
    for row, sample in zip(axes, samples, strict=True):
        row[0].imshow(sample.rgb)
        row[1].imshow(sample.mask, cmap="gray", vmin=0, vmax=1)
    for column, values in enumerate(maps.values(), start=2):
        for ax, sample, value in zip(axes[:, column], samples, values, strict=True):
            _on_scan(ax, value, sample.mask, norm)
    for ax, title in zip(axes[0], ["image", "truth", *maps], strict=True):
        ax.set_title(title)
    style.label_rows(axes, titles)
    style.colour_bar(fig, axes, norm, label)
    return fig


@style.styled
def quantity_maps(
    samples: Sequence[Any], maps: Mapping[str, Sequence[Any]], titles: Sequence[str]
) -> Figure:
    """Return quantities beside the image, a row a scan, a column a quantity with its own scale.

    `maps` are name, with its unit -> N maps (h, w).
    """
    fig, axes = style.image_panels(len(samples), 1 + len(maps))
    for ax, sample in zip(axes[:, 0], samples, strict=True):
        ax.imshow(sample.rgb)
        style.outline(ax, sample.mask)
    for column, (name, values) in enumerate(maps.items(), start=1):
        norm = _scale_of(values)
        for ax, sample, value in zip(axes[:, column], samples, values, strict=True):
            _on_scan(ax, value, sample.mask, norm)
        axes[0, column].set_title(name)
        style.colour_bar(fig, axes[:, column], norm, "", location="bottom")
    axes[0, 0].set_title("image")
    style.label_rows(axes, titles)
    return fig


@style.styled
def cell_classes(
    samples: Sequence[Any],
    classes: Sequence[Mapping[str, Any]],
    grid: tuple[int, int],
    titles: Sequence[str],
) -> Figure:
    """Return images with their cells in classes: a colour and a sign a class.

    `classes` is a dict a scan, the same names in each: name -> (rows * columns of `grid`,) bool. A
    cell of two classes is drawn as the later one.
    """
    fig, axes = style.image_panels(1, len(samples))
    colours = [style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE]
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
            look = {"s": 7 * 28 / grid[0], "color": colours[number], "marker": "oxs^"[number]}
            ax.scatter(x[places], y[places], linewidths=0.8, label=name, **look)
        style.outline(ax, sample.mask)
        ax.set_title(title)
    handles, names = axes[0, 0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": len(names), "markerscale": 2}
    fig.legend(handles, names, fontsize=8, **place)
    return fig


@style.styled
def method_panels(
    samples: Sequence[Any],
    maps: Mapping[str, Sequence[Any]],
    titles: Sequence[str],
    factors: Sequence[str] = (),
) -> Figure:
    """Return what every method makes of some scans, a row a scan, as Figures 1, 5 and 7.

    Panels are cut to the square around the object: image, shaded height of the points, truth, and
    the maps. What is more than `MAX_COLUMNS` wide goes on in a second block of N rows, below.

    Args:
        samples: N scans.
        maps: method -> N maps (h, w) of any size, in which 0 is an ordinary normal pixel and 1 the
            highest one of normal scans.
        titles: N row labels; a long one is broken into lines.
        factors: which of the maps are scale factors w, with a colour bar from 1/e to e.
    """
    names = ["image", "points", "truth", *maps]
    num_blocks = -(-len(names) // MAX_COLUMNS)
    fig, axes = style.image_panels(num_blocks * len(samples), -(-len(names) // num_blocks))
    for row, (sample, title) in enumerate(zip(samples, titles, strict=True)):
        of_scan = axes[row :: len(samples)]  # (num_blocks, columns)
        label = "\n".join(textwrap.fill(line, 15) for line in title.splitlines())
        for ax in of_scan[:, 0]:
            ax.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
        height = height_mm(sample.xyz)
        of_scan.flat[0].imshow(sample.rgb)
        of_scan.flat[1].imshow(shaded(height, Normalize(0, float(np.nanmax(height)))))
        of_scan.flat[2].imshow(sample.mask, cmap="gray", vmin=0, vmax=1)
        for ax, (name, values) in zip(of_scan.flat[3:], maps.items(), strict=False):
            scale = _FACTORS if name in factors else _SCORES
            _on_scan(ax, values[row], sample.mask, *scale, width=0.5)
        y, x = np.nonzero(np.isfinite(height))
        half = 0.54 * (max(np.ptp(y), np.ptp(x)) + 1)  # with a margin of 4 % on every side
        x, y = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
        for ax in of_scan.flat[: len(names)]:
            ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half))  # rows run down
        for ax in of_scan.flat[len(names) :]:
            ax.set_visible(False)
    for ax, name in zip(axes[:: len(samples)].flat, names, strict=False):
        ax.set_title(textwrap.fill(name, 11, break_long_words=False), fontsize=8)
    if factors:  # below the other bar, which is added later
        ends = {1 / np.e: "w = 1/e, shrinks", 1: "1 = Euclidean", np.e: "e, stretches"}
        _long_bar(fig, axes, *_FACTORS, ends, "neither")
    ends = {0: "0 = ordinary normal pixel", 1: "1 = highest of normal scans"}
    _long_bar(fig, axes, *_SCORES, ends | {_TOP: f"{_TOP:g} and above"}, "max")
    return fig


def _long_bar(fig, axes, norm, colours, ticks: Mapping[float, str], extend: str) -> None:
    """Draw a colour bar below all panels, with a mark at 1."""
    scale = matplotlib.cm.ScalarMappable(norm=norm, cmap=colours)
    place = {"location": "bottom", "aspect": 50, "shrink": 0.7, "pad": 0.1 / len(axes)}
    bar = fig.colorbar(scale, ax=list(axes.flat), extend=extend, **place)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8)
    bar.ax.axvline(1, color="black", linewidth=3)
    bar.ax.axvline(1, color="white", linewidth=1)


@style.styled
def defect_gallery(samples: Sequence[Any], titles: Sequence[str]) -> Figure:
    """Return a column a defective scan: whole, near its defect, and the relief there."""
    fig, axes = style.image_panels(3, len(samples))
    windows = [square_around(sample.mask) for sample in samples]
    reliefs = [_relief_mm(one.xyz[window]) for one, window in zip(samples, windows, strict=True)]
    reach = max(float(np.nanpercentile(np.abs(relief), 98)) for relief in reliefs)
    norm = Normalize(-reach, reach)
    for column, sample, window, relief in zip(axes.T, samples, windows, reliefs, strict=True):
        column[0].imshow(sample.rgb)
        column[1].imshow(sample.rgb[window])
        column[2].imshow(relief, norm=norm)
        for ax, mask in zip(column, [sample.mask, *[sample.mask[window]] * 2], strict=True):
            style.outline(ax, mask)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    style.label_rows(axes, ["image", "near the defect", "relief there"])
    style.colour_bar(fig, axes[2], norm, "height over\nlocal plane (mm)")
    return fig


def square_around(mask: np.ndarray, margin: int = 24) -> tuple[slice, slice]:
    """Return the square around a mask, with a margin in px, inside the image."""
    places = np.argwhere(mask)
    low, high = places.min(axis=0), places.max(axis=0)
    sides = np.minimum(2 * ((high - low).max() // 2 + margin), mask.shape)
    starts = np.clip((low + high) // 2 - sides // 2, 0, mask.shape - sides)
    (top, left), (bottom, right) = starts.tolist(), (starts + sides).tolist()
    return slice(top, bottom), slice(left, right)


def height_mm(xyz: np.ndarray) -> np.ndarray:
    """Return (H, W) height above the farthest point in mm, NaN where there is no point."""
    depth = np.where((xyz != 0).any(axis=-1), xyz[..., 2], np.nan) * style.MM
    # A percentile, since one stray point would squeeze all others into one colour.
    return np.clip(np.nanpercentile(depth, 99.8) - depth, 0, None)


def shaded(height: np.ndarray, norm: Normalize) -> np.ndarray:
    """Return (H, W, 4): height as colour, lit from the upper left; white where unknown."""
    known = np.isfinite(height)
    filled = np.where(known, height, 0.0)
    colours = matplotlib.colormaps[style.COLOUR_MAP](norm(filled))[..., :3]
    light = LightSource(azdeg=315, altdeg=50)
    lit = light.shade_rgb(colours, filled, vert_exag=1.0, dx=0.5, dy=0.5, blend_mode="soft")
    return np.dstack([np.where(known[..., None], lit, 1.0), np.ones(height.shape)])


def _relief_mm(xyz: np.ndarray) -> np.ndarray:
    """Return (h, w) height in mm over the plane that fits best, NaN where there is no point."""
    rows, columns = np.indices(xyz.shape[:2])
    known = (xyz != 0).any(axis=-1)
    terms = np.stack([rows, columns, np.ones_like(rows)], axis=-1).astype(float)
    plane, *_ = np.linalg.lstsq(terms[known], -xyz[known][:, 2].astype(float), rcond=None)
    return np.where(known, -xyz[..., 2] - terms @ plane, np.nan) * style.MM
