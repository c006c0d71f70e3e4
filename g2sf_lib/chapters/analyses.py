"""Chapter 11: one setting at a time, what it does to the scores, and how surely."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import t as student

from g2sf_lib.ablations import (
    RUN,
    SCALES,
    Variant,
    means,
    orderings,
    own_variant,
    run_variants,
    studies,
)
from g2sf_lib.chapters.wording import p_cell, p_text, signed, with_error, with_spread
from g2sf_lib.config import Config, ConfigError, leaf_fields, listed, with_settings
from g2sf_lib.stats import LEVEL, METRIC_NAMES, holm
from g2sf_lib.training import COLLAPSED, CollapseWarning

APART = ("epochs", "calibration")  # analyses that are no rows beside the run
MAIN = ("i_auroc", "aupro_30")  # what claims are judged by
NO_COLLAPSE = ("scalar",)  # w is one number there by construction


# ---------------------------------------------------------------- what is run


def checked_analyses(names: Sequence[str] | str | None) -> dict[str, tuple[Variant, ...]]:
    """Return the analyses asked for; None: all.

    Returns:
        Name -> rows beside the run, in the chapter's order; none for those in `APART`.

    Raises:
        ConfigError: for one that does not exist, or no list.
    """
    known, asked = studies() | dict.fromkeys(APART, ()), listed(names)
    if asked is None:
        return known
    if not isinstance(asked, (list, tuple)) or not all(name in known for name in asked):
        raise ConfigError(f"studies is {names!r}; expected a list of some of {', '.join(known)}")
    return {name: rows for name, rows in known.items() if name in asked}


@dataclass(frozen=True)
class Study:
    """What became of the run when one thing was changed.

    Attributes:
        name: of the study, a key of `ablations.studies`, or "own".
        labels: variant -> what a reader sees, in the order of the tables, the run among them.
        numbers: variant -> the number that was changed; empty where it is no number.
        rows: of `ablations.run_variants`, of these variants.
    """

    name: str
    labels: Mapping[str, str]
    numbers: Mapping[str, float]
    rows: pd.DataFrame

    @property
    def changed(self) -> list[str]:
        """The variants that are not the run."""
        return [name for name in self.labels if name != RUN.name]


def run_studies(
    config: Config,
    chosen: Mapping[str, tuple[Variant, ...]],
    own: Mapping[str, Any] | str | None = None,
    categories: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[str, Study]]:
    """Measure the run and every row of some studies, and sort the rows by study.

    A variant whose settings are those of the run is the run, and is not measured as another one.

    Args:
        config: of the run.
        chosen: of `checked_analyses`.
        own: as in `ablations.own_variant`; a study "own" of one row.
        categories: those that take part; None: all that are there.
        seeds: training seeds. A text that holds a list will do, here and for the categories.
        progress: whether a progress bar is shown.

    Returns:
        All rows (`ablations.run_variants`); and name -> `Study`, of those in which anything
        differs from the run.

    Raises:
        ConfigError: for a row that no run can have, before anything is trained.
    """
    asked = {name: rows for name, rows in chosen.items() if name not in APART}
    asked |= {"own": own_variant(own)}
    changed = {
        name: [v for v in variants if with_settings(config, v.settings) != config]
        for name, variants in asked.items()
    }
    every = [RUN, *(variant for variants in changed.values() for variant in variants)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # a column of the tables says it
        rows = run_variants(config, every, categories, seeds, progress=progress)
    return rows, {
        name: _study(config, name, variants, rows) for name, variants in changed.items() if variants
    }


def _study(config: Config, name: str, variants: Sequence[Variant], rows: pd.DataFrame) -> Study:
    """Return a study of its rows among all; numbers are in rising order, else the run is first."""
    labels = {RUN.name: RUN.label} | {variant.name: variant.label for variant in variants}
    numbers = {}
    if name in SCALES:
        own_number = getattr(getattr(config, leaf_fields()[name][0]), name)
        numbers = {RUN.name: own_number} | {v.name: v.settings[name] for v in variants}
        numbers = dict(sorted(numbers.items(), key=lambda pair: pair[1]))
        labels = {key: f"{number:g}" for key, number in numbers.items()}
        labels[RUN.name] += f", {RUN.label}"
    return Study(name, labels, numbers, rows[rows["variant"].isin(labels)])


def scope_report(rows: pd.DataFrame, config: Config, found: Iterable[str]) -> str:
    """Return, in Markdown, what the numbers are of, and how surely anything can be said.

    Args:
        rows: of `run_studies`.
        config: of the run.
        found: names of the studies that were run.
    """
    categories, seeds = rows["category"].unique(), rows["seed"].unique()
    return (
        f"Profile {config.profile}, data set {config.dataset}: "
        f"{', '.join(categories)}; training seeds {', '.join(map(str, seeds))}; "
        f"{rows['variant'].nunique()} rows, the run among them; studies: "
        f"{', '.join(found) or 'none'}. {_counted(rows)}"
    )


def _counted(rows: pd.DataFrame) -> str:
    """Return what an error and p are over."""
    num, seeds = rows["category"].nunique(), rows["seed"].nunique()
    spread = (
        "*mean ± std* is over seeds"
        if seeds > 1
        else "One training seed: there is no spread over seeds"
    )
    if num > 1:
        return f"{spread}; *difference ± error* and p are over the {num} categories."
    if seeds > 1:
        return f"{spread}; with one category, so are errors and p: they say nothing beyond it."
    return f"{spread}, and with one category no error either: nothing can be said how surely."


# ---------------------------------------------------------------- tables and rows for figures


def study_effects(study: Study) -> pd.DataFrame:
    """Return what every row of a study differs by from the run, and how surely.

    Returns:
        A row a metric and variant: ``metric``, ``variant``, the columns of `ablations.orderings`
        (variant minus run; p corrected by Holm's rule for the rows of the study, metric by
        metric), and ``effect``: "above", "below" or "open".
    """
    pairs = [(name, RUN.name) for name in study.changed]
    tables = [orderings(study.rows, pairs, metric).assign(metric=metric) for metric in METRIC_NAMES]
    table = pd.concat(tables, ignore_index=True).rename(columns={"higher": "variant"})
    words = {"holds": "above", "reversed": "below", "open": "open"}
    return table.assign(effect=table["verdict"].map(words)).drop(columns=["lower", "verdict"])


def study_panels(study: Study) -> dict[str, Any]:
    """Return the arguments of `plots.effect_dots`: a point a category and seed, and their means."""
    labels = {name: textwrap.fill(label, 30) for name, label in study.labels.items()}
    points = []
    for metric in METRIC_NAMES:
        wide = study.rows.pivot(index=["category", "seed"], columns="variant", values=metric)
        for name in study.changed:
            gap = (wide[name] - wide[RUN.name]).rename("difference").reset_index()
            points.append(gap.assign(variant=labels[name], metric=metric))
    effects = study_effects(study)
    return {
        "points": pd.concat(points, ignore_index=True),
        "effects": effects.assign(variant=effects["variant"].map(labels)),
        "reference": RUN.label,
    }


def scale_curve_rows(study: Study) -> dict[str, Any]:
    """Return the arguments of `plots.curve_with_bands` for a study of numbers, but its label."""
    table = study.rows.assign(**{study.name: study.rows["variant"].map(study.numbers)})
    numbers = list(study.numbers.values())
    return {
        "table": table,
        "over": study.name,
        "values": list(METRIC_NAMES),
        "marked": study.numbers[RUN.name],
        "is_log": numbers[-1] >= 20 * numbers[0],
        "is_relative": True,
    }


def value_table(study: Study) -> pd.DataFrame:
    """Return a row a variant: metrics, and what training ended with, as text.

    Metrics are means over categories and seeds ± standard deviation over seeds. "w constant":
    in how many trainings w hardly differs between cells in at least one modality
    (`training.COLLAPSED`).
    """
    ours, lines = means(study.rows), []
    for name, label in study.labels.items():
        of_one = study.rows[study.rows["variant"] == name]
        line = {"row": label}
        for metric, title in METRIC_NAMES.items():
            line[title] = with_spread(
                *ours.loc[name, [metric, f"{metric}_seed_std"]], has_dash=True
            )
        line["σ of points"] = f"{of_one['sigma_pcd'].mean():.2f}"
        line["w constant"] = f"{int((of_one['w_std'] < COLLAPSED).sum())} of {len(of_one)}"
        lines.append(line)
    return pd.DataFrame(lines).set_index("row")


def effect_table(study: Study, metrics: Sequence[str] = MAIN) -> pd.DataFrame:
    """Return a row a variant: difference from the run, pairs in which it is above it, and p.

    Args:
        study: with its rows.
        metrics: keys of `METRIC_NAMES`, three columns each.
    """
    table, columns = study_effects(study), {}
    for metric in metrics:
        of_metric = table[table["metric"] == metric].set_index("variant").loc[study.changed]
        title = METRIC_NAMES[metric]
        columns[title, "− run ± error"] = [
            with_error(*pair, has_dash=True)
            for pair in zip(of_metric["difference"], of_metric["se"], strict=True)
        ]
        columns[title, "pairs above"] = [
            f"{row.wins} of {row.num}" for row in of_metric.itertuples()
        ]
        columns[title, "p (Holm)"] = [p_cell(value) for value in of_metric["p"]]
    index = pd.Index([study.labels[name] for name in study.changed], name="row")
    return pd.DataFrame(columns, index=index)


def study_tables(study: Study) -> tuple[pd.DataFrame, ...]:
    """Return what is shown of a study: its values, and differences in all metrics, two a table."""
    others = tuple(metric for metric in METRIC_NAMES if metric not in MAIN)
    return value_table(study), effect_table(study), effect_table(study, others)


# ---------------------------------------------------------------- sentences


def study_report(study: Study) -> str:
    """Return, in Markdown, what differs from the run and how surely, and the paper's claim.

    Claims are judged by the metrics in `MAIN`: of the memory bank that the number of prototypes
    matters little, of sigma that learning it is better than fixing it, of the inputs that
    the network needs directions. Of other studies the paper says nothing.
    """
    effects = study_effects(study)
    lines = [_told_apart(study, effects, metric) for metric in METRIC_NAMES]
    claims = {"bank_fraction": _stability, "sigma": _learned_sigma, "inputs": _direction}
    if study.name in claims:
        lines.append(claims[study.name](study, effects))
    lines += [_smallest_seen(effects, study), _collapsed(study)]
    return "\n".join(f"- {line}" for line in lines if line)


def _named(study: Study, rows: pd.DataFrame) -> str:
    """Return variants with their differences, in words."""
    each = [f"{study.labels[row.variant]} ({signed(row.difference)})" for row in rows.itertuples()]
    return "; ".join(each)


def _told_apart(study: Study, effects: pd.DataFrame, metric: str) -> str:
    """Return which rows are surely above or below the run in a metric."""
    table = effects[effects["metric"] == metric]
    sides = {side: table[table["effect"] == side] for side in ("above", "below", "open")}
    words = [
        f"surely {side} the run: {_named(study, sides[side])}"
        for side in ("above", "below")
        if len(sides[side])
    ]
    if len(sides["open"]):
        low, high = sides["open"]["difference"].min(), sides["open"]["difference"].max()
        reach = signed(low) if len(sides["open"]) == 1 else f"{signed(low)} to {signed(high)}"
        words.append(f"not told from the run: {len(sides['open'])} of {len(table)} ({reach})")
    return f"{METRIC_NAMES[metric]}: {'; '.join(words)}."


def _of(effects: pd.DataFrame, metric: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the effects of some variants in one metric."""
    return effects[(effects["metric"] == metric) & effects["variant"].isin(names)]


