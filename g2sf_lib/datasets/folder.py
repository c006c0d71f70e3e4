"""Scans of your own, in a layout like that of MVTec 3D-AD; category names are free.

``<root>/<category>/<split>/<label>/rgb/NAME.png`` beside either ``xyz/NAME.tiff`` (organised
float32 points in metres) or ``depth/NAME.png`` (16 bit, 0 where there is no point), and
``gt/NAME.png`` for defective scans. Depth images need ``camera.yaml``, in the category's folder
or in the root::

    fx: 1200.0            # focal lengths and principal point in px; u counts columns, v rows
    fy: 1200.0
    cx: 320.0             # may lie outside the image, where that was cut from a larger one
    cy: 240.0
    depth_scale: 0.0001   # metres a unit of the depth image
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from g2sf_lib.datasets import (
    Sample,
    ScanError,
    ScanFiles,
    as_number,
    check_points,
    mvtec3d,
    read_yaml,
)

CAMERA_FILE = "camera.yaml"
CAMERA_KEYS = ("fx", "fy", "cx", "cy", "depth_scale")


def list_categories(root: Path) -> tuple[str, ...]:
    """Return the names of the folders below the root that hold a split, sorted."""
    splits = [*root.glob("*/train/"), *root.glob("*/test/")]
    if not splits:
        raise ScanError(f"{root}: no category found; expected <category>/train/good/rgb/NAME.png")
    return tuple(sorted({split.parent.name for split in splits}))


def find_scans(root: Path, category: str, split: str) -> tuple[list[ScanFiles], list[str]]:
    """Return what `mvtec3d.find_scans` does; a ScanError also where depth images lack a camera."""
    folder = Path(root) / category / split
    if split == "validation" and folder.parent.is_dir() and not folder.is_dir():
        expected = "good/ with normal scans that are not trained on: they calibrate the scores"
        raise ScanError(f"{folder}: no such folder; expected {expected}")
    if any(folder.glob("*/xyz")) or not any(folder.glob("*/depth")):
        return mvtec3d.find_scans(root, category, split)
    scans, problems = mvtec3d.find_scans(root, category, split, "depth")
    places = [Path(root) / category / CAMERA_FILE, Path(root) / CAMERA_FILE]
    camera = next((place for place in places if place.is_file()), None)
    if camera is None:
        expected = f"the camera of the depth images: {', '.join(CAMERA_KEYS)}"
        raise ScanError(f"{places[0]}: not there, nor {places[1]}; expected {expected}")
    return [replace(files, beside=(camera,)) for files in scans], problems


def read_camera(path: Path) -> dict[str, float]:
    """Return the numbers of a camera file; all but the principal point are above 0."""
    expected = f"{', '.join(CAMERA_KEYS)}, each a number"
    found = read_yaml(path, expected)
    if set(found) != set(CAMERA_KEYS):
        raise ScanError(f"{path}: found {', '.join(map(str, found))}; expected {expected}")
    values = {name: as_number(found[name]) for name in CAMERA_KEYS}
    for name, value in values.items():
        if value is None or (name not in ("cx", "cy") and value <= 0):
            raise ScanError(
                f"{path}: {name} is {found[name]!r}; expected a number (above 0, but for cx and cy)"
            )
    return values


def read_scan(files: ScanFiles) -> Sample:
    """Return the scan as it was recorded, as `mvtec3d.read_scan` does; x right, y down, z ahead."""
    if not files.beside:
        return mvtec3d.read_scan(files)
    depth = mvtec3d.read_depth(files.xyz)
    if not depth.any():
        raise ScanError(f"{files.xyz}: empty cloud, every depth is 0; expected at least one point")
    if num := np.count_nonzero(depth == 65535):  # a code for "too far" or "not seen"
        raise ScanError(f"{files.xyz}: {num} depths are 65535; expected 0 where there is no point")
    camera = read_camera(files.beside[0])
    v, u = np.indices(depth.shape)
    z = depth * camera["depth_scale"]
    x, y = (u - camera["cx"]) / camera["fx"] * z, (v - camera["cy"]) / camera["fy"] * z
    xyz = np.stack([x, y, z], axis=-1).astype(np.float32)
    check_points(xyz, f"{files.xyz} with {files.beside[0]}")
    return mvtec3d.assemble(files, xyz)
