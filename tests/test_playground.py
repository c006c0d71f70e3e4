"""The toy: what is drawn is the metric of the library, and what the chapter says of it is true."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from g2sf_lib import playground
from g2sf_lib.config import (
    MODALITIES,
    ConfigError,
    LossConfig,
    ModelConfig,
    TrainingConfig,
    make_config,
)
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.fusion import aggregate, encode
from g2sf_lib.playground import SUBSETS, SWITCHES, ToySettings, Trainings, make_toy, train_toy
from g2sf_lib.playground.trained import TOY_WEIGHTS
from g2sf_lib.training import heldout_images, train_metric

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ToySettings(epochs=4, num_seeds=2)


@pytest.fixture(scope="module")
def trainings():
    """Toys and trainings of the chapter's defaults, shared by the tests that only look."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Trainings(ToySettings())
    made.training(keep_states=True)
    torch.set_num_threads(before)
    return made


@pytest.fixture(scope="module")
def toy(trainings):
    return trainings.toy()


@pytest.fixture(scope="module")
def training(trainings):
    return trainings.training()


def parameters(metric):
    values = [*metric.lspn.parameters(), *metric.sigma.parameters()]
    return torch.cat([value.detach().ravel() for value in values])


# ---------------------------------------------------------------- settings


def test_settings_come_from_the_parameters_of_the_notebook():
    config = make_config("demo", seed=7)
    settings = playground.toy_settings(config)
    assert settings == dataclasses.replace(ToySettings(), seed=7)
    assert playground.toy_settings(make_config("smoke")).epochs < settings.epochs
    assert playground.toy_settings(config, toy_epochs=3).epochs == 3
    # as papermill hands a list over; always on, and in one order whoever writes it
    assert playground.toy_settings(config, losses="['cma', 'sep', 'mar']").losses == ("mar", "cma")
    assert playground.toy_settings(config, losses=[]).losses == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_prototypes": 4}, "num_prototypes is 4; expected a whole number from 5 to 60"),
        ({"num_prototypes": 8.0}, "num_prototypes is 8.0"),
        ({"toy_k": 0}, "toy_k is 0; expected a whole number from 1 to 10"),
        ({"toy_epochs": True}, "toy_epochs is True"),
        ({"num_seeds": 1}, "num_seeds is 1; expected a whole number from 2"),
        ({"anomalies_in": "all"}, "anomalies_in is 'all'; expected one of 'both', 'pcd', 'rgb'"),
        ({"how": "median"}, "how is 'median'; expected one of 'nearest', 'min', 'mean', 'max'"),
        ({"losses": ["l2"]}, r"losses is \['l2'\]; expected a list of some of 'sep', 'mar'"),
        ({"losses": "mar"}, "losses is 'mar'; expected a list"),
        ({"level": 0}, "level is 0; expected a number above 0"),
        ({"level": math.nan}, "level is nan"),
        ({"widgets": "no"}, "widgets is 'no'; expected True or False"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        playground.toy_settings(make_config(), **wrong)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the planes


def test_curves_at_a_few_places():
    half_circle = playground.curve("pcd", [0, 0.5, 1])
    assert np.allclose(half_circle, [[-2, -1], [0, 1], [2, -1]])
    wave = playground.curve("rgb", [0, 0.25, 0.5, 0.75, 1])
    assert np.allclose(wave, [[-2, 0], [-1, 0.9], [0, 0], [1, -0.9], [2, 0]])
    assert np.allclose(playground.along("pcd", [0.5]), [[1, 0]], atol=1e-6)
    assert np.allclose(playground.across("pcd", [0.5]), [[0, 1]], atol=1e-6)


@pytest.mark.parametrize("mod", MODALITIES)
def test_a_point_off_the_curve_belongs_to_the_place_below_it(mod):
    place = np.linspace(0.05, 0.95, 19)
    off = playground.curve(mod, place) + 0.2 * playground.across(mod, place)
    assert np.abs(playground.nearest_place(mod, off) - place).max() < 0.01


def gap_to_curve(mod, xy):
    places = np.linspace(0, 1, 4001)
    curve = playground.curve(mod, places)
    return np.linalg.norm(xy[:, None] - curve, axis=-1).min(axis=1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("both", (1, 1)), ("pcd", (1, 0)), ("rgb", (0, 1)), ("either", (2 / 3, 2 / 3))],
)
def test_anomalies_leave_the_curves_they_are_to_leave(kind, expected):
    made = make_toy(dataclasses.replace(QUICK, anomalies_in=kind))
    is_bad = made.is_anomalous
    assert is_bad.mean() == pytest.approx(0.3)
    off = {mod: gap_to_curve(mod, made.points[mod]) > 0.1 for mod in MODALITIES}
    for mod, share in zip(MODALITIES, expected, strict=True):
        assert off[mod][is_bad].mean() == pytest.approx(share, abs=0.1)
        assert off[mod][~is_bad].mean() < 0.1


