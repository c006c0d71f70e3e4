"""Chapters 06, 07 and 08: which row is above which, here and in the paper, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from g2sf_lib.ablations import LOSSES, STEPS, effects, orderings
from g2sf_lib.chapters.ablations import (
    ALL_LOSSES,
    ROW_NAMES,
    UNTRAINED,
    printed_mean,
    published_column,
    row_name,
    short_name,
)
from g2sf_lib.chapters.wording import p_cell, p_text, signed, with_error
from g2sf_lib.config import MODALITIES
from g2sf_lib.quantities import PARTS, RULES
from g2sf_lib.stats import LEVEL, METRIC_NAMES

COMPARED = {  # of which rows of the paper's tables an ordering is looked at
    "table3": (
        *(("fused", part) for part in PARTS if part != "fused"),
        *((f"w_{mod}", f"s_{mod}") for mod in MODALITIES),
    ),
    "table4": tuple(("+".join(b), "+".join(a)) for a, b in zip(STEPS, STEPS[1:], strict=False)),
    "table5": tuple(("min", rule) for rule in RULES if rule != "min"),
}
VERDICTS = {
    "better": "better beyond chance in",
    "worse": "worse beyond chance in",
    "open": "open in",
}


# ---------------------------------------------------------------- the paper's orderings


def claimed_pairs(
    printed: pd.DataFrame, metric: str, compared: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return (higher, lower) of the pairs of rows that the paper prints different numbers of.

    Args:
        printed: the paper's table.
        metric: of it.
        compared: pairs that are looked at, in any order.
    """
    pairs = []
    for a, b in compared:
        first, second = printed_mean(printed, a, metric), printed_mean(printed, b, metric)
        if first is not None and second is not None and first != second:
            pairs.append((a, b) if first > second else (b, a))
    return pairs


def ordering_rows(
    rows: pd.DataFrame,
    printed: pd.DataFrame,
    compared: Sequence[tuple[str, str]],
    key: str,
) -> pd.DataFrame:
    """Return what becomes here of every ordering that a table of the paper prints.

    Args:
        rows: of `ablations.run_variants`. Pairs that it lacks are left out.
        printed: the paper's table.
        compared: as in `claimed_pairs`.
        key: which column says what differs.

    Returns:
        A row a metric and pair: ``metric``, ``higher``, ``lower``, the paper's numbers
        ``printed_higher`` and ``printed_lower``, and the columns of `ablations.orderings`, AUPRO
        by the published protocol, ``exact`` the verdict by every threshold. Numbers that the paper
        prints alike are no claim: their ``verdict`` is "tie", and nothing is tested.
    """
    known, found = set(rows[key]), []
    compared = [pair for pair in compared if set(pair) <= known]
    for metric in METRIC_NAMES:
        pairs = claimed_pairs(printed, metric, compared)
        if pairs:
            tested = orderings(rows, pairs, published_column(metric), key)
            exact = orderings(rows, pairs, metric, key)["verdict"]
            found.append(tested.assign(metric=metric, exact=exact))
        even = [
            {"metric": metric, "higher": a, "lower": b, "verdict": "tie", "exact": "tie"}
            for a, b in compared
            if printed_mean(printed, a, metric) is not None
            and printed_mean(printed, a, metric) == printed_mean(printed, b, metric)
        ]
        if even:
            found.append(pd.DataFrame(even))
    numbers = ["difference", "se", "p", "wins", "num"]
    columns = ["metric", "higher", "lower", *numbers, "verdict", "exact"]
    tables = [table.reindex(columns=columns).astype(dict.fromkeys(numbers, float))
              for table in found]  # fmt: skip
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    for side in ("higher", "lower"):
        each = zip(table[side], table["metric"], strict=True)
        table[f"printed_{side}"] = [printed_mean(printed, name, metric) for name, metric in each]
    return table


