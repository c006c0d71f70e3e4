"""How surely one thing stands above another: one paired test, for every table of the book.

Categories are fixed: a claim is made about the categories that were measured. What could have come
out otherwise are the trainings (seeds) and, where resamples of the images are at hand, the images.
"""

from __future__ import annotations

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
Resamples = Mapping[str, Mapping[str, np.ndarray]]  # category -> name -> (R,) a metric


def share_of_good_below(scores: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return, for each scan, the share of good scans with a lower score; ties count half."""
    good = np.asarray(scores)[np.asarray(labels) == "good"]
    return percentileofscore(good, scores, kind="mean") / 100


def against_good(
    maps: Sequence[np.ndarray], labels: Sequence[str], numbers: Sequence[int]
) -> list[np.ndarray]:
    """Return some score maps in units in which every method can be compared by eye.

    0 is the median of the scored pixels of all good scans, 1 the highest value that any of them
    has; what lies outside is cut. So a pixel at 1 is beyond every good scan.

    Args:
        maps: a map (h, w) a scan, 0 where nothing is scored.
        labels: of the scans; at least one is "good".
        numbers: of the scans to return.
    """
    good = np.stack([m for m, label in zip(maps, labels, strict=True) if label == "good"])
    low, high = np.median(good[good > 0]), good.max()
    return [np.clip((maps[n] - low) / (high - low), 0, 1) for n in numbers]


def holm(p: Sequence[float]) -> np.ndarray:
    """Return p values corrected for being several by Holm's rule; NaN stays NaN and is no test."""
    p = np.asarray(p, dtype=float)
    known = ~np.isnan(p)
    if known.any():
        p = p.copy()
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
    degrees of freedom (up to categories times seeds less one each). The error of images is the
    deviation of the mean difference over resamples that all methods share; its degrees of freedom
    are infinitely many. Both are added as squares.

    Args:
        rows: columns `key`, ``category``, ``seed`` and `value`, one row a combination. What has
            one seed only in a category holds there for every seed of the other.
        first: of `key`.
        second: of `key`; the difference is first minus second. None: first minus zero.
        value: the metric.
        key: which column says what differs.
        images: resampled metrics; None: the images are taken as they are.

    Returns:
        ``difference``, ``se`` and two-sided ``p`` (NaN where one seed, and no resample, leaves
        nothing to tell an error by), ``wins`` (in how many of ``num`` pairs the first is above).
    """
    wide = rows.pivot_table(index=["category", "seed"], columns=key, values=value, sort=False)
    sides = [wide[first].dropna(), None if second is None else wide[second].dropna()]
    gaps = []
    for category in wide.index.unique("category"):
        a, b = (None if side is None else side.xs(category) for side in sides)
        if b is None:
            gap = a
        elif len(a) == 1 or len(b) == 1:
            gap = pd.Series(np.subtract(*np.broadcast_arrays(a.to_numpy(), b.to_numpy())))
        else:
            gap = (a - b).dropna()
        gaps.append(gap.to_numpy(dtype=float))
    size = float(np.mean([gap.mean() for gap in gaps]))
    every = np.concatenate(gaps)
    found = {"difference": size, "wins": int((every > 0).sum()), "num": len(every)}
    parts = [gap.var(ddof=1) / len(gap) for gap in gaps if len(gap) > 1]
    seeds = sum(parts) / len(gaps) ** 2
    resampled = 0.0
    if images is not None:
        chosen = [images[category] for category in wide.index.unique("category")]
        each = [one[first] - (0.0 if second is None else one[second]) for one in chosen]
        resampled = float(np.var(np.mean(each, axis=0)))
    if not parts and images is None:
        return found | {"se": float("nan"), "p": float("nan")}
    error = float(seeds + resampled) ** 0.5
    if error < EXACT:
        return found | {"se": error, "p": float(abs(size) < EXACT)}
    freedom = np.inf
    if seeds > EXACT**2:
        own = sum(
            (gap.var(ddof=1) / len(gap) / len(gaps) ** 2) ** 2 / (len(gap) - 1)
            for gap in gaps
            if len(gap) > 1
        )
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

    Args:
        rows: as in `paired`.
        pairs: (higher, lower) as claimed.
        value: the metric.
        key: as in `paired`.
        images: as in `paired`.

    Returns:
        A row a pair: ``higher``, ``lower``, the columns of `paired` with ``p`` corrected by
        Holm's rule for the number of pairs, ``is_real`` (p below `LEVEL`), and ``verdict``: "holds"
        or "reversed" where it is, else "open".
    """
    found = [{"higher": a, "lower": b} | paired(rows, a, b, value, key, images) for a, b in pairs]
    table = pd.DataFrame(found)
    table["p"] = holm(table["p"])
    table["is_real"] = table["p"] < LEVEL
    sign = np.where(table["difference"] > 0, "holds", "reversed")
    table["verdict"] = np.where(table["is_real"], sign, "open")
    return table


def effects(
    rows: pd.DataFrame,
    reference: str,
    key: str = "variant",
    metrics: Sequence[str] = tuple(METRIC_NAMES),
) -> pd.DataFrame:
    """Return `paired` differences from a reference, p uncorrected, a row a metric and variant."""
    others = [name for name in rows[key].unique() if name != reference]
    return pd.DataFrame(
        [
            {key: name, "metric": metric} | paired(rows, name, reference, metric, key)
            for metric in metrics
            for name in others
        ]
    )


def gaps(
    rows: pd.DataFrame,
    reference: str,
    key: str = "variant",
    metrics: Sequence[str] = tuple(METRIC_NAMES),
) -> pd.DataFrame:
    """Return each ``difference`` behind `effects`, a row a metric, variant, category and seed."""
    place = ["metric", "category", "seed"]
    long = rows.melt([key, "category", "seed"], list(metrics), "metric", "difference")
    is_reference = long[key] == reference
    base = long[is_reference].set_index(place)["difference"]
    others = long[~is_reference].set_index(place)
    others["difference"] -= base.reindex(others.index)
    return others.reset_index()


def metric_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns that are metrics, by either protocol."""
    return [c for c in rows if re.fullmatch(r"(i_auroc|p_auroc|aupro_\d+)(_published)?", c)]


def means(
    rows: pd.DataFrame, key: str = "variant", metrics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return a row a variant: mean of every metric (or those named), and ``<metric>_seed_std``.

    Means are over categories first and seeds then; the deviation is that of the mean over
    categories from seed to seed (NaN for one seed).
    """
    metrics = metric_columns(rows) if metrics is None else list(metrics)
    by_seed = rows.groupby([key, "seed"], sort=False)[metrics].mean()
    groups = by_seed.groupby(key, sort=False)
    return groups.mean().join(groups.std().add_suffix("_seed_std"))


def threshold(normal: np.ndarray, rate: float) -> tuple[float, float]:
    """Return the lowest threshold that promises at most a rate of alarms, and what it promises.

    An alarm is a score above the threshold. If a new score and the n known ones (n,) are drawn
    alike, it is above the j-th highest of them with probability j / (n + 1); j is the largest whole
    number that keeps this at or below the rate. Infinity and NaN where n is too small for the rate.
    """
    allowed = int(rate * (len(normal) + 1) + 1e-9)
    if allowed == 0:
        return float("inf"), float("nan")
    return float(np.partition(normal, -allowed)[-allowed]), allowed / (len(normal) + 1)
