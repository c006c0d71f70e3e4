import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from g2sf_lib.config import DataConfig
from g2sf_lib.datasets import ScanError, defects, procedural
from g2sf_lib.datasets.parts import grid_normals, grid_triangles, noise_tile, sample_tile
from g2sf_lib.datasets.procedural import (
    CATEGORIES,
    generate,
    render_scan,
    render_truth,
    scan_list,
    scan_seed,
)

SIZE = 96
ENV = os.environ | {"PYTHONPATH": str(Path(procedural.__file__).parents[2])}
TINY = DataConfig(
    num_train=2, num_validation=2, num_good=2, num_defective=7, scan_size=64, seed_set="report"
)


def files_below(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    generate(root, TINY, ("foam",), workers=1)
    return root


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_scan_has_the_size_and_place_of_the_real_data(category):
    truth = render_truth(category, 3, SIZE)
    part = truth.xyz[truth.is_part]
    extent = np.ptp(part, axis=0)
    assert 0.075 < max(extent[:2]) < 0.105
    assert 0.008 < 0.45 - part[:, 2].min() < 0.04
    assert not truth.mask.any()
    # The floor is a plane, 0.45 m away, and the image's border sees nothing else.
    floor = truth.xyz[~truth.is_part].astype(float)
    centred = floor - floor.mean(0)
    assert np.linalg.svd(centred, full_matrices=False)[1][-1] / np.sqrt(len(floor)) < 1e-6
    normal = np.linalg.svd(centred, full_matrices=False)[2][-1]
    assert abs(normal @ floor.mean(0)) == pytest.approx(0.45, abs=0.002)
    margin = round(10 / 256 * SIZE)
    assert not truth.is_part[:margin].any() and not truth.is_part[-margin:].any()
    assert not truth.is_part[:, :margin].any() and not truth.is_part[:, -margin:].any()


@pytest.mark.parametrize("defect", [None, "combined"])
def test_same_seed_gives_same_bytes_and_leaves_the_seed_as_it_was(defect):
    seed = np.random.SeedSequence((4, 2))
    first, second = (render_scan("rope", seed, SIZE, defect) for _ in range(2))
    for name in ("rgb", "xyz", "mask"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    other = render_scan("rope", np.random.SeedSequence((4, 3)), SIZE, defect)
    assert not np.array_equal(first.rgb, other.rgb)


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("defect", ["stain", "colour"])
def test_appearance_defects_leave_every_point_where_it_was(category, defect):
    good = render_scan(category, 7, SIZE)
    bad = render_scan(category, 7, SIZE, defect)
    assert np.array_equal(good.xyz, bad.xyz)  # with the sensor's noise, which is the same
    truth, sound = render_truth(category, 7, SIZE, defect), render_truth(category, 7, SIZE)
    change = np.abs(truth.albedo - sound.albedo).max(-1)
    assert np.array_equal(truth.mask, change > procedural.MASK_ALBEDO)
    assert truth.mask.any()
    assert np.array_equal(truth.rgb[change == 0], sound.rgb[change == 0])


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("defect", ["dent", "cut"])
def test_geometry_defects_change_depth_in_the_mask_and_paint_nothing(category, defect):
    truth, sound = render_truth(category, 8, SIZE, defect), render_truth(category, 8, SIZE)
    moved = np.abs(truth.depth - sound.depth)
    assert truth.mask.any()
    assert moved[truth.mask].min() > procedural.MASK_DISTANCE_M
    assert np.all(moved[~truth.mask & (sound.facing > 0.7)] < 0.0006)
    same = moved == 0
    assert same.mean() > 0.9
    np.testing.assert_allclose(truth.albedo[same], sound.albedo[same], atol=1e-3)
    # Where the surface moved it took its colour along: on average nothing changed.
    mean = [t.albedo[truth.mask].mean(0) for t in (truth, sound)]
    np.testing.assert_allclose(mean[0], mean[1], atol=0.04)


def test_dents_and_bulges_have_the_depth_of_the_table(monkeypatch):
    monkeypatch.setitem(defects.RANGES, "dent_depth_mm", (2.0, 2.0, *[1.0] * 5))
    signs = set()
    for seed in range(8):
        truth = render_truth("foam", seed, 128, "dent")
        change = truth.depth - render_truth("foam", seed, 128).depth
        peak = change.ravel()[np.abs(change).argmax()]
        assert abs(peak) == pytest.approx(0.002, rel=0.12)
        signs.add(np.sign(peak))
    assert signs == {-1, 1}


def test_sensor_noise_and_missing_points_are_as_stated():
    truth = render_truth("foam", 1, 128)
    scan = render_scan("foam", 1, 128)
    missing = ~scan.xyz.any(-1)
    assert 0.002 < missing.mean() < 0.06
    assert 0.001 < missing[truth.facing > 0.5].mean() < 0.01  # blobs and single ones
    assert missing[truth.facing < 0.12].all()
    error = (scan.xyz - truth.xyz)[~missing]
    assert error[:, 2].std() == pytest.approx(0.00015, rel=0.1)
    plain = render_scan("foam", 1, 128, sensor=False)
    assert np.array_equal(plain.xyz, truth.xyz)
    assert scan.xyz.dtype == np.float32 and scan.rgb.dtype == np.uint8


def test_two_workers_write_the_same_bytes_as_one_and_what_was_rendered(made, tmp_path):
    generate(tmp_path, TINY, ("foam",), workers=2)
    assert files_below(tmp_path) == files_below(made)
    scan = render_scan("foam", scan_seed("report", "foam", "test", "cut", 1), 64, "cut")
    folder = made / "foam/test/cut"
    assert np.array_equal(tifffile.imread(folder / "xyz/001.tiff"), scan.xyz)
    assert np.array_equal(np.asarray(Image.open(folder / "rgb/001.png")), scan.rgb)
    assert np.array_equal(np.asarray(Image.open(folder / "gt/001.png")) > 0, scan.mask)


def test_a_broken_off_run_is_completed_and_the_rest_left_alone(made, tmp_path, monkeypatch):
    real, calls = procedural.render_scan, []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(procedural, "render_scan", counted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, TINY, ("foam",), workers=1)
    assert len(list(tmp_path.rglob("*.tiff"))) == 4
    # As a kill between two files leaves it: a scan without points, and half a file.
    half = tmp_path / "foam/train/good/xyz/001.tiff"
    half.unlink()
    (half.parent / ".001.tiff.77.part").write_bytes(b"II*")
    kept = tmp_path / "foam/train/good/xyz/000.tiff"
    before = kept.stat().st_mtime_ns
    generate(tmp_path, TINY, ("foam",), workers=1)
    assert files_below(tmp_path) == files_below(made)
    assert kept.stat().st_mtime_ns == before
    done = len(calls)
    generate(tmp_path, TINY, ("foam",), workers=1)
    assert len(calls) == done


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from g2sf_lib.config import DataConfig\n"
        "from g2sf_lib.datasets.procedural import generate\n"
        "if __name__ == '__main__':\n"
        "    generate(Path(sys.argv[1]), DataConfig(num_train=999), ('foam',))\n"
    )
    script, root = tmp_path / "run.py", tmp_path / "scans"
    script.write_text(code)
    run = subprocess.Popen([sys.executable, str(script), str(root)], env=ENV)
    try:
        wait_until(lambda: any(root.rglob("*.tiff")), 60)
    finally:
        run.kill()
        run.wait()
    counts = []

    def still():
        counts.append(len(list(root.rglob("*.tiff"))))
        return len(counts) > 2 and counts[-1] == counts[-3]

    wait_until(still, 10, every=0.5)
    assert counts[-1] < 200


def wait_until(condition, seconds, every=0.1):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(every)


def test_a_folder_made_with_other_settings_is_refused(made, tmp_path):
    other = TINY.replace(seed_set="development")
    with pytest.raises(ScanError, match="manifest.json says .*report.*expected .*development"):
        generate(made, other, ("foam",))
    (tmp_path / "somebody's").write_text("file")
    with pytest.raises(ScanError, match="no manifest.json"):
        generate(tmp_path, TINY, ("foam",))


def test_no_two_scans_share_a_seed_and_counts_do_not_matter():
    states = {}
    for seed_set in ("report", "development"):
        for category in CATEGORIES:
            for scan in scan_list(DataConfig(), category):
                state = tuple(scan_seed(seed_set, *scan).generate_state(4))
                assert state not in states, (seed_set, scan, states.get(state))
                states[state] = (seed_set, scan)
    assert len(states) == 2 * 5 * 160
    few, many = scan_list(TINY, "rope"), scan_list(DataConfig(), "rope")
    assert set(few) < set(many)
    assert [s[2] for s in many].count("dent") == 10


@pytest.mark.parametrize("category", CATEGORIES)
def test_normals_point_outward_and_triangles_cover_the_grid(category):
    part = procedural.MAKERS[category](np.random.default_rng(0))
    normals = grid_normals(part.points)
    assert np.isfinite(part.points).all() and np.isfinite(normals).all()
    _, u, v = part.points.shape[:3]
    top = part.points[..., 2].reshape(part.points.shape[0], -1).argmax(1)
    assert (normals.reshape(len(top), -1, 3)[np.arange(len(top)), top, 2] > 0.3).all()
    triangles = grid_triangles(part.points.shape[:3])
    assert triangles.shape == (2 * len(top) * (u - 1) * (v - 1), 3)
    assert triangles.max() == part.points[..., 0].size - 1
    # The sheets' normals are those of their triangles: shading sees the side that rays hit.
    corner = part.points.reshape(-1, 3)[triangles.astype(np.int64)]
    flat = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    smooth = normals.reshape(-1, 3)[triangles.astype(np.int64)].sum(1)
    assert ((flat * smooth).sum(1) > -1e-12).mean() > 0.99


def test_noise_tile_is_standardised_periodic_and_as_smooth_as_asked():
    tile = noise_tile(np.random.default_rng(1), 0.004)
    assert tile.mean() == pytest.approx(0, abs=1e-5)
    assert tile.std() == pytest.approx(1, abs=1e-5)
    width = 256 * 0.0004
    where = np.random.default_rng(2).uniform(0, width, (50, 2))
    np.testing.assert_allclose(
        sample_tile(tile, where), sample_tile(tile, where + [width, -width]), atol=1e-4
    )
    np.testing.assert_allclose(sample_tile(tile, np.array([[0.0004 * 3, 0.0004 * 5]])), tile[3, 5])
    # Correlation of white noise blurred by sigma, at distance sigma: exp(-1/4).
    shift = np.roll(tile, 10, axis=0)
    assert (tile * shift).mean() == pytest.approx(np.exp(-0.25), abs=0.08)


def test_points_lie_on_the_pixels_rays():
    truth = render_truth("gland", 0, SIZE)
    across = (np.arange(SIZE) - (SIZE - 1) / 2) * (0.118 / 0.45 / SIZE)
    x, y = np.meshgrid(across, across)
    rays = np.stack([x, y, np.ones_like(x)], -1)
    np.testing.assert_allclose(truth.xyz, rays * truth.depth[..., None], rtol=1e-4, atol=1e-7)
