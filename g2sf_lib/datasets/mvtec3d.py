"""Scans stored as MVTec 3D-AD stores them; the procedural data set uses the same layout.

``<root>/<category>/<split>/<label>/{rgb/NNN.png, xyz/NNN.tiff, gt/NNN.png}``
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from g2sf_lib.datasets import (
    Sample,
    ScanError,
    ScanFiles,
    check_mask,
    check_points,
    complete,
    is_left_by_system,
    need_folder,
)

# The first of each is how it is published.
_SUFFIXES = {"rgb": (".png",), "xyz": (".tiff", ".tif"), "depth": (".png",), "gt": (".png",)}
_SINGLE_CHANNEL_MODES = ("1", "L", "P", "I", "I;16")


def find_scans(
    root: Path, category: str, split: str, points: str = "xyz"
) -> tuple[list[ScanFiles], list[str]]:
    """Return the complete scans of a split, in order, and one message for each that is not.

    Good ones come first, then defects by name, then by number.

    Args:
        root: the folder that holds the categories.
        category: any name; the folder below `root`.
        split: "train", "validation" or "test".
        points: which folder holds the points: "xyz", or "depth" for depth images.

    Raises:
        ScanError: where the folder of the split is missing or holds no label.
    """
    folder = Path(root) / category / split
    need_folder(folder)
    inside = sorted(path for path in folder.iterdir() if not is_left_by_system(path))
    labels = [path.name for path in inside if path.is_dir()]
    if not labels:
        raise ScanError(f"{folder}: no sub-folder found; expected good/ or one a kind of defect")
    expected = "folders alone, good/ or one a kind of defect"
    scans, problems = [], [f"{p}: a file; expected {expected}" for p in inside if not p.is_dir()]
    for label in sorted(labels, key=lambda name: (name != "good", name)):
        found = {}
        for kind in ("rgb", points, "gt"):
            found[kind], unread = _files_by_stem(folder / label / kind, _SUFFIXES[kind])
            problems += unread
        if not found["rgb"] and not found[points]:
            expected = f"rgb/*.png and {points}/*{_SUFFIXES[points][0]}"
            problems.append(f"{folder / label}: no scan found; expected {expected}")
        needed = ("rgb", points) if label == "good" else ("rgb", points, "gt")
        for index in sorted(set().union(*found.values()), key=lambda text: (len(text), text)):
            missing = [kind for kind in needed if index not in found[kind]]
            if missing:
                present = " and ".join(str(found[k][index]) for k in found if index in found[k])
                lost = [str(folder / label / k / (index + _SUFFIXES[k][0])) for k in missing]
                problems.append(
                    f"{' and '.join(lost)}: missing, but {present} found;"
                    f" expected a file of that number in each of {', '.join(needed)}"
                )
                continue
            rgb, xyz, gt = (found[kind].get(index) for kind in ("rgb", points, "gt"))
            scans.append(ScanFiles(rgb, xyz, gt, split, label, index))
    return scans, problems


def _files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[str]]:
    """Return stem -> file of a folder, and a message for everything in it that is not read.

    A search for ``*.png`` finds what it looks for and never what it misses: a scan saved as
    ``.PNG`` or ``.jpg`` would be left out without a word.
    """
    found, problems = {}, []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_left_by_system(path):
            continue
        if not path.is_file() or path.suffix.lower() not in suffixes:
            what = f"{path.suffix or 'no suffix'}" if path.is_file() else "a folder"
            expected = " or ".join(f"NAME{suffix}" for suffix in suffixes)
            problems.append(f"{path}: {what} found; expected {expected}, anything else is not read")
        elif path.stem in found:
            problems.append(f"{path}: {found[path.stem]} found too; expected one file of that name")
        else:
            found[path.stem] = path
    return found, problems


def list_scans(root: Path, category: str, split: str) -> list[ScanFiles]:
    """Return what `find_scans` does; a ScanError names every file that is missing."""
    return complete(find_scans(root, category, split))


def _open_png(path: Path, expected: str) -> tuple[np.ndarray, str, int]:
    """Return pixels, mode and bit depth of a PNG."""
    try:
        with Image.open(path) as image:
            image.load()
            found, mode, pixels = image.format, image.mode, np.array(image)
        with open(path, "rb") as file:
            bit_depth = file.read(25)[24]  # Pillow cuts 16-bit RGB to 8 bits without a word
    except Exception as error:  # Pillow raises many kinds of exception for damaged files
        raise ScanError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if found != "PNG":
        raise ScanError(f"{path}: {found} of mode {mode}; expected {expected}")
    return pixels, mode, bit_depth


def read_rgb(path: Path) -> np.ndarray:
    """Return an image as (H, W, 3) uint8; a ScanError for all but an 8-bit RGB PNG."""
    expected = "an 8-bit RGB PNG without alpha"
    pixels, mode, bits = _open_png(path, expected)
    if mode != "RGB" or bits != 8:
        raise ScanError(f"{path}: PNG of mode {mode}, {bits} bits; expected {expected}")
    return pixels


def read_mask(path: Path) -> np.ndarray:
    """Return (H, W) bool, True where a single-channel PNG is not zero, or its colour not black."""
    pixels, mode, bits = _open_png(path, "a single-channel PNG")
    if mode not in _SINGLE_CHANNEL_MODES:
        raise ScanError(f"{path}: PNG of mode {mode}, {bits} bits; expected a single-channel PNG")
    if mode == "P":  # its numbers are places in a palette, whose first colour need not be black
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).any(axis=-1)
    return pixels != 0


def read_depth(path: Path) -> np.ndarray:
    """Return (H, W) uint16 of a depth image; a ScanError for all but a 16-bit PNG."""
    expected = "a 16-bit single-channel PNG"
    pixels, mode, bits = _open_png(path, expected)
    if mode not in ("I", "I;16", "I;16B") or bits != 16 or pixels.ndim != 2:
        raise ScanError(f"{path}: PNG of mode {mode}, {bits} bits; expected {expected}")
    return pixels.astype(np.uint16)


def read_tiff(path: Path) -> np.ndarray:
    """Return the points of a TIFF as (H, W, 3) float32; see `check_points`.

    HALCON, which wrote MVTec 3D-AD, adds to the only page a SubIFD of 1 bit a pixel: the domain,
    which says where there is a point. Other SubIFDs (previews) are passed over.
    """
    expected = "one (H, W, 3) float32 array, metres"
    try:
        with tifffile.TiffFile(path) as tiff:
            if not len(tiff.pages):
                raise ValueError(f"truncated: {path.stat().st_size} bytes, none of them a page's")
            # Some writers make a page of every row; together they are one series.
            series = [one for one in tiff.series if not one.keyframe.is_subifd]
            size, below = tiff.filehandle.size, tiff.pages.first.pages or ()
            for page in (*series[0].pages, *below):
                ends = np.add(page.dataoffsets, page.databytecounts)
                # An absent strip would be read as zeros: points silently lost.
                if ends.max() > size or 0 in page.databytecounts:
                    raise ValueError(f"truncated: {size} bytes, data end at {ends.max()}")
            xyz = series[0].asarray()
            domains = [page.asarray() != 0 for page in below if page.bitspersample == 1]
    except Exception as error:  # tifffile raises many kinds of exception for damaged files
        raise ScanError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if len(series) != 1 or xyz.dtype.kind != "f" or xyz.dtype.itemsize != 4:
        raise ScanError(f"{path}: {len(series)} array(s) of {xyz.dtype}; expected {expected}")
    if xyz.ndim != 3 or xyz.shape[2] != 3:
        raise ScanError(f"{path}: shape {xyz.shape}; expected {expected}")
    check_points(xyz, str(path))
    for domain in domains:
        has_point = (xyz != 0).any(axis=-1)
        if domain.shape != has_point.shape or (domain != has_point).any():
            raise ScanError(
                f"{path}: its domain is {domain.shape}, {domain.sum()} pixels; expected the"
                f" {has_point.sum()} pixels of {has_point.shape} that have a point"
            )
    return xyz.astype(np.float32)


def read_scan(files: ScanFiles) -> Sample:
    """Return the scan as it was recorded, floor included; `raw_xyz` is None.

    H and W need not be equal. Any ground-truth pixel that is not zero is anomalous: some
    categories number their defects 255, 254, 253. A good scan without ground truth has an
    all-False mask.

    Raises:
        ScanError: naming the file, for a damaged file, an image that is not 8-bit RGB, points
            that are not finite (H, W, 3) float32, an empty cloud, sizes that differ, or a
            ground truth that contradicts the label.
    """
    return assemble(files, read_tiff(files.xyz))


def assemble(files: ScanFiles, xyz: np.ndarray) -> Sample:
    """Return the scan of some files whose points are at hand; see `read_scan`."""
    rgb = read_rgb(files.rgb)
    mask = np.zeros(rgb.shape[:2], dtype=bool) if files.gt is None else read_mask(files.gt)
    for path, size, what in (
        (files.xyz, xyz.shape[:2], "points"),
        (files.gt, mask.shape, "pixels"),
    ):
        if size != rgb.shape[:2]:
            raise ScanError(
                f"{path}: {size[0]} x {size[1]} {what};"
                f" expected {rgb.shape[0]} x {rgb.shape[1]} as in {files.rgb}"
            )
    check_mask(mask, files.label, str(files.gt or files.rgb))
    return Sample(rgb=rgb, xyz=xyz, mask=mask, label=files.label, name=files.name)