def test_the_same_settings_give_the_same_toy():
    one, same = make_toy(QUICK), make_toy(QUICK)
    other = make_toy(dataclasses.replace(QUICK, seed=1))
    assert torch.equal(one.cells.s, same.cells.s)
    assert not torch.equal(one.cells.s, other.cells.s)
    assert set(one.tests) == set(playground.KINDS)
    assert not np.isin(one.tests["both"].feat["pcd"], one.cells.feat["pcd"]).any()


def test_cells_lie_in_images_that_can_be_held_out():
    cells = make_toy(QUICK).cells
    held = heldout_images(cells.image, 0.5, torch.Generator().manual_seed(0))
    assert held.float().mean() == 0.5
    for side in (held, ~held):
        assert 0 < cells.is_anomalous[side].float().mean() < 1
    assert cells.s.shape == (len(cells), 2 * QUICK.k + 1, 2)


@pytest.mark.parametrize("mod", MODALITIES)
def test_a_partner_is_the_prototype_nearest_to_the_same_point_in_the_other_plane(mod):
    made = make_toy(QUICK)
    there = playground.curve(playground.other(mod), made.place[mod])
    gaps = np.linalg.norm(there[:, None] - made.prototypes[playground.other(mod)], axis=-1)
    chosen = gaps[np.arange(len(gaps)), made.partner[mod].numpy()]
    # The point lies beside its place by noise only, so no prototype is much nearer.
    assert (chosen - gaps.min(axis=1)).max() < 0.2
    assert len(made.prototypes[mod]) == len(made.place[mod]) == QUICK.num_prototypes


# ---------------------------------------------------------------- balls


def test_an_untrained_ball_is_a_circle_of_a_radius_by_hand(toy, training):
    state = training.states[0]
    for m, mod in enumerate(MODALITIES):
        radius = np.linalg.norm(state.balls[mod] - toy.prototypes[mod][:, None], axis=-1)
        by_hand = 0.6 * float(state.metric.s_mean[m]) / 0.5  # level s_mean / (sigma w)
        assert np.allclose(radius, by_hand, rtol=1e-5)


@pytest.mark.parametrize("mod", MODALITIES)
def test_the_metric_has_the_level_all_along_a_trained_ball(toy, training, mod):
    """Eq. 1 to 3 once more, through directions that the shortcut never builds."""
    metric, mate = training.metric, playground.other(mod)
    balls = playground.unit_balls(metric, toy)[mod]
    num, points = balls.shape[:2]
    feat = {mod: torch.tensor(balls, dtype=torch.float32).reshape(-1, 2)}
    own = torch.arange(num).repeat_interleave(points)
    pair = toy.partner[mod][own]
    feat[mate] = toy.bank[mate].prototypes[pair]
    proto = {mod: toy.bank[mod].prototypes[own][:, None], mate: feat[mate][:, None]}
    d, s = {}, {}
    for name in MODALITIES:
        d[name], s[name] = encode(feat[name], proto[name])
    with torch.no_grad():
        w = metric.lspn(proto, d)
        ell = metric.ell(w, torch.stack([s[name] for name in MODALITIES], dim=-1))
    assert torch.allclose(ell, torch.tensor(toy.settings.level), atol=1e-4)
    radius = np.linalg.norm(balls - toy.prototypes[mod][:, None], axis=-1)
    assert (radius.max(axis=1) / radius.min(axis=1)).max() <= math.e**2 * (1 + 1e-5)


def test_a_ball_is_closed_and_grows_with_its_level(toy, training):
    balls = playground.unit_balls(training.metric, toy)
    settings = dataclasses.replace(toy.settings, level=1.2)
    double = playground.unit_balls(training.metric, dataclasses.replace(toy, settings=settings))
    for mod in MODALITIES:
        centre = toy.prototypes[mod][:, None]
        assert np.allclose(balls[mod][:, 0], balls[mod][:, -1], atol=1e-4)
        assert np.allclose(double[mod] - centre, 2 * (balls[mod] - centre), atol=1e-5)


