"""Chapters 06 to 08: by hand on made-up rows, and on a made-up run."""

import dataclasses
import json
import warnings

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import ablations, chapters, published
from g2sf_lib.chapters.ablations import UNTRAINED, row_name, short_name
from g2sf_lib.chapters.neighbourhoods import fall, proximity
from g2sf_lib.chapters.orderings import COMPARED, claimed_pairs, counted_by
from g2sf_lib.config import ConfigError, make_config
from g2sf_lib.detector import query_banks
from g2sf_lib.experiments import counted_features, fitted
from g2sf_lib.fusion import local_metric
from g2sf_lib.quantities import PARTS, RULES
from g2sf_lib.stats import METRIC_NAMES
from g2sf_lib.training import CollapseWarning

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = chapters.ALL_LOSSES
METRICS = [*METRIC_NAMES, "aupro_30_published", "aupro_1_published"]


def made_up(values, categories=("foam", "gland", "rope"), seeds=(0, 1), key="variant"):
    """Return rows in which every metric of a variant is its value.

    Args:
        values: variant -> a number, or a function of (category number, seed).
    """
    rows = []
    for name, value in values.items():
        for number, category in enumerate(categories):
            for seed in seeds:
                found = value(number, seed) if callable(value) else value
                rows.append(
                    {key: name, "category": category, "seed": seed}
                    | dict.fromkeys(METRICS, found)
                    | {"w_std": 0.5, "best_epoch": 3 + seed, "sigma_pcd": 0.6}
                )
    return pd.DataFrame(rows)


def paper(values, metric="i_auroc"):
    """Return a table of the paper with some means."""
    return pd.DataFrame(
        [
            {"dataset": "mvtec3d", "metric": metric, "method": name, "category": "mean",
             "value": value, "note": ""}
            for name, value in values.items()
        ]
    )  # fmt: skip


# ---------------------------------------------------------------- the paper's orderings


def test_pairs_are_what_the_paper_prints_higher_first_and_ties_are_none():
    printed = paper({"a": 0.9, "b": 0.8, "c": 0.9})
    compared = [("a", "b"), ("b", "a"), ("a", "c"), ("b", "c"), ("a", "not there")]
    assert claimed_pairs(printed, "i_auroc", compared) == [("a", "b"), ("a", "b"), ("c", "b")]
    assert claimed_pairs(printed, "p_auroc", compared) == []


def test_the_orderings_of_the_papers_own_tables():
    tables = {name: published.read_table(name) for name in COMPARED}
    number = {
        name: [len(claimed_pairs(table, metric, COMPARED[name])) for metric in METRIC_NAMES]
        for name, table in tables.items()
    }
    # Table 4: L_mar and L_cma are ties in I-AUROC and P-AUROC, and it has no AUPRO@1 %;
    # Table 5: min and nearest are a tie in P-AUROC.
    assert number == {"table3": [6] * 4, "table4": [3, 3, 4, 0], "table5": [3, 2, 3, 3]}
    of_three = {m: claimed_pairs(tables["table3"], m, COMPARED["table3"]) for m in METRIC_NAMES}
    assert all(("fused", part) in pairs for pairs in of_three.values() for part in PARTS[:4])
    assert ("w_rgb", "s_rgb") in of_three["i_auroc"]
    assert ("s_rgb", "w_rgb") in of_three["p_auroc"]  # here the distance is printed higher
    assert ("mean", "min") in claimed_pairs(tables["table5"], "i_auroc", COMPARED["table5"])
    assert ("min", "mean") in claimed_pairs(tables["table5"], "aupro_1", COMPARED["table5"])


