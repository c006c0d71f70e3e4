"""The stages of a run, each a function of one config, that goes on where it was interrupted."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.baselines import Calibration, fit_concat_bank
from g2sf_lib.cells import Cells, counted_cells, labelled_cells, labelled_scans, pasted_patches
from g2sf_lib.config import CATEGORIES, MODALITIES, Config, ConfigError, listed
from g2sf_lib.datasets import DATASETS, SPLITS, Sample, category_names
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared, prepare
from g2sf_lib.detector import G2SF, bank_tensors, banks_from, pick_device, query_banks
from g2sf_lib.features import (
    FeatureExtractor,
    PackedPatches,
    cell_labels,
    foreground_features,
    load_patches,
    save_patches,
)
from g2sf_lib.fusion import Metric
from g2sf_lib.memory import MemoryBank, Rows, Standardiser
from g2sf_lib.stages import PASTES, folder_name, raw_dir, recorded, scans_dir, stage_dir
from g2sf_lib.store import alone_in, read_described, read_tensors, write_described, write_tensors
from g2sf_lib.synthesis import synthesise_set
from g2sf_lib.training import best_row

PASTED_ON = {"synthetic": "train", "synthetic_validation": "validation"}
SYNTHETIC_SEED = 0  # all training seeds share their synthetic anomalies


def categories_of(config: Config) -> tuple[str, ...]:
    """Return the categories of a run, in the order of its tables; of real data what is there."""
    if config.dataset == "procedural":
        return ("cookie", "gland") if config.profile == "smoke" else CATEGORIES["procedural"]
    return category_names(config.dataset, raw_dir(config))


def checked_categories(config: Config, categories: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the categories asked for, a list or a text that holds one; None: all there are."""
    known, asked = categories_of(config), listed(categories)
    if asked is None:
        return known
    if not isinstance(asked, (list, tuple)) or not asked or not all(c in known for c in asked):
        raise ConfigError(f"categories is {asked!r}; expected a list of some of {', '.join(known)}")
    return tuple(category for category in known if category in asked)


def run_data(config: Config, categories: Sequence[str], workers: int = 1) -> dict[str, int]:
    """Render (procedural) and preprocess scans, and return category -> how many there are."""
    with recorded(config, "data") as result:
        raw, scans, dataset = raw_dir(config), scans_dir(config), config.dataset
        if dataset == "procedural":
            from g2sf_lib.datasets.procedural import generate

            generate(raw, config.data, categories, workers=workers)
        prepare(raw, scans, categories, config.preprocess, workers=workers, dataset=dataset)
        for category in categories:
            paths = [path for split in SPLITS for path in list_prepared(scans, category, split)]
            result[category] = len(paths)
    return result


def point_sources(config: Config, categories: Sequence[str]) -> list[Path]:
    """Return training scans of every category whose points are pasted (Section 3.7)."""
    draw = np.random.default_rng([SYNTHETIC_SEED, 1])
    wanted = config.synthesis.sources_per_category or DATASETS[config.dataset].num_sources
    chosen = []
    for category in listed(config.synthesis.pasted_from) or categories:
        paths = list_prepared(scans_dir(config), category, "train")
        num = min(wanted, len(paths))
        chosen += [paths[i] for i in sorted(draw.choice(len(paths), num, replace=False))]
    return chosen


