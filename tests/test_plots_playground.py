"""Figures of the toy: what sliders, switches and buttons show is what came in."""

import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import plots
from g2sf_lib.plots.playground import MAX_BALLS, MAX_FRAMES
from g2sf_lib.plots.playground.planes import TERMS as NAMED

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


def state(epoch, num=4):
    numbers = {"w along": 1.0, "w across": 2.0, "w mismatched": 2.5, "AUROC": 0.5 + 0.001 * epoch}
    numbers |= {"sigma pcd": 0.4, "sigma rgb": 0.6}
    return SimpleNamespace(
        epoch=epoch, balls=balls(1 + epoch, num), numbers=numbers, metric=f"metric {epoch}"
    )


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
    fig = plots.ball_slider(toy, states, kept=3)
    assert [frame.name for frame in fig.frames] == list("01234")
    steps = fig.layout.sliders[0].steps
    assert [step.args[0][0] for step in steps] == list("01234")
    assert fig.layout.sliders[0].active == 3
    for frame, one in zip(fig.frames, states, strict=True):
        assert len(frame.data) == len(frame.traces) == 4
        targets = [fig.data[n] for n in frame.traces]
        assert [trace.name for trace in targets] == ["at this epoch"] * 2 + ["shown"] * 2
        for trace, mod in zip(frame.data[:2], MODALITIES, strict=True):
            found = lines(trace)
            assert len(found) == 4
            assert np.allclose(found, one.balls[mod], atol=6e-4)
        assert all(list(mark.x) == [one.epoch, one.epoch] for mark in frame.data[2:])
    # What is seen before anybody moves the slider is the frame of the epoch that was kept.
    for trace, n in zip(fig.frames[3].data, fig.frames[3].traces, strict=True):
        assert trace.x == fig.data[n].x and trace.y == fig.data[n].y


def test_circles_cells_and_numbers_stay_while_the_slider_moves(toy):
    fig = plots.ball_slider(toy, [state(0), state(1)], kept=1)
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
    states = [state(epoch, num=60) for epoch in range(201)]
    for one in states:
        one.balls = balls(1.234567 + one.epoch / 7, num=60, points=49)
    toy.prototypes = {mod: np.zeros((60, 2)) for mod in MODALITIES}
    fig = plots.ball_slider(toy, states, kept=77)
    epochs = [int(frame.name) for frame in fig.frames]
    assert len(epochs) <= MAX_FRAMES and {0, 77, 200} <= set(epochs)
    assert epochs == sorted(epochs) and max(np.diff(epochs)) <= 6
    shown = lines(fig.frames[0].data[0])
    assert len(shown) == MAX_BALLS
    assert shown[0].mean() < shown[-1].mean()  # from one end to the other
    assert len(plots.bundle(fig, "alt")["text/html"]) < 1_000_000


def test_a_slider_needs_the_epoch_that_was_kept(toy):
    with pytest.raises(ValueError, match="no state of epoch 9"):
        plots.ball_slider(toy, [state(0)], kept=9)


def test_the_page_hands_the_frames_to_plotly(toy):
    content = plots.bundle(plots.ball_slider(toy, [state(0), state(1)], kept=1), "balls")
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
    return plots.loss_switches(toy, balls(0.5), of, captions, ("mar", "cns"))


def press(fig, term, is_on):
    """Do what the page does with a `restyle` button, with plotly's own checks of attributes."""
    menu = fig.layout.updatemenus[list(NAMED).index(term)]
    button = menu.buttons[0 if is_on else 1]
    assert button.method == "restyle" and button.label == ("on" if is_on else "off")
    fig.plotly_restyle(*button.args)


def switched(fig):
    """The traces that the switches change."""
    (indices,) = {tuple(b.args[1]) for menu in fig.layout.updatemenus for b in menu.buttons}
    return [fig.data[n] for n in indices]


def is_seen(trace):
    colour = trace.textfont.color if trace.text else trace.line.color
    is_drawn = trace.mode == ("text" if trace.text else "lines")
    return trace.visible is not False and trace.opacity == 1 and is_drawn and colour == "black"


def subset_shown(fig):
    """The one subset whose two balls and caption are seen."""
    shown = [trace for trace in switched(fig) if is_seen(trace)]
    assert len(shown) == 3
    (caption,) = [trace for trace in shown if trace.text]
    subset = SUBSETS[int(re.search(r"number (\d+)", caption.text[0])[1])]
    assert re.findall(r"<sub>(\w+)</sub>", caption.text[0]) == ["sep", *subset]
    for trace in shown:
        if not trace.text:
            radius = lines(trace)[0][0, 0]
            assert radius == pytest.approx(1 + SUBSETS.index(subset))
    return subset


