"""Tables and sentences say what a summary holds, for every selection of methods."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import reports
from g2sf_lib.benchmark import METHODS, SEEDED, Scores
from g2sf_lib.config import make_config
from g2sf_lib.results import LIMITS, METHOD_NAMES, METRIC_NAMES, summary_file, write_summary

ROOT = Path(__file__).parents[1]
AREAS = {"g2sf": 0.90, "w1": 0.80, "rgb": 0.85, "max": 0.88}
STEPS = {"features": 30.0, "neighbours": 8.0, "fusion": 1.0, "post-processing": 1.0}


def metrics_of(area):
    row = {"i_auroc": area, "p_auroc": area + 0.05, "i_auroc_cut": area}
    row |= {f"aupro_{at}": area - (30 - at) / 100 for at in LIMITS}
    row |= {f"aupro_{at}_published": area - (30 - at) / 50 for at in LIMITS}
    return row


def row_of(method, area, seeds):
    row = metrics_of(area)
    spread = 0.0 if method not in SEEDED else (0.03 if len(seeds) > 1 else None)
    row |= {f"{name}_seed_std": spread for name in list(row)}
    return row | {"i_auroc_se": 0.02, "aupro_30_se": 0.01, "aupro_1_se": 0.01}


def made(areas=None, gaps=None, seeds=(0, 1, 2), categories=("foam", "rope")):
    """A summary as `results.summarise` writes it.

    areas: method -> I-AUROC; gaps: method -> (G2SF minus it, error, p), in every metric.
    """
    areas = AREAS if areas is None else areas
    gaps = {} if gaps is None else gaps
    differences = [
        {"metric": metric, "category": category, "method": m, "difference": d, "se": se, "p": p,
         "is_real": p < 0.05}
        for metric in ("i_auroc", "aupro_30", "aupro_1")
        for category in (*categories, "mean")
        for m, (d, se, p) in ((m, gaps.get(m, (0.05, 0.01, 0.001))) for m in areas if m != "g2sf")
        if "g2sf" in areas
    ]  # fmt: skip
    names = list(areas)
    pairs = [
        {"first": a, "second": b, "difference": round(areas[a] - areas[b], 4), "se": 0.02,
         "p": 0.01, "is_real": a == "g2sf"}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]  # fmt: skip
    return {
        "profile": "demo",
        "dataset": "procedural",
        "categories": list(categories),
        "seeds": list(seeds),
        "silhouette": "exclude",
        "methods": [{"method": m} | row_of(m, a, seeds) for m, a in areas.items()],
        "per_category": [
            {"category": c, "method": m} | row_of(m, a + 0.01 * n, seeds)
            for n, c in enumerate(categories)
            for m, a in areas.items()
        ],
        "defects": [
            {"defect": "cut", "method": m, "i_auroc": a, "se": 0.01} for m, a in areas.items()
        ],
        "groups": [
            {"group": "both", "method": m, "i_auroc": a, "se": 0.01} for m, a in areas.items()
        ],
        "differences": differences,
        "pairs": pairs,
        "frame_rates": [],
        "machine": None,
    }


# ---------------------------------------------------------------- tables


def test_the_headline_has_four_metrics_and_both_errors():
    table = reports.headline_table(made())
    assert list(table.index) == [METHOD_NAMES[m] for m in AREAS]
    assert set(table.columns) == {*METRIC_NAMES.values(), "over seeds"}
    row = table.loc["G²SF"]
    assert row["I-AUROC"] == "0.900 ± 0.020" and row["over seeds"] == "0.030"
    assert (row["P-AUROC"], row["AUPRO@30 %"], row["AUPRO@1 %"]) == ("0.950", "0.900", "0.610")
    assert table.loc["RGB alone", "over seeds"] == "–"
    assert (reports.headline_table(made(seeds=(0,)))["over seeds"] == "–").all()


@pytest.mark.parametrize(
    ("metric", "shown", "plain"),
    [
        ("i_auroc", ["0.900 ± 0.030", "0.910 ± 0.030", "0.900 ± 0.030"], "0.850"),
        ("aupro_5_published", ["0.400 ± 0.030", "0.410 ± 0.030", "0.400 ± 0.030"], "0.350"),
    ],
)
def test_table_1_has_a_column_a_category_and_the_mean(metric, shown, plain):
    table = reports.metric_table(made(), metric)
    assert list(table.columns) == ["foam", "rope", "mean"]
    assert table.loc["G²SF"].tolist() == shown
    assert table.loc["RGB alone", "foam"] == plain


def test_table_1_of_one_seed_has_no_spread():
    table = reports.metric_table(made(seeds=(7,)), "i_auroc")
    assert not table.map(lambda cell: "±" in cell).any(axis=None)


def test_table_2_has_both_protocols():
    exact, published = (reports.means_table(made(), p) for p in ("every", "published"))
    assert list(exact.columns) == list(published.columns) and len(exact.columns) == 2 + len(LIMITS)
    assert exact.loc["G²SF"].tolist() == ["0.900", "0.950", "0.900", "0.700", "0.650", "0.610"]
    assert published.loc["G²SF"].tolist()[2:] == ["0.900", "0.500", "0.400", "0.320"]


def test_protocols_by_hand():
    """Published is 0.58 below at 1 %, where exact is 0.29 below, whatever the method."""
    summary = made({"g2sf": 0.9, "rgb": 0.8, "pcd": 0.7})
    rows = reports.protocol_rows(summary).set_index(["method", "limit"])
    assert len(rows) == 3 * len(LIMITS)
    assert rows.loc[("G²SF", 0.01), "every"] == pytest.approx(0.61)
    assert rows.loc[("G²SF", 0.01), "published"] == pytest.approx(0.32)
    lines = reports.protocol_report(summary).splitlines()
    assert "up to 30% false positives: published minus exact +0.000 to +0.000; 0 of 3" in lines[0]
    assert "up to 1% false positives: published minus exact -0.290 to -0.290; 0 of 3" in lines[-1]
    summary["methods"][0]["aupro_1_published"] = 0.15  # from the first place to the second
    last = reports.protocol_report(summary).splitlines()[-1]
    assert "-0.460 to -0.290; 2 of 3 methods change their place" in last


def test_differences_as_text_rows_and_matrix():
    summary = made(gaps={"max": (-0.02, 0.03, 0.5)})
    table = reports.difference_table(summary)
    assert list(table.columns) == ["foam", "rope", "mean"]
    assert table.loc["RGB alone", "mean"] == "+0.050 ± 0.010*"
    assert table.loc["calibrated maximum", "rope"] == "-0.020 ± 0.030"
    rows = reports.difference_rows(summary)
    assert len(rows) == 3 * 3 and set(rows["metric"]) == {"I-AUROC", "AUPRO@30 %", "AUPRO@1 %"}
    assert set(rows["method"]) == {METHOD_NAMES[m] for m in AREAS if m != "g2sf"}
    size, is_real = reports.pair_matrices(summary)
    assert size.loc["G²SF", "RGB alone"] == 0.05 == -size.loc["RGB alone", "G²SF"]
    assert (size.values == -size.values.T).all() and (is_real.values == is_real.values.T).all()
    assert is_real.loc["RGB alone", "G²SF"] and not is_real.loc["RGB alone", "calibrated maximum"]


def test_long_rows_have_a_spread_only_where_there_are_seeds():
    rows = reports.ours_rows(made()).set_index(["method", "category", "metric"])
    assert rows.loc[("g2sf", "rope", "i_auroc")].tolist() == pytest.approx([0.91, 0.03])
    assert rows.loc[("rgb", "mean", "aupro_1_published"), "value"] == pytest.approx(0.27)
    assert np.isnan(rows.loc[("rgb", "mean", "aupro_1_published"), "spread"])
    assert reports.ours_rows(made(seeds=(0,)))["spread"].isna().all()


def test_rows_for_figures_have_names():
    by_category, by_defect = reports.summary_tables(made())
    assert {"category", "method", "I-AUROC", "SE"} <= set(by_category)
    assert by_defect.to_dict("records")[0] == {
        "defect": "cut", "method": "G²SF", "I-AUROC": 0.9, "SE": 0.01,
    }  # fmt: skip
    groups = reports.group_rows(made())
    assert groups.iloc[2].to_dict() == {
        "defect": "both", "method": "RGB alone", "I-AUROC": 0.85, "SE": 0.01,
    }  # fmt: skip


def timed_summary():
    summary = made()
    for method, scale in (("g2sf", 2.0), ("rgb", 1.0)):
        steps = STEPS | {"features": STEPS["features"] * scale}
        steps["total"] = sum(steps.values())
        for step, ms in steps.items():
            row = {"method": method, "step": step, "ms": ms, "low": ms, "high": ms}
            fps = 1000 / ms if step == "total" else None
            summary["frame_rates"].append(row | {"fps": fps})
    summary["machine"] = {"device": "a laptop", "threads": 2}
    return summary


def test_frame_rates_say_the_share_of_features_and_the_machine():
    text = reports.rate_report(timed_summary())
    assert "between 75% (RGB alone) and 86% (G²SF)" in text
    assert "device a laptop, threads 2" in text
    assert set(reports.rate_rows(timed_summary())["method"]) == {"G²SF", "RGB alone"}


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ((0.02, 0.01, 0.0312), "G²SF is better than calibrated maximum (difference in mean I-AUROC "
                               "+0.020 ± 0.010, p = 0.031)."),
        ((-0.02, 0.005, 0.0), "G²SF is worse than calibrated maximum (difference in mean I-AUROC "
                              "-0.020 ± 0.005, p < 0.0001)."),
        ((0.02, 0.02, 0.3), "G²SF and calibrated maximum cannot be told apart (difference in mean "
                            "I-AUROC +0.020 ± 0.020, p = 0.3)."),
        ((0.0, 0.0, 1.0), "G²SF and calibrated maximum cannot be told apart (difference in mean "
                          "I-AUROC +0.000 ± 0.000, p = 1)."),
    ],
)  # fmt: skip
def test_the_verdict_follows_the_numbers(gap, words):
    text = reports.verdict(made(gaps={"max": gap}))
    assert text.startswith(words)
    assert text[len(words) :].startswith(" G²SF is better than G²SF with w = 1 (")
    assert "training seed" not in text


def test_the_verdict_is_against_the_best_of_the_others():
    """w = 1 and other pastes are forms of ours: never the best of the others."""
    areas = {"g2sf": 0.7, "w1": 0.99, "other_pastes": 0.98, "rgb": 0.95, "max": 0.9}
    assert "better than RGB alone" in reports.verdict(made(areas))
    without = reports.verdict(made({m: areas[m] for m in ("g2sf", "rgb")}))
    assert "w = 1" not in without and without.count("G²SF is better") == 1
    only = reports.verdict(made({m: areas[m] for m in ("g2sf", "w1")}))
    assert only.startswith("G²SF is better than G²SF with w = 1 (")


def test_the_verdict_without_anything_to_compare():
    assert reports.verdict(made({"rgb": 0.9, "max": 0.8})) == (
        "G²SF is not among the methods of this run."
    )
    alone = made({"g2sf": 0.9})
    assert reports.verdict(alone) == "G²SF is the only method of this run."
    assert reports.real_differences(alone) == reports.verdict(alone)


def test_one_seed_is_said_to_know_nothing_of_other_trainings():
    assert "With one training seed" in reports.verdict(made(seeds=(3,)))


def test_whom_it_beats_metric_by_metric():
    gaps = {"rgb": (-0.1, 0.01, 0.0), "max": (0.01, 0.01, 0.4)}
    lines = reports.real_differences(made(gaps=gaps)).splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "- I-AUROC: G²SF is better than G²SF with w = 1; worse than RGB alone; "
        "level with calibrated maximum"
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["- AUPRO@30 %", "- AUPRO@1 %"]
    assert "level" not in reports.real_differences(made({"g2sf": 0.9, "rgb": 0.8}))


def test_by_kind_compares_with_the_start_and_the_best():
    areas = {"g2sf": 0.7, "w1": 0.99, "other_pastes": 0.99, "rgb": 0.9, "pcd": 0.5, "sum": 0.6}
    text = reports.by_kind(made(areas))
    assert text == "- cut: 0.700; +0.100 to the normalised sum, -0.200 to the best, RGB alone"
    assert reports.by_kind(made()) == "Needs G²SF and the normalised sum."


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ((-0.02, 0.005, 0.0), "is higher (+0.020 ± 0.005, p < 0.0001)"),
        ((0.02, 0.005, 0.01), "is lower (-0.020 ± 0.005, p = 0.01)"),
        ((0.02, 0.02, 0.3), "cannot be told apart (-0.020 ± 0.020, p = 0.3)"),
    ],
)
def test_what_one_sided_pastes_change(gap, words):
    """The difference of the summary is G2SF minus the variant; the sentence turns it round."""
    first, second, *rest = reports.paste_report(
        made({"g2sf": 0.9, "other_pastes": 0.95}, {"other_pastes": gap})
    ).splitlines()
    assert first == f"- all defects: with the other pastes mean I-AUROC {words}"
    assert bool(rest) == ("told apart" in words)  # then the cause is not shown, and it says so
    assert second == ("- both: 0.900 ± 0.010 with the run's pastes, 0.950 ± 0.010 with the others")


@pytest.mark.parametrize("methods", [("g2sf", "rgb"), ("other_pastes", "rgb")])
def test_pastes_are_compared_only_where_both_kinds_are_there(methods):
    assert "Needs" in reports.paste_report(made(dict.fromkeys(methods, 0.9)))


def test_the_scope_is_a_sentence():
    assert reports.scope(made()) == (
        "Profile demo, data set procedural, 2 categories (foam, rope), 3 training seeds, "
        "silhouette cells: exclude."
    )
    assert "1 category (foam), 1 training seed," in reports.scope(
        made(seeds=(0,), categories=("foam",))
    )


# ---------------------------------------------------------------- the README


def test_markdown_is_a_table_and_the_verdict():
    scope, empty, *lines = reports.markdown(made()).splitlines()
    assert scope == reports.scope(made()) and empty == ""
    assert lines[0] == "| method | I-AUROC | over seeds | P-AUROC | AUPRO@30 % | AUPRO@1 % |"
    assert lines[1] == "|---|---|---|---|---|---|"
    assert lines[2] == "| G²SF | 0.900 ± 0.020 | 0.030 | 0.950 | 0.900 | 0.610 |"
    assert len(lines) == 2 + len(AREAS) + 2 and lines[-2] == ""
    assert lines[-1] == reports.verdict(made())


def test_fill_readme_changes_only_what_is_between_its_marks():
    begin, end = reports.BEGIN, reports.END
    text = f"# Title\n\nbefore\n\n{begin}\nold | table\n{end}\n\nafter\n"
    filled = reports.fill_readme(text, made())
    assert filled.startswith(f"# Title\n\nbefore\n\n{begin}\n{reports.scope(made())}\n")
    assert filled.endswith(f"\n{end}\n\nafter\n") and "old" not in filled
    assert reports.fill_readme(filled, made()) == filled
    other = made(gaps={"max": (-0.1, 0.01, 0.0)})
    assert reports.fill_readme(filled, other) != filled


def test_the_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config, summary = make_config("smoke"), made()
    write_summary(summary, config)
    reports.main(["headline", "--profile", "smoke"])
    printed = capsys.readouterr().out
    assert "calibrated maximum" in printed and reports.verdict(summary) in printed
    Path("README.md").write_text(f"x\n{reports.BEGIN}\n{reports.END}\ny\n")
    reports.main(["readme", "--profile", "smoke"])
    assert reports.markdown(summary) in Path("README.md").read_text()
    real = make_config("paper", dataset="mvtec3d", data_root=str(tmp_path), category="bagel")
    summary_file(real).write_text(json.dumps(made({"rgb": 0.5})))
    place = ["--profile", "paper", "--dataset", "mvtec3d", "--data-root", str(tmp_path)]
    reports.main(["headline", *place])
    assert "RGB alone" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        reports.main(["footnote"])
    assert "headline" in capsys.readouterr().err


def test_the_readme_is_in_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_summary(made(), make_config("smoke"))
    text = f"G²SF\n{reports.BEGIN}\n{reports.END}\n"
    Path("README.md").write_text(text, encoding="utf-8")
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "g2sf_lib.reports", "readme", "--profile", "smoke"]
    subprocess.run(call, env={**os.environ, **plain}, check=True)
    assert Path("README.md").read_text(encoding="utf-8") == reports.fill_readme(text, made())


def test_the_readme_shows_the_committed_results():
    summary = json.loads((ROOT / "data" / "results" / "demo.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert reports.fill_readme(readme, summary) == readme
    for row in summary["methods"]:
        assert f"| {METHOD_NAMES[row['method']]} | {row['i_auroc']:.3f} ± " in readme


# ------------------------------------------------ tables of one category, as chapters show them


def made_table():
    rows = []
    for method in reversed(METHODS):
        for seed in (0, 1) if method in SEEDED else (0,):
            for rule, area in (("exclude", 0.9), ("count", 0.7)):
                row = {"category": "foam", "method": method, "seed": seed, "silhouette": rule}
                row |= {"i_auroc": area - 0.1 * seed, "i_auroc_se": 0.04}
                pixel = {"p_auroc": 0.95, "aupro_1_published": 0.2}
                pixel |= {f"aupro_{at}": at / 100 for at in (30, 10, 5, 1)}
                rows.append(row | (pixel if rule == "exclude" else dict.fromkeys(pixel)))
    return pd.DataFrame(rows)


def test_the_category_table_is_a_mean_over_seeds_of_one_rule():
    table = reports.category_table(made_table(), "exclude")
    assert list(table.index) == list(METHOD_NAMES.values())
    assert table.loc["G²SF", "I-AUROC ± SE"] == "0.850 ± 0.040"
    assert table.loc["RGB alone", "I-AUROC ± SE"] == "0.900 ± 0.040"
    assert table.loc["RGB alone", "AUPRO@1 %"] == "0.010"
    assert table.loc["RGB alone", "AUPRO@1 %, published protocol"] == "0.200"


def test_the_silhouette_table_shows_both_rules():
    table = reports.silhouette_table(made_table())
    assert list(table.index) == list(METHOD_NAMES.values())
    assert table.loc["G²SF"].to_dict() == {
        "I-AUROC, silhouette cells: count": 0.65, "I-AUROC, silhouette cells: exclude": 0.85,
    }  # fmt: skip


def test_the_defect_table_takes_every_kind_against_all_good_scans():
    labels = ["good"] * 4 + ["cut"] * 2 + ["stain"] * 2
    image = {}
    for method in ("g2sf", "rgb"):
        for rule in ("exclude", "count"):
            image[method, 0, rule] = np.array([0.0, 1, 2, 3, 9, 9, 1.5, -1])
    image["g2sf", 1, "exclude"] = np.array([0.0, 1, 2, 3, -9, 9, 1.5, -1])
    scores = Scores([""] * 8, labels, np.zeros((8, 1, 1), bool), {}, image)
    table = reports.defect_table(scores, "exclude").set_index(["method", "defect"])
    assert len(table) == 2 * 2
    assert table.loc[("RGB alone", "cut"), "I-AUROC"] == 1
    assert table.loc[("RGB alone", "cut"), "SE"] == 0
    assert table.loc[("RGB alone", "stain"), "I-AUROC"] == pytest.approx((0.5 + 0) / 2)
    assert table.loc[("G²SF", "cut"), "I-AUROC"] == pytest.approx((1 + 0.5) / 2)
    assert table.loc[("G²SF", "cut"), "SE"] > 0.05


def test_nothing_changes_the_summary():
    summary = timed_summary()
    before = copy.deepcopy(summary)
    for report in (
        reports.headline_table, reports.means_table, reports.protocol_report, reports.verdict,
        reports.real_differences, reports.difference_rows, reports.pair_matrices,
        reports.ours_rows, reports.rate_rows, reports.group_rows, reports.by_kind, reports.scope,
        reports.difference_table, reports.summary_tables, reports.markdown,
    ):  # fmt: skip
        report(summary)
    assert summary == before
