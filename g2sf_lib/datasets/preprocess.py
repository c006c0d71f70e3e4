"""From a recorded scan to the object alone, and the folder of scans prepared that way."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from tqdm.auto import tqdm

from g2sf_lib.config import PreprocessConfig
from g2sf_lib.datasets import (
    DATASETS,
    SPLITS,
    Sample,
    ScanError,
    ScanFiles,
    find_split,
    in_processes,
    order,
    reader,
)

_FORMAT_VERSION = 1
_RANSAC_SEED = 0
MIN_ONE_SIDE = 0.9  # of the points off the plane; all of them, on 60 real scans of cable_gland
_NO_FLOOR = "where nothing but the object was recorded, set background to none"
_TENSORS = ("rgb", "xyz", "foreground", "mask")


def dbscan(points: np.ndarray, eps: float, min_points: int) -> np.ndarray:
    """Return the DBSCAN cluster of (N, 3) points, exactly, in a fraction of the plain time.

    Space is cut into cells of side eps / sqrt(3), whose points are all neighbours: a cell of
    `min_points` (the point itself included) holds core points of one cluster. Cells are joined by
    their closest pair of core points; neighbours are counted in the few sparse cells alone. A
    border point goes to its nearest core point. Clusters are numbered in the order of their first
    core point; -1 is noise.

    Source: the cell idea is that of Gunawan (2013), "A faster algorithm for DBSCAN".
    """
    points, labels = np.asarray(points, dtype=np.float64), np.full(len(points), -1)
    if len(points) == 0:
        return labels
    # A hair below eps / sqrt(3), so that rounding never makes a diagonal longer than eps.
    cell_of = np.floor((points - points.min(axis=0)) / (eps / np.sqrt(3) * (1 - 1e-9)))
    cells, cell_of = np.unique(cell_of.astype(np.int64), axis=0, return_inverse=True)
    cell_of = cell_of.ravel()
    is_core = np.bincount(cell_of)[cell_of] >= min_points
    sparse = np.flatnonzero(~is_core)
    if len(sparse):
        near = cKDTree(points).query_ball_point(points[sparse], eps, return_length=True)
        is_core[sparse] = near >= min_points
    core, border = np.flatnonzero(is_core), np.flatnonzero(~is_core)
    if len(core) == 0:
        return labels
    core_cells, cell_of_core = np.unique(cell_of[core], return_inverse=True)
    by_cell, ends = np.argsort(cell_of_core, kind="stable"), np.cumsum(np.bincount(cell_of_core))
    by_cell = np.split(core[by_cell], ends[:-1])
    cluster_of_cell = _join_cells(points, cells[core_cells], by_cell, eps)
    labels[core] = pd.factorize(cluster_of_cell[cell_of_core])[0]
    if len(border):
        distance, nearest = cKDTree(points[core]).query(points[border])
        labels[border] = np.where(distance <= eps, labels[core[nearest]], -1)
    return labels


def _join_cells(
    points: np.ndarray, cells: np.ndarray, by_cell: list[np.ndarray], eps: float
) -> np.ndarray:
    """Return (C,) int, one number for cells that a chain of pairs nearer than eps connects."""
    pairs = cKDTree(cells).query_pairs(2, p=np.inf, output_type="ndarray")
    gap = ((cells[pairs[:, 0]] - cells[pairs[:, 1]]) ** 2).sum(axis=1)
    joined = DisjointSet(range(len(cells)))
    # Near cells first: most far pairs are then already joined and need no distances.
    for a, b in pairs[np.argsort(gap, kind="stable")].tolist():
        if joined.connected(a, b):
            continue
        here, there = points[by_cell[a]], points[by_cell[b]]
        # One pair facing each other usually settles it; else every pair has to be looked at.
        facing = here[((here - there.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        if ((there - facing) ** 2).sum(axis=1).min() <= eps**2 or cdist(here, there).min() <= eps:
            joined.merge(a, b)
    return np.array([joined[cell] for cell in range(len(cells))])


def _above_floor(sample: Sample, config: PreprocessConfig) -> np.ndarray:
    """Return (H, W) bool: pixels whose point lies off the background plane, before or behind."""
    import open3d  # slow to import, and only this function needs it

    border, least = config.border_px, config.ransac_points
    in_border = sample.foreground
    in_border[border:-border, border:-border] = False
    points = sample.xyz[in_border].astype(np.float64)
    if len(points) < least:
        found, expected = f"{len(points)} points in the {border} px border", f"at least {least}"
        raise ScanError(f"{sample.name}: {found}; expected {expected} to fit the background plane")
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    open3d.utility.random.seed(_RANSAC_SEED)
    settings = config.plane_distance_m, config.ransac_points, config.ransac_iterations
    plane, inliers = cloud.segment_plane(*settings, probability=1.0)  # 1: no early stop
    length = np.linalg.norm(plane[:3])
    least = max(least, config.min_plane_share * len(points))
    if not np.isfinite(plane).all() or length < 1e-9 or len(inliers) < least:
        found = f"no plane through the {len(points)} points of the border, {len(inliers)} on it"
        expected = f"a flat background with at least {least:.0f} ({_NO_FLOOR})"
        raise ScanError(f"{sample.name}: {found}; expected {expected}")
    normal, offset = np.split(plane / length, [3])
    height = sample.xyz @ normal + offset
    keep = sample.foreground & (np.abs(height) > config.plane_margin_m)
    before = np.count_nonzero(height[keep] > 0)
    one_side = max(before, keep.sum() - before)
    if one_side < MIN_ONE_SIDE * keep.sum():
        found = f"{one_side} of {keep.sum()} points off the background plane lie on one side of it"
        expected = f"{MIN_ONE_SIDE:.0%}, else it cuts the object ({_NO_FLOOR})"
        raise ScanError(f"{sample.name}: {found}; expected {expected}")
    return keep


def _off_the_conveyor(sample: Sample, config: PreprocessConfig) -> np.ndarray:
    """Return (H, W) bool: pixels above the conveyor of Eyecandies, and near its middle.

    As published: level is the line between the points in the middle of the first and last row.
    """
    height, width = sample.mask.shape
    # Back from the published order of axes: y points down, z away, as the rule has it.
    x, y, z = np.moveaxis(sample.xyz.astype(np.float64)[..., [0, 2, 1]] * (1, 1, -1), -1, 0)
    near, far = (height - 1, width // 2), (0, width // 2)
    rise, run = y[far] - y[near], z[far] - z[near]
    length = np.hypot(rise, run)
    if not (sample.foreground[near] and sample.foreground[far]) or length < 1e-6:
        expected = "the conveyor in the middle of the first and of the last row"
        raise ScanError(f"{sample.name}: no two points there; expected {expected}")
    down = ((y - y[near]) * run - (z - z[near]) * rise) / length
    away = ((y - y[near]) * rise + (z - z[near]) * run) / length
    inside = (away <= config.conveyor_depth_m) & (np.abs(x) <= config.conveyor_side_m)
    return sample.foreground & (down <= -config.conveyor_height_m) & inside


def preprocess(sample: Sample, config: PreprocessConfig) -> Sample:
    """Return the object of a scan alone, on a square.

    `background` says how the rest is known. "plane" ("auto" for a scan alone): points within
    `plane_margin_m` of a plane through the image's border go, and of what is left only the largest
    DBSCAN cluster stays. "none": the cluster alone. "conveyor": `_off_the_conveyor` alone.

    The colour of a pixel without a point stays where the nearest pixel that has one belongs to the
    object, so that small holes in the cloud do not become black dots in the image.

    The side is the next multiple of `pad_multiple_px` (the longer side for a conveyor); `raw_xyz`
    are the points before removal. Without a plane, or an object that is left, a ScanError.

    Source: published preprocessing of BTF, M3DM and CFM, which overwrites the data set and keeps
    the colour of every pixel without a point.
    """
    keep = has_point = sample.foreground
    if config.background == "conveyor":
        keep = _off_the_conveyor(sample, config)
    else:
        if config.background != "none":
            keep = _above_floor(sample, config)
        labels = dbscan(sample.xyz[keep], config.cluster_eps_m, config.cluster_points)
        if not np.any(labels >= 0):
            found = f"{keep.sum()} of {has_point.sum()} points lie off the background"
            told = f"{found} and none has {config.cluster_points} neighbours"
            raise ScanError(f"{sample.name}: {told}; expected an object")
        keep, off = np.zeros_like(has_point), keep
        keep[off] = labels == np.bincount(labels[labels >= 0]).argmax()
    if config.background != "none" and keep.sum() < config.min_object_share * has_point.sum():
        found = f"{keep.sum()} of {has_point.sum()} points are left as the object"
        expected = f"min_object_share, {config.min_object_share:g} ({_NO_FLOOR})"
        raise ScanError(f"{sample.name}: {found}; expected {expected}")
    nearest = distance_transform_edt(~has_point, return_distances=False, return_indices=True)
    silhouette = keep[tuple(nearest)]
    multiple = 1 if config.background == "conveyor" else config.pad_multiple_px
    extra = -(-max(keep.shape) // multiple) * multiple - np.array(keep.shape)

    def padded(array: np.ndarray) -> np.ndarray:
        """Return the array in the middle of a square of zeros."""
        widths = np.zeros((array.ndim, 2), int)
        widths[:2] = np.stack([extra // 2, extra - extra // 2], axis=1)
        return np.pad(array, widths)

    return dataclasses.replace(
        sample,
        rgb=padded(np.where(silhouette[..., None], sample.rgb, 0).astype(np.uint8)),
        xyz=padded(np.where(keep[..., None], sample.xyz, 0).astype(np.float32)),
        mask=padded(sample.mask),
        raw_xyz=padded(sample.xyz),
    )


def _fingerprint(paths: Sequence[Path], config: PreprocessConfig) -> str:
    """Return 16 hex digits that change when the settings or the source files do."""
    stats = {str(path.resolve()): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
    text = json.dumps([_FORMAT_VERSION, config.model_dump(), stats], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_prepared(sample: Sample, path: Path, fingerprint: str = "") -> None:
    """Write a preprocessed scan, with `raw_xyz`, for `load_prepared`; all of the file or none."""
    arrays = (sample.rgb, sample.raw_xyz, sample.foreground, sample.mask)
    tensors = dict(zip(_TENSORS, map(np.ascontiguousarray, arrays), strict=True))
    metadata = {"name": sample.name, "label": sample.label, "fingerprint": fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial")  # same name again: a kill leaves no litter
    # One entry: safetensors writes several in random order.
    save_file(tensors, partial, {"scan": json.dumps(metadata, sort_keys=True)})
    os.replace(partial, path)


def _prepare_scan(job: tuple[str, ScanFiles, Path, PreprocessConfig, str]) -> str | None:
    """Read, preprocess and write one scan; return what is wrong with it."""
    dataset, files, path, config, fingerprint = job
    where = ""
    try:
        scan = reader(dataset).read_scan(files)
        where = f"{files.xyz}: "  # what preprocessing says does not name the file
        save_prepared(preprocess(scan, config), path, fingerprint)
    except ScanError as error:
        return f"{where}{error}"
    return None


def prepare(
    root: Path,
    out: Path,
    categories: Sequence[str],
    config: PreprocessConfig,
    splits: Sequence[str] = SPLITS,
    workers: int = 1,
    dataset: str = "mvtec3d",
) -> None:
    """Write ``<out>/<category>/<split>/<label>/NNN.safetensors`` for every scan of a data set.

    A file that was made from the same source files with the same settings is left alone; those
    whose scan is gone are removed. A ScanError comes last, with one line for each bad file.
    """
    if config.background == "auto":
        config = config.replace(background=DATASETS[dataset].background)
    jobs, problems = [], []
    for category, split in itertools.product(categories, splits):
        try:
            scans, incomplete = find_split(dataset, root, category, split)
        except ScanError as error:
            problems.append(str(error))
            continue
        problems += incomplete
        folder = Path(out) / category / split
        paths = [folder / files.label / f"{files.index}.safetensors" for files in scans]
        for stale in set(folder.glob("*/*.safetensors")) - set(paths) if paths else ():
            stale.unlink()
        for files, path in zip(scans, paths, strict=True):
            fingerprint = _fingerprint(files.paths, config)
            try:
                with safe_open(path, framework="numpy") as file:
                    made_from = json.loads(file.metadata()["scan"])["fingerprint"]
            except Exception:  # missing or damaged: written anew
                made_from = None
            if made_from != fingerprint:
                jobs.append((dataset, files, path, config, fingerprint))
    done = in_processes(_prepare_scan, jobs, workers)
    bar = tqdm(done, "preprocess", len(jobs), unit="scan", disable=not jobs)
    problems += [message for message in bar if message]
    if problems:
        raise ScanError(f"{len(problems)} bad scan(s):\n" + "\n".join(sorted(problems)))


def load_prepared(path: Path) -> Sample:
    """Return a scan that `prepare` wrote; a ScanError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads(file.metadata()["scan"])
            rgb, xyz, foreground, mask = (file.get_tensor(key) for key in _TENSORS)
            alone = np.where(foreground[..., None], xyz, np.float32(0))
            return Sample(rgb, alone, mask, metadata["label"], metadata["name"], raw_xyz=xyz)
    except Exception as error:  # safetensors, OS and key errors alike
        found = f"not a whole prepared scan ({error!r})"
        wanted = f"safetensors with {', '.join(_TENSORS)}; delete it and prepare again"
        raise ScanError(f"{path}: {found}; expected {wanted}") from error


def list_prepared(out: Path, category: str, split: str) -> list[Path]:
    """Return the prepared scans of a split, of which there must be one, as `find_scans` orders."""
    folder = Path(out) / category / split
    paths = list(folder.glob("*/*.safetensors"))
    if not paths:
        raise ScanError(f"{folder}: no prepared scan found; expected some, written by prepare()")
    return sorted(paths, key=lambda path: order(path.parent.name, path.stem))
