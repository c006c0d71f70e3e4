"""What book and README show of a summary: tables as text, rows for figures, sentences.

Every sentence is computed: "better" and "worse" are used where a difference is real.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from g2sf_lib.baselines import METHODS
from g2sf_lib.benchmark import NUM_RESAMPLES, RESAMPLED, SEEDED, Scores
from g2sf_lib.config import CATEGORIES, make_config
from g2sf_lib.evaluation import bootstrap_auroc, image_auroc
from g2sf_lib.published.beside import METHODS_RERUN
from g2sf_lib.published.tables import read_table
from g2sf_lib.results import LIMITS, METHOD_NAMES, METRIC_NAMES, summary_file


def headline_table(summary: dict) -> pd.DataFrame:
    """Return a row a method with the four metrics of the paper's Table 2 as text.

    I-AUROC with its standard error over images; ``over seeds`` is its standard deviation over
    training seeds, a dash for methods without randomness.
    """
    rows = []
    for row in summary["methods"]:
        cells = {"method": METHOD_NAMES[row["method"]]}
        for metric, name in METRIC_NAMES.items():
            cells[name] = f"{row[metric]:.3f}"
            if metric == "i_auroc":
                cells[name] += f" ± {row['i_auroc_se']:.3f}"
                is_seeded = row["method"] in SEEDED and len(summary["seeds"]) > 1
                cells["over seeds"] = f"{row['i_auroc_seed_std']:.3f}" if is_seeded else "–"
        rows.append(cells)
    return pd.DataFrame(rows).set_index("method")


def metric_table(summary: dict, metric: str) -> pd.DataFrame:
    """Return a row a method and a column a category of one metric, and the mean, as text.

    Methods with training seeds show mean ± standard deviation over them.

    Args:
        summary: of `summarise`.
        metric: a column of ``per_category``, e.g. "i_auroc" or "aupro_30_published".
    """
    rows: dict[str, dict[str, str]] = {}
    every = [*summary["per_category"], *({"category": "mean"} | row for row in summary["methods"])]
    for row in every:
        text = f"{row[metric]:.3f}"
        if row["method"] in SEEDED and len(summary["seeds"]) > 1:
            text += f" ± {row[f'{metric}_seed_std']:.3f}"
        rows.setdefault(METHOD_NAMES[row["method"]], {})[row["category"]] = text
    names = [METHOD_NAMES[row["method"]] for row in summary["methods"]]
    return pd.DataFrame.from_dict(rows, orient="index").loc[names].rename_axis("method")


def means_table(summary: dict, protocol: str = "every") -> pd.DataFrame:
    """Return Table 2: a row a method, means of every metric, as text.

    Args:
        summary: of `results.summarise`.
        protocol: of AUPRO, "every" threshold or the "published" one.
    """
    suffix = {"every": "", "published": "_published"}[protocol]
    columns = {"i_auroc": "I-AUROC", "p_auroc": "P-AUROC"}
    columns |= {f"aupro_{at}{suffix}": f"AUPRO@{at} %" for at in LIMITS}
    rows = {
        METHOD_NAMES[row["method"]]: {name: f"{row[key]:.3f}" for key, name in columns.items()}
        for row in summary["methods"]
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def protocol_rows(summary: dict) -> pd.DataFrame:
    """Return AUPRO by both protocols, for `plots.protocol_differences`.

    Columns: ``method`` (its name), ``limit`` (a false positive rate), ``every``, ``published``.
    """
    return pd.DataFrame(
        [
            {
                "method": METHOD_NAMES[row["method"]],
                "limit": at / 100,
                "every": row[f"aupro_{at}"],
                "published": row[f"aupro_{at}_published"],
            }
            for row in summary["methods"]
            for at in LIMITS
        ]
    )


def protocol_report(summary: dict) -> str:
    """Return, in Markdown, by how much the protocols differ, and whether they rank alike."""
    rows = protocol_rows(summary)
    lines = []
    for limit, of_limit in rows.groupby("limit", sort=False):
        gap = of_limit["published"] - of_limit["every"]
        order = [
            list(of_limit.sort_values(name, ascending=False, kind="stable")["method"])
            for name in ("every", "published")
        ]
        moved = sum(a != b for a, b in zip(*order, strict=True))
        lines.append(
            f"- up to {limit:.0%} false positives: published minus exact {gap.min():+.3f} to "
            f"{gap.max():+.3f}; {moved} of {len(gap)} methods change their place"
        )
    return "\n".join(lines)


def verdict(summary: dict) -> str:
    """Return, from the summary alone, how G2SF compares with the best of the others."""
    if not summary["differences"]:
        return _nothing_to_compare(summary)
    others = [row for row in summary["methods"] if not METHODS[row["method"]].is_ours]
    best = [max(others, key=lambda row: row["i_auroc"])["method"]] if others else []
    known = [row["method"] for row in summary["methods"]]
    sentences = []
    for method in [*best, *(["w1"] if "w1" in known else [])]:
        gap = _difference(summary, method)
        name = METHOD_NAMES[method]
        if gap["is_real"]:
            word = "better" if gap["difference"] > 0 else "worse"
            claim = f"G²SF is {word} than {name}"
        else:
            claim = f"G²SF and {name} cannot be told apart"
        sentences.append(
            f"{claim} (difference in mean I-AUROC {gap['difference']:+.3f} ± {gap['se']:.3f}, "
            f"{_p_text(gap['p'])})."
        )
    if len(summary["seeds"]) == 1:
        sentences.append(
            "With one training seed, the errors leave out what another training would change."
        )
    return " ".join(sentences)


def _nothing_to_compare(summary: dict) -> str:
    if "g2sf" in {row["method"] for row in summary["methods"]}:
        return "G²SF is the only method of this run."
    return "G²SF is not among the methods of this run."


def _p_text(p: float) -> str:
    """Return a p value of a summary, which has four digits."""
    return "p < 0.0001" if p == 0 else f"p = {p:.2g}"


def _difference(summary: dict, method: str, metric: str = "i_auroc") -> dict:
    """Return the row of G2SF minus a method, in the mean over categories."""
    wanted = {"category": "mean", "method": method, "metric": metric}
    return next(d for d in summary["differences"] if d.items() >= wanted.items())


def real_differences(summary: dict) -> str:
    """Return, in Markdown, whom G2SF beats and who beats it, metric by metric."""
    if not summary["differences"]:
        return _nothing_to_compare(summary)
    lines = []
    for metric in RESAMPLED:
        groups: dict[str, list[str]] = {"better than": [], "worse than": [], "level with": []}
        for row in summary["differences"]:
            if (row["metric"], row["category"]) == (metric, "mean"):
                side = "better than" if row["difference"] > 0 else "worse than"
                groups[side if row["is_real"] else "level with"].append(METHOD_NAMES[row["method"]])
        parts = [f"{word} {', '.join(names)}" for word, names in groups.items() if names]
        lines.append(f"- {METRIC_NAMES[metric]}: G²SF is {'; '.join(parts)}")
    return "\n".join(lines)


def difference_rows(summary: dict) -> pd.DataFrame:
    """Return G2SF minus each method in the mean, for `plots.difference_forest`.

    Columns: ``method``, ``metric`` (names), ``difference``, ``se``, ``is_real``.
    """
    rows = [row for row in summary["differences"] if row["category"] == "mean"]
    table = pd.DataFrame(rows)
    names = {"method": METHOD_NAMES, "metric": METRIC_NAMES}
    return table.assign(**{column: table[column].map(known) for column, known in names.items()})


def pair_matrices(summary: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return difference in mean I-AUROC of row minus column, and whether it is real."""
    names = [METHOD_NAMES[row["method"]] for row in summary["methods"]]
    difference = pd.DataFrame(0.0, index=names, columns=names)
    is_real = pd.DataFrame(False, index=names, columns=names)
    for row in summary["pairs"]:
        a, b = METHOD_NAMES[row["first"]], METHOD_NAMES[row["second"]]
        difference.loc[a, b], difference.loc[b, a] = row["difference"], -row["difference"]
        is_real.loc[a, b] = is_real.loc[b, a] = row["is_real"]
    return difference, is_real


