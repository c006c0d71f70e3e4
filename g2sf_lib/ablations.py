"""Ablations are rows of a table: a name, and the settings in which a row differs from the run.

`run_variants` trains and measures what is not there yet; `paired` and `orderings` say how surely
one row stands above another.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student
from tqdm.auto import tqdm

from g2sf_lib.benchmark import checked_seeds
from g2sf_lib.config import (
    Config,
    ConfigError,
    leaf_fields,
    listed,
    make_config,
    results_file,
)
from g2sf_lib.detector import flat_settings
from g2sf_lib.experiments import checked_categories
from g2sf_lib.quantities import TestCells, run_epochs, run_quantities
from g2sf_lib.results import origin, rounded
from g2sf_lib.stats import EXACT, LEVEL, METRIC_NAMES, holm
from g2sf_lib.storage import write_json

LOSSES = {"sep": None, "cns": "beta", "mar": "alpha", "sc": "gamma", "cma": "mu"}  # -> its weight
STEPS = tuple(tuple(LOSSES)[:num] for num in range(1, len(LOSSES) + 1))  # Table 4
LEFT_OUT = tuple(tuple(x for x in LOSSES if x != term) for term in LOSSES if term != "sep")


@dataclass(frozen=True)
class Variant:
    """One row of an ablation.

    Attributes:
        name: of the row; the same as in `data/paper` where the paper has such a row.
        label: what a reader sees.
        settings: leaves of the config that differ from the run's; none for the run itself.
    """

    name: str
    label: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def loss_variant(losses: Sequence[str]) -> Variant:
    """Return the row that is trained with some of the five losses: the others weigh nothing.

    Raises:
        ConfigError: for an unknown loss, one that is there twice, or without "sep", which has no
            weight in Eq. 10.
    """
    names = tuple(losses)
    if "sep" not in names or len(set(names)) < len(names) or not set(names) <= set(LOSSES):
        raise ConfigError(
            f"losses is {list(losses)!r}; expected a list of 'sep' and some of "
            f"{', '.join(map(repr, list(LOSSES)[1:]))}"
        )
    kept = [name for name in LOSSES if name in names]
    off = {weight: 0.0 for name, weight in LOSSES.items() if weight and name not in kept}
    return Variant("+".join(kept), " + ".join(kept), off)


def loss_variants(losses: Any, config: Config) -> tuple[Variant, ...]:
    """Return the rows of Table 4, and those with one loss left out; or one subset beside all.

    Args:
        losses: None for all rows; a list of losses, or a text that holds one, for that subset.
        config: of the run, whose weights the losses that are on have.

    Raises:
        ConfigError: as `loss_variant`; and for a loss that is on but weighs nothing in the config.
    """
    if losses is None:
        subsets = (*STEPS, *(subset for subset in LEFT_OUT if subset not in STEPS))
    else:
        asked = listed(losses)
        if not isinstance(asked, (list, tuple)) or not all(isinstance(x, str) for x in asked):
            raise ConfigError(f"losses is {losses!r}; expected a list of {', '.join(LOSSES)}")
        in_order = (
            [x for x in LOSSES if x in asked]
            if len(set(asked) & set(LOSSES)) == len(asked)
            else asked
        )
        subsets = tuple(dict.fromkeys((tuple(in_order), tuple(LOSSES))))
    variants = tuple(loss_variant(subset) for subset in subsets)
    for name, weight in LOSSES.items():
        used = any(weight not in variant.settings for variant in variants)
        if weight and used and getattr(config.loss, weight) == 0:
            raise ConfigError(f"{weight} is 0, so the loss {name!r} cannot be on; expected above 0")
    return variants


RUN = Variant("run", "this run")  # what every other row of chapter 11 is compared with
SCALES = {"bank_fraction": (0.01, 0.05, 0.1, 0.25, 1.0), "k": (1, 5, 10)}
LONGER = 2.5  # times the epochs of the run: how far the study of epochs trains
FORMS = ("sep_form", "mar_form", "cma_form", "direction_form", "jitter_form", "start_form")
# facts.md, section 5: the authors' forms with all that goes with them, on the run's cells.
RECIPE = {"form": "official", "alpha": 10.0, "beta": 40.0, "gamma": 3.0, "mu": 20.0}
RECIPE |= {"l1": 5e-4, "heldout_by": "cell", "criterion": "losses", "normaliser": "mean"}
RECIPE |= {"label_of": "cell", "sigma_learning_rate": 5e-3, "max_batch_share": 0.035}


def studies() -> dict[str, tuple[Variant, ...]]:
    """Return the analyses of chapter 11: study -> its rows beside `RUN`, which all share."""
    scales = {
        name: tuple(Variant(f"{name}={value:g}", f"{value:g}", {name: value}) for value in values)
        for name, values in SCALES.items()
    }
    zeros = {"direction_input": "zeros"}
    inputs = (
        Variant("d_zeros", "directions are zero", zeros),
        Variant("d_random", "directions are random", {"direction_input": "random"}),
        Variant("m_zeros", "prototypes are zero", {"prototype_input": "zeros"}),
        Variant("scalar", "both are zero: one number", zeros | {"prototype_input": "zeros"}),
    )
    forms = [Variant(name, name, {name: "official"}) for name in FORMS]
    forms += [
        Variant("form", "all six forms", {"form": "official"}),
        Variant("recipe", "all six, and the authors' weights, L1, split and choice", RECIPE),
    ]
    others = (
        Variant("heldout_by", "held out by cell", {"heldout_by": "cell"}),
        Variant("criterion", "epoch chosen by losses", {"criterion": "losses"}),
        Variant("normaliser", "distances over their mean", {"normaliser": "mean"}),
        Variant("l1", "L1 penalty of 5e-4", {"l1": 5e-4}),
        Variant("quantise", "maps of 8 bits", {"quantise": True}),
        Variant("silhouette", "cells at the outline count", {"silhouette": "count"}),
    )
    sigma = (Variant("sigma_rule", "both fixed at 1/2", {"sigma_rule": "fixed"}),)
    return {
        "bank_fraction": scales["bank_fraction"],
        "k": scales["k"],
        "sigma": sigma,
        "inputs": inputs,
        "forms": tuple(forms),
        "others": others,
    }


def own_variant(settings: Mapping[str, Any] | str | None) -> tuple[Variant, ...]:
    """Return a row of the reader's own, from settings or a text that holds them; None: no row.

    Raises:
        ConfigError: when it is no mapping of names to values, or names what belongs to a whole run.
    """
    if settings is None:
        return ()
    try:
        found = ast.literal_eval(settings) if isinstance(settings, str) else settings
    except (ValueError, SyntaxError):
        found = None
    is_named = isinstance(found, Mapping) and all(isinstance(name, str) for name in found)
    if not is_named or not found:
        raise ConfigError(
            f"own is {settings!r}; expected settings in braces, e.g. {{'hidden': 128}}"
        )
    whole = sorted(name for name in found if name in leaf_fields() and not leaf_fields()[name][0])
    if whole:
        raise ConfigError(f"own holds {', '.join(whole)}, which belong to the whole run")
    make_config(**found)  # names and values
    words = ", ".join(f"{name} {value}" for name, value in found.items())
    return (Variant("own", words, dict(found)),)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return the config with some leaves replaced, checked as any other."""
    return make_config(**(flat_settings(config) | dict(settings)))


