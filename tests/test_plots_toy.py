"""Figures of the toy: what sliders and switches show is what came in."""

import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from g2sf_lib.plots.page import bundle
from g2sf_lib.plots.toy import MAX_BALLS, MAX_FRAMES, TERMS, ball_slider, loss_switches

MODALITIES = ("pcd", "rgb")
ORDER = ("mar", "cns", "sc", "cma")
SUBSETS = [s for n in range(5) for s in itertools.combinations(ORDER, n)]


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


def state(epoch, **size):
    numbers = {"w along": 1.0, "w across": 2.0, "w mismatched": 2.5, "AUROC": 0.5 + 0.001 * epoch}
    return SimpleNamespace(epoch=epoch, balls=balls(1 + epoch, **size), numbers=numbers)


def named(fig, name):
    return [trace for trace in fig.data if trace.name == name]


def lines(trace):
    """The balls of a trace: the path between two gaps."""
    xy = np.array([trace["x"], trace["y"]], dtype=float).T
    cuts = np.flatnonzero(np.isnan(xy[:, 0]))
    return [part[~np.isnan(part[:, 0])] for part in np.split(xy, cuts) if len(part) > 1]


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
    for trace, mod in zip(named(fig, "before training"), MODALITIES, strict=True):
        assert trace.line.dash == "dot" and np.allclose(lines(trace), balls(1.0)[mod], atol=6e-4)
        assert fig.data.index(trace) not in fig.frames[0].traces
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
    states = [state(epoch / 7, num=60, points=49) for epoch in range(201)]
    for epoch, one in enumerate(states):
        one.epoch = epoch
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
    assert given == content["application/vnd.plotly.v1+json"]
    assert 'role="group" aria-label="balls"' in page  # a button in an image could not be reached


@pytest.fixture
def switches(toy):
    of = {subset: balls(1 + n) for n, subset in enumerate(SUBSETS)}
    captions = {subset: f"number {n}" for n, subset in enumerate(SUBSETS)}
    return loss_switches(toy, balls(0.5), of, captions, ("mar", "cns"))


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
    menus = dict(zip(TERMS, switches.layout.updatemenus, strict=True))
    assert {name: menu.active for name, menu in menus.items()} == dict(cns=0, mar=0, sc=1, cma=1)
    rng = np.random.default_rng(0)
    on, found = {"mar", "cns"}, set()
    for _ in range(200):
        term, is_on = str(rng.choice(ORDER)), bool(rng.integers(2))
        button = menus[term].buttons[0 if is_on else 1]
        assert button.method == "restyle" and button.label == ("on" if is_on else "off")
        switches.plotly_restyle(*button.args)  # what the page does, with plotly's own checks
        on = on | {term} if is_on else on - {term}
        assert set(subset_shown(switches)) == on
        found.add(frozenset(on))
    assert len(found) == 16


def test_circles_and_the_full_set_stay(switches):
    for name, size in (("before training", 0.5), ("all losses", 16)):
        for trace, mod in zip(named(switches, name), MODALITIES, strict=True):
            assert np.allclose(lines(trace), balls(size)[mod], atol=6e-4)
