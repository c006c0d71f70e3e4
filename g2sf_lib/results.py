"""From the records of all categories to the tables that book and README show."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from g2sf_lib.config import CATEGORIES, Config, make_config
from g2sf_lib.evaluation import bootstrap_auroc, image_auroc
from g2sf_lib.experiments import METHODS, PACKAGES, Scores, done_file
from g2sf_lib.storage import write_json

METHOD_NAMES = {
    "g2sf": "G²SF",
    "w1": "G²SF with w = 1",
    "rgb": "RGB alone",
    "pcd": "points alone",
    "sum": "normalised sum",
    "max": "calibrated maximum",
    "concat": "concatenated bank",
}
METRIC_NAMES = {
    "i_auroc": "I-AUROC",
    "p_auroc": "P-AUROC",
    "aupro_30": "AUPRO@30 %",
    "aupro_1": "AUPRO@1 %",
}
NUM_RESAMPLES = 1000


def summary_file(config: Config) -> Path:
    """Return where the summary of a profile and data set is kept."""
    prefix = "" if config.dataset == "procedural" else f"{config.dataset}_"
    return Path("data/results") / f"{prefix}{config.profile}.json"


def read_records(config: Config, categories: Sequence[str]) -> dict[str, dict]:
    """Return category -> result of `experiments.run_scores`.

    Raises:
        FileNotFoundError: naming the category that has not been scored.
        ValueError: naming the category that was scored with other settings.
    """
    records = {}
    for category in categories:
        path = done_file(dataclasses.replace(config, category=category), "scores")
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: not there; expected it from 04_anomaly_scoring with category {category}"
            )
        record = json.loads(path.read_text())
        wanted = dataclasses.replace(config, category=category).stage_hash("scores")
        if record["config_hash"] != wanted:
            raise ValueError(
                f"{path}: scored with other settings (hash {record['config_hash']}); expected "
                f"{wanted}: run 04_anomaly_scoring for {category} with the settings of this run"
            )
        records[category] = record["result"]
    return records


def metrics_table(records: dict[str, dict]) -> pd.DataFrame:
    """Return one row a category, method, seed and silhouette rule."""
    return pd.DataFrame([row for record in records.values() for row in record["metrics"]])


def _mean_over_seeds(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the mean over seeds of every metric."""
    metrics = [c for c in table if c not in ("category", "method", "seed", "silhouette")]
    return table.groupby(by, sort=False)[metrics].mean(numeric_only=True)


def _resampled(record: dict, silhouette: str) -> dict[str, np.ndarray]:
    """Return method -> (NUM_RESAMPLES,) image AUROC, mean over seeds, same resamples for all."""
    labels = np.array([label != "good" for label in record["labels"]])
    chosen = [x for x in record["image_scores"] if x["silhouette"] == silhouette]
    scores = np.array([x["scores"] for x in chosen])
    areas = bootstrap_auroc(scores, labels, NUM_RESAMPLES, np.random.default_rng(0))
    by_method: dict[str, list[np.ndarray]] = {}
    for x, area in zip(chosen, areas, strict=True):
        by_method.setdefault(x["method"], []).append(area)
    return {method: np.mean(parts, axis=0) for method, parts in by_method.items()}


def summarise(config: Config, categories: Sequence[str]) -> dict:
    """Return the summary of all categories as plain values.

    ``methods``: a row a method with the mean over categories and seeds of every metric,
    the standard error of the mean I-AUROC over images (``i_auroc_se``) and the standard
    deviation over training seeds of the mean over categories (``i_auroc_seed_std``).
    ``categories``: I-AUROC with standard error for each category and method.
    ``defects``: the same for each kind of defect, mean over categories.
    ``differences``: I-AUROC of G2SF minus each method's, with the paired standard error over
    images, per category and in the mean.
    ``silhouettes``: mean I-AUROC of each method under both silhouette rules.
    """
    records = read_records(config, categories)
    table = metrics_table(records)
    ours = table[table.silhouette == config.scoring.silhouette]
    resampled = {c: _resampled(r, config.scoring.silhouette) for c, r in records.items()}
    per_category = _mean_over_seeds(ours, ["category", "method"])
    means = per_category.groupby("method", sort=False).mean()
    seeds = ours.groupby(["method", "seed"])["i_auroc"].mean().groupby("method").std().fillna(0.0)
    methods, rows, defects, differences = [], [], [], []
    for method in METHODS:
        mean_area = np.mean([resampled[c][method] for c in categories], axis=0)
        extra = {"i_auroc_se": float(mean_area.std()), "i_auroc_seed_std": float(seeds[method])}
        methods.append({"method": method} | means.loc[method].to_dict() | extra)
        for category in categories:
            value = float(per_category.loc[(category, method), "i_auroc"])
            se = float(resampled[category][method].std())
            rows.append({"category": category, "method": method, "i_auroc": value, "se": se})
        for column in [c for c in means if re.fullmatch(r"i_auroc_(?!se)\w+", c)]:
            values = per_category.xs(method, level="method")[column]
            spread = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
            defect = {"defect": column.removeprefix("i_auroc_"), "method": method}
            defects.append(defect | {"i_auroc": float(values.mean()), "se": spread})
        if method == "g2sf":
            continue
        gaps = {c: resampled[c]["g2sf"] - resampled[c][method] for c in categories}
        gaps["mean"] = np.mean(list(gaps.values()), axis=0)
        for category, gap in gaps.items():
            each = [category] if category != "mean" else list(categories)
            value = np.mean(
                [
                    per_category.loc[(c, "g2sf"), "i_auroc"]
                    - per_category.loc[(c, method), "i_auroc"]
                    for c in each
                ]
            )
            differences.append(
                {
                    "category": category,
                    "method": method,
                    "difference": float(value),
                    "se": float(gap.std()),
                }
            )
    both = _mean_over_seeds(table, ["silhouette", "method", "category"])["i_auroc"]
    both = both.groupby(["silhouette", "method"], sort=False).mean().unstack("silhouette")
    silhouettes = both.reset_index().to_dict("records")
    return {
        "profile": config.profile,
        "dataset": config.dataset,
        "categories": list(categories),
        "seeds": records[categories[0]]["seeds"],
        "silhouette": config.scoring.silhouette,
        "packages": packages(config, categories[0]),
        "methods": _rounded(methods),
        "per_category": _rounded(rows),
        "defects": _rounded(defects),
        "differences": _rounded(differences),
        "silhouettes": _rounded(silhouettes),
    }