def _stability(study: Study, effects: pd.DataFrame) -> str:
    """Return what becomes of the claim that the number of prototypes matters little."""
    ours, words, moved = means(study.rows), [], []
    for metric in MAIN:
        name, values = METRIC_NAMES[metric], ours.loc[list(study.labels), metric]
        text = (
            f"{name} goes from {values.min():.3f} (at {study.labels[values.idxmin()]}) to "
            f"{values.max():.3f} (at {study.labels[values.idxmax()]})"
        )
        spread = ours.loc[RUN.name, f"{metric}_seed_std"]
        if not pd.isna(spread):
            text += f", while seeds alone move the run's by {spread:.3f}"
        words.append(text)
        if (_of(effects, metric, study.changed)["effect"] != "open").any():
            moved.append(name)
    if effects["p"].isna().all():
        verdict = "cannot be judged without an error"
    elif moved:
        verdict = f"does not hold here for {' and '.join(moved)}: a row differs surely"
    else:
        verdict = "is not contradicted here: no row can be told from the run in either"
    return (
        f"*The paper's claim* of a “relatively stable performance” **{verdict}**. "
        f"{'; '.join(words)}."
    )


def _learned_sigma(study: Study, effects: pd.DataFrame) -> str:
    """Return what becomes of the claim that sigma has to be learned."""
    words = {"below": "holds here", "above": "is reversed here", "open": "stays open here"}
    each = []
    for metric in MAIN:
        (row,) = _of(effects, metric, study.changed).itertuples()
        gap = with_error(-row.difference, row.se, has_dash=True)
        each.append(
            f"**{words[row.effect]}** in {METRIC_NAMES[metric]} (learned minus fixed "
            f"{gap}, {p_text(row.p)}; learned above in "
            f"{_wins_of_run(study, metric, row.variant)} of {row.num} pairs)"
        )
    sigma = study.rows.loc[study.rows["variant"] == RUN.name, "sigma_pcd"]
    return (
        f"*The paper's claim* of “the necessity of learning optimal σ_m” {', and '.join(each)}. "
        f"Learned, σ of points is {sigma.mean():.3f}, from {sigma.min():.3f} to "
        f"{sigma.max():.3f} over categories and seeds; fixed it is 0.5."
    )