def test_the_shape_before_training_is_one_in_every_direction(toy, training):
    shape = playground.shape_of_balls(training.states[0].metric, toy)
    assert set(shape) == {"w along", "w across", "w mismatched"}
    assert list(shape.values()) == pytest.approx([1.0, 1.0, 1.0])


# ---------------------------------------------------------------- training


def test_states_are_those_of_the_epochs(toy, training):
    assert [state.epoch for state in training.states] == list(range(41))
    kept = training.states[training.kept]
    assert torch.equal(parameters(kept.metric), parameters(training.metric))
    areas = playground.toy_aurocs(training.metric, toy)
    assert kept.numbers["AUROC"] == areas["both"]
    plain = playground.toy_aurocs(training.metric, toy, is_plain=True)
    assert training.states[0].numbers["AUROC"] == pytest.approx(plain["both"])


def test_keeping_states_does_not_change_the_training():
    made = make_toy(QUICK)
    watched, alone = train_toy(made, keep_states=True), train_toy(made)
    assert torch.equal(parameters(watched.metric), parameters(alone.metric))
    assert len(watched.states) == 5 and alone.states == []


@pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning")  # four epochs
def test_training_is_that_of_the_library():
    made = make_toy(QUICK)
    metric, _ = train_metric(
        made.cells,
        made.bank,
        ModelConfig(hidden=32, embed=16, dropout=0.1, k=2),
        TOY_WEIGHTS,
        TrainingConfig(
            epochs=4,
            batch_size=240,
            learning_rate=1e-2,
            sigma_learning_rate=5e-3,
            criterion="losses",
            normaliser="mean",
        ),
        seed=0,
        progress=False,
    )
    assert torch.equal(parameters(train_toy(made).metric), parameters(metric))


def test_a_loss_that_is_off_has_no_weight():
    off = playground.switched(TOY_WEIGHTS, ("cns", "cma"))
    assert (off.alpha, off.beta, off.gamma, off.mu) == (0.0, 1.0, 0.0, 0.1)
    made = make_toy(QUICK)
    heavy = LossConfig(alpha=50.0, gamma=50.0)
    one, other = (train_toy(made, ("cns",), weights) for weights in (LossConfig(), heavy))
    assert torch.equal(parameters(one.metric), parameters(other.metric))
    both = train_toy(made, ("cns", "sc"), heavy)
    assert not torch.equal(parameters(one.metric), parameters(both.metric))


def test_what_was_trained_once_is_not_trained_again():
    made = Trainings(QUICK)
    first = made.training(("cma", "mar"))
    assert first is made.training(("mar", "cma")) and first.losses == ("mar", "cma")
    assert first is not made.training(("mar",)) and first is not made.training(
        ("mar", "cma"), "rgb"
    )
    assert made.toy(seed=1) is made.toy(seed=1) is not made.toy()
    watched = made.training(("mar", "cma"), keep_states=True)
    assert watched.states and made.training(("mar", "cma")) is watched


# ---------------------------------------------------------------- what the chapter says


def test_on_this_toy_direction_matters_and_is_learned(toy, training):
    first, kept = training.states[0].numbers, training.states[training.kept].numbers
    assert kept["AUROC"] > first["AUROC"] + 0.05
    assert kept["w across"] > 1.5 * kept["w along"]
    report = playground.training_report(toy, training)
    assert f"{kept['AUROC']:.3f}" in report and "along the curve as across" in report
    assert "collapsed" not in report


def test_a_report_of_round_balls_says_so(toy, training):
    early = dataclasses.replace(training, kept=0, has_collapsed=True)
    report = playground.training_report(toy, early)
    assert "do not follow the curve" in report and "collapsed" in report


def test_solution_1_without_the_scaling_loss_balls_grow(trainings):
    rest = {}
    for losses in (("cns",), ("cns", "sc")):
        shapes = [
            playground.shape_of_balls(
                trainings.training(losses, seed=n).metric, trainings.toy(seed=n)
            )
            for n in range(3)
        ]
        rest[losses] = pd.DataFrame(shapes)
    gap = rest[("cns", "sc")] - rest[("cns",)]
    assert (gap["w along"] > 0).all() and (gap["w across"] > 0).all()


