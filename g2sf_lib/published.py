"""What the paper reports, for comparison: its tables, and whether they agree with themselves.

All numbers and quotes (`data/paper`) are the authors', typed as printed; none was computed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from g2sf_lib.config import CATEGORIES
from g2sf_lib.results import METHOD_NAMES, METRIC_NAMES

PAPER_DIR = Path("data/paper")
TABLES = tuple(f"table{number}" for number in range(1, 7))
COLUMNS = ("dataset", "metric", "method", "category", "value", "note")
CLAIM_COLUMNS = ("place", "quote", "relation", "table", "dataset", "metric", "method", "other")
CLAIM_COLUMNS += ("printed",)
SLIP_COLUMNS = ("place", "printed", "remark")
DATASET_NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
PAPER_METRICS = ("i_auroc", "p_auroc", "aupro_30", "aupro_1")  # as Table 2 has them
METHODS_RERUN = {"BTF": "concat", "AST": "ast", "M3DM": "m3dm", "CFM": "cfm", "G2SF": "g2sf"}
PUBLISHED_ONLY = ("DepthGAN", "VoxelGAN", "EasyNet", "Shape-Guided", "2M3DF", "LSFA", "DAUP")
DISPLAY_NAMES = {"G2SF": "G²SF"}
PUBLISHED, THIS_RUN = "published", "this run"
RELATIONS = ("is", "gain", "above", "not below")
# Rows of other tables that repeat the row of G2SF in Table 2.
REPEATED = {"table3": "fused", "table4": "sep+cns+mar+sc+cma", "table5": "min"}
HALF_UNIT = 0.0005  # of the last digit that the paper prints


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
            wide.loc[name] = {metric: found[_published_key(metric)] for metric in PAPER_METRICS}
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


# ---------------------------------------------------------------- beside a run's own numbers


def beside_table(
    ours: pd.DataFrame, dataset: str, metric: str | None = None, folder: Path = PAPER_DIR
) -> pd.DataFrame:
    """Return the paper's methods with this run's below those that were rerun, as text.

    AUPRO of this run is that of the published protocol (100 thresholds), which alone may be
    compared with the paper's; `ours` has to have it, as ``aupro_30_published`` and so on.

    Args:
        ours: columns ``method`` (code), ``category`` (including "mean"), ``metric``, ``value``
            and ``spread`` (standard deviation over seeds; NaN: none). Other metrics are left out.
        dataset: "mvtec3d" or "eyecandies".
        metric: None for the metrics of Table 2, means over categories (of methods that Table 1
            alone has, those that it gives); otherwise one of them, by category as in Table 1. Of
            Eyecandies the paper prints no categories: its methods then have the mean alone.
        folder: where the paper's tables lie.

    Returns:
        A row a method by name, in the paper's order, our methods that it lacks at the end; the
        column ``source`` ("published", or "this run" with the number of its categories where it
        has not all), then metrics or categories. A dash where there is no number.

    Raises:
        ValueError: the paper has no such data set or metric; `ours` lacks a column or metric, or
            has a method without a name.
    """
    if dataset not in DATASET_NAMES:
        raise ValueError(
            f"dataset is {dataset!r}; the paper has {', '.join(DATASET_NAMES)}: "
            "published_only_table is for others"
        )
    if metric is not None and metric not in PAPER_METRICS:
        raise ValueError(f"metric is {metric!r}; the paper has {', '.join(PAPER_METRICS)}")
    wanted = PAPER_METRICS if metric is None else (metric,)
    ours = _with_metrics(ours, wanted)
    printed = pd.concat([read_table("table1", folder), read_table("table2", folder)])
    printed = printed[printed["dataset"].eq(dataset) & printed["metric"].isin(wanted)]
    printed = printed.dropna(subset=["value"]).drop_duplicates(["method", "category", "metric"])
    categories = CATEGORIES[dataset]
    num = ours.loc[ours["category"] != "mean", "category"].nunique()
    source = THIS_RUN
    if 0 < num < len(categories):
        source += f", {num} of {len(categories)} categories"
    if metric is None:
        across = "metric"
        columns = {
            name: METRIC_NAMES[name] + (", published protocol" if "aupro" in name else "")
            for name in PAPER_METRICS
        }
        printed, ours = (rows[rows["category"] == "mean"] for rows in (printed, ours))
    else:
        across = "category"
        columns = {name: name.replace("_", " ") for name in (*categories, "mean")}
    cells = (_cells(rows, across, columns) for rows in (printed, ours))
    return _beside(*cells, PUBLISHED, source)


def published_only_table(metric: str, folder: Path = PAPER_DIR) -> pd.DataFrame:
    """Return the paper's Table 1 as text, every row marked as published, G2SF's among them.

    For runs on other data: nothing of this run may stand beside it.

    Args:
        metric: "i_auroc" or "aupro_30".
        folder: where the paper's tables lie.

    Returns:
        A row a method; the column ``source``, the ten categories and their mean.

    Raises:
        ValueError: Table 1 does not have the metric.
    """
    wide = category_table(read_table("table1", folder), metric)
    wide.insert(0, "source", PUBLISHED)
    return wide


def rerun_report() -> str:
    """Return, as Markdown, which of the paper's methods a run has, and which are only quoted."""
    rerun = [
        f"{DISPLAY_NAMES.get(name, name)} as “{METHOD_NAMES[code]}”"
        for name, code in METHODS_RERUN.items()
    ]
    return (
        f"- Rerun here: {', '.join(rerun)}.\n"
        f"- Only as published: {', '.join(PUBLISHED_ONLY)}. Of Shape-Guided its rule is rerun, the "
        f"larger of two calibrated scores (“{METHOD_NAMES['max']}”), without its signed distances."
    )


