"""Chapter 01: how many cells there are, and how features answer to planted changes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from g2sf_lib.benchmark import Split
from g2sf_lib.chapters.data import SPLITS
from g2sf_lib.config import MODALITIES, Config, scans_dir
from g2sf_lib.datasets import Sample
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared
from g2sf_lib.detector import counted_cells, pick_device
from g2sf_lib.features import FeatureExtractor

SYNTHETIC_SPLITS = ("synthetic", "synthetic_validation")


def cell_counts(config: Config) -> pd.DataFrame:
    """Return, for each split, how many scans and cells it has, and of which kind.

    Columns: ``scans``, ``cells on the object``, ``cells that count`` (by the silhouette rule),
    ``anomalous cells`` (counted or not).
    """
    rows = []
    for split in (*SPLITS, *SYNTHETIC_SPLITS):
        of = Split(config, split)
        patches, labels = of.patches, of.cell_labels
        on_object = [p.foreground for p in patches]
        counted = [counted_cells(p, config.scoring.silhouette) for p in patches]
        anomalous = [lab & p for lab, p in zip(labels, on_object, strict=True)]
        kinds = {
            "cells on the object": on_object,
            "cells that count": counted,
            "anomalous cells": anomalous,
        }
        row = {"split": split, "scans": len(patches)}
        rows.append(row | {name: sum(int(one.sum()) for one in k) for name, k in kinds.items()})
    return pd.DataFrame(rows).set_index("split")


def planted(sample: Sample) -> list[Sample]:
    """Return the scan with a dark blot, and with a bump of 1.5 mm, at the same place.

    The place is off the middle of the object in both directions, so that a feature map that
    is mirrored or turned cannot pass for a right one. Their masks say where it is.
    """
    size = sample.xyz.shape[0]
    inside = np.argwhere(sample.foreground)
    wanted = inside.mean(axis=0) + (-size / 10, size / 12)
    row, column = inside[((inside - wanted) ** 2).sum(axis=1).argmin()]
    rows, columns = np.indices(sample.mask.shape)
    profile = np.clip(1 - ((rows - row) ** 2 + (columns - column) ** 2) / (size / 24) ** 2, 0, 1)
    rgb = (sample.rgb * (1 - 0.7 * (profile > 0))[..., None]).astype(np.uint8)
    raised = sample.xyz.copy()
    raised[..., 2] -= 0.0015 * profile * sample.foreground  # towards the sensor
    mask = profile > 0
    return [
        dataclasses.replace(sample, rgb=rgb, mask=mask, name=f"{sample.name} with a blot"),
        dataclasses.replace(sample, xyz=raised, mask=mask, name=f"{sample.name} with a bump"),
    ]


def feature_changes(
    config: Config, sample: Sample, changed: Sequence[Sample]
) -> dict[str, list[np.ndarray]]:
    """Return how far the features of every cell moved between a scan and changed copies of it.

    Returns:
        mod -> a map (grid, grid) a copy: the distance between the two features of a cell,
        divided by the mean distance of features of the scan from their mean, so that 1 is as
        much as cells of one scan differ; 0 on the background.
    """
    extract = FeatureExtractor(config.features, pick_device(config.device))
    before, after = extract(sample), [extract(copy) for copy in changed]
    maps: dict[str, list[np.ndarray]] = {}
    for mod in MODALITIES:
        inside = before.feat[mod][before.foreground]
        unit = torch.linalg.vector_norm(inside - inside.mean(0), dim=1).mean()
        maps[mod] = []
        for patches in after:
            both = before.foreground & patches.foreground
            moved = torch.linalg.vector_norm(patches.feat[mod] - before.feat[mod], dim=1) / unit
            maps[mod].append((moved * both).cpu().numpy().reshape(before.grid))
    return maps


def repeated_scans(config: Config) -> int:
    """Return how many training and validation scans have the very points of a test scan."""

    def digests(split: str) -> list[str]:
        paths = list_prepared(scans_dir(config), config.category, split)
        return [hashlib.sha256(load_prepared(path).xyz.tobytes()).hexdigest() for path in paths]

    test = set(digests("test"))
    return sum(digest in test for digest in digests("train") + digests("validation"))


def scans_outside_training(paths: Sequence[Path]) -> list[Path]:
    """Return those of some prepared scans that do not lie in a training split."""
    return [path for path in paths if path.parts[-3] != "train"]
