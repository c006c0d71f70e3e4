"""From the scores of all categories to one summary: means, spreads, what is a real difference."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from g2sf_lib.benchmark import NUM_RESAMPLES, RESAMPLED, Comparison
from g2sf_lib.config import Config
from g2sf_lib.evaluation import bootstrap_auroc, image_auroc
from g2sf_lib.experiments import package_versions
from g2sf_lib.storage import write_json
from g2sf_lib.timing import machine

METHOD_NAMES = {
    "g2sf": "G²SF",
    "w1": "G²SF with w = 1",
    "rgb": "RGB alone",
    "pcd": "points alone",
    "sum": "normalised sum",
    "product": "normalised product",
    "max": "calibrated maximum",
    "concat": "concatenated bank",
    "m3dm": "M3DM (SVMs)",
    "cfm": "CFM",
    "ast": "AST",
}
METRIC_NAMES = {
    "i_auroc": "I-AUROC",
    "p_auroc": "P-AUROC",
    "aupro_30": "AUPRO@30 %",
    "aupro_1": "AUPRO@1 %",
}
LIMITS = (30, 10, 5, 1)  # per cent of false positives, where AUPRO ends
LEVEL = 0.05  # a difference is called real where its corrected p value is below this
GROUPS = {  # what the kinds of defect of the embedded data set change
    "geometry only": ("cut", "dent"),
    "appearance only": ("colour", "stain"),
    "both": ("combined",),
}


def summary_file(config: Config) -> Path:
    """Return where the summary of a profile and data set is kept."""
    prefix = "" if config.dataset == "procedural" else f"{config.dataset}_"
    return Path("data/results") / f"{prefix}{config.profile}.json"


def _resampled(comparison: Comparison, metric: str) -> dict[str, dict[str, np.ndarray]]:
    """Return category -> method -> (NUM_RESAMPLES,) a metric, mean over seeds."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for category, scores in comparison.scores.items():
        by_method: dict[str, list[np.ndarray]] = {}
        for (method, _), metrics in scores.resampled.items():
            by_method.setdefault(method, []).append(metrics[metric])
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
        # A method without randomness has one seed only: its value holds for all.
        a, b = (
            self.values.loc[[(c, method) for c in chosen]].mean().dropna()
            for method in (first, second)
        )
        each = a.sub(b) if len(a) == len(b) else (a - b.mean() if len(b) == 1 else a.mean() - b)
        seeds = float(each.std() / len(each) ** 0.5) if len(each) > 1 else 0.0
        size, error = float(each.mean()), float(np.hypot(gap.std(), seeds))
        p = float(2 * norm.sf(abs(size) / error)) if error > 0 else float(size == 0)
        return {"difference": size, "se": error, "p": p}


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
                row[f"{metric}_seed_std"] = 0.0 if np.isnan(spread) else float(spread)
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
        spread = of_both[shown].std().fillna(0.0)
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
    """
    if comparison.config.dataset != "procedural":
        return []
    rule, rows = comparison.config.scoring.silhouette, []
    for group, kinds in GROUPS.items():
        for method in comparison.methods:
            values, areas = [], []
            for scores in comparison.scores.values():
                labels = np.array(scores.labels)
                chosen = np.isin(labels, ["good", *kinds])
                truth = labels[chosen] != "good"
                images = np.array(
                    [x[chosen] for (m, _, r), x in scores.image.items() if (m, r) == (method, rule)]
                )
                values.append(np.mean([image_auroc(x, truth) for x in images]))
                draw = np.random.default_rng([1, len(truth)])
                areas.append(bootstrap_auroc(images, truth, NUM_RESAMPLES, draw).mean(axis=0))
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
        seeds of the mean over categories (``<metric>_seed_std``).
        ``per_category``: the same for each category and method.
        ``defects``, ``groups``: I-AUROC for each kind and group of defects, mean over categories.
        ``differences``: G2SF minus each method in each metric of `RESAMPLED`, per category and in
        the mean, with standard error and Holm-corrected p value (see `_Paired`); ``is_real``
        where that is below `LEVEL`.
        ``pairs``: the same of all pairs of methods, I-AUROC in the mean.
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
        "packages": package_versions(),
        "methods": _rounded(_method_rows(comparison, ours, per_category)),
        "per_category": _rounded(_category_rows(comparison, ours)),
        "defects": _rounded(_defect_rows(comparison, per_category)),
        "groups": _rounded(_group_rows(comparison)),
        "differences": _rounded(differences),
        "pairs": _rounded(pairs),
        "silhouettes": _rounded(both.reset_index().to_dict("records")),
        "frame_rates": [] if rates is None else _rounded(rates.to_dict("records")),
        "machine": None if rates is None else machine(config.device),
    }


def _mean_over_seeds(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the mean over seeds of every metric."""
    metrics = [c for c in table if c not in ("category", "method", "seed", "silhouette")]
    return table.groupby(by, sort=False)[metrics].mean(numeric_only=True)


def _rounded(rows: list[dict]) -> list[dict]:
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