def test_an_ordering_holds_is_reversed_or_open():
    rows = made_up(
        {
            "a": lambda number, seed: 0.8 + 0.001 * number,
            "b": 0.7,
            "c": lambda number, seed: 0.7 + 0.3 * (number - 1),
        }
    )
    printed = paper({"a": 0.9, "b": 0.8, "c": 0.7})
    found = chapters.ordering_rows(rows, printed, [("a", "b"), ("b", "c")], "variant")
    assert list(found["verdict"]) == ["holds", "open"]
    first = found.iloc[0]
    assert (first["higher"], first["lower"]) == ("a", "b")
    assert first["difference"] == pytest.approx(0.101)  # 0.100, 0.101, 0.102
    assert first["se"] == pytest.approx(0.001 / 3**0.5)
    assert (first["wins"], first["num"]) == (6, 6)
    assert (first["printed_higher"], first["printed_lower"]) == (0.9, 0.8)
    assert found.iloc[1]["difference"] == pytest.approx(0, abs=1e-12)

    turned = paper({"a": 0.8, "b": 0.9, "c": 0.7})
    found = chapters.ordering_rows(rows, turned, [("a", "b"), ("b", "c")], "variant")
    assert list(found["verdict"]) == ["reversed", "open"]
    report = chapters.ordering_report(found, rows)
    assert "Of 2 orderings that the paper's table prints, 0 hold here, 1 are reversed" in report
    assert "*reversed*: b over a (−0.101 ± 0.001; 0 of 6; p" in report
    assert "*open*: b over c" in report and "not that they are equal" in report
    assert "3 categories and 2 training seeds" in report
    table = chapters.ordering_table(found)
    assert list(table["ordering"]) == ["b > a", "b > c"]
    assert list(table["paper"]) == ["0.900 > 0.800", "0.900 > 0.700"]
    assert table["difference here"].iloc[0] == "−0.101 ± 0.001"
    assert list(table["verdict"]) == ["reversed", "open"]


def test_an_ordering_of_aupro_is_by_the_papers_protocol_and_says_where_the_exact_one_differs():
    rows = made_up({"a": lambda n, seed: 0.8 + 0.001 * n, "b": 0.7})
    number = rows["category"].map({"foam": 0, "gland": 1, "rope": 2})
    rows["aupro_30"] = np.where(rows["variant"] == "a", 0.7, 0.8 + 0.001 * number)
    printed = paper({"a": 0.9, "b": 0.8}, "aupro_30")
    found = chapters.ordering_rows(rows, printed, [("a", "b")], "variant")
    assert found["difference"].iloc[0] == pytest.approx(0.101)
    assert (found["verdict"].iloc[0], found["exact"].iloc[0]) == ("holds", "reversed")
    assert "by every threshold 1 of its 1 verdicts is another" in chapters.ordering_report(
        found, rows
    )


def test_a_tie_is_shown_and_is_no_claim():
    rows = made_up({"a": 0.8, "b": 0.7})
    found = chapters.ordering_rows(rows, paper({"a": 0.9, "b": 0.9}), [("a", "b")], "variant")
    assert list(found["verdict"]) == ["tie"]
    line = chapters.ordering_table(found).iloc[0]
    assert (line["ordering"], line["paper"], line["verdict"]) == (
        "a = b",
        "0.900 = 0.900",
        "no claim",
    )
    assert "None of the orderings" in chapters.ordering_report(found, rows)


def test_rows_that_were_not_run_are_no_claim():
    rows = made_up({"a": 0.8, "c": 0.7})
    found = chapters.ordering_rows(rows, paper({"a": 0.9, "b": 0.8}), [("a", "b")], "variant")
    assert found.empty and chapters.ordering_table(found).empty
    assert "None of the orderings" in chapters.ordering_report(found, rows)


def test_one_category_and_one_seed_give_no_verdict():
    rows = made_up({"a": 0.8, "b": 0.7}, categories=("foam",), seeds=(0,))
    found = chapters.ordering_rows(rows, paper({"a": 0.9, "b": 0.8}), [("a", "b")], "variant")
    report = chapters.ordering_report(found, rows)
    assert "nothing can be said" in report and "1 of the 1 differences" in report
    line = chapters.ordering_table(found).iloc[0]
    assert (line["difference here"], line["p"], line["verdict"]) == ("+0.100", "–", "–")
    assert "nan" not in (report + chapters.ordering_table(found).to_string()).lower()


