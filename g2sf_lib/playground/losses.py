"""All subsets of the losses: what each brings, with its spread over seeds."""

from __future__ import annotations

from typing import Any

import pandas as pd
from scipy import stats

from g2sf_lib.playground.balls import shape_of_balls, toy_aurocs
from g2sf_lib.playground.toy import KINDS, SUBSETS, SWITCHES
from g2sf_lib.playground.trained import Trainings


def compare_losses(trainings: Trainings) -> pd.DataFrame:
    """Return a row a subset of the losses and a seed, and a row a seed for w = 1.

    Returns:
        Columns ``losses`` (a text; "w = 1" for the untrained metric), ``mar`` ... ``cma``
        (bool), ``seed``, one a kind of anomaly in `KINDS` (AUROC over test cells), those of
        `shape_of_balls`, ``epoch`` and ``has_collapsed``.
    """
    rows = []
    first = trainings.settings.seed
    for seed in range(first, first + trainings.settings.num_seeds):
        toy = trainings.toy(seed=seed)
        for subset in SUBSETS:
            training = trainings.training(subset, seed=seed)
            row: dict[str, Any] = {"losses": subset_name(subset), "seed": seed}
            row |= {term: term in subset for term in SWITCHES}
            row |= toy_aurocs(training.metric, toy) | shape_of_balls(training.metric, toy)
            rows.append(row | {"epoch": training.kept, "has_collapsed": training.has_collapsed})
        plain = dict.fromkeys(SWITCHES, False) | {"losses": "w = 1", "seed": seed, "epoch": 0}
        ones = dict.fromkeys(("w along", "w across", "w mismatched"), 1.0)
        areas = toy_aurocs(training.metric, toy, is_plain=True)
        rows.append(plain | ones | areas | {"has_collapsed": False})
    return pd.DataFrame(rows)


def subset_name(subset: tuple[str, ...]) -> str:
    """Return a subset of the losses as a text: "sep + mar + cma"."""
    return " + ".join(["sep", *subset])


def loss_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `compare_losses` as mean ± standard deviation over seeds, as text."""
    groups = rows.groupby("losses", sort=False)
    shown = {
        "both": "AUROC, off both curves",
        "pcd": "off the points' only",
        "rgb": "off RGB's only",
        "w along": "w along",
        "w across": "w across",
        "w mismatched": "w mismatched",
    }
    table = pd.DataFrame({name: _spread(groups[column]) for column, name in shown.items()})
    order = ["w = 1", *map(subset_name, SUBSETS)]
    return table.loc[order]


def _spread(groups) -> pd.Series:
    """Return mean ± standard deviation of a column's groups, which a page does not break."""
    digits = 2 if str(groups.obj.name).startswith("w ") else 3
    mean, deviation = groups.mean(), groups.std()
    return pd.Series(
        [
            f"{m:.{digits}f}\u00a0±\u00a0{d:.{digits}f}"
            for m, d in zip(mean, deviation, strict=True)
        ],
        index=mean.index,
    )


def loss_captions(rows: pd.DataFrame, kind: str) -> dict[tuple[str, ...], str]:
    """Return subset -> what it comes to, in a line: AUROC over seeds and the shape of balls."""
    captions = {}
    for subset in SUBSETS:
        of = rows[rows["losses"] == subset_name(subset)]
        captions[subset] = (
            f"AUROC {of[kind].mean():.3f} ± {of[kind].std():.3f}; mean w: "
            f"along {_mean(of, 'along')}, across {_mean(of, 'across')}, "
            f"mismatched {_mean(of, 'mismatched')}"
        )
    return captions


def _mean(rows: pd.DataFrame, which: str) -> str:
    return f"{rows[f'w {which}'].mean():.2f}"


