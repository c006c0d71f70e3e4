"""Chapter 09: how scores of normal and anomalous pixels spread, and how far they overlap."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from g2sf_lib.ablations import paired, summary
from g2sf_lib.benchmark import (
    SEEDED,
    checked_methods,
    checked_seeds,
    run_methods,
    runs_of,
)
from g2sf_lib.chapters.wording import p_text, signed, with_spread
from g2sf_lib.config import Config, ScoringConfig
from g2sf_lib.detector import counted_cells
from g2sf_lib.evaluation import resize_mask
from g2sf_lib.experiments import checked_categories
from g2sf_lib.features import PackedPatches
from g2sf_lib.results import METHOD_NAMES
from g2sf_lib.stats import LEVEL

FIGURE_METHODS = ("cfm", "w1", "g2sf")  # the rows of the figure, from above; w1 is our control
SCALES = {  # what scores are divided by, and where the axis of its figure ends
    "highest": ("highest pixel", 1.0),
    "quantile": ("99.9 % quantile", 1.5),
    "anomalous": ("median anomalous pixel", 3.0),
}
NUM_BINS = 100
RECALL = 0.9
WIDTHS = {  # quantities that are compared as ratios
    "iqr_highest": "quartile range of normals / highest pixel",
    "iqr_quantile": "quartile range of normals / 99.9 % quantile",
    "iqr_anomalous": "quartile range of normals / median anomalous",
    "iqr_range": "quartile range of normals / highest - lowest pixel",
    "std_highest": "std of normals / highest pixel",
    "std_quantile": "std of normals / 99.9 % quantile",
    "std_anomalous": "std of normals / median anomalous",
    "reach": "99 % quantile of normals / median anomalous",
}
SHARES = {  # quantities that are compared as differences
    "overlap": "overlap of the densities",
    "fpr": "false positive rate at 90 % recall",
    "p_auroc": "pixel AUROC",
    "fpr_all": "false positive rate, all pixels",
    "p_auroc_all": "pixel AUROC, all pixels",
}
LOWEST = 1e-12  # what a spread of zero counts as, so that it can be divided by


@dataclass(frozen=True)
class Pixels:
    """Scores of the pixels of one category by one method.

    Attributes:
        normal: (n,) scores of normal pixels, rising.
        anomalous: (m,) scores of anomalous pixels, rising.
    """

    normal: np.ndarray
    anomalous: np.ndarray

    @classmethod
    def of(cls, maps: np.ndarray, masks: np.ndarray, where: np.ndarray | None = None) -> Pixels:
        """Return the pixels of some score maps.

        Args:
            maps: (N, H, W) scores.
            masks: (N, H, W) bool, True on anomalous pixels.
            where: (N, H, W) bool, which pixels are looked at; None: all.

        Raises:
            ValueError: shapes differ, a score is not finite, or there are no pixels of a class.
        """
        where = np.ones_like(masks, dtype=bool) if where is None else where
        if not maps.shape == masks.shape == where.shape:
            raise ValueError(
                f"Pixels: maps, masks and where have shapes {maps.shape}, {masks.shape} and "
                f"{where.shape}; expected equal ones"
            )
        normal, anomalous = np.sort(maps[where & ~masks]), np.sort(maps[where & masks])
        if not len(normal) or not len(anomalous):
            raise ValueError(
                f"Pixels: {len(normal)} normal and {len(anomalous)} anomalous pixels; expected "
                "some of both"
            )
        if not np.isfinite([normal[0], normal[-1], anomalous[0], anomalous[-1]]).all():
            raise ValueError("Pixels: a score is not finite")
        return cls(normal, anomalous)


def counted_pixels(patches: Sequence[PackedPatches], scoring: ScoringConfig) -> np.ndarray:
    """Return (N, map_size, map_size) bool: the pixels of the cells whose scores count.

    Elsewhere a score map is zero, apart from what the blur carries over the edge: there is no
    object, or the silhouette rule leaves it out.
    """
    masks = []
    for p in patches:
        counted = counted_cells(p, scoring.silhouette).cpu().numpy().reshape(p.grid)
        masks.append(resize_mask(counted, scoring.map_size))
    return np.stack(masks)


def scales_of(pixels: Pixels) -> dict[str, float]:
    """Return what each of `SCALES` divides the scores by."""
    both = np.concatenate([pixels.normal, pixels.anomalous])
    found = {
        "highest": both.max(),
        "quantile": np.quantile(both, 0.999),
        "anomalous": np.median(pixels.anomalous),
    }
    return {name: max(float(value), LOWEST) for name, value in found.items()}


def density(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the density of scores in bins, whose sum times the width is the share inside.

    Args:
        scores: (n,) rising.
        edges: (B + 1,) rising, equally spaced; the last bin holds its upper edge.

    Returns:
        (B,); scores above the last edge are in no bin, but are counted in n.
    """
    below = np.searchsorted(scores, edges, side="left")
    below[-1] = np.searchsorted(scores, edges[-1], side="right")
    return np.diff(below) / (len(scores) * np.diff(edges))