def synthetic_scans(
    config: Config,
    split: str,
    categories: Sequence[str],
    is_wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[Sample]:
    """Yield the wanted synthetic anomalies on scans of a split, the same ones on every call.

    Those on "train" are trained on; pasted points come from `categories`.
    """
    settings, is_training = config.synthesis, split == "train"
    num = settings.num_synthetic if is_training else settings.num_synthetic_validation
    seed = SYNTHETIC_SEED if is_training else SYNTHETIC_SEED + 1
    targets, points = scan_paths(config, split), point_sources(config, categories)
    return synthesise_set(targets, targets, points, num, config.category, settings, seed, is_wanted)


def patch_file(config: Config, split: str, name: str) -> Path:
    """Return where the patches of a scan are kept."""
    flat = name.removeprefix(f"{split}/").replace("/", "_")
    stage = "pastes" if split in PASTED_ON else "features"
    return stage_dir(config, stage) / split / f"{folder_name(flat)}.safetensors"


def scan_paths(config: Config, split: str) -> list[Path]:
    """Return the files of the preprocessed scans of a split."""
    return list_prepared(scans_dir(config), config.category, split)


def patch_files(config: Config, split: str) -> list[Path]:
    """Return where the patches of the scans of a split, or of `PASTED_ON`, are kept."""
    if split in PASTED_ON:
        names = [f"{number:04d}" for number in range(getattr(config.synthesis, f"num_{split}"))]
    else:
        names = [f"{path.parent.name}/{path.stem}" for path in scan_paths(config, split)]
    return [patch_file(config, split, name) for name in names]


def run_features(config: Config, categories: Sequence[str]) -> dict[str, int]:
    """Extract and store the patches of all splits and of the synthetic anomalies.

    Returns:
        split -> number of scans; "pastes_without_cell": synthetic scans without an anomalous cell.
    """
    with recorded(config, "features", PASTES) as result:
        extract = FeatureExtractor(config.features, pick_device(config.device))
        for split in ("train", "validation", "test", *PASTED_ON):
            result[split] = extract_split(config, split, categories, extract)
        pasted = [labels for split in PASTED_ON for labels in load_features(config, split)[1]]
        result["pastes_without_cell"] = sum(not labels.any() for labels in pasted)
    return result


def extract_split(
    config: Config, split: str, categories: Sequence[str], extract: FeatureExtractor
) -> int:
    """Extract and store the patches of a split that are not there yet; return how many it has."""
    files, of_pastes = patch_files(config, split), split in PASTED_ON
    is_missing = [not file.exists() for file in files]
    missing = list(itertools.compress(files, is_missing))
    if of_pastes:
        samples = synthetic_scans(config, PASTED_ON[split], categories, is_missing.__getitem__)
    else:
        samples = map(load_prepared, itertools.compress(scan_paths(config, split), is_missing))
    bar = tqdm(missing, desc=split, total=len(files), initial=len(files) - len(missing))
    for file, sample in zip(bar, samples, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        if of_pastes:
            # Those on validation scans stand for test scans: all their cells are scored.
            whole = split == "synthetic_validation"
            save_patches(file, *pasted_patches(sample, extract, config, whole))
        else:
            save_patches(file, extract(sample), cell_labels(sample.mask, config.features.grid_size))
    return len(files)


def load_features(config: Config, split: str) -> tuple[list[PackedPatches], list[Tensor]]:
    """Return patches (mapped from the disk) and cell labels of a split, in the order of the scans.

    Labels are (cells,) bool, True on anomalous cells; of `PASTED_ON` (cells, M), in which modality.
    """
    files = patch_files(config, split)
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"{file.parent}: features are missing; expected them from 01_feature_extraction "
                f"with the same parameters (profile {config.profile}, category {config.category})"
            )
    loaded = [load_patches(file) for file in files]
    return [patches for patches, _ in loaded], [labels for _, labels in loaded]


@dataclasses.dataclass(frozen=True)
class Banks:
    """What the bank stage stores: scaling, banks (both modalities, "concat"), calibration."""

    standardiser: Standardiser
    banks: dict[str, MemoryBank]
    calibration: Calibration


def run_bank(config: Config) -> Banks:
    """Build and calibrate all banks, and look up the neighbours of all cells trained on."""
    with recorded(config, "bank") as result:
        banks = built_banks(config, with_concat=True, progress=True)
        result |= {name: len(bank.prototypes) for name, bank in banks.banks.items()}
        result["training_cells"] = len(training_cells(config, banks, progress=True))
    return banks


def built_banks(config: Config, with_concat: bool = False, progress: bool = False) -> Banks:
    """Return the banks of a category, built (by one process at a time) if they are not there."""
    folder = stage_dir(config, "bank")
    path, concat_path = folder / "banks.json", folder / "concat.json"
    with alone_in(folder):
        if not path.exists():
            detector = G2SF(config)
            detector.fit_bank(load_features(config, "train")[0], progress)
            normal = foreground_features(load_features(config, "validation")[0])
            normal = detector.standardiser(normal)
            distance = query_banks(detector.banks, normal, 1, detector.device)[1][:, 0]
            calibration = Calibration.fit(distance)
            tensors = bank_tensors(detector.banks)
            tensors |= {"calibration.mean": calibration.mean, "calibration.std": calibration.std}
            described = {"standardiser": dataclasses.asdict(detector.standardiser)}
            write_described(path, described, tensors)
        if with_concat and not concat_path.exists():
            train = foreground_features(load_features(config, "train")[0])
            standard = load_banks(config).standardiser(train)
            concat = fit_concat_bank(standard, config.bank, progress, pick_device(config.device))
            write_described(concat_path, {}, bank_tensors({"concat": concat}))
    return load_banks(config)


def training_cells(config: Config, banks: Banks | None = None, progress: bool = False) -> Cells:
    """Return the labelled cells that LSPN is trained on, with their 2k + 1 neighbourhoods."""
    device, files = pick_device(config.device), patch_files(config, "synthetic")
    if not all(file.exists() for file in files):
        with alone_in(files[0].parent):
            extract = FeatureExtractor(config.features, device)
            extract_split(config, "synthetic", categories_of(config), extract)
    normal, (pasted, labels) = load_features(config, "train")[0], load_features(config, "synthetic")
    is_untouched = config.synthesis.normal_cells == "untouched"
    scans = labelled_scans(normal, pasted, labels, is_untouched)
    banks = load_banks(config) if banks is None else banks
    folder = stage_dir(config, "cells") / f"{2 * config.model.k + 1}-nearest"
    folder.mkdir(parents=True, exist_ok=True)
    args = (config, banks.standardiser, banks.banks, scans, normal, device)
    return labelled_cells(*args, folder=folder, progress=progress)


def load_banks(config: Config) -> Banks:
    """Return what `run_bank` stored."""
    path = stage_dir(config, "bank") / "banks.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not there; expected it from 02_memory_bank with the same parameters "
            f"(profile {config.profile}, category {config.category})"
        )
    content, tensors = read_described(path)
    banks, concat_path = banks_from(tensors), path.with_name("concat.json")
    if concat_path.exists():
        banks |= banks_from(read_described(concat_path)[1])
    calibration = Calibration(tensors["calibration.mean"], tensors["calibration.std"])
    return Banks(Standardiser(**content["standardiser"]), banks, calibration)


