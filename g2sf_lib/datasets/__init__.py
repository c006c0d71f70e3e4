"""Scans, however they are stored, as one `Sample`; `DATASETS` says what differs between data sets.

To add one: an entry here, its plain settings in `config.CATEGORIES` and `config.DATASETS`, and a
module with ``find_scans(root, category, split)`` and ``read_scan(files)``.
"""

import importlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml
from threadpoolctl import threadpool_limits

from g2sf_lib.config import CATEGORIES

SPLITS = ("train", "validation", "test")
FARTHEST_M = 100.0  # from the sensor; the largest room that a scanner looks at
# Between neighbouring pixels: finer than any sensor, and coarser than a cluster holds together.
PITCH_M = (1e-6, 1e-2)
_LITTER = ("thumbs.db", "desktop.ini")
MAX_SAME = 0.01  # of the pixels: more of them cannot have been measured at the same place


@dataclass(frozen=True)
class Dataset:
    """How a data set is read, and what of it differs from the others."""

    module: str  # of this package, which reads it
    background: str = "plane"  # what "auto" means for it, see `preprocess`
    num_sources: int = 8  # training scans a category whose points are pasted, as published
    upright: tuple[str, ...] = ()  # categories that lie the same way round: `augment_target`


DATASETS = {
    "procedural": Dataset("mvtec3d", upright=("dowel", "foam", "gland", "rope")),
    "mvtec3d": Dataset("mvtec3d", upright=("cable_gland", "dowel", "foam", "rope", "tire")),
    "eyecandies": Dataset("eyecandies", background="conveyor", num_sources=24),
    "folder": Dataset("folder"),
}


class ScanError(ValueError):
    """A scan that cannot be used; the message names the file, what was found and expected."""


@dataclass(frozen=True)
class Sample:
    """One scan: an image and an organised point cloud, pixel for pixel."""

    rgb: np.ndarray  # (H, W, 3) uint8; zero on removed background
    xyz: np.ndarray  # (H, W, 3) float32, metres; (0, 0, 0) where there is no point
    mask: np.ndarray  # (H, W) bool, True on anomalous pixels
    label: str  # "good", or the kind of defect (the name of its folder)
    name: str  # in messages and tables, e.g. "test/dent/003"
    raw_xyz: np.ndarray | None = None  # `xyz` before background removal, where it was kept

    @property
    def foreground(self) -> np.ndarray:
        """(H, W) bool: pixels that have a point."""
        return np.any(self.xyz != 0, axis=-1)


@dataclass(frozen=True)
class ScanFiles:
    """Where one scan lies on disk."""

    rgb: Path
    xyz: Path  # the points, or the depth image that they are made from
    gt: Path | None  # the ground truth; None where a good scan has none
    split: str
    label: str
    index: str  # the number as it is written, e.g. "003"
    beside: tuple[Path, ...] = ()  # what else points are made from: a camera, or range and pose

    @property
    def name(self) -> str:
        """What the scan is called in messages and tables, e.g. "test/dent/003"."""
        return f"{self.split}/{self.label}/{self.index}"

    @property
    def paths(self) -> list[Path]:
        """The files that the scan is made of."""
        return [path for path in (self.rgb, self.xyz, self.gt, *self.beside) if path]


def reader(dataset: str) -> ModuleType:
    """Return the module that reads a data set."""
    return importlib.import_module(f"g2sf_lib.datasets.{DATASETS[dataset].module}")


