"""Scores of the test scans by G2SF and its peers: a file a method and seed, computed once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib import evaluation
from g2sf_lib.baselines import METHODS, Scans, Scorer
from g2sf_lib.baselines.scans import SILHOUETTES
from g2sf_lib.cells import counted_cells
from g2sf_lib.config import Config, ConfigError, ScoringConfig, listed
from g2sf_lib.datasets import Sample
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared
from g2sf_lib.detector import to_prediction
from g2sf_lib.experiments import (
    PASTED_ON,
    Banks,
    categories_of,
    checked_categories,
    fitted,
    load_banks,
    load_features,
    synthetic_scans,
)
from g2sf_lib.features import PackedPatches
from g2sf_lib.stages import SCORES, recorded, scans_dir, stage_dir
from g2sf_lib.store import read_described, write_described

SEEDED = tuple(name for name, row in METHODS.items() if row.is_seeded)
OURS = tuple(name for name, row in METHODS.items() if row.is_ours)
SIMPLE = ("g2sf", "w1", "rgb", "pcd", "sum", "max", "concat")  # what chapter 04 compares
NUM_RESAMPLES = 1000
RESAMPLED = ("i_auroc", "aupro_30", "aupro_1")  # metrics whose error over images is known


def _checked(name: str, given: Any, is_known: Callable[[Any], bool], expected: str) -> list:
    asked = listed(given)
    if not isinstance(asked, (list, tuple)) or not asked or not all(map(is_known, asked)):
        raise ConfigError(f"{name} is {asked!r}; expected a list of {expected}")
    return asked


def checked_methods(config: Config, methods: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the methods asked for (see `config.listed`), as ordered in `METHODS`; None: all."""
    names = tuple(METHODS)
    if methods is None:
        return tuple(m for m in names if METHODS[m].is_in_paper or config.profile != "paper")
    asked = _checked("methods", methods, names.__contains__, f"some of {', '.join(names)}")
    return tuple(method for method in names if method in asked)


def checked_seeds(seeds: Sequence[int] | str) -> tuple[int, ...]:
    """Return the seeds asked for, each once; they come, and are refused, as methods are."""
    asked = _checked("seeds", seeds, lambda s: type(s) is int and s >= 0, "whole numbers >= 0")
    return tuple(dict.fromkeys(asked))


