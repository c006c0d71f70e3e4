"""Scans stored as MVTec 3D-AD stores them; the procedural data set uses the same layout.

``<root>/<category>/<split>/<label>/{rgb/NNN.png, xyz/NNN.tiff, gt/NNN.png}``
"""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from g2sf_lib.datasets import Sample, ScanError, ScanFiles, check_mask, check_points, entries, order

# The first of each is how it is published.
_SUFFIXES = {"rgb": (".png",), "xyz": (".tiff", ".tif"), "depth": (".png",), "gt": (".png",)}


def find_scans(
    root: Path, category: str, split: str, points: str = "xyz"
) -> tuple[list[ScanFiles], list[str]]:
    """Return the complete scans of a split, in `order`, and one message for each that is not.

    `points` is the folder that holds them: "xyz", or "depth" for depth images.
    """
    folder = Path(root) / category / split
    inside = entries(folder)
    labels = sorted((p.name for p in inside if p.is_dir()), key=lambda name: order(name, ""))
    if not labels:
        raise ScanError(f"{folder}: no sub-folder found; expected good/ or one a kind of defect")
    expected = "folders alone, good/ or one a kind of defect"
    scans, problems = [], [f"{p}: a file; expected {expected}" for p in inside if not p.is_dir()]
    for label in labels:
        found = {}
        for kind in ("rgb", points, "gt"):
            found[kind], unread = _files_by_stem(folder / label / kind, _SUFFIXES[kind])
            problems += unread
        if not found["rgb"] and not found[points]:
            expected = f"rgb/*.png and {points}/*{_SUFFIXES[points][0]}"
            problems.append(f"{folder / label}: no scan found; expected {expected}")
        needed = ("rgb", points) if label == "good" else ("rgb", points, "gt")
        for index in sorted(set().union(*found.values()), key=lambda text: (len(text), text)):
            files = {kind: found[kind][index] for kind in found if index in found[kind]}
            place = {k: folder / label / k / (index + _SUFFIXES[k][0]) for k in needed}
            if lost := missing(files, place):
                problems.append(f"{lost} a file of that number in each of {', '.join(needed)}")
            else:
                xyz, gt = files[points], files.get("gt")
                scans.append(ScanFiles(files["rgb"], xyz, gt, split, label, index))
    return scans, problems


def missing(files: dict[str, Path], place: dict[str, Path]) -> str:
    """Return which of the places have no file while others have; nothing where all are there."""
    lost = " and ".join(str(path) for kind, path in place.items() if kind not in files)
    return lost and f"{lost}: missing, but {' and '.join(map(str, files.values()))} found; expected"


def _files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[str]]:
    """Return stem -> file of a folder, and a message for everything in it that is not read."""
    found, problems = {}, []
    for path in entries(folder) if folder.is_dir() else ():
        if not path.is_file() or path.suffix.lower() not in suffixes:
            what = (path.suffix or "no suffix") if path.is_file() else "a folder"
            expected = " or ".join(f"NAME{suffix}" for suffix in suffixes)
            problems.append(f"{path}: {what} found; expected {expected}, anything else is not read")
        elif path.stem in found:
            problems.append(f"{path}: {found[path.stem]} found too; expected one file of that name")
        else:
            found[path.stem] = path
    return found, problems


def _read_png(path: Path, expected: str, modes: tuple[str, ...], *bits: int) -> np.ndarray:
    """Return the pixels of a PNG of one of some modes; of one with a palette, its colours."""
    try:
        with Image.open(path) as image:
            image.load()
            # The numbers are places in the palette, whose first colour need not be black.
            pixels = np.array(image.convert("RGB") if image.mode == "P" else image)
        with open(path, "rb") as file:
            depth = file.read(25)[24]  # Pillow cuts 16-bit RGB to 8 bits without a word
    except Exception as error:  # Pillow raises many kinds of exception for damaged files
        raise ScanError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if image.format != "PNG" or image.mode not in modes or depth not in (bits or (depth,)):
        found = f"{image.format} of mode {image.mode}, {depth} bits"
        raise ScanError(f"{path}: {found}; expected {expected}")
    return pixels


def read_mask(path: Path) -> np.ndarray:
    """Return (H, W) bool, True where a single-channel PNG is not zero, or its colour not black."""
    pixels = _read_png(path, "a single-channel PNG", ("1", "L", "P", "I", "I;16"))
    return pixels.any(axis=-1) if pixels.ndim == 3 else pixels != 0


def read_depth(path: Path) -> np.ndarray:
    """Return (H, W) uint16 of a depth image; a ScanError for all but a 16-bit PNG."""
    pixels = _read_png(path, "a 16-bit single-channel PNG", ("I", "I;16", "I;16B"), 16)
    return pixels.astype(np.uint16)


def read_tiff(path: Path) -> np.ndarray:
    """Return the points of a TIFF as (H, W, 3) float32; see `check_points`.

    HALCON, which wrote MVTec 3D-AD, adds a SubIFD of 1 bit a pixel: where there is a point.
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
    is_float = xyz.dtype.kind == "f" and xyz.dtype.itemsize == 4
    if len(series) != 1 or not is_float or xyz.ndim != 3 or xyz.shape[2] != 3:
        found = f"{len(series)} array(s) of {xyz.dtype}, shape {xyz.shape}"
        raise ScanError(f"{path}: {found}; expected {expected}")
    check_points(xyz, str(path))
    has_point = (xyz != 0).any(axis=-1)
    for domain in domains:
        if not np.array_equal(domain, has_point):
            found = f"its domain is {domain.shape}, {domain.sum()} pixels"
            expected = f"the {has_point.sum()} of {has_point.shape} that have a point"
            raise ScanError(f"{path}: {found}; expected {expected}")
    return xyz.astype(np.float32)


def read_scan(files: ScanFiles) -> Sample:
    """Return the scan as it was recorded; a ScanError where its files are bad or disagree."""
    return assemble(files, read_tiff(files.xyz))


def assemble(files: ScanFiles, xyz: np.ndarray) -> Sample:
    """Return the scan of some files whose points are at hand; see `read_scan`."""
    rgb = _read_png(files.rgb, "an 8-bit RGB PNG without alpha", ("RGB",), 8)
    mask = np.zeros(rgb.shape[:2], dtype=bool) if files.gt is None else read_mask(files.gt)
    for path, array, what in ((files.xyz, xyz, "points"), (files.gt, mask, "pixels")):
        if array.shape[:2] != rgb.shape[:2]:
            found, expected = ("{} x {}".format(*one.shape) for one in (array, rgb))
            raise ScanError(f"{path}: {found} {what}; expected {expected} as in {files.rgb}")
    check_mask(mask, files.label, str(files.gt or files.rgb))
    return Sample(rgb, xyz, mask, files.label, files.name)
