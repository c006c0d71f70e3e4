"""Scans as they are: their height, and their defects from near.

A scan has `rgb` (H, W, 3) uint8, `xyz` (H, W, 3) in metres, zero where there is no point, and
`mask` (H, W) bool: `g2sf_lib.datasets.Sample` is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LightSource, Normalize
from matplotlib.figure import Figure

from g2sf_lib.plots import style


@style.styled
def defect_gallery(samples: Sequence[Any], titles: Sequence[str]) -> Figure:
    """Return a column a defective scan: whole, near its defect, and the surface there.

    The third row is the height less the plane that fits the window best, so that a dent of
    a millimetre is not lost in the shape of a part of thirty.
    """
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
