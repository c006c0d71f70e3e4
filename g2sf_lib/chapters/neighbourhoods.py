"""Chapters 06 and 08: why: distances of the false alarms, and which neighbourhood decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from g2sf_lib.benchmark import checked_seeds
from g2sf_lib.chapters.metric import judged_cells
from g2sf_lib.chapters.wording import signed
from g2sf_lib.config import MODALITIES, Config
from g2sf_lib.detector import counted_cells
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.experiments import checked_categories, fitted
from g2sf_lib.quantities import TestCells, neighbourhoods

LITTLE = 0.001  # a metric that falls by less can hardly change a ranking
FALL_NAMES = {
    "fall_normal": "normal cells",
    "fall_highest": "their highest hundredth",
    "fall_anomalous": "anomalous cells",
}
HIGHEST_SHARE = 0.01  # of normal cells: the false alarms that chapter 06 looks at


def proximity_rows(
    config: Config, categories: Sequence[str] | str | None, seeds: Sequence[int] | str
) -> pd.DataFrame:
    """Return, for each modality, whether the false alarms of w lie near to prototypes.

    Cells are the counted ones of the test scans, in their nearest neighbourhood. The false alarms
    of a score are the hundredth of the normal cells with the highest values.

    Args:
        config: of the run.
        categories: those that take part; None: all that are there.
        seeds: training seeds.

    Returns:
        A row a category, seed and modality ``mod``: ``near_w`` and ``near_ws``, the shares of
        the false alarms of w, and of w times s, whose distance is below the median of normal
        cells (one half: distance does not matter; of s itself it is 0); ``auroc_s``,
        ``auroc_w`` and ``auroc_ws`` over cells.

    Source: Section 4.3, "proximity to memory prototypes inherently indicates normality".
    """
    lines = []
    for category in checked_categories(config, categories):
        for seed in checked_seeds(seeds):
            of_one = dataclasses.replace(config, category=category, seed=seed)
            cells = judged_cells(of_one, fitted(of_one), "test")
            for m, mod in enumerate(MODALITIES):
                place = {"category": category, "seed": seed, "mod": mod}
                lines.append(place | proximity(cells.s[:, m], cells.w[:, m], cells.is_anomalous))
    return pd.DataFrame(lines)


def proximity(s: np.ndarray, w: np.ndarray, is_anomalous: np.ndarray) -> dict[str, float]:
    """Return a row of `proximity_rows` for (N,) distances and scale factors of one modality."""
    normal = ~is_anomalous
    is_near = s[normal] < np.median(s[normal])
    num = max(1, round(HIGHEST_SHARE * int(normal.sum())))
    row = {}
    for name, score in (("s", s), ("w", w), ("ws", w * s)):
        highest = np.argsort(score[normal], kind="stable")[-num:]
        row[f"near_{name}"] = float(is_near[highest].mean())
        row[f"auroc_{name}"] = float(image_auroc(score, is_anomalous))
    del row["near_s"]
    return row


def proximity_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return means of `proximity_rows` over categories and seeds, as text, a row a modality."""
    columns = {
        "near_w": "near among the false alarms of w",
        "near_ws": "near among those of w · s",
        "auroc_s": "AUROC of cells: s",
        "auroc_w": "w",
        "auroc_ws": "w · s",
    }
    each = found.groupby("mod", sort=False)[list(columns)].mean()
    names = {"pcd": "points", "rgb": "RGB"}
    return each.map("{:.3f}".format).rename(columns=columns, index=names).rename_axis("modality")


def proximity_report(found: pd.DataFrame) -> str:
    """Return, in Markdown, whether the paper's reason against w alone is seen here."""
    lines = []
    for mod, of_mod in found.groupby("mod", sort=False):
        each = of_mod.groupby("category", sort=False)[["near_w", "near_ws", "auroc_s", "auroc_w"]]
        mean = each.mean().mean()
        name = {"pcd": "points", "rgb": "RGB"}[mod]
        gap = mean["auroc_w"] - mean["auroc_s"]
        lines.append(
            f"- {name}: {mean['near_w']:.0%} of the false alarms of w lie nearer to their "
            f"prototype than the median normal cell does, and {mean['near_ws']:.0%} of those of "
            f"w · s; over cells w alone tells defects {'better' if gap > 0 else 'worse'} than s "
            f"({signed(gap)})"
        )
    return "\n".join(lines)


