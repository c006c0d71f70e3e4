"""Chapter 02: how well a bank covers normal cells, and what each modality alone sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from g2sf_lib.benchmark import Split
from g2sf_lib.config import MODALITIES, Config
from g2sf_lib.detector import counted_cells, pick_device, query_banks, to_prediction
from g2sf_lib.experiments import Banks, load_features
from g2sf_lib.features import foreground_features
from g2sf_lib.fusion import encode
from g2sf_lib.memory import MemoryBank, Rows


def counted_features(config: Config, split: str) -> tuple[dict[str, Rows], Tensor]:
    """Return the features of all cells of a split that count, and which are anomalous.

    Returns:
        mod -> (N, D_mod), as extracted; and (N,) bool.
    """
    scans = Split(config, split)
    patches, labels = scans.patches, scans.cell_labels
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