def overlap(pixels: Pixels, num: int = 100) -> float:
    """Return the share that the two densities have in common: 1 where they are the same.

    The integral of the smaller of both densities, over bins. Their edges are quantiles of
    the normal and of the anomalous scores, so that the result stays what it is when all scores
    go through one rising function, and no choice of the axis enters.

    Args:
        pixels: of both classes.
        num: how many quantiles of each class.

    Returns:
        In [0, 1]; 0 where no normal pixel scores as high as an anomalous one.
    """
    levels = np.linspace(0, 1, num + 1)
    edges = [
        np.quantile(x, levels, method="inverted_cdf") for x in (pixels.normal, pixels.anomalous)
    ]
    edges = np.unique(np.concatenate(edges))
    shares = []
    for scores in (pixels.normal, pixels.anomalous):
        below = np.append(np.searchsorted(scores, edges, side="left"), len(scores))
        shares.append(np.diff(below) / len(scores))
    return float(np.minimum(*shares).sum())


def recall_threshold(anomalous: np.ndarray, recall: float = RECALL) -> float:
    """Return the highest threshold that at least a share `recall` of rising scores reaches."""
    kept = int(np.ceil(recall * len(anomalous) - 1e-9))
    return float(anomalous[len(anomalous) - kept])


def false_positive_rate(pixels: Pixels, recall: float = RECALL) -> float:
    """Return the share of normal pixels at or above the threshold of `recall_threshold`."""
    first = np.searchsorted(pixels.normal, recall_threshold(pixels.anomalous, recall), side="left")
    return 1.0 - float(first) / len(pixels.normal)


def area(pixels: Pixels) -> float:
    """Return the chance that an anomalous pixel scores above a normal one; a tie counts half."""
    sides = [np.searchsorted(pixels.normal, pixels.anomalous, side) for side in ("left", "right")]
    return float(np.mean(sides)) / len(pixels.normal)


def measure_pixels(pixels: Pixels) -> dict[str, float]:
    """Return what a figure of two densities shows, as numbers.

    Returns:
        ``iqr_<scale>`` and ``std_<scale>``, the range between the quartiles and the standard
        deviation of normal scores, in each of `SCALES`; ``iqr_range``, the former divided by the
        highest score less the lowest; ``reach``, the 99 % quantile of normal
        scores over the median of anomalous ones; ``overlap``, ``fpr`` (at 90 % recall),
        ``p_auroc``; and ``lone``, the highest pixel over the 99.9 % quantile: how much of the
        axis of the figure only one pixel in a thousand needs.
    """
    normal, scales = pixels.normal, scales_of(pixels)
    low, high, far = np.quantile(normal, (0.25, 0.75, 0.99))
    spread = float(normal.std(dtype=np.float64))
    found = {f"iqr_{name}": float(high - low) / scale for name, scale in scales.items()}
    lowest = float(min(normal[0], pixels.anomalous[0]))
    found["iqr_range"] = float(high - low) / max(scales["highest"] - lowest, LOWEST)
    found |= {f"std_{name}": spread / scale for name, scale in scales.items()}
    found["reach"] = float(far) / scales["anomalous"]
    found |= {
        "overlap": overlap(pixels),
        "fpr": false_positive_rate(pixels),
        "p_auroc": area(pixels),
    }
    return found | {"lone": scales["highest"] / scales["quantile"]}


