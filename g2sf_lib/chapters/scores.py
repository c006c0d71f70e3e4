"""What chapter 05 still asks of scores; it goes when it does without."""

from __future__ import annotations

import numpy as np

from g2sf_lib.datasets import Sample


def on_points(score_map: np.ndarray, sample: Sample) -> np.ndarray:
    """Return the score of each pixel of a scan, from a map of another size."""
    rows, columns = (
        ((np.arange(side) + 0.5) * len(score_map) / side).astype(int) for side in sample.mask.shape
    )
    return score_map[np.ix_(rows, columns)]