def frame_rate_table(ours: pd.DataFrame, folder: Path = PAPER_DIR) -> pd.DataFrame:
    """Return the frame rates of the paper's Table 6 with this run's beside them, as text.

    The paper's were measured on an RTX 4090; on another machine only ratios can be compared.

    Args:
        ours: columns ``method`` (code) and ``median_fps`` (scans per second).
        folder: where the paper's tables lie.

    Returns:
        A row a method; the columns ``source`` and ``frames per second``.

    Raises:
        ValueError: `ours` lacks a column, has a method twice, or one without a name.
    """
    ours = _with_columns(ours, ("method", "median_fps"), "frame_rate_table")
    name = {"value": "frames per second"}
    printed = read_table("table6", folder).set_index("method")[["value"]].rename(columns=name)
    here = ours.set_index("method")[["median_fps"]].set_axis(list(name.values()), axis=1)
    if here.index.has_duplicates:
        raise ValueError(
            f"frame_rate_table: {here.index[here.index.duplicated()][0]!r} is there twice; "
            "expected one median a method"
        )
    as_text = [rows.map(lambda fps: f"{fps:.3g}" if fps < 100 else f"{fps:.0f}") for rows in
               (printed, here)]  # fmt: skip
    return _beside(*as_text, f"{PUBLISHED}, RTX 4090", THIS_RUN)


def _published_key(metric: str) -> str:
    """Return under which name a run has a metric by the protocol that the paper follows."""
    return f"{metric}_published" if metric.startswith("aupro") else metric


def _with_columns(ours: pd.DataFrame, columns: tuple[str, ...], where: str) -> pd.DataFrame:
    lacking = [name for name in columns if name not in ours]
    if lacking:
        raise ValueError(
            f"{where}: the run's rows have {', '.join(ours.columns)}; expected {', '.join(lacking)}"
        )
    unnamed = [method for method in ours["method"].unique() if method not in METHOD_NAMES]
    if unnamed:
        raise ValueError(
            f"{where}: method {unnamed[0]!r} has no name; expected one of {', '.join(METHOD_NAMES)}"
        )
    return ours