@dataclass(frozen=True)
class Distributions:
    """Densities and measures of all categories, methods and seeds.

    Attributes:
        categories: of the run.
        methods: from the top row of the figure to its last.
        measures: a row a category, method and seed, with the columns of `measure_pixels`; the
            same over all pixels, background included, as ``fpr_all`` and ``p_auroc_all``;
            ``num_normal`` and ``num_anomalous`` counted pixels; and ``left_out``, the share of
            anomalous pixels that lie outside of them.
        densities: (category, method, seed) -> scale -> "normal", "anomalous" -> (NUM_BINS,).
        thresholds: (category, method, seed) -> scale -> where 90 % of anomalous pixels are found.
    """

    categories: tuple[str, ...]
    methods: tuple[str, ...]
    measures: pd.DataFrame
    densities: dict[tuple[str, str, int], dict[str, dict[str, np.ndarray]]]
    thresholds: dict[tuple[str, str, int], dict[str, float]]


def pixel_distributions(
    config: Config,
    categories: Sequence[str] | str | None = None,
    methods: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
    progress: bool = True,
) -> Distributions:
    """Return how the pixels of the test scans are distributed, by category, method and seed.

    Scores that chapter 05 kept are read; others are computed. Pixels are those of counted cells.

    Args:
        config: of the run; its category is not read.
        categories: to look at; None: all that are there.
        methods: some of `benchmark.METHODS`; None: `FIGURE_METHODS`.
        seeds: training seeds. Of all three, a text that holds a list will do.
        progress: whether progress bars are shown.

    Raises:
        ConfigError: for unknown categories, methods or seeds, before anything runs.
        FileNotFoundError: naming the stage that has not run.
    """
    asked = checked_methods(config, FIGURE_METHODS if methods is None else methods)
    categories, seeds = checked_categories(config, categories), checked_seeds(seeds)
    rows, densities, thresholds = [], {}, {}
    for category in categories:
        of_category = dataclasses.replace(config, category=category)
        scores, _ = run_methods(of_category, asked, seeds, progress)
        where = counted_pixels(scores.maps.patches, config.scoring)
        for method, seed in runs_of(asked, seeds):
            maps, key = scores.maps[method, seed], (category, method, seed)
            counted, every = Pixels.of(maps, scores.masks, where), Pixels.of(maps, scores.masks)
            row = {"category": category, "method": method, "seed": seed} | measure_pixels(counted)
            row |= {"fpr_all": false_positive_rate(every), "p_auroc_all": area(every)}
            row |= {"num_normal": len(counted.normal), "num_anomalous": len(counted.anomalous)}
            row["left_out"] = 1 - len(counted.anomalous) / len(every.anomalous)
            rows.append(row)
            densities[key], thresholds[key] = _drawn(counted)
    # The tables of the library begin with G2SF; the figure ends with it, below its peers.
    return Distributions(categories, asked[::-1], pd.DataFrame(rows), densities, thresholds)


def _drawn(pixels: Pixels) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Return scale -> class -> density, and scale -> threshold of 90 % recall."""
    drawn, thresholds = {}, {}
    for name, scale in scales_of(pixels).items():
        edges = bin_edges(name)
        drawn[name] = {
            kind: density(scores, edges * scale) * scale
            for kind, scores in (("normal", pixels.normal), ("anomalous", pixels.anomalous))
        }
        thresholds[name] = recall_threshold(pixels.anomalous) / scale
    return drawn, thresholds


def bin_edges(scale: str) -> np.ndarray:
    """Return (NUM_BINS + 1,) edges of the densities over scores divided by one of `SCALES`.

    Raises:
        ValueError: for a scale that does not exist.
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; expected one of {', '.join(SCALES)}")
    return np.linspace(0, SCALES[scale][1], NUM_BINS + 1)


def density_panels(found: Distributions, scale: str = "highest") -> dict:
    """Return the arguments of `plots.score_densities` over scores divided by one of `SCALES`.

    Raises:
        ValueError: for a scale that does not exist.
    """
    edges, panels, marks = bin_edges(scale), {}, {}
    for method in found.methods:
        row = METHOD_NAMES[method]
        panels[row], marks[row] = {}, {}
        for category in found.categories:
            keys = [key for key in found.densities if key[:2] == (category, method)]
            panels[row][category] = {
                kind: np.stack([found.densities[key][scale][kind] for key in keys])
                for kind in ("normal", "anomalous")
            }
            marks[row][category] = float(np.mean([found.thresholds[key][scale] for key in keys]))
    label = f"pixel score / {SCALES[scale][0]}"
    return {"edges": edges, "panels": panels, "marks": marks, "label": label}


