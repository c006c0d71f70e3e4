"""Results as tables that are read: a value with its spread, the paper's value, a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from g2sf_lib.stats import METRIC_NAMES, compare, effects, gaps, means

SMALLEST_P = 0.001  # no smaller p value is written


def number_cell(value: float | None, form: str = ".3f") -> str:
    """Return a number for a table; a dash where there is none."""
    return "–" if pd.isna(value) else f"{value:{form}}"


def signed(value: float, form: str = ".3f") -> str:
    """Return a difference with its sign, a true minus; what is zero as text has none."""
    text = f"{value:+{form}}".replace("-", "−")
    return text if text.strip("+−0.%") else text[1:]


def with_spread(value: float, spread: float, form: str = ".3f") -> str:
    """Return a mean ± its spread; without the latter where it is not known (NaN)."""
    return f"{value:{form}}" + ("" if pd.isna(spread) else f" ± {spread:{form}}")


def with_error(difference: float, error: float, form: str = ".3f") -> str:
    """Return a difference with its sign ± its error; without the latter where it is NaN."""
    return signed(difference, form) + ("" if pd.isna(error) else f" ± {error:{form}}")


def p_cell(p: float) -> str:
    """Return a p value for a table; a dash where there is none."""
    is_small = pd.notna(p) and p < SMALLEST_P
    return f"< {SMALLEST_P:g}" if is_small else number_cell(p, ".2g")


def printed_value(printed: pd.DataFrame, name: str, metric: str) -> float | None:
    """Return a mean of one of the paper's tables (`published.read_table`); None: it has none."""
    found = printed.query("method == @name and metric == @metric and category == 'mean'")
    found = found["value"].dropna()
    return float(found.iloc[0]) if len(found) else None


def published_column(metric: str) -> str:
    """Return the column that has a metric by the paper's protocol (100 thresholds for AUPRO)."""
    return f"{metric}_published" if metric.startswith("aupro") else metric