def run_variants(
    config: Config,
    variants: Sequence[Variant],
    categories: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
    quantities: Sequence[str] = ("fused",),
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every variant in every category for every seed; train what is not there yet.

    Variants share all that their settings leave alone: features, banks, neighbours and synthetic
    anomalies, and the run's own trainings where a variant changes nothing of them.

    Args:
        config: of the run; its category and seed are not read.
        variants: rows.
        categories: those that take part; None: all that are there. A text that holds a list will
            do, here and for the seeds.
        seeds: training seeds.
        quantities: what is measured of each, as in `quantities.checked_quantity`.
        progress: whether a progress bar is shown.

    Returns:
        A row a variant, category, seed and quantity: ``variant``, and the columns of
        `quantities.run_quantities`.
    """
    return _over(config, variants, categories, seeds, progress, run_quantities, quantities)


def run_variant_epochs(
    config: Config,
    variant: Variant,
    categories: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
    progress: bool = True,
) -> pd.DataFrame:
    """Measure one variant after each kept epoch of its training, as `run_variants` otherwise."""
    return _over(config, [variant], categories, seeds, progress, run_epochs)


def _over(config, variants, categories, seeds, progress: bool, measured, *more) -> pd.DataFrame:
    """Return the rows that a function of (config, *more, test) gives of everything."""
    categories, seeds = checked_categories(config, categories), checked_seeds(seeds)
    configs = [(variant, with_settings(config, variant.settings)) for variant in variants]
    tables = []
    with tqdm(total=len(categories) * len(configs) * len(seeds), disable=not progress) as bar:
        for category in categories:
            test = TestCells(dataclasses.replace(config, category=category))
            for variant, changed in configs:
                for seed in seeds:
                    bar.set_description(f"{category}, {variant.name}, seed {seed}")
                    of_one = dataclasses.replace(changed, category=category, seed=seed)
                    tables.append(measured(of_one, *more, test).assign(variant=variant.name))
                    bar.update()
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------- how surely


def paired(
    rows: pd.DataFrame, first: str, second: str, value: str, key: str = "variant"
) -> dict[str, float]:
    """Return the difference of two rows of an ablation, and how sure it is.

    Differences are taken within a category and a seed. Seeds of a category share their scans, so
    they are averaged first, and the categories are what is counted: the error is the standard
    error over categories, p that of Student's distribution with one degree of freedom less than
    categories. With one category the seeds are counted instead, and say nothing beyond it.

    Args:
        rows: columns `key`, ``category``, ``seed`` and `value`, one row a combination.
        first: of `key`,
        second: of `key`; the difference is first minus second.
        value: the metric.
        key: which column says what differs.

    Returns:
        ``difference``, ``se`` and ``p`` (NaN where there is one category and one seed), ``wins``
        (in how many of ``num`` pairs of category and seed the first is above).
    """
    wide = rows.pivot(index=["category", "seed"], columns=key, values=value)
    gap = wide[first] - wide[second]
    each = gap.groupby("category").mean() if gap.index.get_level_values(0).nunique() > 1 else gap
    size, found = float(each.mean()), {"wins": int((gap > 0).sum()), "num": len(gap)}
    if len(each) < 2:
        return {"difference": size, "se": float("nan"), "p": float("nan")} | found
    error = float(each.std(ddof=1) / len(each) ** 0.5)
    if error < EXACT:
        # Equal differences leave no spread to go by: p is that of the sign test.
        p = 1.0 if abs(size) < EXACT else 2 * 0.5 ** len(each)
    else:
        p = float(2 * student.sf(abs(size) / error, len(each) - 1))
    return {"difference": size, "se": error, "p": p} | found


def orderings(
    rows: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    value: str,
    key: str = "variant",
) -> pd.DataFrame:
    """Return what becomes here of claims that one row stands above another.

    Args:
        rows: as in `paired`.
        pairs: (higher, lower) by the paper.
        value: the metric.
        key: as in `paired`.

    Returns:
        A row a pair: ``higher``, ``lower``, the columns of `paired`, with ``p`` corrected by
        Holm's rule for the number of pairs, and ``verdict``: "holds" or "reversed" where p is
        below `LEVEL`, else "open".
    """
    found = [{"higher": a, "lower": b} | paired(rows, a, b, value, key) for a, b in pairs]
    table = pd.DataFrame(found)
    known = table["p"].notna().to_numpy()
    table.loc[known, "p"] = holm(table.loc[known, "p"])
    is_real = table["p"] < LEVEL
    table["verdict"] = np.select(
        [is_real & (table["difference"] > 0), is_real & (table["difference"] < 0)],
        ["holds", "reversed"],
        "open",
    )
    return table


# ---------------------------------------------------------------- what is kept of it


def measured_metrics(rows: pd.DataFrame) -> list[str]:
    """Return the columns that are metrics, by either protocol."""
    return [c for c in rows if re.fullmatch(r"(i_auroc|p_auroc|aupro_\d+)(_published)?", c)]


def means(
    rows: pd.DataFrame, key: str = "variant", metrics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return a row a variant: every metric (or those named), and ``<metric>_seed_std``.

    Means are over categories first and seeds then; the deviation is that of the mean over
    categories from seed to seed (NaN for one seed).
    """
    metrics = measured_metrics(rows) if metrics is None else list(metrics)
    by_seed = rows.groupby([key, "seed"], sort=False)[metrics].mean()
    groups = by_seed.groupby(key, sort=False)
    return groups.mean().join(groups.std().add_suffix("_seed_std"))


def effects(
    rows: pd.DataFrame,
    reference: str,
    key: str = "variant",
    metrics: Sequence[str] = tuple(METRIC_NAMES),
) -> pd.DataFrame:
    """Return what each row differs by from a reference, in each metric.

    Returns:
        A row a variant and metric: ``variant``, ``metric`` and the columns of `paired`.
    """
    others = [name for name in rows[key].unique() if name != reference]
    return pd.DataFrame(
        [
            {key: name, "metric": metric} | paired(rows, name, reference, metric, key)
            for metric in metrics
            for name in others
        ]
    )


def summary(
    config: Config,
    rows: pd.DataFrame,
    reference: str,
    key: str = "variant",
    metrics: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what is kept of an ablation, as plain values.

    Args:
        config: of the run.
        rows: of `run_variants`.
        reference: the row that the others are compared with.
        key: which column says what differs.
        metrics: what was measured; None: all metrics of scores, of which `METRIC_NAMES` are
            compared.

    Returns:
        ``rows`` (`means`, and the smallest ``w_std`` of trainings), ``per_category`` (means over
        seeds), ``effects``; where they come from.
    """
    compared = list(METRIC_NAMES) if metrics is None else list(metrics)
    metrics = measured_metrics(rows) if metrics is None else list(metrics)
    per_category = rows.groupby([key, "category"], sort=False)[metrics].mean()
    by_row = means(rows, key, metrics)
    if "w_std" in rows:
        by_row = by_row.join(rows.groupby(key)["w_std"].min())
    return {
        "profile": config.profile,
        "dataset": config.dataset,
        "categories": list(rows["category"].unique()),
        "seeds": [int(seed) for seed in rows["seed"].unique()],
        "reference": reference,
        **origin(config, list(rows["category"].unique())),
        "rows": rounded(by_row.reset_index().to_dict("records")),
        "per_category": rounded(per_category.reset_index().to_dict("records")),
        "effects": rounded(effects(rows, reference, key, compared).to_dict("records")),
    }


def write_summary(content: dict[str, Any], config: Config, name: str) -> Path:
    """Write a summary to `results_file`, and return where that is."""
    write_json(results_file(config, name), content)
    return results_file(config, name)