def ours_rows(summary: dict) -> pd.DataFrame:
    """Return this run's numbers in long form, for `published.beside_table`.

    Columns: ``method``, ``category`` (also "mean"), ``metric``, ``value``, ``spread`` (standard
    deviation over seeds; NaN for a method without randomness, or for one seed).
    """
    rows = []
    every = [*summary["per_category"], *({"category": "mean"} | row for row in summary["methods"])]
    for row in every:
        for name in [key for key in row if f"{key}_seed_std" in row]:
            place = {"method": row["method"], "category": row["category"], "metric": name}
            spread = row[f"{name}_seed_std"] if row["method"] in SEEDED else None
            rows.append(place | {"value": row[name], "spread": spread})
    return pd.DataFrame(rows).astype({"value": float, "spread": float})


def rate_rows(summary: dict) -> pd.DataFrame:
    """Return the frame rates with the names of methods, for `plots.frame_rate_bars`."""
    rows = pd.DataFrame(summary["frame_rates"])
    return rows.assign(method=rows["method"].map(METHOD_NAMES))


def rate_report(summary: dict) -> str:
    """Return, in Markdown, which share of a scan's time the features take, and on what machine."""
    rows = pd.DataFrame(summary["frame_rates"]).pivot(index="method", columns="step", values="ms")
    share = (rows["features"] / rows["total"]).rename(METHOD_NAMES)
    told = ", ".join(f"{name} {value}" for name, value in summary["machine"].items())
    return (
        f"Features take between {share.min():.0%} ({share.idxmin()}) and {share.max():.0%} "
        f"({share.idxmax()}) of the time of a scan. Measured on: {told}; one scan at a time."
    )


