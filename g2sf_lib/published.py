"""What the paper reports, and what a run of its size was measured to take: for the book's tables.

The paper's numbers are its authors' (`data/paper`), typed as printed; none of them was computed
here. Costs are read from `data/results/scale.json`, which `benchmarks/bench_scale.py` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from g2sf_lib.config import CATEGORIES, make_config, settings_table
from g2sf_lib.results import METRIC_NAMES

PAPER_DIR = Path("data/paper")
SCALE_FILE = Path("data/results/scale.json")
GPU_FILE = Path("data/results/scale_gpu.json")  # the same, measured on a GPU; need not be there
MEMORY_LIMIT_MB = 8000.0  # what a laptop with 16 GB can give beside everything else
COLUMNS = ("dataset", "metric", "method", "category", "value", "note")
DATASET_NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
STEP_NAMES = {
    "features": "features of all scans",
    "bank": "building the bank",
    "neighbours": "neighbours of the training cells",
    "epoch": "one training epoch",
}
MEASURED, EXTRAPOLATED = "measured", "extrapolated"
SCAN_NAMES = {
    "preprocess": "preprocessing",
    "synthesis": "pasting",
    "rgb": "DINO",
    "pcd": "Point-MAE",
}
HALF_UNIT = 0.0005  # of the last digit that the paper prints


# ---------------------------------------------------------------- the paper's tables


def read_table(name: str, folder: Path = PAPER_DIR) -> pd.DataFrame:
    """Return one of the paper's tables, a row a printed number.

    Args:
        name: "table1" (per category) or "table2" (means).
        folder: where the CSV files lie.

    Returns:
        The columns `COLUMNS`; ``value`` is NaN where the paper prints a dash.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it has other columns, a value outside 0 to 1, or one number twice.
    """
    path = Path(folder) / f"{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; expected a table of the paper")
    table = pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{path}: columns are {list(table.columns)}; expected {list(COLUMNS)}")
    if not table["value"].dropna().between(0, 1).all():
        raise ValueError(f"{path}: holds values outside 0 to 1")
    twice = table[table.duplicated(["dataset", "metric", "method", "category"])]
    if len(twice):
        raise ValueError(f"{path}: holds twice: {twice.iloc[0].to_dict()}")
    return table


def mean_table(table: pd.DataFrame, dataset: str, ours: Path | None = None) -> pd.DataFrame:
    """Return a row a method and a column a metric of the printed means, as text.

    Args:
        table: the paper's Table 2.
        dataset: "mvtec3d" or "eyecandies".
        ours: summary of a run (`results.summary_file`). If it is there and of this data set, a
            last row gives its means, AUPRO by the published protocol, which the paper follows.
    """
    rows = table[(table["dataset"] == dataset) & (table["category"] == "mean")]
    if rows.empty:
        raise ValueError(f"dataset is {dataset!r}; the table has {', '.join(set(table.dataset))}")
    wide = rows.pivot(index="method", columns="metric", values="value")
    wide = wide.loc[rows["method"].unique(), list(METRIC_NAMES)]
    if ours is not None and Path(ours).is_file():
        summary = json.loads(Path(ours).read_text())
        if summary["dataset"] == dataset:
            (found,) = [row for row in summary["methods"] if row["method"] == "g2sf"]
            name = f"G²SF here ({summary['profile']}, {len(summary['categories'])} categories)"
            keys = {m: f"{m}_published" if m.startswith("aupro") else m for m in METRIC_NAMES}
            wide.loc[name] = {metric: found[key] for metric, key in keys.items()}
    return _as_text(wide, METRIC_NAMES)


def category_table(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a row a method and a column a category, and the printed mean, as text.

    Args:
        table: the paper's Table 1.
        metric: "i_auroc" or "aupro_30".
    """
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise ValueError(f"metric is {metric!r}; the table has {', '.join(set(table.metric))}")
    wide = rows.pivot(index="method", columns="category", values="value")
    names = {name: name.replace("_", " ") for name in (*CATEGORIES["mvtec3d"], "mean")}
    return _as_text(wide.loc[rows["method"].unique(), list(names)], names)


