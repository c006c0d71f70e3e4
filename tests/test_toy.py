"""The toy: what is drawn is the metric of the library, and what chapter 12 says of it is true."""

import functools
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from g2sf_lib import toy as toys
from g2sf_lib.config import MODALITIES, make_config
from g2sf_lib.fusion import aggregate, encode
from g2sf_lib.toy import ToySettings, make_toy, train_toy

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS, ALL = make_config("demo").loss, tuple(toys.SWITCHES)
QUICK = ToySettings(epochs=4, num_seeds=2)


@functools.cache
def made(kind="both", seed=0):
    return make_toy(ToySettings(anomalies_in=kind, seed=seed))


@functools.cache
def trained(losses=ALL, kind="both", seed=0):
    return train_toy(made(kind, seed), losses, WEIGHTS)


@pytest.fixture(scope="module")
def training():
    """The training of the chapter's defaults, whose states are kept."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = train_toy(made(), ALL, WEIGHTS, keep_states=True)
    torch.set_num_threads(before)
    return found


def parameters(metric):
    values = [*metric.lspn.parameters(), *metric.sigma.parameters()]
    return torch.cat([value.detach().ravel() for value in values])


def radii(balls, toy, mod):
    return np.linalg.norm(balls[mod] - toy.prototypes[mod][:, None], axis=-1)


def test_losses_are_in_one_order_whoever_writes_them():
    # as papermill hands a list over, and with the loss that is always on
    assert ToySettings(losses="['cma', 'sep', 'mar']").losses == ("mar", "cma")
    assert ToySettings(losses=[]).losses == () and ToySettings().losses == ALL
    assert len(set(toys.SUBSETS)) == 16 and toys.SUBSETS[-1] == ALL


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"num_prototypes": 4}, "num_prototypes is 4; expected 2k . 1"),
        ({"num_prototypes": 8.0}, "num_prototypes"),
        ({"anomalies_in": "all"}, "anomalies_in\n.*'both', 'pcd', 'rgb' or 'either'"),
        ({"losses": ["l2"]}, "losses\n.*expected a list of some of mar, cns"),
        ({"losses": "mar"}, "losses"),
        ({"level": math.nan}, "level"),
        ({"levels": 1.0}, "levels"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong, name):
    with pytest.raises(ValidationError, match=name):
        ToySettings(**wrong)


def test_curves_at_a_few_places():
    assert np.allclose(toys.curve("pcd", [0, 0.5, 1]), [[-2, -1], [0, 1], [2, -1]])
    wave = toys.curve("rgb", [0, 0.25, 0.5, 0.75, 1])
    assert np.allclose(wave, [[-2, 0], [-1, 0.9], [0, 0], [1, -0.9], [2, 0]])
    assert np.allclose(toys.along("pcd", [0.5]), [[1, 0]], atol=1e-6)
    assert np.allclose(toys.across("pcd", [0.5]), [[0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("both", (1, 1)), ("pcd", (1, 0)), ("rgb", (0, 1)), ("either", (2 / 3, 2 / 3))],
)
def test_anomalies_leave_the_curves_they_are_to_leave(kind, expected):
    toy = made(kind)
    assert toy.is_anomalous.mean() == pytest.approx(0.3)
    for mod, share in zip(MODALITIES, expected, strict=True):
        curve = toys.curve(mod, np.linspace(0, 1, 1001))
        off = np.linalg.norm(toy.points[mod][:, None] - curve, axis=-1).min(axis=1) > 0.1
        assert off[toy.is_anomalous].mean() == pytest.approx(share, abs=0.1)
        assert off[~toy.is_anomalous].mean() < 0.1


def test_the_same_settings_give_the_same_toy():
    one, same, other = make_toy(QUICK), make_toy(QUICK), made(seed=1)
    assert torch.equal(one.cells.s, same.cells.s)
    assert not torch.equal(one.cells.s, other.cells.s)
    assert not np.isin(one.tests["both"].feat["pcd"], one.cells.feat["pcd"]).any()
    assert one.cells.s.shape == (len(one.cells), 2 * QUICK.k + 1, 2)


@pytest.mark.parametrize("mod", MODALITIES)
def test_a_partner_is_the_prototype_nearest_to_the_same_point_in_the_other_plane(mod):
    toy, mate = made(), toys.other(mod)
    there = toys.curve(mate, toy.place[mod])
    gaps = np.linalg.norm(there[:, None] - toy.prototypes[mate], axis=-1)
    chosen = gaps[np.arange(len(gaps)), toy.partner[mod].numpy()]
    # The point lies beside its place by noise only, so no prototype is much nearer.
    assert (chosen - gaps.min(axis=1)).max() < 0.2
    assert len(toy.prototypes[mod]) == len(toy.place[mod]) == QUICK.num_prototypes


def test_an_untrained_ball_is_a_circle_of_a_radius_by_hand(training):
    state = training.states[0]
    for m, mod in enumerate(MODALITIES):
        by_hand = 0.6 * float(state.metric.s_mean[m]) / 0.5  # level s_mean / (sigma w)
        assert np.allclose(radii(state.balls, made(), mod), by_hand, rtol=1e-5)
    shape = [state.numbers[name] for name in ("w along", "w across", "w mismatched")]
    assert shape == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("mod", MODALITIES)
def test_the_metric_has_the_level_all_along_a_trained_ball(training, mod):
    """Eq. 1 to 3 once more, through directions that the shortcut never builds."""
    toy, metric, mate = made(), training.metric, toys.other(mod)
    balls = toys.unit_balls(metric, toy)
    num, points = balls[mod].shape[:2]
    feat = {mod: torch.tensor(balls[mod], dtype=torch.float32).reshape(-1, 2)}
    own = torch.arange(num).repeat_interleave(points)
    feat[mate] = toy.bank[mate].prototypes[toy.partner[mod][own]]
    proto = {mod: toy.bank[mod].prototypes[own][:, None], mate: feat[mate][:, None]}
    d, s = {}, {}
    for name in MODALITIES:
        d[name], s[name] = encode(feat[name], proto[name])
    with torch.no_grad():
        w = metric.lspn(proto, d)
        ell = metric.ell(w, torch.stack([s[name] for name in MODALITIES], dim=-1))
    assert torch.allclose(ell, torch.tensor(toy.settings.level), atol=1e-4)
    radius = radii(balls, toy, mod)
    assert (radius.max(axis=1) / radius.min(axis=1)).max() <= math.e**2 * (1 + 1e-5)
    assert np.allclose(balls[mod][:, 0], balls[mod][:, -1], atol=1e-4)  # it is closed


def test_states_are_those_of_the_epochs_and_do_not_change_the_training(training):
    assert [state.epoch for state in training.states] == list(range(41))
    kept = training.states[training.kept]
    assert torch.equal(parameters(kept.metric), parameters(training.metric))
    assert torch.equal(parameters(trained().metric), parameters(training.metric))
    assert kept.numbers["AUROC"] == toys.toy_aurocs(training.metric, made())["both"]
    plain = toys.toy_aurocs(training.metric, made(), is_plain=True)
    assert training.states[0].numbers["AUROC"] == pytest.approx(plain["both"])


def test_a_loss_that_is_off_has_no_weight():
    toy, heavy = make_toy(QUICK), WEIGHTS.replace(alpha=50.0, gamma=50.0)
    one, other = (train_toy(toy, ("cns",), weights) for weights in (WEIGHTS, heavy))
    assert torch.equal(parameters(one.metric), parameters(other.metric))
    both = train_toy(toy, ("cns", "sc"), heavy)
    assert not torch.equal(parameters(one.metric), parameters(both.metric))


# ---------------------------------------------------------------- what the chapter says


def test_on_this_toy_direction_matters_and_is_learned(training):
    first, kept = training.states[0].numbers, training.states[training.kept].numbers
    assert kept["AUROC"] > first["AUROC"] + 0.05
    assert kept["w across"] > 1.5 * kept["w along"] and not training.has_collapsed


def test_solution_1_without_the_scaling_loss_balls_grow():
    weights = WEIGHTS.replace(gamma=0.3)
    for seed in range(2):
        toy = made(seed=seed)
        metrics = (trained(("cns",), seed=seed), train_toy(toy, ("cns", "sc"), weights))
        off, on = (toys.shape_of_balls(one.metric, toy) for one in metrics)
        assert off["w along"] < on["w along"] and off["w across"] < on["w across"]


def gains(kind, seed):
    """What learning adds to AUROC, by kind of test anomaly."""
    metric, toy = trained(kind=kind, seed=seed).metric, made(kind, seed)
    plain, learned = (toys.toy_aurocs(metric, toy, is_plain) for is_plain in (True, False))
    return [learned[name] - plain[name] for name in ("pcd", "rgb")]


def test_solution_3_what_was_not_shown_is_not_learned():
    shown = np.array([gains("pcd", seed) for seed in range(3)])
    usual = np.array([gains("both", seed) for seed in range(3)])
    mean, error = shown[:, 1].mean(), shown[:, 1].std(ddof=1) / 3**0.5
    assert abs(mean) < 4.3 * error and mean < 0.25 * usual[:, 1].mean()
    assert shown[:, 0].mean() > usual[:, 0].mean() > 0.1
    assert all(trained(kind="pcd", seed=n).metric.sigma()[1] < 0.5 for n in range(3))


def test_solution_4_too_much_alignment_gives_circles():
    training = train_toy(made(), ALL, WEIGHTS.replace(mu=20.0), keep_states=True)
    assert training.has_collapsed and training.kept < 5
    last = training.states[-1]
    for m, mod in enumerate(MODALITIES):
        circle = 0.6 * float(last.metric.s_mean[m] / last.metric.sigma()[m].detach())
        assert np.allclose(radii(last.balls, made(), mod), circle / math.e, rtol=0.02)


def test_solution_5_among_many_prototypes_direction_adds_little():
    toy = make_toy(ToySettings(num_prototypes=40))
    metric = train_toy(toy, ALL, WEIGHTS).metric
    shape = toys.shape_of_balls(metric, toy)
    assert shape["w across"] < 1.3 * shape["w along"]
    plain = toys.toy_aurocs(metric, toy, is_plain=True)["both"]
    assert plain > 0.95 and toys.toy_aurocs(metric, toy)["both"] - plain < 0.02


def test_solution_7_with_one_modality_only_the_nearest_jumps(training):
    """The other modality gives the same to every neighbourhood, so pairing cannot matter."""
    toy, metric = made(), training.metric
    order = np.argsort(toy.place["rgb"])
    a, b = toy.prototypes["rgb"][order[3:5]].astype(float)
    step = 1e-4 * (b - a) / np.linalg.norm(b - a)
    feat = {"rgb": torch.tensor(np.stack([(a + b) / 2 - step, (a + b) / 2 + step])).float()}
    index, s = {}, torch.zeros(2, 3, 2)
    index["rgb"], s[..., 1] = toy.bank["rgb"].query(feat["rgb"], 3)
    index["pcd"] = torch.full((2, 3), int(toy.partner["rgb"][order[3]]))
    feat["pcd"] = toy.bank["pcd"].prototypes[index["pcd"][:, 0]]
    assert index["rgb"][0, 0] == index["rgb"][1, 1] and index["rgb"][0, 1] == index["rgb"][1, 0]
    ell = metric.ell(metric.scale_factors(feat, toy.bank, index, s), s).detach()
    jumps = {how: float(aggregate(ell, how).diff().abs()) for how in toys.AGGREGATIONS}
    assert jumps["nearest"] > 0.05
    assert max(jumps["min"], jumps["mean"], jumps["max"]) < 0.005


def test_learned_neighbourhoods_disagree_where_they_meet_and_untrained_ones_do_not(training):
    places = np.linspace(0, 1, 4001)  # of a walk along both curves
    where = {mod: toys.curve(mod, places) for mod in MODALITIES}
    before, both = toys.scores_at(training.states[0].metric, made(), where)
    assert max(np.abs(np.diff(values)).max() for values in before.values()) < 0.01
    learned, _ = toys.scores_at(training.metric, made(), where)
    is_nearest = (both[1:, 0] != both[:-1, 0]).any(axis=1)
    assert np.abs(np.diff(learned["nearest"]))[is_nearest].max() > 0.1
    # where only farther prototypes change, the nearest neighbourhood stays the same
    assert np.abs(np.diff(learned["nearest"]))[~is_nearest].max() < 0.05
