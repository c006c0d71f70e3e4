"""Balls of the metric with a switch for each loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from g2sf_lib.plots.playground.planes import (
    MENU,
    TERMS,
    cell_traces,
    finish,
    finish_planes,
    line_trace,
    outlines,
)
from g2sf_lib.plots.style import (
    MODALITY_NAMES,
    ORANGE,
)

_CLEAR = "rgba(0,0,0,0)"
# Each switch hides traces by an attribute of its own, so that a trace is seen where no switch
# hides it: four switches show one of sixteen drawings, and none has to know the others' state.
_HIDING = {"cns": "visible", "mar": "opacity", "sc": "mode", "cma": "colour"}


def loss_switches(
    toy: Any,
    circles: Mapping[str, np.ndarray],
    balls: Mapping[tuple[str, ...], Mapping[str, np.ndarray]],
    captions: Mapping[tuple[str, ...], str],
    shown: tuple[str, ...],
) -> go.Figure:
    """Return both planes with the balls of one subset of the losses, and a switch for each loss.

    Args:
        toy: see the module.
        circles: balls of the untrained metric, dotted.
        balls: subset of ("mar", "cns", "sc", "cma"), in this order, -> balls; all 16 subsets.
            Those of the full set stay as thin lines.
        captions: subset -> a line below its name.
        shown: the subset that is seen first.

    Raises:
        ValueError: when a subset is missing.
    """
    full = max(balls, key=len)
    if len(balls) != 2 ** len(TERMS) or set(captions) != set(balls) or shown not in balls:
        raise ValueError(
            f"loss_switches: balls of {len(balls)} and captions of {len(captions)} subsets; "
            f"expected {2 ** len(TERMS)}, and {shown} among them"
        )
    fig = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        row_heights=[0.16, 0.84],
        vertical_spacing=0.15,
        horizontal_spacing=0.07,
        subplot_titles=["", *MODALITY_NAMES.values()],
    )
    for column, mod in enumerate(MODALITY_NAMES, start=1):
        first = column == 1
        place = {"row": 2, "col": column}
        for trace in cell_traces(toy, mod, first):
            fig.add_trace(trace, **place)
        dotted = {"width": 1.2, "dash": "dot", "showlegend": first}
        fig.add_trace(
            line_trace(outlines(circles[mod]), "before training", "#555", **dotted), **place
        )
        thin = {"width": 1.2, "showlegend": first}
        fig.add_trace(line_trace(outlines(balls[full][mod]), "all losses", ORANGE, **thin), **place)
    start, owners = len(fig.data), []
    for subset in balls:
        for column, mod in enumerate(MODALITY_NAMES, start=1):
            path = outlines(balls[subset][mod])
            ball = line_trace(path, "losses that are on", "black", showlegend=False)
            fig.add_trace(ball, row=2, col=column)
        fig.add_trace(_caption(subset, captions[subset]), row=1, col=1)
        owners += [subset] * 3
    for term in TERMS:
        for name, values in _switch(term, term in shown, owners, fig.data[start:]).items():
            for trace, value in zip(fig.data[start:], values, strict=True):
                _set(trace, name, value)
    finish_planes(fig, toy, row=2)
    finish(fig, height=470, top=90, bottom=85)
    hidden = {"visible": False, "range": [0, 1], "fixedrange": True}
    fig.update_xaxes(**hidden, row=1, col=1)
    fig.update_yaxes(**hidden, row=1, col=1)
    fig.update_layout(legend={"y": -0.19, "font": {"size": 12}})
    indices = list(range(start, len(fig.data)))
    menus, names = [], []
    for n, (term, words) in enumerate(TERMS.items()):
        x = n * 0.26
        buttons = [
            {
                "label": label,
                "method": "restyle",
                "args": [_switch(term, is_on, owners, fig.data[start:]), indices],
            }
            for label, is_on in (("on", True), ("off", False))
        ]
        place = {"x": x, "y": 1.175, "xanchor": "left", "yanchor": "top", "direction": "left"}
        active = {"active": 0 if term in shown else 1, "showactive": True}
        menus.append(MENU | place | active | {"type": "buttons", "buttons": buttons})
        names.append(
            {
                "text": f"{words} <i>L</i><sub>{term}</sub>",
                "x": x,
                "y": 1.285,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "top",
                "showarrow": False,
            }
        )
    fig.update_layout(updatemenus=menus, annotations=[*fig.layout.annotations, *names])
    return fig


def _caption(subset: tuple[str, ...], words: str) -> go.Scatter:
    """Return a subset's name and numbers as text that can be switched like a ball."""
    name = " + ".join(["<i>L</i><sub>sep</sub>", *(f"<i>L</i><sub>{t}</sub>" for t in subset)])
    return go.Scatter(
        x=[0.5],
        y=[0.5],
        mode="text",
        text=[f"<b>{name}</b><br>{words}"],
        textfont={"size": 13, "color": "black"},
        showlegend=False,
        hoverinfo="skip",
    )


def _switch(term: str, is_on: bool, owners: Sequence[tuple[str, ...]], traces: Sequence) -> dict:
    """Return what a switch sets: attribute -> a value a trace.

    It lets those through whose subset has the loss where it is on, or lacks it where it is off.
    """
    seen = [(term in subset) == is_on for subset in owners]
    is_text = [trace.text is not None for trace in traces]
    if _HIDING[term] == "visible":
        return {"visible": seen}
    if _HIDING[term] == "opacity":
        return {"opacity": [1.0 if ok else 0.0 for ok in seen]}
    if _HIDING[term] == "mode":
        drawn = ["text" if text else "lines" for text in is_text]
        return {"mode": [how if ok else "none" for how, ok in zip(drawn, seen, strict=True)]}
    colours = ["black" if ok else _CLEAR for ok in seen]
    return {"line.color": colours, "textfont.color": colours}


def _set(trace: go.Scatter, name: str, value: Any) -> None:
    """Set an attribute of a trace as a switch would: "line.color" is in the line."""
    *outer, inner = name.split(".")
    (trace[outer[0]] if outer else trace)[inner] = value
