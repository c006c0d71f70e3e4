"""Scans that are shown, chosen by rules that look at scores, and their score maps on one scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from g2sf_lib.benchmark import Comparison
from g2sf_lib.config import scans_dir
from g2sf_lib.datasets import Sample
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared


@dataclass(frozen=True)
class Case:
    """A test scan that is shown: the rule that chose it, its category, number and label."""

    rule: str
    category: str
    number: int
    label: str

    @property
    def title(self) -> str:
        """Rule, category and label, a line each."""
        return f"{self.rule}\n{self.category}, {self.label}"


def gallery_cases(comparison: Comparison, method: str, seed: int) -> list[Case]:
    """Return a scan of each category, and the worst failures of a method.

    The rules: in each category the defective scan with the median image score; over all
    categories the defective scan that the most good scans of its category outscore, and the good
    scan that outscores the most defective ones. Of those that are equal: the lowest and the
    highest score, where 0 is the median and 1 the highest of the category's good scans. What
    nothing outscores in the wrong direction is no failure, and is not called one.
    """
    rule, cases, misses, alarms = comparison.config.scoring.silhouette, [], [], []
    for category, scores in comparison.scores.items():
        image, is_bad = scores.image[method, seed, rule], np.array(scores.labels) != "good"
        order = np.flatnonzero(is_bad)[np.argsort(image[is_bad], kind="stable")]
        middle = int(order[len(order) // 2])
        cases.append(Case("median find", category, middle, scores.labels[middle]))
        low, top = np.median(image[~is_bad]), image[~is_bad].max()
        height = (image - low) / max(top - low, 1e-12)
        for n, score in enumerate(image):
            if is_bad[n]:
                misses.append(((image[~is_bad] > score).mean(), -height[n], category, n))
            else:
                alarms.append(((image[is_bad] < score).mean(), height[n], category, n))
    words = (("worst miss", "hardest find"), ("worst\nfalse alarm", "highest\ngood scan"))
    for (failed, passed), found in zip(words, (misses, alarms), strict=True):
        share, _, category, n = max(found, key=lambda case: case[:2])
        label = comparison.scores[category].labels[n]
        cases.append(Case(failed if share > 0 else passed, category, n, label))
    return cases


def case_maps(
    comparison: Comparison, cases: Sequence[Case], methods: Mapping[str, tuple[str, int]]
) -> tuple[list[Sample], dict[str, list[np.ndarray]]]:
    """Return the scans of some cases and their score maps in units of normal scans.

    For each method and category, 0 is the median pixel of the validation scans, which are
    normal, and 1 the highest that any of their pixels has. No test scan has a part in the scale.

    Args:
        comparison: of all categories.
        cases: what is shown.
        methods: heading -> (method, seed).
    """
    samples, maps = [], {name: [] for name in methods}
    for case in cases:
        of_case = dataclasses.replace(comparison.config, category=case.category)
        paths = list_prepared(scans_dir(of_case), case.category, "test")
        samples.append(load_prepared(paths[case.number]))
        scores = comparison.scores[case.category]
        for name, key in methods.items():
            low, top = scores.normal[key]
            raw = scores.maps.one(key, case.number)
            maps[name].append(((raw - low) / max(top - low, 1e-12)).clip(0))
    return samples, maps


def standing_table(
    comparison: Comparison, cases: Sequence[Case], methods: Mapping[str, tuple[str, int]]
) -> pd.DataFrame:
    """Return, for each case and method, the share of the category's good scans that score lower.

    1 is a find without a false alarm, one half is chance; of a good scan, 1 is the worst.
    """
    rows, rule = [], comparison.config.scoring.silhouette
    for case in cases:
        scores, row = comparison.scores[case.category], {"case": case.title.replace("\n", " ")}
        good = np.array(scores.labels) == "good"
        good[case.number] = False  # a good scan is not compared with itself
        for name, key in methods.items():
            image = scores.image[*key, rule]
            row[name] = f"{(image[good] < image[case.number]).mean():.2f}"
        rows.append(row)
    return pd.DataFrame(rows).set_index("case")
