"""Scores, and other quantities of cells and pixels, on the scans that they belong to."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from g2sf_lib.plots.scans import height_mm, shaded
from g2sf_lib.plots.style import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILLION,
    colour_bar,
    image_panels,
    label_rows,
    outline,
    styled,
)

MAX_COLUMNS = 8  # narrower panels would hide a small defect
_FACTORS = (LogNorm(1 / np.e, np.e), "PuOr_r")  # of w: white is 1, orange stretches a distance


def _limits(maps: Sequence[Any]) -> tuple[float, float]:
    """Return the lowest and the highest value of some maps."""
    return min(float(np.min(one)) for one in maps), max(float(np.max(one)) for one in maps)


def _on_scan(ax, values: Any, mask: np.ndarray, norm, colours=None, width: float = 1.0) -> None:
    """Draw a map in the scan's own pixels, whatever its size, with the truth outlined."""
    height, across = mask.shape
    extent = (-0.5, across - 0.5, height - 0.5, -0.5)
    ax.imshow(np.asarray(values), norm=norm, cmap=colours, extent=extent)
    outline(ax, mask, width)


@styled
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
        is_shared: whether one colour scale serves all methods, not only all rows of each.
        label: below the colour bars, what the maps show.
    """
    every = [one for column in maps.values() for one in column]
    norms = {name: Normalize(*_limits(every if is_shared else maps[name])) for name in maps}
    fig, axes = image_panels(len(samples), 2 + len(maps))
    for row, sample in enumerate(samples):
        axes[row, 0].imshow(sample.rgb)
        axes[row, 1].imshow(sample.mask, cmap="gray", vmin=0, vmax=1)
        for ax, name in zip(axes[row, 2:], maps, strict=True):
            _on_scan(ax, maps[name][row], sample.mask, norms[name])
    for ax, title in zip(axes[0], ["image", "truth", *maps], strict=True):
        ax.set_title(title)
    label_rows(axes, titles)
    if is_shared:
        colour_bar(fig, axes, next(iter(norms.values())), label)
    else:
        for column, norm in enumerate(norms.values(), start=2):
            colour_bar(fig, axes[:, column], norm, label, location="bottom")
    return fig


@styled
def quantity_maps(
    samples: Sequence[Any], maps: Mapping[str, Sequence[Any]], titles: Sequence[str]
) -> Figure:
    """Return quantities of different kinds beside the image, a row a scan, a column a quantity.

    Args:
        samples: N scans.
        maps: name, with its unit -> N maps (h, w), which share a colour scale.
        titles: N row labels.
    """
    fig, axes = image_panels(len(samples), 1 + len(maps))
    for row, sample in enumerate(samples):
        axes[row, 0].imshow(sample.rgb)
        outline(axes[row, 0], sample.mask)
    for column, (name, values) in enumerate(maps.items(), start=1):
        norm = Normalize(*_limits(values))
        for ax, sample, value in zip(axes[:, column], samples, values, strict=True):
            _on_scan(ax, value, sample.mask, norm)
        axes[0, column].set_title(name)
        colour_bar(fig, axes[:, column], norm, "", location="bottom")
    axes[0, 0].set_title("image")
    label_rows(axes, titles)
    return fig


@styled
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
    """
    fig, axes = image_panels(1, len(samples))
    colours, signs = [BLUE, VERMILLION, GREEN, PURPLE], ["o", "x", "s", "^"]
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
        outline(ax, sample.mask)
        ax.set_title(title)
    handles, names = axes[0, 0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": len(names), "markerscale": 2}
    fig.legend(handles, names, fontsize=8, **place)
    return fig


@styled
def method_panels(
    samples: Sequence[Any],
    maps: Mapping[str, Sequence[Any]],
    titles: Sequence[str],
    top: float = 2.0,
    factors: Sequence[str] = (),
) -> Figure:
    """Return what every method makes of some scans, a row a scan, as Figures 1, 5 and 7.

    Each score is on the scale of its own normal scans, so that one colour bar serves all: above
    its mark at 1 nothing normal was seen. (In the paper, colours end at each map's own extremes.)

    Args:
        samples: N scans.
        maps: method -> N maps (h, w), scaled such that 0 is an ordinary normal pixel and 1 the
            highest one of normal scans; their size may differ from the scans'.
        titles: N row labels, category and kind of defect; a long one is broken into lines.
        top: where the colours end, above 1; higher scores look alike.
        factors: which of the maps are scale factors w, not scores: they have a colour bar of
            their own, from 1/e to e, as far below 1 as above it, in equal ratios.

    Returns:
        N x (3 + methods) panels, cut to the square around the object: image, shaded height of
        the points (each scan's own scale), ground truth, and the maps with the truth outlined.
        What is more than `MAX_COLUMNS` wide goes on in a second block of N rows, below.
    """
    names = ["image", "points", "truth", *maps]
    num_blocks = math.ceil(len(names) / MAX_COLUMNS)
    fig, axes = image_panels(num_blocks * len(samples), math.ceil(len(names) / num_blocks))
    for row, (sample, title) in enumerate(zip(samples, titles, strict=True)):
        of_scan = axes[row :: len(samples)]  # (num_blocks, columns)
        for ax in of_scan.flat[len(names) :]:
            ax.set_visible(False)
        label = "\n".join(textwrap.fill(line, 15) for line in title.splitlines())
        for ax in of_scan[:, 0]:
            ax.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
        height = height_mm(sample.xyz)
        of_scan.flat[0].imshow(sample.rgb)
        of_scan.flat[1].imshow(shaded(height, Normalize(0, float(np.nanmax(height)))))
        of_scan.flat[2].imshow(sample.mask, cmap="gray", vmin=0, vmax=1)
        for ax, (name, values) in zip(of_scan.flat[3:], maps.items(), strict=False):
            scale = _FACTORS if name in factors else (Normalize(0, top), None)
            _on_scan(ax, values[row], sample.mask, *scale, width=0.5)
        left, right, upper, lower = _square_around(height)
        for ax in of_scan.flat[: len(names)]:
            ax.set(xlim=(left, right), ylim=(lower, upper))  # rows run down
    for ax, name in zip(axes[:: len(samples)].flat, names, strict=False):
        ax.set_title(textwrap.fill(name, 11, break_long_words=False), fontsize=8)
    if factors:  # below the other bar, which is added later
        ends = {1 / np.e: "w = 1/e, shrinks", 1: "1 = Euclidean", np.e: "e, stretches"}
        _long_bar(fig, axes, *_FACTORS, ends, "neither")
    ends = {0: "0 = ordinary normal pixel", 1: "1 = highest of normal scans"}
    _long_bar(fig, axes, Normalize(0, top), None, ends | {top: f"{top:g} and above"}, "max")
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


def _square_around(height: np.ndarray, margin: float = 0.04) -> tuple[float, float, float, float]:
    """Return left, right, top and bottom, in px, of the square around an object, with a margin.

    Args:
        height: (H, W), NaN where there is no point.
        margin: on every side, as a share of the object's longer side.
    """
    rows, columns = np.nonzero(np.isfinite(height))
    half = (0.5 + margin) * (max(np.ptp(rows), np.ptp(columns)) + 1)
    x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    return x - half, x + half, y - half, y + half
