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
    false_positive_rate,
    overlap,
    recall_threshold,
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


def test_overlap_of_the_same_of_parted_and_of_shifted_scores():
    assert overlap(*rising([1, 2, 3], [1, 2, 3])) == pytest.approx(1)
    assert overlap(*rising([1, 2, 3], [4, 5])) == 0
    # bins [1, 2), [2, 3), [3, ...): half and half of each class, one bin shared
    assert overlap(*rising([1, 2], [2, 3])) == pytest.approx(0.5)


def test_overlap_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    found = overlap(*rising(rng.normal(0, 1, 200_000), rng.normal(2, 1, 50_000)))
    assert found == pytest.approx(math.erfc(1 / math.sqrt(2)), abs=0.01)  # 2 Phi(-1)


@pytest.mark.parametrize(
    ("recall", "expected"), [(1.0, 1), (0.91, 1), (0.9, 2), (0.85, 2), (0.8, 3), (0.1, 10)]
)
def test_the_highest_threshold_that_finds_enough(recall, expected):
    assert recall_threshold(np.arange(1.0, 11.0), recall) == expected


def test_rates_and_areas_are_those_of_scikit_learn(drawn):
    truth, scores = np.repeat([0, 1], [len(x) for x in drawn]), np.concatenate(drawn)
    assert area(*drawn) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for recall in (0.5, 0.9, 1.0):
        assert false_positive_rate(*drawn, recall) == pytest.approx(fpr[tpr >= recall].min())
