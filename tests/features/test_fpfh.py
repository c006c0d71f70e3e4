import numpy as np
import pytest
import torch

from g2sf_lib.config import make_config
from g2sf_lib.datasets import ScanError
from g2sf_lib.features.fpfh import fpfh_patches

CONFIG = make_config().features


def test_a_plane_has_one_bin_in_each_histogram():
    # Between parallel normals on a plane all three angles are 0: the middle one of 11 bins.
    row, column = np.mgrid[:64, :64]
    plane = np.stack([(column - 30) * 1e-3, (row - 34) * 1e-3, np.full((64, 64), 0.5)], axis=-1)
    config = CONFIG.replace(fpfh_grid=64, grid_size=8)
    feat, foreground = fpfh_patches(plane.astype(np.float32), config)
    expected = torch.zeros(33)
    expected[[5, 16, 27]] = 1
    assert foreground.all()
    torch.testing.assert_close(feat, expected.expand(64, 33))


def test_a_cell_is_the_mean_over_its_points(scan_xyz):
    xyz = scan_xyz(size=64)
    fine, has_point = fpfh_patches(xyz, CONFIG.replace(fpfh_grid=32, grid_size=32))
    coarse, foreground = fpfh_patches(xyz, CONFIG.replace(fpfh_grid=32, grid_size=8))
    fine, has_point = fine.reshape(32, 32, 33), has_point.reshape(32, 32)
    for cell in range(64):
        row, column = (4 * part for part in divmod(cell, 8))
        inside = has_point[row : row + 4, column : column + 4]
        assert foreground[cell] == inside.any()
        if inside.any():
            expected = fine[row : row + 4, column : column + 4][inside].mean(0)
            torch.testing.assert_close(coarse[cell], expected)


def test_turning_the_scene_about_the_camera_changes_nothing(scan_xyz):
    xyz = scan_xyz()
    cos, sin = np.cos(0.3), np.sin(0.3)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    plain, _ = fpfh_patches(xyz, CONFIG)
    turned, _ = fpfh_patches((xyz.astype(float) @ turn.T), CONFIG)
    # A few points fall on the other side of a bin's edge by rounding; cells average them.
    difference = (plain - turned).norm(dim=1)
    assert difference.median() < 1e-3 and difference.max() < 0.05


def test_the_order_of_duplicates_and_their_number_do_not_matter(scan_xyz):
    xyz = scan_xyz(size=64)
    fourfold = xyz.repeat(2, axis=0).repeat(2, axis=1)
    once, _ = fpfh_patches(xyz, CONFIG.replace(fpfh_grid=64, grid_size=16))
    four, _ = fpfh_patches(fourfold, CONFIG.replace(fpfh_grid=128, grid_size=16))
    assert torch.isfinite(four).all()
    torch.testing.assert_close(four, once)


@pytest.mark.parametrize("num", [0, 39])
def test_too_few_or_broken_points_are_refused_by_name(scan_xyz, num):
    xyz = np.zeros((128, 128, 3), np.float32)
    xyz[64, :num] = np.arange(1, num + 1)[:, None] * 1e-4 + 0.4
    with pytest.raises(ScanError, match=rf"test/cut/007: {num} points .* at least .* = 40"):
        fpfh_patches(xyz, CONFIG, name="test/cut/007")
    xyz = scan_xyz()
    xyz[128, 128, 1] = (np.nan, np.inf)[num > 0]
    with pytest.raises(ScanError, match="train/good/000: points with NaN or infinite"):
        fpfh_patches(xyz, CONFIG, name="train/good/000")


def test_wanted_cells_get_what_they_get_among_all(scan_xyz):
    """Bit for bit but for the order of sums: what is left out is too far to be seen."""
    xyz = scan_xyz()
    xyz[4, 4] = (0.3, 0.3, 0.2)  # far from every other point, so background
    whole, foreground = fpfh_patches(xyz, CONFIG)
    assert not foreground[0] and not whole[~foreground].any() and whole.max() <= 1
    inside = torch.nonzero(foreground)[:, 0]
    wanted = torch.zeros(784, dtype=torch.bool)
    wanted[inside[[3, 40, 41, -5]]] = True
    feat, found = fpfh_patches(xyz, CONFIG, wanted=wanted)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(feat[wanted], whole[wanted], atol=1e-6, rtol=0)
