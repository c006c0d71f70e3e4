"""Whether the paper agrees with itself: what can be computed from other numbers in it."""

from __future__ import annotations

import pandas as pd

from g2sf_lib.published.tables import Paper
from g2sf_lib.results import METRIC_NAMES

# Rows of other tables that repeat the row of G2SF in Table 2.
REPEATED = {"table3": "fused", "table4": "sep+cns+mar+sc+cma", "table5": "min"}
HALF_UNIT = 0.0005  # of the last digit that the paper prints


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
