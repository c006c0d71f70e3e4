"""M3DM's decision layer: two one-class SVMs weigh the distances to several banks.

Source: facts.md, section 7. What is published scores with the SVM's linear function of the
distances, whose normal points where they grow: the SVM supplies weights, and no boundary.
"""

import warnings
from pathlib import Path
from typing import Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDOneClassSVM
from torch import Tensor

from g2sf_lib.baselines.scans import Scans, Scorer


class M3DM(Scorer):
    """Weighted sums of the distances to B banks over their means; other weights for images."""

    def fit(self, train: Scans, folder: Path | None = None, progress: bool = False) -> Self:
        """Fit both planes to normal scans: to their cells, and to the largest of each scan."""
        cells = train.distances(self.banks)
        images = train.largest(cells, self.config.scoring.silhouette)
        self.scale = cells.mean(0)
        if not (self.scale > 0).all():
            expected = "cells that the bank does not hold (bank_fraction below 1)"
            raise ValueError(f"M3DM: the distances to a bank are all zero; expected {expected}")
        self.cell_weight, self.image_weight = map(self._plane_normal, (cells, images))
        return self

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) weighted distances."""
        return self._weighted(scans.distances(self.banks), self.cell_weight)

    def score_images(self, scans: Scans, cells: Tensor, silhouette: str) -> Tensor:
        """Return (I,) weighted largest distances, each bank's from a cell of its own."""
        rows = scans.largest(scans.distances(self.banks), silhouette)
        return self._weighted(rows, self.image_weight)

    def _weighted(self, rows: Tensor, weight: Tensor) -> Tensor:
        return ((rows / self.scale) @ weight).clamp_min(0)

    def _plane_normal(self, rows: Tensor) -> Tensor:
        """Return the normal (B,) of the plane that an SVM puts between origin and rows (N, B)."""
        order = np.random.RandomState(self.config.seed)  # of stochastic gradient descent
        machine = SGDOneClassSVM(nu=self.config.rules.svm_nu, random_state=order)
        with warnings.catch_warnings():  # a thousand passes over a few numbers are enough
            warnings.simplefilter("ignore", ConvergenceWarning)
            machine.fit((rows / self.scale).double().cpu().numpy())
        return torch.from_numpy(machine.coef_.reshape(-1)).float()