def neighbourhood_rows(
    config: Config, categories: Sequence[str] | str | None, seeds: Sequence[int] | str
) -> pd.DataFrame:
    """Return which of the 2k + 1 neighbourhoods has the least metric, and how far it falls.

    Args:
        config: of the run.
        categories: those that take part; None: all that are there.
        seeds: training seeds.

    Returns:
        A row a category, seed and ``J``, of the counted cells of the test scans: ``first_normal``
        and ``first_anomalous``, shares of cells whose least metric over all of them is at j = J;
        ``fall_normal``, ``fall_anomalous`` and ``fall_highest``, by what share of the metric at
        j = 0 the minimum over j = 0 ... J is below it, a mean (in [0, 1), never smaller for a
        larger J). "highest" is the hundredth of the normal cells with the highest metric at
        j = 0: what would raise false alarms.
    """
    lines = []
    for category in checked_categories(config, categories):
        test = TestCells(dataclasses.replace(config, category=category))
        is_counted, is_anomalous = [], []
        for patches, labels in zip(test.patches, test.cell_labels, strict=True):
            counted = counted_cells(patches, config.scoring.silhouette)
            is_counted.append(counted[patches.foreground].cpu())
            is_anomalous.append(labels[counted].cpu().numpy())
        among, anomalous = torch.cat(is_counted), np.concatenate(is_anomalous)
        for seed in checked_seeds(seeds):
            of_one = dataclasses.replace(config, category=category, seed=seed)
            ell = neighbourhoods(fitted(of_one), test).ell
            for row in fall(ell[among].numpy(), anomalous):
                lines.append({"category": category, "seed": seed} | row)
    return pd.DataFrame(lines)


def fall(ell: np.ndarray, is_anomalous: np.ndarray) -> list[dict[str, float]]:
    """Return the rows of `neighbourhood_rows` for (N, 2k + 1) metrics of cells."""
    least, first = np.minimum.accumulate(ell, axis=1), ell.argmin(axis=1)
    base = np.maximum(ell[:, :1], np.finfo(ell.dtype).tiny)
    below = np.where(ell[:, :1] > 0, 1 - least / base, 0.0)  # a cell of the bank has metric 0
    normal = np.flatnonzero(~is_anomalous)
    num = max(1, round(HIGHEST_SHARE * len(normal)))
    sides = {"normal": normal, "anomalous": np.flatnonzero(is_anomalous)}
    falls = sides | {"highest": normal[np.argsort(ell[normal, 0], kind="stable")[-num:]]}
    return [
        {"J": last}
        | {f"first_{side}": float((first[rows] == last).mean()) for side, rows in sides.items()}
        | {f"fall_{side}": float(below[rows, last].mean()) for side, rows in falls.items()}
        for last in range(ell.shape[1])
    ]


def neighbourhood_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return in which neighbourhood cells have their least metric, mean over categories and seeds.

    Args:
        found: of `neighbourhood_rows`.

    Returns:
        As text, in per cent: a row a class of cells, a column a neighbourhood.
    """
    names = {"first_normal": "normal cells", "first_anomalous": "anomalous cells"}
    mean = found.groupby("J")[list(names)].mean().rename(columns=names)
    table = mean.map("{:.1%}".format).T
    return table.rename(columns="j = {}".format).rename_axis(index="least at", columns=None)


def fall_curves(found: pd.DataFrame) -> pd.DataFrame:
    """Return by how many per cent the minimum is below the nearest, under the panels' names."""
    below = {name: 100 * found[column] for column, name in FALL_NAMES.items()}
    return found[["category", "seed", "J"]].assign(**below)


def neighbourhood_report(found: pd.DataFrame, k: int) -> str:
    """Return, in Markdown, how often a farther neighbourhood decides, and for whom.

    Args:
        found: of `neighbourhood_rows`.
        k: of Eq. 11.
    """
    mean = found.groupby("J").mean(numeric_only=True)
    own, at_k, last = mean.loc[0], mean.loc[k], mean.index[-1]
    at_end = mean.loc[last]
    alarms, anomalies = at_k["fall_highest"], at_k["fall_anomalous"]
    if max(alarms, anomalies) < LITTLE:
        meaning = f"Both are below {LITTLE:.1%}: the rule has next to nothing to decide here."
    elif alarms > anomalies:
        meaning = (
            "The false alarms fall more: that is what the rule is for, and what a ranking gains by."
        )
    else:
        meaning = "The anomalies fall more than the false alarms do: a ranking loses by that."
    return (
        f"The nearest neighbourhood has the least metric for {own['first_normal']:.1%} of normal "
        f"and {own['first_anomalous']:.1%} of anomalous cells; there, min and nearest are the same "
        f"number. The minimum over j = 0 ... {k} is on average {at_k['fall_normal']:.2%} (normal "
        f"cells) and {anomalies:.2%} (anomalous ones) below the metric at j = 0, that over "
        f"j = 0 ... {last} {at_end['fall_normal']:.2%} and {at_end['fall_anomalous']:.2%}. For a "
        "threshold only the highest normal cells matter: their highest hundredth falls by "
        f"{alarms:.2%} up to j = {k}. {meaning}"
    )
