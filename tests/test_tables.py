"""Tables as text: values, the paper's beside them, and verdicts; on made-up rows."""

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import tables
from g2sf_lib.ablations import STEPS
from g2sf_lib.published import read_table
from g2sf_lib.stats import METRIC_NAMES

METRICS = [*METRIC_NAMES, "aupro_30_published", "aupro_1_published"]
NAMES = {name: name.upper() for name in "abc"}


def made_up(values, categories=("foam", "rope"), seeds=(0, 1, 2)):
    """Return rows in which every metric of a variant is its value, a function of the seed or not.

    Args:
        values: variant -> a number, or a function of (category number, seed).
    """
    rows = [
        {"variant": name, "category": category, "seed": seed}
        | dict.fromkeys(METRICS, value(number, seed) if callable(value) else value)
        for name, value in values.items()
        for number, category in enumerate(categories)
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def paper(values, metric="i_auroc"):
    """Return a table of the paper with some means."""
    rows = [(metric, name, "mean", value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["metric", "method", "category", "value"])


def test_numbers_as_text():
    assert tables.signed(-0.25, ".2f") == "−0.25" and tables.signed(-0.0004) == "0.000"
    assert tables.with_spread(0.5, np.nan) == "0.500"
    assert tables.with_error(0.1234, 0.01) == "+0.123 ± 0.010"
    assert [tables.p_cell(p) for p in (0.0001, 0.0312, np.nan)] == ["< 0.001", "0.031", "–"]


def test_the_papers_row_stands_above_ours_with_a_dash_where_it_has_no_number():
    rows = made_up({"a": lambda number, seed: 0.5 + 0.1 * seed, "b": 0.9}).assign(aupro_30=0.7)
    printed = pd.concat([paper({"a": 0.868}), paper({"a": 0.979}, "aupro_30")])
    table = tables.mean_table(rows, "variant", NAMES, printed)
    assert list(table.index) == ["A", "A", "B"]
    assert list(table["source"]) == ["paper, MVTec 3D-AD", "this run", "this run"]
    assert list(table["I-AUROC"]) == ["0.868", "0.600 ± 0.100", "0.900 ± 0.000"]
    assert list(table["AUPRO@30 %"]) == ["0.979", "0.600 ± 0.100", "0.900 ± 0.000"]
    assert list(table["AUPRO@30 %, exact"]) == ["–", "0.700 ± 0.000", "0.700 ± 0.000"]
    assert list(tables.mean_table(rows, "variant", NAMES, metrics=["p_auroc"]))[1:] == ["P-AUROC"]


def test_a_column_a_category():
    rows = made_up({"a": lambda number, seed: 0.1 * number + 0.2 * seed, "b": 0.5})
    table = tables.category_table(rows, "i_auroc", "variant", NAMES)
    assert list(table.columns) == ["foam", "rope", "mean"]
    assert list(table.loc["A"]) == ["0.200 ± 0.200", "0.300 ± 0.200", "0.250 ± 0.200"]
    one = tables.category_table(rows[rows["category"] == "foam"], "i_auroc", "variant", NAMES)
    assert list(one.columns) == ["foam"]


def test_what_becomes_of_the_papers_orderings():
    rows = made_up(
        {
            "a": lambda number, seed: 0.8 + 0.001 * seed,
            "b": 0.7,
            "c": lambda number, seed: 0.7 + 0.3 * (seed - 1),
        }
    )
    printed = paper({"a": 0.8, "b": 0.9, "c": 0.7, "not run": 0.1})
    pairs = [("a", "b"), ("c", "b"), ("a", "not run"), ("a", "not printed")]
    found = tables.claims(rows, printed, pairs, "variant")
    assert found[["higher", "lower"]].to_numpy().tolist() == [["b", "a"], ["b", "c"]]
    table = tables.verdict_table(found, NAMES)
    assert list(table.index) == ["I-AUROC"] * 2
    assert list(table["ordering"]) == ["B > A", "B > C"]
    assert list(table["paper"]) == ["0.900 > 0.800", "0.900 > 0.700"]
    assert list(table["difference here"]) == ["−0.101 ± 0.000", "0.000 ± 0.122"]
    assert list(table["pairs won"]) == ["0 of 6", "2 of 6"]
    assert list(table["verdict"]) == ["reversed", "open"]
    once = tables.claims(rows[rows["seed"] == 1], printed, pairs, "variant")
    assert list(tables.verdict_table(once, NAMES)["verdict"]) == ["–", "–"]
    assert tables.claims(rows, printed, pairs[2:], "variant").empty


def test_aupro_is_judged_by_both_protocols_and_a_tie_is_no_claim():
    rows = made_up({"a": lambda number, seed: 0.8 + 0.001 * seed, "b": 0.7, "c": 0.7})
    rows["aupro_30"] = 1 - rows["aupro_30_published"]
    printed = paper({"a": 0.9, "b": 0.8, "c": 0.8}, "aupro_30")
    found = tables.claims(rows, printed, [("b", "a"), ("b", "c")], "variant")
    table = tables.verdict_table(found, NAMES)
    assert list(table["ordering"]) == ["A > B", "B = C"]
    assert list(table["verdict"]) == ["holds", "no claim"]
    assert list(table["at every threshold"]) == ["reversed", "–"]
    assert (table.iloc[1][["difference here", "pairs won", "p"]] == "–").all()


def test_the_orderings_of_table_4():
    """L_mar and L_cma are ties in I-AUROC and P-AUROC, and it has no AUPRO@1 %."""
    names = ["+".join(losses) for losses in STEPS]
    rows, pairs = made_up(dict.fromkeys(names, 0.5)), list(zip(names[1:], names, strict=False))
    found = tables.claims(rows, read_table("table4"), pairs, "variant")
    claimed = found[found["verdict"] != "tie"].groupby("metric").size()
    assert [int(claimed.get(metric, 0)) for metric in METRIC_NAMES] == [3, 3, 4, 0]


def test_gains_and_costs():
    rows = made_up({"a": lambda number, seed: 0.8 + 1e-4 * seed, "b": 0.7, "c": 0.9})
    pairs = {"over b": ("a", "b"), "over c": ("a", "c")}
    table = tables.gain_table(tables.gains(rows, pairs, "variant"))
    assert list(table.index) == list(pairs) and list(table.columns) == list(METRIC_NAMES.values())
    assert list(table["I-AUROC"]) == ["+0.100 ± 0.000, better", "−0.100 ± 0.000, worse"]
    once = tables.gains(rows[rows["seed"] == 0], pairs, "variant")
    assert tables.gain_table(once).loc["over b", "I-AUROC"] == "+0.100"


def test_what_a_figure_of_effects_is_drawn_from():
    rows = made_up({"a": lambda number, seed: 0.1 * number + 0.01 * seed, "b": 0.0})
    points, means, reference = tables.effect_panels(rows, "b", NAMES)
    assert reference == "B" and set(points["variant"]) == {"A"} == set(means["variant"])
    one = points[points["metric"] == "i_auroc"].set_index(["category", "seed"])["difference"]
    assert one["rope", 1] == pytest.approx(0.11) and len(one) == 6
    assert means["difference"].tolist() == pytest.approx([0.06] * 4)
