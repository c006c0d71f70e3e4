"""Scans of your own, in a layout like that of MVTec 3D-AD; category names are free.

``<root>/<category>/<split>/<label>/rgb/NAME.png`` beside either ``xyz/NAME.tiff`` (organised
float32 points in metres) or ``depth/NAME.png`` (16 bit, 0 where there is no point), and
``gt/NAME.png`` for defective scans. Depth images need ``camera.yaml``, in the category's folder
or in the root::

    fx: 1200.0            # focal lengths and principal point in px; u counts columns, v rows
    fy: 1200.0
    cx: 320.0
    cy: 240.0
    depth_scale: 0.0001   # metres a unit of the depth image
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from g2sf_lib.datasets import Sample, ScanError, complete, mvtec3d
from g2sf_lib.datasets.mvtec3d import ScanFiles

CAMERA_FILE = "camera.yaml"


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along z; x points right, y down.

    Attributes:
        fx, fy: focal lengths, px.
        cx, cy: principal point, px; pixel centres have whole numbers.
        depth_scale: metres a unit of the depth image.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    depth_scale: float

    def unproject(self, depth: np.ndarray) -> np.ndarray:
        """Return (H, W, 3) float32 points, metres; (0, 0, 0) where the depth is 0.

        Args:
            depth: (H, W) in units of the depth image.
        """
        v, u = np.indices(depth.shape)
        z = depth * self.depth_scale
        xyz = np.stack([(u - self.cx) / self.fx * z, (v - self.cy) / self.fy * z, z], axis=-1)
        return xyz.astype(np.float32)


def list_categories(root: Path) -> list[str]:
    """Return the names of the folders below the root that hold a split, sorted.

    Raises:
        ScanError: where there is none.
    """
    root = Path(root)
    found = [
        path.name
        for path in (root.iterdir() if root.is_dir() else ())
        if any((path / split).is_dir() for split in ("train", "test"))
    ]
    if not found:
        raise ScanError(f"{root}: no category found; expected <category>/train/good/rgb/NAME.png")
    return sorted(found)


def find_scans(root: Path, category: str, split: str) -> tuple[list[ScanFiles], list[str]]:
    """Return the complete scans of a split, and one message for each that is not complete.

    Args:
        root: the folder that holds the categories.
        category: the folder below `root`.
        split: "train", "validation" or "test".

    Raises:
        ScanError: where the folder of the split is missing or holds no label, or depth images
            have no camera.
    """
    folder = Path(root) / category / split
    if split == "validation" and folder.parent.is_dir() and not folder.is_dir():
        raise ScanError(
            f"{folder}: no such folder; expected good/ with normal scans that are not trained on:"
            " they calibrate the scores"
        )
    if any(folder.glob("*/xyz")) or not any(folder.glob("*/depth")):
        return mvtec3d.find_scans(root, category, split)
    scans, problems = mvtec3d.find_scans(root, category, split, "depth")
    places = [Path(root) / category / CAMERA_FILE, Path(root) / CAMERA_FILE]
    camera = next((place for place in places if place.is_file()), None)
    if camera is None:
        raise ScanError(
            f"{places[0]}: not there, nor {places[1]}; expected the camera of the depth images:"
            " fx, fy, cx, cy, depth_scale"
        )
    return [dataclasses.replace(files, camera=camera) for files in scans], problems


def list_scans(root: Path, category: str, split: str) -> list[ScanFiles]:
    """Return the scans of a split: good ones first, then defects by name, then by index.

    Raises:
        ScanError: as `find_scans`, and for scans that are not complete; every file is named.
    """
    return complete(find_scans(root, category, split))


def read_camera(path: Path) -> Camera:
    """Return the camera of a YAML file.

    Raises:
        ScanError: naming the key that is missing, unknown, or not a number above zero.
    """
    names = [field.name for field in dataclasses.fields(Camera)]
    expected = f"{', '.join(names)}, each a number above 0"
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML errors have several lines
        raise ScanError(f"{path}: cannot be read ({reason}); expected {expected}") from error
    if not isinstance(found, dict) or set(found) != set(names):
        keys = ", ".join(map(str, found)) if isinstance(found, dict) else repr(found)
        raise ScanError(f"{path}: found {keys}; expected {expected}")
    for name, value in found.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not np.isfinite(value) or value <= 0:
            raise ScanError(f"{path}: {name} is {value!r}; expected a number above 0")
    return Camera(**found)


def read_scan(files: ScanFiles) -> Sample:
    """Return the scan as it was recorded.

    Args:
        files: an entry of `list_scans`.

    Raises:
        ScanError: as `mvtec3d.read_scan`, and for a bad camera or depth image.
    """
    if files.camera is None:
        return mvtec3d.read_scan(files)
    depth = mvtec3d.read_depth(files.xyz)
    if not depth.any():
        raise ScanError(f"{files.xyz}: empty cloud, every depth is 0; expected at least one point")
    return mvtec3d.assemble(files, read_camera(files.camera).unproject(depth))
