"""Balls of the metric with a slider over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from g2sf_lib.plots.playground.planes import (
    MENU,
    cell_traces,
    finish,
    finish_planes,
    line_trace,
    outlines,
    rounded,
)
from g2sf_lib.plots.style import (
    BLUE,
    MODALITY_NAMES,
    ORANGE,
    PURPLE,
    VERMILLION,
)

MAX_FRAMES = 41  # with as many balls as below, a page of less than a megabyte
_OF_NUMBER = {
    "w across": (VERMILLION, "solid"),
    "w along": (BLUE, "dash"),
    "w mismatched": (PURPLE, "dot"),
}


def ball_slider(toy: Any, states: Sequence[Any], kept: int) -> go.Figure:
    """Return both planes with the balls of the metric, and a slider over the epochs.

    Args:
        toy: see the module.
        states: one an epoch, with `epoch`, `balls`, and `numbers` ("w along", "w across", "w
            mismatched", "AUROC"); the first one is the untrained metric, whose balls are
            circles and stay as dotted lines. At most `MAX_FRAMES` are drawn, evenly spaced.
        kept: the epoch that training kept; it is drawn first.

    Returns:
        A figure with a frame a state; below the planes the numbers over the epochs, with a mark
        at the epoch that is shown.

    Raises:
        ValueError: when there is no state, or none of epoch `kept`.
    """
    if kept not in [state.epoch for state in states]:
        raise ValueError(f"ball_slider: no state of epoch {kept}, the one that was kept")
    chosen = _thinned(states, kept)
    fig = make_subplots(
        rows=2,
        cols=2,
        row_heights=[0.6, 0.4],
        vertical_spacing=0.22,
        horizontal_spacing=0.07,
        subplot_titles=[*MODALITY_NAMES.values(), "mean w of both planes", "AUROC, test anomalies"],
    )
    now = next(state for state in chosen if state.epoch == kept)
    moving = []
    for column, mod in enumerate(MODALITY_NAMES, start=1):
        has_legend = column == 1
        place = {"row": 1, "col": column}
        for trace in cell_traces(toy, mod, has_legend):
            fig.add_trace(trace, **place)
        circles = outlines(states[0].balls[mod])
        fig.add_trace(
            line_trace(
                circles, "before training", "#555", width=1.2, dash="dot", showlegend=has_legend
            ),
            **place,
        )
        moving.append(len(fig.data))
        ball = line_trace(outlines(now.balls[mod]), "at this epoch", "black", showlegend=has_legend)
        fig.add_trace(ball, **place)
    epochs = [state.epoch for state in states]
    for name, (colour, dash) in _OF_NUMBER.items():
        path = {"x": epochs, "y": rounded([state.numbers[name] for state in states])}
        fig.add_trace(line_trace(path, name, colour, dash=dash), row=2, col=1)
    areas = [state.numbers["AUROC"] for state in states]
    path = {"x": epochs, "y": rounded(areas)}
    fig.add_trace(line_trace(path, "AUROC", ORANGE, showlegend=False), row=2, col=2)
    ranges = ([0.3, 2.8], [float(min(0.5, *areas)), 1.0])
    for column, limits in enumerate(ranges, start=1):
        moving.append(len(fig.data))
        mark = {"x": [kept, kept], "y": limits}
        fig.add_trace(
            line_trace(mark, "shown", "black", width=1.5, showlegend=False), row=2, col=column
        )
        fig.update_xaxes(
            title_text="epoch", range=[-0.03 * epochs[-1], 1.03 * epochs[-1]], row=2, col=column
        )
        fig.update_yaxes(range=limits, row=2, col=column)
    fig.update_yaxes(tickvals=[0.37, 1, 2, 2.72], ticktext=["1/e", "1", "2", "e"], row=2, col=1)
    fig.frames = [_frame(state, moving, ranges) for state in chosen]
    finish_planes(fig, toy, row=1)
    finish(fig, height=680, top=125, bottom=105)
    fig.update_layout(
        legend={"y": -0.1, "font": {"size": 12}},
        updatemenus=[_play_menu()],
        sliders=[_epoch_slider([state.epoch for state in chosen], kept)],
    )
    return fig


def _thinned(states: Sequence[Any], kept: int) -> list[Any]:
    """Return at most `MAX_FRAMES` states, evenly, with the first, the last and the kept one."""
    if len(states) <= MAX_FRAMES:
        return list(states)
    picked = set(np.linspace(0, len(states) - 1, MAX_FRAMES - 1).round().astype(int).tolist())
    return [state for n, state in enumerate(states) if n in picked or state.epoch == kept]


def _frame(state: Any, traces: list[int], ranges: tuple) -> go.Frame:
    """Return what changes with the epoch: the balls of both planes, and two marks."""
    balls = [outlines(state.balls[mod]) for mod in MODALITY_NAMES]
    marks = [{"x": [state.epoch] * 2, "y": limits} for limits in ranges]
    return go.Frame(name=str(state.epoch), data=[*balls, *marks], traces=traces)


def _play_menu() -> dict[str, Any]:
    """Return the buttons that run the frames and stop them."""
    going = {
        "frame": {"duration": 250, "redraw": False},
        "transition": {"duration": 200},
        "fromcurrent": True,
    }
    stopped = {
        "frame": {"duration": 0, "redraw": False},
        "transition": {"duration": 0},
        "mode": "immediate",
    }
    buttons = [
        {"label": "▶ play", "method": "animate", "args": [None, going]},
        {"label": "❚❚ pause", "method": "animate", "args": [[None], stopped]},
    ]
    place = {"x": 0, "y": 1.235, "xanchor": "left", "yanchor": "top", "direction": "left"}
    return MENU | place | {"type": "buttons", "buttons": buttons, "showactive": False}


def _epoch_slider(epochs: list[int], kept: int) -> dict[str, Any]:
    """Return the slider whose steps show the frames."""
    shown = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": False},
        "transition": {"duration": 0},
    }
    steps = [
        {"label": str(epoch), "method": "animate", "args": [[str(epoch)], shown]}
        for epoch in epochs
    ]
    return {
        "active": epochs.index(kept),
        "currentvalue": {"prefix": "epoch ", "font": {"size": 14}, "xanchor": "left"},
        "len": 0.74,
        "x": 0.26,
        "y": 1.27,
        "yanchor": "top",
        "pad": {"t": 0, "b": 0},
        "ticklen": 3,
        "font": {"size": 11},
        "steps": steps,
    }
