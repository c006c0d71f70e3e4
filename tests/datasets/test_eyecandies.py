import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from g2sf_lib.datasets import ScanError
from g2sf_lib.datasets.eyecandies import KINDS, find_scans, read_scan, unproject

FOCAL = 711.11


@pytest.fixture
def one(tmp_path, render_candy, write_candy):
    """Return the folder of test_public and its only scan, 24 px, number 07, anomalous."""
    folder = tmp_path / "CandyCane/test_public/data"
    candy = render_candy(1, 24, ("bumps",))
    write_candy(folder, "07", candy, ("bumps",), metadata=True)
    return folder, candy


def read_only(root):
    (files,), problems = find_scans(root, "CandyCane", "test")
    assert not problems
    return read_scan(files)


def names(root, split):
    scans, problems = find_scans(root, "CandyCane", split)
    return [files.name for files in scans] + problems


def test_a_pixel_becomes_a_point_by_hand():
    depth = np.zeros((2, 4))
    depth[0, 0], depth[1, 3] = 2.0, 4.0
    points = unproject(depth, np.eye(4))
    assert points.shape == (2, 4, 3) and points.dtype == np.float32
    # Camera (-2, -1, f) * 2 / f: x right, y down, z away; published: x, -z, y, a tenth of each.
    expected = 0.1 * np.array([-2 * 2 / FOCAL, -2.0, -1 * 2 / FOCAL])
    np.testing.assert_allclose(points[0, 0], expected, rtol=1e-6)
    expected = 0.1 * np.array([1 * 4 / FOCAL, -4.0, 0 * 4 / FOCAL])
    np.testing.assert_allclose(points[1, 3], expected, rtol=1e-6, atol=1e-9)
    assert not points[depth == 0].any()


def test_points_are_those_that_the_camera_saw(tmp_path, one, render_candy, write_candy):
    shutil.rmtree(tmp_path / "CandyCane")
    candy = render_candy(3, 48, ("dents",))
    write_candy(tmp_path / "CandyCane/test_public/data", "00", candy, ("dents",))
    sample = read_only(tmp_path)
    step = (candy.depth.max() - candy.depth.min() + 0.02) / 65535
    seen = sample.xyz.astype(float)[..., [0, 2, 1]] * (10, 10, -10)
    distance = np.linalg.norm(seen - candy.world, axis=-1)
    assert distance.max() < 0.5 * step * 1.01 + 3e-6  # half a step, and 24 bits of a float
    assert np.array_equal(sample.rgb, candy.rgb) and np.array_equal(sample.mask, candy.mask)
    assert sample.foreground.all() and sample.raw_xyz is None
    assert np.ptp(sample.xyz[candy.height > 0], axis=0).max() < 0.2  # near MVTec's metres


def test_raw_depth_becomes_metres_by_hand(tmp_path, one):
    folder, _ = one
    value = np.full((24, 24), 13107, np.uint16)  # a fifth of 65535
    value[0, 0], value[0, 1] = 65535, 0
    Image.fromarray(value).save(folder / "07_depth.png")
    (folder / "07_info_depth.yaml").write_text("normalization: {min: 0, max: 3.5}\n")
    np.savetxt(folder / "07_pose.txt", np.eye(4))
    sample = read_only(tmp_path)
    np.testing.assert_allclose(sample.xyz[5, 5, 1], -0.1 * 0.2 * 3.5, rtol=1e-6)
    np.testing.assert_allclose(sample.xyz[0, 0, 1], -0.1 * 3.5, rtol=1e-6)
    assert not sample.foreground[0, 1] and sample.foreground.sum() == 24 * 24 - 1
    (folder / "07_info_depth.yaml").write_text("normalization: {min: 1.5, max: 3.5}\n")
    sample = read_only(tmp_path)
    np.testing.assert_allclose(sample.xyz[5, 5, 1], -0.1 * 1.9, rtol=1e-6)
    np.testing.assert_allclose(sample.xyz[0, 1, 1], -0.1 * 1.5, rtol=1e-6)


def test_the_tree_is_listed_good_first_then_by_kind_and_number(tmp_path, eyecandies_tree):
    root = eyecandies_tree(tmp_path, side=24, num=(3, 2, 2, 7))
    assert names(root, "train") == [f"train/good/{n:03d}" for n in range(3)]
    assert names(root, "validation") == ["validation/good/000", "validation/good/001"]
    assert names(root, "test") == [
        *("test/good/00", "test/good/01", "test/bumps/02", "test/bumps/08", "test/colors/04"),
        *("test/combined/06", "test/defective/07", "test/dents/03", "test/normals/05"),
    ]
    for split in ("train", "validation", "test"):
        for files in find_scans(root, "CandyCane", split)[0]:
            sample = read_scan(files)
            assert sample.rgb.shape == sample.xyz.shape == (24, 24, 3)
            assert sample.mask.any() == (files.label != "good")
            assert all(path.is_file() for path in files.paths) and files.paths[1] == files.xyz
    masks = [files.gt for files in find_scans(root, "CandyCane", "train")[0]]
    assert [mask is None for mask in masks] == [False, True, False]


@pytest.mark.parametrize(
    ("metadata", "label"),
    [
        (None, "defective"),
        ({"anomalous": 1}, "defective"),
        ({"anomalous": 1, "anomalous_bumps": 0, "anomalous_normals": 1}, "normals"),
        ({f"anomalous_{kind}": 1 for kind in KINDS}, "combined"),
        ({"anomalous_bumps": True, "anomalous_dents": False}, "bumps"),
        ({"anomalous_bumps": "0", "anomalous_dents": "1"}, "dents"),
    ],
)
def test_label_is_told_by_mask_and_metadata(tmp_path, one, metadata, label):
    folder, _ = one
    (folder / "07_metadata.yaml").unlink()
    if metadata is not None:
        (folder / "07_metadata.yaml").write_text(yaml.safe_dump(metadata))
    assert names(tmp_path, "test") == [f"test/{label}/07"]
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(folder / "07_mask.png")
    (told,) = names(tmp_path, "test")
    assert (
        told == "test/good/07" if metadata is None else "07_mask.png has no anomalous pixel" in told
    )


@pytest.mark.parametrize(
    "text",
    [
        "normalization: {min: 1.0}",
        "normalization: {min: 1.0, max: 1.0}",
        "normalization: {min: -1.0, max: 1.0}",
        "normalization: {min: .nan, max: 1.0}",
        "normalization: {min: true, max: 2}",
        "normalization: 3",
        "other: {min: 1.0, max: 2.0}",
        "normalization: {min: [1\n",
        b"\xff\xfe\x00",
    ],
)
def test_bad_range_is_refused(tmp_path, one, text):
    path = one[0] / "07_info_depth.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ScanError, match=r"07_info_depth.yaml: .*normalization: \{min, max\}"):
        read_only(tmp_path)


def test_the_pose_goes_from_world_to_camera():
    pose = np.eye(4)
    pose[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # world x is the camera's y
    pose[:3, 3] = 0, 0, 3  # the world's origin lies 3 before the camera
    depth = np.full((2, 4), 5.0)
    x, y = (3 - 2) * 5 / FOCAL, (0 - 1) * 5 / FOCAL  # of pixel row 0, column 3, camera
    np.testing.assert_allclose(
        unproject(depth, pose)[0, 3], 0.1 * np.array([y, -(5 - 3), -x]), rtol=1e-6
    )
