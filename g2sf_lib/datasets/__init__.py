"""Scans, however they are stored, as one `Sample`."""

from __future__ import annotations

import importlib
import os
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from types import ModuleType

import numpy as np
from threadpoolctl import threadpool_limits

from g2sf_lib.config import CATEGORIES


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


def category_names(dataset: str, root: Path | str) -> tuple[str, ...]:
    """Return the categories of a data set that are there.

    Args:
        dataset: as in the config.
        root: the folder that holds the categories.

    Returns:
        Published names with a folder below `root`, in the published order; all of them where
        none is there, so that what is missing is named later. For "folder", the names of the
        folders.
    """
    known = CATEGORIES.get(dataset)
    if known is None:
        from g2sf_lib.datasets.folder import list_categories

        return tuple(list_categories(Path(root)))
    there = tuple(name for name in known if (Path(root) / name).is_dir())
    return there or known


def start_worker() -> None:
    """Keep a worker process to one thread, and end it when its parent is gone."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for Open3D, which is not loaded yet
    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)  # a killed parent tells its workers nothing: they would wait for ever
