"""What the chapters ask of finished stages: small questions, answered in arrays and tables.

Nothing here is read by another module, and nothing is written: a reader who skips the book
can skip this file.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from g2sf_lib.benchmark import SEEDED, Comparison, Scores
from g2sf_lib.config import MODALITIES, Config, LossConfig, raw_dir, scans_dir, stage_dir
from g2sf_lib.datasets import Sample, reader
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared
from g2sf_lib.detector import (
    G2SF,
    counted_cells,
    pick_device,
    query_banks,
    to_prediction,
)
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.experiments import Banks, best_epoch, load_banks, load_features
from g2sf_lib.features import FeatureExtractor, PackedPatches, foreground_features
from g2sf_lib.fusion import LSPN, encode, local_metric
from g2sf_lib.memory import MemoryBank, Rows
from g2sf_lib.results import GROUPS, METHOD_NAMES
from g2sf_lib.training import COLLAPSED

SPLITS = ("train", "validation", "test")
SYNTHETIC_SPLITS = ("synthetic", "synthetic_validation")

# ---------------------------------------------------------------- 00: scans


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


# ---------------------------------------------------------------- 01: features


def cell_counts(config: Config) -> pd.DataFrame:
    """Return, for each split, how many scans and cells it has, and of which kind.

    Columns: ``scans``, ``cells on the object``, ``cells that count`` (by the silhouette rule),
    ``anomalous cells`` (counted or not).
    """
    rows = []
    for split in (*SPLITS, *SYNTHETIC_SPLITS):
        patches, labels = load_features(config, split)
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


# ---------------------------------------------------------------- 02: bank


def counted_features(config: Config, split: str) -> tuple[dict[str, Rows], Tensor]:
    """Return the features of all cells of a split that count, and which are anomalous.

    Returns:
        mod -> (N, D_mod), as extracted; and (N,) bool.
    """
    patches, labels = load_features(config, split)
    counts = [counted_cells(p, config.scoring.silhouette) for p in patches]
    among = torch.cat([c[p.foreground] for p, c in zip(patches, counts, strict=True)])
    feat = {mod: rows.at(among) for mod, rows in foreground_features(patches).items()}
    return feat, torch.cat([lab[c] for lab, c in zip(labels, counts, strict=True)])


def radius_curve(rows: Tensor, prototypes: Tensor) -> np.ndarray:
    """Return (B,): the largest distance of a row to its nearest of the first 1, ..., B prototypes.

    Args:
        rows: (N, D).
        prototypes: (B, D), in the order they were chosen.
    """
    radius = torch.zeros(len(prototypes), device=rows.device)
    for part in rows.split(max(2**24 // len(prototypes), 1)):
        nearest = torch.cdist(part, prototypes).cummin(dim=1).values
        radius = torch.maximum(radius, nearest.amax(dim=0))
    return radius.cpu().numpy()


def coverage(config: Config, banks: Banks, max_rows: int = 20_000) -> dict[str, np.ndarray]:
    """Return the coverage radius of the banks and of equally large random ones.

    Where there are more training cells than `max_rows`, the radius is that of the first
    `max_rows` of a random order.

    Returns:
        "points, bank", "points, random", "RGB, bank", "RGB, random" -> (B,) radii.
    """
    feat = banks.standardiser(foreground_features(load_features(config, "train")[0]))
    curves = {}
    for mod, name in (("pcd", "points"), ("rgb", "RGB")):
        order = torch.randperm(len(feat[mod]), generator=torch.Generator().manual_seed(0))
        rows = feat[mod][order[:max_rows]]
        own = banks.banks[mod].prototypes
        random = MemoryBank.fit(feat[mod], len(own) / len(feat[mod]), "random", seed=1)
        curves[f"{name}, {config.bank.coreset} bank"] = radius_curve(rows, own)
        curves[f"{name}, random rows"] = radius_curve(rows, random.prototypes)
    return curves


def isotropic(config: Config, banks: Banks, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of every counted cell to its nearest prototype.

    Returns:
        (N, M) distances, divided by their mean over validation cells, M in the order
        ("pcd", "rgb"); and (N,) bool, which cells are anomalous.
    """
    feat, is_anomalous = counted_features(config, split)
    device = pick_device(config.device)
    s = query_banks(banks.banks, banks.standardiser(feat), 1, device)[1][:, 0]
    return (s / banks.calibration.mean).numpy(), is_anomalous.numpy()


