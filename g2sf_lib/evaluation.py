"""How well scores separate good from anomalous: AUROC of images and pixels, and AUPRO.

A larger score means more anomalous; in the truth anything but zero is anomalous. Maps and masks
are arrays, tensors, stacks (N, H, W) or lists of (H, W); sizes may differ from image to image.
A ValueError says where shapes do not fit, scores are not finite, or truth is of one class only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from scipy import ndimage
from sklearn.metrics import roc_auc_score

LIMITS = (0.3, 0.1, 0.05, 0.01)
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def resize_mask(
    mask: np.ndarray, size: int, rule: Literal["regions", "nearest"] = "regions"
) -> np.ndarray:
    """Return a (H, W) mask at the size (size, size) of the score maps, by nearest neighbour.

    A thin scratch of a large scan can lose every pixel. With rule "regions" a region (8-connected)
    of which nothing is left keeps the one pixel in which most of it lies; "nearest", the published
    protocol, lets it go.
    """
    small, lost = _sampled(mask, size)
    for rows, columns in lost if rule == "regions" else ():
        at = rows * size // mask.shape[0], columns * size // mask.shape[1]
        pixels, counts = np.unique(np.ravel_multi_index(at, small.shape), return_counts=True)
        small.flat[pixels[counts.argmax()]] = True
    return small


def lost_regions(mask: np.ndarray, size: int) -> int:
    """Return how many regions of a mask the published protocol lets go; see `resize_mask`."""
    return len(_sampled(mask, size)[1])


def _sampled(mask: np.ndarray, size: int) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
    """Return a mask at pixel centres, and the pixels (rows, columns) of each region not seen."""
    labels, num = ndimage.label(mask, _EIGHT_CONNECTED)
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in mask.shape)
    seen = labels[np.ix_(rows, columns)]
    lost = np.setdiff1d(np.arange(1, num + 1), seen)
    return seen > 0, [np.nonzero(labels == number) for number in lost]


def image_auroc(scores: Any, labels: Any) -> float:
    """Return the chance that an anomalous image scores above a good one; a tie counts half.

    Source: Section 4.1, I-AUROC.
    """
    scores, truth = _scores_and_truth(scores, labels)
    return float(roc_auc_score(truth, scores))


def bootstrap_auroc(scores: Any, labels: Any, num: int, generator: Generator) -> np.ndarray:
    """Return the AUROC of resamples of N images, good and anomalous drawn apart.

    Areas are (num,) for scores (N,), or (M, num) for those (M, N) of M methods: each resample
    serves all methods, so that their differences are paired. A resample only changes how often a
    pair (good, anomalous) counts: all resamples are two products over a table of pairs.
    """
    scores, truth = _scores_and_truth(scores, labels)
    times = _times_drawn(truth, num, generator)
    num_pairs = int(truth.sum()) * int((~truth).sum())
    areas = []
    for of_method in np.atleast_2d(scores):
        bad, good = of_method[truth, None], of_method[None, ~truth]
        wins = (bad > good) + 0.5 * (bad == good)  # (num_bad, num_good)
        areas.append(((times[:, truth] @ wins) * times[:, ~truth]).sum(axis=1) / num_pairs)
    return areas[0] if scores.ndim == 1 else np.stack(areas)


def pixel_auroc(score_maps: Any, masks: Any) -> float:
    """Return the area under the ROC curve over all pixels of all images, background included.

    Source: Section 4.1, P-AUROC.
    """
    # To sort the many good scores and to look up the few anomalous ones is cheaper than a curve.
    maps, truths = _maps_and_truths(score_maps, masks)
    scores, truth = np.concatenate(maps, axis=None), np.concatenate(truths, axis=None)
    good, anomalous = np.sort(scores[~truth]), np.sort(scores[truth])
    lower = sum(np.searchsorted(good, anomalous, side).mean() for side in ("right", "left")) / 2
    return float(lower / len(good))


def aupro(
    score_maps: Any, masks: Any, limits: Sequence[float] = LIMITS, num_thresholds: int | None = None
) -> dict[float, float]:
    """Return limit -> area under `pro_curve` from a false positive rate of 0 to the limit, over it.

    Limits lie in (0, 1]; the curve is interpolated linearly there; a perfect map scores 1.

    Source: Section 4.1, AUPRO@30% and AUPRO@1%.
    """
    fpr, pro = pro_curve(score_maps, masks, num_thresholds)
    return {limit: _area_up_to(fpr, pro, limit) for limit in limits}


def bootstrap_aupro(
    score_maps: Any,
    masks: Any,
    limits: Sequence[float],
    num: int,
    generator: Generator,
    num_thresholds: int = 500,
) -> dict[float, np.ndarray]:
    """Return limit -> (num,) AUPRO of resamples of the images, good and anomalous drawn apart.

    Generators of one seed draw the same images for every method, here and in `bootstrap_auroc`.
    Each image is counted once, at fixed thresholds: its false positives, and the sum over its
    regions of the share at or above; a resample is a weighted sum of images. Half of the thresholds
    are scores of anomalous pixels, at equal steps of the overlap; half are scores of good pixels,
    at rates in equal ratios from 1e-4 to 1. Areas are within about 1 / num_thresholds.
    """
    maps, truths = _maps_and_truths(score_maps, masks)
    is_anomalous = np.array([truth.any() for truth in truths])
    _need_both_classes([is_anomalous], "images")
    scores, weights = np.concatenate(maps, axis=None), _region_weights(truths)
    thresholds = _spread_thresholds(scores, weights, num_thresholds)
    # An image and the number of thresholds at or below a score make one bin.
    num_bins = len(thresholds) + 1
    image = np.repeat(np.arange(len(maps)), [one.size for one in maps])
    bins = image * num_bins + np.searchsorted(thresholds, scores, side="right")
    times = _times_drawn(is_anomalous, num, generator)
    curves = []
    for counted in (weights == 0, weights):
        counts = np.bincount(bins, counted, len(maps) * num_bins).reshape(-1, num_bins)
        # Summed from the highest threshold down; the last bin sum is everything, the point (1, 1).
        sums = times @ np.cumsum(counts[:, ::-1], axis=1)
        curves.append(np.pad(sums / sums[:, -1:], ((0, 0), (1, 0))))
    return {limit: _areas_up_to(*curves, limit) for limit in limits}


def pro_curve(
    score_maps: Any, masks: Any, num_thresholds: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the false positive rate and the per-region overlap at falling thresholds, (points,).

    The per-region overlap (PRO) of a threshold is the share of a region (8-connected anomalous
    pixels of one mask) that scores above it, averaged over all regions of all images: the true
    positive rate where an anomalous pixel weighs 1 / (regions * pixels of its region). None takes
    every threshold. The published protocol sorts the T scores of good pixels, takes the thresholds
    at `num_thresholds` equidistant places of that order, first and last included, counts as
    detected what lies strictly above, and calls 1 - (place + 1) / T the false positive rate.
    """
    maps, truths = _maps_and_truths(score_maps, masks)
    scores, weights = np.concatenate(maps, axis=None), _region_weights(truths)
    good = np.sort(scores[weights == 0])
    rising, covered = _covered(scores, weights)
    if num_thresholds is not None:
        places = np.linspace(0, len(good) - 1, num=num_thresholds, dtype=int)[::-1]
        below = covered[np.searchsorted(rising, good[places], side="right")]
        fpr, pro = 1 - (places + 1) / len(good), 1 - below / covered[-1]
        return np.append(fpr, 1.0), np.append(pro, 1.0)
    # Between two anomalous scores the exact curve is level. Two corners a score v, from above:
    # what lies above v, and what lies at or above v.
    values, starts = np.unique(rising, return_index=True)
    ends = np.append(starts[1:], len(rising))
    above = [len(good) - np.searchsorted(good, values, side) for side in ("right", "left")]
    overlap = [covered[-1] - covered[ends], covered[-1] - covered[starts]]
    fpr = np.stack(above, axis=-1)[::-1].ravel() / len(good)
    pro = np.stack(overlap, axis=-1)[::-1].ravel() / covered[-1]
    return np.concatenate([[0.0], fpr, [1.0]]), np.concatenate([[0.0], pro, [1.0]])