def test_the_first_picture_is_the_subset_that_was_asked_for(switches):
    assert subset_shown(switches) == ("mar", "cns")
    active = {
        term: menu.active for term, menu in zip(NAMED, switches.layout.updatemenus, strict=True)
    }
    assert active == {"cns": 0, "mar": 0, "sc": 1, "cma": 1}


def test_four_switches_show_each_of_sixteen_subsets_whatever_was_pressed_before(switches):
    assert len(switched(switches)) == 3 * 16
    rng = np.random.default_rng(0)
    on = {"mar", "cns"}
    found = set()
    for _ in range(200):
        term = str(rng.choice(TERMS))
        is_on = bool(rng.integers(2))
        press(switches, term, is_on)
        on = on | {term} if is_on else on - {term}
        shown = subset_shown(switches)
        assert set(shown) == on
        found.add(shown)
    assert len(found) == 16


def test_circles_and_the_full_set_stay(switches):
    for trace, mod in zip(named(switches, "before training"), MODALITIES, strict=True):
        assert np.allclose(lines(trace), balls(0.5)[mod], atol=6e-4)
    for trace, mod in zip(named(switches, "all losses"), MODALITIES, strict=True):
        assert np.allclose(lines(trace), balls(16)[mod], atol=6e-4)
    changed = switches.layout.updatemenus[0].buttons[0].args[1]
    kept = {switches.data.index(t) for t in named(switches, "all losses")}
    assert not kept & set(changed)


def test_a_missing_subset_is_told(toy):
    of = {subset: balls() for subset in SUBSETS[:-1]}
    with pytest.raises(ValueError, match="balls of 15 and captions of 15 subsets; expected 16"):
        plots.loss_switches(toy, balls(), of, dict.fromkeys(of, ""), ())


# ---------------------------------------------------------------- aggregation


@pytest.fixture
def maps():
    x, y = np.linspace(0, 3, 5), np.linspace(-1, 1, 4)
    scores = {how: np.full((4, 5), n + 1.0) for n, how in enumerate(HOWS)}
    return SimpleNamespace(mod="pcd", x=x, y=y, scores=scores)


@pytest.fixture
def profile():
    position = np.arange(6.0)
    return SimpleNamespace(
        mod="pcd",
        line=np.stack([position / 2, np.zeros(6)], axis=-1),
        position=position,
        scores={how: position + n for n, how in enumerate(HOWS)},
        rank=np.array([0, 0, 1, 1, 1, 1]),
        boundary=1.5,
        jumps={how: float(n) for n, how in enumerate(HOWS)},
    )


def test_a_button_shows_one_aggregation_in_plane_and_line(toy, maps, profile):
    fig = plots.aggregation_maps(toy, maps, profile, shown="mean")
    heat = [trace for trace in fig.data if trace.type == "heatmap"]
    assert [trace.visible for trace in heat] == [False, False, True, False]
    assert {(trace.zmin, trace.zmax) for trace in heat} == {(0.0, heat[0].zmax)}
    curves = [trace for trace in fig.data if trace.name and "jump" in trace.name]
    assert [trace.name for trace in curves] == [f"{h} (jump {n}.00)" for n, h in enumerate(HOWS)]
    assert [trace.opacity == 1 for trace in curves] == [False, False, True, False]
    for place, (how, button) in enumerate(
        zip(HOWS, fig.layout.updatemenus[0].buttons, strict=True)
    ):
        assert button.label == how
        changes, indices = button.args
        assert [fig.data[n].type for n in indices] == ["heatmap"] * 4 + ["scatter"] * 4
        fig.plotly_restyle(changes, indices)  # what the page does, with plotly's own checks
        assert [trace.visible for trace in heat] == [n == place for n in range(4)]
        assert [trace.opacity for trace in heat] == [1.0] * 4
        assert [trace.opacity == 1 for trace in curves] == [n == place for n in range(4)]
        assert all(trace.visible for trace in curves)
    assert fig.layout.updatemenus[0].active == 2


def test_a_curve_is_broken_where_the_score_may_jump_and_nowhere_else(toy, maps, profile):
    fig = plots.aggregation_maps(toy, maps, profile)
    curve = next(trace for trace in fig.data if trace.name == "min (jump 1.00)")
    assert curve.y == (1.0, 2.0, None, 3.0, 4.0, 5.0, 6.0)
    assert fig.layout.shapes[0].x0 == 1.5