def _with_metrics(ours: pd.DataFrame, wanted: tuple[str, ...]) -> pd.DataFrame:
    """Return the rows of a run of the wanted metrics, under the paper's names for them."""
    columns = ("method", "category", "metric", "value", "spread")
    ours = _with_columns(ours, columns, "beside_table")
    names = {_published_key(metric): metric for metric in wanted}
    lacking = set(names) - set(ours["metric"])
    if lacking:
        raise ValueError(
            f"beside_table: the run has {', '.join(ours['metric'].unique())}; expected "
            f"{', '.join(sorted(lacking))} too, by the protocol that the paper follows"
        )
    kept = ours[ours["metric"].isin(list(names))]
    return kept.assign(metric=kept["metric"].map(names))


def _cells(rows: pd.DataFrame, across: str, columns: dict[str, str]) -> pd.DataFrame:
    """Return a row a method (its code or the paper's name) and a named column a metric or category.

    Cells are "value" or "value ± spread", and a dash where there is no number.
    """
    spread = rows["spread"] if "spread" in rows else pd.Series(np.nan, rows.index)
    text = [
        f"{value:.3f}" + ("" if pd.isna(width) else f" ± {width:.3f}")
        for value, width in zip(rows["value"], spread, strict=True)
    ]
    wide = rows.assign(text=text).pivot(index="method", columns=across, values="text")
    wide = wide.reindex(index=rows["method"].unique(), columns=list(columns))
    return wide.rename(columns=columns).astype(object).fillna("–")


def _beside(
    printed: pd.DataFrame, ours: pd.DataFrame, source: str, our_source: str
) -> pd.DataFrame:
    """Return the rows of both, those of a method rerun below the paper's."""
    rows, placed = [], set()
    for method in printed.index:
        rows.append((DISPLAY_NAMES.get(method, method), source, *printed.loc[method]))
        code = METHODS_RERUN.get(method)
        if code in ours.index:
            rows.append((METHOD_NAMES[code], our_source, *ours.loc[code]))
            placed.add(code)
    rows += [
        (METHOD_NAMES[code], our_source, *ours.loc[code])
        for code in ours.index
        if code not in placed
    ]
    table = pd.DataFrame(rows, columns=["method", "source", *printed.columns])
    return table.set_index("method")


# ---------------------------------------------------------------- does the paper agree with itself


def statements(paper: Paper) -> pd.DataFrame:
    """Return everything in the paper that can be computed from other numbers in it, a row each.

    - Means of Table 1: one does not hold where it is farther from the mean of its categories
      than half of its last digit (a tie may be rounded either way).
    - Numbers that two tables print: of Table 1 the means, of Tables 3 to 5 the row of G2SF, each
      compared with Table 2.
    - Claims of the text (`Paper.claims`), compared with the tables, to half of a last digit.

    Returns:
        Columns ``kind`` ("mean", "repeated", "claim"), ``where``, ``method``, ``metric``,
        ``printed``, ``other`` (what it should be, or what it is compared with), ``other_name``
        and ``holds``.

    Raises:
        ValueError: a claim names a number that no table has.
    """
    rows = [*_mean_rows(paper.tables), *_repeated_rows(paper.tables), *_claim_rows(paper)]
    columns = ["kind", "where", "method", "metric", "printed", "other", "other_name", "holds"]
    found = pd.DataFrame(rows, columns=columns)
    names = METRIC_NAMES | {"frame_rate": "frame rate"}
    return found.assign(metric=found["metric"].map(names))


def disagreements(paper: Paper) -> pd.DataFrame:
    """Return the rows of `statements` that do not hold."""
    found = statements(paper)
    return found[~found["holds"].astype(bool)].reset_index(drop=True)


def disagreement_report(paper: Paper) -> str:
    """Return, as Markdown, what was checked, what does not come out, and where names slip."""
    found = statements(paper)
    num = found["kind"].value_counts()
    text = (
        f"{len(found)} of the paper's numbers and statements can be computed from others in it: "
        f"{num.get('mean', 0)} means of Table 1, {num.get('repeated', 0)} numbers that two tables "
        f"print, and {num.get('claim', 0)} comparisons that its text draws from its tables. "
    )
    wrong = disagreements(paper)
    if wrong.empty:
        text += "All come out."
    else:
        text += f"{len(found) - len(wrong)} come out, {len(wrong)} do not:"
    lines = [
        f"- {row.where}: {row.method}, {row.metric}: printed {_digits(row.printed)}, "
        f"{row.other_name} {_digits(row.other)}"
        for row in wrong.itertuples()
    ]
    slips = [f"- {row.place}, “{row.printed}”: {row.remark}" for row in paper.slips.itertuples()]
    if slips:
        lines += ["", "A reader stumbles over:", "", *slips]
    return "\n".join([text, "", *lines]).strip()