def distribution_summary(config: Config, found: Distributions) -> dict:
    """Return the measures as `ablations.summary` keeps them, compared with the first row."""
    names = (*WIDTHS, *SHARES)
    return summary(config, found.measures, found.methods[0], "method", names)


# ---------------------------------------------------------------- tables


def _by_seed(rows: pd.DataFrame, name: str) -> pd.Series:
    """Return a measure of each seed, mean over categories."""
    return rows.groupby("seed", sort=False)[name].mean()


def _mean_text(values: pd.Series) -> str:
    """Return mean ± standard deviation, which a single value does not have."""
    return with_spread(values.mean(), values.std(ddof=1))


def measure_table(found: Distributions) -> pd.DataFrame:
    """Return a row a measure, a column a method: mean over categories, ± deviation over seeds.

    A method without randomness has no deviation.
    """
    columns = {}
    for method in found.methods:
        rows = found.measures[found.measures["method"] == method]
        names = {**WIDTHS, **SHARES, "lone": "highest pixel / 99.9 % quantile"}
        columns[METHOD_NAMES[method]] = {
            words: _mean_text(_by_seed(rows, name)) for name, words in names.items()
        }
    return pd.DataFrame(columns)


def category_table(found: Distributions) -> pd.DataFrame:
    """Return a row a category and method: the main measures, mean ± deviation over seeds."""
    names = ("iqr_highest", "iqr_anomalous", "reach", "overlap", "fpr", "p_auroc")
    rows = []
    for category in found.categories:
        for method in found.methods:
            chosen = found.measures.query("category == @category and method == @method")
            row = {"category": category, "method": METHOD_NAMES[method]}
            words = {**WIDTHS, **SHARES}
            rows.append(row | {words[name]: _mean_text(chosen[name]) for name in names})
    return pd.DataFrame(rows).set_index(["category", "method"])


def _paired(table: pd.DataFrame, first: str, second: str, value: str) -> dict[str, float]:
    """Return the difference of two methods, as `ablations.paired`, and how many pairs agree.

    Args:
        table: columns ``category``, ``method``, ``seed`` and `value`. A method that has seed 0
            only, because nothing of it is drawn, is paired with every seed of the other.
        first: method,
        second: and the one that is subtracted.
        value: column.

    Returns:
        ``difference``, ``se``, ``p``, and ``agree`` of ``num`` pairs of category and seed: those
        whose difference has the sign of the mean.
    """
    chosen = [table[table["method"] == method] for method in (first, second)]
    seeds = sorted(set(chosen[0]["seed"]) | set(chosen[1]["seed"]))
    rows = []
    for method, part in zip((first, second), chosen, strict=True):
        rows += [part] if method in SEEDED else [part.assign(seed=seed) for seed in seeds]
    found = paired(pd.concat(rows), first, second, value, key="method")
    wins, num = found.pop("wins"), found["num"]
    return found | {"agree": wins if found["difference"] > 0 else num - wins}


def _pairs(found: Distributions) -> Iterator[tuple[str, str]]:
    """Yield (G2SF, other) of the methods that G2SF stands against."""
    if "g2sf" in found.methods:
        yield from (("g2sf", other) for other in found.methods if other != "g2sf")


def compare(found: Distributions, first: str, second: str) -> dict[str, dict[str, float]]:
    """Return measure -> first against second, paired over categories and seeds.

    Returns:
        As `_paired`, with ``value``: the geometric mean of first over second for `WIDTHS`, where
        the test is one of logarithms, and the mean difference for `SHARES`.
    """
    table = found.measures.copy()
    table[list(WIDTHS)] = np.log(table[list(WIDTHS)].clip(lower=LOWEST))
    result = {}
    for name in (*WIDTHS, *SHARES):
        pair = _paired(table, first, second, name)
        size = pair["difference"]
        result[name] = pair | {"value": float(np.exp(size)) if name in WIDTHS else size}
    return result


