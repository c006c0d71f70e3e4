"""Chapters 06, 07 and 08: the rows of the paper's Tables 3, 4 and 5 on this run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from g2sf_lib.ablations import LOSSES, RUN, Variant, loss_variants, means, run_variants
from g2sf_lib.chapters.wording import with_spread
from g2sf_lib.config import Config
from g2sf_lib.quantities import PARTS, RULES
from g2sf_lib.stats import METRIC_NAMES
from g2sf_lib.training import COLLAPSED, CollapseWarning

ALL_LOSSES = "+".join(LOSSES)
# Nothing is learned at a rate of 0: LSPN says w = 1 of every cell, and both sigma stay 1/2.
UNTRAINED = Variant(
    "untrained",
    "untrained (w = 1)",
    {"epochs": 1, "learning_rate": 0.0, "sigma_learning_rate": 0.0},
)
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
    columns = {published_column(metric): name for metric, name in METRIC_NAMES.items()}
    columns |= {
        f"{metric}{suffix}": f"{METRIC_NAMES[metric]}, {words}"
        for suffix, words in (("_published", "published protocol"), ("", "exact"))
        for metric in METRIC_NAMES
        if metric.startswith("aupro")
    }
    ours, lines = means(rows, key), []
    for name in ours.index:
        paper = {
            published_column(metric): printed_mean(printed, name, metric) for metric in METRIC_NAMES
        }
        if any(value is not None for value in paper.values()):
            values = {
                title: "–" if paper.get(column) is None else f"{paper[column]:.3f}"
                for column, title in columns.items()
            }
            lines.append({"row": row_name(name), "source": "paper, MVTec 3D-AD"} | values)
        own = ours.loc[name]
        values = {
            title: with_spread(own[column], own[f"{column}_seed_std"])
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
            with_spread(*found.loc[name, [metric, f"{metric}_seed_std"]]) for name in whole.index
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


def printed_mean(printed: pd.DataFrame, name: str, metric: str) -> float | None:
    """Return a mean of the paper's table; None where it has none."""
    found = printed[
        printed["method"].eq(name) & printed["metric"].eq(metric) & printed["category"].eq("mean")
    ]["value"].dropna()
    return float(found.iloc[0]) if len(found) else None


def published_column(metric: str) -> str:
    """Return the column that has a metric by the protocol of the paper."""
    return f"{metric}_published" if metric.startswith("aupro") else metric