def test_solution_3_what_was_not_shown_is_not_learned(trainings):
    gains = {"pcd": [], "rgb": [], "pcd, as before": []}
    for seed in range(3):
        made, usual = trainings.toy("pcd", seed=seed), trainings.toy(seed=seed)
        metric = trainings.training(anomalies_in="pcd", seed=seed).metric
        before = trainings.training(seed=seed).metric
        plain = playground.toy_aurocs(metric, made, is_plain=True)
        learned = playground.toy_aurocs(metric, made)
        gains["pcd"].append(learned["pcd"] - plain["pcd"])
        gains["rgb"].append(learned["rgb"] - plain["rgb"])
        usual_plain = playground.toy_aurocs(before, usual, is_plain=True)["pcd"]
        gains["pcd, as before"].append(playground.toy_aurocs(before, usual)["pcd"] - usual_plain)
        assert float(metric.sigma()[1].detach()) < 0.5
    table = pd.DataFrame(gains)
    mean, error = table["rgb"].mean(), table["rgb"].sem()
    assert mean < 0 < mean + 4.3 * error
    assert table["pcd"].mean() > table["pcd, as before"].mean() > 0.1


def test_solution_4_too_much_alignment_gives_circles():
    made = Trainings(ToySettings(), LossConfig(mu=20.0))
    training = made.training(keep_states=True)
    assert training.has_collapsed and training.kept < 5
    last = training.states[-1]
    for m, mod in enumerate(MODALITIES):
        radius = np.linalg.norm(last.balls[mod] - made.toy().prototypes[mod][:, None], axis=-1)
        circle = 0.6 * float(last.metric.s_mean[m] / last.metric.sigma()[m].detach())
        assert np.allclose(radius, circle / math.e, rtol=0.02)


def test_solution_5_among_many_prototypes_direction_adds_little():
    made = Trainings(ToySettings(num_prototypes=40))
    metric = made.training().metric
    shape = playground.shape_of_balls(metric, made.toy())
    assert shape["w across"] < 1.3 * shape["w along"]
    plain = playground.toy_aurocs(metric, made.toy(), is_plain=True)["both"]
    assert plain > 0.95 and playground.toy_aurocs(metric, made.toy())["both"] - plain < 0.02


def test_solution_6_a_constant_w_leaves_minimum_and_order_alone(toy, training):
    cells = toy.tests["both"]
    ell = (torch.tensor([0.4, 2.0]) * cells.s).sum(-1)  # any constants
    assert torch.equal(aggregate(ell, "min"), ell[:, 0])
    report = playground.constant_scale_report(toy, training)
    area = image_auroc(
        playground.plain_ell(training.metric, cells.s)[:, 0].numpy(), cells.is_anomalous.numpy()
    )
    assert report.count(f"{area:.3f}") == 2 and "`nearest` is 0;" in report


def test_solution_7_with_one_modality_only_the_nearest_jumps(toy, training):
    """The other modality gives the same to every neighbourhood, so pairing cannot matter."""
    order = np.argsort(toy.place["rgb"])
    a, b = toy.prototypes["rgb"][order[3:5]].astype(float)
    step = 1e-4 * (b - a) / np.linalg.norm(b - a)
    feat = {"rgb": torch.tensor(np.stack([(a + b) / 2 - step, (a + b) / 2 + step])).float()}
    index, s = {}, torch.zeros(2, 3, 2)
    index["rgb"], s[..., 1] = toy.bank["rgb"].query(feat["rgb"], 3)
    index["pcd"] = torch.full((2, 3), int(toy.partner["rgb"][order[3]]))
    feat["pcd"] = toy.bank["pcd"].prototypes[index["pcd"][:, 0]]
    assert index["rgb"][0, 0] == index["rgb"][1, 1] and index["rgb"][0, 1] == index["rgb"][1, 0]
    ell = training.metric.ell(training.metric.scale_factors(feat, toy.bank, index, s), s).detach()
    jumps = {how: float(aggregate(ell, how).diff().abs()) for how in playground.AGGREGATIONS}
    assert jumps["nearest"] > 0.05
    assert max(jumps["min"], jumps["mean"], jumps["max"]) < 0.005


# ---------------------------------------------------------------- all subsets