def packages(config: Config, category: str) -> dict:
    """Return the versions that a category's scores were computed with."""
    path = done_file(dataclasses.replace(config, category=category), "scores")
    found = json.loads(path.read_text())["packages"]
    return {name: found[name] for name in PACKAGES}


def _rounded(rows: list[dict]) -> list[dict]:
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in rows]


def write_summary(config: Config, categories: Sequence[str]) -> dict:
    """Write the summary to `summary_file` and return it."""
    summary = summarise(config, categories)
    write_json(summary_file(config), summary)
    return summary


def headline_table(summary: dict) -> pd.DataFrame:
    """Return a row a method with the four metrics of the paper's Table 2 as text."""
    rows = []
    for row in summary["methods"]:
        cells = {"method": METHOD_NAMES[row["method"]]}
        for metric, name in METRIC_NAMES.items():
            cells[name] = f"{row[metric]:.3f}"
        cells["I-AUROC"] += f" ± {row['i_auroc_se']:.3f}"
        rows.append(cells)
    return pd.DataFrame(rows).set_index("method")


def verdict(summary: dict) -> str:
    """Return, from the summary alone, how G2SF compares with the best of the others."""
    others = [row for row in summary["methods"] if row["method"] not in ("g2sf", "w1")]
    best = max(others, key=lambda row: row["i_auroc"])["method"]
    sentences = []
    for method in dict.fromkeys((best, "w1")):
        gap = next(
            d for d in summary["differences"] if d["category"] == "mean" and d["method"] == method
        )
        size, se = gap["difference"], gap["se"]
        name = METHOD_NAMES[method]
        if abs(size) <= 2 * se:
            claim = f"G²SF and {name} differ by less than two standard errors"
        else:
            word = "better" if size > 0 else "worse"
            claim = f"G²SF is {word} than {name}, by more than two standard errors"
        sentences.append(f"{claim} (difference in mean I-AUROC {size:+.3f} ± {se:.3f}).")
    return " ".join(sentences)


def by_kind(summary: dict) -> str:
    """Return, as a Markdown list, where G2SF gains and loses against simple fusions.

    For each kind of defect: I-AUROC of G2SF, how much more that is than the normalised sum,
    which is where its training starts from, and than the best of the simple methods for that
    kind; means over categories.
    """
    table = pd.DataFrame(summary["defects"]).pivot(
        index="defect", columns="method", values="i_auroc"
    )
    lines = []
    for kind, row in table.iterrows():
        simple = row.drop(["g2sf", "w1"])
        best = simple.idxmax()
        lines.append(
            f"- {kind}: {row['g2sf']:.3f}; {row['g2sf'] - row['sum']:+.3f} to the normalised sum, "
            f"{row['g2sf'] - simple[best]:+.3f} to the best, {METHOD_NAMES[best]}"
        )
    return "\n".join(lines)


def markdown(summary: dict) -> str:
    """Return the headline table and the verdict in Markdown."""
    table = headline_table(summary).reset_index()
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in table.itertuples(index=False)]
    return "\n".join([*lines, "", verdict(summary)])