def isotropic_scores(
    config: Config, banks: Banks
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what each modality alone says of the test scans.

    Returns:
        mod -> (N, map_size, map_size) score maps, and mod -> (N,) image scores.
    """
    patches, _ = load_features(config, "test")
    feat = banks.standardiser(foreground_features(patches))
    s = query_banks(banks.banks, feat, 1, pick_device(config.device))[1][:, 0]
    s = s / banks.calibration.mean
    sizes = [int(p.foreground.sum()) for p in patches]
    maps, image = {}, {}
    for m, mod in enumerate(MODALITIES):
        parts = zip(s[:, m].split(sizes), patches, strict=True)
        made = [to_prediction(part, p, config.scoring) for part, p in parts]
        maps[mod] = np.stack([one.score_map for one in made])
        image[mod] = np.array([one.image_score for one in made])
    return maps, image


def share_of_good_below(scores: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return, for each scan, the share of good scans with a lower score; ties count half."""
    good = scores[np.array([label == "good" for label in labels])]
    below = (good[None] < scores[:, None]) + 0.5 * (good[None] == scores[:, None])
    return below.mean(axis=1)


def against_good(
    maps: Sequence[np.ndarray], labels: Sequence[str], numbers: Sequence[int]
) -> list[np.ndarray]:
    """Return some score maps in units in which every method can be compared by eye.

    0 is the median of the scored pixels of all good scans, 1 the highest value that any of them
    has; what lies outside is cut. So a pixel at 1 is beyond every good scan: an alarm that comes
    without a single false one.

    Args:
        maps: a map (h, w) a scan, 0 where nothing is scored.
        labels: of the scans; at least one is "good".
        numbers: of the scans to return.
    """
    good = np.stack([m for m, label in zip(maps, labels, strict=True) if label == "good"])
    high = float(good.max())
    low = float(np.median(good[good > 0])) if high > 0 else 0.0
    return [np.clip((maps[n] - low) / max(high - low, 1e-12), 0, 1) for n in numbers]


def blind_spots(labels: Sequence[str], image: dict[str, np.ndarray]) -> list[tuple[str, int]]:
    """Return the defective scan that RGB sees and points do not, and the other way round.

    The rule: of all defective scans the one where `share_of_good_below` differs most.

    Args:
        labels: of N scans.
        image: mod -> (N,) image scores.

    Returns:
        (title, number of the scan), seen by RGB first.
    """
    share = {mod: share_of_good_below(scores, labels) for mod, scores in image.items()}
    defective = np.flatnonzero([label != "good" for label in labels])
    gap = (share["rgb"] - share["pcd"])[defective]
    return [
        ("RGB sees it,\npoints do not", int(defective[gap.argmax()])),
        ("points see it,\nRGB does not", int(defective[gap.argmin()])),
    ]


def direction_shares(config: Config, banks: Banks) -> dict[str, np.ndarray]:
    """Return how evenly the directions to normal validation cells fill their space.

    Returns:
        "points", "RGB" -> (D_mod,) mean squared component of d_i0 along each of its principal
        axes, falling; they sum to 1, and all are 1 / D_mod if every direction is as likely.
    """
    feat = banks.standardiser(counted_features(config, "validation")[0])
    index, _ = query_banks(banks.banks, feat, 1, pick_device(config.device))
    shares = {}
    for mod, name in (("pcd", "points"), ("rgb", "RGB")):
        prototypes, spread = banks.banks[mod].prototypes, 0.0
        for some in torch.arange(len(feat[mod])).split(4096):
            d = encode(feat[mod][some], prototypes[index[mod][some]])[0][:, 0]  # (n, D_mod)
            spread = spread + d.T @ d / len(feat[mod])
        shares[name] = torch.linalg.eigvalsh(spread).flip(0).clamp_min(0).numpy()
    return shares


# ---------------------------------------------------------------- 03: metric


def untouched_network(config: Config, num_cells: int = 500) -> tuple[LSPN, pd.DataFrame]:
    """Return an untrained LSPN of the config's size, and three statements checked on real cells.

    Returns:
        The network; and a row a statement with the largest error in `num_cells` synthetic cells
        and their k + 1 neighbourhoods.
    """
    stored = load_banks(config)
    every = stored.standardiser(counted_features(config, "synthetic")[0])
    feat = {mod: every[mod][:num_cells] for mod in MODALITIES}
    index, s = query_banks(stored.banks, feat, config.model.k + 1)
    bank = {mod: stored.banks[mod].prototypes for mod in MODALITIES}
    proto = {mod: bank[mod][index[mod]] for mod in MODALITIES}
    d = {mod: encode(feat[mod], proto[mod])[0] for mod in MODALITIES}
    lspn = LSPN({mod: feat[mod].shape[1] for mod in MODALITIES}, config.model.hidden,
                config.model.embed, config.model.dropout).eval()  # fmt: skip
    with torch.no_grad():
        untrained = lspn(proto, d)
        lspn.head.weight.normal_(generator=torch.Generator().manual_seed(0))  # any but zero
        shortcut = (lspn.from_bank(feat, bank, index, s) - lspn(proto, d)).abs().max()
        lspn.head.weight.zero_()
    back = max(
        (proto[mod] + s[..., m, None] * d[mod] - feat[mod][:, None]).abs().max()
        for m, mod in enumerate(MODALITIES)
    )
    errors = {
        "prototype + distance · direction = feature": back,
        "w of the untrained network = 1": (untrained - 1).abs().max(),
        "w without building the directions = w with them": shortcut,
    }
    rows = [(name, f"{float(error):.1e}") for name, error in errors.items()]
    return lspn, pd.DataFrame(rows, columns=["statement", "largest error"]).set_index("statement")


def stored_detector(config: Config, seed: int) -> G2SF:
    """Return the detector that chapter 03 stored for a training seed."""
    folder = stage_dir(dataclasses.replace(config, seed=seed), "lspn")
    return G2SF.load(folder, config.device)


@dataclass(frozen=True)
class JudgedCells:
    """Counted cells as a trained detector sees them in their nearest neighbourhood.

    Attributes:
        s: (N, M) distances divided by their mean over normal training cells.
        w: (N, M) scale factors.
        plain: (N,) the metric before training: w = 1, sigma = 1/2.
        learned: (N,) the metric after it, l_i0.
        is_anomalous: (N,) bool.
    """

    s: np.ndarray
    w: np.ndarray
    plain: np.ndarray
    learned: np.ndarray
    is_anomalous: np.ndarray


def judged_cells(
    config: Config, detector: G2SF, split: str = "synthetic_validation"
) -> JudgedCells:
    """Return the counted cells of a split as the detector sees them."""
    feat, is_anomalous = counted_features(config, split)
    scores = detector.score_cells(feat)
    s, w = scores.s[:, 0].cpu(), scores.w[:, 0].cpu()
    plain = local_metric(torch.ones_like(w), s, torch.full((len(MODALITIES),), 0.5))
    learned = scores.ell[:, 0].cpu()
    return JudgedCells(*(x.numpy() for x in (s, w, plain, learned, is_anomalous)))


def training_report(detector: G2SF) -> str:
    """Return, in Markdown, which epoch was kept and what the scale factors are there."""
    best = detector.history[best_epoch(detector)]
    flat = [mod for mod in MODALITIES if best[f"w_std_{mod}"] < COLLAPSED]
    words = {"pcd": "points", "rgb": "RGB"}
    lines = [
        f"Kept: epoch {best['epoch']} of {len(detector.history) - 1}. On its held-out images, in "
        "the nearest neighbourhood:",
        "",
        "| modality | σ | w of normal cells | w of synthetic anomalies |",
        "|:--|:--|:--|:--|",
    ]
    for mod in MODALITIES:
        cells = (
            f"{best[f'w_{side}_{mod}']:.2f} ± {best[f'w_std_{side}_{mod}']:.2f}"
            for side in ("normal", "synthetic")
        )
        lines.append(f"| {words[mod]} | {best[f'sigma_{mod}']:.2f} | {' | '.join(cells)} |")
    verdict = (
        f"**Collapsed**: w of {' and '.join(words[mod] for mod in flat)} is a constant."
        if flat
        else "Not collapsed: w differs between cells in both modalities."
    )
    return "\n".join([*lines, "", verdict])


def separation_report(cells: JudgedCells) -> str:
    """Return, in Markdown, how well four scores tell synthetic anomalies from normal cells."""
    names = {"w = 1": "metric before training", "trained": "metric after training"}
    areas = {
        names.get(name, name): image_auroc(score, cells.is_anomalous)
        for name, score in _quantities(cells).items()
    }
    told = ", ".join(f"{name} {area:.3f}" for name, area in areas.items())
    return f"AUROC over cells, synthetic anomalies against normal ones: {told}."


# ---------------------------------------------------------------- 04: scores


def pick_cases(scores: Scores, method: str, seed: int, silhouette: str) -> list[tuple[str, int]]:
    """Return scans to look at, chosen by their image score alone.

    Of the defective scans the one with the highest, the median and the lowest score, and of
    the good ones that with the highest.

    Returns:
        (title, number of the scan) each.
    """
    image = scores.image[method, seed, silhouette]
    is_good = np.array([label == "good" for label in scores.labels])
    bad = np.flatnonzero(~is_good)[np.argsort(image[~is_good], kind="stable")]
    good = np.flatnonzero(is_good)
    return [
        ("clearest find", int(bad[-1])),
        ("median find", int(bad[len(bad) // 2])),
        ("worst miss", int(bad[0])),
        ("largest\nfalse alarm", int(good[image[good].argmax()])),
    ]


def case_report(scores: Scores, cases: Sequence[tuple[str, int]], method: str, seed: int,
                silhouette: str) -> str:  # fmt: skip
    """Return, in Markdown, what the scores of the chosen scans mean."""
    image = scores.image[method, seed, silhouette]
    is_good = np.array([label == "good" for label in scores.labels])
    lines = []
    for title, number in cases:
        others, sign = (~is_good, "lower") if is_good[number] else (is_good, "higher")
        count = (
            image[others] < image[number] if sign == "lower" else image[others] > image[number]
        ).sum()
        kind = "defective" if is_good[number] else "good"
        lines.append(
            f"- {title.replace(chr(10), ' ')}: `{scores.names[number]}`; {count} of "
            f"{others.sum()} {kind} scans score {sign}."
        )
    return "\n".join(lines)


def metric_maps(
    detector: G2SF, patches: Sequence[PackedPatches], cut: float = 3.0
) -> dict[str, list[np.ndarray]]:
    """Return distances, scale factors and score of every cell of some scans, as maps.

    Args:
        detector: trained.
        patches: of the scans.
        cut: distances and scores above this are shown as this; 1 is a normal distance.

    Returns:
        name -> a map (rows, columns) a scan. On background cells distances and scores are 0
        and w is 1, as at scoring.
    """
    maps: dict[str, list[np.ndarray]] = {}
    for one in patches:
        scores = detector.score_cells(one.cells)
        values = {
            "$s^P$ (points)": (scores.s[:, 0, 0], 0.0),
            "$s^R$ (RGB)": (scores.s[:, 0, 1], 0.0),
            "$w^P$ (points)": (scores.w[:, 0, 0], 1.0),
            "$w^R$ (RGB)": (scores.w[:, 0, 1], 1.0),
            "$s_i$ (fused)": (scores.cell_score, 0.0),
        }
        for name, (value, background) in values.items():
            cells = torch.full((len(one.foreground),), background)
            value = value if name.startswith("$w") else value.clamp_max(cut)
            cells[one.foreground.cpu()] = value.cpu()
            maps.setdefault(name, []).append(cells.reshape(one.grid).numpy())
    return maps


def on_points(score_map: np.ndarray, sample: Sample) -> np.ndarray:
    """Return the score of each pixel of a scan, from a map of another size."""
    rows, columns = (
        ((np.arange(side) + 0.5) * len(score_map) / side).astype(int) for side in sample.mask.shape
    )
    return score_map[np.ix_(rows, columns)]


def scan_labels(config: Config, split: str) -> list[str]:
    """Return the label of every scan of a split, "good" or a kind of defect."""
    paths = list_prepared(scans_dir(config), config.category, split)
    return [path.parent.name for path in paths]


def some_scans(config: Config, split: str, numbers: Sequence[int]) -> list[Sample]:
    """Return the preprocessed scans of these numbers."""
    paths = list_prepared(scans_dir(config), config.category, split)
    return [load_prepared(paths[number]) for number in numbers]


# ---------------------------------------------------------------- 05: benchmark


@dataclass(frozen=True)
class Case:
    """A test scan that is shown, and the rule that chose it.

    Attributes:
        rule: in words, for the label of its row.
        category: of the scan.
        number: of the scan among the category's test scans.
        label: "good" or its kind of defect.
    """

    rule: str
    category: str
    number: int
    label: str

    @property
    def title(self) -> str:
        """Rule, category and label, a line each."""
        return f"{self.rule}\n{self.category}, {self.label}"


def panel_methods(comparison: Comparison) -> dict[str, tuple[str, int]]:
    """Return heading -> (method, seed) of those of Figure 5's methods that took part."""
    shown = {
        "RGB alone": "rgb",
        "points alone": "pcd",
        "CFM": "cfm",
        "M3DM": "m3dm",
        "G²SF": "g2sf",
    }
    first = comparison.seeds[0]
    columns = {
        name: (method, first if method in SEEDED else 0)
        for name, method in shown.items()
        if method in comparison.methods
    }
    return columns or {METHOD_NAMES[ruler(comparison)[0]]: ruler(comparison)}


def ruler(comparison: Comparison) -> tuple[str, int]:
    """Return whose scores choose the scans that are shown: G2SF, or else the first method."""
    method = "g2sf" if "g2sf" in comparison.methods else comparison.methods[0]
    return method, comparison.seeds[0] if method in SEEDED else 0


def _standing(comparison: Comparison, method: str, seed: int) -> list[tuple[str, int, str, float]]:
    """Return (category, number, label, share of the category's good scans below) of all scans."""
    rule, found = comparison.config.scoring.silhouette, []
    for category, scores in comparison.scores.items():
        share = share_of_good_below(scores.image[method, seed, rule], scores.labels)
        each = zip(scores.labels, share, strict=True)
        found += [(category, n, label, float(x)) for n, (label, x) in enumerate(each)]
    return found


def complementary_cases(comparison: Comparison) -> list[Case]:
    """Return two defective scans: one that RGB sees and points do not, and the other way round.

    The rule: over all categories, the scan where the shares of good scans below it, by RGB alone
    and by points alone, differ most. The first of several that are equal.
    """
    both = [_standing(comparison, mod, 0) for mod in ("rgb", "pcd")]
    gaps = [(rgb[3] - pcd[3], rgb) for rgb, pcd in zip(*both, strict=True) if rgb[2] != "good"]
    chosen = [
        ("RGB sees it,\npoints do not", max(gaps, key=lambda gap: gap[0])[1]),
        ("points see it,\nRGB does not", min(gaps, key=lambda gap: gap[0])[1]),
    ]
    return [Case(rule, category, n, label) for rule, (category, n, label, _) in chosen]


def gallery_cases(comparison: Comparison, method: str, seed: int) -> list[Case]:
    """Return a scan of each category, and the worst failures of a method.

    The rules: in each category the defective scan with the median image score; over all
    categories the defective scan that the most good scans of its category outscore (of those that
    are equal, the one with the smallest score relative to its highest good scan), and the good
    scan that outscores the most defective ones (ties likewise).

    Args:
        comparison: with the method in it.
        method: whose scores the rules look at,
        seed: and of which training.
    """
    rule, cases, misses, alarms = comparison.config.scoring.silhouette, [], [], []
    for category, scores in comparison.scores.items():
        image = scores.image[method, seed, rule]
        is_bad = np.array([label != "good" for label in scores.labels])
        order = np.flatnonzero(is_bad)[np.argsort(image[is_bad], kind="stable")]
        middle = int(order[len(order) // 2])
        cases.append(Case("median find", category, middle, scores.labels[middle]))
        top = image[~is_bad].max()
        for n in np.flatnonzero(is_bad):
            misses.append(((image[~is_bad] > image[n]).mean(), -image[n] / top, category, int(n)))
        for n in np.flatnonzero(~is_bad):
            alarms.append(((image[is_bad] < image[n]).mean(), image[n] / top, category, int(n)))
    for words, found in (("worst miss", misses), ("worst\nfalse alarm", alarms)):
        _, _, category, n = max(found, key=lambda case: case[:2])
        cases.append(Case(words, category, n, comparison.scores[category].labels[n]))
    return cases


def case_maps(
    comparison: Comparison, cases: Sequence[Case], methods: dict[str, tuple[str, int]]
) -> tuple[list[Sample], dict[str, list[np.ndarray]]]:
    """Return the scans of some cases and their score maps in units of normal scans.

    For each method and category, 0 is the median scored pixel of the validation scans, which are
    normal, and 1 the highest that any of their pixels has. No test scan has a part in the scale.

    Args:
        comparison: of all categories.
        cases: what is shown.
        methods: heading -> (method, seed).
    """
    samples, maps = [], {name: [] for name in methods}
    for case in cases:
        of_case = dataclasses.replace(comparison.config, category=case.category)
        samples += some_scans(of_case, "test", [case.number])
        scores = comparison.scores[case.category]
        for name, key in methods.items():
            low, top = scores.normal[key]
            raw = scores.maps.one(key, case.number)
            maps[name].append(((raw - low) / max(top - low, 1e-12)).clip(0))
    return samples, maps


def standing_report(
    comparison: Comparison, cases: Sequence[Case], methods: dict[str, tuple[str, int]]
) -> pd.DataFrame:
    """Return, for each case and method, the share of the category's good scans that score lower.

    1 is a find without a false alarm, one half is chance; of a good scan, 1 is the worst.
    """
    rows = []
    for case in cases:
        scores, row = comparison.scores[case.category], {}
        for name, (method, seed) in methods.items():
            image = scores.image[method, seed, comparison.config.scoring.silhouette]
            good = np.array([label == "good" for label in scores.labels])
            good[case.number] = False  # a good scan is not compared with itself
            row[name] = f"{(image[good] < image[case.number]).mean():.2f}"
        rows.append({"case": case.title.replace("\n", " ")} | row)
    return pd.DataFrame(rows).set_index("case")


def cell_shifts(config: Config, categories: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Return how well cells of pastes and of defects are told from normal ones, before and after.

    Normal cells are those of the same scans' unpasted part (pastes) or of the good test scans
    (defects). All cells are counted ones in their nearest neighbourhood.

    Args:
        config: of the run.
        categories: all of them.
        seeds: training seeds.

    Returns:
        A row a category, seed, group of defects and quantity ("points alone", "RGB alone",
        "w = 1", "trained"): ``auroc`` over cells; with mean scale factors ``w_pcd``, ``w_rgb`` of
        the group's anomalous cells, divided by those of the normal cells.
    """
    rows = []
    for category in categories:
        of_category = dataclasses.replace(config, category=category)
        kinds = _cell_kinds(of_category)
        for seed in seeds:
            detector = stored_detector(of_category, seed)
            pasted = judged_cells(of_category, detector)
            test = judged_cells(of_category, detector, "test")
            groups = {"pastes": (pasted, pasted.is_anomalous, ~pasted.is_anomalous)}
            for group, members in GROUPS.items():
                chosen = test.is_anomalous & np.isin(kinds, members)
                if chosen.any():
                    groups[group] = test, chosen, kinds == "good"
            for group, (cells, bad, normal) in groups.items():
                place = {"category": category, "seed": seed, "group": group}
                w = cells.w[bad].mean(0) / cells.w[normal].mean(0)
                place |= {f"w_{mod}": float(w[m]) for m, mod in enumerate(MODALITIES)}
                both = bad | normal
                for name, values in _quantities(cells).items():
                    area = image_auroc(values[both], bad[both])
                    rows.append(place | {"quantity": name, "auroc": area})
    return pd.DataFrame(rows)


def _cell_kinds(config: Config) -> np.ndarray:
    """Return (N,) the label of the scan of every counted test cell."""
    patches, _ = load_features(config, "test")
    counts = [int(counted_cells(p, config.scoring.silhouette).sum()) for p in patches]
    return np.repeat(scan_labels(config, "test"), counts)


def _quantities(cells: JudgedCells) -> dict[str, np.ndarray]:
    """Return the scores that training starts from, and what it makes of them."""
    return {
        "points alone": cells.s[:, 0],
        "RGB alone": cells.s[:, 1],
        "w = 1": cells.plain,
        "trained": cells.learned,
    }


def shift_rows(shifts: pd.DataFrame) -> pd.DataFrame:
    """Return means over categories and seeds, for `plots.cell_shift`.

    Columns: ``group``, ``quantity``, ``value`` (AUROC over cells), ``error`` (standard error over
    categories).
    """
    each = shifts.groupby(["group", "quantity", "category"], sort=False)["auroc"].mean()
    groups = each.groupby(["group", "quantity"], sort=False)
    table = pd.DataFrame({"value": groups.mean(), "error": groups.sem().fillna(0.0)})
    return table.reset_index()


def shift_report(shifts: pd.DataFrame) -> str:
    """Return, in Markdown, what training does to the cells of each group of defects."""
    wide = shifts.pivot_table(
        index=["group", "category"], columns="quantity", values="auroc", sort=False
    )
    w = shifts.groupby("group", sort=False)[["w_pcd", "w_rgb"]].mean()
    lines = []
    for group in dict.fromkeys(shifts["group"]):
        of_group = wide.loc[group]
        gain = of_group["trained"] - of_group["w = 1"]
        error = gain.sem() if len(gain) > 1 else float("nan")
        lines.append(
            f"- {group}: AUROC of cells {of_group['w = 1'].mean():.3f} before and "
            f"{of_group['trained'].mean():.3f} after training ({gain.mean():+.3f} ± {error:.3f} "
            f"over categories); w is {w.loc[group, 'w_pcd']:.2f} (points) and "
            f"{w.loc[group, 'w_rgb']:.2f} (RGB) times that of normal cells"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- 90: loss weights


def weight_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a candidate: its weights, mean average precision, and whether w collapsed.

    Args:
        rows: of `experiments.select_loss_weights`.

    Returns:
        Sorted by ``average precision`` (mean over categories), the best first; ``standard
        error`` is that over categories, ``smallest spread of w`` the least over categories
        and modalities, ``collapsed`` says in how many categories w is a constant.
    """
    names = ["alpha", "beta", "gamma", "mu"]
    groups = rows.groupby(names, sort=False)
    precision = groups["cell_ap"]
    table = pd.DataFrame(
        {
            "average precision": precision.mean(),
            "standard error": precision.std().fillna(0.0) / precision.count() ** 0.5,
            "AUROC": groups["cell_auroc"].mean(),
            "smallest spread of w": groups["w_std"].min(),
            "collapsed": groups["w_std"].agg(lambda spread: int((spread < COLLAPSED).sum())),
        }
    )
    return table.sort_values("average precision", ascending=False, kind="stable").reset_index()


def weight_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with ``method``, a text for each candidate, for `plots.method_dots`."""
    names = [
        f"α {row.alpha:g}, β {row.beta:g}, γ {row.gamma:g}, μ {row.mu:g}"
        for row in rows.itertuples()
    ]
    return rows.assign(method=names).rename(columns={"cell_ap": "average precision"})


def weight_verdict(rows: pd.DataFrame, loss: LossConfig) -> str:
    """Return, in Markdown, how the config's loss weights compare with the best candidate."""
    table = weight_table(rows)
    names = ["alpha", "beta", "gamma", "mu"]
    words = dict(zip(names, "αβγμ", strict=True))

    def text(row) -> str:
        return ", ".join(f"{words[name]} = {row[name]:g}" for name in names)

    chosen = {name: getattr(loss, name) for name in names}
    is_chosen = (table[names] == pd.Series(chosen)).all(axis=1)
    if not is_chosen.any():
        return f"The weights of this run ({text(chosen)}) are not among the candidates."
    own, best = table[is_chosen].iloc[0], table.iloc[0]
    precision = own["average precision"]
    if text(own) == text(best):
        second = table.iloc[1]
        return (
            f"The weights of this run ({text(own)}) are the best of the candidates: mean average "
            f"precision {precision:.3f}, {precision - second['average precision']:.3f} more than "
            f"the next ({text(second)})."
        )
    wide = rows.pivot(index="category", columns=names, values="cell_ap")
    gaps = wide[tuple(best[names])] - wide[tuple(own[names])]
    error = gaps.std() / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
    return (
        f"The weights of this run ({text(own)}) are number {int(is_chosen.idxmax()) + 1} of "
        f"{len(table)}: mean average precision {precision:.3f}, {gaps.mean():.3f} less than the "
        f"best ({text(best)}), with a standard error of the difference over categories of "
        f"{error:.3f}."
    )


def collapse_report(rows: pd.DataFrame) -> str:
    """Return, in Markdown, which candidates of loss weights collapsed, and where."""
    named = weight_names(rows)
    flat = named[named["w_std"] < COLLAPSED]
    if flat.empty:
        return "None of the candidates collapsed in any category."
    lines = [
        f"- {method}: {', '.join(group['category'])}"
        for method, group in flat.groupby("method", sort=False)
    ]
    return "\n".join(["Collapsed (w is a constant in at least one modality):", "", *lines])


# ---------------------------------------------------------------- 92: settings of peers


def candidate_rows(rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Return the candidates of CFM and AST in words, for `plots.candidate_dots`.

    Args:
        rows: of `tuning.select_peer_settings`.
        config: of the run, whose settings are the chosen ones.

    Returns:
        Columns ``method`` (its name), ``candidate``, ``category``, ``value`` (average precision
        over cells), ``is_chosen``.
    """
    named = []
    for row in rows.itertuples():
        settings = getattr(config, row.method)
        words = ", ".join(
            f"{name.removeprefix(row.method + '_').replace('_', ' ')} {value:g}"
            for name, value in row.settings.items()
        )
        is_chosen = all(getattr(settings, name) == value for name, value in row.settings.items())
        named.append((METHOD_NAMES[row.method], words, row.category, row.cell_ap, is_chosen))
    columns = ["method", "candidate", "category", "value", "is_chosen"]
    return pd.DataFrame(named, columns=columns)


def candidate_table(candidates: pd.DataFrame) -> pd.DataFrame:
    """Return a row a candidate: mean average precision and its error over categories, as text."""
    groups = candidates.groupby(["method", "candidate"], sort=False)
    table = pd.DataFrame(
        {
            "average precision": groups["value"].mean().map("{:.3f}".format),
            "standard error": groups["value"].sem().fillna(0.0).map("{:.3f}".format),
            "setting of this run": groups["is_chosen"].first().map({True: "yes", False: ""}),
        }
    )
    return table.reset_index()


def candidate_verdict(candidates: pd.DataFrame) -> str:
    """Return, in Markdown, whether the settings of this run are the best of the candidates."""
    lines = []
    for method, of_method in candidates.groupby("method", sort=False):
        wide = of_method.pivot(index="category", columns="candidate", values="value")
        best = wide.mean().idxmax()
        own = of_method.loc[of_method["is_chosen"], "candidate"].unique()
        if not len(own):
            lines.append(f"- {method}: the settings of this run are not among the candidates")
        elif own[0] == best:
            lines.append(f"- {method}: {best}, the best of {wide.shape[1]} candidates")
        else:
            gap = wide[best] - wide[own[0]]
            error = gap.sem() if len(gap) > 1 else float("nan")
            lines.append(
                f"- {method}: {own[0]}; the best of {wide.shape[1]} candidates is {best}, by "
                f"{gap.mean():.3f} ± {error:.3f} (standard error over categories)"
            )
    return "\n".join(lines)