def test_what_a_verdict_rests_on():
    few = ("foam",)
    assert "3 categories and 2 training seeds" in counted_by(made_up({"a": 1.0}))
    assert "one training seed" in counted_by(made_up({"a": 1.0}, seeds=(0,)))
    assert "this category and its test scans alone" in counted_by(made_up({"a": 1.0}, few))
    assert "nothing can be said" in counted_by(made_up({"a": 1.0}, few, (0,)))


# ---------------------------------------------------------------- tables


def test_the_papers_row_stands_above_ours_with_a_dash_where_it_has_no_number():
    rows = made_up({"sep": lambda number, seed: 0.5 + 0.1 * seed, ALL: 0.9})
    table = chapters.mean_table(rows, "variant", paper({"sep": 0.868}))
    assert list(table.index) == ["sep", "sep", "all five losses"]
    assert list(table["source"]) == ["paper, MVTec 3D-AD", "this run", "this run"]
    # means 0.5 and 0.6 over categories, by seed: 0.55, and a deviation of 0.1 / sqrt(2)
    assert list(table["I-AUROC"]) == ["0.868", "0.550 ± 0.071", "0.900 ± 0.000"]
    exact = [name for name in table if name.endswith("exact")]
    assert len(exact) == 2 and (table[exact].iloc[0] == "–").all()
    assert len([name for name in table if name.endswith("published protocol")]) == 2


def test_the_papers_aupro_stands_beside_ours_by_its_protocol():
    rows = made_up({"min": 0.9}, key="quantity").assign(aupro_30=0.7)
    table = chapters.mean_table(rows, "quantity", paper({"min": 0.979}, "aupro_30"))
    assert list(table["AUPRO@30 %, published protocol"]) == ["0.979", "0.900 ± 0.000"]
    assert list(table["AUPRO@30 %, exact"]) == ["–", "0.700 ± 0.000"]


def test_a_column_a_category():
    rows = made_up({"a": lambda number, seed: 0.1 * number + 0.2 * seed, "b": 0.5})
    table = chapters.by_category_table(rows, "i_auroc", "variant")
    assert list(table.columns) == ["foam", "gland", "rope", "mean"]
    assert list(table.loc["a"]) == [
        "0.100 ± 0.141", "0.200 ± 0.141", "0.300 ± 0.141", "0.200 ± 0.141",
    ]  # fmt: skip
    one = chapters.by_category_table(rows[rows["seed"] == 0], "i_auroc", "variant")
    assert list(one.loc["a"]) == ["0.000", "0.100", "0.200", "0.100"]


def test_names_of_rows():
    assert row_name("sep+cns+sc+cma") == "all but mar"
    assert row_name("sep+cns+mar+sc") == "sep + cns + mar + sc"  # a step of the table
    assert row_name(ALL) == "all five losses"
    assert short_name("s_pcd") == "sᴾ" and short_name("min") == "min"


def test_trainings_that_collapsed_are_counted_and_named():
    rows = made_up({UNTRAINED.name: 0.5, "sep": 0.6, ALL: 0.7})
    is_flat = rows["variant"].eq("sep") & rows["category"].eq("rope")
    rows.loc[is_flat | rows["variant"].eq(UNTRAINED.name), "w_std"] = 0.001
    table = chapters.training_table(rows)
    assert list(table.index) == ["sep", "all five losses"]
    assert list(table["collapsed"]) == ["2 of 6", "0 of 6"]
    assert list(table["kept epoch, mean (range)"]) == ["3.5 (3–4)", "3.5 (3–4)"]
    report = chapters.training_collapse_report(rows)
    assert "- sep: rope (seeds 0, 1)" in report and "all five" not in report
    assert "none of the trainings" in chapters.training_collapse_report(rows[~is_flat])


# ---------------------------------------------------------------- gains


