"""From the scores of all categories to one summary: means, spreads, what is a real difference."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from g2sf_lib.baselines import METHODS
from g2sf_lib.benchmark import NUM_RESAMPLES, RESAMPLED, SEEDED, Comparison
from g2sf_lib.config import Config, make_config, results_file
from g2sf_lib.detector import flat_settings
from g2sf_lib.evaluation import bootstrap_auroc, image_auroc
from g2sf_lib.experiments import git_commit, package_versions
from g2sf_lib.storage import write_json
from g2sf_lib.timing import machine

METHOD_NAMES = {name: row.title for name, row in METHODS.items()}
METRIC_NAMES = {
    "i_auroc": "I-AUROC",
    "p_auroc": "P-AUROC",
    "aupro_30": "AUPRO@30 %",
    "aupro_1": "AUPRO@1 %",
}
LIMITS = (30, 10, 5, 1)  # per cent of false positives, where AUPRO ends
LEVEL = 0.05  # a difference is called real where its corrected p value is below this
EXACT = 1e-12  # differences and errors below this are those of arithmetic
GROUPS = {  # what the kinds of defect of the embedded data set change
    "geometry only": ("cut", "dent"),
    "appearance only": ("colour", "stain"),
    "both": ("combined",),
}


NO_SETTINGS = ("profile", "dataset", "data_root", "runs_root", "category", "seed", "device")


def summary_file(config: Config) -> Path:
    """Return where the summary of a profile and data set is kept."""
    return results_file(config)


def origin(config: Config, categories: Sequence[str]) -> dict[str, Any]:
    """Return where results come from: data, settings, code, and the command that makes them.

    Args:
        config: of the run.
        categories: that were measured.
    """
    place = {"dataset": config.dataset, "data_root": config.data_root, "category": config.category}
    usual = flat_settings(make_config(config.profile, **place))
    settings = {k: v for k, v in flat_settings(config).items() if k not in NO_SETTINGS}
    changed = {k: v for k, v in settings.items() if v != usual[k] and k != "pasted_from"}
    words = {"PROFILE": config.profile, "DATASET": config.dataset, "DATA_ROOT": config.data_root}
    words["CATEGORIES"] = config.synthesis.pasted_from  # None: the run has all that are there
    words["SETTINGS"] = json.dumps(changed) if changed else None
    given = [f"{name}={shlex.quote(value)}" for name, value in words.items() if value]
    return {
        "git_commit": git_commit(),
        "command": " ".join(["make book", *given]),
        "data": {
            "dataset": config.dataset,
            "data_root": config.data_root,
            "categories": list(categories),
        },
        "settings": settings,
        "packages": package_versions(),
    }


def _resampled(comparison: Comparison, metric: str) -> dict[str, dict[str, np.ndarray]]:
    """Return category -> method -> (NUM_RESAMPLES,) a metric, mean over seeds.

    Categories with as many scans were resampled with the same draws. Their scans have nothing to
    do with one another, but their order has: kinds of defect follow each other in all of them. So
    each category's resamples are put in an order of its own, the same one for all methods; else a
    mean over categories would vary as if all of them had drawn the same kinds.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for number, (category, scores) in enumerate(comparison.scores.items()):
        order = np.random.default_rng([2, number]).permutation(NUM_RESAMPLES)
        by_method: dict[str, list[np.ndarray]] = {}
        for (method, _), metrics in scores.resampled.items():
            by_method.setdefault(method, []).append(metrics[metric][order])
        found[category] = {method: np.mean(x, axis=0) for method, x in by_method.items()}
    return found


