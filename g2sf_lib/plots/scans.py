"""Scans as they are: image, height, defects, and what the sensor makes of a depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LightSource, Normalize
from matplotlib.figure import Figure

from g2sf_lib.plots.style import (
    BLUE,
    COLOUR_MAP,
    MM,
    VERMILLION,
    WIDTH_INCHES,
    colour_bar,
    image_panels,
    label_rows,
    no_ticks,
    outline,
    rgba,
    styled,
)


@styled
def scan_gallery(samples: Sequence[Any], titles: Sequence[str]) -> Figure:
    """Return a column a scan: its image, and its height, shaded; masks are outlined.

    Args:
        samples: N scans.
        titles: N titles.

    Returns:
        2 x N panels and one colour bar, height above the farthest point in mm.
    """
    fig, axes = image_panels(2, len(samples))
    heights = [height_mm(sample.xyz) for sample in samples]
    norm = Normalize(0, max(float(np.nanmax(height)) for height in heights))
    for column, (sample, height) in enumerate(zip(samples, heights, strict=True)):
        axes[0, column].imshow(sample.rgb)
        axes[0, column].set_title(titles[column])
        axes[1, column].imshow(shaded(height, norm))
        for ax in axes[:, column]:
            outline(ax, sample.mask)
    label_rows(axes, ["image", "height"])
    colour_bar(fig, axes[1], norm, "height (mm)")
    return fig


@styled
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
    fig, axes = image_panels(3, len(samples))
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
        outline(axes[0, column], sample.mask)
        for ax in axes[1:, column]:
            outline(ax, sample.mask[window])
    label_rows(axes, ["image", "near the defect", "relief there"])
    colour_bar(fig, axes[2], norm, "height over\nlocal plane (mm)")
    return fig


@styled
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
    fig = Figure(figsize=(WIDTH_INCHES, 2.6), layout="constrained")
    axes = fig.subplots(1, 3)
    for ax, image, norm, title in (
        (axes[0], clean, None, "true depth (mm)"),
        (axes[1], error, Normalize(-reach, reach), "measured - true (mm)"),
    ):
        drawn = ax.imshow(image, norm=norm)
        ax.set_title(title)
        no_ticks(ax)
        fig.colorbar(drawn, ax=ax, shrink=0.8)
    axes[1].imshow(np.where(missing[..., None], rgba(VERMILLION), 0.0))
    axes[1].set_xlabel(f"{missing.sum() / np.isfinite(clean).sum():.1%} missing (orange)")
    axes[2].hist(known, bins=60, range=(-1.5 * reach, 1.5 * reach), density=True, color=BLUE)
    axes[2].set_title(f"standard deviation {known.std():.2f} mm")
    axes[2].set_xlabel("measured - true (mm)")
    axes[2].set_ylabel("density (1/mm)")
    return fig


def height_mm(xyz: np.ndarray) -> np.ndarray:
    """Return (H, W) height above the farthest point in mm, NaN where there is no point."""
    depth = np.where((xyz != 0).any(axis=-1), xyz[..., 2], np.nan) * MM
    if np.isnan(depth).all():
        raise ValueError("xyz holds no point; expected at least one pixel that is not zero")
    # A percentile, since one stray point would squeeze all others into one colour.
    return np.clip(np.nanpercentile(depth, 99.8) - depth, 0, None)


def shaded(height: np.ndarray, norm: Normalize) -> np.ndarray:
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