@pytest.fixture(scope="module")
def rows():
    """Made up: every seed adds 0.01; margin adds 0.1, consistency takes 0.02, scaling is noise."""
    table = []
    for seed in range(3):
        noise = (-0.01, 0.0, 0.01)[seed]
        for subset in SUBSETS:
            area = 0.6 + 0.01 * seed
            area += 0.1 * ("mar" in subset) - 0.02 * ("cns" in subset) + noise * ("sc" in subset)
            row = {"losses": playground.subset_name(subset), "seed": seed}
            row |= {term: term in subset for term in SWITCHES}
            row |= dict.fromkeys(playground.KINDS, area)
            row |= {"w along": 0.5, "w across": 2.0, "w mismatched": 2.5}
            table.append(row | {"epoch": 3, "has_collapsed": subset == ("cma",)})
        row = dict.fromkeys(SWITCHES, False) | {"losses": "w = 1", "seed": seed, "epoch": 0}
        row |= dict.fromkeys(playground.KINDS, 0.5 + 0.01 * seed)
        row |= dict.fromkeys(("w along", "w across", "w mismatched"), 1.0)
        table.append(row | {"has_collapsed": False})
    return pd.DataFrame(table)


def test_there_are_sixteen_subsets():
    assert len(set(SUBSETS)) == 16 and SUBSETS[0] == () and SUBSETS[-1] == tuple(SWITCHES)


def test_effects_of_losses_by_hand(rows):
    effects = playground.loss_effects(rows, "both")
    assert effects["change"].to_dict() == pytest.approx(
        {"mar": 0.1, "cns": -0.02, "sc": 0.0, "cma": 0.0}, abs=1e-9
    )
    # three seeds with changes -0.01, 0, 0.01: t is 4.303 with two degrees of freedom
    assert effects.loc["sc", "high"] == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
    assert effects.loc["mar", "low"] == pytest.approx(0.1)


def test_the_verdict_says_gain_loss_or_neither(rows):
    lines = playground.loss_verdict(rows, "both").splitlines()
    said = {term: next(x for x in lines if f"<sub>{term}</sub> on" in x) for term in SWITCHES}
    assert said["mar"].endswith("+0.100): a gain.") and said["cns"].endswith("-0.020): a loss.")
    assert said["sc"].endswith("not told apart from no change.")
    assert "w = 1 0.510" in lines[0] and "the best subset is sep + mar" in lines[0]
    assert "- 3 of 48 trainings ended with a constant w." in lines
    none = rows.assign(has_collapsed=False)
    assert "constant w" not in playground.loss_verdict(none, "both")


def test_tables_are_means_and_spreads(rows):
    table = playground.loss_table(rows)
    assert list(table.index[:3]) == ["w = 1", "sep", "sep + mar"] and len(table) == 17
    assert table.loc["sep + mar", "AUROC, off both curves"] == "0.710\u00a0±\u00a00.010"
    assert table.loc["sep + mar", "w across"] == "2.00\u00a0±\u00a00.00"
    kinds = playground.kind_table(rows, ("mar",))
    assert list(kinds.index) == ["w = 1", "sep + mar"]
    assert (kinds.loc["w = 1"] == "0.510\u00a0±\u00a00.010").all()
    verdict = playground.kind_verdict(rows, ("mar",))
    assert verdict.count("+0.200 (95 % interval +0.200 to +0.200): a gain") == 4
    captions = playground.loss_captions(rows, "rgb")
    assert set(captions) == set(SUBSETS)
    assert captions[()].startswith("AUROC 0.610 ± 0.010; mean w: along 0.50, across 2.00")


def test_every_subset_is_trained_for_every_seed():
    made = Trainings(QUICK)
    table = playground.compare_losses(made)
    assert len(table) == 2 * (16 + 1) and set(table["seed"]) == {0, 1}
    plain = table[(table["losses"] == "w = 1") & (table["seed"] == 1)].iloc[0]
    own = made.training((), seed=1).metric
    assert plain["rgb"] == playground.toy_aurocs(own, made.toy(seed=1), is_plain=True)["rgb"]
    row = table[(table["losses"] == "sep + cns") & (table["seed"] == 1)].iloc[0]
    metric = made.training(("cns",), seed=1).metric
    assert row["both"] == playground.toy_aurocs(metric, made.toy(seed=1))["both"]
    assert row["cns"] and not row[["mar", "sc", "cma"]].any()