def paste_report(summary: dict) -> str:
    """Return, in Markdown, what pastes in one modality change for G2SF, by group of defects."""
    if not {"g2sf", "other_pastes"} <= {row["method"] for row in summary["methods"]}:
        return "Needs G²SF trained on both kinds of pastes."
    gap = _difference(summary, "other_pastes")
    size, error = -gap["difference"], gap["se"]
    word = ("is higher" if size > 0 else "is lower") if gap["is_real"] else "cannot be told apart"
    lines = [
        f"- all defects: with the other pastes mean I-AUROC {word} "
        f"({size:+.3f} ± {error:.3f}, {_p_text(gap['p'])})"
    ]
    table = pd.DataFrame(summary["groups"], columns=["group", "method", "i_auroc", "se"])
    for group, rows in table.groupby("group", sort=False):
        of = rows.set_index("method")
        ours, others = (
            f"{of.loc[name, 'i_auroc']:.3f} ± {of.loc[name, 'se']:.3f}"
            for name in ("g2sf", "other_pastes")
        )
        lines.append(f"- {group}: {ours} with the run's pastes, {others} with the others")
    if not gap["is_real"]:
        lines += ["", "So this experiment does not show the pastes' modality to be the cause."]
    return "\n".join(lines)


def group_rows(summary: dict) -> pd.DataFrame:
    """Return I-AUROC by group of defects, for `plots.defect_dots`.

    Columns: ``method`` (its name), ``defect`` (the group), ``I-AUROC``, ``SE``.
    """
    rows = pd.DataFrame(summary["groups"])
    rows = rows.rename(columns={"group": "defect", "i_auroc": "I-AUROC", "se": "SE"})
    return rows.assign(method=rows["method"].map(METHOD_NAMES))


def by_kind(summary: dict) -> str:
    """Return, as a Markdown list, where G2SF gains and loses against its peers.

    For each kind of defect: I-AUROC of G2SF, how much more that is than the normalised sum,
    which is where its training starts from, and than the best of the other methods for that
    kind; means over categories.
    """
    if not {"g2sf", "sum"} <= {row["method"] for row in summary["methods"]}:
        return "Needs G²SF and the normalised sum."
    table = pd.DataFrame(summary["defects"]).pivot(
        index="defect", columns="method", values="i_auroc"
    )
    lines = []
    for kind, row in table.iterrows():
        simple = row.drop([m for m in METHODS if METHODS[m].is_ours], errors="ignore")
        best = simple.idxmax()
        lines.append(
            f"- {kind}: {row['g2sf']:.3f}; {row['g2sf'] - row['sum']:+.3f} to the normalised sum, "
            f"{row['g2sf'] - simple[best]:+.3f} to the best, {METHOD_NAMES[best]}"
        )
    return "\n".join(lines)


def beside_paper(summary: dict) -> pd.DataFrame:
    """Return a row a method of a run on MVTec 3D-AD, with what the paper's Table 1 prints, as text.

    AUPRO@30 % is that of the published protocol, which alone may be compared. The paper's numbers
    are means over the categories of the run; a dash where it has no such method.
    """
    printed = read_table("table1")
    printed = printed[printed["category"].isin(summary["categories"])]
    printed = printed.pivot_table(index="method", columns="metric", values="value")
    named = {code: name for name, code in METHODS_RERUN.items()}
    head, rows = headline_table(summary), []
    for row in summary["methods"]:
        method = row["method"]
        cells = {"method": METHOD_NAMES[method]}
        for metric, ours in (("i_auroc", "i_auroc"), ("aupro_30", "aupro_30_published")):
            name = METRIC_NAMES[metric]
            known = named.get(method) in printed.index
            paper = f"{printed.loc[named[method], metric]:.3f}" if known else "–"
            if metric == "i_auroc":
                cells[name] = head.loc[cells["method"], name]
                cells["over seeds"] = head.loc[cells["method"], "over seeds"]
            else:
                cells[name] = f"{row[ours]:.3f}"
            cells[f"paper: {name}"] = paper
        cells[METRIC_NAMES["aupro_1"]] = f"{row['aupro_1']:.3f}"
        rows.append(cells)
    return pd.DataFrame(rows).set_index("method")


