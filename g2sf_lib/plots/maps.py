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
    fig, axes = image_panels(len(samples), 2 + len(maps))
    for row, sample in enumerate(samples):
        axes[row, 0].imshow(sample.rgb)
        axes[row, 1].imshow(sample.mask, cmap="gray", vmin=0, vmax=1)
        height, width = sample.mask.shape
        for ax, name in zip(axes[row, 2:], stacks, strict=True):
            low, high = limits[name]
            # In the scan's own pixels, so that the outline fits whatever the map's size.
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            ax.imshow(stacks[name][row], vmin=low, vmax=high, extent=extent)
            outline(ax, sample.mask)
    for ax, title in zip(axes[0], ["image", "truth", *stacks], strict=True):
        ax.set_title(title)
    label_rows(axes, titles)
    if is_shared:
        colour_bar(fig, axes, Normalize(*next(iter(limits.values()))), label)
    else:
        for column, name in enumerate(stacks, start=2):
            norm = Normalize(*limits[name])
            colour_bar(fig, axes[:, column], norm, label, location="bottom")
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


@styled
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
    fig, axes = image_panels(len(samples), 1 + len(maps))
    axes[0, 0].set_title("image")
    for row, sample in enumerate(samples):
        axes[row, 0].imshow(sample.rgb)
        outline(axes[row, 0], sample.mask)
    for column, (name, values) in enumerate(maps.items(), start=1):
        norm = Normalize(
            min(float(np.min(v)) for v in values), max(float(np.max(v)) for v in values)
        )
        axes[0, column].set_title(name)
        for row, (sample, value) in enumerate(zip(samples, values, strict=True)):
            height, width = sample.mask.shape
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes[row, column].imshow(np.asarray(value), norm=norm, extent=extent)
            outline(axes[row, column], sample.mask)
        colour_bar(fig, axes[:, column], norm, "", location="bottom")
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

    Returns:
        N panels with one legend.
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
    fig.legend(
        handles, names, loc="outside lower center", ncols=len(names), fontsize=8, markerscale=2
    )
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

    Scores of different methods have different units. Here each is given on the scale of its own
    normal scans, so that one colour bar serves all: above its mark at 1 nothing normal was seen.
    Scale factors have a unit of their own and a colour bar of their own.

    Args:
        samples: N scans.
        maps: method -> N maps (h, w), scaled such that 0 is an ordinary normal pixel and 1 the
            highest one of normal scans; their size may differ from the scans'.
        titles: N row labels, category and kind of defect; a long one is broken into lines.
        top: where the colours end; higher scores look alike.
        factors: which of the maps are scale factors w, not scores: their colours run from 1/e to
            e, as far below 1 as above it, in equal ratios.

    Returns:
        N x (3 + methods) panels, cut to the square around the object: image, shaded height of
        the points (each scan's own scale), ground truth, and the maps with the truth outlined.
        What is more than `MAX_COLUMNS` wide goes on in a second block of N rows, below.

    Raises:
        ValueError: if `top` is not above 1, a method has not one map a scan, or a factor no map.

    Source:
        Figures 1, 5 and 7, whose colours start and end at each map's own extremes.
    """
    if top <= 1:
        raise ValueError(f"top is {top}; expected more than 1, the highest of normal scans")
    for name, values in maps.items():
        if len(values) != len(samples):
            raise ValueError(f"{name} has {len(values)} maps; expected {len(samples)}, one a scan")
    unknown = [name for name in factors if name not in maps]
    if unknown:
        raise ValueError(f"factors are {unknown}; expected some of {list(maps)}")
    scales = {name: _FACTORS if name in factors else (Normalize(0, top), None) for name in maps}
    names = ["image", "points", "truth", *maps]
    num_blocks = math.ceil(len(names) / MAX_COLUMNS)
    num_columns = math.ceil(len(names) / num_blocks)
    fig, axes = image_panels(num_blocks * len(samples), num_columns)
    for row, (sample, title) in enumerate(zip(samples, titles, strict=True)):
        of_scan = axes[row :: len(samples)]  # (num_blocks, num_columns)
        for ax in of_scan.flat[len(names) :]:
            ax.set_visible(False)
        for ax in of_scan[:, 0]:
            label = "\n".join(textwrap.fill(line, 15) for line in title.splitlines())
            ax.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
        height = height_mm(sample.xyz)
        of_scan.flat[0].imshow(sample.rgb)
        of_scan.flat[1].imshow(shaded(height, Normalize(0, float(np.nanmax(height)))))
        of_scan.flat[2].imshow(sample.mask, cmap="gray", vmin=0, vmax=1)
        rows, columns = sample.mask.shape
        extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
        for ax, (name, values) in zip(of_scan.flat[3:], maps.items(), strict=False):
            norm, colours = scales[name]
            ax.imshow(np.asarray(values[row]), norm=norm, cmap=colours, extent=extent)
            outline(ax, sample.mask, width=0.5)
        low_x, high_x, low_y, high_y = _square_around(height)
        for ax in of_scan.flat[: len(names)]:
            ax.set_xlim(low_x, high_x)
            ax.set_ylim(high_y, low_y)
    for ax, name in zip(axes[:: len(samples)].flat, names, strict=False):
        ax.set_title(textwrap.fill(name, 11, break_long_words=False), fontsize=8)
    ends = ["0 = ordinary normal pixel", "1 = highest of normal scans", f"{top:g} and above"]
    bars = [((Normalize(0, top), None), (0, 1, top), ends, "max")]
    if factors:
        ends = ["w = 1/e, shrinks", "1 = Euclidean", "e, stretches"]
        bars.append((_FACTORS, (1 / np.e, 1, np.e), ends, "neither"))
    for (norm, colours), ticks, labels, extend in reversed(bars):  # the last one lies highest
        bar = fig.colorbar(
            matplotlib.cm.ScalarMappable(norm=norm, cmap=colours),
            ax=list(axes.flat),
            location="bottom",
            aspect=50,
            shrink=0.7,
            pad=0.1 / len(axes),
            extend=extend,
        )
        bar.set_ticks(ticks, labels=labels)
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=8)
        bar.ax.axvline(1, color="black", linewidth=3)
        bar.ax.axvline(1, color="white", linewidth=1)
    return fig


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
