"""Distributions of pixel scores: by hand, against oracles, and on a made-up run."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from g2sf_lib.benchmark import run_methods
from g2sf_lib.cells import counted_cells
from g2sf_lib.distributions import (
    area,
    counted_pixels,
    density,
    false_positive_rate,
    measures,
    overlap,
    recall_threshold,
    scales_of,
    split_pixels,
)
from g2sf_lib.experiments import load_features, run_bank


def rising(*scores):
    return tuple(np.sort(np.array(x, float)) for x in scores)


@pytest.fixture
def drawn():
    """Normal and anomalous scores; ties included: they are rounded."""
    rng = np.random.default_rng(0)
    return rising(rng.gamma(4, 1, 3000).round(2), rng.gamma(9, 1, 400).round(2))


# ---------------------------------------------------------------- pixels


def test_pixels_are_parted_by_mask_and_place():
    maps = np.array([[[3.0, 1.0], [2.0, 9.0]]])
    masks = np.array([[[True, False], [False, True]]])
    where = np.array([[[True, True], [True, False]]])
    normal, anomalous = split_pixels(maps, masks)
    assert list(normal) == [1, 2] and list(anomalous) == [3, 9]
    normal, anomalous = split_pixels(maps, masks, where)
    assert list(normal) == [1, 2] and list(anomalous) == [3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_cannot_be_compared_are_refused(bad):
    maps, masks = np.ones((1, 2, 2)), np.eye(2, dtype=bool)[None]
    with pytest.raises(ValueError, match="4 normal and 0 anomalous"):
        split_pixels(maps, masks & False)
    for place in ((0, 0, 0), (0, 0, 1)):
        broken = maps.copy()
        broken[place] = bad
        with pytest.raises(ValueError, match="not finite"):
            split_pixels(broken, masks)


@pytest.mark.usefixtures("one_thread")
def test_counted_pixels_are_the_counted_cells_enlarged_and_all_scores_are_there(
    small_config, made_run, tmp_path
):
    config = small_config.replace(runs_root=str(tmp_path))
    made_run(config)
    run_bank(config)
    patches, _ = load_features(config, "test")
    where = counted_pixels(patches, config.scoring)
    assert where.shape == (8, 32, 32)
    cells = counted_cells(patches[3], "exclude").numpy().reshape(8, 8)
    assert (where[3] == np.kron(cells, np.ones((4, 4), bool))).all()
    scores, table = run_methods(config, ("sum",), (0,), progress=False)
    every = split_pixels(scores.maps["sum", 0], scores.masks)
    (measured,) = table["p_auroc"].dropna()
    assert area(*every) == pytest.approx(measured)


# ---------------------------------------------------------------- measures


def test_a_density_integrates_to_the_share_inside_its_bins():
    # 0.5 belongs to the upper bin, 1.0 to the last; 4 and more are counted and in none
    scores = np.array([0.1, 0.5, 0.7, 1.0, 4.0, 5.0, 6.0, 7.0])
    found = density(scores, np.array([0.0, 0.5, 1.0]))
    assert list(found) == [1 / 8 / 0.5, 3 / 8 / 0.5]
    scores, edges = np.sort(np.random.default_rng(0).random(999)), np.linspace(0, 1, 101)
    assert density(scores, edges) == pytest.approx(np.histogram(scores, edges, density=True)[0])


def test_overlap_of_the_same_of_parted_and_of_shifted_scores():
    assert overlap(*rising([1, 2, 3], [1, 2, 3])) == pytest.approx(1)
    assert overlap(*rising([1, 2, 3], [4, 5])) == 0
    # bins [1, 2), [2, 3), [3, ...): half and half of each class, one bin shared
    assert overlap(*rising([1, 2], [2, 3])) == pytest.approx(0.5)


def test_overlap_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    found = overlap(*rising(rng.normal(0, 1, 200_000), rng.normal(2, 1, 50_000)))
    assert found == pytest.approx(math.erfc(1 / math.sqrt(2)), abs=0.01)  # 2 Phi(-1)


def test_what_no_axis_changes(drawn):
    """Any rising function leaves shares as they are, and can make normals narrow at will."""
    before, after = measures(*drawn), measures(*map(np.expm1, drawn))
    for name in ("overlap", "fpr", "p_auroc"):
        assert after[name] == pytest.approx(before[name], abs=1e-9)
    assert after["iqr_highest"] < 0.01 * before["iqr_highest"]
    assert measures(*(70 * x for x in drawn)) == pytest.approx(before)  # nor does a unit


def test_measures_by_hand():
    expected = {
        "iqr_highest": 2 / 10,
        "iqr_range": 2 / 9,
        "iqr_anomalous": 2 / 6,
        "std_anomalous": math.sqrt(2) / 6,
        "reach": 4.96 / 6,
        "fpr": 2 / 5,  # 4 and 5 reach 4, which all anomalous ones do
        "p_auroc": (3.5 + 5 + 5) / 15,
    }
    found = measures(*rising([1, 2, 3, 4, 5], [4, 6, 10]))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_one_pixel_sets_the_axis_of_the_figure_and_no_other(drawn):
    normal, anomalous = drawn
    far = np.append(anomalous[:-1], 10 * max(normal[-1], anomalous[-1]))
    before, after = measures(normal, anomalous), measures(normal, far)
    assert after["iqr_highest"] == pytest.approx(before["iqr_highest"] / 10)
    assert after["lone"] == pytest.approx(10 * before["lone"], rel=0.01)
    for name in ("iqr_quantile", "iqr_anomalous", "overlap", "fpr"):
        assert after[name] == pytest.approx(before[name], rel=0.02)


def test_scales():
    found = scales_of(*rising(np.arange(1000), [500.0, 600.0, 2000.0]))
    assert found["highest"] == 2000 and found["anomalous"] == 600
    assert found["quantile"] == np.quantile([*range(1000), 500, 600, 2000], 0.999)
    assert min(scales_of(*rising([0, 0], [0])).values()) > 0  # can be divided by


@pytest.mark.parametrize(
    ("recall", "expected"), [(1.0, 1), (0.91, 1), (0.9, 2), (0.85, 2), (0.8, 3), (0.1, 10)]
)
def test_the_highest_threshold_that_finds_enough(recall, expected):
    assert recall_threshold(np.arange(1.0, 11.0), recall) == expected


@pytest.mark.parametrize("recall", [0.0, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(recall):
    with pytest.raises(ValueError, match="recall is .*; expected a share above 0, up to 1"):
        recall_threshold(np.arange(3.0), recall)


def test_rates_and_areas_are_those_of_scikit_learn(drawn):
    truth, scores = np.repeat([0, 1], [len(x) for x in drawn]), np.concatenate(drawn)
    assert area(*drawn) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for recall in (0.5, 0.9, 1.0):
        assert false_positive_rate(*drawn, recall) == pytest.approx(fpr[tpr >= recall].min())
