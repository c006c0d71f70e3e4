"""Scans, however they are stored, as one `Sample`."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml
from threadpoolctl import threadpool_limits

from g2sf_lib.config import CATEGORIES

FARTHEST_M = 100.0  # from the sensor; the largest room that a scanner looks at
# Between neighbouring pixels: finer than any sensor, and coarser than a cluster holds together.
PITCH_M = (1e-6, 1e-2)
MAX_SAME = 0.01  # of the pixels: more of them cannot have been measured at the same place
JUNK = ("thumbs.db", "desktop.ini")  # left by systems; so are hidden files


class ScanError(ValueError):
    """A scan that cannot be used; the message names the file, what was found and expected."""


@dataclass(frozen=True)
class Sample:
    """One scan: an image and an organised point cloud, pixel for pixel.

    Attributes:
        rgb: (H, W, 3) uint8; zero on removed background.
        xyz: (H, W, 3) float32, metres; (0, 0, 0) where there is no point.
        mask: (H, W) bool, True on anomalous pixels.
        label: "good", or the kind of defect (the name of its folder).
        name: what the scan is called in messages and tables, e.g. "test/dent/003".
        raw_xyz: (H, W, 3) float32, the points before background removal, or None where
            they were not kept. Synthesis takes x and y of pasted points from here.
    """

    rgb: np.ndarray
    xyz: np.ndarray
    mask: np.ndarray
    label: str
    name: str
    raw_xyz: np.ndarray | None = None

    @property
    def is_anomalous(self) -> bool:
        """Whether any pixel of the scan is anomalous by its label."""
        return self.label != "good"

    @property
    def foreground(self) -> np.ndarray:
        """(H, W) bool: pixels that have a point."""
        return np.any(self.xyz != 0, axis=-1)


def reader(dataset: str) -> ModuleType:
    """Return the module that reads a data set.

    It has ``find_scans(root, category, split)``, ``list_scans`` with the same arguments, and
    ``read_scan(files)``, which returns a `Sample` for an entry of the lists. An entry has
    `name`, `label`, `split`, `index`, and `paths`, the files that the scan is made of.

    Args:
        dataset: as in the config; "procedural" is stored as MVTec 3D-AD is.
    """
    module = "mvtec3d" if dataset == "procedural" else dataset
    return importlib.import_module(f"g2sf_lib.datasets.{module}")


def complete(found: tuple[list, list[str]]) -> list:
    """Return the scans of what a reader's `find_scans` found, if none is incomplete.

    Raises:
        ScanError: with one line for each message; every file is named.
    """
    scans, problems = found
    if problems:
        raise ScanError("\n".join(problems))
    return scans


def is_left_by_system(path: Path) -> bool:
    """Say whether a file or folder is none of the data's: hidden, or litter of a system."""
    return path.name.startswith(".") or path.name.lower() in JUNK


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[str]]:
    """Return stem -> file of a folder, and a message for everything in it that is not read.

    A search for ``*.png`` finds what it looks for and never what it misses: a scan saved as
    ``.PNG`` or ``.jpg`` would be left out without a word.

    Args:
        folder: need not be there.
        suffixes: in small letters, e.g. (".tiff", ".tif"); how they are written does not matter.
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


def split_problems(split: str, scans: Sequence, where: str) -> list[str]:
    """Return what is wrong with the scans of a split taken together, one line each.

    The check, the stages and `G2SF.fit` ask here, so that all refuse the same and in these words.

    Args:
        split: "train", "validation" or "test".
        scans: each with `name` and `label`.
        where: what the split is called in the message.
    """
    bad = [scan for scan in scans if scan.label != "good"]
    told = f"{len(scans) - len(bad)} good and {len(bad)} defective {split} scans"
    if split == "test":
        needed = "both, a score needs them"
        return [f"{where}: {told}; expected {needed}"] if not 0 < len(bad) < len(scans) else []
    problems = []
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        problems.append(f"{where}: {bad[0].name} is {bad[0].label!r}{more}; expected 'good' alone")
    least = 2 if split == "train" else 1
    if len(scans) < least:
        why = "a paste comes from another scan" if split == "train" else "they calibrate the scores"
        problems.append(f"{where}: {told}; expected at least {least} good, {why}")
    return problems


def find_split(dataset: str, root: Path | str, category: str, split: str) -> tuple[list, list[str]]:
    """Return what a reader's `find_scans` does, and what `split_problems` says of the whole.

    Raises:
        ScanError: where the folder of the split is missing or holds no scan.
    """
    scans, problems = reader(dataset).find_scans(Path(root), category, split)
    if not problems:  # of what is incomplete the whole says little
        problems = split_problems(split, scans, str(Path(root) / category))
    return scans, problems


def check_points(xyz: np.ndarray, name: str) -> None:
    """Refuse points that cannot be metres of an organised scan.

    Args:
        xyz: (H, W, 3) float32, (0, 0, 0) where there is no point.
        name: of the file, or of the scan.

    Raises:
        ScanError: for points that are NaN, infinite or farther than `FARTHEST_M`; where none is
            set; where one value fills many pixels (a code for "nothing seen"); and where
            neighbouring pixels are so far apart that the unit is none of metres.
    """
    place = "(0, 0, 0) where there is none"
    beyond = ~(np.abs(xyz) <= FARTHEST_M).all(axis=-1)  # true of NaN too
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        raise ScanError(
            f"{name}: {beyond.sum()} pixels are NaN, infinite or above {FARTHEST_M:g}, the first at"
            f" row {row}, column {column}: {xyz[row, column].tolist()};"
            f" expected finite points in metres, {place}"
        )
    has_point = (xyz != 0).any(axis=-1)
    if not has_point.any():
        raise ScanError(f"{name}: empty cloud, no point is set; expected at least one point")
    both = has_point[:, 1:] & has_point[:, :-1]
    step = np.linalg.norm(np.diff(xyz, axis=1)[both].astype(np.float64), axis=-1)
    if (step == 0).sum() > MAX_SAME * has_point.size:
        values, num = np.unique(xyz[has_point], axis=0, return_counts=True)
        if num.max() > MAX_SAME * has_point.size:
            raise ScanError(
                f"{name}: {num.max()} pixels hold the same point {values[num.argmax()].tolist()};"
                f" expected {place}"
            )
    pitch = np.median(step[step > 0]) if (step > 0).any() else None
    if pitch is not None and not PITCH_M[0] <= pitch <= PITCH_M[1]:
        raise ScanError(
            f"{name}: neighbouring points are {pitch:.3g} apart; expected metres, that is"
            f" {PITCH_M[0]:g} to {PITCH_M[1]:g} (are these millimetres?)"
        )


def check_mask(mask: np.ndarray, label: str, name: str) -> None:
    """Refuse a ground truth that contradicts the label.

    Args:
        mask: (H, W) bool.
        label: "good", or the kind of defect.
        name: of the file, or of the scan.

    Raises:
        ScanError: for anomalous pixels in a good scan, and for none in a defective one.
    """
    if label == "good" and mask.any():
        raise ScanError(f"{name}: {mask.sum()} anomalous pixels; expected none in a good scan")
    if label != "good" and not mask.any():
        raise ScanError(f"{name}: no anomalous pixel; expected some in a scan of {label!r}")


def check_sample(sample: Sample) -> None:
    """Refuse a sample that no reader would return; see `check_points` and `check_mask`.

    Raises:
        ScanError: naming the scan, also for arrays that do not fit each other.
    """
    size = sample.xyz.shape[:2]
    expected = {"xyz": (*size, 3), "rgb": (*size, 3), "mask": size}
    dtypes = {"xyz": np.float32, "rgb": np.uint8, "mask": np.bool_}
    for key, shape in expected.items():
        found = np.asarray(getattr(sample, key))
        if found.shape != shape or found.dtype != dtypes[key] or len(size) != 2:
            raise ScanError(
                f"{sample.name}: {key} is {found.dtype} {found.shape};"
                f" expected {np.dtype(dtypes[key])} {shape}"
            )
    check_points(sample.xyz, sample.name)
    check_mask(sample.mask, sample.label, sample.name)


def check_normal(split: str, samples: Sequence[Sample], where: str) -> None:
    """Refuse samples that nothing normal can be learnt from: `check_sample`, `split_problems`.

    Raises:
        ScanError: with one line for each problem.
    """
    for sample in samples:
        check_sample(sample)
    if problems := split_problems(split, samples, where):
        raise ScanError("\n".join(problems))


def read_yaml(path: Path, expected: str) -> dict:
    """Return the mapping of a YAML file.

    Raises:
        ScanError: naming the file, where it cannot be read or holds something else.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML errors have several lines
        raise ScanError(f"{path}: cannot be read ({reason}); expected {expected}") from error
    if not isinstance(found, dict):
        raise ScanError(f"{path}: found {found!r}; expected {expected}")
    return found