def _wins_of_run(study: Study, metric: str, name: str) -> int:
    """Return in how many pairs of category and seed the run is above a variant."""
    wide = study.rows.pivot(index=["category", "seed"], columns="variant", values=metric)
    return int((wide[RUN.name] > wide[name]).sum())


def _direction(study: Study, effects: pd.DataFrame) -> str:
    """Return whether direction matters: the run against rows that do not see it."""
    blind = [name for name in ("d_zeros", "d_random") if name in study.changed]
    each = []
    for metric in MAIN:
        table = _of(effects, metric, blind)
        sides = set(table["effect"])
        if sides == {"below"}:
            verdict = "**holds here**: without directions it is surely worse"
        elif sides == {"above"}:
            verdict = "**is reversed here**: without directions it is surely better"
        elif sides == {"open"}:
            verdict = "**stays open here**: without directions no difference is sure"
        else:
            verdict = "**is not settled here**: rows without directions disagree"
        each.append(f"in {METRIC_NAMES[metric]} it {verdict} ({_named(study, table)})")
    return f"*The paper's idea*, that scale factors need directions: {'; '.join(each)}."


def _smallest_seen(effects: pd.DataFrame, study: Study) -> str:
    """Return which differences could have been seen, with as few categories or seeds."""
    num = study.rows["category"].nunique()
    num = num if num > 1 else study.rows["seed"].nunique()
    if num < 2:
        return ""
    factor = float(student.ppf(1 - LEVEL / 2, num - 1))
    sizes = [
        f"{factor * effects.loc[effects['metric'] == metric, 'se'].median():.3f} in {name}"
        for metric, name in METRIC_NAMES.items()
        if metric in MAIN
    ]
    return (
        f"“Not told” is not “equal”: a difference had to be about {' and '.join(sizes)} to be "
        "seen, before any correction (median over rows)."
    )


