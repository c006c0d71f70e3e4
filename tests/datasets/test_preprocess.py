import dataclasses
import os
from pathlib import Path

import numpy as np
import open3d
import pytest
from halcon import write_points
from PIL import Image

from g2sf_lib.config import PreprocessConfig
from g2sf_lib.datasets import DATASETS, Sample, ScanError, reader
from g2sf_lib.datasets.mvtec3d import find_scans, read_scan
from g2sf_lib.datasets.preprocess import (
    dbscan,
    list_prepared,
    load_prepared,
    prepare,
    preprocess,
)

PITCH = 0.001
CONFIG = PreprocessConfig(pad_multiple_px=16, border_px=6)
CONVEYOR = CONFIG.replace(background="conveyor")
TENSORS = ("rgb", "xyz", "mask", "raw_xyz")


def make_scan(height=72, width=88, seed=0, tilt=(0.0, 0.0), bumps=((36, 44, 20),), label="good"):
    """Return a floor with bumps of (row, column, radius) px, 12 mm high, and where they are."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    rise = np.zeros((height, width))
    for row, column, radius in bumps:
        rise[np.hypot(rows - row, columns - column) < radius] = 0.012
    floor = 0.5 + tilt[0] * rows * PITCH + tilt[1] * columns * PITCH
    noise = generator.normal(0, 2e-4, (height, width))
    xyz = np.stack([columns * PITCH, rows * PITCH, floor - rise + noise], axis=-1)
    xyz[generator.random((height, width)) < 0.02] = 0
    rgb = generator.integers(1, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), bool)
    mask[30:36, 40:50] = label != "good"
    scan = Sample(rgb, xyz.astype(np.float32), mask, label, f"test/{label}/000")
    return scan, rise > 0


def write_data_set(root, num=3, label="good", split="train", category="part", **options):
    folder = Path(root) / category / split / label
    for kind in ("rgb", "xyz", "gt") if label != "good" else ("rgb", "xyz"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i in range(num):
        scan, _ = make_scan(seed=i, label=label, **options)
        Image.fromarray(scan.rgb).save(folder / "rgb" / f"{i:03d}.png")
        write_points(folder / "xyz" / f"{i:03d}.tiff", scan.xyz)
        if label != "good":
            Image.fromarray(scan.mask.astype(np.uint8) * 255).save(folder / "gt" / f"{i:03d}.png")
    return folder


def assert_same(left, right):
    for key in TENSORS:
        assert np.array_equal(getattr(left, key), getattr(right, key)), key
        assert getattr(left, key).dtype == getattr(right, key).dtype, key
    assert (left.label, left.name) == (right.label, right.name)


def blobs_and_noise(seed, spacing):
    """Return two jittered sheets 12 mm apart, a thread that ends 7 mm from one, and scatter."""
    generator = np.random.default_rng(seed)
    sheet = np.stack(np.meshgrid(*[np.arange(0, 0.03, spacing)] * 2), axis=-1).reshape(-1, 2)
    sheet = np.column_stack([sheet, np.zeros(len(sheet))])
    thread = np.linspace([0.037, 0, 0], [0.07, 0, 0], 165)
    scatter = generator.uniform(-0.03, 0.1, (300, 3))
    points = np.concatenate([sheet, sheet[::-1] + [0, 0.042, 0.001], thread, scatter])
    return points + generator.normal(0, 1e-4, points.shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("spacing", "eps", "min_points"), [(0.001, 0.006, 30), (0.001, 0.0035, 20), (0.002, 0.006, 24)]
)
def test_dbscan_is_the_plain_one(seed, spacing, eps, min_points):
    points = blobs_and_noise(seed, spacing)
    labels = dbscan(points, eps, min_points)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    plain = np.asarray(cloud.cluster_dbscan(eps, min_points))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    is_core = (distances <= eps).sum(axis=1) >= min_points
    assert plain.max() >= 1 and (plain == -1).any() and not is_core.all()
    assert np.array_equal(labels == -1, plain == -1)
    pairs = set(zip(labels[is_core].tolist(), plain[is_core].tolist(), strict=True))
    assert len(pairs) == len(set(labels[is_core])) == len(set(plain[is_core]))
    border = ~is_core & (labels >= 0)
    to_core = np.where(is_core, distances, np.inf)
    assert np.array_equal(labels[border], labels[to_core[border].argmin(axis=1)])


def test_dbscan_by_hand():
    line = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [4.5, 0, 0], [5.4, 0, 0], [6.3, 0, 0]])
    assert dbscan(line, 1.0, 2).tolist() == [0, 0, 0, 1, 1, 1]
    assert dbscan(line, 2.5, 2).tolist() == [0] * 6
    assert dbscan(line, 1.0, 3).tolist() == [0, 0, 0, 1, 1, 1]  # middles are core, ends border
    assert dbscan(line, 1.0, 4).tolist() == [-1] * 6
    assert dbscan(np.zeros((0, 3)), 1.0, 1).tolist() == []
    assert dbscan(np.zeros((5, 3)), 1.0, 5).tolist() == [0] * 5


@pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.2, -0.1)])
def test_the_object_is_what_is_left(tilt):
    scan, is_bump = make_scan(tilt=tilt)
    scan.xyz[36, 44] = scan.xyz[36:38, 8:10] = 0  # such a pixel keeps its colour, in the object
    sample = preprocess(scan, CONFIG)
    top, left = (96 - 72) // 2, (96 - 88) // 2
    window = np.s_[top : top + 72, left : left + 88]
    assert sample.rgb.shape == sample.xyz.shape == sample.raw_xyz.shape == (96, 96, 3)
    expected = is_bump & scan.foreground
    assert np.array_equal(sample.foreground[window], expected)
    assert sample.foreground.sum() == expected.sum()
    assert np.array_equal(sample.xyz[window][expected], scan.xyz[expected])
    assert np.array_equal(sample.raw_xyz[window], scan.xyz)
    assert np.count_nonzero(sample.raw_xyz) == np.count_nonzero(scan.xyz)
    assert not sample.rgb[window][scan.foreground & ~is_bump].any()
    assert np.array_equal(sample.rgb[window][expected], scan.rgb[expected])
    assert (
        np.array_equal(sample.rgb[48, 48], scan.rgb[36, 44]) and not sample.rgb[48:50, 12:14].any()
    )


def test_equal_input_gives_equal_output_and_the_scan_stays_as_it_is():
    scan, _ = make_scan(label="dent", tilt=(0.1, 0.1))
    before = dataclasses.replace(scan, rgb=scan.rgb.copy(), xyz=scan.xyz.copy())
    first = preprocess(scan, CONFIG)
    open3d.utility.random.seed(99)
    assert_same(first, preprocess(scan, CONFIG))
    assert np.array_equal(scan.rgb, before.rgb) and np.array_equal(scan.xyz, before.xyz)
    assert not np.shares_memory(first.raw_xyz, scan.xyz)
    assert first.mask.sum() == 60 and first.mask[42, 44] and first.label == "dent"


def test_only_the_largest_cluster_stays():
    scan, _ = make_scan(bumps=((36, 24, 14), (36, 64, 9)))
    sample = preprocess(scan, CONFIG)
    columns = np.flatnonzero(sample.foreground.any(axis=0)) - 4
    assert columns.min() >= 10 and columns.max() <= 38
    alone, is_bump = make_scan(bumps=((36, 24, 14),))
    assert sample.foreground.sum() == (is_bump & alone.foreground).sum()


def disc(row, column, radius):
    rows, columns = np.mgrid[:72, :88]
    return np.hypot(rows - row, columns - column) < radius


def only_one_point(xyz):
    xyz[:] = 0
    xyz[36, 44] = 0.1, 0.1, 0.5


def scattered(xyz):
    xyz[:] = np.random.default_rng(0).uniform(0.1, 5, xyz.shape)


def a_third_is_flat(xyz):
    rows, columns = np.mgrid[:72, :88]
    xyz[..., 2] += np.where(columns < 56, 0.05 * np.sin(rows / 3 + columns / 4), 0)


def with_a_pit(xyz):
    xyz[..., 2] += disc(36, 62, 8) * 0.012


def flat_but_for_a_bump(xyz):  # the object fills the frame: 1 % of its points are left
    xyz[..., 2] = 0.5 - disc(36, 44, 5) * 0.012


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda xyz: xyz[..., 2].fill(0.5), "expected an object"),
        (only_one_point, "0 points in the 6 px border; expected at"),
        (scattered, "no plane .*expected a flat background"),
        (a_third_is_flat, "no plane through the"),
        (with_a_pit, "one side of it; expected 90%"),
        (flat_but_for_a_bump, "points are left as the object.*background to none"),
    ],
)
def test_a_scan_without_background_or_object_is_refused(change, words):
    scan, _ = make_scan(bumps=((36, 26, 14),))
    change(scan.xyz)
    with pytest.raises(ScanError, match=f"test/good/000: .*{words}"):
        preprocess(scan, CONFIG)


def test_prepared_scans_are_the_preprocessed_ones(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    write_data_set(root, 1, split="test", label="hole")
    write_data_set(root, 2, split="test")
    write_data_set(root, 1, split="test", label="dent")
    bytes_before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    prepare(root, out, ["part"], CONFIG, splits=["test"])
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == bytes_before
    paths = list_prepared(out, "part", "test")
    assert [str(p.relative_to(out / "part/test")) for p in paths] == [
        "good/000.safetensors",
        "good/001.safetensors",
        "dent/000.safetensors",
        "hole/000.safetensors",
    ]
    for path, files in zip(paths, find_scans(root, "part", "test")[0], strict=True):
        assert_same(load_prepared(path), preprocess(read_scan(files), CONFIG))


def test_what_is_there_is_not_made_again(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    source = write_data_set(root, 4)

    def times():
        return [p.stat().st_mtime_ns for p in list_prepared(out, "part", "train")]

    prepare(root, out, ["part"], CONFIG, ["train"])
    first, paths = times(), list_prepared(out, "part", "train")
    whole = paths[2].read_bytes()
    paths[1].unlink()  # as after a kill: one not begun, one half written, one damaged
    paths[2].with_name(".002.partial").write_bytes(whole[:100])
    paths[2].write_bytes(whole[:-1])
    prepare(root, out, ["part"], CONFIG, ["train"])
    second = times()
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, False, True]
    assert paths[2].read_bytes() == whole and not list(out.rglob("*.partial"))
    other = CONFIG.replace(pad_multiple_px=32)
    prepare(root, out, ["part"], other, ["train"])
    assert all(a != b for a, b in zip(second, times(), strict=True))
    assert load_prepared(paths[0]).mask.shape == (96, 96)
    third = times()
    os.utime(source / "rgb/003.png")  # a source that changed
    (source / "rgb/000.png").unlink()
    (source / "xyz/000.tiff").unlink()
    prepare(root, out, ["part"], other, ["train"])
    assert list_prepared(out, "part", "train") == paths[1:]  # its scan is gone
    assert [a == b for a, b in zip(third[1:], times(), strict=True)] == [True, True, False]


def test_bad_scans_are_named_together_and_the_rest_is_made_by_a_pool(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    good = write_data_set(root, 5)
    other = write_data_set(root, 2, category="other", label="dent")
    truncated, flat, lost = good / "xyz/001.tiff", good / "xyz/003.tiff", other / "gt/000.png"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    write_points(flat, make_scan(bumps=())[0].xyz)
    lost.unlink()
    with pytest.raises(ScanError) as caught:
        prepare(root, out, ["part", "other", "none"], CONFIG, ["train"], 2)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 bad scan(s):" and len(lines) == 5
    for path in (truncated, flat, lost, root / "none/train"):
        assert sum(line.startswith(str(path)) and "expected" in line for line in lines) == 1
    assert [p.stem for p in list_prepared(out, "part", "train")] == ["000", "002", "004"]
    assert [p.stem for p in list_prepared(out, "other", "train")] == ["001"]
    first = load_prepared(list_prepared(out, "part", "train")[0])
    expected = read_scan(find_scans(root, "part", "train")[0][0])
    assert_same(first, preprocess(expected, CONFIG))  # a pool worker computes the same bytes


# ---------------------------------------------------------------- no plane: conveyor, nothing


def above_the_conveyor(xyz):
    """Return what the published rule keeps, pixel by pixel, in the units of the renderer."""
    height, width, _ = xyz.shape

    def unit(row, column):
        a, b, c = (10 * float(value) for value in xyz[row, column])
        return a, c, -b  # to the side, down, away

    _, y0, z0 = unit(height - 1, width // 2)
    _, y1, z1 = unit(0, width // 2)
    angle = np.arctan2(y1 - y0, z1 - z0)
    keep = np.zeros((height, width), bool)
    for row in range(height):
        for column in range(width):
            x, y, z = unit(row, column)
            if (x, y, z) == (0, 0, 0):
                continue
            turned_y = np.cos(angle) * (y - y0) - np.sin(angle) * (z - z0)
            turned_z = np.sin(angle) * (y - y0) + np.cos(angle) * (z - z0)
            keep[row, column] = not (turned_y > -0.02 or turned_z > 1.8 or abs(x) > 1)
    return keep


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 14), (14, 9)])
def test_conveyor_rule_is_the_published_one(seed, height, width):
    generator = np.random.default_rng(seed)
    xyz = generator.uniform((-0.13, -0.4, -0.05), (0.13, -0.1, 0.05), (height, width, 3))
    xyz[generator.random((height, width)) < 0.1] = 0
    middle = width // 2
    xyz[0, middle] = 0.01, -0.33, 0.03 * (seed - 1)  # away from the camera: minus in y
    xyz[height - 1, middle] = 0.02, -0.12, 0.01
    xyz = xyz.astype(np.float32)
    rgb = generator.integers(1, 256, (height, width, 3), dtype=np.uint8)
    scan = Sample(rgb, xyz, np.zeros((height, width), bool), "good", "train/good/000")
    sample = preprocess(scan, CONVEYOR)
    expected = above_the_conveyor(xyz)
    assert 5 < expected.sum() < expected.size - 30
    side = max(height, width)  # a square, and no more
    assert sample.mask.shape == (side, side)
    top, left = (side - height) // 2, (side - width) // 2
    window = np.s_[top : top + height, left : left + width]
    assert np.array_equal(sample.foreground[window], expected)
    assert np.array_equal(sample.xyz[window][expected], xyz[expected])
    assert np.array_equal(sample.raw_xyz[window], xyz)


def test_a_rendered_sweet_is_what_is_left(tmp_path, render_candy, write_candy):
    candy = render_candy(5, 96)
    write_candy(tmp_path / "Lollipop/train/data", "000", candy)
    eyecandies = reader("eyecandies")
    (files,), _ = eyecandies.find_scans(tmp_path, "Lollipop", "train")
    scan = eyecandies.read_scan(files)
    sample = preprocess(scan, CONVEYOR)
    certain = np.abs(candy.height - 0.02) > 1e-4  # the depth has 16 bits
    assert certain.mean() > 0.99
    assert np.array_equal(sample.foreground[certain], (candy.height > 0.02)[certain])
    assert 0.25 < sample.foreground.mean() < 0.4
    assert not sample.rgb[~sample.foreground].any()
    assert np.array_equal(sample.rgb[sample.foreground], scan.rgb[sample.foreground])


def test_without_a_background_the_largest_cluster_stays():
    config = CONFIG.replace(background="none")
    scan, is_bump = make_scan(bumps=((36, 24, 14), (36, 64, 9)))
    scan = dataclasses.replace(scan, xyz=np.where(is_bump[..., None], scan.xyz, np.float32(0)))
    with pytest.raises(ScanError, match="0 points in the 6 px border"):
        preprocess(scan, CONFIG)
    sample = preprocess(scan, config)
    expected = scan.foreground & (np.arange(88) < 45)
    assert np.array_equal(sample.foreground[12:84, 4:92], expected)
    sparse = dataclasses.replace(scan, xyz=scan.xyz * np.float32(20))
    with pytest.raises(ScanError, match="none has 30 neighbours; expected an object"):
        preprocess(sparse, config)


# ---------------------------------------------------------------- every data set


CATEGORY = {"mvtec3d": "bagel", "eyecandies": "CandyCane", "folder": "my part"}
NUM = {"train": 3, "validation": 1, "test": 2}


def contents(root):
    return {p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in root.rglob("*")}


@pytest.mark.parametrize("dataset", CATEGORY)
def test_every_data_set_is_prepared_and_left_alone(tmp_path, make_tree, dataset):
    category, background = CATEGORY[dataset], DATASETS[dataset].background
    root = make_tree(dataset, tmp_path / "raw", (72, 88), (3, 1, 1, 1))
    before = contents(root)
    out = tmp_path / "out"
    prepare(root, out, [category], CONFIG, dataset=dataset)
    assert contents(root) == before
    config = CONFIG.replace(background=background)
    for split, num in NUM.items():
        paths = list_prepared(out, category, split)
        scans = reader(dataset).find_scans(root, category, split)[0]
        assert len(paths) == len(scans) == num
        for path, files in zip(paths, scans, strict=True):
            assert (path.parent.name, path.stem) == (files.label, files.index)
            sample = load_prepared(path)
            assert_same(sample, preprocess(reader(dataset).read_scan(files), config))
            assert 0.1 < sample.foreground.mean() < 0.4


@pytest.mark.parametrize(
    ("dataset", "source"),
    [
        ("eyecandies", "CandyCane/train/data/001_pose.txt"),
        ("eyecandies", "CandyCane/train/data/001_info_depth.yaml"),
        ("folder", "my part/camera.yaml"),
    ],
)
def test_what_a_scan_depends_on_is_watched(tmp_path, make_tree, dataset, source):
    category = CATEGORY[dataset]
    root = make_tree(dataset, tmp_path / "raw", (72, 88), (3, 1, 1, 1))

    def made_anew():
        times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.safetensors")}
        prepare(root, tmp_path / "out", [category], CONFIG, ["train"], 1, dataset)
        paths = list_prepared(tmp_path / "out", category, "train")
        return [p.stem for p in paths if times.get(p) != p.stat().st_mtime_ns]

    assert made_anew() == ["000", "001", "002"]
    assert made_anew() == []
    os.utime(root / source, ns=(1, 1))
    assert made_anew() == (["000", "001", "002"] if dataset == "folder" else ["001"])


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_truncated_prepared_scan_is_named(tmp_path, kept):
    write_data_set(tmp_path / "raw", 2)
    prepare(tmp_path / "raw", tmp_path / "out", ["part"], CONFIG, ["train"])
    path = list_prepared(tmp_path / "out", "part", "train")[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ScanError, match=f"{path}: not a whole prepared scan.*expected"):
        load_prepared(path)
