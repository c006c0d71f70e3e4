"""Point clouds that a reader can turn."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from g2sf_lib.plots.style import COLOUR_MAP, MM

MAX_CLOUD_POINTS = 8000  # a page with a few clouds stays below a megabyte each
# Far enough away, and aimed low enough, that the axes' names are inside the frame.
_CAMERA = {
    "up": {"x": 0, "y": 1, "z": 0},
    "eye": {"x": 0.36, "y": -0.95, "z": 1.35},
    "center": {"x": 0, "y": -0.12, "z": 0},
}


def cloud(
    xyz: np.ndarray,
    title: str,
    colour: np.ndarray | None = None,
    values: np.ndarray | None = None,
    label: str = "score",
    top: float | None = None,
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
        label: what `values` are, with their unit; a long one is better broken by "<br>".
        top: where the colours end, having begun at zero, so that several clouds share a scale;
            None: they run from the lowest to the highest value of this cloud.

    Raises:
        ValueError: if there is no point, not exactly one of `colour` and `values`, or a `top`
            that is not above zero or comes without `values`.
    """
    if (colour is None) == (values is None):
        raise ValueError("cloud needs either colour or values")
    if top is not None and (values is None or top <= 0):
        raise ValueError(f"top is {top}; expected a positive number, and values to colour")
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
        if top is not None:
            marker |= {"cmin": 0.0, "cmax": top}
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
        "camera": _CAMERA,
    }
    layout = go.Layout(
        template="none",
        title={"text": title, "font": {"size": 14}},
        height=450,
        margin={"l": 0, "r": 0, "t": 40, "b": 0},
        scene=scene,
    )
    return go.Figure(trace, layout)


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
