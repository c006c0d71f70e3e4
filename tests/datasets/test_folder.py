import numpy as np
import pytest
import yaml
from PIL import Image

from g2sf_lib.datasets import ScanError, mvtec3d
from g2sf_lib.datasets.folder import find_scans, list_categories, read_camera, read_scan

CAMERA = {"fx": 400.0, "fy": 500, "cx": 3.0, "cy": 2.0, "depth_scale": 0.001}
DEPTH = np.array([[500, 500, 0, 500], [500, 499, 499, 500], [500, 499, 499, 500]], dtype=np.uint16)


def write_scan(root, label="good", index="a1", split="train", category="gasket", depth=DEPTH):
    home = root / category / split / label
    for kind in ("rgb", "depth", "gt"):
        (home / kind).mkdir(parents=True, exist_ok=True)
    rgb = np.arange(depth.size * 3, dtype=np.uint8).reshape(*depth.shape, 3)
    Image.fromarray(rgb).save(home / "rgb" / f"{index}.png")
    Image.fromarray(depth).save(home / "depth" / f"{index}.png")
    if label != "good":
        Image.fromarray(np.eye(*depth.shape, dtype=np.uint8)).save(home / "gt" / f"{index}.png")
    return home


@pytest.fixture
def one(tmp_path):
    """Return the root of a data set of one scan, with its camera."""
    write_scan(tmp_path)
    (tmp_path / "camera.yaml").write_text(yaml.safe_dump(CAMERA))
    return tmp_path


def test_a_depth_image_becomes_points_by_hand(one):
    (files,), _ = find_scans(one, "gasket", "train")
    sample = read_scan(files)
    assert sample.xyz.shape == (3, 4, 3) and sample.xyz.dtype == np.float32
    np.testing.assert_allclose(
        sample.xyz[0, 0], [-3 / 400 * 0.5, -2 / 500 * 0.5, 0.5], rtol=1e-6
    )  # 500 units of 1 mm; column 0 is 3 px left of the middle, row 0 is 2 px above it
    np.testing.assert_allclose(sample.xyz[2, 1], [-2 / 400 * 0.499, 0, 0.499], rtol=1e-6)
    assert np.array_equal(sample.foreground, DEPTH > 0)
    assert (sample.name, sample.label, sample.raw_xyz) == ("train/good/a1", "good", None)
    assert not sample.mask.any()
    assert files.paths == [files.rgb, files.xyz, one / "camera.yaml"]


def test_depth_and_points_of_one_tree_are_the_same_scan(tmp_path, make_tree):
    with_points = make_tree("mvtec3d", tmp_path / "points")
    with_depth = make_tree("folder", tmp_path / "depth")
    for split in ("train", "validation", "test"):
        ours, _ = find_scans(with_points, "bagel", split)
        assert ours == mvtec3d.find_scans(with_points, "bagel", split)[0]  # read as MVTec's are
        depths, _ = find_scans(with_depth, "my part", split)
        assert [files.name for files in depths] == [files.name for files in ours]
        for left, right in zip(ours, depths, strict=True):
            plain, made = read_scan(left), read_scan(right)
            np.testing.assert_allclose(made.xyz, plain.xyz, atol=6e-6)  # half a unit of depth
            assert np.array_equal(made.foreground, plain.foreground)
            assert np.array_equal(made.mask, plain.mask) and np.array_equal(made.rgb, plain.rgb)
            assert made.label == plain.label


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fx": None}, "fx is None"),
        ({"fx": "wide"}, "fx is 'wide'"),
        ({"fx": -400.0}, "fx is -400.0"),
        ({"fy": 0}, "fy is 0"),
        ({"cy": float("nan")}, "cy is nan"),
        ({"depth_scale": True}, "depth_scale is True"),
        ({"depth_scale": float("inf")}, "depth_scale is inf"),
        ({"k1": 0.1}, "found cx, cy, depth_scale, fx, fy, k1"),
    ],
)
def test_bad_camera_is_refused(one, change, words):
    (one / "camera.yaml").write_text(yaml.safe_dump(CAMERA | change))
    with pytest.raises(ScanError, match=f"camera.yaml: {words}.*expected"):
        read_camera(one / "camera.yaml")


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'0.0001'"])
def test_a_number_is_what_people_read_as_one(tmp_path, text):
    path = tmp_path / "camera.yaml"
    path.write_text(f"fx: 4e2\nfy: 400\ncx: 3\ncy: 2\ndepth_scale: {text}\n", "utf-8-sig")
    assert list(read_camera(path).values()) == [400, 400, 3, 2, 1e-4]


def test_categories_are_folders_with_a_split(one):
    write_scan(one, category="Bolt 3", split="test")
    (one / "notes").mkdir()
    (one / "notes/train").write_text("no folder")
    assert list_categories(one) == ("Bolt 3", "gasket")
    for root in (one / "notes", one / "nowhere", one / "camera.yaml"):
        with pytest.raises(ScanError, match=f"{root}: no category found; expected <category>"):
            list_categories(root)