def _collapsed(study: Study) -> str:
    """Return in which rows w is a constant."""
    flat = study.rows[study.rows["w_std"] < COLLAPSED]
    flat = flat[~flat["variant"].isin(NO_COLLAPSE)]
    if flat.empty:
        return "In no training w collapsed to a constant" + (
            ", but for the row in which it is one by construction."
            if set(NO_COLLAPSE) & set(study.changed)
            else "."
        )
    num = study.rows.groupby("variant")["w_std"].size()
    each = ", ".join(
        f"{study.labels[name]} ({count} of {num[name]})"
        for name, count in flat["variant"].value_counts(sort=False).items()
    )
    text = f"**w collapsed** to a constant in at least one modality: {each}."
    if RUN.name in set(flat["variant"]):
        text += " The run is among them: where it collapsed, it is hardly more than a weighted sum."
    return text


def effect_texts(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what each row of the chapter did to the run, in a few plain words.

    Args:
        summary: of `ablations.summary`, of rows of this chapter.

    Returns:
        Variant -> text with the differences in the metrics of `MAIN`, their errors, and p as the
        chapter's tables have it: corrected by Holm's rule for the rows of the study.
    """
    table = pd.DataFrame(summary["effects"])
    if table.empty:
        return {}
    groups = {row.name: name for name, rows in studies().items() for row in rows}
    table["study"] = table["variant"].map(groups).fillna(table["variant"])
    table["p"] = table["p"].astype(float)
    known = table[table["p"].notna()]
    by = known.groupby(["study", "metric"])["p"]
    table.loc[known.index, "p"] = by.transform(lambda p: holm(p))
    spread = {row["variant"]: row.get("w_std") for row in summary["rows"]}
    texts = {}
    for variant, of_one in table.groupby("variant", sort=False):
        of_one = of_one.set_index("metric")
        parts = []
        for metric in MAIN:
            row = of_one.loc[metric]
            p = "" if pd.isna(row["p"]) else f" ({p_text(row['p'])})"
            parts.append(f"{METRIC_NAMES[metric]} {with_error(row['difference'], row['se'])}{p}")
        texts[variant] = ", ".join(parts)
        width = spread.get(variant)
        if width is not None and width < COLLAPSED and variant not in NO_COLLAPSE:
            texts[variant] += "; w collapsed"
    return texts
