"""From the scores of all categories to one committed summary, and from that to the README."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from g2sf_lib.baselines import METHODS
from g2sf_lib.benchmark import NUM_RESAMPLES, RESAMPLED, SEEDED, Comparison
from g2sf_lib.config import CATEGORIES, Config, flat_settings, make_config
from g2sf_lib.evaluation import bootstrap_auroc, image_auroc
from g2sf_lib.published import RERUN, read_table
from g2sf_lib.stages import git_commit, package_versions, results_file
from g2sf_lib.stats import METRIC_NAMES, Resamples, compare, means
from g2sf_lib.store import write_json
from g2sf_lib.tables import number_cell, p_cell, with_error, with_spread
from g2sf_lib.timing import machine

METHOD_NAMES = {name: row.title for name, row in METHODS.items()}
GROUPS = {  # what the kinds of defect of the embedded data set change
    "geometry only": ("cut", "dent"),
    "appearance only": ("colour", "stain"),
    "both": ("combined",),
}
NO_SETTINGS = ("profile", "dataset", "data_root", "runs_root", "category", "seed", "device")
MARKS = {  # of the README, between which a data set's results stand
    "procedural": "<!-- results: make readme -->",
    "mvtec3d": "<!-- results: make readme DATASET=mvtec3d DATA_ROOT=... -->",
}
END = "<!-- end of results -->"


def origin(config: Config, categories: Sequence[str]) -> dict[str, Any]:
    """Return where results come from: data, settings, code, and the command that makes them."""
    place = {"dataset": config.dataset, "data_root": config.data_root}
    usual = flat_settings(make_config(config.profile, **place, category=config.category))
    settings = {k: v for k, v in flat_settings(config).items() if k not in NO_SETTINGS}
    changed = {k: v for k, v in settings.items() if v != usual[k] and k != "pasted_from"}
    words = {"PROFILE": config.profile, "DATASET": config.dataset, "DATA_ROOT": config.data_root}
    words["CATEGORIES"] = config.synthesis.pasted_from  # None: the run has all that are there
    words["SETTINGS"] = json.dumps(changed) if changed else None
    given = [f"{name}={shlex.quote(value)}" for name, value in words.items() if value]
    return {
        "git_commit": git_commit(),
        "command": " ".join(["make book", *given]),
        "data": place | {"categories": list(categories)},
        "settings": settings,
        "packages": package_versions(),
    }


def rounded(rows: list[dict]) -> list[dict]:
    """Return rows with four digits; what is no number becomes None, which JSON can hold."""
    return [
        {
            k: (None if v != v else round(v, 4)) if isinstance(v, float) else v
            for k, v in row.items()
        }
        for row in rows
    ]


def write_summary(content: dict[str, Any], config: Config, name: str = "") -> Path:
    """Write a summary to `stages.results_file`, and return where that is."""
    path = results_file(config, name)
    write_json(path, content)
    return path


def resampled(comparison: Comparison, metric: str) -> Resamples:
    """Return category -> method -> (NUM_RESAMPLES,) a metric of resampled images."""
    found = {category: {} for category in comparison.categories}
    for number, (category, scores) in enumerate(comparison.scores.items()):
        # Categories with as many scans were resampled with the same draws. In an order of their
        # own, they do not vary in the mean as if all had drawn the same kinds of defect.
        order = np.random.default_rng([2, number]).permutation(NUM_RESAMPLES)
        for method in comparison.methods:
            of_method = [x[metric] for (name, _), x in scores.resampled.items() if name == method]
            found[category][method] = np.mean(of_method, axis=0)[order]
    return found


def _rows(ours: pd.DataFrame, images: dict[str, Resamples]) -> list[dict]:
    """Return a row a method: every metric, its deviation over seeds, its error over images."""
    metrics = [c for c in ours if c.startswith(("i_auroc", "p_auroc", "aupro"))]
    metrics.remove("i_auroc_se")
    found, categories = means(ours, "method", metrics), ours["category"].unique()
    found.loc[~found.index.isin(SEEDED), [f"{metric}_seed_std" for metric in metrics]] = 0.0
    for metric, of in images.items():
        each = [np.mean([of[one][name] for one in categories], axis=0) for name in found.index]
        found[f"{metric}_se"] = [draws.std() for draws in each]
    return found.reset_index().to_dict("records")


def _defect_rows(ours: pd.DataFrame) -> list[dict]:
    """Return a row a kind of defect and method: I-AUROC, mean and error over categories."""
    kinds = [c for c in ours if re.fullmatch(r"i_auroc_(?!se$)\w+", c)]
    each = ours.groupby(["method", "category"], sort=False)[kinds].mean()
    groups = each.groupby("method", sort=False)
    mean, error = groups.mean(), groups.sem().fillna(0.0)
    return [
        {"defect": kind.removeprefix("i_auroc_"), "method": method}
        | {"i_auroc": float(mean.loc[method, kind]), "se": float(error.loc[method, kind])}
        for method, kind in itertools.product(mean.index, kinds)
    ]


def _group_rows(comparison: Comparison) -> list[dict]:
    """Return a row a group of defects and method: I-AUROC and its error over images."""
    rule, rows = comparison.config.scoring.silhouette, []
    groups = GROUPS if comparison.config.dataset == "procedural" else {}
    for (group, kinds), method in itertools.product(groups.items(), comparison.methods):
        values, areas = [], []
        for number, scores in enumerate(comparison.scores.values()):
            chosen = np.isin(scores.labels, ["good", *kinds])
            truth = np.array(scores.labels)[chosen] != "good"
            if truth.any():
                of_method = [x for (m, _, r), x in scores.image.items() if (m, r) == (method, rule)]
                images = np.array(of_method)[:, chosen]
                values.append(np.mean([image_auroc(x, truth) for x in images]))
                draw = np.random.default_rng([1, number])
                areas.append(bootstrap_auroc(images, truth, NUM_RESAMPLES, draw).mean(axis=0))
        if values:
            row = {"group": group, "method": method, "i_auroc": float(np.mean(values))}
            rows.append(row | {"se": float(np.mean(areas, axis=0).std())})
    return rows


def summarise(comparison: Comparison, rates: pd.DataFrame | None = None) -> dict[str, Any]:
    """Return the summary of all categories, and of `timing.rate_table`, as plain values.

    Returns:
        ``methods``: a row a method with the mean over categories and seeds of every metric, its
        standard error over images (``<metric>_se``) and the standard deviation over seeds of the
        mean over categories (``<metric>_seed_std``; 0 without randomness, None of one seed).
        ``per_category``: the same of each category. ``defects``, ``groups``, ``silhouettes``: mean
        I-AUROC by kind and group of defects, and by silhouette rule. ``differences``: G2SF minus
        each method, `stats.compare` by category and in the mean. ``pairs``: all pairs, I-AUROC.
    """
    config, table, methods = comparison.config, comparison.table, comparison.methods
    ours = table[table["silhouette"] == config.scoring.silhouette]
    images = {metric: resampled(comparison, metric) for metric in RESAMPLED}
    parts = {category: ours[ours["category"] == category] for category in comparison.categories}
    per_category = [{"category": c} | row for c in parts for row in _rows(parts[c], images)]
    others = [("g2sf", method) for method in methods if method != "g2sf"]
    differences, pairs = [], list(itertools.combinations(methods, 2))
    if "g2sf" in methods and others:
        for metric, (category, part) in itertools.product(images, (parts | {"mean": ours}).items()):
            found = compare(part, others, metric, "method", images[metric])
            found = found.drop(columns="higher").rename(columns={"lower": "method"})
            place = {"metric": metric, "category": category}
            differences += [place | row for row in found.to_dict("records")]
    if pairs:
        found = compare(ours, pairs, "i_auroc", "method", images["i_auroc"])
        found = found.rename(columns={"higher": "first", "lower": "second"})
        pairs = found.to_dict("records")
    both = table.groupby(["method", "silhouette", "category"], sort=False)["i_auroc"].mean()
    both = both.groupby(["method", "silhouette"], sort=False).mean().unstack()
    return {
        "profile": config.profile,
        "dataset": config.dataset,
        "categories": list(comparison.categories),
        "seeds": list(comparison.seeds),
        "silhouette": config.scoring.silhouette,
        **origin(config, comparison.categories),
        "methods": rounded(_rows(ours, images)),
        "per_category": rounded(per_category),
        "defects": rounded(_defect_rows(ours)),
        "groups": rounded(_group_rows(comparison)),
        "differences": rounded(differences),
        "pairs": rounded(pairs),
        "silhouettes": rounded(both.reset_index().to_dict("records")),
        "frame_rates": [] if rates is None else rounded(rates.to_dict("records")),
        "machine": None if rates is None else machine(config.device),
    }


def headline(summary: dict[str, Any]) -> pd.DataFrame:
    """Return a row a method with the metrics of the paper's Table 2, and G2SF minus it, as text.

    I-AUROC has its standard error over images, ``over seeds`` is its deviation over seeds. On MVTec
    3D-AD means of the paper's Table 1 stand beside it, and AUPRO@30 % is by its protocol.
    """
    is_of_paper = summary["dataset"] == "mvtec3d"
    shown = {metric: metric for metric in METRIC_NAMES}
    if is_of_paper:
        shown = {"i_auroc": "i_auroc", "aupro_30": "aupro_30_published", "aupro_1": "aupro_1"}
    printed = read_table("table1").replace({"method": RERUN})
    printed = printed[printed["category"].isin(summary["categories"])]
    printed = printed.groupby(["method", "metric"])["value"].mean()
    mean = {"metric": "i_auroc", "category": "mean"}.items()
    gaps = {row["method"]: row for row in summary["differences"] if mean <= row.items()}
    rows = []
    for row in summary["methods"]:
        cells = {"method": METHOD_NAMES[row["method"]]}
        for metric, column in shown.items():
            title, is_first = METRIC_NAMES[metric], metric == "i_auroc"
            cells[title] = with_spread(row[column], row["i_auroc_se"] if is_first else None)
            if is_first:
                over_seeds = row["i_auroc_seed_std"] if row["method"] in SEEDED else None
                cells["over seeds"] = number_cell(over_seeds)
            if is_of_paper and metric != "aupro_1":
                cells[f"paper: {title}"] = number_cell(printed.get((row["method"], metric)))
        gap = gaps.get(row["method"])
        cells["I-AUROC of G²SF − it"] = with_error(gap["difference"], gap["se"]) if gap else "–"
        rows.append(cells | {"p": p_cell(gap["p"]) if gap else "–"})
    return pd.DataFrame(rows).set_index("method")


def readme_block(summary: dict[str, Any]) -> str:
    """Return, in Markdown, what a run's numbers are of, and `headline`."""
    table = headline(summary).reset_index()
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    scope = (
        f"Profile {summary['profile']}, data set {summary['dataset']}, categories "
        f"{', '.join(summary['categories'])}, training seeds "
        f"{', '.join(map(str, summary['seeds']))}, silhouette cells: {summary['silhouette']}."
    )
    return "\n".join([scope, "", *("| " + " | ".join(line) + " |" for line in lines)])


def fill_readme(text: str, summary: dict[str, Any]) -> str:
    """Return the README's text with the results of a data set between its two marks replaced."""
    begin = MARKS[summary["dataset"]]
    head, rest = text.split(begin)
    return f"{head}{begin}\n{readme_block(summary)}\n{END}{rest.split(END, 1)[1]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the headline table of a finished run, or write it into the README."""
    parser = argparse.ArgumentParser(prog="python -m g2sf_lib.results", description=main.__doc__)
    parser.add_argument("what", choices=["headline", "readme"])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--dataset", default="procedural")
    parser.add_argument("--data-root")
    given = parser.parse_args(arguments)
    place = {"dataset": given.dataset, "data_root": given.data_root or None}
    category = CATEGORIES.get(given.dataset, ("any",))[0]  # does not matter here
    file = results_file(make_config(given.profile, **place, category=category))
    summary, readme = json.loads(file.read_text(encoding="utf-8")), Path("README.md")
    if given.what == "headline":
        print(headline(summary).to_string())
    else:
        text = fill_readme(readme.read_text(encoding="utf-8"), summary)
        readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
