"""Figures of the toy: what sliders, switches and buttons show is what came in."""

import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from g2sf_lib.plots.page import bundle
from g2sf_lib.plots.toy import (
    MAX_BALLS,
    MAX_FRAMES,
    aggregation_maps,
    ball_slider,
    loss_switches,
)
from g2sf_lib.plots.toy import TERMS as NAMED

MODALITIES = ("pcd", "rgb")
TERMS = ("mar", "cns", "sc", "cma")
SUBSETS = [s for n in range(5) for s in itertools.combinations(TERMS, n)]
HOWS = ("nearest", "min", "mean", "max")


def balls(scale=1.0, num=4, points=9):
    """Circles of radius `scale`, prototypes at x = 0, 1, 2, ..."""
    angle = np.linspace(0, 2 * np.pi, points)
    circle = scale * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    centre = np.stack([np.arange(num), np.zeros(num)], axis=-1)[:, None]
    return {mod: centre + circle for mod in MODALITIES}


@pytest.fixture
def toy():
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        points={mod: rng.uniform([0, -1], [3, 1], (30, 2)) for mod in MODALITIES},
        is_anomalous=np.arange(30) < 10,
        prototypes={mod: np.stack([np.arange(4.0), np.zeros(4)], axis=-1) for mod in MODALITIES},
    )


def state(epoch):
    numbers = {"w along": 1.0, "w across": 2.0, "w mismatched": 2.5, "AUROC": 0.5 + 0.001 * epoch}
    return SimpleNamespace(epoch=epoch, balls=balls(1 + epoch), numbers=numbers)


def named(fig, name):
    return [trace for trace in fig.data if trace.name == name]


def lines(trace):
    """The balls of a trace: the path between two gaps."""
    xy = np.array([trace["x"], trace["y"]], dtype=float).T
    cuts = np.flatnonzero(np.isnan(xy[:, 0]))
    return [part[~np.isnan(part[:, 0])] for part in np.split(xy, cuts) if len(part) > 1]


# ---------------------------------------------------------------- slider


def test_a_frame_has_the_balls_of_its_epoch(toy):
    states = [state(epoch) for epoch in range(5)]
    fig = ball_slider(toy, states, kept=3)
    assert [frame.name for frame in fig.frames] == list("01234")
    assert [step.args[0][0] for step in fig.layout.sliders[0].steps] == list("01234")
    assert fig.layout.sliders[0].active == 3
    for frame, one in zip(fig.frames, states, strict=True):
        targets = [fig.data[n] for n in frame.traces]
        assert [trace.name for trace in targets] == ["at this epoch"] * 2 + ["shown"] * 2
        for trace, mod in zip(frame.data[:2], MODALITIES, strict=True):
            assert np.allclose(lines(trace), one.balls[mod], atol=6e-4)
        assert all(list(mark.x) == [one.epoch, one.epoch] for mark in frame.data[2:])
    # What is seen before anybody moves the slider is the frame of the epoch that was kept.
    for trace, n in zip(fig.frames[3].data, fig.frames[3].traces, strict=True):
        assert trace.x == fig.data[n].x and trace.y == fig.data[n].y


def test_circles_cells_and_numbers_stay_while_the_slider_moves(toy):
    fig = ball_slider(toy, [state(0), state(1)], kept=1)
    moving = set(fig.frames[0].traces)
    for trace, mod in zip(named(fig, "before training"), MODALITIES, strict=True):
        assert trace.line.dash == "dot" and np.allclose(lines(trace), balls(1.0)[mod], atol=6e-4)
        assert fig.data.index(trace) not in moving
    for column, mod in enumerate(MODALITIES):
        cells = named(fig, "normal cells")[column]
        assert np.allclose(cells.x, toy.points[mod][10:, 0], atol=6e-4)
        assert len(named(fig, "synthetic anomalies")[column].x) == 10
        assert list(named(fig, "prototypes")[column].x) == [0, 1, 2, 3]
    assert named(fig, "AUROC")[0].y == (0.5, 0.501)
    assert named(fig, "w across")[0].y == (2.0, 2.0)
    assert fig.layout.yaxis.scaleanchor == "x" and fig.layout.yaxis2.scaleanchor == "x2"
    assert fig.layout.xaxis.range is not None  # or the axes would jump with the balls


def test_long_trainings_and_large_banks_stay_below_a_megabyte(toy):
    states = [state(epoch) for epoch in range(201)]
    for one in states:
        one.balls = balls(1.234567 + one.epoch / 7, num=60, points=49)
    fig = ball_slider(toy, states, kept=77)
    epochs = [int(frame.name) for frame in fig.frames]
    assert len(epochs) <= MAX_FRAMES + 1 and {0, 77, 200} <= set(epochs)
    assert epochs == sorted(epochs) and max(np.diff(epochs)) <= 6
    shown = lines(fig.frames[0].data[0])
    assert len(shown) == MAX_BALLS
    assert shown[0].mean() < shown[-1].mean()  # from one end to the other
    assert len(bundle(fig, "alt")["text/html"]) < 1_000_000