def runs_of(methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Return (method, seed) of everything to be scored; without randomness the seed is 0."""
    return [(m, seed) for m in methods for seed in (seeds if METHODS[m].is_seeded else (0,))]


class Split(Scans):
    """The scans of a split of a category; pasted points come from `categories` (None: all)."""

    def __init__(self, config: Config, split: str, categories: Sequence[str] | None = None):
        self.config, self.split, self.categories = config, split, categories

    @cached_property
    def _features(self) -> tuple[list[PackedPatches], list[Tensor]]:
        return load_features(self.config, self.split)

    @property
    def patches(self) -> list[PackedPatches]:
        """Features, a scan each."""
        return self._features[0]

    @property
    def cell_labels(self) -> list[Tensor]:
        """(cells,) bool a scan, True on anomalous cells."""
        return [lab.any(1) if lab.ndim == 2 else lab for lab in self._features[1]]

    @cached_property
    def stored(self) -> Banks:
        """Banks and their calibration."""
        return load_banks(self.config)

    @property
    def samples(self) -> Iterator[Sample]:
        """The preprocessed scans, one at a time: a hundred of them would take gigabytes."""
        if self.split in PASTED_ON:
            places = self.categories or categories_of(self.config)
            return synthetic_scans(self.config, PASTED_ON[self.split], places)
        paths = list_prepared(scans_dir(self.config), self.config.category, self.split)
        return map(load_prepared, paths)

    @cached_property
    def truth(self) -> tuple[list[str], list[str], np.ndarray]:
        """Names, labels, and masks (N, map_size, map_size) bool of the scans."""
        size, rule = self.config.scoring.map_size, self.config.scoring.mask_rule
        each = ((s.name, s.label, evaluation.resize_mask(s.mask, size, rule)) for s in self.samples)
        names, labels, masks = map(list, zip(*each, strict=True))
        return names, labels, np.stack(masks)


class CellMaps(Mapping):
    """(method, seed) -> (N, map_size, map_size) maps, made of (n,) scores of cells when asked."""

    def __init__(
        self, cells: dict[Any, Tensor], patches: Sequence[PackedPatches], scoring: ScoringConfig
    ):
        self.cells, self.patches, self.scoring = cells, patches, scoring
        self.sizes = [int(p.foreground.sum()) for p in patches]

    def __iter__(self):
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, key: tuple[str, int]) -> np.ndarray:
        return np.stack([self.one(key, number) for number in range(len(self.patches))])

    def one(self, key: tuple[str, int], number: int) -> np.ndarray:
        """Return the score map of one scan."""
        part = self.cells[key].split(self.sizes)[number]
        return to_prediction(part, self.patches[number], self.scoring).score_map


@dataclass(frozen=True)
class Scores:
    """Scores of the N test scans of one category by several methods."""

    names: list[str]
    labels: list[str]  # "good", or a kind of defect
    masks: np.ndarray  # (N, map_size, map_size) bool
    maps: Mapping[tuple[str, int], np.ndarray]  # (method, seed) -> (N, map_size, map_size) float32
    image: dict[tuple[str, int, str], np.ndarray]  # (method, seed, silhouette) -> (N,)
    # (method, seed) -> `_normal_level` of the validation scans
    normal: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    # (method, seed) -> metric of `RESAMPLED` -> (NUM_RESAMPLES,), the same images for all methods
    resampled: dict[tuple[str, int], dict[str, np.ndarray]] = field(default_factory=dict)


def score_file(config: Config, method: str, seed: int) -> Path:
    """Return where scores and metrics of a method and seed are kept for the config's category."""
    row = METHODS[method]
    return stage_dir(row.settings(config.replace(seed=seed)), row.score_stage) / f"{method}.json"


def fitted_method(config: Config, method: str, train: Split, progress: bool = False) -> Scorer:
    """Return a method fitted to the normal training scans of a category, read where it is kept."""
    row = METHODS[method]
    config = row.settings(config)
    scorer = row.scorer(config, row.banks)
    if row.is_ours:
        _ = train.stored  # says which notebook has not run
        scorer.detector = fitted(config, progress)
        return scorer
    if row.stage is None:
        return scorer.fit(train)
    folder = stage_dir(config, row.stage)
    if not (folder / "method.json").exists():
        scorer.fit(train, folder, progress).save(folder)
    return scorer.load(folder)


def measure(
    config: Config,
    truth: tuple[list[str], list[str], np.ndarray],
    maps: np.ndarray,
    image: dict[str, np.ndarray],
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Return a row of metrics a silhouette rule, and the resampled ones of the configured rule.

    `truth` are names, labels and masks of N test scans, `maps` (N, map_size, map_size), `image`
    silhouette rule -> (N,) scores. Columns are ``i_auroc``, ``i_auroc_se`` (bootstrap, if any),
    ``i_auroc_<defect>``; for the configured rule ``p_auroc``, ``aupro_30``, ``aupro_30_published``
    and so on.
    """
    names, masks = np.array(truth[1]), truth[2]
    labels, rows, resampled = names != "good", [], {}
    for silhouette, scores in image.items():
        row = {"silhouette": silhouette, "i_auroc": evaluation.image_auroc(scores, labels)}
        if num_resamples:
            draw = np.random.default_rng([0, len(labels)])
            areas = evaluation.bootstrap_auroc(scores, labels, num_resamples, draw)
            row["i_auroc_se"] = float(areas.std())
        for kind in sorted(set(truth[1]) - {"good"}):
            chosen = np.isin(names, ["good", kind])
            row[f"i_auroc_{kind}"] = evaluation.image_auroc(scores[chosen], labels[chosen])
        rows.append(row)
        if silhouette != config.scoring.silhouette:
            continue
        row["p_auroc"] = evaluation.pixel_auroc(maps, masks)
        for suffix, num in (("", None), ("_published", 100)):
            areas_at = evaluation.aupro(maps, masks, num_thresholds=num)
            row |= {f"aupro_{round(100 * at)}{suffix}": area for at, area in areas_at.items()}
        if num_resamples:
            draw = np.random.default_rng([0, len(labels)])
            both = evaluation.bootstrap_aupro(maps, masks, (0.3, 0.01), num_resamples, draw)
            resampled = {"i_auroc": areas, "aupro_30": both[0.3], "aupro_1": both[0.01]}
    return rows, resampled


def run_methods(
    config: Config, methods: Sequence[str], seeds: Sequence[int], progress: bool = True
) -> tuple[Scores, pd.DataFrame]:
    """Return scores of a category's test scans, and rows of `measure`; what was done is read."""
    splits = [Split(config, name) for name in ("train", "validation", "test")]
    cells, image, normal, resampled, rows = {}, {}, {}, {}, []
    bar = tqdm(runs_of(methods, seeds), desc=f"{config.category}: scores", disable=not progress)
    for key in bar:
        bar.set_postfix_str("{}, seed {}".format(*key))
        path = score_file(config, *key)
        if not path.exists():
            _score(path, config.replace(seed=key[1]), key[0], splits, progress)
        content, tensors = read_described(path)
        cells[key], normal[key] = tensors["cells"], tuple(content["normal"])
        image |= {(*key, rule): tensors[f"image.{rule}"].numpy() for rule in SILHOUETTES}
        resampled[key] = {name: tensors[f"resampled.{name}"].numpy() for name in RESAMPLED}
        rows += content["rows"]
    maps = CellMaps(cells, splits[-1].patches, config.scoring)
    return Scores(*splits[-1].truth, maps, image, normal, resampled), pd.DataFrame(rows)


def _score(path: Path, config: Config, method: str, splits: list[Split], progress: bool) -> None:
    """Score the test scans by a method, measure what it says, and store it."""
    train, validation, test = splits
    scorer = fitted_method(config, method, train, progress)
    cells, image = scorer.score(test)
    maps = CellMaps({method: cells}, test.patches, config.scoring)[method]
    rows, resampled = measure(config, test.truth, maps, image)
    known = {"category": config.category, "method": method, "seed": config.seed}
    size = config.scoring.map_size
    known["lost_regions"] = sum(evaluation.lost_regions(scan.mask, size) for scan in test.samples)
    normal = _normal_level(config, scorer.score_cells(validation), validation)
    found = {f"image.{rule}": values for rule, values in image.items()}
    found |= {f"resampled.{name}": values for name, values in resampled.items()}
    tensors = {"cells": cells} | {name: torch.from_numpy(x) for name, x in found.items()}
    write_described(path, {"rows": [known | row for row in rows], "normal": normal}, tensors)


def _normal_level(config: Config, cells: Tensor, split: Split) -> list[float]:
    """Return the median pixel of normal scans, on cells that count, and the largest of all."""
    patches, scoring = split.patches, config.scoring
    maps = CellMaps({0: cells}, patches, scoring)[0]
    inside = (counted_cells(p, scoring.silhouette).view(p.grid).cpu().numpy() for p in patches)
    inside = [evaluation.resize_mask(one, scoring.map_size) for one in inside]
    return [float(np.median(maps[np.stack(inside)])), float(maps.max())]


def run_scores(config: Config, seeds: Sequence[int]) -> tuple[Scores, pd.DataFrame]:
    """Score a category by G2SF and the simple fusions, for chapter 04, and record it."""
    with recorded(config, "scores") as result:
        result["seeds"] = list(seeds)
        return run_methods(config, SIMPLE, seeds)


@dataclass(frozen=True)
class Comparison:
    """All categories, scored by all methods."""

    config: Config
    categories: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: dict[str, Scores]  # of each category
    table: pd.DataFrame  # a row a category, method, seed and silhouette rule, as `run_methods`


def run_benchmark(
    config: Config,
    categories: Sequence[str] | str | None = None,
    methods: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
) -> Comparison:
    """Score every category by every method (None: all); leave a record in each one's folder."""
    methods, seeds = checked_methods(config, methods), checked_seeds(seeds)
    categories = checked_categories(config, categories)
    scores, tables = {}, []
    for category in categories:
        of_category = config.replace(category=category)
        with recorded(of_category, "benchmark", SCORES) as result:
            scores[category], table = run_methods(of_category, methods, seeds)
            result |= {"methods": list(methods), "seeds": list(seeds)}
            tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    return Comparison(config, tuple(categories), methods, seeds, scores, table)