def loss_effects(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return what switching each loss on changes, whatever else is on.

    Args:
        rows: of `compare_losses`.
        kind: of test anomalies.

    Returns:
        Indexed by loss, columns ``change`` (mean AUROC with it minus without it, over the eight
        subsets of the others and over seeds), ``low`` and ``high`` (the 95 % interval of
        Student's t over seeds).
    """
    trained = rows[rows["losses"] != "w = 1"]
    found = {}
    for term in SWITCHES:
        means = trained.groupby(["seed", term])[kind].mean().unstack()
        change = means[True] - means[False]
        half = stats.t.ppf(0.975, len(change) - 1) * change.std() / len(change) ** 0.5
        found[term] = {
            "change": change.mean(), "low": change.mean() - half, "high": change.mean() + half,
        }  # fmt: skip
    return pd.DataFrame(found).T


def loss_verdict(rows: pd.DataFrame, kind: str) -> str:
    """Return, in Markdown, what learning and each of the losses bring on this toy.

    Args:
        rows: of `compare_losses`.
        kind: of test anomalies that is judged by.
    """
    means = rows.groupby("losses")[kind].mean()
    plain, every = means["w = 1"], means[subset_name(tuple(SWITCHES))]
    alone = means["sep"]
    best = means.drop("w = 1").idxmax()
    num = rows["seed"].nunique()
    lines = [
        f"Mean over {num} seeds, AUROC of test anomalies ({_kind_words(kind)}): "
        f"w = 1 {plain:.3f}, {_loss_name('sep')} alone {alone:.3f}, all five {every:.3f}; "
        f"the best subset is {best} with {means[best]:.3f}."
    ]
    gain = _paired(rows, kind, subset_name(tuple(SWITCHES)), "w = 1")
    rest = _paired(rows, kind, subset_name(tuple(SWITCHES)), "sep")
    lines.append(f"- Learning with all five against w = 1: {gain}.")
    lines.append(f"- All five against {_loss_name('sep')} alone: {rest}.")
    for term, row in loss_effects(rows, kind).iterrows():
        lines.append(
            f"- {_loss_name(term)} on instead of off, over all subsets of the others: "
            f"{_interval(row['change'], row['low'], row['high'])}."
        )
    flat = int(rows["has_collapsed"].sum())
    if flat:
        lines.append(f"- {flat} of {num * len(SUBSETS)} trainings ended with a constant w.")
    return "\n".join([lines[0], "", *lines[1:]])


def _loss_name(term: str) -> str:
    """Return a loss as it is written; formulas between dollars are not set in computed text."""
    return f"*L*<sub>{term}</sub>"


def _paired(rows: pd.DataFrame, kind: str, one: str, against: str) -> str:
    wide = rows.pivot(index="seed", columns="losses", values=kind)
    gap = wide[one] - wide[against]
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std() / len(gap) ** 0.5
    return _interval(gap.mean(), gap.mean() - half, gap.mean() + half)


def _interval(change: float, low: float, high: float) -> str:
    told = "a gain" if low > 0 else "a loss" if high < 0 else "not told apart from no change"
    return f"{change:+.3f} (95 % interval {low:+.3f} to {high:+.3f}): {told}"


def _kind_words(kind: str) -> str:
    words = {"both": "off both curves", "either": "off one curve or both"}
    return words.get(kind) or f"off the curve of {'points' if kind == 'pcd' else 'RGB'} only"


def kind_table(rows: pd.DataFrame, losses: tuple[str, ...]) -> pd.DataFrame:
    """Return AUROC of w = 1 and of one subset of the losses by kind of test anomaly, as text."""
    names = {"w = 1": "w = 1", subset_name(losses): subset_name(losses)}
    columns = {kind: _kind_words(kind) for kind in KINDS}
    chosen = rows[rows["losses"].isin(names)].groupby("losses", sort=False)
    table = pd.DataFrame({name: _spread(chosen[kind]) for kind, name in columns.items()})
    return table.loc[list(names)]


def kind_verdict(rows: pd.DataFrame, losses: tuple[str, ...]) -> str:
    """Return, in Markdown, on which kinds of test anomaly learning gains and on which it loses."""
    lines = [
        f"- {_kind_words(kind)}: {_paired(rows, kind, subset_name(losses), 'w = 1')}"
        for kind in KINDS
    ]
    return "\n".join([f"{subset_name(losses)} against w = 1, by where anomalies are:", "", *lines])