def category_dots(table: pd.DataFrame, metric: str, num_methods: int) -> pd.DataFrame:
    """Return a row a method and category of Table 1, for `plots.method_dots`.

    Args:
        table: the paper's Table 1.
        metric: "i_auroc" or "aupro_30".
        num_methods: those with the highest printed means are kept, worst first; the first
            methods of the table are so far off that the others could not be told apart.

    Returns:
        Columns ``method``, ``category``, and the metric under its name.
    """
    rows = table[table["metric"] == metric]
    means = rows[rows["category"] == "mean"].set_index("method")["value"]
    kept = list(means.sort_values(kind="stable").index[-num_methods:])
    rows = rows.set_index("method").loc[kept].reset_index()
    named = rows.assign(
        method=rows["method"].replace("G2SF", "G²SF"),
        category=rows["category"].str.replace("_", " "),
    )
    return named.rename(columns={"value": METRIC_NAMES[metric]})[
        ["method", "category", METRIC_NAMES[metric]]
    ]


def ranking_report(table: pd.DataFrame, metric: str) -> str:
    """Return, in a sentence, how G2SF stands among the methods of Table 1 by category."""
    rows = table[table["metric"] == metric]
    wide = rows.pivot(index="method", columns="category", values="value")
    each = wide.drop(columns="mean")
    rank = each.rank(ascending=False, method="min").loc["G2SF"]
    ahead = wide["mean"].drop("G2SF")
    best = ahead.idxmax()
    gap = wide.loc["G2SF", "mean"] - ahead[best]
    names = [name.replace("_", " ") for name in rank[rank == 1].index]
    return (
        f"{METRIC_NAMES[metric]}, as printed: G²SF has the highest value in {len(names)} of "
        f"{len(rank)} categories ({', '.join(names) or 'none'}); its mean is {gap:+.3f} to the "
        f"best other one's, {best}."
    )


def _as_text(wide: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Return a table with three digits, a dash where there is no value, and readable names."""
    text = wide.map(lambda value: "–" if pd.isna(value) else f"{value:.3f}")
    renamed = text.rename(columns=names, index={"G2SF": "G²SF"})
    return renamed.rename_axis(index="method", columns=None)


def disagreements(table1: pd.DataFrame, table2: pd.DataFrame) -> pd.DataFrame:
    """Return where the printed tables disagree with themselves; a row each.

    A mean disagrees with its categories where it is farther from their mean than half of its
    last digit (a tie may be rounded either way), and the two tables where they print another
    mean for one method and metric.

    Returns:
        Columns ``where``, ``method``, ``metric``, ``printed``, ``other``.
    """
    rows = []
    for (metric, method), of_method in table1.groupby(["metric", "method"], sort=False):
        values = of_method.set_index("category")["value"]
        printed, recomputed = values["mean"], values.drop("mean").mean()
        names = {"method": method, "metric": METRIC_NAMES[metric]}
        if abs(printed - recomputed) > HALF_UNIT + 1e-9:
            where = "Table 1, mean of its ten categories"
            rows.append({"where": where, **names, "printed": printed, "other": recomputed})
        elsewhere = table2[
            (table2["dataset"] == of_method["dataset"].iloc[0])
            & (table2["metric"] == metric)
            & (table2["method"] == method)
        ]["value"].dropna()
        if len(elsewhere) and elsewhere.iloc[0] != printed:
            where = "Table 1 and Table 2"
            rows.append({"where": where, **names, "printed": printed, "other": elsewhere.iloc[0]})
    return pd.DataFrame(rows, columns=["where", "method", "metric", "printed", "other"])


def disagreement_report(table1: pd.DataFrame, table2: pd.DataFrame) -> str:
    """Return, as Markdown, how many printed means can be recomputed and which do not come out."""
    num_means = int((table1["category"] == "mean").sum())
    found = disagreements(table1, table2)
    text = (
        f"Table 1 prints {num_means} means, which can be computed again from its categories and, "
        "in part, compared with Table 2; "
    )
    if found.empty:
        return text + "all come out."
    text += (
        f"{len(found)} of the printed numbers {'does' if len(found) == 1 else 'do'} not come out"
    )
    lines = [
        f"- {row.where}: {row.method}, {row.metric}: printed {row.printed:.3f}, "
        f"the other {row.other:.4f}"
        for row in found.itertuples()
    ]
    return "\n".join([text + ":", "", *lines])


# ---------------------------------------------------------------- what a run takes


def paper_settings() -> pd.DataFrame:
    """Return every setting in which profile `paper` differs from `demo`, with its reason."""
    demo = {row["name"]: row["value"] for row in settings_table(make_config("demo"))}
    rows = [
        {"setting": row["name"], "paper": str(row["value"]), "demo": str(demo[row["name"]]),
         "reason": row["reason"]}
        for row in settings_table(make_config("paper"))
        if row["value"] != demo[row["name"]] and row["name"] != "profile"
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("setting")


def read_scale(path: Path = SCALE_FILE) -> dict[str, Any]:
    """Return what `benchmarks/bench_scale.py` measured.

    Returns:
        ``machine`` (name -> value); ``rows`` (dicts with ``what``, ``fraction`` of the paper's
        size, ``cells``, ``seconds``, ``peak_mb``, ``kind``: "measured" or "extrapolated",
        ``coreset`` or None, ``note``); ``coverage`` (dicts with ``fraction``, ``coreset``,
        ``radius``, ``seconds``); ``per_scan_s`` (work -> seconds); ``paper_category``
        (``hours`` and ``disk_gb``, each name -> value for one category).

    Raises:
        FileNotFoundError: nothing was measured yet.
        ValueError: the file says something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; expected the measurements that "
            "`python benchmarks/bench_scale.py` writes"
        )
    try:
        scale = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    fields = {"machine": dict, "rows": list, "coverage": list, "per_scan_s": dict}
    fields["paper_category"] = dict
    for name, kind in fields.items():
        if not isinstance(scale.get(name), kind):
            raise ValueError(f"{path}: {name} is missing or no {kind.__name__}")
    needed = ("what", "fraction", "cells", "seconds", "peak_mb", "kind", "coreset", "note")
    for place, row in enumerate(scale["rows"]):
        missing = [name for name in needed if name not in row]
        if missing:
            raise ValueError(f"{path}: row {place} lacks {', '.join(missing)}")
        if row["what"] not in STEP_NAMES or row["kind"] not in (MEASURED, EXTRAPOLATED):
            raise ValueError(f"{path}: row {place} is {row['what']!r}, {row['kind']!r}")
    for place, row in enumerate(scale["coverage"]):
        missing = [n for n in ("fraction", "coreset", "radius", "seconds") if n not in row]
        if missing:
            raise ValueError(f"{path}: coverage {place} lacks {', '.join(missing)}")
    for name in ("hours", "disk_gb"):
        if not isinstance(scale["paper_category"].get(name), dict):
            raise ValueError(f"{path}: paper_category has no {name}")
    return scale


