"""How many scans a second each method manages here, and where the time goes (Table 6)."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from g2sf_lib.baselines import METHODS, Scans, Scorer
from g2sf_lib.benchmark import Comparison, Split, fitted_method
from g2sf_lib.config import Config, ConfigError
from g2sf_lib.datasets import Sample
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared
from g2sf_lib.detector import pick_device, to_prediction
from g2sf_lib.experiments import Banks
from g2sf_lib.features import FeatureExtractor, Patches
from g2sf_lib.stages import scans_dir

STEPS = ("features", "neighbours", "fusion", "post-processing")


def _counted(step: str, work: Callable) -> Callable:
    """Return a method of `Scans` that counts the time it takes."""
    return lambda scan, asked: scan.timed(step, work, scan, asked)


class TimedScan(Scans):
    """One scan that counts in ``spent``, step -> seconds, how long what a method asks takes."""

    def __init__(self, config: Config, patches: Patches, stored: Banks, sample: Sample):
        super().__init__(config, [patches], stored, [sample])
        self.spent = dict.fromkeys(STEPS, 0.0)
        _ = self.standard  # not counted

    def timed(self, step: str, work: Callable, *arguments) -> Any:
        """Return what some work gives; count its time, but for what it asks of the scan."""
        before, start = sum(self.spent.values()), self._clock()
        result = work(*arguments)
        self.spent[step] += self._clock() - start - (sum(self.spent.values()) - before)
        return result

    def _clock(self) -> float:
        """Return the time when all that was asked of the device is done."""
        if pick_device(self.config.device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    nearest = _counted("neighbours", Scans.nearest)
    neighbours = _counted("neighbours", Scans.neighbours)
    depths = _counted("features", Scans.depths)

    def score(self, scorer: Scorer) -> None:
        """Have a method score the scan, from its features to its map."""
        scoring = self.config.scoring
        cells, _ = self.timed("fusion", scorer.score, self, [scoring.silhouette])
        self.timed("post-processing", to_prediction, cells, self.patches[0], scoring)


def frame_rates(
    config: Config, methods: Sequence[str], seed: int, num_scans: int = 20, num_warm_up: int = 3
) -> pd.DataFrame:
    """Return ``seconds`` of each ``method``, ``scan`` and ``step`` of `STEPS`, a row each.

    Preprocessed test scans come one at a time, again where there are too few. All methods see a
    scan before the next one comes, each scan in another order, so that whatever else the machine
    does meets all of them alike. Variants of another method are left out.

    Source: Section 4.3, Table 6, which states neither the batch nor what is counted.
    """
    config = config.replace(seed=seed)
    timed = [method for method in methods if METHODS[method].variant_of is None]
    train = Split(config, "train")
    scorers = {method: fitted_method(config, method, train) for method in timed}
    extract = FeatureExtractor(config.features, pick_device(config.device))
    paths = list_prepared(scans_dir(config), config.category, "test")
    rows = []
    for number in tqdm(range(num_warm_up + num_scans), desc="frame rates"):
        sample = load_prepared(paths[number % len(paths)])
        patches = extract(sample)
        spent = {}
        for mod, read in (("rgb", extract.colour), ("pcd", extract.points)):
            scan = TimedScan(config, patches, train.stored, sample)
            scan.timed("features", read, sample)
            spent[mod] = scan.spent["features"]
        first = number % len(timed)
        for method in timed[first:] + timed[:first]:
            scan = TimedScan(config, patches, train.stored, sample)
            scan.score(scorers[method])
            scan.spent["features"] += sum(spent[mod] for mod in METHODS[method].modalities)
            known = {"method": method, "scan": number - num_warm_up}
            rows += [known | {"step": step, "seconds": scan.spent[step]} for step in STEPS]
    return pd.DataFrame(rows).query("scan >= 0").reset_index(drop=True)


def rate_table(rates: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method and step of `frame_rates`, and one for the whole (``total``).

    ``ms`` is the median over scans, ``low`` and ``high`` are quartiles; ``fps`` is of the total.
    """
    totals = rates.groupby(["method", "scan"])["seconds"].sum().reset_index()
    every = pd.concat([rates, totals.assign(step="total")])
    found = every.groupby(["method", "step"])["seconds"].quantile([0.5, 0.25, 0.75]).unstack()
    found = (1000 * found).set_axis(["ms", "low", "high"], axis=1)
    order = pd.MultiIndex.from_product([METHODS, (*STEPS, "total")], names=["method", "step"])
    table = found.reindex(order).dropna().reset_index()
    return table.assign(fps=(1000 / table["ms"]).where(table["step"] == "total"))


def measure_rates(comparison: Comparison, num_scans: int) -> pd.DataFrame | None:
    """Return `rate_table` on the first category; None for no scan, or nothing but variants."""
    if type(num_scans) is not int or num_scans < 0:
        raise ConfigError(f"frame_scans is {num_scans!r}; expected a whole number >= 0")
    if not num_scans or all(METHODS[method].variant_of for method in comparison.methods):
        return None
    config = comparison.config.replace(category=comparison.categories[0])
    return rate_table(frame_rates(config, comparison.methods, comparison.seeds[0], num_scans))


def machine(device: str) -> dict[str, Any]:
    """Return on what the frame rates were measured."""
    where, cpu = pick_device(device), platform.machine() + " CPU"
    return {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