def holm(p: Sequence[float]) -> np.ndarray:
    """Return p values corrected for being several, by Holm's step-down rule.

    The smallest is multiplied by their number, the next by one less, and so on; none may be
    smaller than one before it, and none exceeds 1.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(raised, 1.0)
    return corrected


class _Paired:
    """Differences of methods in one metric, with the errors that images and seeds leave.

    The error over images is the standard deviation of the difference over resamples that all
    methods share. The error over training seeds is the standard error of the difference of
    equal seeds (Student's deviation over the root of their number). Both are added as squares.

    The p value is that of Student's distribution. A few seeds know their own deviation badly: its
    degrees of freedom are their number less one where all error comes from seeds, infinitely
    many (the normal distribution) where none does, and between them those of Satterthwaite.
    With one seed, or none, the error is that over images alone.
    """

    def __init__(self, comparison: Comparison, ours: pd.DataFrame, metric: str):
        self.resampled = _resampled(comparison, metric)
        self.categories = list(comparison.categories)
        self.values = ours.pivot_table(index=["category", "method"], columns="seed", values=metric)

    def of(self, first: str, second: str, category: str | None = None) -> dict[str, float]:
        """Return difference, standard error and two-sided p value; None: mean of categories."""
        chosen = self.categories if category is None else [category]
        gap = np.mean(
            [self.resampled[c][first] - self.resampled[c][second] for c in chosen], axis=0
        )
        a, b = (self._by_seed(method, chosen) for method in (first, second))
        each = a - b
        seeds = float(np.std(each, ddof=1) / len(each) ** 0.5) if np.ndim(each) else 0.0
        size, error = float(np.mean(each)), float(np.hypot(gap.std(), seeds))
        if error < EXACT:
            return {"difference": size, "se": error, "p": float(abs(size) < EXACT)}
        freedom = (len(each) - 1) * (error / seeds) ** 4 if seeds > EXACT else np.inf
        p = float(2 * student.sf(abs(size) / error, freedom))
        return {"difference": size, "se": error, "p": p}

    def _by_seed(self, method: str, categories: Sequence[str]) -> np.ndarray | float:
        """Return (seeds,) means over categories; one number where there is one training, or none.

        A method without randomness has one value, which holds for all seeds.
        """
        of_seed = self.values.loc[[(c, method) for c in categories]].mean().dropna().to_numpy()
        return of_seed if len(of_seed) > 1 else float(of_seed[0])


def _corrected(rows: list[dict]) -> list[dict]:
    """Return rows with ``p`` corrected for their number, and whether each is real."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {"p": float(p), "is_real": bool(p < LEVEL)}
    return rows


def _method_rows(comparison: Comparison, ours: pd.DataFrame, per_category) -> list[dict]:
    """Return a row a method: means over categories and seeds, and their spreads."""
    means = per_category.groupby("method", sort=False).mean()
    resampled = {metric: _resampled(comparison, metric) for metric in RESAMPLED}
    rows = []
    for method in comparison.methods:
        row = {"method": method} | means.loc[method].to_dict()
        for metric, of_category in resampled.items():
            mean = np.mean([found[method] for found in of_category.values()], axis=0)
            row[f"{metric}_se"] = float(mean.std())
        by_seed = ours[ours.method == method].groupby("seed")
        for metric in means.columns:
            if metric.startswith(("i_auroc", "p_auroc", "aupro")) and not metric.endswith("_se"):
                spread = by_seed[metric].mean().std()
                row[f"{metric}_seed_std"] = float(spread) if method in SEEDED else 0.0
        rows.append(row)
    return rows


def _category_rows(comparison: Comparison, ours: pd.DataFrame) -> list[dict]:
    """Return a row a category and method: every metric, its error and its spread over seeds."""
    resampled = {metric: _resampled(comparison, metric) for metric in RESAMPLED}
    shown = [c for c in ours if re.fullmatch(r"(i_auroc|p_auroc|aupro_\d+)(_published)?", c)]
    rows = []
    for (category, method), of_both in ours.groupby(["category", "method"], sort=False):
        row = {"category": category, "method": method} | of_both[shown].mean().to_dict()
        row |= {f"{m}_se": float(found[category][method].std()) for m, found in resampled.items()}
        spread = of_both[shown].std() if method in SEEDED else dict.fromkeys(shown, 0.0)
        rows.append(row | {f"{name}_seed_std": float(x) for name, x in spread.items()})
    return rows


def _defect_rows(comparison: Comparison, per_category: pd.DataFrame) -> list[dict]:
    """Return a row a kind of defect and method: I-AUROC, mean and error over categories."""
    rows = []
    kinds = [c for c in per_category if re.fullmatch(r"i_auroc_(?!se$)\w+", c)]
    for method in comparison.methods:
        for column in kinds:
            values = per_category.xs(method, level="method")[column].dropna()
            spread = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
            row = {"defect": column.removeprefix("i_auroc_"), "method": method}
            rows.append(row | {"i_auroc": float(values.mean()), "se": spread})
    return rows


def _group_rows(comparison: Comparison) -> list[dict]:
    """Return a row a group of defects and method: I-AUROC and its error over images.

    Groups are known of the embedded data set only, which says what each kind of defect changes.
    A category without defects of a group is left out of its mean.
    """
    if comparison.config.dataset != "procedural":
        return []
    rule, rows = comparison.config.scoring.silhouette, []
    for group, kinds in GROUPS.items():
        for method in comparison.methods:
            values, areas = [], []
            for number, scores in enumerate(comparison.scores.values()):
                labels = np.array(scores.labels)
                chosen = np.isin(labels, ["good", *kinds])
                truth = labels[chosen] != "good"
                if not truth.any():
                    continue
                images = np.array(
                    [x[chosen] for (m, _, r), x in scores.image.items() if (m, r) == (method, rule)]
                )
                values.append(np.mean([image_auroc(x, truth) for x in images]))
                draw = np.random.default_rng([1, number])
                areas.append(bootstrap_auroc(images, truth, NUM_RESAMPLES, draw).mean(axis=0))
            if values:
                row = {"group": group, "method": method, "i_auroc": float(np.mean(values))}
                rows.append(row | {"se": float(np.mean(areas, axis=0).std())})
    return rows


def summarise(comparison: Comparison, rates: pd.DataFrame | None = None) -> dict:
    """Return the summary of all categories as plain values.

    Args:
        comparison: of `benchmark.run_benchmark`.
        rates: of `timing.rate_table`, or None.

    Returns:
        ``methods``: a row a method with the mean over categories and seeds of every metric, the
        standard error over images (``<metric>_se``) and the standard deviation over training
        seeds of the mean over categories (``<metric>_seed_std``; 0 for a method without
        randomness, None where one seed cannot tell).
        ``per_category``: the same for each category and method.
        ``defects``, ``groups``: I-AUROC for each kind and group of defects, mean over categories.
        ``differences``: G2SF minus each method in each metric of `RESAMPLED`, per category and in
        the mean, with standard error and p value (see `_Paired`), Holm-corrected for the number
        of methods, metric by metric and category by category; ``is_real`` where that is below
        `LEVEL`.
        ``pairs``: the same of all pairs of methods, I-AUROC in the mean, corrected for the number
        of pairs: a difference that is real among ``differences`` need not be real here.
        ``silhouettes``: mean I-AUROC of each method under both silhouette rules.
        ``frame_rates``, ``machine``: of `rates`.
    """
    config, table = comparison.config, comparison.table
    ours = table[table.silhouette == config.scoring.silhouette]
    per_category = _mean_over_seeds(ours, ["category", "method"])
    paired = {metric: _Paired(comparison, ours, metric) for metric in RESAMPLED}
    others = [method for method in comparison.methods if method != "g2sf"]
    differences = []
    if "g2sf" in comparison.methods:
        for metric, pair in paired.items():
            for category in (*comparison.categories, None):
                named = {"metric": metric, "category": category or "mean"}
                differences += _corrected(
                    [named | {"method": m} | pair.of("g2sf", m, category) for m in others]
                )
    pairs = _corrected(
        [
            {"first": a, "second": b} | paired["i_auroc"].of(a, b)
            for a, b in itertools.combinations(comparison.methods, 2)
        ]
    )
    both = _mean_over_seeds(table, ["silhouette", "method", "category"])["i_auroc"]
    both = both.groupby(["silhouette", "method"], sort=False).mean().unstack("silhouette")
    return {
        "profile": config.profile,
        "dataset": config.dataset,
        "categories": list(comparison.categories),
        "seeds": list(comparison.seeds),
        "silhouette": config.scoring.silhouette,
        **origin(config, comparison.categories),
        "methods": rounded(_method_rows(comparison, ours, per_category)),
        "per_category": rounded(_category_rows(comparison, ours)),
        "defects": rounded(_defect_rows(comparison, per_category)),
        "groups": rounded(_group_rows(comparison)),
        "differences": rounded(differences),
        "pairs": rounded(pairs),
        "silhouettes": rounded(both.reset_index().to_dict("records")),
        "frame_rates": [] if rates is None else rounded(rates.to_dict("records")),
        "machine": None if rates is None else machine(config.device),
    }


def _mean_over_seeds(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the mean over seeds of every metric."""
    metrics = [c for c in table if c not in ("category", "method", "seed", "silhouette")]
    return table.groupby(by, sort=False)[metrics].mean(numeric_only=True)


def rounded(rows: list[dict]) -> list[dict]:
    """Return rows with four digits; what is no number becomes None, which JSON can hold."""
    return [
        {
            k: (None if math.isnan(v) else round(v, 4)) if isinstance(v, float) else v
            for k, v in row.items()
        }
        for row in rows
    ]


def write_summary(summary: dict, config: Config) -> Path:
    """Write the summary to `summary_file`, and return where that is."""
    write_json(summary_file(config), summary)
    return summary_file(config)
