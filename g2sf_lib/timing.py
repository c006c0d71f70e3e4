"""How many scans a second each method manages here, and where the time goes (Table 6)."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from g2sf_lib.baselines import BANKS, find_nearest
from g2sf_lib.benchmark import METHODS, Comparison, Split, fitted_peer, trained_detector
from g2sf_lib.config import Config, ConfigError, scans_dir
from g2sf_lib.datasets import Sample
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared
from g2sf_lib.detector import pick_device, to_prediction
from g2sf_lib.features import FeatureExtractor, foreground_features

STEPS = ("features", "neighbours", "fusion", "post-processing")
NEEDS = {"rgb": ("rgb",), "pcd": ("pcd",), "ast": ("rgb",)}  # the others look at both modalities


def frame_rates(
    config: Config,
    methods: Sequence[str],
    seed: int,
    num_scans: int = 20,
    num_warm_up: int = 3,
) -> pd.DataFrame:
    """Return how long each method takes for a scan, step by step, all in one run.

    Scans are preprocessed, at hand in memory, and come one at a time (batch 1). All methods see
    a scan before the next one comes, each scan in another order, so that whatever else the
    machine does meets all of them alike.

    Args:
        config: of the run; its category's test scans are used.
        methods: some of `benchmark.METHODS`; "w1" and "other_pastes" take what "g2sf" takes and are
            left out.
        seed: of the trained methods.
        num_scans: scans timed; where there are fewer, they come again.
        num_warm_up: scans before them that are not counted.

    Returns:
        A row a method, scan and step: ``method``, ``scan``, ``step`` of `STEPS`, ``seconds``.
        A step that a method does not have takes no time.

    Source: Section 4.3, Table 6, which states neither the batch nor what is counted.
    """
    config = dataclasses.replace(config, seed=seed)
    device = pick_device(config.device)
    timed = [method for method in methods if method not in ("w1", "other_pastes")]
    train, test = Split(config, "train"), Split(config, "test")
    steps = {method: _steps(config, method, train, test) for method in timed}
    extract = FeatureExtractor(config.features, device)
    paths = list_prepared(scans_dir(config), config.category, "test")
    chosen = [paths[i % len(paths)] for i in range(num_warm_up + num_scans)]
    rows = []
    for number, path in enumerate(tqdm(chosen, desc="frame rates")):
        sample = load_prepared(path)
        mods, patches = _features(extract, sample, device)
        for method in timed[number % len(timed) :] + timed[: number % len(timed)]:
            spent = {"features": sum(mods[mod] for mod in NEEDS.get(method, ("pcd", "rgb")))}
            for step, seconds in steps[method](sample, patches, device):
                spent[step] = spent.get(step, 0.0) + seconds
            if number >= num_warm_up:
                scan = number - num_warm_up
                rows += [
                    {"method": method, "scan": scan, "step": s, "seconds": spent.get(s, 0.0)}
                    for s in STEPS
                ]
    return pd.DataFrame(rows)


def _clock(device: torch.device) -> float:
    """Return the time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _timed(device: torch.device, work: Callable, *arguments) -> tuple[float, Any]:
    """Return how long some work took, and what came out."""
    start = _clock(device)
    result = work(*arguments)
    return _clock(device) - start, result


def _features(extract: FeatureExtractor, sample: Sample, device: torch.device):
    """Return mod -> seconds, and the patches of a scan."""
    mods = {
        "rgb": _timed(device, extract.colour, sample)[0],
        "pcd": _timed(device, extract.points, sample)[0],
    }
    return mods, extract(sample)


def _steps(config: Config, method: str, train: Split, test: Split) -> Callable:
    """Return what scores one scan by a method and yields (step, seconds)."""
    if method == "g2sf":
        detector = trained_detector(config)

        def score_g2sf(sample, patches, device):
            feat = detector.standardiser(foreground_features([patches]))
            spent, found = _timed(device, detector.neighbours, feat)
            yield "neighbours", spent
            spent, scores = _timed(device, detector.fuse_cells, feat, *found)
            yield "fusion", spent
            args = (scores.cell_score, patches, config.scoring)
            yield "post-processing", _timed(device, to_prediction, *args)[0]

        return score_g2sf
    peer = fitted_peer(config, method, train, test.stored)

    def score_peer(sample, patches, device):
        depths, nearest = None, None
        if method == "ast":
            spent, depth = _timed(device, peer.depth, sample)
            depths = [depth]
            yield "features", spent
        if BANKS[method]:
            feat = peer.standardiser(foreground_features([patches]))
            spent, nearest = _timed(device, find_nearest, peer.banks, feat, device)
            yield "neighbours", spent
        spent, (scan,) = _timed(device, peer.score_scans, [patches], depths, nearest)
        yield "fusion", spent
        args = (scan.cells, patches, config.scoring)
        yield "post-processing", _timed(device, to_prediction, *args)[0]

    return score_peer


def measure_rates(comparison: Comparison, num_scans: int) -> pd.DataFrame | None:
    """Return `rate_table` of a comparison's methods on its first category.

    None for no scan, or where nothing but "w1" and "other_pastes" was compared.

    Raises:
        ConfigError: `num_scans` is no whole number, or negative.
    """
    if type(num_scans) is not int or num_scans < 0:
        raise ConfigError(f"frame_scans is {num_scans!r}; expected a whole number >= 0")
    if num_scans == 0 or set(comparison.methods) <= {"w1", "other_pastes"}:
        return None
    config = dataclasses.replace(comparison.config, category=comparison.categories[0])
    return rate_table(frame_rates(config, comparison.methods, comparison.seeds[0], num_scans))


def median_rates(rates: pd.DataFrame) -> pd.DataFrame:
    """Return columns ``method`` and ``median_fps``, for `published.frame_rate_table`."""
    totals = rates[rates["step"] == "total"]
    return totals[["method", "fps"]].rename(columns={"fps": "median_fps"}).reset_index(drop=True)


def rate_table(rates: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method and step, and one for the whole (``total``), over scans.

    Args:
        rates: of `frame_rates`.

    Returns:
        Columns ``method``, ``step``, ``ms`` (median), ``low``, ``high`` (quartiles), in ms a
        scan; for ``total`` also ``fps``, scans a second at the median, else NaN.
    """
    totals = rates.groupby(["method", "scan"], sort=False)["seconds"].sum().reset_index()
    every = pd.concat([rates, totals.assign(step="total")], ignore_index=True)
    rows = []
    # Methods come in another order for every scan; the table has one.
    order = [m for m in METHODS if m in set(every["method"])]
    for method, step in itertools.product(order, (*STEPS, "total")):
        of_step = every[(every["method"] == method) & (every["step"] == step)]
        low, middle, high = np.percentile(1000 * of_step["seconds"], (25, 50, 75))
        row = {"method": method, "step": step, "ms": middle, "low": low, "high": high}
        rows.append(row | {"fps": 1000 / middle if step == "total" else float("nan")})
    return pd.DataFrame(rows)


def machine(device: str) -> dict[str, Any]:
    """Return on what the frame rates were measured."""
    where = pick_device(device)
    on_gpu = where.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(where) if on_gpu else platform.machine() + " CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
