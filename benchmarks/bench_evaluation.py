"""AUPRO: sorted once for all thresholds, beside the loop that passes the maps once a threshold.

``pytest benchmarks/bench_evaluation.py --benchmark-only``. Each group is timed in one run on
the same maps, and both must give the same value. The loop at every threshold costs pixels
squared, so that group is small.
"""

import numpy as np
import pytest
from scipy import ndimage

from g2sf_lib.evaluation import aupro


def maps_and_masks(num, side):
    """Return smooth maps and masks of two regions a defective image, four in nine good."""
    rng = np.random.default_rng(0)
    maps = ndimage.gaussian_filter(rng.standard_normal((num, side, side)), (0, 4, 4))
    masks = np.zeros((num, side, side), dtype=bool)
    for index in range(num * 5 // 9):
        top, left = rng.integers(0, side // 2, 2)
        masks[index, top : top + side // 8, left : left + side // 6] = True
        masks[index, -side // 8 :, -side // 8 :] = True
    return (maps + 0.1 * masks).astype(np.float32), masks


def plain_aupro(maps, masks, limit, num_thresholds=None):
    """Return AUPRO by comparing every pixel with every threshold, region by region."""
    good = np.sort(maps[~masks])
    regions = []
    for score_map, mask in zip(maps, masks, strict=True):
        labels, num = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [score_map[labels == index] for index in range(1, num + 1)]
    if num_thresholds is None:
        thresholds = np.unique(maps)[::-1]
        fpr = np.array([0.0] + [np.mean(good >= t) for t in thresholds])
        pro = np.array([0.0] + [np.mean([np.mean(r >= t) for r in regions]) for t in thresholds])
    else:
        places = np.linspace(0, len(good) - 1, num_thresholds, dtype=int)[::-1]
        fpr = np.array([1 - (place + 1) / len(good) for place in places] + [1.0])
        pro = [np.mean([np.mean(r > good[place]) for r in regions]) for place in places]
        pro = np.array([*pro, 1.0])
    inside = fpr <= limit
    x = np.append(fpr[inside], limit)
    y = np.append(pro[inside], np.interp(limit, fpr, pro))
    return float(np.trapezoid(y, x) / limit)


@pytest.mark.benchmark(group="every threshold, 4 maps of 64 x 64")
@pytest.mark.parametrize("how", ["ours", "plain loop"])
def test_every_threshold(benchmark, how):
    maps, masks = maps_and_masks(4, 64)
    if how == "ours":
        area = benchmark(lambda: aupro(maps, masks, limits=(0.3,))[0.3])
    else:
        area = benchmark.pedantic(plain_aupro, args=(maps, masks, 0.3), rounds=3)
    assert area == pytest.approx(plain_aupro(maps, masks, 0.3), rel=1e-6)


@pytest.mark.benchmark(group="published 100 thresholds, 90 maps of 224 x 224")
@pytest.mark.parametrize("how", ["ours", "plain loop"])
def test_published(benchmark, how):
    # No gain to be had: few pixels are anomalous, and sorting the good ones is most of both.
    maps, masks = maps_and_masks(90, 224)
    if how == "ours":
        run = lambda: aupro(maps, masks, limits=(0.3,), num_thresholds=100)[0.3]  # noqa: E731
    else:
        run = lambda: plain_aupro(maps, masks, 0.3, 100)  # noqa: E731
    area = benchmark.pedantic(run, rounds=3)
    assert area == pytest.approx(plain_aupro(maps, masks, 0.3, 100), rel=1e-6)


@pytest.mark.benchmark(group="every threshold, 90 maps of 224 x 224, ours only")
def test_every_threshold_of_a_category(benchmark):
    maps, masks = maps_and_masks(90, 224)
    areas = benchmark.pedantic(aupro, args=(maps, masks), rounds=2)
    assert 0 < areas[0.01] < areas[0.3] < 1
