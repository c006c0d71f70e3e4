"""What figures of the toy share: cells, balls and axes of two planes, names and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from g2sf_lib.plots.style import (
    BLUE,
    GREEN,
    MODALITY_NAMES,
    PURPLE,
    VERMILLION,
)

MAX_BALLS = 12  # drawn in a plane
_DIGITS = 3
TERMS = {"cns": "consistency", "mar": "margin", "sc": "scaling", "cma": "alignment"}
OF_HOW = {
    "nearest": (VERMILLION, "solid"),
    "min": (BLUE, "longdash"),
    "mean": (GREEN, "dash"),
    "max": (PURPLE, "dot"),
}
_MODEBAR = ("toImage", "zoom", "pan", "zoomIn", "zoomOut", "autoScale", "resetScale", "select",
            "lasso")  # fmt: skip
_FONT = {"size": 13, "color": "#222"}
MENU = {"bgcolor": "#c9ced6", "bordercolor": "#8a93a0", "font": {"size": 12}, "pad": {"t": 0}}


def rounded(values: Any) -> list[float | None]:
    """Return numbers as a page needs them: few digits, a gap for what is not finite."""
    return [round(float(v), _DIGITS) if np.isfinite(v) else None for v in np.ravel(values)]


def some_balls(balls: np.ndarray) -> np.ndarray:
    """Return at most `MAX_BALLS` of the balls, evenly from left to right."""
    order = np.argsort(balls.mean(axis=1)[:, 0])
    return balls[order[np.linspace(0, len(balls) - 1, min(len(balls), MAX_BALLS)).astype(int)]]


def outlines(balls: np.ndarray) -> dict[str, list[float | None]]:
    """Return the x and y of one line that draws balls (B, A, 2), with gaps between them."""
    some = some_balls(balls)
    gaps = np.full((len(some), 1, 2), np.nan)
    path = np.concatenate([some, gaps], axis=1).reshape(-1, 2)
    return {"x": rounded(path[:, 0]), "y": rounded(path[:, 1])}


def limits_of(toy: Any) -> tuple[list[float], list[float]]:
    """Return ranges of x and y for both planes, with room for balls."""
    points = np.concatenate([toy.points[mod] for mod in MODALITY_NAMES])
    low, high = points.min(axis=0) - 0.4, points.max(axis=0) + 0.4
    return [float(low[0]), float(high[0])], [float(low[1]), float(high[1])]


def top_of(fields: Sequence[np.ndarray]) -> float:
    """Return where the colours of scores end: far from the curve scores grow without bound.

    The lowest field decides, so that the valley along the curve has colours in each of them.
    """
    return float(min(np.quantile(field, 0.85) for field in fields))


def cell_traces(toy: Any, mod: str, has_legend: bool) -> list[go.Scatter]:
    """Return the cells and prototypes of one plane."""
    xy, is_bad = toy.points[mod], toy.is_anomalous
    groups = (
        ("normal cells", xy[~is_bad], {"color": BLUE, "size": 4, "opacity": 0.5}),
        (
            "synthetic anomalies",
            xy[is_bad],
            {"color": VERMILLION, "size": 5, "opacity": 0.6, "symbol": "x-thin-open"},
        ),
        ("prototypes", toy.prototypes[mod], {"color": "black", "size": 9, "symbol": "diamond"}),
    )
    return [
        go.Scatter(
            x=rounded(where[:, 0]),
            y=rounded(where[:, 1]),
            mode="markers",
            marker=marker,
            name=name,
            legendgroup=name,
            showlegend=has_legend,
            hoverinfo="skip",
        )
        for name, where, marker in groups
    ]


def line_trace(path: Mapping[str, list], name: str, colour: str, **options: Any) -> go.Scatter:
    """Return a line without markers and hover; `dash` and `width` are those of the line."""
    line = {"color": colour, "width": options.pop("width", 2), "dash": options.pop("dash", "solid")}
    return go.Scatter(
        **path,
        mode="lines",
        line=line,
        name=name,
        legendgroup=name,
        hoverinfo="skip",
        **options,
    )


def finish_planes(fig: go.Figure, toy: Any, row: int) -> None:
    """Give both planes of a row equal scales, fixed ranges and names of axes."""
    x, y = limits_of(toy)
    for column in range(1, len(MODALITY_NAMES) + 1):
        where = {"row": row, "col": column}
        axis = {"constrain": "domain", "showgrid": False, "zeroline": False, "ticks": "outside"}
        fig.update_xaxes(range=x, title_text="feature 1", **axis, **where)
        anchor = fig.get_subplot(row, column).xaxis.plotly_name.replace("axis", "")
        fig.update_yaxes(range=y, scaleanchor=anchor, **axis, **where)
    fig.update_yaxes(title_text="feature 2", row=row, col=1)


def finish(fig: go.Figure, height: int, top: int, bottom: int = 50) -> None:
    """Set what all of these figures share; a legend lies below."""
    fig.update_layout(
        template="none",
        height=height,
        font=_FONT,
        margin={"l": 46, "r": 14, "t": top, "b": bottom},
        dragmode=False,
        modebar={"remove": list(_MODEBAR)},  # it would lie on the controls
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "yanchor": "top"},
    )
    fig.update_annotations(font={"size": 14})
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        axis.title.standoff = 6
        axis.title.font = {"size": 12}
        axis.tickfont = {"size": 11}
