"""Chapter 11: how long to train: what the held-out criterion and real defects say of epochs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pandas as pd

from g2sf_lib.ablations import LONGER, Variant, means, orderings, run_variant_epochs
from g2sf_lib.chapters.analyses import MAIN
from g2sf_lib.chapters.wording import p_cell, p_text, with_error, with_spread
from g2sf_lib.config import Config
from g2sf_lib.stats import METRIC_NAMES
from g2sf_lib.training import CollapseWarning

NEAR_BEST = 0.01  # a held-out criterion this much above its lowest, relatively, is as good
MOST_OF_IT = 0.9  # of a rise, that counts as most of it
STAGES = {"before": "before training", "chosen": "lowest held-out criterion", "last": "last epoch"}


def longer(config: Config) -> Variant:
    """Return the run trained for `LONGER` times its epochs."""
    num = round(LONGER * config.training.epochs)
    return Variant("longer", f"{num} epochs", {"epochs": num})


def run_longer(
    config: Config,
    categories: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the longer training after each kept epoch, as `ablations.run_variant_epochs`.

    Its column ``held-out criterion`` is what training chooses the epoch by.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        rows = run_variant_epochs(config, longer(config), categories, seeds, progress)
    return rows.rename(columns={"heldout": "held-out criterion"})


def stage_rows(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return three epochs of each training: before it, the one it chose, and the last.

    Args:
        epochs: of `run_longer`.

    Returns:
        The rows with ``stage``: "before", "chosen" (least held-out criterion among the kept
        epochs after 0) or "last". The chosen one may be the last.
    """
    after = epochs[epochs["epoch"] > 0]
    chosen = after.groupby(["category", "seed"])["held-out criterion"].idxmin()
    parts = {
        "before": epochs[epochs["epoch"] == 0],
        "chosen": epochs.loc[chosen],
        "last": epochs[epochs["epoch"] == epochs["epoch"].max()],
    }
    return pd.concat([rows.assign(stage=name) for name, rows in parts.items()], ignore_index=True)


def stage_effects(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return what training changes in every metric, paired, and how surely.

    Returns:
        A row a metric and stage ("chosen", "last"), minus "before": the columns of
        `ablations.orderings`, p corrected for both, metric by metric.
    """
    rows, pairs = stage_rows(epochs), [("chosen", "before"), ("last", "before")]
    tables = [
        orderings(rows, pairs, metric, key="stage").assign(metric=metric) for metric in METRIC_NAMES
    ]
    return pd.concat(tables, ignore_index=True).rename(columns={"higher": "stage"})


def stage_table(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a stage of training and a column a metric, as text, with the differences."""
    ours, gaps = means(stage_rows(epochs), key="stage"), stage_effects(epochs)
    table = {
        words: {
            title: with_spread(*ours.loc[stage, [metric, f"{metric}_seed_std"]], has_dash=True)
            for metric, title in METRIC_NAMES.items()
        }
        for stage, words in STAGES.items()
    }
    for row in gaps.itertuples():
        line = table.setdefault(f"{STAGES[row.stage]} − {STAGES['before']}", {})
        gap = with_error(row.difference, row.se, has_dash=True)
        line[METRIC_NAMES[row.metric]] = f"{gap}, p {p_cell(row.p)}"
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("row")


def epoch_means(epochs: pd.DataFrame) -> list[dict[str, float]]:
    """Return a row an epoch with means over categories and seeds, for the summary's file."""
    columns = ["held-out criterion", *METRIC_NAMES]
    table = epochs.groupby("epoch")[columns].mean().round(4).reset_index()
    return table.to_dict("records")


def epoch_report(epochs: pd.DataFrame, config: Config) -> str:
    """Return, in Markdown, when the held-out criterion is low, and what real defects say of it.

    Args:
        epochs: of `run_longer`.
        config: of the run, for its number of epochs.
    """
    wide = epochs.pivot(index="epoch", columns=["category", "seed"], values="held-out criterion")
    is_near = wide <= (1 + NEAR_BEST) * wide.min()
    first, best, last = is_near.idxmax(), wide.idxmin(), wide.index[-1]
    lines = [
        f"Held-out criterion: within {NEAR_BEST:.0%} of its lowest from epoch {first.median():g} "
        f"on (median over categories and seeds; {first.min()} to {first.max()}), lowest at "
        f"{best.median():g} ({best.min()} to {best.max()}) of {last}, among the kept epochs. The "
        f"run trains for {config.training.epochs}."
    ]
    effects = stage_effects(epochs)
    for metric in METRIC_NAMES:
        each = []
        for row in effects[effects["metric"] == metric].itertuples():
            word = {"holds": "it surely rises", "reversed": "it surely falls"}.get(
                row.verdict, "no change is sure"
            )
            gap = with_error(row.difference, row.se, has_dash=True)
            each.append(
                f"up to the {STAGES[row.stage]} {word} ({gap}, "
                f"{p_text(row.p)}; higher in {row.wins} of {row.num} pairs)"
            )
        lines.append(f"{METRIC_NAMES[metric]} on real defects: {'; '.join(each)}.")
    lines.append(_few_epochs(epochs, effects))
    return "\n".join(f"- {line}" for line in lines)


def _few_epochs(epochs: pd.DataFrame, effects: pd.DataFrame) -> str:
    """Return what becomes of the claim that few epochs suffice."""
    chosen = effects[effects["stage"] == "chosen"].set_index("metric")["verdict"]
    each = []
    for metric in MAIN:
        name, mean = METRIC_NAMES[metric], epochs.groupby("epoch")[metric].mean()
        if chosen[metric] == "holds":
            rise = (mean - mean.iloc[0]) >= MOST_OF_IT * (mean.max() - mean.iloc[0])
            each.append(
                f"in {name} training surely helps, and epoch {rise.idxmax()} of {mean.index[-1]} "
                f"has {MOST_OF_IT:.0%} of the highest rise"
            )
        elif chosen[metric] == "reversed":
            each.append(f"in {name} training surely harms, so no number of epochs suffices")
        else:
            each.append(
                f"in {name} no gain of training over its start is sure, so there is nothing for "
                "which few epochs could suffice"
            )
    return f"*The paper's claim* of “remarkably few training epochs”: {'; '.join(each)}."
