"""Chapters 06, 07 and 08: the paper's Tables 3, 4 and 5 on this run, and what becomes of them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from g2sf_lib.ablations import (
    LOSSES,
    RUN,
    STEPS,
    Variant,
    effects,
    loss_variants,
    means,
    orderings,
    run_variants,
)
from g2sf_lib.benchmark import checked_seeds
from g2sf_lib.chapters.metric import judged_cells
from g2sf_lib.config import MODALITIES, Config
from g2sf_lib.detector import counted_cells
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.experiments import checked_categories, fitted
from g2sf_lib.quantities import PARTS, RULES, TestCells, neighbourhoods
from g2sf_lib.results import LEVEL, METRIC_NAMES
from g2sf_lib.training import COLLAPSED, CollapseWarning

ALL_LOSSES = "+".join(LOSSES)
# Nothing is learned at a rate of 0: LSPN says w = 1 of every cell, and both sigma stay 1/2.
UNTRAINED = Variant(
    "untrained",
    "untrained (w = 1)",
    {"epochs": 1, "learning_rate": 0.0, "sigma_learning_rate": 0.0},
)
COMPARED = {  # of which rows of the paper's tables an ordering is looked at
    "table3": (
        *(("fused", part) for part in PARTS if part != "fused"),
        *((f"w_{mod}", f"s_{mod}") for mod in MODALITIES),
    ),
    "table4": tuple(("+".join(b), "+".join(a)) for a, b in zip(STEPS, STEPS[1:], strict=False)),
    "table5": tuple(("min", rule) for rule in RULES if rule != "min"),
}
ROW_NAMES = {
    "s_pcd": "sᴾ (distance, points)",
    "s_rgb": "sᴿ (distance, RGB)",
    "w_pcd": "wᴾ (factor, points)",
    "w_rgb": "wᴿ (factor, RGB)",
    "fused": "fused score s",
    "untrained": UNTRAINED.label,
    "nearest": "nearest (j = 0)",
    ALL_LOSSES: "all five losses",
}
ROW_NAMES |= {
    "+".join(x for x in LOSSES if x != out): f"all but {out}" for out in LOSSES if out != "cma"
}
VERDICTS = {
    "better": "better beyond chance in",
    "worse": "worse beyond chance in",
    "open": "open in",
}
LITTLE = 0.001  # a metric that falls by less can hardly change a ranking
FALL_NAMES = {
    "fall_normal": "normal cells",
    "fall_highest": "their highest hundredth",
    "fall_anomalous": "anomalous cells",
}
HIGHEST_SHARE = 0.01  # of normal cells: the false alarms that chapter 06 looks at


def row_name(key: str) -> str:
    """Return what a reader sees of a row of an ablation."""
    return ROW_NAMES.get(key, key.replace("+", " + "))


def short_name(key: str) -> str:
    """Return the name of a row without what stands in brackets, for sentences."""
    return row_name(key).split(" (")[0]


# ---------------------------------------------------------------- rows


def part_rows(
    config: Config, categories: Sequence[str] | str | None, seeds: Sequence[int] | str
) -> pd.DataFrame:
    """Return Table 3: the parts of the run's detectors, and the untrained metric beside them.

    Returns:
        As `ablations.run_variants`; ``quantity`` is one of `quantities.PARTS` or "untrained",
        the sum of both distances, each divided by its normal mean.
    """
    found = _quietly(config, [RUN], categories, seeds, PARTS)
    plain = _quietly(config, [UNTRAINED], categories, seeds, ("fused",))
    return pd.concat([found, plain.assign(quantity=UNTRAINED.name)], ignore_index=True)


def loss_rows(
    config: Config, losses: Any, categories: Sequence[str] | str | None, seeds: Sequence[int] | str
) -> pd.DataFrame:
    """Return Table 4, the losses left out one by one, and the untrained metric.

    Args:
        config: of the run, with the weights of the losses that are on.
        losses: None for all rows; a subset, which then stands beside all five.
        categories: those that take part; None: all that are there.
        seeds: training seeds.

    Returns:
        As `ablations.run_variants`.
    """
    variants = (UNTRAINED, *loss_variants(losses, config))
    return _quietly(config, variants, categories, seeds, ("fused",))


def rule_rows(
    config: Config, categories: Sequence[str] | str | None, seeds: Sequence[int] | str
) -> pd.DataFrame:
    """Return Table 5, and the minimum over j = 0 ... J for each J up to 2k.

    Returns:
        As `ablations.run_variants`; ``quantity`` is one of `quantities.RULES` or "min_J".
    """
    upto = tuple(f"min_{last}" for last in range(2 * config.model.k + 1))
    return _quietly(config, [RUN], categories, seeds, (*RULES, *upto))


def _quietly(config, variants, categories, seeds, quantities) -> pd.DataFrame:
    """Return rows of variants; that w has collapsed is said by a table, not by warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return run_variants(config, variants, categories, seeds, quantities)