def comparison_table(found: Distributions) -> pd.DataFrame:
    """Return a row a measure: G2SF against every other method.

    As text: a ratio of widths or a difference of shares, p, and how many pairs of a category and
    a seed agree with its direction.
    """
    columns = {}
    for first, second in _pairs(found):
        column = {}
        for name, pair in compare(found, first, second).items():
            is_ratio = name in WIDTHS
            size = f"{pair['value']:.2f} ×" if is_ratio else signed(pair["value"])
            column[{**WIDTHS, **SHARES}[name]] = (
                f"{size} ({p_text(pair['p'])}; {pair['agree']} of {pair['num']})"
            )
        columns[f"{METHOD_NAMES[first]} against {METHOD_NAMES[second]}"] = column
    return pd.DataFrame(columns)


def ratio_rows(found: Distributions) -> pd.DataFrame:
    """Return G2SF against every other method in each category, for `plots.spread_changes`.

    Columns: ``measure`` (in words), ``kind`` ("ratio" or "difference"), ``against``,
    ``category``, ``value`` (a ratio is the geometric mean over seeds). Pixel AUROC is left out:
    of all others less is better.
    """
    rows = []
    for first, second in _pairs(found):
        for category in found.categories:
            one = dataclasses.replace(
                found, measures=found.measures[found.measures["category"] == category]
            )
            for name, pair in compare(one, first, second).items():
                if not name.startswith(("p_auroc", "std")):
                    words = {**WIDTHS, **SHARES}[name]
                    kind = "ratio" if name in WIDTHS else "difference"
                    rows.append((words, kind, METHOD_NAMES[second], category, pair["value"]))
    return pd.DataFrame(rows, columns=["measure", "kind", "against", "category", "value"])


# ---------------------------------------------------------------- sentences


def _is_sure(pair: dict[str, float]) -> bool:
    return pair["p"] < LEVEL  # False for NaN


def _widths(compared: dict[str, dict[str, float]]) -> tuple[float, bool, str]:
    """Return how quartile ranges differ by all divisors.

    Returns:
        -1 where the first method's are narrower by each, 1 where they are wider, else 0; whether
        that is sure by each; and a sentence.
    """
    widths = [compared[f"iqr_{scale}"] for scale in SCALES]
    signs = {-1 if pair["value"] < 1 else 1 for pair in widths}
    if len(signs) > 1:
        return 0, False, "narrower by one divisor and wider by another: the axis decides."
    sign, is_sure = signs.pop(), all(map(_is_sure, widths))
    word = "narrower" if sign < 0 else "wider"
    return sign, is_sure, f"{word} by all three divisors, {'surely' if is_sure else 'not surely'}."


def _width_list(compared: dict[str, dict[str, float]]) -> str:
    """Return the ratios of the quartile ranges by each divisor, in words."""
    return ", ".join(
        f"{pair['value']:.2f} with scores divided by the {words} ({p_text(pair['p'])}; "
        f"{pair['agree']} of {pair['num']} pairs agree)"
        for pair, words in ((compared[f"iqr_{name}"], SCALES[name][0]) for name in SCALES)
    )


def claim_report(found: Distributions) -> str:
    """Return, in Markdown, whether the claim of the paper's Figure 6 holds, and how surely.

    The claim has two halves: narrower normal scores than CFM's, and anomalous ones told at
    least as well. Both must hold, the first by every divisor: it is sure only if each
    comparison is, so none of them needs a correction for being several.
    """
    if not {"g2sf", "cfm"} <= set(found.methods):
        return "Needs G²SF and CFM among the methods."
    compared = compare(found, "g2sf", "cfm")
    sign, is_sure, words = _widths(compared)
    fpr, num = compared["fpr"], len(found.categories)
    means = found.measures.groupby(["method", "category"])["fpr"].mean().groupby("method").mean()
    if fpr["value"] == 0:
        told = "the same"
    else:
        told = f"{'less' if fpr['value'] < 0 else 'more'}, {'' if _is_sure(fpr) else 'not '}surely"
    return "\n".join(
        [
            "- *Narrower?* The quartile range of G²SF's normal pixels is, in units of CFM's, "
            f"{_width_list(compared)}. So: {words}",
            "- *Told at least as well?* To find 90 % of the anomalous pixels, G²SF calls "
            f"{means['g2sf']:.1%} of the normal ones anomalous and CFM {means['cfm']:.1%} "
            f"(difference {signed(fpr['value'])}, {p_text(fpr['p'])}; {fpr['agree']} of "
            f"{fpr['num']} pairs agree). So: {told}.",
            f"- *The claim*: {_verdict(sign, is_sure, fpr)} A pair is a category and a seed; p is "
            + (f"over {num} categories." if num > 1 else "over the seeds of a single category."),
        ]
    )