def run_lspn(config: Config) -> G2SF:
    """Train LSPN and sigma on the synthetic anomalies, or return the stored detector."""
    load_banks(config)  # says which notebook has not run
    with recorded(config, "lspn") as result:
        detector = fitted(config, progress=True)
        result["detector"] = str(stage_dir(config, "lspn"))
        result["best_epoch"] = best_epoch(detector)
    return detector


def fitted(config: Config, progress: bool = False) -> G2SF:
    """Return the detector of a config, trained (and its banks built) where it is not there yet.

    Whoever asks for the same settings gets the same stored training. An interrupted one goes on.
    """
    folder = stage_dir(config, "lspn")
    if not (folder / "detector.json").exists():
        with alone_in(folder):
            if not (folder / "detector.json").exists():
                _train(config, folder, progress)
    detector = G2SF.load(folder, config.device)
    detector.config = config  # how it scores may be another way than when it was trained
    return detector


def _train(config: Config, folder: Path, progress: bool) -> None:
    """Train and store the detector of a config."""
    detector, kept = G2SF(config), kept_epochs(config.training.epochs)
    stored = built_banks(config, progress=progress)
    detector.standardiser = stored.standardiser
    detector.banks = {mod: stored.banks[mod] for mod in MODALITIES}

    def keep(epoch: int, metric: Metric) -> None:
        if epoch in kept:
            write_tensors(epoch_file(config, epoch), metric.state_dict())

    cells = training_cells(config, stored, progress)
    detector.fit_cells(cells, folder / "checkpoint.safetensors", progress, keep)
    detector.save(folder)


def kept_epochs(num: int) -> tuple[int, ...]:
    """Return the epochs, 0 and `num` among them, whose parameters are kept: ever farther apart."""
    steps = {round(1.35**power) for power in range(64)}
    return tuple(sorted({0, num} | {epoch for epoch in steps if epoch < num}))


def epoch_file(config: Config, epoch: int) -> Path:
    """Return where the parameters of LSPN and sigma at the end of an epoch are kept."""
    return stage_dir(config, "lspn") / f"epoch-{epoch:04d}.safetensors"


def at_epoch(config: Config, detector: G2SF, epoch: int) -> G2SF:
    """Return a detector of `fitted` as it was at the end of an epoch of `kept_epochs`."""
    then = copy.copy(detector)
    then.metric = copy.deepcopy(detector.metric)
    then.metric.load_state_dict(read_tensors(epoch_file(config, epoch)))
    return then


def best_epoch(detector: G2SF) -> int:
    """Return the epoch that was kept; 0: the metric as it was before training."""
    return best_row(detector.history)["epoch"]


def scan_labels(config: Config, split: str) -> list[str]:
    """Return the label of every scan of a split, "good" or a kind of defect."""
    return [path.parent.name for path in scan_paths(config, split)]


def some_scans(config: Config, split: str, numbers: Sequence[int]) -> list[Sample]:
    """Return the preprocessed scans of these numbers."""
    return [load_prepared(scan_paths(config, split)[number]) for number in numbers]


def counted_features(config: Config, split: str) -> tuple[dict[str, Rows], Tensor]:
    """Return mod -> (N, D_mod) of all cells of a split that count, and (N,) which are anomalous."""
    patches, labels = load_features(config, split)
    counts = [counted_cells(p, config.scoring.silhouette) for p in patches]
    among = torch.cat([c[p.foreground] for p, c in zip(patches, counts, strict=True)])
    feat = {mod: rows.at(among) for mod, rows in foreground_features(patches).items()}
    # Of pastes, labels are (cells, M): in which modality.
    anomalous = [lab.reshape(len(lab), -1).any(1)[c] for lab, c in zip(labels, counts, strict=True)]
    return feat, torch.cat(anomalous)
