"""How scores of normal and of anomalous pixels spread, how far they overlap, what a recall costs.

Scores come sorted, rising, as `split_pixels` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2sf_lib.cells import counted_cells
from g2sf_lib.config import ScoringConfig
from g2sf_lib.evaluation import resize_mask
from g2sf_lib.features import PackedPatches

RECALL = 0.9


def counted_pixels(patches: Sequence[PackedPatches], scoring: ScoringConfig) -> np.ndarray:
    """Return (N, map_size, map_size) bool: the pixels of the cells whose scores count."""
    cells = [counted_cells(p, scoring.silhouette).cpu().numpy().reshape(p.grid) for p in patches]
    return np.stack([resize_mask(counted, scoring.map_size) for counted in cells])


def split_pixels(
    maps: np.ndarray, masks: np.ndarray, where: np.ndarray | bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of normal and of anomalous pixels, each rising.

    All are (N, H, W): scores, True on anomalous pixels, which pixels are looked at.
    """
    normal, anomalous = np.sort(maps[where & ~masks]), np.sort(maps[where & masks])
    if not len(normal) or not len(anomalous):
        raise ValueError(
            f"{len(normal)} normal and {len(anomalous)} anomalous pixels; expected some of both"
        )
    if not np.isfinite([normal[0], normal[-1], anomalous[0], anomalous[-1]]).all():
        raise ValueError("a score is not finite")
    return normal, anomalous


def overlap(normal: np.ndarray, anomalous: np.ndarray, num: int = 100) -> float:
    """Return the share that two densities have in common: 1 where they are the same, 0 if parted.

    The integral of the smaller of both densities, over bins whose edges are `num` quantiles of
    each class: a rising function of all scores changes nothing, and no choice of an axis enters.
    """
    levels = np.linspace(0, 1, num + 1)
    edges = [np.quantile(x, levels, method="inverted_cdf") for x in (normal, anomalous)]
    edges = np.unique(np.concatenate(edges))
    shares = []
    for scores in (normal, anomalous):
        below = np.append(np.searchsorted(scores, edges, side="left"), len(scores))
        shares.append(np.diff(below) / len(scores))
    return float(np.minimum(*shares).sum())


def recall_threshold(anomalous: np.ndarray, recall: float = RECALL) -> float:
    """Return the highest threshold that at least a share `recall` of rising scores reaches."""
    kept = int(np.ceil(recall * len(anomalous) - 1e-9))
    return float(anomalous[len(anomalous) - kept])


def false_positive_rate(normal: np.ndarray, anomalous: np.ndarray, recall: float = RECALL) -> float:
    """Return the share of normal scores at or above the threshold of `recall_threshold`."""
    first = np.searchsorted(normal, recall_threshold(anomalous, recall), side="left")
    return 1.0 - float(first) / len(normal)


def area(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Return the chance that an anomalous score is above a normal one; a tie counts half."""
    sides = [np.searchsorted(normal, anomalous, side) for side in ("left", "right")]
    return float(np.mean(sides)) / len(normal)