def category_table(table: pd.DataFrame, silhouette: str) -> pd.DataFrame:
    """Return a row a method with the metrics of one category, mean over training seeds, as text.

    Args:
        table: of `experiments.run_scores`.
        silhouette: the rule whose rows are shown.
    """
    rows = []
    ours = table[table.silhouette == silhouette]
    for method, of_method in ours.groupby("method", sort=False):
        mean = of_method.mean(numeric_only=True)
        row = {"method": METHOD_NAMES[method]}
        row["I-AUROC ± SE"] = f"{mean['i_auroc']:.3f} ± {mean['i_auroc_se']:.3f}"
        row["P-AUROC"] = f"{mean['p_auroc']:.3f}"
        for limit in (30, 10, 5, 1):
            row[f"AUPRO@{limit} %"] = f"{mean[f'aupro_{limit}']:.3f}"
        row["AUPRO@1 %, published protocol"] = f"{mean['aupro_1_published']:.3f}"
        rows.append(row)
    return _ordered(rows)


def silhouette_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return I-AUROC of one category under both silhouette rules, mean over training seeds."""
    means = table.groupby(["method", "silhouette"], sort=False)["i_auroc"].mean().unstack()
    named = means.rename(index=METHOD_NAMES).rename(columns="I-AUROC, silhouette cells: {}".format)
    return named.loc[[METHOD_NAMES[m] for m in METHODS]].rename_axis(columns=None).round(3)


def defect_table(scores: Scores, silhouette: str) -> pd.DataFrame:
    """Return I-AUROC of each kind of defect against all good scans of one category.

    Columns: ``method`` (its name), ``defect``, ``I-AUROC`` (mean over training seeds), ``SE``
    (over images, of that mean).
    """
    labels, rows = np.array(scores.labels), []
    for kind in sorted(set(scores.labels) - {"good"}):
        chosen = np.isin(labels, ["good", kind])
        truth = labels[chosen] != "good"
        for method in METHODS:
            images = [
                x for (m, _, rule), x in scores.image.items() if (m, rule) == (method, silhouette)
            ]
            draw = np.random.default_rng(0)
            areas = bootstrap_auroc(np.array(images)[:, chosen], truth, NUM_RESAMPLES, draw)
            exact = np.mean([image_auroc(x[chosen], truth) for x in images])
            row = {"method": METHOD_NAMES[method], "defect": kind, "I-AUROC": exact}
            rows.append(row | {"SE": float(areas.mean(axis=0).std())})
    return pd.DataFrame(rows)


def difference_table(summary: dict) -> pd.DataFrame:
    """Return I-AUROC of G2SF minus each other method's, with its standard error, as text."""
    rows: dict[str, dict[str, str]] = {}
    for row in summary["differences"]:
        text = f"{row['difference']:+.3f} ± {row['se']:.3f}"
        rows.setdefault(METHOD_NAMES[row["method"]], {})[row["category"]] = text
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("G²SF minus")


def summary_tables(summary: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return I-AUROC per category, and per kind of defect, for `plots.method_dots`.

    Columns: ``method`` (its name), ``category`` or ``defect``, ``I-AUROC``, ``SE`` (over
    images, or over categories).
    """
    names = {"i_auroc": "I-AUROC", "se": "SE"}
    tables = [
        pd.DataFrame(summary[key]).rename(columns=names) for key in ("per_category", "defects")
    ]
    by_category, by_defect = (t.assign(method=t["method"].map(METHOD_NAMES)) for t in tables)
    return by_category, by_defect


def scope(summary: dict) -> str:
    """Return, in a sentence, what the numbers of a summary are means over."""
    num_categories, num_seeds = len(summary["categories"]), len(summary["seeds"])
    return (
        f"Profile {summary['profile']}, data set {summary['dataset']}, {num_categories} "
        f"{'category' if num_categories == 1 else 'categories'} "
        f"({', '.join(summary['categories'])}), {num_seeds} training "
        f"{'seed' if num_seeds == 1 else 'seeds'}, silhouette cells: {summary['silhouette']}."
    )


def _ordered(rows: list[dict]) -> pd.DataFrame:
    """Return the rows in the order of METHODS, by name."""
    return pd.DataFrame(rows).set_index("method").loc[[METHOD_NAMES[m] for m in METHODS]]


BEGIN, END = "<!-- results: make readme -->", "<!-- end of results -->"


def fill_readme(text: str, summary: dict) -> str:
    """Return the README's text with the results between its two marks replaced."""
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{markdown(summary)}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the headline table of a finished run, or write it into the README."""
    parser = argparse.ArgumentParser(prog="python -m g2sf_lib.results", description=main.__doc__)
    parser.add_argument("what", choices=["headline", "readme"])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--dataset", default="procedural")
    parser.add_argument("--data-root")
    given = parser.parse_args(arguments)
    category = CATEGORIES.get(given.dataset, ("any",))[0]  # does not matter here
    config = make_config(
        given.profile, dataset=given.dataset, data_root=given.data_root, category=category
    )
    summary = json.loads(summary_file(config).read_text())
    if given.what == "headline":
        print(headline_table(summary).to_string())
        print(verdict(summary))
        return
    readme = Path("README.md")
    readme.write_text(fill_readme(readme.read_text(), summary))


if __name__ == "__main__":
    main()