def scale_rows(scale: dict[str, Any]) -> pd.DataFrame:
    """Return a row a measurement or extrapolation, for `plots.scale_curves`.

    Columns: those of ``rows`` and ``step``, what was done in words, with the coreset's name.
    """
    rows = pd.DataFrame(scale["rows"])
    names = [
        STEP_NAMES[row["what"]] + (f", {row['coreset']} coreset" if row["coreset"] else "")
        for row in scale["rows"]
    ]
    rows = rows.assign(step=names, order=[list(STEP_NAMES).index(what) for what in rows["what"]])
    return rows.sort_values(["order", "step", "fraction"], kind="stable").drop(columns="order")


def cost_table(scale: dict[str, Any]) -> pd.DataFrame:
    """Return every row of the measurements as text, each marked measured or extrapolated."""
    rows = scale_rows(scale)
    return pd.DataFrame(
        {
            "step": rows["step"],
            "size": [f"{100 * fraction:.0f} %" for fraction in rows["fraction"]],
            "cells": [f"{cells:,}" for cells in rows["cells"]],
            "time": [duration(seconds) for seconds in rows["seconds"]],
            "peak memory": [
                "–" if peak is None or np.isnan(peak) else f"{peak / 1000:.1f} GB"
                for peak in rows["peak_mb"]
            ],
            "kind": rows["kind"],
            "note": rows["note"],
        }
    ).set_index("step")


