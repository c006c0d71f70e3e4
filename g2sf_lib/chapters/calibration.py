"""Chapter 11: thresholds set on validation scans, and the alarms that they raise on good ones.

The paper tells of areas under curves, for which no threshold is needed. Whoever uses a detector
needs one, and has normal scans to set it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm as gaussian
from scipy.stats import t as student
from torch import Tensor

from g2sf_lib.benchmark import (
    Split,
    checked_methods,
    checked_seeds,
    fitted_method,
    run_methods,
    runs_of,
)
from g2sf_lib.chapters.wording import p_text, with_spread
from g2sf_lib.config import Config
from g2sf_lib.detector import to_prediction
from g2sf_lib.distributions import counted_pixels
from g2sf_lib.experiments import checked_categories
from g2sf_lib.results import METHOD_NAMES
from g2sf_lib.stats import EXACT, LEVEL, holm

CALIBRATED = ("g2sf", "w1", "max", "cfm")
PIXEL_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
IMAGE_RATES = (0.1, 0.2, 0.3, 0.5)  # ten scans cannot promise less than 1 in 11
TOLD = 0.01  # the rate of pixels that the report speaks of


def threshold(normal: np.ndarray, rate: float) -> tuple[float, float]:
    """Return the lowest threshold that promises at most a rate of alarms, and what it promises.

    An alarm is a score above the threshold. If a new score and the n known ones are drawn alike,
    it is above the j-th highest of them with probability j / (n + 1); j is the largest whole
    number that keeps this at or below the rate.

    Args:
        normal: (n,) scores of normal scans or pixels, in any order.
        rate: asked for, in (0, 1).

    Returns:
        Threshold and j / (n + 1); where n is too small for the rate, infinity and NaN.

    Raises:
        ValueError: for another rate, or no scores.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate is {rate!r}; expected a number above 0 and below 1")
    if not len(normal):
        raise ValueError("threshold: there are no normal scores")
    num = len(normal)
    allowed = int(rate * (num + 1) + 1e-9)
    if allowed == 0:
        return float("inf"), float("nan")
    return float(np.partition(normal, num - allowed)[num - allowed]), allowed / (num + 1)


def held_out_rate(scans: Sequence[np.ndarray], rate: float) -> float:
    """Return the rate of alarms on each scan when all others set the threshold, on average.

    No scan is new here, so what differs from the rate asked for is due to the number of scans.

    Args:
        scans: scores of each normal scan; at least two.
        rate: asked for, in (0, 1).

    Returns:
        Mean over scans; NaN where the others are too few for the rate.
    """
    rates = []
    for number, left in enumerate(scans):
        level, _ = threshold(np.concatenate([*scans[:number], *scans[number + 1 :]]), rate)
        rates.append(float((left > level).mean()) if np.isfinite(level) else float("nan"))
    return float(np.mean(rates))


def alarm_rows(
    config: Config,
    categories: Sequence[str] | str | None = None,
    methods: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
    pixel_rates: Sequence[float] = PIXEL_RATES,
    image_rates: Sequence[float] = IMAGE_RATES,
) -> pd.DataFrame:
    """Return how many alarms thresholds from validation scans raise on good test scans.

    Args:
        config: of the run; its category is not read.
        categories: to look at; None: all that are there.
        methods: some of `benchmark.METHODS`; None: `CALIBRATED`.
        seeds: training seeds. Of all three, a text that holds a list will do.
        pixel_rates: rates of counted pixels that are asked for,
        image_rates: and rates of scans.

    Returns:
        A row a category, method, seed, level ("pixel" or "image") and rate: ``nominal``, asked
        for; ``promised``, what the threshold can keep of it (see `threshold`); ``observed``, on
        good test scans; ``held_out``, on validation scans themselves (see `held_out_rate`);
        ``scans`` and ``num``, how many of the validation scans have a score above the
        threshold, and how many there are; ``unit``, the share that one alarm is.

    Raises:
        ConfigError: for unknown categories, methods or seeds, before anything runs.
        FileNotFoundError: naming the stage that has not run.
    """
    asked = checked_methods(config, CALIBRATED if methods is None else methods)
    categories, seeds = checked_categories(config, categories), checked_seeds(seeds)
    rows = []
    for category in categories:
        of_category = config.replace(category=category)
        train, validation = (Split(of_category, name) for name in ("train", "validation"))
        test, _ = run_methods(of_category, asked, seeds, progress=False)
        good = np.array([label == "good" for label in test.labels])
        where = counted_pixels(test.maps.patches, config.scoring)[good]
        inside = counted_pixels(validation.patches, config.scoring)
        for method, seed in runs_of(asked, seeds):
            of_seed = of_category.replace(seed=seed)
            cells, image = fitted_method(of_seed, method, train).score(validation)
            known = {
                "pixel": _pixels(cells, validation, inside),
                "image": [np.array([x]) for x in image[config.scoring.silhouette]],
            }
            seen = {
                "pixel": test.maps[method, seed][good][where],
                "image": test.image[method, seed, config.scoring.silhouette][good],
            }
            place = {"category": category, "method": method, "seed": seed}
            for level, rates in (("pixel", pixel_rates), ("image", image_rates)):
                each = [_alarms(known[level], seen[level], rate) for rate in rates]
                rows += [place | {"level": level} | row for row in each]
    return pd.DataFrame(rows)


