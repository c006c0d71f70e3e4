"""Scans of the Eyecandies data set: rendered sweets on a conveyor, as depth images.

``<root>/<category>/{train,val,test_public}/data/NNN_image_4.png`` and, for the same number,
``NNN_depth.png``, ``NNN_info_depth.yaml``, ``NNN_pose.txt``, ``NNN_mask.png``. Of the six images,
one a light, number 4 is the one that everyone uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from g2sf_lib.datasets import Sample, ScanError, complete
from g2sf_lib.datasets.mvtec3d import read_depth, read_mask, read_rgb

FOCAL_LENGTH_PX = 711.11  # of every image
SCALE = np.array([0.1, -0.1, 0.1])  # published: sizes come near the metres of MVTec 3D-AD
FOLDERS = {"train": "train", "validation": "val", "test": "test_public"}
KINDS = ("bumps", "dents", "colors", "normals")
_ENDINGS = {
    "rgb": "_image_4.png",
    "depth": "_depth.png",
    "info": "_info_depth.yaml",
    "pose": "_pose.txt",
}


@dataclass(frozen=True)
class ScanFiles:
    """Where one scan lies on disk.

    Attributes:
        rgb: the image of light 4, ``NNN_image_4.png``.
        depth: ``NNN_depth.png``, 16 bit.
        info: ``NNN_info_depth.yaml``, the range of the depth.
        pose: ``NNN_pose.txt``, from world to camera.
        mask: ``NNN_mask.png``; None where a good scan has none.
        split: "train", "validation" or "test".
        label: "good", one of `KINDS`, "combined", or "defective" where nobody says of what kind.
        index: the number as it is written, e.g. "003".
    """

    rgb: Path
    depth: Path
    info: Path
    pose: Path
    mask: Path | None
    split: str
    label: str
    index: str

    @property
    def name(self) -> str:
        """What the scan is called in messages and tables, e.g. "test/bumps/03"."""
        return f"{self.split}/{self.label}/{self.index}"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that the scan is made of."""
        return tuple(p for p in (self.rgb, self.depth, self.info, self.pose, self.mask) if p)


def _label(folder: Path, index: str, mask: Path | None) -> str:
    """Return what a scan is, from its mask, and its kinds of defect from its metadata."""
    if mask is None or not read_mask(mask).any():
        return "good"
    metadata = folder / f"{index}_metadata.yaml"
    if not metadata.is_file():
        return "defective"
    told = _read_yaml(metadata, "kinds of defect, 0 or 1 each")
    kinds = [kind for kind in KINDS if told.get(kind)]
    return "defective" if not kinds else kinds[0] if len(kinds) == 1 else "combined"


def find_scans(root: Path, category: str, split: str) -> tuple[list[ScanFiles], list[str]]:
    """Return the complete scans of a split, and one message for each that is not complete.

    Args:
        root: the folder that holds the categories.
        category: the folder below `root`.
        split: "train", "validation" or "test" (the public one).

    Returns:
        Scans in the order of `list_scans`, and messages, each naming the file that is missing
        or cannot be read.

    Raises:
        ScanError: where the folder of the split is missing or holds no scan.
    """
    folder = Path(root) / category / FOLDERS[split] / "data"
    if not folder.is_dir():
        parent = next(p for p in folder.parents if p.is_dir())
        held = ", ".join(sorted(p.name for p in parent.iterdir())[:12]) or "nothing"
        raise ScanError(f"{folder}: no such folder ({parent} holds {held}); expected scans there")
    found: dict[str, dict[str, Path]] = {}
    for kind, ending in _ENDINGS.items():
        for path in folder.glob(f"*{ending}"):
            if not path.name.startswith("."):
                found.setdefault(path.name.removesuffix(ending), {})[kind] = path
    if not found:
        raise ScanError(f"{folder}: no scan found; expected NNN{_ENDINGS['rgb']} and others")
    scans, problems = [], []
    for index in sorted(found, key=lambda text: (len(text), text)):
        files = found[index]
        lost = [str(folder / f"{index}{_ENDINGS[k]}") for k in _ENDINGS if k not in files]
        mask = folder / f"{index}_mask.png"
        if split == "test" and not mask.is_file():
            lost.append(str(mask))
        if lost:
            present = " and ".join(str(path) for path in files.values())
            problems.append(f"{' and '.join(lost)}: missing, but {present} found; expected both")
            continue
        mask = mask if mask.is_file() else None
        try:
            label = _label(folder, index, mask)
        except ScanError as error:
            problems.append(str(error))
            continue
        if split != "test" and label != "good":
            problems.append(f"{mask}: anomalous pixels; expected none in a scan of {split}")
            continue
        scans.append(ScanFiles(**files, mask=mask, split=split, label=label, index=index))
    scans.sort(key=lambda one: (one.label != "good", one.label, len(one.index), one.index))
    return scans, problems