def duration(seconds: float) -> str:
    """Return a time in the unit in which it is a number that can be read."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def machine_report(scale: dict[str, Any]) -> str:
    """Return, in a sentence, on what the numbers were measured."""
    machine = {name: value for name, value in scale["machine"].items() if value is not None}
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in machine.items()]
    return f"Measured on: {', '.join(parts)}."


def memory_report(scale: dict[str, Any], limit_mb: float = MEMORY_LIMIT_MB) -> str:
    """Return, as Markdown, whether the largest size of every step stays within a memory limit."""
    lines = []
    for step, rows in scale_rows(scale).groupby("step", sort=False):
        known = rows.dropna(subset=["peak_mb"])
        if known.empty:
            continue
        last = known.iloc[-1]
        word = "within" if last.peak_mb <= limit_mb else "**above**"
        lines.append(
            f"- {step}, {100 * last.fraction:.0f} % of the paper's size: "
            f"{last.peak_mb / 1000:.1f} GB ({last.kind}), {word} {limit_mb / 1000:.0f} GB"
        )
    return "\n".join(lines)


def growth_report(scale: dict[str, Any]) -> str:
    """Return, as Markdown, by what power of the size the time of every step grows.

    The power is the slope between the smallest and the largest *measured* size; extrapolated
    rows would only give back what they were made with.
    """
    lines = []
    for step, rows in scale_rows(scale).groupby("step", sort=False):
        known = rows[rows["kind"] == MEASURED]
        if known["cells"].nunique() < 2:
            how = "measured at one size only" if len(known) else "extrapolated at every size"
            lines.append(f"- {step}: {how}")
            continue
        first, last = known.iloc[0], known.iloc[-1]
        power = np.log(last.seconds / first.seconds) / np.log(last.cells / first.cells)
        lines.append(f"- {step}: time grows with the size to the power of {power:.1f}")
    return "\n".join(lines)


def coverage_rows(scale: dict[str, Any]) -> pd.DataFrame:
    """Return a row a coreset and size: ``fraction``, ``coreset``, ``radius``, ``seconds``."""
    rows = pd.DataFrame(scale["coverage"], columns=["fraction", "coreset", "radius", "seconds"])
    return rows.sort_values(["coreset", "fraction"], kind="stable")


def coverage_report(scale: dict[str, Any]) -> str:
    """Return, as Markdown, how the coresets compare at the largest size that two of them share."""
    rows = coverage_rows(scale)
    shared = rows.groupby("fraction")["coreset"].nunique()
    shared = shared[shared > 1]
    if shared.empty:
        return "No two coresets were measured at the same size, so nothing can be compared."
    at = rows[rows["fraction"] == shared.index.max()].set_index("coreset")
    base = "greedy" if "greedy" in at.index else at.index[0]
    lines = [f"At {100 * shared.index.max():.0f} % of the paper's size:", ""]
    for name, row in at.iterrows():
        lines.append(
            f"- {name}: radius {row.radius / at.loc[base, 'radius']:.3f} times that of {base}, "
            + (f"chosen in {duration(row.seconds)}" if row.seconds > 0 else "chosen at once")
        )
    return "\n".join(lines)


def category_costs(scale: dict[str, Any]) -> pd.DataFrame:
    """Return what one category of MVTec 3D-AD takes, and all of it, with how each is known."""
    rows, num_categories = [], len(CATEGORIES["mvtec3d"])
    for name, seconds in scale["per_scan_s"].items():
        rows.append((f"{SCAN_NAMES.get(name, name)}, one scan", duration(seconds), "", MEASURED))
    for name, hours in scale["paper_category"]["hours"].items():
        each, all_of_them = (
            duration(3600 * part) if part >= 1 / 60 else "under 1 min"  # hours have two digits
            for part in (hours, hours * num_categories)
        )
        rows.append((f"time: {name}", each, all_of_them, EXTRAPOLATED))
    for name, size in scale["paper_category"]["disk_gb"].items():
        each, all_of_them = f"{size:.1f} GB", f"{size * num_categories:.1f} GB"
        rows.append((f"disk: {name}", each, all_of_them, EXTRAPOLATED))
    columns = ["what", "one category", f"{num_categories} categories", "kind"]
    return pd.DataFrame(rows, columns=columns).set_index("what")


def tried_report(gpu_file: Path = GPU_FILE) -> str:
    """Return, as Markdown, on what this was run, and on what not; a GPU file changes the text."""
    lines = [
        "- **No real data set**: readers, preprocessing and every stage were run on small trees "
        "in the published formats, made by the tests.",
        "- **No published weights**: DINO and Point-MAE were run with random weights; that the "
        "official Point-MAE file fits is checked when it is fetched.",
        "- **No result of the paper**: none of its numbers was reproduced or tried.",
    ]
    if Path(gpu_file).is_file():
        machine = machine_report(read_scale(gpu_file))
        lines.append(
            f"- **A GPU** was there for the costs and for the tests that need one. {machine}"
        )
    else:
        lines.append(
            "- **No GPU**: costs are those of a CPU, and tests that compare a GPU with it have "
            "not been run."
        )
    return "\n".join(lines)