def curve_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of "min over j = 0 ... J" with the number ``J``, for a curve over it."""
    found = rows[rows["quantity"].str.fullmatch(r"min_\d+")]
    return found.assign(J=found["quantity"].str.removeprefix("min_").astype(int))


def rules_only(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of Table 5 alone."""
    return rows[rows["quantity"].isin(RULES)]


# ---------------------------------------------------------------- tables


def ablation_scope(summary: Mapping[str, Any]) -> str:
    """Return, in Markdown, what the numbers are of, and what they may be compared with.

    Args:
        summary: of `ablations.summary`.
    """
    categories, seeds = summary["categories"], summary["seeds"]
    spread = (
        "± is the standard deviation over seeds of the mean over categories."
        if len(seeds) > 1
        else "One training seed: there is no spread over seeds."
    )
    compared = (
        "The paper's numbers are of the same data set."
        if summary["dataset"] == "mvtec3d"
        else "The paper's numbers are of MVTec 3D-AD, which is other data with other features: "
        "numbers cannot be compared, orderings can."
    )
    return (
        f"{len(categories)} {'category' if len(categories) == 1 else 'categories'} "
        f"({', '.join(categories)}), training seeds {', '.join(map(str, seeds))}, profile "
        f"{summary['profile']}, data set {summary['dataset']}. {spread} {compared}"
    )


def mean_table(rows: pd.DataFrame, key: str, printed: pd.DataFrame) -> pd.DataFrame:
    """Return a row an ablation's row, the paper's above ours where it has one, as text.

    Args:
        rows: of `ablations.run_variants`.
        key: which column says what differs.
        printed: the paper's table; AUPRO is by the published protocol.

    Returns:
        The column ``source``, then metrics: mean over categories and seeds ± standard deviation
        over seeds. The paper's AUPRO stands in the columns of its protocol only. A dash where
        there is no number.
    """
    columns = {_published(metric): name for metric, name in METRIC_NAMES.items()}
    columns |= {
        f"{metric}{suffix}": f"{METRIC_NAMES[metric]}, {words}"
        for suffix, words in (("_published", "published protocol"), ("", "exact"))
        for metric in METRIC_NAMES
        if metric.startswith("aupro")
    }
    ours, lines = means(rows, key), []
    for name in ours.index:
        paper = {_published(metric): _printed(printed, name, metric) for metric in METRIC_NAMES}
        if any(value is not None for value in paper.values()):
            values = {
                title: "–" if paper.get(column) is None else f"{paper[column]:.3f}"
                for column, title in columns.items()
            }
            lines.append({"row": row_name(name), "source": "paper, MVTec 3D-AD"} | values)
        own = ours.loc[name]
        values = {
            title: _with_spread(own[column], own[f"{column}_seed_std"])
            for column, title in columns.items()
        }
        lines.append({"row": row_name(name), "source": "this run"} | values)
    return pd.DataFrame(lines).set_index("row")