def ordering_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `ordering_rows` as text, a row a metric and pair."""
    lines = []
    for row in found.itertuples():
        sign, is_tie = ("=", True) if row.verdict == "tie" else (">", False)
        lines.append(
            {
                "metric": METRIC_NAMES[row.metric],
                "ordering": f"{short_name(row.higher)} {sign} {short_name(row.lower)}",
                "paper": f"{row.printed_higher:.3f} {sign} {row.printed_lower:.3f}",
                "difference here": "–" if is_tie else with_error(row.difference, row.se),
                "pairs won": "–" if is_tie else f"{row.wins:.0f} of {row.num:.0f}",
                "p": p_cell(row.p),
                "verdict": "no claim" if is_tie else "–" if pd.isna(row.p) else row.verdict,
            }
        )
    columns = ["metric", "ordering", "paper", "difference here", "pairs won", "p", "verdict"]
    return pd.DataFrame(lines, columns=columns).set_index("metric")


def ordering_report(found: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return, in Markdown, whether the paper's orderings hold here, and how surely.

    Args:
        found: of `ordering_rows`.
        rows: what it was made of.
    """
    claims = found[found["verdict"] != "tie"]
    if claims.empty:
        return "None of the orderings of the paper's table is between rows that were run here."
    basis, num = counted_by(rows), len(claims)
    towards = f"{int((claims['difference'] > 0).sum())} of the {num} differences"
    if claims["p"].isna().all():
        return f"{basis} {towards} point the way that the paper prints; that is no verdict."
    count = claims["verdict"].value_counts().reindex(["holds", "reversed", "open"], fill_value=0)
    lines = [
        f"Of {num} orderings that the paper's table prints, {count['holds']} hold here, "
        f"{count['reversed']} are reversed and {count['open']} are open. {towards} point the "
        f"paper's way. {basis}",
        "",
    ]
    for metric, of_metric in claims.groupby("metric", sort=False):
        parts = []
        for verdict, of_verdict in of_metric.groupby("verdict"):
            each = [
                f"{short_name(row.higher)} over {short_name(row.lower)}"
                + ("" if verdict == "open" else f" ({_in_brackets(row)})")
                for row in of_verdict.itertuples()
            ]
            is_all = verdict == "open" and len(each) == len(of_metric) > 1
            parts.append(f"*{verdict}*: {f'all {len(each)}' if is_all else ', '.join(each)}")
        lines.append(f"- {METRIC_NAMES[metric]}: {'. '.join(parts)}.")
    is_area = claims["metric"].str.startswith("aupro")
    other = int((is_area & (claims["verdict"] != claims["exact"])).sum())
    lines += [
        "",
        "In brackets: difference ± standard error; in how many pairs of a category and a seed it "
        "points the paper's way; p, corrected for the number of orderings in the metric. *Holds* "
        f"and *reversed* are said where p is below {LEVEL:g}; *open* means that the two cannot be "
        "told apart here, not that they are equal.",
    ]
    if is_area.any():
        lines[-1] += (
            f" AUPRO is that of the published protocol; by every threshold {other} of its "
            f"{int(is_area.sum())} verdicts {'is' if other == 1 else 'are'} another."
        )
    return "\n".join(lines)


def counted_by(rows: pd.DataFrame) -> str:
    """Return, in a sentence, what a verdict on these rows rests on."""
    categories, seeds = rows["category"].nunique(), rows["seed"].nunique()
    if categories > 1:
        over = f"{seeds} training seeds" if seeds > 1 else "one training seed"
        return (
            f"Paired over {categories} categories and {over}; categories are what is counted "
            "(seeds of one are averaged first)."
        )
    if seeds > 1:
        return (
            f"One category: the {seeds} training seeds are what is counted, so a verdict is about "
            "this category and its test scans alone."
        )
    return "One category and one training seed: nothing can be said of how sure a difference is."


def _in_brackets(row) -> str:
    """Return difference, error, pairs won and p of a row of `ordering_rows`."""
    gap = with_error(row.difference, row.se)
    return f"{gap}; {row.wins:.0f} of {row.num:.0f}; {p_text(row.p)}"


# ---------------------------------------------------------------- differences beyond the table


