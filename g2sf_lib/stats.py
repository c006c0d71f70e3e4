"""How surely one thing stands above another: one paired test, for every table of the book.

Categories are fixed. What could have come out otherwise are the trainings (seeds) and, where there
are resamples, the images.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import percentileofscore
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

LEVEL = 0.05  # a difference is called real where its corrected p value is below this
EXACT = 1e-12  # differences and errors below this are those of arithmetic
METRIC_NAMES = {
    "i_auroc": "I-AUROC",
    "p_auroc": "P-AUROC",
    "aupro_30": "AUPRO@30 %",
    "aupro_1": "AUPRO@1 %",
}
ALL_METRICS = tuple(METRIC_NAMES)
Resamples = Mapping[str, Mapping[str, np.ndarray]]  # category -> name -> (R,) a metric


def share_of_good_below(scores: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return, for each scan, the share of good scans with a lower score; ties count half."""
    good = np.asarray(scores)[np.asarray(labels) == "good"]
    return percentileofscore(good, scores, kind="mean") / 100


def against_good(
    maps: Sequence[np.ndarray], labels: Sequence[str], numbers: Sequence[int]
) -> list[np.ndarray]:
    """Return some score maps (h, w) in units in which every method can be compared by eye.

    0 is the median of the scored pixels (above 0) of good scans, 1 their highest; it is cut there.
    """
    good = np.stack([m for m, label in zip(maps, labels, strict=True) if label == "good"])
    low, high = np.median(good[good > 0]), good.max()
    return [np.clip((maps[n] - low) / (high - low), 0, 1) for n in numbers]


def holm(p: Sequence[float]) -> np.ndarray:
    """Return p values corrected for being several by Holm's rule; NaN stays NaN and is no test."""
    p = np.array(p, dtype=float)
    known = ~np.isnan(p)
    if known.any():
        p[known] = multipletests(p[known], method="holm")[1]
    return p


def paired(
    rows: pd.DataFrame,
    first: str,
    second: str | None,
    value: str,
    key: str = "variant",
    images: Resamples | None = None,
) -> dict[str, float]:
    """Return the mean over categories of a difference, its standard error, and how sure it is.

    Differences are those of equal seeds in one category. The error of seeds is pooled: the variance
    of each category's mean, summed and divided by the square of their number, with Satterthwaite's
    degrees of freedom. The error of images is the deviation of the mean difference over resamples
    that all methods share, with infinitely many. Both are added as squares.

    Args:
        rows: columns `key`, ``category``, ``seed`` and `value`, one row a combination. What has
            one seed only in a category holds there for every seed of the other.
        first: of `key`.
        second: of `key`, what is subtracted; None: nothing is.
        value: the metric.
        key: which column says what differs.
        images: resampled metrics; None: the images are taken as they are.

    Returns:
        ``difference``, ``se`` and two-sided ``p`` (NaN where nothing tells an error), ``wins`` (in
        how many of ``num`` pairs the first is above).
    """
    wide = rows.pivot_table(index=["category", "seed"], columns=key, values=value, sort=False)
    categories, gaps = wide.index.unique("category"), []
    for category in categories:
        gap = wide[first].dropna().xs(category)
        if second is not None:
            other = wide[second].dropna().xs(category)
            alone = len(gap) == 1 or len(other) == 1
            gap = gap.to_numpy() - other.to_numpy() if alone else (gap - other).dropna()
        gaps.append(np.asarray(gap, dtype=float))
    size, every = float(np.mean([gap.mean() for gap in gaps])), np.concatenate(gaps)
    found = {"difference": size, "wins": int((every > 0).sum()), "num": len(every)}
    parts = [(gap.var(ddof=1) / len(gap), len(gap) - 1) for gap in gaps if len(gap) > 1]
    if not parts and images is None:
        return found | {"se": float("nan"), "p": float("nan")}
    seeds, resampled = sum(part for part, _ in parts) / len(gaps) ** 2, 0.0
    if images is not None:
        each = [images[c][first] - (images[c][second] if second else 0.0) for c in categories]
        resampled = float(np.var(np.mean(each, axis=0)))
    error = float(seeds + resampled) ** 0.5
    if error < EXACT:
        return found | {"se": error, "p": float(abs(size) < EXACT)}
    freedom = np.inf
    if seeds > EXACT**2:
        own = sum((part / len(gaps) ** 2) ** 2 / num for part, num in parts)
        freedom = (seeds + resampled) ** 2 / own
    return found | {"se": error, "p": float(2 * student.sf(abs(size) / error, freedom))}


def compare(
    rows: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    value: str,
    key: str = "variant",
    images: Resamples | None = None,
) -> pd.DataFrame:
    """Return what becomes of claims that one row stands above another.

    A row a pair: ``higher``, ``lower``, `paired` with p corrected by Holm's rule, ``is_real`` (p
    below `LEVEL`), and ``verdict``: "holds" or "reversed" where it is, else "open".
    """
    found = [{"higher": a, "lower": b} | paired(rows, a, b, value, key, images) for a, b in pairs]
    table = pd.DataFrame(found)
    table["p"] = holm(table["p"])
    table["is_real"] = table["p"] < LEVEL
    sign = np.where(table["difference"] > 0, "holds", "reversed")
    table["verdict"] = np.where(table["is_real"], sign, "open")
    return table


def effects(
    rows: pd.DataFrame, reference: str, key: str = "variant", metrics: Sequence[str] = ALL_METRICS
) -> pd.DataFrame:
    """Return `paired` differences from a reference, p uncorrected, a row a metric and variant."""
    others = [name for name in rows[key].unique() if name != reference]
    found = [
        {key: name, "metric": metric} | paired(rows, name, reference, metric, key)
        for metric, name in itertools.product(metrics, others)
    ]
    return pd.DataFrame(found)


def gaps(
    rows: pd.DataFrame, reference: str, key: str = "variant", metrics: Sequence[str] = ALL_METRICS
) -> pd.DataFrame:
    """Return each ``difference`` behind `effects`, a row a metric, variant, category and seed."""
    long = rows.melt([key, "category", "seed"], list(metrics), "metric", "difference")
    long = long.set_index(["metric", "category", "seed"])
    is_reference = long[key] == reference
    others = long[~is_reference].copy()
    others["difference"] -= long.loc[is_reference, "difference"].reindex(others.index)
    return others.reset_index()


def metric_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns that are metrics, by either protocol."""
    return [c for c in rows if re.fullmatch(r"(i_auroc|p_auroc|aupro_\d+)(_published)?", c)]


def means(
    rows: pd.DataFrame, key: str = "variant", metrics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return a row a variant: mean of metrics over categories, then seeds; ``<metric>_seed_std``.

    The deviation is that of the mean over categories from seed to seed (NaN for one seed).
    """
    metrics = metric_columns(rows) if metrics is None else list(metrics)
    by_seed = rows.groupby([key, "seed"], sort=False)[metrics].mean()
    groups = by_seed.groupby(key, sort=False)
    return groups.mean().join(groups.std().add_suffix("_seed_std"))


def threshold(normal: np.ndarray, rate: float) -> tuple[float, float]:
    """Return the lowest threshold that promises at most a rate of alarms, and what it promises.

    A new score is above the j-th highest of n scores drawn alike with probability j / (n + 1); j is
    the largest that keeps this at or below the rate. Infinity and NaN where n is too small for it.
    """
    allowed = int(rate * (len(normal) + 1) + 1e-9)
    if allowed == 0:
        return float("inf"), float("nan")
    return float(np.partition(normal, -allowed)[-allowed]), allowed / (len(normal) + 1)