def markdown(summary: dict) -> str:
    """Return what the numbers are, the headline table and the verdict in Markdown."""
    is_beside = summary["dataset"] == "mvtec3d"
    table = (beside_paper if is_beside else headline_table)(summary).reset_index()
    lines = [scope(summary), ""]
    lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in table.itertuples(index=False)]
    return "\n".join([*lines, "", verdict(summary)])


def category_table(table: pd.DataFrame, silhouette: str) -> pd.DataFrame:
    """Return a row a method with the metrics of one category, mean over training seeds, as text.

    Args:
        table: of `benchmark.run_scores`.
        silhouette: the rule whose rows are shown.
    """
    rows = []
    ours = table[table.silhouette == silhouette]
    for method, of_method in ours.groupby("method", sort=False):
        mean = of_method.mean(numeric_only=True)
        row = {"method": METHOD_NAMES[method]}
        row["I-AUROC ± SE"] = f"{mean['i_auroc']:.3f} ± {mean['i_auroc_se']:.3f}"
        row["P-AUROC"] = f"{mean['p_auroc']:.3f}"
        for limit in LIMITS:
            row[f"AUPRO@{limit} %"] = f"{mean[f'aupro_{limit}']:.3f}"
        row["AUPRO@1 %, published protocol"] = f"{mean['aupro_1_published']:.3f}"
        rows.append(row)
    return _ordered(pd.DataFrame(rows).set_index("method"))


def silhouette_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return I-AUROC of one category under both silhouette rules, mean over training seeds."""
    means = table.groupby(["method", "silhouette"], sort=False)["i_auroc"].mean().unstack()
    named = means.rename(index=METHOD_NAMES).rename(columns="I-AUROC, silhouette cells: {}".format)
    return _ordered(named.rename_axis(columns=None).round(3))


def defect_table(scores: Scores, silhouette: str) -> pd.DataFrame:
    """Return I-AUROC of each kind of defect against all good scans of one category.

    Columns: ``method`` (its name), ``defect``, ``I-AUROC`` (mean over training seeds), ``SE``
    (over images, of that mean).
    """
    labels, rows = np.array(scores.labels), []
    for kind in sorted(set(scores.labels) - {"good"}):
        chosen = np.isin(labels, ["good", kind])
        truth = labels[chosen] != "good"
        for method in dict.fromkeys(m for m, _, _ in scores.image):
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
    """Return I-AUROC of G2SF minus each other method's, with its standard error, as text.

    A star marks what is real: a Holm-corrected p value below `results.LEVEL`.
    """
    rows: dict[str, dict[str, str]] = {}
    for row in summary["differences"]:
        if row["metric"] != "i_auroc":
            continue
        text = f"{row['difference']:+.3f} ± {row['se']:.3f}" + "*" * row["is_real"]
        rows.setdefault(METHOD_NAMES[row["method"]], {})[row["category"]] = text
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("G²SF minus")


def summary_tables(summary: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return I-AUROC per category, and per kind of defect, for `plots.method_dots`.

    Columns: ``method`` (its name), ``category`` or ``defect``, ``I-AUROC``, ``SE`` (over
    images, or over categories).
    """
    names = {"i_auroc": "I-AUROC", "i_auroc_se": "SE", "se": "SE"}
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


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table of methods in the order of METHODS."""
    return table.loc[[METHOD_NAMES[m] for m in METHODS if METHOD_NAMES[m] in table.index]]


BEGIN, END = "<!-- results: make readme -->", "<!-- end of results -->"
BEGIN_REAL = "<!-- results: make readme DATASET=mvtec3d DATA_ROOT=... -->"


def fill_readme(text: str, summary: dict) -> str:
    """Return the README's text with the results of a data set between its two marks replaced."""
    begin = BEGIN_REAL if summary["dataset"] == "mvtec3d" else BEGIN
    head, rest = text.split(begin)
    tail = rest.split(END, 1)[1]
    return f"{head}{begin}\n{markdown(summary)}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the headline table of a finished run, or write it into the README."""
    parser = argparse.ArgumentParser(prog="python -m g2sf_lib.reports", description=main.__doc__)
    parser.add_argument("what", choices=["headline", "readme"])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--dataset", default="procedural")
    parser.add_argument("--data-root")
    given = parser.parse_args(arguments)
    category = CATEGORIES.get(given.dataset, ("any",))[0]  # does not matter here
    config = make_config(
        given.profile, dataset=given.dataset, data_root=given.data_root or None, category=category
    )
    summary = json.loads(summary_file(config).read_text(encoding="utf-8"))
    if given.what == "headline":
        print(headline_table(summary).to_string())
        print(verdict(summary))
        return
    readme = Path("README.md")
    text = fill_readme(readme.read_text(encoding="utf-8"), summary)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
