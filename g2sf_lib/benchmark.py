"""Scores of the test scans by G2SF and its peers, each computed and measured once and kept.

A file a method and seed, in a folder named by the hash of all that it depends on: run again,
with more methods, seeds or categories, only what is missing is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib import evaluation
from g2sf_lib.baselines import BANKS, Baseline, ScanScore, find_nearest
from g2sf_lib.baselines import METHODS as PEERS
from g2sf_lib.baselines.banks import RULES
from g2sf_lib.config import Config, ConfigError, listed, scans_dir, stage_dir
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared
from g2sf_lib.detector import G2SF, counted_cells, pick_device, to_prediction
from g2sf_lib.experiments import (
    Banks,
    checked_categories,
    fitted,
    load_banks,
    load_features,
    recorded,
)
from g2sf_lib.features import PackedPatches, foreground_features
from g2sf_lib.fusion import aggregate
from g2sf_lib.memory import Rows
from g2sf_lib.storage import read_described, write_described

METHODS = ("g2sf", "w1", "other_pastes", *PEERS)
OURS = ("g2sf", "w1", "other_pastes")  # the method, its control, a variant; the rest are peers
SIMPLE = ("g2sf", "w1", "rgb", "pcd", "sum", "max", "concat")  # what chapter 04 compares
SEEDED = (*OURS, "m3dm", "cfm", "ast")  # the others are the same whatever the seed
TRAINED = ("cfm", "ast")  # peers with networks of their own
SILHOUETTES = ("exclude", "count")
NUM_RESAMPLES = 1000
RESAMPLED = ("i_auroc", "aupro_30", "aupro_1")  # metrics whose error over images is known


def checked_methods(config: Config, methods: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the methods asked for in the order of the tables; None: all.

    Profile `paper` leaves "other_pastes" out unless it is asked for: it would train as long again.

    Args:
        config: of the run.
        methods: a list, or a text that holds one (see `config.listed`).

    Raises:
        ConfigError: for one that does not exist, or no list.
    """
    if methods is None:
        return tuple(m for m in METHODS if m != "other_pastes" or config.profile != "paper")
    asked = listed(methods)
    is_list = isinstance(asked, (list, tuple)) and len(asked) > 0
    if not is_list or not all(method in METHODS for method in asked):
        raise ConfigError(f"methods is {asked!r}; expected a list of some of {', '.join(METHODS)}")
    return tuple(method for method in METHODS if method in asked)


def checked_seeds(seeds: Sequence[int] | str) -> tuple[int, ...]:
    """Return the seeds asked for, each once.

    Args:
        seeds: a list, or a text that holds one (see `config.listed`).

    Raises:
        ConfigError: when they are no list of whole numbers that are not negative.
    """
    asked = listed(seeds)
    is_list = isinstance(asked, (list, tuple)) and len(asked) > 0
    if not is_list or not all(type(seed) is int and seed >= 0 for seed in asked):
        raise ConfigError(f"seeds is {asked!r}; expected a list of whole numbers >= 0")
    return tuple(dict.fromkeys(asked))