def test_losses_earn_their_place_or_cost():
    small = 0.0001
    rows = made_up(
        {
            ALL: lambda number, seed: 0.8 + small * number,
            "sep+mar+sc+cma": 0.7,  # consistency is missed
            "sep+cns+sc+cma": 0.9,  # the margin loss costs
            "sep+cns+mar+cma": lambda number, seed: 0.8 + 0.1 * (number - 1),
        }
    )
    pairs = chapters.left_out_pairs(rows)
    assert [what.split(",")[0] for what in pairs] == ["cns", "mar", "sc"]
    assert pairs["cns, when the other four are there"] == (ALL, "sep+mar+sc+cma")
    found = chapters.gain_rows(rows, pairs, "variant")
    verdicts = found[found["metric"] == "i_auroc"].set_index("what")["verdict"]
    assert dict(verdicts) == {
        "cns, when the other four are there": "better",
        "mar, when the other four are there": "worse",
        "sc, when the other four are there": "open",
    }
    assert chapters.gain_table(found).loc["cns, when the other four are there"].map(
        lambda text: text.startswith("+0.100 ± 0.000, better")
    ).all()  # fmt: skip
    report = chapters.gain_report(found, rows)
    assert "sc, when the other four are there: open in all 4 metrics" in report
    assert "cns, when the other four are there: better beyond chance in I-AUROC (+0.100)" in report
    place = chapters.place_report(found)
    assert "worse in none): cns." in place
    assert "better in none): mar." in place
    assert "is shown for: sc." in place


def test_a_loss_may_help_in_one_metric_and_cost_in_another():
    rows = made_up({ALL: lambda n, seed: 0.8 + 1e-4 * n, "sep+mar+sc+cma": 0.7})
    rows.loc[rows["variant"] == "sep+mar+sc+cma", "p_auroc"] = 0.9
    found = chapters.gain_rows(rows, chapters.left_out_pairs(rows), "variant")
    assert chapters.place_report(found) == "Better with it in one metric and worse in another: cns."


def test_gains_without_a_verdict_and_without_pairs():
    rows = made_up({ALL: 0.8, "sep+mar+sc+cma": 0.7}, ("foam",), (0,))
    found = chapters.gain_rows(rows, chapters.left_out_pairs(rows), "variant")
    assert (chapters.gain_table(found) == "+0.100").all(axis=None)
    assert "nothing can be said" in chapters.gain_report(found, rows)
    assert chapters.place_report(found) == ""
    none = chapters.gain_rows(rows, {}, "variant")
    assert none.empty and chapters.gain_table(none).empty
    assert "None of these pairs" in chapters.gain_report(none, rows)


def test_a_subset_of_ones_own_stands_beside_no_training_and_all_five():
    rows = made_up({UNTRAINED.name: 0.5, "sep+mar": 0.6, ALL: 0.7})
    pairs = chapters.training_pairs(rows)
    assert pairs["sep + mar over untrained"] == ("sep+mar", UNTRAINED.name)
    assert pairs["all five over sep + mar"] == (ALL, "sep+mar")
    assert "separation alone over untrained" not in pairs  # it was not run
    assert chapters.left_out_pairs(rows) == {}


def test_effects_are_those_of_the_library_and_every_point():
    rows = made_up({"a": lambda number, seed: 0.1 * number + 0.01 * seed, "b": 0.0})
    points, means = chapters.effect_rows(rows, "b", "variant")
    assert set(points["variant"]) == {"a"} == set(means["variant"])
    one = points[points["metric"] == "i_auroc"].set_index(["category", "seed"])["difference"]
    assert one["rope", 1] == pytest.approx(0.21) and len(one) == 6
    assert means[means["metric"] == "i_auroc"]["difference"].iloc[0] == pytest.approx(0.105)


# ---------------------------------------------------------------- why


