"""Fast point feature histograms (Rusu et al., 2009) on the common grid; needs no weights."""

from __future__ import annotations

import numpy as np
import open3d as o3d
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from g2sf_lib.config import FeatureConfig
from g2sf_lib.datasets import ScanError

NUM_HISTOGRAMS, NUM_BINS = 3, 11


def fpfh_patches(
    xyz: np.ndarray, config: FeatureConfig, name: str = "scan", wanted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (cells, 33) mean root histograms, zero on background, and (cells,) which have one.

    Points of `xyz` (H, W, 3), metres from the camera, are averaged over the blocks of a
    ``fpfh_grid`` x ``fpfh_grid`` grid (this divides the sensor noise by 2 at 2 x 2 px, and the cost
    by 4), described, and averaged again over the common grid. Of each histogram, scaled to sum 1,
    the square root is taken: Euclidean distances between roots (Hellinger) are not ruled by the
    one tall bin that every flat neighbourhood has. Only `wanted` (cells,) are described. A
    ScanError where a point is not finite, or there are too few.

    Source: BTF's choice of FPFH for scans (facts.md, section 7); the paper has Point-MAE.
    """
    points, block = _block_means(xyz, config.fpfh_grid, name)
    if len(points) < config.fpfh_normal_neighbours:
        raise ScanError(
            f"{name}: {len(points)} points on the {config.fpfh_grid} x {config.fpfh_grid} grid; "
            f"FPFH needs at least fpfh_normal_neighbours = {config.fpfh_normal_neighbours}"
        )
    # The cell in which the centre of each block lies.
    row, column = (
        (2 * part + 1) * config.grid_size // (2 * config.fpfh_grid)
        for part in divmod(block, config.fpfh_grid)
    )
    cell = row * config.grid_size + column
    if wanted is not None:
        # A histogram sees those of its neighbours, they their neighbours, and each a normal.
        reach = 2 * config.fpfh_radius_m + config.fpfh_normal_radius_m
        inside = points[wanted.numpy()[cell]]
        if not len(inside):
            return torch.zeros(len(wanted), NUM_HISTOGRAMS * NUM_BINS), torch.zeros_like(wanted)
        near = cKDTree(inside).query(points, distance_upper_bound=1.001 * reach)[0] < np.inf
        points, cell = points[near], cell[near]
    # A point that coincides with another adds nothing to the shape but a zero distance,
    # for which no angle is defined: describe each place once.
    places, place = np.unique(points, axis=0, return_inverse=True)
    root = _root_histograms(places, config)[place.reshape(-1)]  # (P, 33)

    described = root.any(axis=1)
    cell, root = torch.from_numpy(cell[described]), torch.from_numpy(root[described])
    num_cells = config.grid_size**2
    count = torch.bincount(cell, minlength=num_cells)
    total = torch.zeros(num_cells, root.shape[1], dtype=root.dtype).index_add_(0, cell, root)
    feat = total / count.clamp(min=1)[:, None]
    foreground = count > 0 if wanted is None else (count > 0) & wanted
    return feat.float(), foreground


def _block_means(xyz: np.ndarray, num_blocks: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean point of every block that holds one: (P, 3) float64, block index (P,)."""
    height, width = xyz.shape[:2]
    row, column = np.nonzero(np.any(xyz != 0, axis=-1))
    points = xyz[row, column].astype(np.float64)
    if not np.isfinite(points).all():
        raise ScanError(f"{name}: points with NaN or infinite coordinates; expected finite metres")
    block = (row * num_blocks // height) * num_blocks + column * num_blocks // width
    occupied, slot, count = np.unique(block, return_inverse=True, return_counts=True)
    total = np.stack([np.bincount(slot, weights=values) for values in points.T], axis=1)
    return total / count[:, None], occupied


def _root_histograms(places: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Return (P, 33) float64 roots of FPFH; all zero for a point without neighbours."""
    within = o3d.geometry.KDTreeSearchParamHybrid
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(places))
    cloud.estimate_normals(within(config.fpfh_normal_radius_m, config.fpfh_normal_neighbours))
    # Angles between normals mean something only where all normals leave the same side.
    cloud.orient_normals_towards_camera_location(np.zeros(3))
    fpfh = o3d.pipelines.registration.compute_fpfh_feature(
        cloud, within(config.fpfh_radius_m, config.fpfh_neighbours)
    )
    histograms = np.asarray(fpfh.data).T.reshape(-1, NUM_HISTOGRAMS, NUM_BINS)
    mass = histograms.sum(axis=2, keepdims=True)
    share = np.divide(histograms, mass, out=np.zeros_like(histograms), where=mass > 0)
    return np.sqrt(share).reshape(-1, NUM_HISTOGRAMS * NUM_BINS)
