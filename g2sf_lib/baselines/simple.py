"""Methods that need nothing but distances to banks: one bank, and three rules of fusion.

Source: facts.md, section 7.
"""

import torch
from torch import Tensor

from g2sf_lib.baselines.scans import Scans, Scorer, counted
from g2sf_lib.memory import MemoryBank


class OneBank(Scorer):
    """The distance to the nearest prototype of one bank: PatchCore, or BTF's of both features."""

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) distances."""
        return scans.distances(self.banks)[:, 0]

    def score_images(self, scans: Scans, cells: Tensor, silhouette: str) -> Tensor:
        """Return (I,) largest distances; of one modality `reweighted`, where settings say so."""
        (name,), num = self.banks, self.config.rules.reweight_neighbours
        if num is None or name == "concat":
            return super().score_images(scans, cells, silhouette)
        index, scores, start = scans.nearest(name)[0], [], 0
        for part, p in zip(cells.split(scans.sizes), scans.patches, strict=True):
            top = start + int(torch.where(counted(p, silhouette), part, -torch.inf).argmax())
            feature, bank = scans.standard[name][top : top + 1][0], scans.stored.banks[name]
            scores.append(reweighted(float(cells[top]), feature, int(index[top]), bank, num))
            start += len(part)
        return torch.tensor(scores)


def reweighted(
    distance: float, feature: Tensor, prototype: int, bank: MemoryBank, num: int
) -> float:
    """Return PatchCore's image score: the largest distance, more if its prototype is a lone one.

    (1 - exp(s) / sum_b exp(s_b)) s, where s is the distance of a `feature` (D,) to its nearest
    `prototype`, and s_b are those to the `num` prototypes nearest to that one, itself included.

    Source: PatchCore, Roth et al., CVPR 2022, Eq. 7.
    """
    proto = bank.prototypes.to(feature)
    around = torch.linalg.vector_norm(proto - proto[prototype], dim=1)
    nearest = around.topk(min(num, len(proto)), largest=False).indices
    s_b = torch.linalg.vector_norm(proto[nearest] - feature, dim=1)
    return float((1 - torch.exp(distance - torch.logsumexp(s_b, 0))).clamp_min(0) * distance)


class Sum(Scorer):
    """Distances of both modalities divided by their normal means, added."""

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) sums."""
        return (scans.distances(self.banks) / scans.stored.calibration.mean).sum(-1)


class Product(Scorer):
    """The same, multiplied."""

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) products."""
        return (scans.distances(self.banks) / scans.stored.calibration.mean).prod(-1)


class Maximum(Scorer):
    """The larger z-score, cut at zero (the rule of Shape-Guided)."""

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) z-scores."""
        normal = scans.stored.calibration
        z = (scans.distances(self.banks) - normal.mean) / normal.std
        return z.amax(-1).clamp_min(0)