def mean_table(
    rows: pd.DataFrame,
    key: str,
    names: Mapping[str, str],
    printed: pd.DataFrame | None = None,
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return a row a variant, as text: mean over categories and seeds ± deviation over seeds.

    Args:
        rows: one a variant (column `key`), category and seed, with a column a metric.
        key: the column that says what differs.
        names: how variants are shown, and in which order.
        printed: the paper's table, whose rows stand above ours, AUPRO by its protocol.
        metrics: by default `METRIC_NAMES`, AUPRO by both protocols.
    """
    of_paper = {published_column(metric): metric for metric in METRIC_NAMES}
    titles = {column: METRIC_NAMES[metric] for column, metric in of_paper.items()}
    titles |= {m: f"{t}, exact" for m, t in METRIC_NAMES.items() if m.startswith("aupro")}
    if metrics is not None:
        titles = {m: titles.get(m, METRIC_NAMES.get(m, m)) for m in metrics}
    ours, lines = means(rows, key, list(titles)), []
    for name in (name for name in names if name in ours.index):
        if printed is not None and name in set(printed.dropna(subset="value")["method"]):
            values = {c: printed_value(printed, name, of_paper.get(c, "")) for c in titles}
            text = {title: number_cell(values[column]) for column, title in titles.items()}
            lines.append({"row": names[name], "source": "paper, MVTec 3D-AD"} | text)
        own = ours.loc[name]
        text = {t: with_spread(own[c], own[f"{c}_seed_std"]) for c, t in titles.items()}
        lines.append({"row": names[name], "source": "this run"} | text)
    return pd.DataFrame(lines).set_index("row")


def category_table(rows: pd.DataFrame, metric: str, key: str, names: Mapping[str, str]):
    """Return a row a variant and a column a category of one metric, and their mean, as text."""
    parts = {category: one for category, one in rows.groupby("category", sort=False)}
    if len(parts) > 1:
        parts["mean"] = rows
    shown = [name for name in names if name in set(rows[key])]
    table = pd.DataFrame(index=pd.Index([names[name] for name in shown], name="row"))
    for category, part in parts.items():
        found = means(part, key, [metric]).loc[shown]
        table[category] = [with_spread(*pair) for pair in found.to_numpy()]
    return table


def claims(
    rows: pd.DataFrame, printed: pd.DataFrame, pairs: Sequence[tuple[str, str]], key: str
) -> pd.DataFrame:
    """Return what becomes here of every ordering that a table of the paper prints.

    A row a metric and pair that are printed and run, AUPRO by the paper's protocol and, in
    ``exact``, by every threshold. What is printed alike has the verdict "tie", without a test.
    """
    found = []
    for metric in METRIC_NAMES:
        paper = {name: printed_value(printed, name, metric) for name in rows[key].unique()}
        known = [(a, b) for a, b in pairs if None not in (paper.get(a), paper.get(b))]
        known = [(a, b) if paper[a] >= paper[b] else (b, a) for a, b in known]
        claimed = [(a, b) for a, b in known if paper[a] > paper[b]]
        ties = [pair for pair in known if pair not in claimed]
        tables = []
        if claimed:
            exact = compare(rows, claimed, metric, key)["verdict"]
            tables.append(compare(rows, claimed, published_column(metric), key).assign(exact=exact))
        if ties:
            table = pd.DataFrame(ties, columns=["higher", "lower"])
            tables.append(table.assign(verdict="tie", p=None))
        for table in tables:
            both = {f"printed_{side}": table[side].map(paper) for side in ("higher", "lower")}
            found.append(table.assign(metric=metric, **both))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def verdict_table(compared: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of `stats.compare` or `claims` as text: ordering, difference, p, verdict."""
    lines = []
    for row in compared.to_dict("records"):
        is_tie, unknown = row["verdict"] == "tie", pd.isna(row["p"])
        sign = "=" if is_tie else ">"
        line = {"metric": METRIC_NAMES.get(row["metric"], row["metric"])} if "metric" in row else {}
        line["ordering"] = f"{names[row['higher']]} {sign} {names[row['lower']]}"
        if "printed_higher" in row:
            line["paper"] = f"{row['printed_higher']:.3f} {sign} {row['printed_lower']:.3f}"
        if is_tie:
            line |= {"difference here": "–", "pairs won": "–", "p": "–", "verdict": "no claim"}
        else:
            line["difference here"] = with_error(row["difference"], row["se"])
            line["pairs won"] = f"{row['wins']:.0f} of {row['num']:.0f}"
            line |= {"p": p_cell(row["p"]), "verdict": "–" if unknown else row["verdict"]}
        if "exact" in row:
            is_area = row["metric"].startswith("aupro") and not unknown
            line["at every threshold"] = row["exact"] if is_area else "–"
        lines.append(line)
    table = pd.DataFrame(lines)
    return table.set_index("metric" if "metric" in table else "ordering")


def candidate_table(rows: pd.DataFrame, value: str, chosen: str) -> pd.DataFrame:
    """Return a row a candidate, the best first, as text: mean over categories ± standard error.

    The error of "minus the best" is that of differences paired by category. `rows` are one a
    ``category`` and ``candidate``, judged by `value`; `chosen` is what this run takes.
    """
    wide = rows.pivot(index="category", columns="candidate", values=value)
    wide = wide[wide.mean().sort_values(ascending=False, kind="stable").index]
    behind = wide.sub(wide.iloc[:, 0], axis=0)
    table = {
        "mean": [with_spread(wide[name].mean(), wide[name].sem()) for name in wide],
        "minus the best": [with_error(behind[name].mean(), behind[name].sem()) for name in wide],
        "of this run": ["yes" if name == chosen else "" for name in wide],
    }
    return pd.DataFrame(table, index=wide.columns)


def gains(rows: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], key: str) -> pd.DataFrame:
    """Return `stats.compare` of pairs, name -> (first, second), in every metric: "better"?"""
    tables = [
        compare(rows, list(pairs.values()), metric, key).assign(metric=metric, what=list(pairs))
        for metric in METRIC_NAMES
    ]
    words = {"verdict": {"holds": "better", "reversed": "worse"}}
    return pd.concat(tables, ignore_index=True).replace(words)


def gain_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `gains` as text, a row a pair and a column a metric."""
    text = [
        with_error(row.difference, row.se) + ("" if pd.isna(row.p) else f", {row.verdict}")
        for row in found.itertuples()
    ]
    wide = found.assign(text=text).pivot(index="what", columns="metric", values="text")
    wide = wide.reindex(index=found["what"].unique(), columns=list(METRIC_NAMES))
    return wide.rename(columns=METRIC_NAMES).rename_axis(index=None, columns=None)


def effect_panels(
    rows: pd.DataFrame, reference: str, names: Mapping[str, str], key: str = "variant"
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the arguments of `plots.ablations.effect_dots`: single differences and their means."""
    parts = [
        table.assign(variant=table[key].map(names))
        for table in (gaps(rows, reference, key), effects(rows, reference, key))
    ]
    return *parts, names[reference]