def _verdict(sign: int, is_sure: bool, fpr: dict[str, float]) -> str:
    """Return what `claim_report` concludes from widths and false positive rates."""
    if sign < 0 and fpr["value"] <= 0:
        if is_sure and _is_sure(fpr):
            return "**the paper's ordering holds here, both halves surely.**"
        if is_sure:
            return (
                "**the paper's ordering holds here**, the first half surely; that anomalous pixels "
                "are told better is not sure, but they are told no worse on average."
            )
        return "**the paper's ordering holds here on average, but not surely.**"
    if sign > 0 and is_sure:
        return "**the paper's ordering does not hold here**: normal pixels are wider, surely."
    if fpr["value"] > 0 and _is_sure(fpr):
        return (
            "**the paper's ordering does not hold here**: fewer anomalous pixels are told from "
            "normal ones, surely."
        )
    failed = [
        words
        for words, fails in (
            ("normal pixels are wider", sign > 0),
            ("whether normal pixels are narrower depends on the divisor", sign == 0),
            ("anomalous pixels are told less well on average", fpr["value"] > 0),
        )
        if fails
    ]
    return (
        f"**the paper's ordering does not hold here on average** ({' and '.join(failed)}), but its "
        "opposite is not sure either."
    )


def learning_report(found: Distributions) -> str:
    """Return, in Markdown, whether it is learning that makes normal scores narrow."""
    if not {"g2sf", "w1"} <= set(found.methods):
        return "Needs G²SF and its control, w = 1."
    compared = compare(found, "g2sf", "w1")
    words = _widths(compared)[2]
    fpr = compared["fpr"]
    text = (
        "- *What learning does*: the quartile range of G²SF's normal pixels is, in units of that "
        f"of its control w = 1 (same banks, σ and minimum, no LSPN), {_width_list(compared)}. So: "
        f"{words} The false positive rate at 90 % recall changes by {signed(fpr['value'])} "
        f"({p_text(fpr['p'])})."
    )
    if "cfm" not in found.methods:
        return text
    control = compare(found, "w1", "cfm")
    return text + (
        "\n- *What nobody learned*: the control's quartile range is, in units of CFM's, "
        f"{_width_list(control)}. So: {_widths(control)[2]} Whatever of G²SF's distance to CFM is "
        "in this line too is not due to learning."
    )


def axis_report(found: Distributions) -> str:
    """Return, in a sentence, how much of the figure's axis hangs on single pixels."""
    by_method = found.measures.groupby("method")["lone"]
    lone = by_method.apply(lambda x: float(np.exp(np.log(x).mean())))
    each = ", ".join(f"{METHOD_NAMES[m]} {lone[m]:.2f}" for m in found.methods)
    return (
        "The highest pixel, which is the 1 of the figure's axis, lies so many times above the "
        f"99.9 % quantile (geometric mean over categories and seeds): {each}. A larger number "
        "makes the same normal pixels look narrower."
    )


def pixel_report(found: Distributions) -> str:
    """Return, in a sentence, which pixels are counted, and what all pixels would say."""
    one = found.measures.drop_duplicates("category")
    share = one["num_anomalous"].sum() / (one["num_anomalous"] + one["num_normal"]).sum()
    means = found.measures.groupby("method")[["fpr", "fpr_all"]].mean()
    each = ", ".join(
        f"{METHOD_NAMES[m]} {means.loc[m, 'fpr']:.3f} and {means.loc[m, 'fpr_all']:.3f}"
        for m in found.methods
    )
    return (
        f"Counted are {one['num_normal'].sum():,} normal and {one['num_anomalous'].sum():,} "
        f"anomalous pixels of {len(one)} {'category' if len(one) == 1 else 'categories'} "
        f"({share:.1%} anomalous); "
        f"{one['left_out'].mean():.1%} of the anomalous pixels (mean over categories) lie where no "
        "cell counts, and are in no density. False positive rates at 90 % recall over counted and "
        f"over all pixels: {each}."
    )
