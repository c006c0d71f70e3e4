"""The toy of two planes: balls that a slider trains, losses with switches, scores with buttons.

Figures of plotly keep their controls in the built page, where no kernel runs: frames and sliders
are played by the page itself. A "toy" below has `points` (mod -> (N, 2)), `is_anomalous` (N,)
bool and `prototypes` (mod -> (B, 2)); "balls" are mod -> (B, A, 2), closed lines around the
prototypes. Coordinates are rounded to less than a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import g2sf_lib.plots.style as style

MAX_FRAMES, MAX_BALLS = 41, 12  # so that a page stays below a megabyte
TERMS = {"cns": "consistency", "mar": "margin", "sc": "scaling", "cma": "alignment"}
OF_HOW = {"nearest": (style.VERMILLION, "solid"), "min": (style.BLUE, "longdash")}
OF_HOW |= {"mean": (style.GREEN, "dash"), "max": (style.PURPLE, "dot")}
_OF_NUMBER = {"w across": (style.VERMILLION, "solid"), "w along": (style.BLUE, "dash")}
_OF_NUMBER |= {"w mismatched": (style.PURPLE, "dot")}
_FAINT = 0.4  # of the curves that are not chosen
_STOP = {"frame": {"duration": 0, "redraw": False}, "mode": "immediate"}


def _rounded(values: Any) -> list[float | None]:
    """Return numbers as a page needs them: few digits, a gap for what is not finite."""
    return [round(float(v), 3) if np.isfinite(v) else None for v in np.ravel(values)]


def _outlines(balls: np.ndarray) -> dict[str, list[float | None]]:
    """Return x and y of one line that draws up to `MAX_BALLS` balls (B, A, 2), with gaps."""
    order = np.argsort(balls.mean(axis=1)[:, 0])  # if too many, evenly from left to right
    few = order[np.linspace(0, len(balls) - 1, min(len(balls), MAX_BALLS)).astype(int)]
    gaps = np.full((len(few), 1, 2), np.nan)
    path = np.concatenate([balls[few], gaps], axis=1).reshape(-1, 2)
    return {"x": _rounded(path[:, 0]), "y": _rounded(path[:, 1])}


def _line(path: Mapping, name: str, colour: str, width=2.0, dash="solid", **options) -> go.Scatter:
    """Return a line without markers and hover."""
    line = {"color": colour, "width": width, "dash": dash}
    fixed = {"mode": "lines", "name": name, "legendgroup": name, "hoverinfo": "skip"}
    return go.Scatter(**path, **fixed, line=line, **options)


def _dots(xy: np.ndarray, name: str, marker: dict, has_legend: bool) -> go.Scatter:
    """Return points (N, 2) without hover."""
    fixed = {"mode": "markers", "name": name, "legendgroup": name, "hoverinfo": "skip"}
    path = {"x": _rounded(xy[:, 0]), "y": _rounded(xy[:, 1])}
    return go.Scatter(**path, **fixed, marker=marker, showlegend=has_legend)


def _draw_planes(fig: go.Figure, toy: Any, row: int, circles: Mapping[str, np.ndarray]) -> None:
    """Draw what stays in both planes of a row: cells, prototypes, and the untrained balls."""
    points, is_bad = np.concatenate(list(toy.points.values())), toy.is_anomalous
    limits = np.stack([points.min(axis=0) - 0.4, points.max(axis=0) + 0.4], axis=1).tolist()
    cross = {"color": style.VERMILLION, "size": 5, "opacity": 0.6, "symbol": "x-thin-open"}
    for column, mod in enumerate(style.MODALITY_NAMES, start=1):
        xy, first, where = toy.points[mod], column == 1, {"row": row, "col": column}
        normal = {"color": style.BLUE, "size": 4, "opacity": 0.5}
        fig.add_trace(_dots(xy[~is_bad], "normal cells", normal, first), **where)
        fig.add_trace(_dots(xy[is_bad], "synthetic anomalies", cross, first), **where)
        diamond = {"color": "black", "size": 9, "symbol": "diamond"}
        fig.add_trace(_dots(toy.prototypes[mod], "prototypes", diamond, first), **where)
        dotted = {"width": 1.2, "dash": "dot", "showlegend": first}
        circle = _line(_outlines(circles[mod]), "before training", "#555", **dotted)
        fig.add_trace(circle, **where)
        axis = {"constrain": "domain", "showgrid": False, "zeroline": False, "ticks": "outside"}
        fig.update_xaxes(range=limits[0], title_text="feature 1", **axis, **where)
        anchor = fig.get_subplot(row, column).xaxis.plotly_name.replace("axis", "")
        fig.update_yaxes(range=limits[1], scaleanchor=anchor, **axis, **where)
    fig.update_yaxes(title_text="feature 2", row=row, col=1)


def _buttons(buttons: Sequence[tuple[str, str, list]], x: float, y: float, **more) -> dict:
    """Return a menu of buttons (label, method, arguments) side by side."""
    made = [{"label": label, "method": how, "args": args} for label, how, args in buttons]
    place = {"x": x, "y": y, "xanchor": "left", "yanchor": "top", "direction": "left"}
    look = {"bgcolor": "#c9ced6", "bordercolor": "#8a93a0", "font": {"size": 12}, "pad": {"t": 0}}
    return place | look | {"type": "buttons", "buttons": made} | more


def _finish(fig: go.Figure, height: int, top: int, bottom: int, legend_y: float) -> go.Figure:
    """Set what all of these figures share; a legend lies below."""
    tools = "toImage zoom pan zoomIn zoomOut autoScale resetScale select lasso"
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "yanchor": "top"}
    fig.update_layout(
        template="none",
        height=height,
        font={"size": 13, "color": "#222"},
        margin={"l": 46, "r": 14, "t": top, "b": bottom},
        dragmode=False,
        modebar={"remove": tools.split()},  # it would lie on the controls
        legend=legend | {"y": legend_y, "font": {"size": 12}},
    )
    fig.update_annotations(font={"size": 14})
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        axis.update(title={"standoff": 6, "font": {"size": 12}}, tickfont={"size": 11})
    return fig


def ball_slider(toy: Any, states: Sequence[Any], kept: int) -> go.Figure:
    """Return both planes with the balls of the metric, and a slider over the epochs.

    Args:
        toy: see the module.
        states: one an epoch, with `epoch`, `balls`, and `numbers` ("w along", "w across", "w
            mismatched", "AUROC"); the first one is the untrained metric, whose balls are
            circles and stay as dotted lines. Of more than `MAX_FRAMES` some are left out, evenly.
        kept: the epoch that training kept; it is drawn first.

    Returns:
        A figure with a frame a state; below the planes the numbers over the epochs, with a mark
        at the epoch that is shown.
    """
    picked = np.linspace(0, len(states) - 1, min(len(states), MAX_FRAMES)).round()
    chosen = [one for n, one in enumerate(states) if n in picked or one.epoch == kept]
    titles = [*style.MODALITY_NAMES.values(), "mean w of both planes", "AUROC, test anomalies"]
    spacing = {"row_heights": [0.6, 0.4], "vertical_spacing": 0.22, "horizontal_spacing": 0.07}
    fig = make_subplots(rows=2, cols=2, subplot_titles=titles, **spacing)
    _draw_planes(fig, toy, 1, states[0].balls)
    epochs = [state.epoch for state in states]
    for name, (colour, dash) in _OF_NUMBER.items():
        path = {"x": epochs, "y": _rounded([state.numbers[name] for state in states])}
        fig.add_trace(_line(path, name, colour, dash=dash), row=2, col=1)
    path = {"x": epochs, "y": (areas := _rounded([state.numbers["AUROC"] for state in states]))}
    fig.add_trace(_line(path, "AUROC", style.ORANGE, showlegend=False), row=2, col=2)
    ranges = ([0.3, 2.8], [min(0.5, *areas), 1.0])
    moving = list(range(len(fig.data), len(fig.data) + 4))

    def now(state: Any) -> list[dict]:
        """Return what changes with the epoch: the balls of both planes, and two marks."""
        balls = [_outlines(state.balls[mod]) for mod in style.MODALITY_NAMES]
        return [*balls, *({"x": [state.epoch] * 2, "y": limits} for limits in ranges)]

    *balls, left, right = now(next(state for state in chosen if state.epoch == kept))
    for column, path in enumerate(balls, start=1):
        ball = _line(path, "at this epoch", "black", showlegend=column == 1)
        fig.add_trace(ball, row=1, col=column)
    for column, path, limits in zip((1, 2), (left, right), ranges, strict=True):
        mark = _line(path, "shown", "black", width=1.5, showlegend=False)
        fig.add_trace(mark, row=2, col=column)
        reach = [-0.03 * epochs[-1], 1.03 * epochs[-1]]
        fig.update_xaxes(title_text="epoch", range=reach, row=2, col=column)
        fig.update_yaxes(range=limits, row=2, col=column)
    fig.update_yaxes(tickvals=[0.37, 1, 2, 2.72], ticktext=["1/e", "1", "2", "e"], row=2, col=1)
    fig.frames = [go.Frame(name=str(s.epoch), data=now(s), traces=moving) for s in chosen]
    going = {"frame": {"duration": 250, "redraw": False}, "transition": {"duration": 200}}
    going |= {"fromcurrent": True}
    play = [("▶ play", "animate", [None, going]), ("❚❚ pause", "animate", [[None], _STOP])]
    names = [str(state.epoch) for state in chosen]
    slider = {
        "active": names.index(str(kept)),
        "currentvalue": {"prefix": "epoch ", "font": {"size": 14}, "xanchor": "left"},
        **{"len": 0.74, "x": 0.26, "y": 1.27, "yanchor": "top", "pad": {"t": 0, "b": 0}},
        "ticklen": 3,
        "font": {"size": 11},
        "steps": [{"label": n, "method": "animate", "args": [[n], _STOP]} for n in names],
    }
    fig.update_layout(updatemenus=[_buttons(play, 0, 1.235, showactive=False)], sliders=[slider])
    return _finish(fig, height=680, top=125, bottom=105, legend_y=-0.1)


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
    """
    spacing = {"row_heights": [0.16, 0.84], "vertical_spacing": 0.15, "horizontal_spacing": 0.07}
    spacing |= {"specs": [[{"colspan": 2}, None], [{}, {}]]}
    titles = ["", *style.MODALITY_NAMES.values()]
    fig = make_subplots(rows=2, cols=2, subplot_titles=titles, **spacing)
    _draw_planes(fig, toy, 2, circles)
    every = balls[max(balls, key=len)]
    for column, mod in enumerate(style.MODALITY_NAMES, start=1):
        thin = {"width": 1.2, "showlegend": column == 1}
        ball = _line(_outlines(every[mod]), "all losses", style.ORANGE, **thin)
        fig.add_trace(ball, row=2, col=column)
    start, owners = len(fig.data), [subset for subset in balls for _ in range(3)]
    for subset in balls:
        for column, mod in enumerate(style.MODALITY_NAMES, start=1):
            path = _outlines(balls[subset][mod])
            ball = _line(path, "losses that are on", "black", showlegend=False)
            fig.add_trace(ball, row=2, col=column)
        name = " + ".join(f"<i>L</i><sub>{term}</sub>" for term in ("sep", *subset))
        text = go.Scatter(x=[0.5], y=[0.5], mode="text", hoverinfo="skip", showlegend=False)
        text.update(text=[f"<b>{name}</b><br>{captions[subset]}"], textfont={"size": 13})
        fig.add_trace(text, row=1, col=1)
    indices, menus, names = list(range(start, len(fig.data))), [], []
    for n, (term, words) in enumerate(TERMS.items()):
        set_to = {is_on: [_switch(term, is_on, owners), indices] for is_on in (True, False)}
        fig.plotly_restyle(*set_to[term in shown])
        pair = [("on", "restyle", set_to[True]), ("off", "restyle", set_to[False])]
        menus.append(_buttons(pair, n * 0.26, 1.175, active=int(term not in shown)))
        place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top"}
        text = {"text": f"{words} <i>L</i><sub>{term}</sub>", "x": n * 0.26, "y": 1.285}
        names.append(text | place | {"showarrow": False})
    hidden = {"visible": False, "range": [0, 1], "fixedrange": True, "row": 1, "col": 1}
    fig.update_xaxes(**hidden).update_yaxes(**hidden)
    fig.update_layout(updatemenus=menus, annotations=[*fig.layout.annotations, *names])
    return _finish(fig, height=470, top=90, bottom=85, legend_y=-0.19)


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


def aggregation_maps(toy: Any, field: tuple, profile: Mapping, shown: str = "min") -> go.Figure:
    """Return the score of a plane with a button an aggregation, and a line across a boundary.

    Args:
        toy: see the module.
        field: x (W,), y (H,), and aggregation -> (H, W) scores of the profile's plane.
        profile: ``mod`` (its plane), ``line`` (N, 2), ``position`` (N,), ``scores`` (aggregation
            -> (N,)), ``rank`` (N,) which grows where the score may jump, ``boundary`` (a position)
            and ``jumps`` (aggregation -> how far it jumps there).
        shown: the aggregation that is seen first.
    """
    (x, y, scores), mod = field, profile["mod"]
    names, above, below = list(scores), {"row": 1, "col": 1}, {"row": 2, "col": 1}
    # Far from the curve scores grow without bound; the lowest ones say where colours end.
    top = float(min(np.quantile(values, 0.85) for values in scores.values()))
    titles = [f"score in the plane of {style.MODALITY_NAMES[mod]}", "score along the white line"]
    layout = {"row_heights": [0.6, 0.4], "vertical_spacing": 0.17, "subplot_titles": titles}
    fig = make_subplots(rows=2, cols=1, **layout)
    bar = {"title": {"text": "score"}, "len": 0.5, "y": 0.76, "x": 0.9, "thickness": 14}
    for how, values in scores.items():
        heat = go.Heatmap(
            x=_rounded(x), y=_rounded(y), z=[_rounded(row) for row in values], name=how
        )
        heat.update(zmin=0.0, zmax=top, colorscale=style.COLOUR_MAP)
        heat.update(colorbar=bar, visible=how == shown)
        heat.update(hovertemplate="score %{z:.2f}<extra></extra>")
        fig.add_trace(heat, **above)
    line = {"x": _rounded(profile["line"][:, 0]), "y": _rounded(profile["line"][:, 1])}
    for colour, width in (("black", 5), ("white", 2.5)):
        fig.add_trace(_line(line, "line", colour, width, showlegend=False), **above)
    diamond = {"color": "white", "size": 9, "symbol": "diamond", "line": {"width": 1.5}}
    fig.add_trace(_dots(toy.prototypes[mod], "prototypes", diamond, False), **above)
    # A gap wherever the rank grows, since nothing lies between the two sides.
    cuts = np.flatnonzero(np.diff(profile["rank"])) + 1
    places = np.insert(profile["position"].astype(float), cuts, profile["position"][cuts])
    curves = list(range(len(fig.data), len(fig.data) + len(names)))
    for how, (colour, dash) in OF_HOW.items():
        values = np.insert(profile["scores"][how].astype(float), cuts, np.nan)
        path = {"x": _rounded(places), "y": _rounded(values)}
        faint = {"opacity": 1.0 if how == shown else _FAINT, "dash": dash, "width": 2.5}
        name = f"{how} (jump {profile['jumps'][how]:.2f})"
        fig.add_trace(_line(path, name, colour, **faint), **below)
    words = {"text": "the nearest prototype changes", "font": {"size": 12}}
    dotted = {"color": "#333", "width": 1, "dash": "dot"}
    fig.add_vline(x=profile["boundary"], line=dotted, annotation=words, **below)
    plane = {"constrain": "domain", "showgrid": False, "zeroline": False}
    fig.update_xaxes(range=_rounded(x[[0, -1]]), title_text="feature 1", **plane, **above)
    fig.update_yaxes(range=_rounded(y[[0, -1]]), title_text="feature 2", **plane, **above)
    fig.update_yaxes(scaleanchor="x", **above)
    fig.update_xaxes(title_text="distance along the line", zeroline=False, **below)
    fig.update_yaxes(title_text="score", rangemode="tozero", **below)

    def set_to(how: str) -> list:
        """Return what the button of an aggregation changes, of which traces."""
        visible = [name == how for name in names] + [True] * len(curves)
        opacity = [1.0] * len(names) + [1.0 if name == how else _FAINT for name in OF_HOW]
        return [{"visible": visible, "opacity": opacity}, [*range(len(names)), *curves]]

    buttons = [(how, "restyle", set_to(how)) for how in names]
    fig.update_layout(updatemenus=[_buttons(buttons, 0, 1.14, active=names.index(shown))])
    return _finish(fig, height=720, top=90, bottom=85, legend_y=-0.13)