# ---------------------------------------------------------------- aggregation


@pytest.mark.parametrize("mod", MODALITIES)
def test_scores_of_a_plane_are_in_order_and_low_on_prototypes(toy, training, mod):
    field = playground.score_map(training.metric, toy, mod, num=20)
    assert {how: s.shape for how, s in field.scores.items()} == dict.fromkeys(
        playground.AGGREGATIONS, (len(field.y), 20)
    )
    low, mean, high = (field.scores[how] for how in ("min", "mean", "max"))
    assert (low <= mean + 1e-6).all() and (mean <= high + 1e-6).all()
    assert (low <= field.scores["nearest"]).all()
    xy = np.stack(np.meshgrid(field.x, field.y), axis=-1)
    near = gap_to_curve(mod, xy.reshape(-1, 2)).reshape(low.shape) < 0.2
    assert low[near].mean() < 0.5 * low[~near].mean()


def test_nothing_jumps_before_training(toy, training):
    jumps = playground.curve_jumps(training.states[0].metric, toy)
    assert len(jumps) > 20 and jumps["is_nearest"].sum() >= 2 * (8 - 1)
    assert jumps[list(playground.AGGREGATIONS)].to_numpy().max() < 0.01


def test_learned_neighbourhoods_disagree_where_they_meet(toy, training):
    jumps = playground.curve_jumps(training.metric, toy)
    nearest = jumps[jumps["is_nearest"]]["nearest"]
    assert nearest.max() > 0.1
    # where only farther prototypes change, the nearest neighbourhood stays the same
    assert jumps.loc[~jumps["is_nearest"], "nearest"].max() < 0.02
    table = playground.jump_table(jumps)
    column = table.columns[0]
    assert column == f"the nearest prototype changes ({len(nearest)} times)"
    assert table.loc["nearest", column] == f"{nearest.mean():.3f} (up to {nearest.max():.3f})"


def test_jumps_are_told_in_order():
    jumps = pd.DataFrame(
        {"place": [0.1, 0.2], "is_nearest": [True, True], "nearest": [2.0, 2.0],
         "min": [0.5, 0.5], "mean": [1.0, 2.0], "max": [9.0, 0.0]}
    )  # fmt: skip
    plain = jumps.assign(**dict.fromkeys(playground.AGGREGATIONS, 0.001))
    report = playground.jump_report(jumps, plain)
    assert "`min` 1.00, `mean` 3.00, `nearest` 4.00, `max` 9.00" in report
    assert "the smoothest is `min`" in report and "0.25 times as far as `nearest`" in report
    assert "0.0010" in report
    table = playground.jump_table(jumps)
    assert (table[table.columns[1]] == "–").all()  # only farther ones: never


def test_the_profile_crosses_the_boundary_where_the_nearest_jumps_most(toy, training):
    profile = playground.boundary_profile(training.metric, toy)
    at = int(np.searchsorted(profile.position, profile.boundary))
    assert profile.rank[at] > profile.rank[at - 1]
    for how, values in profile.scores.items():
        seen = abs(values[at] - values[at - 1])
        assert seen == pytest.approx(profile.jumps[how], abs=0.05)
    query = toy.bank[profile.mod].query
    sides = torch.tensor(profile.line[[at - 1, at]], dtype=torch.float32)
    first, second = query(sides, 1)[0][:, 0].tolist()
    a, b = toy.prototypes[profile.mod][[first, second]]
    assert np.allclose((profile.line[at - 1] + profile.line[at]) / 2, (a + b) / 2, atol=0.02)
    # Within a stretch the score is continuous; the boundary and both prototypes end one.
    same = np.diff(profile.rank) == 0
    assert profile.rank[-1] >= 3
    for values in profile.scores.values():
        assert np.abs(np.diff(values))[same].max() < 0.1


def test_prototypes_that_lie_close_together_have_a_profile_too():
    made = Trainings(dataclasses.replace(QUICK, num_prototypes=60))
    profile = playground.boundary_profile(made.training().metric, made.toy())
    assert len(profile.line) == 401 and np.isfinite(profile.scores["min"]).all()
    few = Trainings(dataclasses.replace(QUICK, num_prototypes=3, k=1))
    assert playground.boundary_profile(few.training().metric, few.toy()).mod in MODALITIES
    assert set(few.maps(few.training().metric)) == set(MODALITIES)