def _pixels(cells: Tensor, split: Split, inside: np.ndarray) -> list[np.ndarray]:
    """Return the counted pixels of each scan's score map."""
    maps = [
        to_prediction(part, p, split.config.scoring).score_map
        for part, p in zip(cells.split(split.sizes), split.patches, strict=True)
    ]
    return [one[counted] for one, counted in zip(maps, inside, strict=True)]


def _alarms(known: Sequence[np.ndarray], seen: np.ndarray, rate: float) -> dict[str, float]:
    """Return one row of `alarm_rows`, but for its place."""
    level, promised = threshold(np.concatenate(known), rate)
    is_possible = np.isfinite(level)
    return {
        "nominal": rate,
        "promised": promised,
        "observed": float((seen > level).mean()) if is_possible else float("nan"),
        "held_out": held_out_rate(known, rate),
        "scans": sum(bool((scan > level).any()) for scan in known),
        "num": len(known),
        "unit": 1 / len(seen),
    }


def _by_category(rows: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds, of rates that can be asked for, with ``factor``.

    The factor is observed over promised. No alarm at all counts as half a one.
    """
    keys = ["level", "method", "nominal", "category"]
    possible = rows.dropna(subset=["observed"])
    columns = ["promised", "observed", "held_out", "scans", "num", "unit"]
    table = possible.groupby(keys, sort=False)[columns].mean().reset_index()
    seen = table["observed"].clip(lower=table["unit"] / 2)
    return table.assign(factor=seen / table["promised"])


def alarm_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `plots.alarm_rates`: means, lowest and highest category.

    Args:
        rows: of `alarm_rows`. A rate that the validation scans are too few for is left out.
    """
    groups = _by_category(rows).groupby(["level", "method", "nominal"], sort=False)
    table = groups.agg(
        promised=("promised", "mean"),
        observed=("observed", "mean"),
        low=("observed", "min"),
        high=("observed", "max"),
    ).reset_index()
    return table.assign(method=table["method"].map(METHOD_NAMES))


def alarm_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a level and rate: what was promised, and what each method did.

    As text, for each method: the rate of alarms on good test scans, mean over categories ±
    standard deviation over seeds. "left out" is the mean of `held_out_rate` over methods, which
    needs one scan more.
    """
    each, lines = _by_category(rows), []
    for (level, nominal), group in each.groupby(["level", "nominal"], sort=False):
        line = {
            "alarms of": f"{level}s",
            "asked for": f"{nominal:.1%}",
            "promised": f"{group['promised'].mean():.2%}",
        }
        for method in dict.fromkeys(each["method"]):
            chosen = rows.query("level == @level and nominal == @nominal and method == @method")
            seen = chosen.groupby("seed")["observed"].mean()
            line[METHOD_NAMES[method]] = with_spread(seen.mean(), seen.std(ddof=1), ".2%")
        left = group["held_out"].mean()
        line["validation, left out"] = "–" if np.isnan(left) else f"{left:.2%}"
        line["validation scans above"] = f"{group['scans'].mean():.1f} of {group['num'].mean():.0f}"
        lines.append(line)
    return pd.DataFrame(lines).set_index(["alarms of", "asked for"])


def factor_table(rows: pd.DataFrame, level: str = "pixel", rate: float = TOLD) -> pd.DataFrame:
    """Return a row a method: how many times as many alarms there are as were promised.

    Args:
        rows: of `alarm_rows`.
        level: "pixel" or "image".
        rate: asked for; the nearest one of the rows is taken.

    Returns:
        ``factor``; ``low`` and ``high``, the lowest and the highest category; ``lowest`` and
        ``highest``, which they are; and ``p``, two-sided, of what is seen if the promise is kept,
        corrected by Holm's rule for several methods. Of pixels, the factor is the geometric mean
        over categories, and p that of Student's test over categories (NaN for a single one). Of
        images, the factor is that of the means, and p that of `_p_of_counts`.
        In ``attrs["rate"]`` the rate that was taken. Empty if no rate of the level is possible.
    """
    each = _by_category(rows)
    each = each[each["level"] == level]
    found = {}
    if len(each):
        rate = min(each["nominal"].unique(), key=lambda known: abs(known - rate))
    for method, group in each[each["nominal"] == rate].groupby("method", sort=False):
        is_image, group = level == "image", group.set_index("category")
        factor = group["observed"] / group["promised"] if is_image else group["factor"]
        of_means = group["observed"].mean() / group["promised"].mean()
        logs = np.log(group["factor"])
        found[method] = {
            "factor": float(of_means if is_image else np.exp(logs.mean())),
            "low": factor.min(),
            "lowest": factor.idxmin(),
            "high": factor.max(),
            "highest": factor.idxmax(),
            "p": _p_of_counts(group) if is_image else _p_of_zero(logs),
        }
    table = pd.DataFrame.from_dict(found, orient="index")
    if len(table) and table["p"].notna().all():
        table["p"] = holm(table["p"])
    table.attrs["rate"] = rate
    return table


def _p_of_zero(values: pd.Series) -> float:
    """Return the two-sided p value of Student's test that a mean is zero."""
    if len(values) < 2:
        return float("nan")
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    if error < EXACT:
        return float(abs(values.mean()) < EXACT)
    return float(2 * student.sf(abs(values.mean()) / error, len(values) - 1))


def _p_of_counts(group: pd.DataFrame) -> float:
    """Return the two-sided p value of all alarms of images together, if promises are kept.

    How many of m new scans score above the j-th highest of n known ones follows, if all are drawn
    alike, the beta-binomial distribution with j and n + 1 - j; the sum over categories is taken
    as normal. Seeds judge the same scans, so their mean counts as one judgement.
    """
    m, n = 1 / group["unit"], group["num"]
    j = group["promised"] * (n + 1)
    variance = m * j * (n + 1 - j) * (n + 1 + m) / ((n + 1) ** 2 * (n + 2))
    excess = (m * (group["observed"] - group["promised"])).sum()
    return float(2 * gaussian.sf(abs(excess) / variance.sum() ** 0.5))


def alarm_report(rows: pd.DataFrame) -> str:
    """Return, in Markdown, whether the rate of alarms is what was asked for, and how surely.

    Args:
        rows: of `alarm_rows`.
    """
    lines = []
    for level, rate in (("pixel", TOLD), ("image", IMAGE_RATES[0])):
        table = factor_table(rows, level, rate)
        for method, row in table.iterrows():
            word = "more" if row["factor"] > 1 else "fewer"
            verdict = f"{word} than promised, surely" if row["p"] < LEVEL else "no bias is shown"
            lines.append(
                f"- {METHOD_NAMES[method]}, {table.attrs['rate']:.0%} of {level}s asked for: "
                f"{row['factor']:.2f} times as many alarms on good test scans as promised "
                f"({p_text(row['p'])}: {verdict}); from {row['low']:.2f} ({row['lowest']}) to "
                f"{row['high']:.2f} ({row['highest']})."
            )
    lines.append("- These p are corrected for the number of methods (Holm), each level by itself.")
    return "\n".join([*lines, *_limits(rows), *_farthest(rows)])


def _farthest(rows: pd.DataFrame) -> list[str]:
    """Return how far off each method's promise for pixels is in a single category."""
    each = _by_category(rows)
    pixels = each[each["level"] == "pixel"]
    if not len(pixels):
        return []
    off = pixels.assign(off=np.log(pixels["factor"]).abs()).groupby("method", sort=False)["off"]
    typical = np.exp(off.median())
    words = ", ".join(f"{METHOD_NAMES[method]} {value:.2f}" for method, value in typical.items())
    return [
        "- In a single category the rate of pixels is off, up or down, by a factor (median over "
        f"categories and rates) of: {words}."
    ]


def _limits(rows: pd.DataFrame) -> list[str]:
    """Return what the number of validation scans limits."""
    num, each = int(rows["num"].min()), _by_category(rows)
    lost = rows[rows["observed"].isna()].drop_duplicates(["level", "nominal"])
    lost = " and ".join(f"{row.nominal:.0%} of {row.level}s" for row in lost.itertuples())
    lines = [
        f"- With {num} validation scans, no alarm rate of images below 1 in {num + 1} can be "
        "promised" + (f"; asked for and impossible: {lost}." if lost else ".")
    ]
    pixels = each[each["level"] == "pixel"]
    if len(pixels):
        lowest = pixels[pixels["nominal"] == pixels["nominal"].min()]
        lines.append(
            f"- At {lowest['nominal'].iloc[0]:.1%} of pixels only {lowest['scans'].mean():.1f} "
            f"of the {num} scans, on average, have any pixel above the threshold. If each of them "
            f"in turn is left out when it is set, {lowest['held_out'].mean():.2%} of the pixels "
            "left out are above it: so much is due to the number of scans, not to a difference "
            "between validation and test."
        )
    return lines