def _mean_rows(tables: dict[str, pd.DataFrame]) -> list[tuple]:
    rows = []
    for (metric, method), of_method in tables["table1"].groupby(["metric", "method"], sort=False):
        values = of_method.set_index("category")["value"]
        printed, other = values["mean"], values.drop("mean").mean()
        holds = abs(printed - other) <= HALF_UNIT + 1e-9
        names = ("mean", "Table 1, mean of its ten categories", method, metric)
        rows.append((*names, printed, other, "computed", holds))
    return rows


def _repeated_rows(tables: dict[str, pd.DataFrame]) -> list[tuple]:
    rows = []
    for name in ("table1", *REPEATED):
        means = tables[name][tables[name]["category"] == "mean"]
        if name in REPEATED:
            means = means[means["method"] == REPEATED[name]].assign(method="G2SF")
        both = means.merge(tables["table2"], on=["dataset", "metric", "method", "category"])
        for row in both.dropna(subset=["value_x", "value_y"]).itertuples():
            where = f"Table {name[-1]} and Table 2"
            holds = abs(row.value_x - row.value_y) < 1e-9
            names = ("repeated", where, row.method, row.metric)
            rows.append((*names, row.value_x, row.value_y, "Table 2", holds))
    return rows


def _claim_rows(paper: Paper) -> list[tuple]:
    rows = []
    for claim in paper.claims.itertuples():
        value = _printed(paper.tables, claim, claim.table, claim.method)
        if claim.relation == "is":
            printed, other, other_name = claim.printed, value, f"Table {claim.table[-1]}"
        else:
            against, other_name = _compared(paper.tables, claim)
            if claim.relation == "gain":
                printed, other = claim.printed, value - against
                other_name = f"computed against {other_name}"
            else:
                printed, other = value, against
        if claim.relation in ("is", "gain"):
            holds = abs(printed - other) <= HALF_UNIT + 1e-9
        else:
            holds = printed > other if claim.relation == "above" else printed >= other
        where = f"{claim.place}, “{claim.quote}”"
        rows.append(("claim", where, claim.method, claim.metric, printed, other, other_name, holds))
    return rows


def _compared(tables: dict[str, pd.DataFrame], claim: tuple) -> tuple[float, str]:
    """Return the number that a claim compares with, and whose it is."""
    if claim.other != "others":
        table, _, method = claim.other.rpartition(" ")
        table = table or claim.table
        return _printed(tables, claim, table, method), method
    rows = tables[claim.table]
    rows = rows[(rows["dataset"] == claim.dataset) & (rows["metric"] == claim.metric)]
    others = rows[rows["method"] != claim.method].set_index("method")["value"]
    return others.max(), f"the best other ({others.idxmax()})"


def _printed(tables: dict[str, pd.DataFrame], claim: tuple, table: str, method: str) -> float:
    rows = tables[table]
    rows = rows[rows["dataset"].eq(claim.dataset) & rows["metric"].eq(claim.metric)]
    value = rows.loc[rows["method"].eq(method) & rows["category"].eq("mean"), "value"].dropna()
    if len(value) != 1:
        raise ValueError(
            f"claims.csv: {claim.quote!r} needs {claim.metric} of {method} on {claim.dataset} from "
            f"{table}, which has {len(value)} such numbers; expected one"
        )
    return float(value.iloc[0])


def _digits(value: float) -> str:
    """Return a number with the paper's three digits, or with four where it has more."""
    three = f"{value:.3f}"
    return three if abs(value - float(three)) < 1e-9 else f"{value:.4f}"
