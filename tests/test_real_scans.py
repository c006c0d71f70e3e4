"""The one real category that could be had where this was made; see data/README.md."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from halcon import write_points

from g2sf_lib.config import make_config
from g2sf_lib.datasets import mvtec3d
from g2sf_lib.datasets.check import check
from g2sf_lib.datasets.preprocess import preprocess

HERE = Path(__file__).resolve().parent.parent
ROOT = Path(os.environ.get("G2SF_MVTEC3D", HERE / "data/raw/mvtec3d"))
CATEGORY = "cable_gland"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (ROOT / CATEGORY).is_dir(),
        reason=f"{ROOT / CATEGORY}: not there; a real category is fetched by hand (data/README.md)",
    ),
]


def some(split, label, num):
    """Return files of scans spread over one label of a split."""
    found = [f for f in mvtec3d.find_scans(ROOT, CATEGORY, split)[0] if f.label == label]
    return found[:: -(-len(found) // num)]


SOME = [("train", "good", 3), ("validation", "good", 1), ("test", "good", 2)]
SOME += [("test", kind, 2) for kind in ("bent", "cut", "hole", "thread")]


@pytest.mark.slow
def test_every_file_is_read_and_counted():
    report = check("mvtec3d", ROOT, workers=2)
    assert report.problems == []
    counts = report.counts[report.counts["category"] == CATEGORY]
    assert counts["all"].tolist() == [223, 23, 108]  # as published


def test_files_of_the_tests_are_like_the_real_ones(tmp_path):
    """What the made-up trees are written with holds the same tags, and as many bytes."""
    (files,) = some("train", "good", 1)
    ours = tmp_path / "points.tiff"
    write_points(ours, mvtec3d.read_tiff(files.xyz))
    assert ours.stat().st_size == files.xyz.stat().st_size
    tags = []
    for path in (files.xyz, ours):
        with tifffile.TiffFile(path) as tiff:
            pages = [tiff.pages[0], tiff.pages[0].pages[0]]
            tags.append([[(t.code, int(t.dtype), t.count) for t in p.tags] for p in pages])
    assert tags[0] == tags[1]


@pytest.mark.parametrize(("split", "label", "num"), SOME)
def test_the_object_is_what_is_left(split, label, num):
    """The floor goes, the part stays in one piece, and a defect lies on it."""
    config = make_config("demo", dataset="mvtec3d", data_root=str(ROOT), category=CATEGORY)
    for files in some(split, label, num):
        scan = mvtec3d.read_scan(files)
        alone = preprocess(scan, config.preprocess)
        share = alone.foreground.sum() / scan.foreground.sum()
        assert 0.15 < share < 0.4
        rows, columns = np.nonzero(alone.foreground)
        side = len(alone.mask)
        assert min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < side - 1
        assert alone.mask.sum() == scan.mask.sum() and scan.mask.any() == (label != "good")
        if label != "good":
            assert (alone.rgb.any(-1) & alone.mask).sum() > 0.4 * alone.mask.sum()