def part_pairs(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return what makes up the gain of the fused score: adding distances, learning factors."""
    adding = {
        f"adding: the untrained sum over {short_name(f's_{mod}')}": ("untrained", f"s_{mod}")
        for mod in MODALITIES
    }
    return adding | {"learning: the fused score over the untrained sum": ("fused", "untrained")}


def training_pairs(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return what training brings: each row of `loss_rows` that trains with the steps' ends."""
    known = set(rows["variant"])
    pairs = {
        "separation alone over untrained": ("sep", UNTRAINED.name),
        "all five over untrained": (ALL_LOSSES, UNTRAINED.name),
        "all five over separation alone": (ALL_LOSSES, "sep"),
    }
    steps, left_out = {"+".join(step) for step in STEPS}, set(ROW_NAMES)
    for name in rows["variant"].unique():
        if name not in steps | left_out:  # a reader's own subset
            pairs[f"{row_name(name)} over untrained"] = (name, UNTRAINED.name)
            pairs[f"all five over {row_name(name)}"] = (ALL_LOSSES, name)
    return {words: pair for words, pair in pairs.items() if set(pair) <= known}


def left_out_pairs(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return loss -> (with all five, without it), of those that were run."""
    pairs = {
        f"{out}, when the other four are there": (
            ALL_LOSSES,
            "+".join(x for x in LOSSES if x != out),
        )
        for out in LOSSES
        if out != "sep"
    }
    known = set(rows["variant"])
    return {words: pair for words, pair in pairs.items() if set(pair) <= known}


def gain_rows(rows: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], key: str) -> pd.DataFrame:
    """Return how far the first of each pair is above the second, in every metric.

    Args:
        rows: of `ablations.run_variants`.
        pairs: what is asked, in words -> (first, second).
        key: which column says what differs.

    Returns:
        A row a pair and metric: ``what``, ``metric``, and the columns of `ablations.orderings`
        with ``verdict`` "better", "worse" or "open"; p is corrected for the pairs, metric by
        metric.
    """
    found = []
    for metric in METRIC_NAMES if pairs else ():
        table = orderings(rows, list(pairs.values()), metric, key)
        words = {"holds": "better", "reversed": "worse", "open": "open"}
        found.append(
            table.assign(what=list(pairs), metric=metric, verdict=table["verdict"].map(words))
        )
    columns = ["what", "metric", "higher", "lower", "difference", "se", "p", "wins", "num"]
    columns += ["verdict"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def gain_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `gain_rows` as text, a row a pair and a column a metric."""
    text = [
        with_error(row.difference, row.se) + ("" if pd.isna(row.p) else f", {row.verdict}")
        for row in found.itertuples()
    ]
    wide = found.assign(text=text).pivot(index="what", columns="metric", values="text")
    wide = wide.reindex(index=list(dict.fromkeys(found["what"])), columns=list(METRIC_NAMES))
    return wide.rename(columns=METRIC_NAMES).rename_axis(index="what", columns=None)


def gain_report(found: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return, in Markdown, what each pair of `gain_rows` comes to."""
    if found.empty:
        return "None of these pairs of rows was run."
    if found["p"].isna().all():
        return f"{counted_by(rows)} The table shows which way each difference points."
    lines = [counted_by(rows), ""]
    for what, of_one in found.groupby("what", sort=False):
        parts = []
        for verdict, words in VERDICTS.items():
            named = of_one[of_one["verdict"] == verdict]
            each = [
                f"{METRIC_NAMES[row.metric]} ({signed(row.difference)})"
                for row in named.itertuples()
            ]
            if verdict == "open" and len(named) == len(of_one):
                parts.append(f"open in all {len(of_one)} metrics")
            elif each:
                parts.append(f"{words} {', '.join(each)}")
        lines.append(f"- {what}: {'; '.join(parts)}.")
    return "\n".join(lines)


def place_report(found: pd.DataFrame) -> str:
    """Return, in a sentence, which losses earn their place, from the gains of `left_out_pairs`."""
    if found.empty or found["p"].isna().all():
        return ""
    groups: dict[str, list[str]] = {"earns": [], "costs": [], "does both": [], "is undecided": []}
    for what, of_one in found.groupby("what", sort=False):
        has_better, has_worse = ((of_one["verdict"] == word).any() for word in ("better", "worse"))
        both = "does both" if has_better and has_worse else None
        one = "earns" if has_better else "costs" if has_worse else "is undecided"
        groups[both or one].append(what.split(",")[0])
    words = {
        "earns": "Earns its place here (better with it beyond chance in a metric, worse in none)",
        "costs": "Costs more than it brings here (worse with it in a metric, better in none)",
        "does both": "Better with it in one metric and worse in another",
        "is undecided": "Neither a gain nor a cost is shown for",
    }
    told = [f"{words[group]}: {', '.join(names)}." for group, names in groups.items() if names]
    return " ".join(told)


def effect_rows(rows: pd.DataFrame, reference: str, key: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return differences from a reference, for `plots.effect_dots`.

    Args:
        rows: of `ablations.run_variants`.
        reference: the row that is subtracted.
        key: which column says what differs.

    Returns:
        ``variant`` (as the reader sees it), ``metric``, ``category``, ``seed``, ``difference``;
        and ``variant``, ``metric``, ``difference``, ``se``, the mean of it.
    """
    points = []
    for metric in METRIC_NAMES:
        wide = rows.pivot(index=["category", "seed"], columns=key, values=metric)
        for name in rows[key].unique():
            if name != reference:
                gap = (wide[name] - wide[reference]).rename("difference").reset_index()
                points.append(gap.assign(variant=row_name(name), metric=metric))
    found = effects(rows, reference, key)
    return (
        pd.concat(points, ignore_index=True),
        found.assign(variant=found[key].map(row_name))[["variant", "metric", "difference", "se"]],
    )
