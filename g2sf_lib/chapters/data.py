"""Chapter 00: scans as they are recorded and prepared, and what their defects change."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from g2sf_lib.config import Config, raw_dir, scans_dir
from g2sf_lib.datasets import Sample, reader
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared

SPLITS = ("train", "validation", "test")


def raw_scan(
    config: Config, category: str, split: str = "train", label: str = "good", number: int = 0
) -> Sample:
    """Return one scan as it was recorded, floor included.

    Raises:
        ValueError: where there is no scan of that label and number.
    """
    files_of = reader(config.dataset)
    scans = [
        files
        for files in files_of.list_scans(raw_dir(config), category, split)
        if files.label == label
    ]
    if number >= len(scans):
        raise ValueError(
            f"{category}/{split}/{label}: {len(scans)} scans; expected number {number} to be there"
        )
    return files_of.read_scan(scans[number])


def prepared_scan(config: Config, split: str, label: str = "good", number: int = 0) -> Sample:
    """Return one preprocessed scan of the config's category."""
    paths = list_prepared(scans_dir(config), config.category, split)
    return load_prepared([path for path in paths if path.parent.name == label][number])


def defect_labels(config: Config, category: str) -> list[str]:
    """Return the kinds of defect in the test split of a category."""
    paths = list_prepared(scans_dir(config), category, "test")
    return [label for label in dict.fromkeys(path.parent.name for path in paths) if label != "good"]


def data_note(config: Config) -> str:
    """Return, in Markdown, what of the data chapter holds for the data set of this run."""
    if config.dataset == "procedural":
        return f"This run uses the embedded data set, profile {config.profile}."
    return (
        f"This run uses the data set **{config.dataset}**. Its scans are taken as they are: what "
        "this chapter says of kinds of defect, of masks, of the sensor and of development and "
        "report scans is about the embedded data set, and figures of it show that one."
    )


def scan_counts(config: Config, categories: Sequence[str]) -> pd.DataFrame:
    """Return the number of scans: a row a category, a column a split and label."""
    rows = {}
    for category in categories:
        paths = [p for split in SPLITS for p in list_prepared(scans_dir(config), category, split)]
        rows[category] = Counter(f"{path.parts[-3]}/{path.parent.name}" for path in paths)
    return pd.DataFrame.from_dict(rows, orient="index").fillna(0).astype(int)


def defect_changes(
    category: str, seed: int, defects: Sequence[str], size: int = 256
) -> tuple[list[Sample], dict[str, list[np.ndarray]]]:
    """Return one part with several defects, and what each changed before any noise.

    Returns:
        The scans without sensor noise, cut out around their defect; and two maps for each of
        them: depth that changed, in mm, and albedo that changed (the largest of three
        channels).
    """
    from g2sf_lib.datasets.procedural import render_scan, render_truth

    sound = render_truth(category, seed, size)
    samples, moved, tinted = [], [], []
    for defect in defects:
        damaged = render_truth(category, seed, size, defect)
        scan = render_scan(category, seed, size, defect, sensor=False)
        both = sound.is_part & damaged.is_part
        window = _around(scan.mask, size // 8)
        moved.append((both * 1000 * np.abs(damaged.depth - sound.depth))[window])
        tinted.append((both * np.abs(damaged.albedo - sound.albedo).max(-1))[window])
        cut = {name: getattr(scan, name)[window] for name in ("rgb", "xyz", "mask")}
        samples.append(dataclasses.replace(scan, **cut))
    return samples, {"depth changed (mm)": moved, "albedo changed": tinted}


def _around(mask: np.ndarray, half: int) -> tuple[slice, slice]:
    """Return the square of side 2 * half about the middle of a mask, inside the image."""
    middle = np.argwhere(mask).mean(axis=0).round().astype(int)
    starts = np.clip(middle - half, 0, np.array(mask.shape) - 2 * half)
    return tuple(slice(int(start), int(start) + 2 * half) for start in starts)


def scan_labels(config: Config, split: str) -> list[str]:
    """Return the label of every scan of a split, "good" or a kind of defect."""
    paths = list_prepared(scans_dir(config), config.category, split)
    return [path.parent.name for path in paths]


def some_scans(config: Config, split: str, numbers: Sequence[int]) -> list[Sample]:
    """Return the preprocessed scans of these numbers."""
    paths = list_prepared(scans_dir(config), config.category, split)
    return [load_prepared(paths[number]) for number in numbers]
