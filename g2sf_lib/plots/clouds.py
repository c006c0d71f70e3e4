"""Point clouds that a reader can turn."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from g2sf_lib.plots.style import COLOUR_MAP, MM

MAX_CLOUD_POINTS = 8000  # a page with a few clouds stays below a megabyte each
# Far enough away, and aimed low enough, that the axes' names are inside the frame.
_CAMERA = {"up": {"x": 0, "y": 1, "z": 0}, "eye": {"x": 0.36, "y": -0.95, "z": 1.35}}
_CAMERA |= {"center": {"x": 0, "y": -0.12, "z": 0}}


def cloud(
    xyz: np.ndarray,
    title: str,
    colour: np.ndarray | None = None,
    values: np.ndarray | None = None,
    label: str = "score",
    top: float | None = None,
) -> go.Figure:
    """Return a point cloud that can be turned, seen from the sensor's side, in mm.

    Args:
        xyz: (..., 3) metres in the sensor's frame (x right, y down, z away); zeros: no point.
        title: above the cloud.
        colour: (..., 3) uint8, the colour of each point; or
        values: (...) a quantity that becomes a colour, with a colour bar.
        label: what `values` are, with their unit.
        top: where the colours end, having begun at zero; None: lowest to highest value.
    """
    points = np.asarray(xyz).reshape(-1, 3)
    there = np.isfinite(points).all(axis=1) & (points != 0).any(axis=1)
    points = (points[there] * MM).astype(np.float32)
    paint = None if values is None else np.asarray(values, np.float32).reshape(-1)[there]
    kept = _thinned(points, paint)
    points = points[kept]
    if paint is None:
        tones = np.asarray(colour).reshape(-1, 3)[there][kept]
        marker = {"color": [f"#{bytes(tone).hex()}" for tone in tones]}
    else:
        bar = {"title": {"text": label}, "thickness": 14}
        marker = {"color": paint[kept], "colorscale": COLOUR_MAP, "colorbar": bar}
        marker |= {} if top is None else {"cmin": 0.0, "cmax": top}
    trace = go.Scatter3d(
        **dict(zip("xyz", points.T, strict=True)),
        mode="markers",
        marker=marker | {"size": 2.2},
        hovertemplate="x %{x:.1f}, y %{y:.1f}, z %{z:.1f} mm<extra></extra>",
    )
    low = points.min(axis=0)
    extent = np.maximum(np.ptp(points, axis=0), 1.0)  # mm; a flat cloud still needs a box
    ratio = extent / extent.max()  # a millimetre is as long on every axis
    scene = {
        f"{name}axis": {
            "title": {"text": f"{name} (mm)"},
            "nticks": max(2, round(8 * ratio[i])),
            # y and z count down and away, as the sensor does, so that up is up on the page.
            "range": [low[i], low[i] + extent[i]][:: 1 if name == "x" else -1],
        }
        for i, name in enumerate("xyz")
    }
    scene |= {"aspectmode": "manual", "dragmode": "orbit", "camera": _CAMERA}
    scene["aspectratio"] = dict(zip("xyz", ratio.tolist(), strict=True))
    layout = {"template": "none", "title": {"text": title, "font": {"size": 14}}, "height": 450}
    return go.Figure(trace, layout | {"margin": {"l": 0, "r": 0, "t": 40, "b": 0}, "scene": scene})


def _thinned(points: np.ndarray, values: np.ndarray | None) -> np.ndarray:
    """Return at most `MAX_CLOUD_POINTS` rows that keep the extent and the largest value."""
    if len(points) <= MAX_CLOUD_POINTS:
        return np.arange(len(points))
    kept = [*points.argmin(axis=0), *points.argmax(axis=0)]
    if values is not None:
        kept += [int(values.argmin()), int(values.argmax())]
    num = MAX_CLOUD_POINTS - len(kept)
    drawn = np.random.default_rng(0).choice(len(points), num, replace=False)
    return np.unique([*drawn, *kept])