def test_the_page_hands_the_frames_to_plotly(toy):
    content = bundle(ball_slider(toy, [state(0), state(1)], kept=1), "balls")
    page = content["text/html"]
    given = json.loads(re.search(r"Plotly\.newPlot\(place, (\{.*\})\);\n", page)[1])
    assert list(given) == ["data", "layout", "config", "frames"]
    assert [frame["name"] for frame in given["frames"]] == ["0", "1"]
    assert given == content["application/vnd.plotly.v1+json"]
    assert 'role="group" aria-label="balls"' in page  # a button in an image could not be reached


# ---------------------------------------------------------------- switches


@pytest.fixture
def switches(toy):
    of = {subset: balls(1 + n) for n, subset in enumerate(SUBSETS)}
    captions = {subset: f"number {n}" for n, subset in enumerate(SUBSETS)}
    return loss_switches(toy, balls(0.5), of, captions, ("mar", "cns"))


def press(fig, term, is_on):
    """Do what the page does with a `restyle` button, with plotly's own checks of attributes."""
    button = fig.layout.updatemenus[list(NAMED).index(term)].buttons[0 if is_on else 1]
    assert button.method == "restyle" and button.label == ("on" if is_on else "off")
    fig.plotly_restyle(*button.args)


def is_seen(trace):
    colour = trace.textfont.color if trace.text else trace.line.color
    is_drawn = trace.mode == ("text" if trace.text else "lines")
    return trace.visible is not False and trace.opacity == 1 and is_drawn and colour == "black"


def subset_shown(fig):
    """The one subset whose two balls and caption are seen."""
    (indices,) = {tuple(b.args[1]) for menu in fig.layout.updatemenus for b in menu.buttons}
    assert len(indices) == 3 * 16
    assert not {fig.data.index(trace) for trace in named(fig, "all losses")} & set(indices)
    first, second, caption = (fig.data[n] for n in indices if is_seen(fig.data[n]))
    subset = SUBSETS[int(re.search(r"number (\d+)", caption.text[0])[1])]
    assert re.findall(r"<sub>(\w+)</sub>", caption.text[0]) == ["sep", *subset]
    for trace in (first, second):
        assert lines(trace)[0][0, 0] == pytest.approx(1 + SUBSETS.index(subset))
    return subset


def test_four_switches_show_each_of_sixteen_subsets_whatever_was_pressed_before(switches):
    assert subset_shown(switches) == ("mar", "cns")
    actives = [menu.active for menu in switches.layout.updatemenus]
    assert dict(zip(NAMED, actives, strict=True)) == {"cns": 0, "mar": 0, "sc": 1, "cma": 1}
    rng = np.random.default_rng(0)
    on, found = {"mar", "cns"}, set()
    for _ in range(200):
        term, is_on = str(rng.choice(TERMS)), bool(rng.integers(2))
        press(switches, term, is_on)
        on = on | {term} if is_on else on - {term}
        assert set(subset_shown(switches)) == on
        found.add(frozenset(on))
    assert len(found) == 16


def test_circles_and_the_full_set_stay(switches):
    for name, size in (("before training", 0.5), ("all losses", 16)):
        for trace, mod in zip(named(switches, name), MODALITIES, strict=True):
            assert np.allclose(lines(trace), balls(size)[mod], atol=6e-4)


# ---------------------------------------------------------------- aggregation


@pytest.fixture
def maps(toy):
    x, y, position = np.linspace(0, 3, 5), np.linspace(-1, 1, 4), np.arange(6.0)
    field = (x, y, {how: np.full((4, 5), n + 1.0) for n, how in enumerate(HOWS)})
    profile = {
        "mod": "pcd",
        "line": np.stack([position / 2, np.zeros(6)], axis=-1),
        "position": position,
        "scores": {how: position + n for n, how in enumerate(HOWS)},
        "rank": np.array([0, 0, 1, 1, 1, 1]),
        "boundary": 1.5,
        "jumps": {how: float(n) for n, how in enumerate(HOWS)},
    }
    return aggregation_maps(toy, field, profile, shown="mean")


def test_a_button_shows_one_aggregation_in_plane_and_line(maps):
    heat = [trace for trace in maps.data if trace.type == "heatmap"]
    assert [trace.visible for trace in heat] == [False, False, True, False]
    assert [trace.z[0][0] for trace in heat] == [1, 2, 3, 4]
    curves = [trace for trace in maps.data if trace.name and "jump" in trace.name]
    assert [trace.name for trace in curves] == [f"{h} (jump {n}.00)" for n, h in enumerate(HOWS)]
    assert [trace.opacity == 1 for trace in curves] == [False, False, True, False]
    menu = maps.layout.updatemenus[0]
    assert menu.active == 2
    for place, (how, button) in enumerate(zip(HOWS, menu.buttons, strict=True)):
        assert button.label == how
        maps.plotly_restyle(*button.args)  # what the page does, with plotly's own checks
        assert [trace.visible for trace in heat] == [n == place for n in range(4)]
        assert [trace.opacity for trace in heat] == [1.0] * 4
        assert [trace.opacity == 1 for trace in curves] == [n == place for n in range(4)]
        assert all(trace.visible for trace in curves)


def test_a_curve_is_broken_where_the_score_may_jump_and_nowhere_else(maps):
    (curve,) = named(maps, "min (jump 1.00)")
    assert curve.y == (1.0, 2.0, None, 3.0, 4.0, 5.0, 6.0)
    assert maps.layout.shapes[0].x0 == 1.5