def by_category_table(rows: pd.DataFrame, metric: str, key: str) -> pd.DataFrame:
    """Return a row an ablation's row and a column a category of one metric, and the mean, as text.

    Each is a mean over seeds ± standard deviation over them.
    """
    whole = means(rows, key)
    by_category = {
        category: means(of_one, key) for category, of_one in rows.groupby("category", sort=False)
    }
    table = {
        category: [
            _with_spread(*found.loc[name, [metric, f"{metric}_seed_std"]]) for name in whole.index
        ]
        for category, found in (by_category | {"mean": whole}).items()
    }
    return pd.DataFrame(table, index=pd.Index(map(row_name, whole.index), name="row"))


def training_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what the trainings of each variant ended with, as text.

    Returns:
        A row a variant: in how many trainings w ``collapsed`` (`training.COLLAPSED`), the
        smallest ``spread of w`` over held-out cells, which ``epoch`` was kept, and sigma of the
        points (that of RGB is 1 less it), means with ranges over categories and seeds.
    """
    groups = rows[rows["variant"] != UNTRAINED.name].groupby("variant", sort=False)
    table = groups.apply(
        lambda of_one: pd.Series(
            {
                "collapsed": f"{int((of_one['w_std'] < COLLAPSED).sum())} of {len(of_one)}",
                "spread of w, mean (smallest)": f"{of_one['w_std'].mean():.3f} "
                f"({of_one['w_std'].min():.3f})",
                "kept epoch, mean (range)": f"{of_one['best_epoch'].mean():.1f} "
                f"({of_one['best_epoch'].min():.0f}–{of_one['best_epoch'].max():.0f})",
                "σ of points": f"{of_one['sigma_pcd'].mean():.2f}",
            }
        ),
        include_groups=False,
    )
    return table.rename(index=row_name).rename_axis("row")


def training_collapse_report(rows: pd.DataFrame) -> str:
    """Return, in Markdown, which trainings collapsed; elsewhere a loss had its chance."""
    flat = rows[(rows["w_std"] < COLLAPSED) & (rows["variant"] != UNTRAINED.name)]
    if flat.empty:
        return "w collapsed in none of the trainings."
    lines = []
    for variant, of_variant in flat.groupby("variant", sort=False):
        places = [
            f"{category} ({'seed' if len(of_one) == 1 else 'seeds'} "
            f"{', '.join(map(str, of_one['seed']))})"
            for category, of_one in of_variant.groupby("category", sort=False)
        ]
        lines.append(f"- {row_name(variant)}: {', '.join(places)}")
    return "\n".join(
        [
            "In these trainings w is a constant in at least one modality (spread over held-out "
            f"cells below {COLLAPSED:g}). Direction does not matter there, and the number says "
            "less about the losses:",
            "",
            *lines,
        ]
    )


def _printed(printed: pd.DataFrame, name: str, metric: str) -> float | None:
    """Return a mean of the paper's table; None where it has none."""
    found = printed[
        printed["method"].eq(name) & printed["metric"].eq(metric) & printed["category"].eq("mean")
    ]["value"].dropna()
    return float(found.iloc[0]) if len(found) else None


def _published(metric: str) -> str:
    """Return the column that has a metric by the protocol of the paper."""
    return f"{metric}_published" if metric.startswith("aupro") else metric


def _with_spread(value: float, spread: float) -> str:
    return f"{value:.3f}" if pd.isna(spread) else f"{value:.3f} ± {spread:.3f}"


# ---------------------------------------------------------------- the paper's orderings


