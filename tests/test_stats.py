"""Claims that one thing stands above another, by hand."""

import numpy as np
import pytest

from g2sf_lib.stats import against_good, share_of_good_below


def test_share_of_good_below_counts_ties_half():
    labels = ["good", "good", "good", "good", "dent", "stain", "stain"]
    share = share_of_good_below(np.array([1.0, 2, 2, 4, 3, 2, 0]), labels)
    assert share[4:] == pytest.approx([0.75, 0.5, 0.0])


def test_maps_against_good_scans_by_hand():
    maps = np.zeros((3, 1, 4))
    maps[0, 0] = [0, 1, 2, 3]  # good: median 2, highest 3
    maps[2, 0] = [0, 2.5, 1, 7]
    (shown,) = against_good(maps, ["good", "good", "dent"], [2])
    assert shown.ravel() == pytest.approx([0, 0.5, 0, 1])