def entries(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden files and the litter of systems."""
    if not folder.is_dir():
        parent = next(p for p in folder.parents if p.is_dir())
        held = ", ".join(sorted(p.name for p in parent.iterdir())[:12]) or "nothing"
        raise ScanError(f"{folder}: no such folder ({parent} holds {held}); expected scans there")
    found = (path for path in folder.iterdir() if path.name.lower() not in _LITTER)
    return sorted(path for path in found if not path.name.startswith("."))


def order(label: str, index: str) -> tuple:
    """Return the key that sorts scans: good ones first, then defects by name, then by number."""
    return label != "good", label, len(index), index


def split_problems(split: str, scans: Sequence[Sample | ScanFiles], where: str) -> list[str]:
    """Return what is wrong with the scans of a split taken together, one line each."""
    bad = [scan for scan in scans if scan.label != "good"]
    told = f"{where}: {len(scans) - len(bad)} good and {len(bad)} defective {split} scans; expected"
    if split == "test":
        return [] if 0 < len(bad) < len(scans) else [f"{told} both, a score needs them"]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    problems = [f"{where}: {s.name} is {s.label!r}{more}; expected 'good' alone" for s in bad[:1]]
    least = 2 if split == "train" else 1  # a paste comes from another scan
    if len(scans) < least:
        problems.append(f"{told} at least {least} good")
    return problems


def find_split(
    dataset: str, root: Path | str, category: str, split: str
) -> tuple[list[ScanFiles], list[str]]:
    """Return what `find_scans` does; where all are complete, what `split_problems` says of them."""
    scans, problems = reader(dataset).find_scans(Path(root), category, split)
    return scans, problems or split_problems(split, scans, str(Path(root) / category))


def check_points(xyz: np.ndarray, name: str) -> None:
    """Refuse (H, W, 3) points that cannot be metres of an organised scan."""
    place = "(0, 0, 0) where there is none"
    beyond = ~(np.abs(xyz) <= FARTHEST_M).all(axis=-1)  # true of NaN too
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        first = f"the first at row {row}, column {column}: {xyz[row, column].tolist()}"
        told = f"{beyond.sum()} pixels are NaN, infinite or above {FARTHEST_M:g}, {first}"
        raise ScanError(f"{name}: {told}; expected finite points in metres, {place}")
    has_point = (xyz != 0).any(axis=-1)
    if not has_point.any():
        raise ScanError(f"{name}: empty cloud, no point is set; expected at least one point")
    both = has_point[:, 1:] & has_point[:, :-1]
    step = np.linalg.norm(np.diff(xyz, axis=1)[both].astype(np.float64), axis=-1)
    if (step == 0).sum() > MAX_SAME * has_point.size:  # a code for "nothing seen"?
        values, num = np.unique(xyz[has_point], axis=0, return_counts=True)
        if num.max() > MAX_SAME * has_point.size:
            told = f"{num.max()} pixels hold the same point {values[num.argmax()].tolist()}"
            raise ScanError(f"{name}: {told}; expected {place}")
    pitch = np.median(step[step > 0]) if (step > 0).any() else PITCH_M[0]
    if not PITCH_M[0] <= pitch <= PITCH_M[1]:
        expected = "metres, that is {:g} to {:g} (are these millimetres?)".format(*PITCH_M)
        raise ScanError(f"{name}: neighbouring points are {pitch:.3g} apart; expected {expected}")


def check_mask(mask: np.ndarray, label: str, name: str) -> None:
    """Refuse a ground truth that contradicts the label."""
    if label == "good" and mask.any():
        raise ScanError(f"{name}: {mask.sum()} anomalous pixels; expected none in a good scan")
    if label != "good" and not mask.any():
        raise ScanError(f"{name}: no anomalous pixel; expected some in a scan of {label!r}")


def check_normal(split: str, samples: Sequence[Sample], where: str) -> None:
    """Refuse samples that no reader would return, or that nothing normal can be learnt from."""
    for sample in samples:
        for key, dtype, *more in (("xyz", "float32", 3), ("rgb", "uint8", 3), ("mask", "bool")):
            found, shape = getattr(sample, key), (*sample.xyz.shape[:2], *more)
            if (found.dtype, found.shape) != (dtype, shape) or sample.xyz.ndim != 3:
                told = f"{key} is {found.dtype} {found.shape}; expected {dtype} {shape}"
                raise ScanError(f"{sample.name}: {told}")
        check_points(sample.xyz, sample.name)
        check_mask(sample.mask, sample.label, sample.name)
    if problems := split_problems(split, samples, where):
        raise ScanError("\n".join(problems))


def read_yaml(path: Path, expected: str) -> dict:
    """Return the mapping of a YAML file; `expected` says in a ScanError what it should hold."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML errors have several lines
        raise ScanError(f"{path}: cannot be read ({reason}); expected {expected}") from error
    if not isinstance(found, dict):
        raise ScanError(f"{path}: found {found!r}; expected {expected}")
    return found


def as_number(value: Any) -> float | None:
    """Return a finite number, or None for what is none; 1e-4 is a text to YAML 1.1."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def category_names(dataset: str, root: Path | str) -> tuple[str, ...]:
    """Return the categories that have a folder below the root, in published order; none: all.

    A name nearly that of a category, as "Cable gland", is a ScanError.
    """
    root = Path(root)
    if dataset not in CATEGORIES:
        return reader(dataset).list_categories(root)

    def letters(name: str) -> str:
        return "".join(filter(str.isalnum, name)).lower()

    there = tuple(name for name in CATEGORIES[dataset] if (root / name).is_dir())
    meant = {letters(name): name for name in CATEGORIES[dataset] if name not in there}
    for path in sorted(root.glob("*/")):
        if path.name not in there and (name := meant.get(letters(path.name))):
            raise ScanError(f"{path}: no category of {dataset}; expected it to be called {name}")
    return there or CATEGORIES[dataset]


def in_processes(function: Callable, jobs: Sequence, workers: int) -> Iterator:
    """Yield the result of a function for each job, in order; with one worker, in this process."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    # Spawned, because forking after Open3D or torch have started threads can hang.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(function, jobs, chunksize=2)
        except BrokenProcessPool as error:
            again = "what is finished is kept, run it again with fewer workers"
            raise RuntimeError(f"a worker process died (out of memory?); {again}") from error


def _start_worker() -> None:
    """Keep a worker process to one thread, and end it when its parent is gone."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for Open3D, which is not loaded yet
    threadpool_limits(1)

    def end_with_parent() -> None:
        parent_process().join()
        os._exit(1)  # a killed parent tells its workers nothing: they would wait for ever

    threading.Thread(target=end_with_parent, daemon=True).start()