def claimed_pairs(
    printed: pd.DataFrame, metric: str, compared: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return (higher, lower) of the pairs of rows that the paper prints different numbers of.

    Args:
        printed: the paper's table.
        metric: of it.
        compared: pairs that are looked at, in any order.
    """
    pairs = []
    for a, b in compared:
        first, second = _printed(printed, a, metric), _printed(printed, b, metric)
        if first is not None and second is not None and first != second:
            pairs.append((a, b) if first > second else (b, a))
    return pairs


def ordering_rows(
    rows: pd.DataFrame,
    printed: pd.DataFrame,
    compared: Sequence[tuple[str, str]],
    key: str,
) -> pd.DataFrame:
    """Return what becomes here of every ordering that a table of the paper prints.

    Args:
        rows: of `ablations.run_variants`. Pairs that it lacks are left out.
        printed: the paper's table.
        compared: as in `claimed_pairs`.
        key: which column says what differs.

    Returns:
        A row a metric and pair: ``metric``, ``higher``, ``lower``, the paper's numbers
        ``printed_higher`` and ``printed_lower``, and the columns of `ablations.orderings`, AUPRO
        by the published protocol, ``exact`` the verdict by every threshold. Numbers that the paper
        prints alike are no claim: their ``verdict`` is "tie", and nothing is tested.
    """
    known, found = set(rows[key]), []
    compared = [pair for pair in compared if set(pair) <= known]
    for metric in METRIC_NAMES:
        pairs = claimed_pairs(printed, metric, compared)
        if pairs:
            tested = orderings(rows, pairs, _published(metric), key)
            exact = orderings(rows, pairs, metric, key)["verdict"]
            found.append(tested.assign(metric=metric, exact=exact))
        even = [
            {"metric": metric, "higher": a, "lower": b, "verdict": "tie", "exact": "tie"}
            for a, b in compared
            if _printed(printed, a, metric) is not None
            and _printed(printed, a, metric) == _printed(printed, b, metric)
        ]
        if even:
            found.append(pd.DataFrame(even))
    numbers = ["difference", "se", "p", "wins", "num"]
    columns = ["metric", "higher", "lower", *numbers, "verdict", "exact"]
    tables = [table.reindex(columns=columns).astype(dict.fromkeys(numbers, float))
              for table in found]  # fmt: skip
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    for side in ("higher", "lower"):
        each = zip(table[side], table["metric"], strict=True)
        table[f"printed_{side}"] = [_printed(printed, name, metric) for name, metric in each]
    return table


def ordering_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `ordering_rows` as text, a row a metric and pair."""
    lines = []
    for row in found.itertuples():
        sign, is_tie = ("=", True) if row.verdict == "tie" else (">", False)
        lines.append(
            {
                "metric": METRIC_NAMES[row.metric],
                "ordering": f"{short_name(row.higher)} {sign} {short_name(row.lower)}",
                "paper": f"{row.printed_higher:.3f} {sign} {row.printed_lower:.3f}",
                "difference here": "–" if is_tie else _with_error(row.difference, row.se),
                "pairs won": "–" if is_tie else f"{row.wins:.0f} of {row.num:.0f}",
                "p": "–"
                if pd.isna(row.p)
                else _p_value(row.p).removeprefix("p").removeprefix(" = "),
                "verdict": "no claim" if is_tie else "–" if pd.isna(row.p) else row.verdict,
            }
        )
    columns = ["metric", "ordering", "paper", "difference here", "pairs won", "p", "verdict"]
    return pd.DataFrame(lines, columns=columns).set_index("metric")


def ordering_report(found: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return, in Markdown, whether the paper's orderings hold here, and how surely.

    Args:
        found: of `ordering_rows`.
        rows: what it was made of.
    """
    claims = found[found["verdict"] != "tie"]
    if claims.empty:
        return "None of the orderings of the paper's table is between rows that were run here."
    basis, num = counted_by(rows), len(claims)
    towards = f"{int((claims['difference'] > 0).sum())} of the {num} differences"
    if claims["p"].isna().all():
        return f"{basis} {towards} point the way that the paper prints; that is no verdict."
    count = claims["verdict"].value_counts().reindex(["holds", "reversed", "open"], fill_value=0)
    lines = [
        f"Of {num} orderings that the paper's table prints, {count['holds']} hold here, "
        f"{count['reversed']} are reversed and {count['open']} are open. {towards} point the "
        f"paper's way. {basis}",
        "",
    ]
    for metric, of_metric in claims.groupby("metric", sort=False):
        parts = []
        for verdict, of_verdict in of_metric.groupby("verdict"):
            each = [
                f"{short_name(row.higher)} over {short_name(row.lower)}"
                + ("" if verdict == "open" else f" ({_in_brackets(row)})")
                for row in of_verdict.itertuples()
            ]
            is_all = verdict == "open" and len(each) == len(of_metric) > 1
            parts.append(f"*{verdict}*: {f'all {len(each)}' if is_all else ', '.join(each)}")
        lines.append(f"- {METRIC_NAMES[metric]}: {'. '.join(parts)}.")
    is_area = claims["metric"].str.startswith("aupro")
    other = int((is_area & (claims["verdict"] != claims["exact"])).sum())
    lines += [
        "",
        "In brackets: difference ± standard error; in how many pairs of a category and a seed it "
        "points the paper's way; p, corrected for the number of orderings in the metric. *Holds* "
        f"and *reversed* are said where p is below {LEVEL:g}; *open* means that the two cannot be "
        "told apart here, not that they are equal.",
    ]
    if is_area.any():
        lines[-1] += (
            f" AUPRO is that of the published protocol; by every threshold {other} of its "
            f"{int(is_area.sum())} verdicts {'is' if other == 1 else 'are'} another."
        )
    return "\n".join(lines)


def counted_by(rows: pd.DataFrame) -> str:
    """Return, in a sentence, what a verdict on these rows rests on."""
    categories, seeds = rows["category"].nunique(), rows["seed"].nunique()
    if categories > 1:
        over = f"{seeds} training seeds" if seeds > 1 else "one training seed"
        return (
            f"Paired over {categories} categories and {over}; categories are what is counted "
            "(seeds of one are averaged first)."
        )
    if seeds > 1:
        return (
            f"One category: the {seeds} training seeds are what is counted, so a verdict is about "
            "this category and its test scans alone."
        )
    return "One category and one training seed: nothing can be said of how sure a difference is."


def _in_brackets(row) -> str:
    """Return difference, error, pairs won and p of a row of `ordering_rows`."""
    gap = _with_error(row.difference, row.se)
    return f"{gap}; {row.wins:.0f} of {row.num:.0f}; {_p_value(row.p)}"


def _with_error(difference: float, se: float) -> str:
    text = f"{difference:+.3f}"
    return text if pd.isna(se) else f"{text} ± {se:.3f}"


def _p_value(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


# ---------------------------------------------------------------- differences beyond the table


def part_pairs(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return what makes up the gain of the fused score: adding distances, learning factors."""
    adding = {
        f"adding: the untrained sum over {short_name(f's_{mod}')}": ("untrained", f"s_{mod}")
        for mod in MODALITIES
    }
    return adding | {"learning: the fused score over the untrained sum": ("fused", "untrained")}


def training_pairs(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return what training brings: each row of `loss_rows` that trains with the steps' ends."""
    known = set(rows["variant"])
    pairs = {
        "separation alone over untrained": ("sep", UNTRAINED.name),
        "all five over untrained": (ALL_LOSSES, UNTRAINED.name),
        "all five over separation alone": (ALL_LOSSES, "sep"),
    }
    steps, left_out = {"+".join(step) for step in STEPS}, set(ROW_NAMES)
    for name in rows["variant"].unique():
        if name not in steps | left_out:  # a reader's own subset
            pairs[f"{row_name(name)} over untrained"] = (name, UNTRAINED.name)
            pairs[f"all five over {row_name(name)}"] = (ALL_LOSSES, name)
    return {words: pair for words, pair in pairs.items() if set(pair) <= known}


def left_out_pairs(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return loss -> (with all five, without it), of those that were run."""
    pairs = {
        f"{out}, when the other four are there": (
            ALL_LOSSES,
            "+".join(x for x in LOSSES if x != out),
        )
        for out in LOSSES
        if out != "sep"
    }
    known = set(rows["variant"])
    return {words: pair for words, pair in pairs.items() if set(pair) <= known}


def gain_rows(rows: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], key: str) -> pd.DataFrame:
    """Return how far the first of each pair is above the second, in every metric.

    Args:
        rows: of `ablations.run_variants`.
        pairs: what is asked, in words -> (first, second).
        key: which column says what differs.

    Returns:
        A row a pair and metric: ``what``, ``metric``, and the columns of `ablations.orderings`
        with ``verdict`` "better", "worse" or "open"; p is corrected for the pairs, metric by
        metric.
    """
    found = []
    for metric in METRIC_NAMES if pairs else ():
        table = orderings(rows, list(pairs.values()), metric, key)
        words = {"holds": "better", "reversed": "worse", "open": "open"}
        found.append(
            table.assign(what=list(pairs), metric=metric, verdict=table["verdict"].map(words))
        )
    columns = ["what", "metric", "higher", "lower", "difference", "se", "p", "wins", "num"]
    columns += ["verdict"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def gain_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `gain_rows` as text, a row a pair and a column a metric."""
    text = [
        _with_error(row.difference, row.se) + ("" if pd.isna(row.p) else f", {row.verdict}")
        for row in found.itertuples()
    ]
    wide = found.assign(text=text).pivot(index="what", columns="metric", values="text")
    wide = wide.reindex(index=list(dict.fromkeys(found["what"])), columns=list(METRIC_NAMES))
    return wide.rename(columns=METRIC_NAMES).rename_axis(index="what", columns=None)


def gain_report(found: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return, in Markdown, what each pair of `gain_rows` comes to."""
    if found.empty:
        return "None of these pairs of rows was run."
    if found["p"].isna().all():
        return f"{counted_by(rows)} The table shows which way each difference points."
    lines = [counted_by(rows), ""]
    for what, of_one in found.groupby("what", sort=False):
        parts = []
        for verdict, words in VERDICTS.items():
            named = of_one[of_one["verdict"] == verdict]
            each = [
                f"{METRIC_NAMES[row.metric]} ({row.difference:+.3f})" for row in named.itertuples()
            ]
            if verdict == "open" and len(named) == len(of_one):
                parts.append(f"open in all {len(of_one)} metrics")
            elif each:
                parts.append(f"{words} {', '.join(each)}")
        lines.append(f"- {what}: {'; '.join(parts)}.")
    return "\n".join(lines)


def place_report(found: pd.DataFrame) -> str:
    """Return, in a sentence, which losses earn their place, from the gains of `left_out_pairs`."""
    if found.empty or found["p"].isna().all():
        return ""
    groups: dict[str, list[str]] = {"earns": [], "costs": [], "does both": [], "is undecided": []}
    for what, of_one in found.groupby("what", sort=False):
        has_better, has_worse = ((of_one["verdict"] == word).any() for word in ("better", "worse"))
        both = "does both" if has_better and has_worse else None
        one = "earns" if has_better else "costs" if has_worse else "is undecided"
        groups[both or one].append(what.split(",")[0])
    words = {
        "earns": "Earns its place here (better with it beyond chance in a metric, worse in none)",
        "costs": "Costs more than it brings here (worse with it in a metric, better in none)",
        "does both": "Better with it in one metric and worse in another",
        "is undecided": "Neither a gain nor a cost is shown for",
    }
    told = [f"{words[group]}: {', '.join(names)}." for group, names in groups.items() if names]
    return " ".join(told)


def effect_rows(rows: pd.DataFrame, reference: str, key: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return differences from a reference, for `plots.effect_dots`.

    Args:
        rows: of `ablations.run_variants`.
        reference: the row that is subtracted.
        key: which column says what differs.

    Returns:
        ``variant`` (as the reader sees it), ``metric``, ``category``, ``seed``, ``difference``;
        and ``variant``, ``metric``, ``difference``, ``se``, the mean of it.
    """
    points = []
    for metric in METRIC_NAMES:
        wide = rows.pivot(index=["category", "seed"], columns=key, values=metric)
        for name in rows[key].unique():
            if name != reference:
                gap = (wide[name] - wide[reference]).rename("difference").reset_index()
                points.append(gap.assign(variant=row_name(name), metric=metric))
    found = effects(rows, reference, key)
    return (
        pd.concat(points, ignore_index=True),
        found.assign(variant=found[key].map(row_name))[["variant", "metric", "difference", "se"]],
    )


# ---------------------------------------------------------------- why


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
            f"({gap:+.3f})"
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
