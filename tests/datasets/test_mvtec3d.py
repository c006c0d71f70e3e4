import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from halcon import write_points
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from g2sf_lib.datasets import ScanError
from g2sf_lib.datasets.mvtec3d import find_scans, read_scan

HEIGHT, WIDTH = 12, 17


def make_arrays(seed=0, height=HEIGHT, width=WIDTH):
    generator = np.random.default_rng(seed)
    rgb = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = np.indices((height, width))
    z = generator.uniform(0.5, 0.501, (height, width))
    xyz = np.stack([(columns + 1) * 4e-4, (rows + 1) * 4e-4, z], axis=-1).astype(np.float32)
    xyz[3, 4] = 0
    gt = np.zeros((height, width), np.uint8)
    gt[5:8, 2:6] = 255
    return rgb, xyz, gt


def write_scan(root, label="dent", index="000", split="test", category="part", gt=True, **options):
    folder = Path(root) / category / split / label
    rgb, xyz, mask = make_arrays()
    for kind in ("rgb", "xyz", "gt") if gt else ("rgb", "xyz"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(folder / "rgb" / f"{index}.png")
    path = folder / "xyz" / f"{index}.tiff"
    if options:
        tifffile.imwrite(path, xyz, **{"photometric": "rgb"} | options)
    else:
        write_points(path, xyz)
    if gt:
        Image.fromarray(mask * (label != "good")).save(folder / "gt" / f"{index}.png")
    return rgb, xyz, mask


@contextmanager
def one_scan(**options):
    """Yield the only scan of a fresh folder: hypothesis runs a test body many times."""
    with tempfile.TemporaryDirectory() as root:
        arrays = write_scan(root, **options)
        yield find_scans(root, "part", "test")[0][0], arrays


def check_error(files, path):
    """Reading must end in a ScanError that names the file and what was expected."""
    with pytest.raises(ScanError) as caught:
        read_scan(files)
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)
    return str(caught.value)


def test_scan_is_read_as_written_and_need_not_be_square():
    with one_scan(compression="zlib") as (files, (rgb, xyz, mask)):
        sample = read_scan(files)
    assert sample.rgb.dtype == np.uint8 and np.array_equal(sample.rgb, rgb)
    assert sample.xyz.dtype == np.float32 and np.array_equal(sample.xyz, xyz)
    assert np.array_equal(sample.mask, mask > 0)
    assert (sample.label, sample.name, sample.raw_xyz) == ("dent", "test/dent/000", None)
    assert not sample.foreground[3, 4] and sample.foreground.sum() == HEIGHT * WIDTH - 1


def test_scans_are_listed_good_first_then_by_label_and_number(tmp_path):
    for label, index in (("hole", "001"), ("good", "1000"), ("good", "002"), ("bend", "000")):
        write_scan(tmp_path, label, index)
    (tmp_path / "part/test/good/rgb/._002.png").write_bytes(b"left by macOS")
    (tmp_path / "part/test/.DS_Store").write_bytes(b"left by macOS")
    names = [files.name for files in find_scans(tmp_path, "part", "test")[0]]
    assert names == ["test/good/002", "test/good/1000", "test/bend/000", "test/hole/001"]


@given(values=st.lists(st.integers(0, 255), min_size=4, max_size=4))
@settings(max_examples=15, deadline=None)
def test_any_non_zero_ground_truth_is_anomalous(values):
    with one_scan() as (files, _):
        gt = np.zeros((HEIGHT, WIDTH), np.uint8)
        gt[2, 3:8] = [*values, 1]
        Image.fromarray(gt).save(files.gt)
        mask = read_scan(files).mask
    assert mask[2, 3:8].tolist() == [*(value != 0 for value in values), True]
    assert mask.sum() == np.count_nonzero(values) + 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("first", ["black", "white"])
def test_ground_truth_of_a_palette_is_read_by_its_colours(bits, first):
    with one_scan() as (files, (_, _, mask)):
        codes = (mask > 0) == (first == "black")  # 0 stands for the palette's first colour
        image = Image.fromarray(codes.astype(np.uint8), "P")
        colours = [0, 0, 0, 1, 0, 0]  # a red so dark that as a grey it would be black
        image.putpalette(colours if first == "black" else colours[3:] + colours[:3])
        image.save(files.gt, bits=bits)
        sample = read_scan(files)
    assert np.array_equal(sample.mask, mask > 0)


