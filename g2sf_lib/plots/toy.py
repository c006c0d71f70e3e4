"""The toy of two planes: balls that a slider trains, and losses with switches.

Figures of plotly keep their controls in the built page, where no kernel runs. A "toy" below has
`points` (mod -> (N, 2)), `is_anomalous` (N,) bool and `prototypes` (mod -> (B, 2)); "balls" are
mod -> (B, A, 2), closed lines around the prototypes. Coordinates are rounded to less than a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from g2sf_lib.plots import style

MAX_FRAMES, MAX_BALLS = 41, 12  # so that a page stays below a megabyte
TERMS = {"cns": "consistency", "mar": "margin", "sc": "scaling", "cma": "alignment"}
_OF_NUMBER = {"w across": (style.VERMILLION, "solid"), "w along": (style.BLUE, "dash")}
_OF_NUMBER |= {"w mismatched": (style.PURPLE, "dot"), "AUROC": (style.ORANGE, "solid")}
_MARKERS = {
    "normal cells": {"color": style.BLUE, "size": 4, "opacity": 0.5},
    "synthetic anomalies": {
        "color": style.VERMILLION, "size": 5, "opacity": 0.6, "symbol": "x-thin-open",
    },
    "prototypes": {"color": "black", "size": 9, "symbol": "diamond"},
}  # fmt: skip
_STOP = {"frame": {"duration": 0, "redraw": False}, "mode": "immediate"}
_SMALL = {"font": {"size": 12}}


def rounded(values: Any) -> list[float | None]:
    """Return numbers as a page needs them: few digits, a gap for what is not finite."""
    return [round(float(v), 3) if np.isfinite(v) else None for v in np.ravel(values)]


def path(xy: np.ndarray) -> dict[str, list[float | None]]:
    """Return x and y of places (N, 2)."""
    return {"x": rounded(xy[:, 0]), "y": rounded(xy[:, 1])}


def _outlines(balls: np.ndarray) -> dict[str, list[float | None]]:
    """Return x and y of one line that draws up to `MAX_BALLS` balls (B, A, 2), with gaps."""
    order = np.argsort(balls.mean(axis=1)[:, 0])  # if too many, evenly from left to right
    few = order[np.linspace(0, len(balls) - 1, min(len(balls), MAX_BALLS)).astype(int)]
    gaps = np.full((len(few), 1, 2), np.nan)
    return path(np.concatenate([balls[few], gaps], axis=1).reshape(-1, 2))


def line(path: Mapping, name: str, colour: str, width=2.0, dash="solid", **options) -> go.Scatter:
    """Return a line without markers and hover."""
    options |= {"mode": "lines", "name": name, "legendgroup": name, "hoverinfo": "skip"}
    return go.Scatter(**path, line={"color": colour, "width": width, "dash": dash}, **options)


def _draw_balls(fig: go.Figure, row: int, balls: Mapping, name: str, colour: str, **look) -> None:
    """Draw balls in both planes of a row."""
    for column, mod in enumerate(style.MODALITY_NAMES, start=1):
        has_legend = {"showlegend": column == 1} | look
        ball = line(_outlines(balls[mod]), name, colour, **has_legend)
        fig.add_trace(ball, row=row, col=column)


def _draw_planes(fig: go.Figure, toy: Any, row: int, circles: Mapping[str, np.ndarray]) -> None:
    """Draw what stays in both planes of a row: cells, prototypes, and the untrained balls."""
    points, is_bad = np.concatenate(list(toy.points.values())), toy.is_anomalous
    limits = np.stack([points.min(axis=0) - 0.4, points.max(axis=0) + 0.4], axis=1).tolist()
    axis = {"constrain": "domain", "showgrid": False, "zeroline": False, "ticks": "outside"}
    for column, mod in enumerate(style.MODALITY_NAMES, start=1):
        where = {"row": row, "col": column}
        places = (toy.points[mod][~is_bad], toy.points[mod][is_bad], toy.prototypes[mod])
        for xy, (name, marker) in zip(places, _MARKERS.items(), strict=True):
            look = {"mode": "markers", "marker": marker, "hoverinfo": "skip"}
            look |= {"name": name, "legendgroup": name, "showlegend": column == 1}
            fig.add_trace(go.Scatter(**path(xy), **look), **where)
        fig.update_xaxes(range=limits[0], title_text="feature 1", **axis, **where)
        anchor = fig.get_subplot(row, column).xaxis.plotly_name.replace("axis", "")
        fig.update_yaxes(range=limits[1], scaleanchor=anchor, **axis, **where)
    _draw_balls(fig, row, circles, "before training", "#555", width=1.2, dash="dot")
    fig.update_yaxes(title_text="feature 2", row=row, col=1)


def buttons(of: Sequence[tuple[str, str, list]], x: float, y: float, **more) -> dict:
    """Return a menu of buttons (label, method, arguments) side by side."""
    made = [{"label": label, "method": how, "args": args} for label, how, args in of]
    place = {"x": x, "y": y, "xanchor": "left", "yanchor": "top", "direction": "left"}
    look = {"bgcolor": "#c9ced6", "bordercolor": "#8a93a0", "pad": {"t": 0}} | _SMALL
    return place | look | {"type": "buttons", "buttons": made} | more


def finish(fig: go.Figure, height: int, top: int, bottom: int, legend_y: float) -> go.Figure:
    """Set what all of these figures share; a legend lies below."""
    tools = "toImage zoom pan zoomIn zoomOut autoScale resetScale select lasso"
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "yanchor": "top", "y": legend_y}
    fig.update_layout(
        template="none",
        height=height,
        font={"size": 13, "color": "#222"},
        margin={"l": 46, "r": 14, "t": top, "b": bottom},
        dragmode=False,
        modebar={"remove": tools.split()},  # it would lie on the controls
        legend=legend | _SMALL,
    )
    fig.update_annotations(font={"size": 14})
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        axis.update(title={"standoff": 6} | _SMALL, tickfont={"size": 11})
    return fig


def ball_slider(toy: Any, states: Sequence[Any], kept: int) -> go.Figure:
    """Return both planes with the balls of the metric, numbers below, and a slider over the epochs.

    `states` are one an epoch, as `g2sf_lib.toy.ToyState`; the balls of the first one stay as dotted
    lines, and about `MAX_FRAMES` are drawn. The epoch `kept` is seen first.
    """
    picked = np.linspace(0, len(states) - 1, min(len(states), MAX_FRAMES)).round()
    chosen = [one for n, one in enumerate(states) if n in picked or one.epoch == kept]
    titles = [*style.MODALITY_NAMES.values(), "mean w of both planes", "AUROC, test anomalies"]
    spacing = {"row_heights": [0.6, 0.4], "vertical_spacing": 0.22, "horizontal_spacing": 0.07}
    fig = make_subplots(rows=2, cols=2, subplot_titles=titles, **spacing)
    _draw_planes(fig, toy, 1, states[0].balls)
    epochs = [state.epoch for state in states]
    for name, (colour, dash) in _OF_NUMBER.items():
        column = 2 if name == "AUROC" else 1
        path = {"x": epochs, "y": rounded([state.numbers[name] for state in states])}
        number = line(path, name, colour, dash=dash, showlegend=column == 1)
        fig.add_trace(number, row=2, col=column)
    limits = ([0.3, 2.8], [min(0.5, *fig.data[-1].y), 1.0])
    for column, ends in enumerate(limits, start=1):
        reach = [-0.03 * epochs[-1], 1.03 * epochs[-1]]
        fig.update_xaxes(title_text="epoch", range=reach, row=2, col=column)
        fig.update_yaxes(range=ends, row=2, col=column)
    fig.update_yaxes(tickvals=[0.37, 1, 2, 2.72], ticktext=["1/e", "1", "2", "e"], row=2, col=1)

    def now(state: Any) -> list[dict]:
        """Return what changes with the epoch: the balls of both planes, and two marks."""
        balls = [_outlines(state.balls[mod]) for mod in style.MODALITY_NAMES]
        return [*balls, *({"x": [state.epoch] * 2, "y": ends} for ends in limits)]

    names = [str(state.epoch) for state in chosen]
    active = names.index(str(kept))
    for n, path in enumerate(now(chosen[active])):
        name, width = ("at this epoch", 2.0) if n < 2 else ("shown", 1.5)
        moving = line(path, name, "black", width, showlegend=n == 0)
        fig.add_trace(moving, row=1 + n // 2, col=1 + n % 2)
    moved = list(range(len(fig.data) - 4, len(fig.data)))
    fig.frames = [go.Frame(name=str(s.epoch), data=now(s), traces=moved) for s in chosen]
    going = {"frame": {"duration": 250, "redraw": False}, "transition": {"duration": 200}}
    going |= {"fromcurrent": True}
    play = [("▶ play", "animate", [None, going]), ("❚❚ pause", "animate", [[None], _STOP])]
    slider = {
        "active": active,
        "currentvalue": {"prefix": "epoch ", "font": {"size": 14}, "xanchor": "left"},
        **{"len": 0.74, "x": 0.26, "y": 1.27, "yanchor": "top", "pad": {"t": 0, "b": 0}},
        **{"ticklen": 3, "font": {"size": 11}},
        "steps": [{"label": n, "method": "animate", "args": [[n], _STOP]} for n in names],
    }
    fig.update_layout(updatemenus=[buttons(play, 0, 1.235, showactive=False)], sliders=[slider])
    return finish(fig, height=680, top=125, bottom=105, legend_y=-0.1)


def loss_switches(
    toy: Any,
    circles: Mapping[str, np.ndarray],
    balls: Mapping[tuple[str, ...], Mapping[str, np.ndarray]],
    captions: Mapping[tuple[str, ...], str],
    shown: tuple[str, ...],
) -> go.Figure:
    """Return both planes with the balls of one subset of the losses, and a switch for each loss.

    `circles` are the balls of the untrained metric, dotted; `balls` are subset -> balls of all 16,
    of which those of the full set stay as thin lines; `captions` are subset -> a line below its
    name. The subset `shown` is seen first.
    """
    spacing = {"row_heights": [0.16, 0.84], "vertical_spacing": 0.15, "horizontal_spacing": 0.07}
    spacing |= {"specs": [[{"colspan": 2}, None], [{}, {}]]}
    titles = ["", *style.MODALITY_NAMES.values()]
    fig = make_subplots(rows=2, cols=2, subplot_titles=titles, **spacing)
    _draw_planes(fig, toy, 2, circles)
    _draw_balls(fig, 2, balls[max(balls, key=len)], "all losses", style.ORANGE, width=1.2)
    start, owners = len(fig.data), [subset for subset in balls for _ in range(3)]
    for subset in balls:
        _draw_balls(fig, 2, balls[subset], "losses that are on", "black", showlegend=False)
        name = " + ".join(f"<i>L</i><sub>{term}</sub>" for term in ("sep", *subset))
        text = go.Scatter(x=[0.5], y=[0.5], mode="text", hoverinfo="skip", showlegend=False)
        text.update(text=[f"<b>{name}</b><br>{captions[subset]}"], textfont={"size": 13})
        fig.add_trace(text, row=1, col=1)
    indices, menus, names = list(range(start, len(fig.data))), [], []
    for n, (term, words) in enumerate(TERMS.items()):
        set_to = {is_on: [_switch(term, is_on, owners), indices] for is_on in (True, False)}
        fig.plotly_restyle(*set_to[term in shown])
        pair = [("on", "restyle", set_to[True]), ("off", "restyle", set_to[False])]
        menus.append(buttons(pair, n * 0.26, 1.175, active=int(term not in shown)))
        place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top"}
        text = {"text": f"{words} <i>L</i><sub>{term}</sub>", "x": n * 0.26, "y": 1.285}
        names.append(text | place | {"showarrow": False})
    hidden = {"visible": False, "range": [0, 1], "fixedrange": True, "row": 1, "col": 1}
    fig.update_xaxes(**hidden).update_yaxes(**hidden)
    fig.update_layout(updatemenus=menus, annotations=[*fig.layout.annotations, *names])
    return finish(fig, height=470, top=90, bottom=85, legend_y=-0.19)


def _switch(term: str, is_on: bool, owners: Sequence[tuple[str, ...]]) -> dict[str, list]:
    """Return what a switch sets: attribute -> a value a trace, of (ball, ball, text) a subset.

    It lets those through whose subset has the loss where it is on, or lacks it where it is off.
    Each switch hides by an attribute of its own, so that a trace is seen where no switch hides it:
    four switches show one of sixteen drawings, and none has to know the others' state.
    """
    seen = [(term in subset) == is_on for subset in owners]
    if term == "cns":
        return {"visible": seen}
    if term == "mar":
        return {"opacity": [float(ok) for ok in seen]}
    if term == "sc":
        drawn = ["lines", "lines", "text"] * (len(owners) // 3)
        return {"mode": [how if ok else "none" for how, ok in zip(drawn, seen, strict=True)]}
    colours = ["black" if ok else "rgba(0,0,0,0)" for ok in seen]
    return {"line.color": colours, "textfont.color": colours}
