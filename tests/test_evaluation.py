"""Metrics against hand calculation, plain loops, scikit-learn and their invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from g2sf_lib.evaluation import (
    LIMITS,
    aupro,
    bootstrap_aupro,
    bootstrap_auroc,
    image_auroc,
    lost_regions,
    pixel_auroc,
    pro_curve,
    resize_mask,
)

# Two regions, of two pixels (left column) and of one (middle); seven good pixels.
HAND_MAP = np.array([[0.9, 0.8, 0.7, 0.6, 0.4], [0.5, 0.3, 0.2, 0.1, 0.05]])
HAND_MASK = np.array([[1, 0, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=bool)


@pytest.mark.parametrize("rule", ["regions", "nearest"])
def test_resize_mask_by_hand(rule):
    mask = np.array([[1, 0, 0, 0], [0, 0, 0, 1]], dtype=bool)
    kept = rule == "regions"  # of the two pixels of each region's part only the right one is seen
    assert resize_mask(mask, 2, rule).tolist() == [[kept, False], [False, True]]
    assert lost_regions(mask, 2) == 1
    large = resize_mask(mask, 8, rule)
    assert large.shape == (8, 8) and lost_regions(mask, 8) == 0
    assert large[:4, :2].all() and large[4:, 6:].all() and large.sum() == 16


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(2, 40), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_no_region_is_lost_and_nothing_else_changes(seed, size, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.1
    published, small = resize_mask(mask, size, "nearest"), resize_mask(mask, size)
    assert small[published].all()
    labels, num = ndimage.label(mask, np.ones((3, 3)))
    added = small & ~published
    assert added.sum() <= lost_regions(mask, size) <= num
    for row, column in np.argwhere(added):  # each lies where a region of the mask is
        rows = slice(row * height // size, -(-(row + 1) * height // size))
        columns = slice(column * width // size, -(-(column + 1) * width // size))
        assert mask[rows, columns].any()


def plain_curve(maps, masks):
    """Threshold by threshold, region by region: the definition, and nothing else."""
    regions = []
    for score_map, mask in zip(maps, masks, strict=True):
        labels, num = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [score_map[labels == index] for index in range(1, num + 1)]
    good = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    thresholds = np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]
    fpr = [0.0] + [np.mean(good >= t) for t in thresholds]
    pro = [0.0] + [np.mean([np.mean(region >= t) for region in regions]) for t in thresholds]
    return np.array(fpr), np.array(pro)


def plain_area(fpr, pro, limit):
    area = 0.0
    for x0, y0, x1, y1 in zip(fpr, pro, fpr[1:], pro[1:], strict=False):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (limit - x0) / (x1 - x0) * (y1 - y0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def blobs(rng, num=6, side=40):
    """Smooth random maps and masks of a few regions of different size."""
    maps = ndimage.gaussian_filter(rng.standard_normal((num, side, side)), (0, 2, 2))
    masks = ndimage.gaussian_filter(rng.standard_normal((num, side, side)), (0, 2, 2)) > 0.2
    masks[0] = False
    return (maps + 0.1 * masks).astype(np.float32), masks


def test_aupro_by_hand_at_every_threshold():
    # By falling score: region A, good, region B, good, region A, good ...
    fpr, pro = pro_curve([HAND_MAP], [HAND_MASK])
    assert fpr == pytest.approx([0, 0, 0, 1 / 7, 1 / 7, 2 / 7, 2 / 7, 1])
    assert pro == pytest.approx([0, 0, 1 / 4, 1 / 4, 3 / 4, 3 / 4, 1, 1])
    areas = aupro([HAND_MAP], [HAND_MASK], limits=(0.3, 0.1))
    assert areas[0.3] == pytest.approx((1 / 4 / 7 + 3 / 4 / 7 + (0.3 - 2 / 7)) / 0.3)
    assert areas[0.1] == pytest.approx(1 / 4)


def test_aupro_by_hand_in_the_published_protocol():
    # Good scores in order 0.05 ... 0.8: places 0, 3, 6, so thresholds 0.05, 0.3 and 0.8.
    fpr, pro = pro_curve([HAND_MAP], [HAND_MASK], num_thresholds=3)
    assert fpr == pytest.approx([0, 3 / 7, 6 / 7, 1])
    assert pro == pytest.approx([1 / 4, 1, 1, 1])
    areas = aupro([HAND_MAP], [HAND_MASK], limits=(0.3, 0.1), num_thresholds=3)
    assert areas[0.3] == pytest.approx((0.25 + 0.775) / 2)
    assert areas[0.1] == pytest.approx((0.25 + 0.425) / 2)


def test_regions_touching_at_a_corner_are_one():
    mask = np.zeros((4, 6), dtype=bool)
    mask[0, 0] = mask[1, 1] = mask[3, 5] = True
    score_map = np.where(mask, 0.0, -1.0)
    score_map[3, 5] = 1.0
    _, pro = pro_curve([score_map], [mask])
    assert pro[2] == pytest.approx(1 / 2)  # one of two regions; 1/3 if the corner parted them


@pytest.mark.parametrize("seed", [0, 1])
def test_aupro_is_that_of_the_loop_over_all_thresholds(seed):
    maps, masks = blobs(np.random.default_rng(seed), num=4, side=24)
    curve = plain_curve(maps, masks)
    areas = {limit: plain_area(*curve, limit) for limit in LIMITS}
    assert aupro(maps, masks) == pytest.approx(areas, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    maps=hnp.arrays(np.float32, (2, 4, 5), elements=st.integers(0, 3).map(float)),
    masks=hnp.arrays(bool, (2, 4, 5)).filter(lambda m: 0 < m.sum() < m.size),
    limit=st.floats(0.01, 1.0),
)
def test_aupro_with_many_ties_is_that_of_the_loop(maps, masks, limit):
    area = aupro(maps, masks, limits=(limit,))[limit]
    assert area == pytest.approx(plain_area(*plain_curve(maps, masks), limit), abs=1e-9)
    assert -1e-12 <= area <= 1 + 1e-12


def test_all_scores_equal_gives_the_diagonal():
    masks = np.eye(6, dtype=bool)[None]
    areas = aupro(np.full((1, 6, 6), 0.5), masks, limits=(1.0, 0.3))
    assert areas == pytest.approx({1.0: 0.5, 0.3: 0.15})


@pytest.mark.parametrize("num_thresholds", [None, 100])
def test_only_the_order_of_scores_counts_and_perfect_maps_score_one(num_thresholds):
    maps, masks = blobs(np.random.default_rng(5))
    perfect = aupro(masks.astype(float), masks, num_thresholds=num_thresholds)
    assert perfect == pytest.approx(dict.fromkeys(LIMITS, 1.0))
    maps = maps.astype(np.float64)
    before = aupro(maps, masks, num_thresholds=num_thresholds)
    after = aupro(np.exp(3 * maps) + 7, masks, num_thresholds=num_thresholds)
    assert after == pytest.approx(before, rel=1e-9)
    assert pixel_auroc(np.exp(3 * maps) + 7, masks) == pytest.approx(pixel_auroc(maps, masks))


def test_published_protocol_counts_only_what_lies_strictly_above():
    mask = np.array([[True, False, False, False]])
    score_map = np.array([[0.5, 0.5, 0.1, 0.0]])
    fpr, pro = pro_curve([score_map], [mask], num_thresholds=3)
    assert fpr == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert pro == pytest.approx([0, 1, 1, 1])


def test_lists_of_different_sizes_tensors_and_stacks_are_the_same():
    maps, masks = blobs(np.random.default_rng(9))
    as_arrays = aupro(maps, masks)
    assert aupro(torch.from_numpy(maps), torch.from_numpy(masks)) == as_arrays
    assert aupro(list(maps), [255 * mask.astype(np.uint8) for mask in masks]) == as_arrays
    odd = [*maps, np.full((3, 50), -9.0, dtype=np.float32)]
    more_good = aupro(odd, [*masks, np.zeros((3, 50))], limits=(1.0,))
    assert more_good[1.0] > aupro(maps, masks, limits=(1.0,))[1.0]


def test_image_auroc_by_hand():
    # Pairs (bad, good): 3 > 1, 3 > 2, 2 > 1, 2 = 2: three and a half of four.
    assert image_auroc([1, 2, 2, 3], [False, False, True, True]) == pytest.approx(3.5 / 4)


def test_aurocs_are_those_of_scikit_learn():
    rng = np.random.default_rng(11)
    scores, labels = rng.integers(0, 9, 200), rng.random(200) < 0.4
    assert image_auroc(torch.from_numpy(scores), labels) == roc_auc_score(labels, scores)
    maps, masks = blobs(rng)
    assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))


def test_bootstrap_resample_is_the_auroc_of_the_images_drawn():
    scores, labels = np.array([1.0, 2.0, 2.0, 3.0, 0.0]), np.array([0, 0, 1, 1, 1])
    areas = bootstrap_auroc(scores, labels, num=20, generator=np.random.default_rng(1))
    draws = np.random.default_rng(1)
    times_bad = draws.multinomial(3, [1 / 3] * 3, size=20)
    times_good = draws.multinomial(2, [1 / 2] * 2, size=20)
    for area, bad, good in zip(areas, times_bad, times_good, strict=True):
        times = np.concatenate([good, bad])
        assert area == pytest.approx(roc_auc_score(labels.repeat(times), scores.repeat(times)))


def test_bootstrap_uses_the_same_images_for_all_methods():
    rng = np.random.default_rng(13)
    labels = np.arange(60) < 30
    scores = rng.standard_normal(60) + labels
    both = bootstrap_auroc(
        np.stack([scores, 2 * scores + 1, -scores]), labels, 200, np.random.default_rng(0)
    )
    assert both.shape == (3, 200)
    assert both[1] == pytest.approx(both[0])  # same order, so the paired difference is zero
    assert both[2] == pytest.approx(1 - both[0])
    again = bootstrap_auroc(scores, labels, 200, np.random.default_rng(0))
    assert np.array_equal(again, both[0])


class EachOnce:
    """In place of a generator: the only resample is the images as they are."""

    def multinomial(self, num, chances, size):
        assert chances == pytest.approx(np.full(num, 1 / num))
        return np.ones((size, num), dtype=int)


@pytest.mark.parametrize("gain", [0.1, 0.4])
def test_aupro_at_fixed_thresholds_is_close_to_that_at_every_threshold(gain):
    """Within 1 / num_thresholds on small maps; the more thresholds, the closer."""
    maps, masks = blobs(np.random.default_rng(14), num=12)
    maps += np.float32(gain) * masks
    exact = aupro(maps, masks)
    for num_thresholds in (50, 500, 5000):
        areas = bootstrap_aupro(maps, masks, LIMITS, 1, EachOnce(), num_thresholds)
        for limit in LIMITS:
            assert areas[limit] == pytest.approx(exact[limit], abs=1 / num_thresholds), limit


def test_aupro_by_hand_at_fixed_thresholds():
    """By falling score: region A, good, region B, good, region A; 17 good pixels in two images."""
    maps, masks = [HAND_MAP, HAND_MAP - 9], [HAND_MASK, np.zeros_like(HAND_MASK)]
    areas = bootstrap_aupro(maps, masks, (1 / 17, 2 / 17, 4 / 17), 1, EachOnce(), 4000)
    assert areas[1 / 17] == pytest.approx([1 / 4])
    assert areas[2 / 17] == pytest.approx([(1 / 4 + 3 / 4) / 2])
    assert areas[4 / 17] == pytest.approx([(1 / 4 + 3 / 4 + 1 + 1) / 4])


def test_bootstrap_resample_is_the_aupro_of_the_images_drawn():
    """The images repeated as often as they were drawn; anomalous ones are drawn first."""
    maps, masks = blobs(np.random.default_rng(15), num=8)
    masks[[0, 3]] = False
    bad = masks.any(axis=(1, 2))
    areas = bootstrap_aupro(maps, masks, LIMITS, 6, np.random.default_rng(1))
    draws, times = np.random.default_rng(1), np.empty((6, 8), dtype=int)
    times[:, bad] = draws.multinomial(6, [1 / 6] * 6, size=6)
    times[:, ~bad] = draws.multinomial(2, [1 / 2] * 2, size=6)
    for place, drawn in enumerate(np.arange(8).repeat(row) for row in times):
        exact = aupro(maps[drawn], masks[drawn])
        for limit in LIMITS:
            assert areas[limit][place] == pytest.approx(exact[limit], abs=0.003)
    assert np.ptp(areas[0.3]) > 0.03  # resamples differ by more than the tolerance


def test_bootstrapped_aupros_of_one_seed_are_paired():
    maps, masks = blobs(np.random.default_rng(16), num=20)
    better = maps + np.float32(0.02) * masks
    draw = [bootstrap_aupro(m, masks, (0.3, 0.05), 300, np.random.default_rng(0)) for m in
            (maps, 2 * maps + 1, better)]  # fmt: skip
    for limit in (0.3, 0.05):
        assert draw[0][limit].shape == (300,)
        assert draw[1][limit] == pytest.approx(draw[0][limit], abs=1e-9)
        gap = draw[2][limit] - draw[0][limit]
        assert (gap > 0).all() and gap.std() < 0.5 * draw[0][limit].std()
    # The spread of the resamples is that of AUPRO over other images of the same kind.
    others = [aupro(*blobs(np.random.default_rng(100 + i), num=20), (0.3,))[0.3] for i in range(60)]
    assert draw[0][0.3].std() == pytest.approx(np.std(others), rel=0.4)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (np.zeros((2, 3, 3)), np.zeros((3, 3, 3)), "2 score maps but 3 masks"),
        ([np.zeros((3, 3))], [np.zeros((3, 4))], r"score map 0 has shape \(3, 3\)"),
        ([np.zeros(9)], [np.zeros(9)], "expected the same"),
        (np.full((1, 3, 3), np.nan), np.eye(3)[None], "score map 0 holds NaN"),
        (np.full((1, 3, 3), np.inf), np.eye(3)[None], "NaN or infinity"),
        (np.zeros((1, 3, 3)), np.zeros((1, 3, 3)), "0 of 9 pixels are anomalous"),
        (np.zeros((1, 3, 3)), np.ones((1, 3, 3)), "9 of 9 pixels are anomalous"),
    ],
)
@pytest.mark.parametrize("metric", [aupro, pixel_auroc])
def test_bad_maps_are_refused(metric, maps, masks, message):
    with pytest.raises(ValueError, match=message):
        metric(maps, masks)
    with pytest.raises(ValueError, match="1 of 1 images are anomalous"):
        bootstrap_aupro([HAND_MAP], [HAND_MASK], LIMITS, 9, EachOnce())


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [0, 1, 1], "expected one label a score"),
        ([1.0, np.nan], [0, 1], "NaN"),
        ([1.0, 2.0], [1, 1], "2 of 2 images are anomalous"),
        ([1.0, 2.0], [0, 0], "0 of 2 images are anomalous"),
    ],
)
def test_bad_image_scores_are_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        image_auroc(scores, labels)
