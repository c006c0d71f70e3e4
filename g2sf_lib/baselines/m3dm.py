"""M3DM's decision layer: two one-class SVMs weigh the distances to several banks.

Source: facts.md, section 7. What is published scores with the SVM's linear function of the
distances: its plane keeps the normal cells off the origin, so its normal points where distances
grow, and a larger value is *more* anomalous. The SVM so supplies weights, and no boundary.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDOneClassSVM
from torch import Tensor


@dataclass(frozen=True)
class DecisionFusion:
    """Weights of B distances, one set for cells and one for images.

    Attributes:
        scale: (B,) mean distance of the cells it was fitted to; distances are divided by it.
        cell_weight, image_weight: (B,) normals of the two planes.
    """

    scale: Tensor
    cell_weight: Tensor
    image_weight: Tensor

    @classmethod
    def fit(cls, cells: Tensor, images: Tensor, nu: float, seed: int) -> DecisionFusion:
        """Return the fusion fitted to normal training scans.

        Args:
            cells: (N, B) distances of normal cells to the nearest prototype of B banks.
            images: (I, B) the largest of them in each scan.
            nu: share of outliers that the SVM allows for, in (0, 1].
            seed: of the order in which stochastic gradient descent sees them.

        Raises:
            ValueError: when the distances of a bank are all zero, as they are where the bank
                holds every cell.
        """
        scale = cells.mean(0)
        if not (scale > 0).all():
            raise ValueError(
                "DecisionFusion.fit: the distances to a bank are all zero; expected cells that "
                "the bank does not hold (bank_fraction below 1)"
            )
        return cls(scale, *(_normal(part / scale, nu, seed) for part in (cells, images)))

    def score_cells(self, cells: Tensor) -> Tensor:
        """Return (n,) scores, not negative, of (n, B) distances."""
        return ((cells / self.scale) @ self.cell_weight).clamp_min(0)

    def score_images(self, images: Tensor) -> Tensor:
        """Return (I,) scores, not negative, of the (I, B) largest distances of scans."""
        return ((images / self.scale) @ self.image_weight).clamp_min(0)


def _normal(rows: Tensor, nu: float, seed: int) -> Tensor:
    """Return the normal (B,) of the plane between the origin and the rows."""
    machine = SGDOneClassSVM(nu=nu, random_state=np.random.RandomState(seed))
    with warnings.catch_warnings():  # a thousand passes over a few numbers are enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(rows.double().cpu().numpy())
    return torch.from_numpy(machine.coef_.reshape(-1)).float()
