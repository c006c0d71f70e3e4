"""Scans of the Eyecandies data set: rendered sweets on a conveyor, as depth images.

``<root>/<category>/{train,val,test_public}/data/NNN`` with `_ENDINGS`. Of the six images, one a
light, number 4 is the one that everyone uses. The metadata say what is wrong with a scan; masks of
single kinds of defect (``NNN_bumps_mask.png``) are not read.
"""

from pathlib import Path

import numpy as np

from g2sf_lib.datasets import (
    Sample,
    ScanError,
    ScanFiles,
    as_number,
    check_points,
    entries,
    order,
    read_yaml,
)
from g2sf_lib.datasets.mvtec3d import assemble, missing, read_depth, read_mask

FOCAL_LENGTH_PX = 711.11  # of every image
SCALE = np.array([0.1, -0.1, 0.1])  # published: sizes come near the metres of MVTec 3D-AD
FOLDERS = {"train": "train", "validation": "val", "test": "test_public"}
KINDS = ("bumps", "dents", "colors", "normals")
_ENDINGS = {
    "rgb": "_image_4.png",
    "depth": "_depth.png",
    "info": "_info_depth.yaml",
    "pose": "_pose.txt",
    "mask": "_mask.png",
    "metadata": "_metadata.yaml",
}


def _label(mask: Path | None, metadata: Path | None) -> str:
    """Return "good", one of `KINDS`, "combined", or "defective" where nobody says of what kind."""
    is_marked = mask is not None and bool(read_mask(mask).any())
    if metadata is None:
        return "defective" if is_marked else "good"
    told, values = read_yaml(metadata, "kinds of defect, 0 or 1 each"), {}
    for key in ("anomalous", *(f"anomalous_{kind}" for kind in KINDS)):
        value = told.get(key, 0)
        values[key] = float(value) if isinstance(value, bool) else as_number(value)
        if values[key] not in (0, 1):
            raise ScanError(f"{metadata}: {key} is {value!r}; expected 0 or 1")
    kinds = [kind for kind in KINDS if values[f"anomalous_{kind}"]]
    if is_marked != bool(kinds or values["anomalous"]):
        told = f"anomalous is {values['anomalous']:g}, kinds {', '.join(kinds) or 'none'}"
        marked = f"{mask or 'no mask'} has {'' if is_marked else 'no '}anomalous pixels"
        raise ScanError(f"{metadata}: {told}, but {marked}; expected them to agree")
    if kinds:
        return kinds[0] if len(kinds) == 1 else "combined"
    return "defective" if is_marked else "good"


def _files_by_index(folder: Path) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Return index -> kind -> file, and a message for every one that is nearly one of these."""
    found, problems = {}, []
    known = {Path(ending).stem: (kind, ending) for kind, ending in _ENDINGS.items()}
    for path in entries(folder):
        index, _, rest = path.name.partition("_")
        kind, ending = known.get(f"_{rest}".lower().rpartition(".")[0], (None, ""))
        if kind and (not path.is_file() or f"_{rest}".lower() != ending):
            problems.append(f"{path}: not read; expected {folder / index}{ending}")
        elif kind and (other := found.setdefault(index, {}).setdefault(kind, path)) != path:
            problems.append(f"{path}: {other} found too; expected one file of that name")
    return found, problems


def find_scans(root: Path, category: str, split: str) -> tuple[list[ScanFiles], list[str]]:
    """Return the complete scans of a split, in `order`, and a message for each unusable file."""
    folder = Path(root) / category / FOLDERS[split] / "data"
    found, problems = _files_by_index(folder)
    needed = ["rgb", "depth", "info", "pose"]
    if not any(kind in files for files in found.values() for kind in needed):
        expected = f"NNN{_ENDINGS['rgb']} and others"
        raise ScanError("\n".join([f"{folder}: no scan found; expected {expected}", *problems]))
    needed += ["mask"] * (split == "test")
    scans = []
    for index, files in found.items():
        place = {kind: folder / f"{index}{_ENDINGS[kind]}" for kind in needed}
        mask, beside = files.get("mask"), (files.get("info"), files.get("pose"))
        try:
            if lost := missing(files, place):
                raise ScanError(f"{lost} both")
            label = _label(mask, files.get("metadata"))
            if split != "test" and label != "good":
                raise ScanError(
                    f"{mask}: {label}; expected no anomalous pixel in a scan of {split}"
                )
        except ScanError as error:
            problems.append(str(error))
        else:
            scans.append(ScanFiles(files["rgb"], files["depth"], mask, split, label, index, beside))
    return sorted(scans, key=lambda scan: order(scan.label, scan.index)), problems


def _read_range(path: Path) -> tuple[float, float]:
    """Return the depths that 0 and 65535 stand for."""
    expected = "normalization: {min, max}, two numbers with 0 <= min < max"
    found = read_yaml(path, expected).get("normalization")
    ends = found if isinstance(found, dict) else {}
    low, high = (as_number(ends.get(name)) for name in ("min", "max"))
    if low is None or high is None or not 0 <= low < high:
        raise ScanError(f"{path}: normalization is {found!r}; expected {expected}")
    return low, high


def _read_pose(path: Path) -> np.ndarray:
    """Return (4, 4) float64, a rigid motion from world to camera."""
    expected = "4 x 4 numbers: a rotation, a translation, and 0 0 0 1"
    try:
        pose = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise ScanError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ScanError(f"{path}: {pose.shape[0]} x {pose.shape[1]} values; expected {expected}")
    turn, end = pose[:3, :3], np.allclose(pose[3], (0, 0, 0, 1))
    if not (end and np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) and np.linalg.det(turn) > 0):
        raise ScanError(f"{path}: not a rigid motion; expected {expected}")
    return pose


def unproject(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) float32 points in the published axes and scale.

    A pixel (u, v) at depth z (0: no point) is the point pose^-1 (K^-1 (u, v, 1) z, 1), with the
    principal point at (W / 2, H / 2); then axes become (x, z, y), multiplied by `SCALE`. `pose`
    (4, 4) leads from world to camera.

    Source: facts.md, section 1.
    """
    height, width = depth.shape
    v, u = np.indices(depth.shape)
    camera = np.stack([(u - width / 2), (v - height / 2), np.full_like(depth, FOCAL_LENGTH_PX)], -1)
    camera *= depth[..., None] / FOCAL_LENGTH_PX
    world = (camera - pose[:3, 3]) @ pose[:3, :3]  # the inverse of a rotation is its transpose
    points = world[..., [0, 2, 1]] * SCALE
    return np.where(depth[..., None] > 0, points, 0.0).astype(np.float32)


def read_scan(files: ScanFiles) -> Sample:
    """Return the scan as it was rendered, conveyor included; a ScanError as `mvtec3d.read_scan`."""
    value, (info, pose) = read_depth(files.xyz), files.beside
    low, high = _read_range(info)
    if value.min() == value.max():
        raise ScanError(f"{files.xyz}: every depth is {value.min()}; expected a scene")
    xyz = unproject(value / 65535 * (high - low) + low, _read_pose(pose))
    check_points(xyz, f"{files.xyz} with {info}")
    return assemble(files, xyz)