def _covered(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the A anomalous scores, rising, and the (A + 1,) weight of the first 0, 1, ... A."""
    anomalous = weights > 0
    order = np.argsort(scores[anomalous])
    covered = np.concatenate([[0.0], np.cumsum(weights[anomalous][order])])
    return scores[anomalous][order], covered


def _area_up_to(fpr: np.ndarray, pro: np.ndarray, limit: float) -> float:
    """Return the trapezoid area under a rising curve from 0 to `limit`, divided by it."""
    inside = int(np.searchsorted(fpr, limit, side="right"))  # points at or left of the limit
    x, y = fpr[:inside], pro[:inside]
    if inside < len(fpr) and x[-1] < limit:
        step = (limit - x[-1]) / (fpr[inside] - x[-1])
        x = np.append(x, limit)
        y = np.append(y, y[-1] + step * (pro[inside] - y[-1]))
    return float(np.trapezoid(y, x) / limit)


def _areas_up_to(fpr: np.ndarray, pro: np.ndarray, limit: float) -> np.ndarray:
    """Return (R,) areas as `_area_up_to` for (R, points) curves that start at 0 and end at 1."""
    width = np.diff(fpr, axis=1)
    inside = np.clip(limit - fpr[:, :-1], 0, width)  # of each step, what lies left of the limit
    part = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    height = pro[:, :-1] + part * np.diff(pro, axis=1) / 2
    return (inside * height).sum(axis=1) / limit


def _spread_thresholds(scores: np.ndarray, weights: np.ndarray, num: int) -> np.ndarray:
    """Return at most `num` different scores, rising, as `bootstrap_aupro` says."""
    rising, covered = _covered(scores, weights)
    steps = np.linspace(0, covered[-1], num // 2)
    at_anomalous = np.minimum(np.searchsorted(covered[1:], steps), len(rising) - 1)
    good = np.sort(scores[weights == 0])
    rates = np.geomspace(1e-4, 1, num - num // 2)
    at_good = len(good) - np.ceil(rates * len(good)).astype(int)
    return np.unique(np.concatenate([rising[at_anomalous], good[np.maximum(at_good, 0)]]))


def _times_drawn(is_anomalous: np.ndarray, num: int, generator: Generator) -> np.ndarray:
    """Return (num, N), how often each image is in each resample; each class keeps its size."""
    times = np.empty((num, len(is_anomalous)))
    for of_class in (is_anomalous, ~is_anomalous):
        size = int(of_class.sum())
        times[:, of_class] = generator.multinomial(size, np.full(size, 1 / size), size=num)
    return times


def _region_weights(truths: list[np.ndarray]) -> np.ndarray:
    """Return (P,) 1 / (regions * pixels of its region) of all pixels, zero on good ones."""
    weights, num_all = [], 0
    for truth in truths:
        regions, num = ndimage.label(truth, structure=_EIGHT_CONNECTED)
        per_pixel = 1.0 / np.maximum(np.bincount(regions.ravel(), minlength=num + 1), 1)
        per_pixel[0] = 0.0
        weights.append(per_pixel[regions])
        num_all += num
    return np.concatenate(weights, axis=None) / num_all


def _scores_and_truth(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (..., N) scores and (N,) bool truth, checked."""
    scores, truth = _floating(scores), _array(labels) != 0
    if truth.ndim != 1 or scores.shape[-1:] != truth.shape:
        shapes = f"scores have shape {scores.shape} and labels {truth.shape}"
        raise ValueError(f"{shapes}; expected one label a score")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity; expected finite numbers")
    _need_both_classes([truth], "images")
    return scores, truth


def _maps_and_truths(score_maps: Any, masks: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return lists of (H, W) scores and (H, W) bool truth, checked."""
    if len(score_maps) != len(masks):
        found = f"{len(score_maps)} score maps but {len(masks)} masks"
        raise ValueError(f"{found}; expected one mask a map")
    maps = [_floating(score_map) for score_map in score_maps]
    truths = [_array(mask) != 0 for mask in masks]
    for index, (score_map, truth) in enumerate(zip(maps, truths, strict=True)):
        if score_map.ndim != 2 or score_map.shape != truth.shape:
            shapes = f"score map {index} has shape {score_map.shape} and its mask {truth.shape}"
            raise ValueError(f"{shapes}; expected the same (H, W)")
        if not np.isfinite(score_map).all():
            raise ValueError(f"score map {index} holds NaN or infinity; expected finite numbers")
    _need_both_classes(truths, "pixels")
    return maps, truths


def _need_both_classes(truths: list[np.ndarray], what: str) -> None:
    num_all = sum(truth.size for truth in truths)
    num_bad = sum(int(truth.sum()) for truth in truths)
    if num_bad in (0, num_all):
        raise ValueError(
            f"{num_bad} of {num_all} {what} are anomalous; expected both good and anomalous ones"
        )


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _floating(values: Any) -> np.ndarray:
    """Return scores in their own precision: float32 sorts faster, float64 keeps its order."""
    array = _array(values)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