def test_files_are_as_halcon_writes_them_and_what_follows_the_page_is_read_past():
    with one_scan() as (files, (_, xyz, _)):
        with tifffile.TiffFile(files.xyz) as tiff:
            assert [one.shape for one in tiff.series] == [(HEIGHT, WIDTH, 3), (HEIGHT, WIDTH)]
            assert tiff.pages[0].tags["Software"].value == "HALCON 21.11"
        assert np.array_equal(read_scan(files).xyz, xyz)
        with tifffile.TiffWriter(files.xyz) as tiff:  # a preview is no domain
            tiff.write(xyz, photometric="rgb", subifds=2)
            tiff.write(np.zeros((3, 4, 3), np.uint8), photometric="rgb")
            tiff.write(np.zeros((HEIGHT, WIDTH), np.uint8), photometric="minisblack")
        assert np.array_equal(read_scan(files).xyz, xyz)


@pytest.mark.parametrize(
    ("kind", "new"),
    [("rgb", "000.PNG"), ("xyz", "000.TIFF"), ("xyz", "000.tif"), ("gt", "000.Png")],
)
def test_another_spelling_of_the_suffix_is_the_same_file(tmp_path, kind, new):
    rgb, xyz, mask = write_scan(tmp_path)
    (path,) = (tmp_path / "part/test/dent" / kind).iterdir()
    path.rename(path.with_name(new))
    sample = read_scan(find_scans(tmp_path, "part", "test")[0][0])
    assert np.array_equal(sample.rgb, rgb) and np.array_equal(sample.xyz, xyz)
    assert np.array_equal(sample.mask, mask > 0)


def test_pitch_of_any_metric_scan_passes_and_of_other_units_does_not():
    with one_scan() as (files, (_, xyz, _)):
        for unit, is_metres in ((1, True), (0.1, True), (5, True), (1000, False), (1e-6, False)):
            tifffile.imwrite(files.xyz, xyz * np.float32(unit), photometric="rgb")
            if is_metres:
                assert np.array_equal(read_scan(files).xyz, xyz * np.float32(unit))
            else:
                assert "metres" in check_error(files, files.xyz)


def test_a_page_for_every_row_is_the_same_array():
    with one_scan(photometric="minisblack") as (files, (_, xyz, _)):
        with tifffile.TiffFile(files.xyz) as tiff:
            assert len(tiff.pages) == HEIGHT
        assert np.array_equal(read_scan(files).xyz, xyz)


def test_more_than_one_cloud_is_refused():
    with one_scan() as (files, (_, xyz, _)):
        tifffile.imwrite(files.xyz, np.stack([xyz, xyz]), photometric="rgb")
        assert "shape (2, 12, 17, 3)" in check_error(files, files.xyz)
        with tifffile.TiffWriter(files.xyz) as tiff:
            tiff.write(xyz, photometric="rgb")
            tiff.write(xyz[:5], photometric="rgb")
        assert "2 array(s)" in check_error(files, files.xyz)


@given(
    kind=st.sampled_from(["rgb", "xyz", "gt"]),
    kept=st.floats(0, 1, exclude_max=True),
    options=st.sampled_from([{}, {"compression": "lzw", "rowsperstrip": 4}]),
)
@settings(max_examples=60, deadline=None)
def test_truncated_file_is_refused_or_lost_nothing(kind, kept, options):
    with one_scan(**options) as (files, (rgb, xyz, mask)):
        path = getattr(files, kind)
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
        try:
            sample = read_scan(files)
        except ScanError as error:
            assert str(path) in str(error) and "expected" in str(error)
        else:  # only what follows the pixels was cut off
            assert kept > 0.55
            assert np.array_equal(sample.xyz, xyz)
            assert np.array_equal(sample.rgb, rgb)
            assert np.array_equal(sample.mask, mask > 0)
