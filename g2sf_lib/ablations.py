"""Ablations are rows of a table: a name, and the settings in which a row differs from the run."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from g2sf_lib.benchmark import checked_seeds
from g2sf_lib.cells import counted_cells
from g2sf_lib.config import Config, ConfigError, leaf_fields, listed, make_config, with_settings
from g2sf_lib.detector import CellScores
from g2sf_lib.experiments import checked_categories, fitted
from g2sf_lib.quantities import TestCells, neighbourhoods, run_epochs, run_quantities
from g2sf_lib.results import origin, rounded
from g2sf_lib.results import write_summary as write_summary  # for who has a summary of here
from g2sf_lib.stats import METRIC_NAMES, effects, means, metric_columns

LOSSES = {"sep": None, "cns": "beta", "mar": "alpha", "sc": "gamma", "cma": "mu"}  # -> its weight
STEPS = tuple(tuple(LOSSES)[:num] for num in range(1, len(LOSSES) + 1))  # Table 4
LEFT_OUT = tuple(tuple(x for x in LOSSES if x != term) for term in LOSSES if term != "sep")


@dataclass(frozen=True)
class Variant:
    """One row of an ablation, and the leaves of the config that differ from the run's."""

    name: str  # that of `data/paper` where the paper has such a row
    label: str  # what is shown
    settings: Mapping[str, Any] = field(default_factory=dict)


def loss_variant(losses: Sequence[str]) -> Variant:
    """Return the row that is trained with some of the five losses: the others weigh nothing."""
    kept = [name for name in LOSSES if name in losses]
    if "sep" not in kept or len(kept) != len(losses):
        raise ConfigError(
            f"losses is {list(losses)!r}; expected a list of 'sep' and some of "
            f"{', '.join(map(repr, list(LOSSES)[1:]))}"
        )
    off = {weight: 0.0 for name, weight in LOSSES.items() if name not in kept}
    return Variant("+".join(kept), " + ".join(kept), off)


def loss_variants(losses: Any, config: Config) -> tuple[Variant, ...]:
    """Return the rows of Table 4, and those with one loss left out; or one subset beside all.

    Args:
        losses: a list of losses, or a text that holds one; None: all rows.
        config: that of the run, in which every loss must weigh something.
    """
    asked = [*STEPS, *LEFT_OUT] if losses is None else [listed(losses), tuple(LOSSES)]
    if not isinstance(asked[0], (list, tuple)):
        raise ConfigError(f"losses is {losses!r}; expected a list of {', '.join(LOSSES)}")
    variants = {variant.name: variant for variant in map(loss_variant, asked)}
    for name, weight in LOSSES.items():
        if weight and getattr(config.loss, weight) == 0:
            raise ConfigError(f"{weight} is 0, so the loss {name!r} cannot be on; expected above 0")
    return tuple(variants.values())


RUN = Variant("run", "this run")  # what every other row of chapter 11 is compared with
# Nothing is learned at a rate of 0: LSPN says w = 1 of every cell, and both sigma stay 1/2.
STILL = {"epochs": 1, "learning_rate": 0.0, "sigma_learning_rate": 0.0}
UNTRAINED = Variant("untrained", "untrained (w = 1)", STILL)


def own_variant(settings: Mapping[str, Any] | str | None) -> tuple[Variant, ...]:
    """Return a row of the reader's own, from settings or a text that holds them; None: no row."""
    if settings is None:
        return ()
    try:
        found = dict(ast.literal_eval(settings) if isinstance(settings, str) else settings)
        make_config(**found)  # names and values
    except (ValueError, SyntaxError, TypeError) as error:
        raise ConfigError(
            f"own is {settings!r}; expected settings in braces, e.g. {{'hidden': 128}} ({error})"
        ) from error
    whole = sorted(name for name in found if not leaf_fields().get(name, (True,))[0])
    if whole:
        raise ConfigError(f"own holds {', '.join(whole)}, which belong to the whole run")
    return (Variant("own", ", ".join(f"{name} {value}" for name, value in found.items()), found),)


def run_variants(
    config: Config,
    variants: Sequence[Variant],
    categories: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
    quantities: Sequence[str] | None = ("fused",),
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every variant in every category for every seed; train what is not there yet.

    Args:
        config: that of the run, whose files variants share where they change nothing of them.
        variants: the rows.
        categories: a list, or a text that holds one, as are seeds; None: all that are there.
        seeds: of the training.
        quantities: see `quantities.checked_quantity`; None: the fused score after kept epochs.
        progress: whether a bar is shown.

    Returns:
        The rows of `quantities.run_quantities` or `quantities.run_epochs`, and ``variant``.
    """
    categories, seeds = checked_categories(config, categories), checked_seeds(seeds)
    configs = [(variant.name, with_settings(config, variant.settings)) for variant in variants]
    measured = run_epochs if quantities is None else partial(run_quantities, names=quantities)
    bar = tqdm(list(itertools.product(categories, configs, seeds)), disable=not progress)
    test, tables = None, []
    for category, (name, changed), seed in bar:
        bar.set_description(f"{category}, {name}, seed {seed}")
        if test is None or test.config.category != category:
            test = TestCells(config.replace(category=category))
        one = changed.replace(category=category, seed=seed)
        tables.append(measured(one, test=test).assign(variant=name))
    return pd.concat(tables, ignore_index=True)


def counted_neighbourhoods(
    config: Config, categories: Sequence[str] | str | None, seeds: Sequence[int] | str
) -> Iterator[tuple[dict[str, Any], CellScores, np.ndarray]]:
    """Yield category and seed, the values of (n,) counted test cells, and which are anomalous."""
    for category in checked_categories(config, categories):
        test = TestCells(config.replace(category=category))
        counts = [counted_cells(scan, config.scoring.silhouette) for scan in test.patches]
        pairs = list(zip(counts, test.patches, test.cell_labels, strict=True))
        among = torch.cat([counted[scan.foreground] for counted, scan, _ in pairs]).cpu()
        labels = torch.cat([label[counted] for counted, _, label in pairs]).cpu().numpy()
        for seed in checked_seeds(seeds):
            of_one = config.replace(category=category, seed=seed)
            found = neighbourhoods(fitted(of_one), test)
            yield {"category": category, "seed": seed}, found.take(among), labels


def summary(
    config: Config,
    rows: pd.DataFrame,
    reference: str,
    key: str = "variant",
    metrics: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what is kept of an ablation, as plain values, and where they come from.

    ``effects`` are differences from `reference`, by default of the metrics in `METRIC_NAMES`.
    """
    compared = list(metrics or METRIC_NAMES)
    metrics = list(metrics or metric_columns(rows))
    categories = list(rows["category"].unique())
    by_row = means(rows, key, metrics)
    if "w_std" in rows:
        by_row = by_row.join(rows.groupby(key)["w_std"].min())
    per_category = rows.groupby([key, "category"], sort=False)[metrics].mean()
    return {
        "profile": config.profile,
        "dataset": config.dataset,
        "categories": categories,
        "seeds": [int(seed) for seed in rows["seed"].unique()],
        "reference": reference,
        **origin(config, categories),
        "rows": rounded(by_row.reset_index().to_dict("records")),
        "per_category": rounded(per_category.reset_index().to_dict("records")),
        "effects": rounded(effects(rows, reference, key, compared).to_dict("records")),
    }
