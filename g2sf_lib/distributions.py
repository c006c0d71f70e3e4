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
LOWEST = 1e-12  # what a spread of zero counts as, so that it can be divided by


def counted_pixels(patches: Sequence[PackedPatches], scoring: ScoringConfig) -> np.ndarray:
    """Return (N, map_size, map_size) bool: the pixels of the cells whose scores count.

    Elsewhere a score map is zero, apart from what the blur carries over the edge: there is no
    object, or the silhouette rule leaves it out.
    """
    cells = [counted_cells(p, scoring.silhouette).cpu().numpy().reshape(p.grid) for p in patches]
    return np.stack([resize_mask(counted, scoring.map_size) for counted in cells])


def split_pixels(
    maps: np.ndarray, masks: np.ndarray, where: np.ndarray | bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of normal and of anomalous pixels, each rising.

    All are (N, H, W): scores, True on anomalous pixels, which pixels are looked at.

    Raises:
        ValueError: a score is not finite, or there are no pixels of a class.
    """
    normal, anomalous = np.sort(maps[where & ~masks]), np.sort(maps[where & masks])
    if not len(normal) or not len(anomalous):
        raise ValueError(
            f"{len(normal)} normal and {len(anomalous)} anomalous pixels; expected some of both"
        )
    if not np.isfinite([normal[0], normal[-1], anomalous[0], anomalous[-1]]).all():
        raise ValueError("a score is not finite")
    return normal, anomalous


def scales_of(normal: np.ndarray, anomalous: np.ndarray) -> dict[str, float]:
    """Return what scores may be divided by, so that those of two methods can be compared.

    The ``highest`` pixel, the 99.9 % ``quantile`` of all, the median ``anomalous`` pixel.
    """
    both = np.concatenate([normal, anomalous])
    found = {"highest": both.max(), "quantile": np.quantile(both, 0.999)}
    found["anomalous"] = np.median(anomalous)
    return {name: max(float(value), LOWEST) for name, value in found.items()}


def density(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the (B,) density of rising scores in bins between (B + 1,) edges.

    Scores beyond the last edge are in no bin, but are counted: the sum times the width is the
    share inside.
    """
    below = np.searchsorted(scores, edges, side="left")
    below[-1] = np.searchsorted(scores, edges[-1], side="right")
    return np.diff(below) / (len(scores) * np.diff(edges))


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
    """Return the highest threshold that at least a share `recall` of rising scores reaches.

    Raises:
        ValueError: for a share that is none.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall!r}; expected a share above 0, up to 1")
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


def measures(normal: np.ndarray, anomalous: np.ndarray) -> dict[str, float]:
    """Return what a figure of two densities shows, as numbers.

    Returns:
        ``iqr_<scale>`` and ``std_<scale>``, the range between the quartiles and the standard
        deviation of normal scores, divided by each of `scales_of`; ``iqr_range``, the former
        over the highest score less the lowest; ``reach``, the 99 % quantile of normal scores
        over the median of anomalous ones; ``overlap``, ``fpr`` (at `RECALL`), ``p_auroc``; and
        ``lone``, the highest pixel over the 99.9 % quantile: how much of the axis of the figure
        only one pixel in a thousand needs.
    """
    scales = scales_of(normal, anomalous)
    low, high, far = np.quantile(normal, (0.25, 0.75, 0.99))
    spread, whole = (
        float(normal.std(dtype=np.float64)),
        scales["highest"] - min(normal[0], anomalous[0]),
    )
    found = {f"iqr_{name}": float(high - low) / scale for name, scale in scales.items()}
    whole = scales["highest"] - float(min(normal[0], anomalous[0]))
    found["iqr_range"] = float(high - low) / max(whole, LOWEST)
    found |= {f"std_{name}": spread / scale for name, scale in scales.items()}
    found["reach"] = float(far) / scales["anomalous"]
    found |= {"overlap": overlap(normal, anomalous), "p_auroc": area(normal, anomalous)}
    found["fpr"] = false_positive_rate(normal, anomalous)
    return found | {"lone": scales["highest"] / scales["quantile"]}
