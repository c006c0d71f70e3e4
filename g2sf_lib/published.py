"""What the paper prints (`data/paper`, typed as printed), and whether it agrees with itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from g2sf_lib.stats import METRIC_NAMES
from g2sf_lib.tables import number_cell, printed_value

PAPER_DIR = Path("data/paper")
DATASET_NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
RERUN = {"BTF": "concat", "AST": "ast", "M3DM": "m3dm", "CFM": "cfm", "G2SF": "g2sf"}
# Rows of other tables that repeat the row of G2SF in Table 2.
REPEATED = {"table1": "G2SF", "table3": "fused", "table4": "sep+cns+mar+sc+cma", "table5": "min"}
HALF_UNIT = 0.0005 + 1e-9  # of the last digit that the paper prints


class Paper(NamedTuple):
    """What was typed from the paper.

    With the value v of ``method`` and o of ``other`` (of this or another table, or the best of the
    "others"), a claim's ``relation`` is v = ``printed`` ("is"), v - o = ``printed`` ("gain"), v > o
    ("above") or v >= o ("not below").
    """

    tables: dict[str, pd.DataFrame]  # "table1" ... "table6" -> `read_table`
    claims: pd.DataFrame  # of the text, that can be computed from the tables
    slips: pd.DataFrame  # what a reader stumbles over, as ``printed``, with a ``remark``


def read_paper(folder: Path = PAPER_DIR) -> Paper:
    """Return everything that was typed from the paper."""
    tables = {f"table{number}": read_table(f"table{number}", folder) for number in range(1, 7)}
    claims = pd.read_csv(folder / "claims.csv").fillna({"other": ""})
    return Paper(tables, claims, pd.read_csv(folder / "slips.csv"))


def read_table(name: str, folder: Path = PAPER_DIR) -> pd.DataFrame:
    """Return one of the paper's tables, a row a printed number; NaN where it prints a dash.

    "table1" (per category), "table2" (means), "table3" (scores and scale factors alone), "table4"
    (losses), "table5" (aggregation), "table6" (frame rates, samples per second on an RTX 4090).
    """
    return pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values={"value": [""]})


def as_printed(table: pd.DataFrame, across: str) -> pd.DataFrame:
    """Return a row a method and a column a metric or category (`across`) as text."""
    wide = table.pivot(index="method", columns=across, values="value")
    wide = wide.loc[table["method"].unique(), table[across].unique()].map(number_cell)
    wide = wide.rename(index={"G2SF": "G²SF"}, columns=METRIC_NAMES).rename_axis(columns=None)
    return wide.rename(columns=lambda name: name.replace("_", " "))


def statements(paper: Paper) -> pd.DataFrame:
    """Return everything in the paper that can be computed from other numbers in it, a row each.

    Means of Table 1; what Tables 1 and 3 to 5 repeat of Table 2; `Paper.claims`. Each ``holds``
    where it is off by no more than half of the last digit (a tie may be rounded either way).

    Returns:
        Columns ``kind`` ("mean", "repeated", "claim"), ``where``, ``method``, ``metric``,
        ``printed``, ``other`` (what it should be, or is compared with), ``other_name``, ``holds``.
    """
    keys = ["metric", "method"]
    wide = paper.tables["table1"].pivot(index=keys, columns="category", values="value")
    means = pd.DataFrame({"printed": wide.pop("mean"), "other": wide.mean(axis=1)}).reset_index()
    parts = [means.assign(kind="mean", where="Table 1", other_name="computed")]
    for name, ours in REPEATED.items():
        table = paper.tables[name].replace({"method": {ours: "G2SF"}})
        both = table.merge(paper.tables["table2"], on=["dataset", "metric", "method", "category"])
        both = both.rename(columns={"value_x": "printed", "value_y": "other"})
        both = both.dropna(subset=["printed", "other"])
        parts.append(both.assign(kind="repeated", where=f"Table {name[-1]}", other_name="Table 2"))
    found = pd.concat(parts)
    found["holds"] = (found["printed"] - found["other"]).abs() <= HALF_UNIT
    rows = [_claim(paper.tables, claim) for claim in paper.claims.itertuples()]
    columns = ["kind", "where", "method", "metric", "printed", "other", "other_name", "holds"]
    found = pd.concat([found[columns], pd.DataFrame(rows, columns=columns)], ignore_index=True)
    found["metric"] = found["metric"].map(METRIC_NAMES | {"frame_rate": "frame rate"})
    return found.astype({"holds": bool})


def _claim(tables: dict[str, pd.DataFrame], claim) -> tuple:
    """Return a claim of the text as a row of `statements`."""

    def value_of(table: str, method: str) -> float:
        rows = tables[table][tables[table]["dataset"] == claim.dataset]
        value = printed_value(rows, method, claim.metric)
        if value is None:
            raise ValueError(
                f"claims.csv: {claim.quote!r} needs {claim.metric} of {method} on "
                f"{claim.dataset} from {table}, which does not have it"
            )
        return value

    printed, other, name = value_of(claim.table, claim.method), 0.0, f"Table {claim.table[-1]}"
    if claim.other == "others":
        rows = tables[claim.table].set_index("method")
        chosen = rows["dataset"].eq(claim.dataset) & rows["metric"].eq(claim.metric)
        others = rows.loc[chosen, "value"].drop(claim.method)
        other, name = others.max(), f"the best other ({others.idxmax()})"
    elif claim.other:
        table, _, name = claim.other.rpartition(" ")
        other = value_of(table or claim.table, name)
    if claim.relation in ("is", "gain"):
        printed, other = claim.printed, printed - other
        holds = abs(printed - other) <= HALF_UNIT
    else:
        holds = {"above": printed > other, "not below": printed >= other}[claim.relation]
    where = f"{claim.place}, “{claim.quote}”"
    return ("claim", where, claim.method, claim.metric, printed, other, name, holds)