def runs_of(methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Return (method, seed) of everything to be scored; without randomness the seed is 0."""
    return [(m, seed) for m in methods for seed in (seeds if m in SEEDED else (0,))]


class Split:
    """The scans of one split of a category; what is asked for is read or computed once.

    Args:
        config: of the run.
        split: "train", "validation", "synthetic_validation" or "test".
    """

    def __init__(self, config: Config, split: str):
        self.config, self.split = config, split
        self._nearest: dict[str, tuple[Tensor, Tensor]] = {}

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

    @cached_property
    def feat(self) -> dict[str, Rows]:
        """Mod -> (n, D_mod) of all cells, as extracted."""
        return foreground_features(self.patches)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of foreground cells of each scan."""
        return [int(p.foreground.sum()) for p in self.patches]

    def nearest(self, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return bank -> nearest prototype and distance of all cells."""
        missing = {name: self.stored.banks[name] for name in names if name not in self._nearest}
        feat = self.stored.standardiser(self.feat)
        self._nearest |= find_nearest(missing, feat, pick_device(self.config.device))
        return {name: self._nearest[name] for name in names}

    def _scans(self) -> Iterator:
        for path in list_prepared(scans_dir(self.config), self.config.category, self.split):
            yield load_prepared(path)  # one at a time: a hundred of them would take gigabytes

    @cached_property
    def truth(self) -> tuple[list[str], list[str], np.ndarray]:
        """Names, labels, and masks (N, map_size, map_size) bool of the scans."""
        names, labels, masks = [], [], []
        for scan in self._scans():
            names.append(scan.name)
            labels.append(scan.label)
            scoring = self.config.scoring
            masks.append(evaluation.resize_mask(scan.mask, scoring.map_size, scoring.mask_rule))
        return names, labels, np.stack(masks)

    @cached_property
    def lost_regions(self) -> int:
        """Marked regions that the published resizing of masks would let go."""
        size = self.config.scoring.map_size
        return sum(evaluation.lost_regions(scan.mask, size) for scan in self._scans())

    def depths(self, peer: Baseline) -> list[Tensor]:
        """Return the depth of each scan's cells as AST reads it."""
        return [peer.depth(scan) for scan in self._scans()]


class CellMaps(Mapping):
    """(method, seed) -> (N, map_size, map_size) score maps, made from cell scores when asked.

    Args:
        cells: (method, seed) -> (n,) scores of all foreground cells, scan after scan.
        patches: of the N scans.
        scoring: silhouette rule, map size, blur.
    """

    def __init__(self, cells: dict[tuple[str, int], Tensor], patches: Sequence, scoring):
        self.cells, self.patches, self.scoring = cells, patches, scoring

    def __iter__(self):
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, key: tuple[str, int]) -> np.ndarray:
        if key not in self.cells:
            raise KeyError(key)
        return np.stack([self.one(key, number) for number in range(len(self.patches))])

    def one(self, key: tuple[str, int], number: int) -> np.ndarray:
        """Return the score map of one scan."""
        part = self.cells[key].split(self._sizes)[number]
        return to_prediction(part, self.patches[number], self.scoring).score_map

    @cached_property
    def _sizes(self) -> list[int]:
        return [int(p.foreground.sum()) for p in self.patches]


@dataclass(frozen=True)
class Scores:
    """Scores of the test scans of one category by several methods.

    Attributes:
        names, labels: of the N scans; a label is "good" or a kind of defect.
        masks: (N, map_size, map_size) bool.
        maps: (method, seed) -> (N, map_size, map_size) float32.
        image: (method, seed, silhouette) -> (N,) image scores.
        normal: (method, seed) -> median pixel, on cells that count, and largest pixel of the
            score maps of validation scans, which are normal.
        resampled: (method, seed) -> metric of `RESAMPLED` -> its value in (NUM_RESAMPLES,)
            resamples of the images, the same ones for all methods.
    """

    names: list[str]
    labels: list[str]
    masks: np.ndarray
    maps: Mapping[tuple[str, int], np.ndarray]
    image: dict[tuple[str, int, str], np.ndarray]
    normal: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    resampled: dict[tuple[str, int], dict[str, np.ndarray]] = field(default_factory=dict)


def score_file(config: Config, method: str, seed: int) -> Path:
    """Return where scores and metrics of a method and seed are kept for the config's category."""
    stages = {"cfm": "cfm_scores", "ast": "ast_scores"}
    stages |= dict.fromkeys(("g2sf", "w1", "other_pastes"), "scores")
    of_seed = dataclasses.replace(config, seed=seed)
    if method == "other_pastes":
        of_seed = with_other_pastes(of_seed)
    return stage_dir(of_seed, stages.get(method, "bank_scores")) / f"{method}.json"


def with_other_pastes(config: Config) -> Config:
    """Return the config with the other kind of pastes: one-sided ones, or in both modalities."""
    other = "both" if config.synthesis.paste_in == "either" else "either"
    return dataclasses.replace(
        config, synthesis=dataclasses.replace(config.synthesis, paste_in=other)
    )


def fitted_peer(
    config: Config, method: str, train: Split, banks: Banks, progress: bool = False
) -> Baseline:
    """Return a peer fitted to the normal training scans of a category, from stored banks.

    Args:
        config: of the run; its seed is the peer's.
        method: one of `baselines.METHODS`.
        train: its training scans.
        banks: what the bank stage stored.
        progress: whether progress bars are shown. An interrupted training goes on.
    """
    peer = Baseline(method, config)
    peer.standardiser = banks.standardiser
    peer.calibration = banks.calibration if method in RULES else None
    peer.banks = {name: banks.banks[name] for name in BANKS[method]}
    if method == "m3dm":
        peer.fit_decision(train.patches, train.nearest(BANKS[method]))
    if method in TRAINED:
        folder = stage_dir(config, method)
        if not (folder / "baseline.json").exists():
            train_peer(peer, train, folder, progress)
            peer.save(folder)
        peer = Baseline.load(folder, config.device)
    return peer


def train_peer(
    peer: Baseline, train: Split, folder: Path | None = None, progress: bool = False
) -> None:
    """Train the networks of "cfm" or "ast" on the training scans of a category.

    Args:
        peer: with a standardiser.
        train: its training scans.
        folder: where checkpoints are kept, so that an interrupted training goes on.
        progress: whether a progress bar is shown.
    """
    if peer.method == "cfm":
        peer.fit_cfm(train.patches, folder and folder / "checkpoint.safetensors", progress)
    else:
        peer.fit_ast(train.patches, train.depths(peer), folder, progress)


def trained_detector(config: Config) -> G2SF:
    """Return the detector that 03 stored for the config's category and seed.

    Raises:
        FileNotFoundError: 03 has not run for them.
    """
    folder = stage_dir(config, "lspn")
    if not (folder / "detector.json").exists():
        raise FileNotFoundError(
            f"{folder}: no trained detector; expected it from 03_lspn_training with category "
            f"{config.category}, seed {config.seed} and the settings of this run"
        )
    detector = G2SF.load(folder, config.device)
    detector.config = config  # how it scores may be another way than when it was trained
    return detector


def _g2sf_scans(detector: G2SF, split: Split) -> dict[str, list[ScanScore]]:
    """Return what G2SF says of scans, and what it says with w = 1, which costs nothing more."""
    scores = detector.score_cells(split.feat)
    with torch.no_grad():
        plain = (scores.s * detector.metric.sigma()).sum(-1)
    both = {"g2sf": scores.cell_score}
    both["w1"] = aggregate(plain, split.config.scoring.aggregate)
    return {name: _as_scans(cells.cpu(), split) for name, cells in both.items()}


def _as_scans(cells: Tensor, split: Split) -> list[ScanScore]:
    """Return cell scores scan by scan; the image score is the largest that counts."""
    scans = []
    for part, p in zip(cells.split(split.sizes), split.patches, strict=True):
        counted = {rule: counted_cells(p, rule)[p.foreground] for rule in SILHOUETTES}
        image = {rule: float(part[counts].max()) for rule, counts in counted.items()}
        scans.append(ScanScore(part, image))
    return scans


def _scans_of(config: Config, method: str, train: Split, splits: Sequence[Split], progress: bool):
    """Return method -> a list of `ScanScore` for each split; G2SF brings its control along."""
    if method in ("g2sf", "w1"):
        detector = trained_detector(config)
        each = [_g2sf_scans(detector, split) for split in splits]
        return {name: [of_split[name] for of_split in each] for name in ("g2sf", "w1")}
    if method == "other_pastes":
        detector = fitted(with_other_pastes(config), progress)
        return {method: [_g2sf_scans(detector, split)["g2sf"] for split in splits]}
    peer = fitted_peer(config, method, train, splits[0].stored, progress)
    found = []
    for split in splits:
        depths = split.depths(peer) if method == "ast" else None
        nearest = split.nearest(BANKS[method])
        found.append(peer.score_scans(split.patches, depths, nearest, SILHOUETTES))
    return {method: found}


def measure(
    config: Config,
    truth: tuple[list[str], list[str], np.ndarray],
    maps: np.ndarray,
    image: dict[str, np.ndarray],
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Return every metric of one method on the test scans of one category.

    Args:
        config: of the run.
        truth: names, labels and masks of the N scans.
        maps: (N, map_size, map_size) by the configured silhouette rule.
        image: silhouette rule -> (N,) image scores.
        num_resamples: of the images; 0: no errors over images are estimated.

    Returns:
        A row a silhouette rule: ``i_auroc``, ``i_auroc_se`` (bootstrap over images, if any),
        ``i_auroc_<defect>``; pixel metrics (``p_auroc``, ``aupro_30`` ..., ``aupro_30_published``
        ...) only for the configured one, whose resampled metrics come second.
    """
    _, names, masks = truth
    labels = np.array([label != "good" for label in names])
    rows, resampled = [], {}
    for silhouette, scores in image.items():
        row = {"silhouette": silhouette, "i_auroc": evaluation.image_auroc(scores, labels)}
        if num_resamples:
            draw = np.random.default_rng([0, len(labels)])
            areas = evaluation.bootstrap_auroc(scores, labels, num_resamples, draw)
            row["i_auroc_se"] = float(areas.std())
        for kind in sorted(set(names) - {"good"}):
            chosen = np.isin(names, ["good", kind])
            row[f"i_auroc_{kind}"] = evaluation.image_auroc(scores[chosen], labels[chosen])
        if silhouette == config.scoring.silhouette:
            row["p_auroc"] = evaluation.pixel_auroc(maps, masks)
            for suffix, num in (("", None), ("_published", 100)):
                exact = evaluation.aupro(maps, masks, num_thresholds=num)
                row |= {f"aupro_{round(100 * at)}{suffix}": area for at, area in exact.items()}
            if not num_resamples:
                rows.append(row)
                continue
            draw = np.random.default_rng([0, len(labels)])
            both = evaluation.bootstrap_aupro(maps, masks, (0.3, 0.01), num_resamples, draw)
            resampled["i_auroc"] = areas
            resampled |= {f"aupro_{round(100 * at)}": areas for at, areas in both.items()}
        rows.append(row)
    return rows, resampled


def _normal_level(config: Config, scans: Sequence[ScanScore], split: Split) -> tuple[float, float]:
    """Return the median pixel of normal scans, on cells that count, and the largest of all."""
    size, inside, largest = config.scoring.map_size, [], 0.0
    for scan, p in zip(scans, split.patches, strict=True):
        score_map = to_prediction(scan.cells, p, config.scoring).score_map
        counted = counted_cells(p, config.scoring.silhouette).cpu().numpy().reshape(p.grid)
        inside.append(score_map[evaluation.resize_mask(counted, size)])
        largest = max(largest, float(score_map.max()))
    return float(np.median(np.concatenate(inside))), largest


def run_methods(
    config: Config, methods: Sequence[str], seeds: Sequence[int], progress: bool = True
) -> tuple[Scores, pd.DataFrame]:
    """Score and measure the test scans of one category; what was done before is read.

    CFM and AST are trained where they are not yet. All methods share cells, banks, calibration,
    silhouette rule and post-processing.

    Args:
        config: of the run.
        methods: some of `METHODS`; "other_pastes" is G2SF trained on pastes that change image,
            surface or both, which is not in the paper.
        seeds: of the methods in `SEEDED`; 03 has run for each of them if G2SF is asked for.
        progress: whether a progress bar is shown.

    Returns:
        The scores; and a row a method, seed and silhouette rule with the columns of `measure`
        and ``category``, ``method``, ``seed``.
    """
    train, validation, test = (Split(config, name) for name in ("train", "validation", "test"))
    runs, found = runs_of(methods, seeds), {}
    bar = tqdm(runs, desc=f"{config.category}: scores", disable=not progress)
    for method, seed in bar:
        bar.set_postfix_str(f"{method}, seed {seed}")
        path = score_file(config, method, seed)
        if not path.exists():
            of_seed = dataclasses.replace(config, seed=seed)
            scans = _scans_of(of_seed, method, train, (test, validation), progress)
            for name, (of_test, of_normal) in scans.items():
                _keep(
                    config, name, seed, test, of_test, _normal_level(config, of_normal, validation)
                )
        found[method, seed] = read_described(path)
    return _gather(config, test, found)


def _keep(config, method: str, seed: int, test: Split, scans: list[ScanScore], normal) -> None:
    """Measure what a method says of the test scans, and store it."""
    cells = torch.cat([scan.cells for scan in scans])
    image = {rule: np.array([scan.image[rule] for scan in scans]) for rule in SILHOUETTES}
    maps = CellMaps({(method, seed): cells}, test.patches, config.scoring)[method, seed]
    rows, resampled = measure(config, test.truth, maps, image)
    known = {"category": config.category, "method": method, "seed": seed}
    known["lost_regions"] = test.lost_regions
    tensors = {"cells": cells}
    tensors |= {f"image.{rule}": torch.from_numpy(values) for rule, values in image.items()}
    tensors |= {f"resampled.{name}": torch.from_numpy(x) for name, x in resampled.items()}
    described = {"rows": [known | row for row in rows], "normal": list(normal)}
    write_described(score_file(config, method, seed), described, tensors)


def _gather(config: Config, test: Split, found: dict) -> tuple[Scores, pd.DataFrame]:
    """Return the scores and metrics of what was read."""
    names, labels, masks = test.truth
    cells = {key: tensors["cells"] for key, (_, tensors) in found.items()}
    image = {
        (*key, rule): tensors[f"image.{rule}"].numpy()
        for key, (_, tensors) in found.items()
        for rule in SILHOUETTES
    }
    normal = {key: tuple(content["normal"]) for key, (content, _) in found.items()}
    resampled = {
        key: {name: tensors[f"resampled.{name}"].numpy() for name in RESAMPLED}
        for key, (_, tensors) in found.items()
    }
    rows = [row for content, _ in found.values() for row in content["rows"]]
    maps = CellMaps(cells, test.patches, config.scoring)
    return Scores(names, labels, masks, maps, image, normal, resampled), pd.DataFrame(rows)


def run_scores(config: Config, seeds: Sequence[int]) -> tuple[Scores, pd.DataFrame]:
    """Score a category by G2SF and the simple fusions, for chapter 04, and record it."""
    with recorded(config, "scores") as result:
        scores, table = run_methods(config, SIMPLE, seeds)
        result["seeds"] = list(seeds)
    return scores, table


@dataclass(frozen=True)
class Comparison:
    """All categories, scored by all methods.

    Attributes:
        config: of the run.
        categories, methods, seeds: what was compared.
        scores: category -> `Scores`.
        table: a row a category, method, seed and silhouette rule, as `run_methods`.
    """

    config: Config
    categories: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: dict[str, Scores]
    table: pd.DataFrame


def run_benchmark(
    config: Config,
    categories: Sequence[str] | str | None = None,
    methods: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
) -> Comparison:
    """Score every category by every method, and leave a record in each category's folder.

    Args:
        config: of the run; its category is not read.
        categories: to compare; None: all that are there.
        methods: some of `METHODS`; None: all.
        seeds: training seeds. Of all three, a text that holds a list will do.

    Raises:
        ConfigError: for unknown methods or seeds, before anything runs.
        FileNotFoundError: naming the stage that has not run.
    """
    methods, seeds = checked_methods(config, methods), checked_seeds(seeds)
    categories = checked_categories(config, categories)
    scores, tables = {}, []
    for category in categories:
        of_category = dataclasses.replace(config, category=category)
        with recorded(of_category, "benchmark", hash_of="scores") as result:
            scores[category], table = run_methods(of_category, methods, seeds)
            result |= {"methods": list(methods), "seeds": list(seeds)}
            tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    return Comparison(config, tuple(categories), methods, seeds, scores, table)
