"""Scores of a plane with a button an aggregation, and along a line."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from g2sf_lib.plots.playground.planes import (
    MENU,
    OF_HOW,
    finish,
    line_trace,
    rounded,
    top_of,
)
from g2sf_lib.plots.style import (
    COLOUR_MAP,
    MODALITY_NAMES,
)

_FAINT = 0.4  # of the curves that are not chosen


def aggregation_maps(toy: Any, scores: Any, profile: Any, shown: str = "min") -> go.Figure:
    """Return the score of a plane with a button an aggregation, and a line across a boundary.

    Args:
        toy: see the module.
        scores: with `mod`, `x` (W,), `y` (H,) and `scores` (aggregation -> (H, W)).
        profile: with `mod` (the same), `line` (N, 2), `position` (N,), `scores` (aggregation ->
            (N,)), `rank` (N,) which grows where the score may jump, `boundary` (a position) and
            `jumps` (aggregation -> how far it jumps there).
        shown: the aggregation that is seen first.

    Raises:
        ValueError: when map and profile are of different planes, or `shown` is not there.
    """
    if scores.mod != profile.mod or shown not in scores.scores:
        raise ValueError(
            f"aggregation_maps: a map of {scores.mod}, a profile of {profile.mod}, shown is "
            f"{shown!r}; expected one plane, and one of {list(scores.scores)}"
        )
    fig = make_subplots(
        rows=2,
        cols=1,
        row_heights=[0.6, 0.4],
        vertical_spacing=0.17,
        subplot_titles=[
            f"score in the plane of {MODALITY_NAMES[scores.mod]}",
            "score along the white line",
        ],
    )
    top = top_of(list(scores.scores.values()))
    for how, field in scores.scores.items():
        fig.add_trace(
            go.Heatmap(
                x=rounded(scores.x),
                y=rounded(scores.y),
                z=[rounded(row) for row in field],
                zmin=0.0,
                zmax=top,
                colorscale=COLOUR_MAP,
                colorbar={
                    "title": {"text": "score"},
                    "len": 0.5,
                    "y": 0.76,
                    "x": 0.9,
                    "thickness": 14,
                },
                name=how,
                visible=how == shown,
                hovertemplate="score %{z:.2f}<extra></extra>",
            ),
            row=1,
            col=1,
        )
    line = {"x": rounded(profile.line[:, 0]), "y": rounded(profile.line[:, 1])}
    place = {"row": 1, "col": 1}
    fig.add_trace(line_trace(line, "line", "black", width=5, showlegend=False), **place)
    fig.add_trace(line_trace(line, "line", "white", width=2.5, showlegend=False), **place)
    xy = toy.prototypes[scores.mod]
    marker = {"color": "white", "size": 9, "symbol": "diamond", "line": {"width": 1.5}}
    fig.add_trace(
        go.Scatter(
            x=rounded(xy[:, 0]),
            y=rounded(xy[:, 1]),
            mode="markers",
            marker=marker,
            name="prototypes",
            hoverinfo="skip",
            showlegend=False,
        ),
        **place,
    )
    first = len(fig.data)
    for how, values in profile.scores.items():
        colour, dash = OF_HOW[how]
        name = f"{how} (jump {profile.jumps[how]:.2f})"
        path = _broken(profile.position, values, profile.rank)
        faint = {"opacity": 1.0 if how == shown else _FAINT, "dash": dash, "width": 2.5}
        fig.add_trace(line_trace(path, name, colour, **faint), row=2, col=1)
    fig.add_vline(
        x=profile.boundary,
        line={"color": "#333", "width": 1, "dash": "dot"},
        annotation={"text": "the nearest prototype changes", "font": {"size": 12}},
        row=2,
        col=1,
    )
    x, y = [float(v) for v in scores.x[[0, -1]]], [float(v) for v in scores.y[[0, -1]]]
    plane = {"constrain": "domain", "showgrid": False, "zeroline": False}
    fig.update_xaxes(range=x, title_text="feature 1", **plane, **place)
    fig.update_yaxes(range=y, title_text="feature 2", scaleanchor="x", **plane, **place)
    fig.update_xaxes(title_text="distance along the line", zeroline=False, row=2, col=1)
    fig.update_yaxes(title_text="score", rangemode="tozero", row=2, col=1)
    curves = list(range(first, first + len(profile.scores)))
    buttons = [
        {
            "label": how,
            "method": "restyle",
            "args": [
                {
                    "visible": [other == how for other in scores.scores] + [True] * len(curves),
                    "opacity": [1.0] * len(scores.scores)
                    + [1.0 if other == how else _FAINT for other in profile.scores],
                },
                [*range(len(scores.scores)), *curves],
            ],
        }
        for how in scores.scores
    ]
    where = {"x": 0, "y": 1.14, "xanchor": "left", "yanchor": "top", "direction": "left"}
    active = {"active": list(scores.scores).index(shown), "showactive": True}
    finish(fig, height=720, top=90, bottom=85)
    fig.update_layout(
        updatemenus=[MENU | where | active | {"type": "buttons", "buttons": buttons}],
        legend={"y": -0.13, "font": {"size": 12}},
    )
    return fig


def _broken(position: np.ndarray, values: np.ndarray, rank: np.ndarray) -> dict[str, list]:
    """Return a path with a gap wherever the rank grows, since nothing lies between the sides."""
    cuts = np.flatnonzero(np.diff(rank)) + 1
    x = np.insert(position.astype(float), cuts, position[cuts])
    y = np.insert(values.astype(float), cuts, np.nan)
    return {"x": rounded(x), "y": rounded(y)}
