"""The paper's tables, as typed and as text.

All numbers and quotes (`data/paper`) are the authors', typed as printed; none was computed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from g2sf_lib.config import CATEGORIES
from g2sf_lib.results import METRIC_NAMES

PAPER_DIR = Path("data/paper")
TABLES = tuple(f"table{number}" for number in range(1, 7))
COLUMNS = ("dataset", "metric", "method", "category", "value", "note")
CLAIM_COLUMNS = ("place", "quote", "relation", "table", "dataset", "metric", "method", "other")
CLAIM_COLUMNS += ("printed",)
SLIP_COLUMNS = ("place", "printed", "remark")
DATASET_NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
PAPER_METRICS = ("i_auroc", "p_auroc", "aupro_30", "aupro_1")  # as Table 2 has them
DISPLAY_NAMES = {"G2SF": "G²SF"}
RELATIONS = ("is", "gain", "above", "not below")


class Paper(NamedTuple):
    """What was typed from the paper.

    Attributes:
        tables: "table1" ... "table6" -> `read_table`.
        claims: statements of its text that can be computed from its tables, a row each. With the
            value v of ``method`` and o of ``other`` (a method of the same table, one of another
            table, or "others", the best of them), ``relation`` says v = ``printed`` ("is"),
            v - o = ``printed`` ("gain"), v > o ("above") or v >= o ("not below").
        slips: what a reader stumbles over, as ``printed`` (symbols in plain letters), with a
            ``remark``.
    """

    tables: dict[str, pd.DataFrame]
    claims: pd.DataFrame
    slips: pd.DataFrame


def read_paper(folder: Path = PAPER_DIR) -> Paper:
    """Return everything that was typed from the paper.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file has other columns, or numbers or relations that cannot be.
    """
    folder = Path(folder)
    claims = _read_csv(folder / "claims.csv", CLAIM_COLUMNS, numbers="printed")
    unknown = set(claims["relation"]) - set(RELATIONS)
    if unknown:
        raise ValueError(
            f"{folder / 'claims.csv'}: relation {sorted(unknown)[0]!r}; expected one of "
            f"{', '.join(RELATIONS)}"
        )
    slips = _read_csv(folder / "slips.csv", SLIP_COLUMNS)
    return Paper({name: read_table(name, folder) for name in TABLES}, claims, slips)


def read_table(name: str, folder: Path = PAPER_DIR) -> pd.DataFrame:
    """Return one of the paper's tables, a row a printed number.

    Args:
        name: "table1" (per category), "table2" (means), "table3" (scores and scale factors
            alone), "table4" (losses), "table5" (aggregation) or "table6" (frame rates, in
            samples per second on an RTX 4090).
        folder: where the CSV files lie.

    Returns:
        The columns `COLUMNS`; ``value`` is NaN where the paper prints a dash.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it has other columns, a value that its metric cannot have, or one number
            twice.
    """
    path = Path(folder) / f"{name}.csv"
    table = _read_csv(path, COLUMNS, numbers="value")
    values = table.dropna(subset=["value"])
    is_rate = values["metric"] == "frame_rate"
    if not values.loc[~is_rate, "value"].between(0, 1).all():
        raise ValueError(f"{path}: holds values outside 0 to 1")
    if not (values.loc[is_rate, "value"] > 0).all():
        raise ValueError(f"{path}: holds frame rates that are not above 0")
    twice = table[table.duplicated(["dataset", "metric", "method", "category"])]
    if len(twice):
        raise ValueError(f"{path}: holds twice: {twice.iloc[0].to_dict()}")
    return table


def _read_csv(path: Path, columns: tuple[str, ...], numbers: str | None = None) -> pd.DataFrame:
    """Return a file of `data/paper`; only the column of numbers may have empty places as NaN."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; expected what the paper prints")
    missing = {} if numbers is None else {numbers: [""]}
    table = pd.read_csv(path, keep_default_na=False, na_values=missing)
    if tuple(table.columns) != columns:
        raise ValueError(f"{path}: columns are {list(table.columns)}; expected {list(columns)}")
    return table


# ---------------------------------------------------------------- the tables as text


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
    wide = wide.loc[rows["method"].unique(), list(PAPER_METRICS)]
    if ours is not None and Path(ours).is_file():
        summary = json.loads(Path(ours).read_text())
        if summary["dataset"] == dataset:
            (found,) = [row for row in summary["methods"] if row["method"] == "g2sf"]
            name = f"G²SF here ({summary['profile']}, {len(summary['categories'])} categories)"
            wide.loc[name] = {metric: found[published_key(metric)] for metric in PAPER_METRICS}
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
        method=rows["method"].replace(DISPLAY_NAMES),
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
    renamed = text.rename(columns=names, index=DISPLAY_NAMES)
    return renamed.rename_axis(index="method", columns=None)


def published_key(metric: str) -> str:
    """Return under which name a run has a metric by the protocol that the paper follows."""
    return f"{metric}_published" if metric.startswith("aupro") else metric