def test_false_alarms_near_to_prototypes_by_hand():
    s = np.array([1.0, 2.0, 3.0, 4.0, 9.0])  # four normal cells, median 2.5, and an anomaly
    is_anomalous = np.array([False] * 4 + [True])
    row = proximity(s, np.array([5.0, 1.0, 1.0, 1.0, 2.0]), is_anomalous)
    assert row["near_w"] == 1.0  # the highest w is that of the nearest cell
    assert row["auroc_s"] == 1.0 and row["auroc_w"] == 0.75 and row["auroc_ws"] == 1.0
    assert row["near_ws"] == 1.0  # 5 * 1 is above 4 * 1
    row = proximity(s, np.array([1.5, 1.0, 1.0, 1.0, 2.0]), is_anomalous)
    assert (row["near_w"], row["near_ws"]) == (1.0, 0.0)


def test_how_far_a_minimum_falls_by_hand():
    ell = np.array([[4.0, 2.0, 3.0], [1.0, 2.0, 3.0], [10.0, 12.0, 5.0], [0.0, 1.0, 1.0]])
    is_anomalous = np.array([False, False, True, False])
    rows = fall(ell, is_anomalous)
    assert [row["J"] for row in rows] == [0, 1, 2]
    assert [row["first_normal"] for row in rows] == pytest.approx([2 / 3, 1 / 3, 0])
    assert [row["first_anomalous"] for row in rows] == [0, 0, 1]
    assert [row["fall_normal"] for row in rows] == pytest.approx([0, 1 / 6, 1 / 6])  # 0, 0, half
    assert [row["fall_highest"] for row in rows] == [0, 0.5, 0.5]  # the cell with 4
    assert [row["fall_anomalous"] for row in rows] == [0, 0, 0.5]


def test_a_minimum_over_more_neighbourhoods_never_rises():
    ell = np.random.default_rng(0).uniform(0.1, 5, (200, 11))
    rows = pd.DataFrame(fall(ell, np.arange(200) < 50))
    for side in ("normal", "anomalous", "highest"):
        assert (rows[f"fall_{side}"].diff().dropna() >= 0).all()
        assert rows[f"fall_{side}"].between(0, 1, inclusive="left").all()
    for side in ("normal", "anomalous"):
        assert rows[f"first_{side}"].sum() == pytest.approx(1)


