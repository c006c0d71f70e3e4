"""What chapters 05 and 06 still ask of cells; it goes when they do without."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from g2sf_lib.config import MODALITIES, Config
from g2sf_lib.detector import G2SF
from g2sf_lib.experiments import counted_features, fitted
from g2sf_lib.fusion import local_metric


def stored_detector(config: Config, seed: int) -> G2SF:
    """Return the detector that chapter 03 stored for a training seed."""
    return fitted(dataclasses.replace(config, seed=seed))


@dataclass(frozen=True)
class JudgedCells:
    """Counted cells as a trained detector sees them in their nearest neighbourhood.

    Attributes:
        s: (N, M) distances divided by their mean over normal training cells.
        w: (N, M) scale factors.
        plain: (N,) the metric before training: w = 1, sigma = 1/2.
        learned: (N,) the metric after it, l_i0.
        is_anomalous: (N,) bool.
    """

    s: np.ndarray
    w: np.ndarray
    plain: np.ndarray
    learned: np.ndarray
    is_anomalous: np.ndarray


def judged_cells(
    config: Config, detector: G2SF, split: str = "synthetic_validation"
) -> JudgedCells:
    """Return the counted cells of a split as the detector sees them."""
    feat, is_anomalous = counted_features(config, split)
    scores = detector.score_cells(feat)
    s, w = scores.s[:, 0].cpu(), scores.w[:, 0].cpu()
    plain = local_metric(torch.ones_like(w), s, torch.full((len(MODALITIES),), 0.5))
    learned = scores.ell[:, 0].cpu()
    return JudgedCells(*(x.numpy() for x in (s, w, plain, learned, is_anomalous)))


def cell_quantities(cells: JudgedCells) -> dict[str, np.ndarray]:
    """Return the scores that training starts from, and what it makes of them."""
    return {
        "points alone": cells.s[:, 0],
        "RGB alone": cells.s[:, 1],
        "w = 1": cells.plain,
        "trained": cells.learned,
    }
