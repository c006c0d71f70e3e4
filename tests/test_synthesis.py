import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from g2sf_lib.config import SynthesisConfig
from g2sf_lib.datasets import DATASETS, Sample, ScanError
from g2sf_lib.datasets.preprocess import load_prepared, save_prepared
from g2sf_lib.synthesis import (
    _CHANGES,
    CHANGED,
    augment_target,
    corrupt_rgb,
    paste_labels,
    perlin_noise,
    synthesise,
    synthesise_set,
)

# As published; one at a time, the levers that differ by default are tested further below.
MILD_CATEGORIES = {name for one in DATASETS.values() for name in one.upright}
CONFIG = SynthesisConfig(
    paste_in="both", augment="published", colour_from="other",
    min_blend=0.5, min_relief=1.0, min_offset_m=0.0002, max_offset_m=0.002,
)  # fmt: skip
ARRAYS = ("rgb", "xyz", "mask", "raw_xyz")
FLOOR = 0.45


def make_target(size=128, seed=0, height=0.02, radius=0.4, shape="disc", holes=0.0, name="good/0"):
    """Return a preprocessed disc or box of `height` m on a floor, with stripes of colour."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    y, x = (rows - size / 2) * 0.12 / size, (columns - size / 2) * 0.12 / size
    reach = np.hypot(x, y) if shape == "disc" else np.maximum(abs(x), abs(y) * 2)
    inside = reach < radius * 0.12
    raw = np.stack([x, y, FLOOR - height * inside], axis=-1).astype(np.float32)
    raw[generator.random((size, size)) < holes] = 0
    rgb = 128 + 60 * np.sin((x * 300 + seed)[..., None] + np.arange(3))
    rgb = rgb + generator.normal(0, 8, rgb.shape)
    rgb = np.clip(rgb, 1, 255).astype(np.uint8) * inside[..., None]
    xyz = raw * inside[..., None]
    return Sample(rgb, xyz, np.zeros((size, size), bool), "good", name, raw_xyz=raw)


def disc(size=256, radius=0.4):
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows - size / 2, columns - size / 2) < radius * size


def assert_same(left, right):
    for key in ARRAYS:
        assert np.array_equal(getattr(left, key), getattr(right, key)), key


def components(mask):
    labels, num = ndimage.label(mask, np.ones((3, 3)))
    return [labels == number for number in range(1, num + 1)]


def test_perlin_noise_is_the_textbook_sum():
    generator = np.random.default_rng(3)
    noise = perlin_noise((20, 30), (2, 3), generator)
    angle = np.random.default_rng(3).uniform(0, 2 * np.pi, (3, 4))
    for row, column in ((0, 0), (7, 14), (12, 29), (19, 9)):
        y, x = (row + 0.5) / 10, (column + 0.5) / 10
        total = 0.0
        for i in (int(y), int(y) + 1):
            for j in (int(x), int(x) + 1):
                v, u = abs(y - i), abs(x - j)
                fade = [1 - (6 * t**5 - 15 * t**4 + 10 * t**3) for t in (v, u)]
                gradient = np.sin(angle[i, j]) * (y - i) + np.cos(angle[i, j]) * (x - j)
                total += fade[0] * fade[1] * gradient
        assert noise[row, column] == pytest.approx(np.sqrt(2) * total)
    assert np.abs(noise).max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_mask_components_have_allowed_sizes_and_lie_on_the_object(seed):
    foreground = disc(512, 0.3)
    foreground[200:230] = False
    labels = paste_labels(foreground, CONFIG, np.random.default_rng(seed))
    mask, parts = labels > 0, components(labels > 0)
    assert mask.sum() >= CONFIG.min_paste_px and len(parts) == labels.max()
    for part in parts:
        assert CONFIG.min_component_px <= part.sum() <= CONFIG.max_component_px
        assert (part & foreground).sum() >= 2 / 3 * part.sum()


def test_object_too_small_for_a_mask_is_an_error():
    foreground = np.zeros((64, 64), bool)
    for num_px in (0, 64):  # of 512 x 512
        with pytest.raises(ScanError, match=f"{num_px} of 262144 px; expected a larger object"):
            paste_labels(foreground, CONFIG, np.random.default_rng(0))
        foreground[3, 3] = True


def coded_target(size=96):
    """Return a disc where point, raw point, mask and colour of a pixel all say which it is."""
    target = make_target(size)
    rows, columns = np.mgrid[:size, :size]
    inside = target.foreground
    raw = np.stack([columns + 1, rows + 1, np.full_like(rows, 9)], axis=-1).astype(np.float32)
    rgb = np.stack([columns + 100, rows + 100, np.full_like(rows, 255)], axis=-1).astype(np.uint8)
    mask = inside & ((columns // 8 + rows // 8) % 2 == 0)
    return dataclasses.replace(
        target, rgb=rgb * inside[..., None], xyz=raw * inside[..., None], mask=mask, raw_xyz=raw
    )


@pytest.mark.parametrize("category", ["foam", "cookie"])
@pytest.mark.parametrize("seed", range(5))
def test_augmentation_moves_everything_together(category, seed):
    target = coded_target()
    moved = augment_target(target, category, np.random.default_rng(seed))
    inside = moved.foreground
    assert inside.sum() > 1000
    rows = moved.xyz[inside][:, 1].astype(int) - 1
    columns = moved.xyz[inside][:, 0].astype(int) - 1
    assert np.array_equal(moved.raw_xyz[inside], moved.xyz[inside])
    assert set(np.unique(moved.raw_xyz[..., 2])) <= {0, 9}
    assert np.array_equal(moved.mask[inside], target.mask[rows, columns])
    assert not moved.mask[~inside].any() and not moved.rgb[~inside].any()
    # Bilinear colours are those of the same place: within a pixel, and the rounding of
    # colours weighted by alpha at the outline, where a black background would cost 100.
    error = moved.rgb[inside].astype(int)[:, :2] - np.column_stack([columns, rows]) - 100
    assert np.abs(error).max() <= 4 and np.abs(error).mean() < 1
    assert (moved.rgb[inside][:, 2] >= 253).all()
    assert not np.array_equal(moved.xyz, target.xyz)


def fitted_map(moved):
    """Return the linear part of output -> input pixels, fitted to a coded target."""
    output = np.argwhere(moved.foreground)
    design = np.column_stack([output, np.ones(len(output))])
    source = moved.xyz[moved.foreground][:, [1, 0]]
    return np.linalg.lstsq(design, source, rcond=None)[0][:2].T


@pytest.mark.parametrize("category", [min(MILD_CATEGORIES), "cookie"])
def test_augmentation_stays_in_the_range_of_its_category(category):
    target = coded_target()
    angles, scales, mirrored = [], [], []
    for seed in range(40):
        matrix = fitted_map(augment_target(target, category, np.random.default_rng(seed)))
        sign = np.sign(np.linalg.det(matrix))
        scales.append(abs(np.linalg.det(matrix)) ** -0.5)
        mirrored.append(sign < 0)
        # A double mirror is a half turn: fold angles into a quarter turn either way.
        angles.append(np.rad2deg(np.arctan2(abs(matrix[0, 1]), abs(matrix[0, 0]))))
    if category in MILD_CATEGORIES:
        assert 6 < max(angles) <= 10.2 and not any(mirrored)
        assert 0.895 < min(scales) and max(scales) < 1.105
    else:
        assert 30 < max(angles) <= 45.3 and 5 < sum(mirrored) < 35
        assert 0.79 < min(scales) < 0.88 and 1.12 < max(scales) < 1.26


@pytest.mark.parametrize("change", _CHANGES, ids=lambda change: change.__name__)
def test_every_change_changes_colours_and_spares_the_outline(change):
    rgb = make_target().rgb
    inside, distances = rgb.any(-1), []
    plain = np.array([200, 150, 100], np.uint8) * inside[..., None]
    for seed in range(5):
        changed = change(rgb, inside, np.random.default_rng(seed))
        assert changed.dtype == np.uint8 and changed.shape == rgb.shape
        distances.append(np.abs(changed[inside].astype(int) - rgb[inside]).mean())
        # An object of one colour stays so up to its outline.
        changed = change(plain, inside, np.random.default_rng(seed))
        assert np.ptp(changed[inside].astype(int), axis=0).max() <= 5  # rounding
    assert np.mean(distances) > 2


@pytest.mark.parametrize("seed", range(4))
def test_corrupted_colours_differ_and_the_background_stays_black(seed):
    rgb = make_target().rgb
    before, inside = rgb.copy(), rgb.any(-1)
    changed = corrupt_rgb(rgb, np.random.default_rng(seed))
    assert np.array_equal(rgb, before) and not changed[~inside].any()
    assert np.abs(changed[inside].astype(int) - rgb[inside]).mean() > 1
    assert np.array_equal(changed, corrupt_rgb(rgb, np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def sources():
    return make_target(seed=1, name="good/1"), make_target(seed=2, shape="box", name="good/2")


def pasted(target, sources, seed, config=CONFIG, category="cookie"):
    """Return the scan with pastes, and the augmented target that they stand on."""
    sample = synthesise(target, *sources, category, config, np.random.default_rng(seed))
    return sample, augment_target(target, category, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("holes", [0.0, 0.05])
def test_the_mask_is_exactly_where_something_was_pasted(sources, seed, holes):
    target = make_target(holes=holes)
    sample, before = pasted(target, sources, seed)
    rgb_changed = (sample.rgb != before.rgb).any(-1)
    xyz_changed = (sample.xyz != before.xyz).any(-1)
    raw_changed = (sample.raw_xyz != before.raw_xyz).any(-1)
    assert sample.label == "synthetic" and sample.mask.any()
    assert not (rgb_changed | xyz_changed | raw_changed)[~sample.mask].any()
    assert (rgb_changed | xyz_changed)[sample.mask].all()
    has_raw = before.raw_xyz.any(-1)
    assert xyz_changed[sample.mask & has_raw].all()
    assert rgb_changed[sample.mask].mean() > 0.95
    # x and y are those before background removal; nothing is made up where they are unknown.
    there = sample.mask & has_raw
    assert np.array_equal(sample.xyz[there][:, :2], before.raw_xyz[there][:, :2])
    assert np.array_equal(sample.xyz[there], sample.raw_xyz[there])
    assert not sample.xyz[~has_raw].any() and not sample.raw_xyz[~has_raw].any()
    assert np.isfinite(sample.xyz).all()


def test_one_sided_pastes_change_what_their_label_says_and_stay_on_the_object(sources):
    config = CONFIG.replace(paste_in="either", augment="none")
    target, labels = make_target(holes=0.05), []
    for seed in range(18):
        sample = synthesise(target, *sources, "cookie", config, np.random.default_rng(seed))
        rgb_changed = (sample.rgb != target.rgb).any(-1)
        xyz_changed = (sample.xyz != target.xyz).any(-1)
        assert not (rgb_changed | xyz_changed)[~sample.mask].any()
        assert CHANGED[sample.label] == (xyz_changed.any(), rgb_changed.any())
        labels.append(sample.label)
        if sample.label == "synthetic_rgb":
            assert rgb_changed[sample.mask].mean() > 0.95 and target.rgb[sample.mask].any(-1).all()
        if sample.label == "synthetic_pcd":
            assert xyz_changed[sample.mask].all() and target.foreground[sample.mask].all()
    assert min(labels.count(label) for label in CHANGED) >= 2


@pytest.mark.parametrize("limits", [(0.0002, 0.002), (0.001, 0.0015)])
def test_flat_parts_are_lifted_or_sunk_by_the_offset(sources, limits):
    config = CONFIG.replace(min_offset_m=limits[0], max_offset_m=limits[1])
    target, offsets = make_target(size=256), []  # at 128 px components may touch
    for seed in range(12):
        sample, before = pasted(target, sources, seed, config)
        lift = sample.xyz[..., 2] - before.xyz[..., 2]
        for part in components(sample.mask):
            offsets.append(lift[part & before.foreground].mean())
    size = np.abs(offsets)
    assert limits[0] - 2e-6 <= size.min() and size.max() <= limits[1] + 2e-6
    assert np.ptp(size) > 0.6 * (limits[1] - limits[0])
    assert 0.2 < np.mean(np.array(offsets) > 0) < 0.8


def test_a_paste_has_the_relief_of_its_source():
    # The source rises by 1 mm per pixel; the target is flat: the pasted slope is the source's.
    target, flat = make_target(), make_target(seed=1)
    slope = np.arange(128, dtype=np.float32) * 0.001
    relief = dataclasses.replace(flat, xyz=flat.xyz.copy())
    relief.xyz[..., 2] += flat.foreground * slope
    sample = synthesise(target, flat, relief, "cookie", CONFIG, np.random.default_rng(2))
    both = sample.mask[:, 1:] & sample.mask[:, :-1]
    assert both.sum() > 20
    assert np.diff(sample.xyz[..., 2], axis=1)[both] == pytest.approx(0.001, abs=1e-6)


def test_a_paste_may_stand_outside_the_object(sources):
    # With a thin object, a third of a component is often beside it, at the object's height.
    target = make_target(shape="box", radius=0.2)
    beside = []
    for seed in range(10):
        sample, before = pasted(target, sources, seed, category="foam")
        beside.append(sample.xyz[sample.mask & ~before.foreground][:, 2])
        alone = dataclasses.replace(target, raw_xyz=None)
        kept, _ = pasted(alone, sources, seed, category="foam")
        assert not (kept.mask & ~before.foreground).any()
    depth = np.concatenate(beside)
    assert len(depth) > 20
    assert np.abs(depth - (FLOOR - 0.02)).max() < 0.003


def test_colours_are_blended_within_the_limits(sources):
    # Equal seeds paste equal colours; with min_blend = 1 they are seen unmixed.
    full = CONFIG.replace(min_blend=1.0)
    target, weights = make_target(size=256), []
    for seed in range(10):
        mixed, before = pasted(target, sources, seed)
        pure, _ = pasted(target, sources, seed, full)
        assert np.array_equal(mixed.mask, pure.mask)
        before = before.rgb.astype(float)
        for part in components(mixed.mask):
            way, gone = pure.rgb[part] - before[part], mixed.rgb[part] - before[part]
            weight = (way * gone).sum() / (way * way).sum()
            assert np.abs(gone - weight * way).max() <= 2  # one weight a component
            weights.append(weight)
    assert 0.49 < min(weights) < 0.6 and 0.9 < max(weights) < 1.01


def test_sources_may_have_any_size_and_holes(sources):
    target = make_target()
    odd = make_target(size=200, seed=3, shape="box", radius=0.15, holes=0.1)
    odd = dataclasses.replace(odd, **{key: getattr(odd, key)[:, 20:150] for key in ARRAYS})
    sample, before = pasted(target, (sources[0], odd), 0)
    lift = np.abs(sample.xyz[..., 2] - before.raw_xyz[..., 2])[sample.mask & before.foreground]
    assert lift.max() <= CONFIG.max_offset_m + 1e-6  # flat on flat, and no hole was pasted
    empty = dataclasses.replace(odd, rgb=odd.rgb * 0, xyz=odd.xyz * 0)
    with pytest.raises(ScanError, match="no object; expected one to cut from"):
        pasted(target, (sources[0], empty), 0)


def test_a_set_is_lazy_reads_prepared_files_and_spares_the_target(tmp_path):
    scans = [make_target(size=64, seed=seed, height=0.01 * (seed + 1)) for seed in range(2)]
    paths = [tmp_path / f"{i:03d}.safetensors" for i in range(2)]
    for scan, path in zip(scans, paths, strict=True):
        save_prepared(scan, path)
    from_files = list(synthesise_set(paths, paths, paths, 4, "cookie", CONFIG, 0))
    from_memory = list(synthesise_set(scans, scans, scans, 4, "cookie", CONFIG, 0))
    two = list(synthesise_set(scans, scans, scans, 2, "cookie", CONFIG, 0))
    assert [s.name for s in from_files] == [f"synthetic/{i:03d}" for i in range(4)]
    assert not np.array_equal(two[0].mask, from_files[2].mask)  # same target, other numbers
    for i, sample in enumerate(from_files):
        assert_same(sample, from_memory[i])
        assert_same(sample, two[i] if i < 2 else sample)  # however many are asked for
        # With two scans, the source of each is the other one.
        generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(i,)))
        generator.integers(1), generator.integers(1)
        target, source = load_prepared(paths[i % 2]), load_prepared(paths[1 - i % 2])
        assert_same(sample, synthesise(target, source, source, "cookie", CONFIG, generator))
    assert len(list(synthesise_set(scans[:1], scans[:1], scans[:1], 2, "cookie", CONFIG, 0))) == 2
    missing = [tmp_path / "none.safetensors"]
    lazy = synthesise_set(missing, missing, missing, 10**9, "cookie", CONFIG, 0)
    with pytest.raises(ScanError, match="none.safetensors"):
        next(lazy)


def test_relief_weighs_the_pasted_shape_and_leaves_the_offset(sources):
    """What remains of the source's waves differs from paste to paste; the mean lift does not."""
    target, wavy, share = make_target(), sources[1], []
    waves = 0.003 * np.sin(np.arange(128) / 3, dtype=np.float32) * wavy.foreground
    wavy = dataclasses.replace(wavy, xyz=wavy.xyz + waves[..., None] * np.float32([0, 0, 1]))
    for seed in range(12):
        spread = []
        for weight in (0.0, 1.0):
            fixed = dict(augment="none", min_offset_m=0.001, max_offset_m=0.001)
            config = CONFIG.replace(min_relief=weight, **fixed)
            sample, _ = pasted(target, (sources[0], wavy), seed, config)
            there = sample.mask & target.foreground
            spread.append((sample.xyz - target.xyz)[there][:, 2].std())
        share.append(spread[0] / spread[1])
    assert 0 < min(share) < 0.4 and max(share) <= 1 + 1e-6


def test_own_colours_keep_the_texture_of_the_place(sources):
    """Half of the pastes are the target's pixels, changed; a source of one colour lends one."""
    config = CONFIG.replace(augment="none", min_blend=1.0, colour_from="both")
    grey = dataclasses.replace(sources[0], rgb=np.full_like(sources[0].rgb, 7))
    samples = [pasted(make_target(), (grey, sources[1]), seed, config)[0] for seed in range(6)]
    assert max(len(np.unique(s.rgb[s.mask], axis=0)) for s in samples) > 20
