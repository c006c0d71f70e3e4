"""Thresholds from normal scores: what they promise is what happens."""

import itertools

import numpy as np
import pytest

from g2sf_lib.stats import threshold


def test_thresholds_by_hand():
    normal = np.array([4.0, 9, 1, 7, 3, 2, 8, 6, 5])
    assert threshold(normal, 0.1) == (9, pytest.approx(0.1))
    assert threshold(normal, 0.25) == (8, pytest.approx(0.2))
    assert threshold(normal, 0.3) == (7, pytest.approx(0.3))
    level, promised = threshold(normal, 0.05)  # nine scans cannot say it
    assert level == np.inf and np.isnan(promised)


@pytest.mark.parametrize("rate", [0.2, 0.45, 0.6])
def test_a_promise_is_kept_over_all_orders(rate):
    alarms, promises = [], set()
    for *known, new in itertools.permutations([1.0, 2.0, 3.0, 4.0, 5.0]):
        level, promised = threshold(np.array(known), rate)
        alarms.append(new > level)
        promises.add(promised)
    (promised,) = promises
    assert np.mean(alarms) == pytest.approx(promised) and promised <= rate
