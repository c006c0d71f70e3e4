"""Chapter 04: scans chosen by their score, and maps that take the score apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from g2sf_lib.benchmark import Scores
from g2sf_lib.datasets import Sample
from g2sf_lib.detector import G2SF
from g2sf_lib.features import PackedPatches


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
