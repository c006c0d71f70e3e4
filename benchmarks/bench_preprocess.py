"""DBSCAN of a scanned surface: ours beside Open3D's, in one run on the same points.

``pytest benchmarks/bench_preprocess.py --benchmark-only``. Both must find the same clusters; no
time is asserted.
"""

import numpy as np
import open3d
import pytest

from g2sf_lib.config import PreprocessConfig
from g2sf_lib.datasets.preprocess import dbscan

SIDE, PITCH_M = 280, 0.00046  # about the object on a scan of 800 x 800 px


def surface():
    """Return the points of a wavy surface and of a small piece apart from it."""
    row, column = np.mgrid[:SIDE, :SIDE] * PITCH_M
    depth = 0.45 + 0.004 * np.sin(row * 90) * np.cos(column * 70)
    points = np.stack([column, row, depth], -1).reshape(-1, 3)
    points += np.random.default_rng(0).normal(0, 1e-4, points.shape)
    piece = points.reshape(SIDE, SIDE, 3)[:30, :30].reshape(-1, 3)
    return np.concatenate([points, piece + (0, 0, 0.05)])


def by_open3d(points, eps, min_points):
    """Return Open3D's clusters."""
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    return np.asarray(cloud.cluster_dbscan(eps, min_points))


@pytest.mark.benchmark(group=f"DBSCAN of {SIDE} x {SIDE} points")
@pytest.mark.parametrize("how", ["ours", "Open3D"])
def test_dbscan(benchmark, how):
    config, points = PreprocessConfig(), surface()
    cluster = dbscan if how == "ours" else by_open3d
    found = benchmark.pedantic(
        cluster, args=(points, config.cluster_eps_m, config.cluster_points), rounds=2
    )
    assert np.bincount(found + 1).tolist() == [0, SIDE * SIDE, 900]