def as_number(value: Any) -> float | None:
    """Return a finite number, or None for what is none.

    YAML 1.1 reads 1e-4 as text, since it has no point; people mean the number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def category_names(dataset: str, root: Path | str) -> tuple[str, ...]:
    """Return the categories of a data set that are there.

    Args:
        dataset: as in the config.
        root: the folder that holds the categories.

    Returns:
        Published names with a folder below `root`, in the published order; all of them where
        none is there, so that what is missing is named later. For "folder", the names of the
        folders.

    Raises:
        ScanError: for a folder whose name is nearly that of a category, as "Cable gland" is:
            it would be passed over.
    """
    known = CATEGORIES.get(dataset)
    if known is None:
        from g2sf_lib.datasets.folder import list_categories

        return tuple(list_categories(Path(root)))
    there = tuple(name for name in known if (Path(root) / name).is_dir())
    meant = {_letters(name): name for name in known}
    for path in sorted(Path(root).iterdir()) if Path(root).is_dir() else ():
        name = meant.get(_letters(path.name), path.name)
        if path.is_dir() and name != path.name and name not in there:
            raise ScanError(f"{path}: no category of {dataset}; expected it to be called {name}")
    return there or known


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def start_worker() -> None:
    """Keep a worker process to one thread, and end it when its parent is gone."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for Open3D, which is not loaded yet
    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)  # a killed parent tells its workers nothing: they would wait for ever