def falls(normal, highest, anomalous):
    """Return rows of `neighbourhood_rows` with k = 1, in one category."""
    rows = [
        {"first_normal": 0.9 - 0.8 * j, "first_anomalous": 0.7 - 0.4 * j, "J": j,
         "category": "foam", "seed": 0, "fall_normal": j * normal, "fall_highest": j * highest,
         "fall_anomalous": j * anomalous}
        for j in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_sentence_about_neighbourhoods_goes_either_way():
    report = chapters.neighbourhood_report(falls(0.01, 0.5, 0.1), 1)
    assert "90.0% of normal and 70.0% of anomalous" in report
    assert "1.00% (normal cells) and 10.00% (anomalous ones)" in report
    assert "falls by 50.00% up to j = 1. The false alarms fall more" in report
    assert "anomalies fall more" in chapters.neighbourhood_report(falls(0.01, 0.05, 0.1), 1)
    assert "nothing to decide" in chapters.neighbourhood_report(falls(0, 0.0001, 0.0002), 1)
    table = chapters.neighbourhood_table(falls(0, 0, 0))
    assert list(table.columns) == ["j = 0", "j = 1"]
    assert list(table.loc["normal cells"]) == ["90.0%", "10.0%"]
    drawn = chapters.fall_curves(falls(0.01, 0.5, 0.1))
    assert list(drawn["their highest hundredth"]) == [0, 50]


# ---------------------------------------------------------------- a made-up run


@pytest.fixture
def run(small_config, made_run):
    """A config whose features are there; banks and detectors are made where they are missing."""
    return made_run(small_config, "gland")


def test_parts_of_the_score_and_the_metric_before_training(run):
    rows = chapters.part_rows(run, ["gland"], [0, 1])
    assert list(rows["quantity"].unique()) == [*PARTS, "untrained"]
    assert len(rows) == 2 * 6
    for part in ("s_pcd", "s_rgb"):  # distances know no seed
        assert rows[rows["quantity"] == part]["i_auroc"].nunique() == 1
    near = chapters.proximity_rows(run, ["gland"], [0])
    assert list(near["mod"]) == ["pcd", "rgb"]
    assert (
        near.drop(columns=["category", "seed", "mod"])
        .apply(lambda x: x.between(0, 1))
        .all(axis=None)
    )
    assert list(chapters.proximity_table(near).index) == ["points", "RGB"]
    assert chapters.proximity_report(near).count("\n- ") == 1


def test_untrained_is_the_sum_of_normalised_distances(run):
    changed = ablations.with_settings(run, UNTRAINED.settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        detector = fitted(changed)
    cells = chapters.judged_cells(changed, detector, "test")
    assert np.array_equal(cells.w, np.ones_like(cells.w))
    assert np.allclose(cells.learned, cells.plain)
    assert np.allclose(cells.plain, cells.s.sum(axis=1) / 2, rtol=1e-5)


def test_rows_of_losses_and_no_warning_of_collapse(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        rows = chapters.loss_rows(run, ["sep", "mar"], ["gland"], [0])
    assert list(rows["variant"]) == ["untrained", "sep+mar", ALL]
    with pytest.raises(ConfigError, match="losses is"):
        chapters.loss_rows(run, ["sep", "mare"], ["gland"], [0])
    with pytest.raises(ConfigError, match="categories is"):
        chapters.loss_rows(run, None, ["tyre"], [0])


def test_all_rows_of_table_4_are_asked_for_once():
    names = [v.name for v in ablations.loss_variants(None, make_config("smoke"))]
    assert len(set(names)) == len(names) == 8
    for pair in COMPARED["table4"]:
        assert set(pair) <= set(names)


def test_rules_and_the_curve_over_j(run):
    k = run.model.k
    rows = chapters.rule_rows(run, ["gland"], [0])
    rules = chapters.rules_only(rows)
    assert list(rules["quantity"]) == list(RULES)
    curve = chapters.curve_rows(rows).set_index("J")
    assert list(curve.index) == list(range(2 * k + 1))
    by_rule = rules.set_index("quantity")
    for metric in METRIC_NAMES:
        assert curve.loc[0, metric] == by_rule.loc["nearest", metric]
        assert curve.loc[k, metric] == by_rule.loc["min", metric]


def test_neighbourhoods_are_those_of_the_counted_test_cells(run):
    loss = dataclasses.replace(run.loss, beta=0.0, gamma=0.0, mu=0.0)
    training = dataclasses.replace(run.training, learning_rate=0.02, epochs=20)
    run = dataclasses.replace(run, loss=loss, training=training)  # w differs, so J matters
    rows = chapters.neighbourhood_rows(run, ["gland"], [0])

    detector = fitted(run)
    feat, is_anomalous = counted_features(run, "test")
    feat = detector.standardiser(feat)
    index, s = query_banks(detector.banks, feat, 2 * run.model.k + 1)
    ell = local_metric(
        detector.metric.scale_factors(feat, detector.prototypes(), index, s),
        s / detector.metric.s_mean,
        detector.metric.sigma(),
    )
    expected = pd.DataFrame(fall(ell.detach().numpy(), is_anomalous.numpy()))
    assert expected["first_normal"].iloc[0] < 1 and expected["fall_normal"].iloc[-1] > 0
    found = rows.drop(columns=["category", "seed"])
    assert list(found) == list(expected)
    assert np.allclose(found, expected, atol=1e-5)


def test_the_summary_says_what_it_is_of(run, tmp_path, monkeypatch):
    rows = chapters.rule_rows(run, ["gland"], [0])
    summary = ablations.summary(run, rows, "min", "quantity")
    text = chapters.ablation_scope(summary)
    assert text.startswith("1 category (gland), training seeds 0")
    assert "One training seed" in text and "orderings can" in text
    assert "same data set" in chapters.ablation_scope(summary | {"dataset": "mvtec3d"})
    monkeypatch.chdir(tmp_path)
    path = ablations.write_summary(summary, run, "table5")
    assert json.loads((tmp_path / path).read_text())["reference"] == "min"
