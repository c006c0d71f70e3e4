import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import open3d
import pytest
import tifffile
from PIL import Image

from g2sf_lib.config import PreprocessConfig
from g2sf_lib.datasets import Sample, ScanError
from g2sf_lib.datasets.mvtec3d import list_scans, read_scan
from g2sf_lib.datasets.preprocess import (
    dbscan,
    list_prepared,
    load_prepared,
    prepare,
    preprocess,
)

PITCH = 0.001
CONFIG = PreprocessConfig(pad_multiple_px=16, border_px=6)
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
        tifffile.imwrite(folder / "xyz" / f"{i:03d}.tiff", scan.xyz, photometric="rgb")
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


def test_dbscan_of_a_whole_scan_is_quick():
    generator = np.random.default_rng(0)
    sheet = np.stack(np.meshgrid(*[np.arange(170) * 0.00046] * 2), axis=-1).reshape(-1, 2)
    points = np.column_stack([sheet, generator.normal(0, 1e-4, len(sheet))])
    start = time.process_time()
    assert (dbscan(points, 0.006, 30) == 0).all()
    assert time.process_time() - start < 1.0  # 0.1 s; plain DBSCAN 0.6 to 1.4 s


@pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.2, -0.1)])
def test_the_object_is_what_is_left(tilt):
    scan, is_bump = make_scan(tilt=tilt)
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


def test_a_pixel_without_a_point_keeps_its_colour_inside_the_object_only():
    scan, is_bump = make_scan()
    scan.xyz[36, 44] = scan.xyz[36:38, 8:10] = 0
    sample = preprocess(scan, CONFIG)
    assert not sample.foreground[48, 48] and np.array_equal(sample.rgb[48, 48], scan.rgb[36, 44])
    assert not sample.rgb[48:50, 12:14].any()


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


@pytest.mark.parametrize(("multiple", "side"), [(16, 96), (100, 100), (88, 88), (1, 88), (64, 128)])
def test_side_is_the_next_multiple(multiple, side):
    config = dataclasses.replace(CONFIG, pad_multiple_px=multiple)
    assert preprocess(make_scan()[0], config).mask.shape == (side, side)


def test_scans_without_background_or_object_are_refused():
    scan, _ = make_scan(bumps=())
    with pytest.raises(ScanError, match="test/good/000: .*expected an object"):
        preprocess(scan, CONFIG)
    one = dataclasses.replace(scan, xyz=np.zeros_like(scan.xyz))
    one.xyz[36, 44] = 0.1, 0.1, 0.5
    with pytest.raises(ScanError, match="test/good/000: 0 points in the 6 px border; expected at"):
        preprocess(one, CONFIG)
    scan, _ = make_scan()
    scan.xyz[:] = np.random.default_rng(0).uniform(0.1, 5, scan.xyz.shape)
    with pytest.raises(ScanError, match="test/good/000: no plane .*expected a flat background"):
        preprocess(scan, CONFIG)


def test_prepared_scans_are_the_preprocessed_ones(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    write_data_set(root, 1, split="test", label="hole")
    write_data_set(root, 2, split="test")
    write_data_set(root, 1, split="test", label="dent")
    bytes_before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    prepare(root, out, ["part"], CONFIG, splits=["test"], progress=False)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == bytes_before
    paths = list_prepared(out, "part", "test")
    assert [str(p.relative_to(out / "part/test")) for p in paths] == [
        "good/000.safetensors",
        "good/001.safetensors",
        "dent/000.safetensors",
        "hole/000.safetensors",
    ]
    for path, files in zip(paths, list_scans(root, "part", "test"), strict=True):
        assert_same(load_prepared(path), preprocess(read_scan(files), CONFIG))
    record = json.loads((out / "part/preprocess.json").read_text())
    assert record["preprocess"] == dataclasses.asdict(CONFIG)


def test_what_is_there_is_not_made_again(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    source = write_data_set(root, 4)

    def times():
        return [p.stat().st_mtime_ns for p in list_prepared(out, "part", "train")]

    prepare(root, out, ["part"], CONFIG, ["train"], progress=False)
    first, paths = times(), list_prepared(out, "part", "train")
    whole = paths[2].read_bytes()
    paths[1].unlink()  # as after a kill: one not begun, one half written, one damaged
    paths[2].with_name(".002.partial").write_bytes(whole[:100])
    paths[2].write_bytes(whole[:-1])
    prepare(root, out, ["part"], CONFIG, ["train"], progress=False)
    second = times()
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, False, True]
    assert paths[2].read_bytes() == whole and not list(out.rglob("*.partial"))
    other = dataclasses.replace(CONFIG, pad_multiple_px=32)
    prepare(root, out, ["part"], other, ["train"], progress=False)
    assert all(a != b for a, b in zip(second, times(), strict=True))
    assert load_prepared(paths[0]).mask.shape == (96, 96)
    assert json.loads((out / "part/preprocess.json").read_text())["preprocess"] == (
        dataclasses.asdict(other)
    )
    third = times()
    os.utime(source / "rgb/003.png")  # a source that changed
    (source / "rgb/000.png").unlink()
    (source / "xyz/000.tiff").unlink()
    prepare(root, out, ["part"], other, ["train"], progress=False)
    assert list_prepared(out, "part", "train") == paths[1:]  # its scan is gone
    assert [a == b for a, b in zip(third[1:], times(), strict=True)] == [True, True, False]


def test_bad_scans_are_named_together_and_the_rest_is_made_by_a_pool(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    good = write_data_set(root, 5)
    other = write_data_set(root, 2, category="other", label="dent")
    truncated, flat, lost = good / "xyz/001.tiff", good / "xyz/003.tiff", other / "gt/000.png"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    tifffile.imwrite(flat, make_scan(bumps=())[0].xyz, photometric="rgb")
    lost.unlink()
    with pytest.raises(ScanError) as caught:
        prepare(root, out, ["part", "other", "none"], CONFIG, ["train"], 2, progress=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 bad scan(s):" and len(lines) == 5
    for path in (truncated, flat, lost, root / "none/train"):
        assert sum(line.startswith(str(path)) and "expected" in line for line in lines) == 1
    assert [p.stem for p in list_prepared(out, "part", "train")] == ["000", "002", "004"]
    assert [p.stem for p in list_prepared(out, "other", "train")] == ["001"]
    first = load_prepared(list_prepared(out, "part", "train")[0])
    expected = read_scan(list_scans(root, "part", "train")[0])
    assert_same(first, preprocess(expected, CONFIG))  # a pool worker computes the same bytes


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_truncated_prepared_scan_is_named(tmp_path, kept):
    write_data_set(tmp_path / "raw", 1)
    prepare(tmp_path / "raw", tmp_path / "out", ["part"], CONFIG, ["train"], progress=False)
    (path,) = list_prepared(tmp_path / "out", "part", "train")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ScanError, match=f"{path}: not a whole prepared scan.*expected"):
        load_prepared(path)


def test_nothing_prepared_is_said(tmp_path):
    with pytest.raises(ScanError, match="part/train: no prepared scan found; expected"):
        list_prepared(tmp_path, "part", "train")