def list_scans(root: Path, category: str, split: str) -> list[ScanFiles]:
    """Return the scans of a split: good ones first, then defects by name, then by number.

    Raises:
        ScanError: as `find_scans`, and for scans that are not complete; every file is named.
    """
    return complete(find_scans(root, category, split))


def _read_yaml(path: Path, expected: str) -> dict:
    """Return the mapping of a YAML file."""
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML errors have several lines
        raise ScanError(f"{path}: cannot be read ({reason}); expected {expected}") from error
    if not isinstance(found, dict):
        raise ScanError(f"{path}: found {found!r}; expected {expected}")
    return found


def _read_range(path: Path) -> tuple[float, float]:
    """Return the depths that 0 and 65535 stand for."""
    expected = "normalization: {min, max}, two numbers with 0 <= min < max"
    found = _read_yaml(path, expected).get("normalization")
    values = [found.get(name) for name in ("min", "max")] if isinstance(found, dict) else []
    is_number = [isinstance(v, (int, float)) and not isinstance(v, bool) for v in values]
    if len(values) != 2 or not all(is_number) or not 0 <= values[0] < values[1] < np.inf:
        raise ScanError(f"{path}: normalization is {found!r}; expected {expected}")
    return float(values[0]), float(values[1])


def _read_pose(path: Path) -> np.ndarray:
    """Return (4, 4) float64, a rigid motion from world to camera."""
    expected = "4 x 4 numbers: a rotation, a translation, and 0 0 0 1"
    try:
        pose = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise ScanError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ScanError(f"{path}: {pose.shape[0]} x {pose.shape[1]} values; expected {expected}")
    turn = pose[:3, :3]
    is_rigid = np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) and np.linalg.det(turn) > 0
    if not is_rigid or not np.allclose(pose[3], (0, 0, 0, 1)):
        raise ScanError(f"{path}: not a rigid motion; expected {expected}")
    return pose


def unproject(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) float32 points in the published axes and scale.

    A pixel (u, v), column and row, at depth z is the point pose^-1 (K^-1 (u, v, 1) z, 1), with
    the focal length of every image and the principal point at (W / 2, H / 2). Axes are then
    reordered from (x, y, z) to (x, z, y) and multiplied by (0.1, -0.1, 0.1), so that sizes come
    near the metres of MVTec 3D-AD.

    Args:
        depth: (H, W), not scaled; a pixel of depth 0 has no point.
        pose: (4, 4) from world to camera.

    Source:
        facts.md, section 1.
    """
    height, width = depth.shape
    v, u = np.indices(depth.shape)
    camera = np.stack([(u - width / 2), (v - height / 2), np.full_like(depth, FOCAL_LENGTH_PX)], -1)
    camera *= depth[..., None] / FOCAL_LENGTH_PX
    world = (camera - pose[:3, 3]) @ pose[:3, :3]  # the inverse of a rotation is its transpose
    points = world[..., [0, 2, 1]] * SCALE
    return np.where(depth[..., None] > 0, points, 0.0).astype(np.float32)


def read_scan(files: ScanFiles) -> Sample:
    """Return the scan as it was rendered, conveyor included.

    Args:
        files: an entry of `list_scans`.

    Returns:
        A `Sample` in the axes and scale of `unproject`; `raw_xyz` is None.

    Raises:
        ScanError: naming the file, for one that is damaged or of another kind, and for sizes
            that differ.
    """
    rgb, value = read_rgb(files.rgb), read_depth(files.depth)
    low, high = _read_range(files.info)
    mask = np.zeros(value.shape, bool) if files.mask is None else read_mask(files.mask)
    for path, array in ((files.depth, value), (files.mask, mask)):
        if array.shape != rgb.shape[:2]:
            raise ScanError(
                f"{path}: {array.shape[0]} x {array.shape[1]} pixels;"
                f" expected {rgb.shape[0]} x {rgb.shape[1]} as in {files.rgb}"
            )
    if value.min() == value.max():
        raise ScanError(f"{files.depth}: every depth is {value.min()}; expected a scene")
    xyz = unproject(value / 65535 * (high - low) + low, _read_pose(files.pose))
    return Sample(rgb=rgb, xyz=xyz, mask=mask, label=files.label, name=files.name)