def test_map_and_profile_are_of_one_plane(toy, maps, profile):
    profile.mod = "rgb"
    with pytest.raises(ValueError, match="a map of pcd, a profile of rgb"):
        plots.aggregation_maps(toy, maps, profile)
    profile.mod = "pcd"
    with pytest.raises(ValueError, match="shown is 'median'"):
        plots.aggregation_maps(toy, maps, profile, shown="median")


# ---------------------------------------------------------------- still figures, controls


def test_subsets_are_dots_above_a_table_of_what_is_on():
    rows = [
        {"losses": name, "mar": False, "cns": cns, "sc": False, "cma": False, "value": 0.8 + x}
        for name, cns, x in (("sep", False, 0.0), ("sep", False, 0.1), ("sep + cns", True, 0.05))
    ]
    rows += [dict.fromkeys(TERMS, False) | {"losses": "w = 1", "value": v} for v in (0.5, 0.7)]
    fig = plots.subset_dots(pd.DataFrame(rows), "value")
    ax, table = fig.axes
    assert [list(line.get_ydata()) for line in ax.lines] == [
        [pytest.approx(y) for y in ys]
        for ys in ([0.6] * 2, [0.8, 0.9], [0.85] * 2, [0.85], [0.85] * 2)
    ]  # fmt: skip
    on = {(line.get_xdata()[0], line.get_ydata()[0]) for line in table.lines
          if line.get_color() == "0.15"}  # fmt: skip
    labels = [tick.get_text() for tick in table.get_yticklabels()]
    assert on == {(1, labels.index("$L_{cns}$"))} and len(table.lines) == 8
    with pytest.raises(ValueError, match=r"subset_dots: .* \['cma'\]"):
        plots.subset_dots(pd.DataFrame(rows).drop(columns="cma"), "value")


def test_panels_show_balls_and_the_chosen_scores(toy, maps):
    fig = plots.toy_panels(toy, balls(0.5), balls(2), dict.fromkeys(MODALITIES, maps), "mean", "t")
    for ax in (fig.axes[0], fig.axes[1]):
        solid = [line for line in ax.lines if line.get_linestyle() == "-"]
        assert np.allclose(solid[0].get_xydata(), balls(2)["pcd"][0])
    for ax in (fig.axes[2], fig.axes[3]):
        assert (ax.images[0].get_array() == 3).all()  # "mean" is the third


class Trainings:
    """What the controls ask, written down; the epoch is the size of the balls."""

    def __init__(self, toy, maps):
        self.made, self.field, self.asked = toy, maps, []
        self.settings = SimpleNamespace(
            losses=("mar", "cns"), epochs=3, how="min", anomalies_in="both"
        )

    def toy(self, anomalies_in):
        return self.made

    def training(self, losses, anomalies_in, keep_states):
        assert keep_states
        self.asked.append((losses, anomalies_in))
        return SimpleNamespace(losses=losses, kept=2, states=[state(n) for n in range(4)])

    def maps(self, metric, anomalies_in):
        self.asked.append(metric)
        return dict.fromkeys(MODALITIES, self.field)


def controls_of(box):
    """Description -> control, and the picture."""
    losses, others, _, picture = box.children
    return {one.description: one for one in (*losses.children, *others.children)}, picture


def test_each_control_draws_again(toy, maps):
    trainings = Trainings(toy, maps)
    by_name, picture = controls_of(plots.playground_controls(trainings))
    assert set(trainings.asked[0][0]) == {"mar", "cns"} and trainings.asked[0][1] == "both"
    assert trainings.asked[1] == "metric 3"
    pictures = [picture.value]
    for name, value in (
        ("scaling", True),
        ("epoch", 1),
        ("aggregation", "max"),
        ("anomalies", "rgb"),
    ):
        by_name[name].value = value
        pictures.append(picture.value)
    assert set(trainings.asked[2][0]) == {"mar", "cns", "sc"}
    assert trainings.asked[-1] == "metric 1" and trainings.asked[-2][1] == "rgb"
    assert all('<img src="data:image/png;base64,' in text for text in pictures)
    # the made-up trainings of other anomalies are the same, so is their picture
    assert len(set(pictures)) == 4 and pictures[-1] == pictures[-2]
    assert 'alt="Balls of the metric' in picture.value and "epoch 1 (2 is kept)" in picture.value


def test_controls_are_for_jupyterlab_only(toy, maps):
    """The book drops this output (workflow/build_book.py): it has nothing a page could draw."""
    content = plots.bundle(plots.playground_controls(Trainings(toy, maps)), "controls of the toy")
    assert set(content) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert content["text/plain"] == "controls of the toy"
