"""From records to tables: by hand on made-up records, and the README against the committed file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import results
from g2sf_lib.config import make_config
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.experiments import METHODS, PACKAGES, Scores, done_file
from g2sf_lib.results import (
    BEGIN,
    END,
    METHOD_NAMES,
    METRIC_NAMES,
    by_kind,
    fill_readme,
    headline_table,
    markdown,
    metrics_table,
    read_records,
    summarise,
    summary_file,
    verdict,
    write_summary,
)
from g2sf_lib.storage import write_json

ROOT = Path(__file__).parents[1]
CATEGORIES = ("foam", "rope")
LABELS = ["good"] * 10 + ["cut"] * 5 + ["stain"] * 5


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_config("smoke", runs_root=str(tmp_path / "runs"))


def record(category, lift):
    """Made-up scores in which a method's defective scans stand `lift[method]` above good ones."""
    rng = np.random.default_rng(len(category) + ord(category[0]))
    labels = np.array([label != "good" for label in LABELS])
    rows, metrics = [], []
    for method in METHODS:
        for seed in (0, 1) if method in ("g2sf", "w1") else (0,):
            for silhouette in ("exclude", "count"):
                scores = rng.normal(size=20) + labels * lift[method]
                rows.append(
                    {"method": method, "seed": seed, "silhouette": silhouette,
                     "scores": scores.tolist()}
                )  # fmt: skip
                row = {"category": category, "method": method, "seed": seed}
                row |= {"silhouette": silhouette, "i_auroc": image_auroc(scores, labels)}
                row["i_auroc_se"] = 0.05
                row["i_auroc_cut"] = image_auroc(scores[:15], labels[:15])
                row["i_auroc_stain"] = image_auroc(np.delete(scores, np.s_[10:15]), labels[5:])
                pixel = {"p_auroc": 0.9 + 0.01 * seed, "aupro_30": 0.8, "aupro_1": 0.3}
                if silhouette == "count":
                    pixel = dict.fromkeys(pixel)
                metrics.append(row | pixel)
    return {"seeds": [0, 1], "labels": LABELS, "image_scores": rows, "metrics": metrics}


LIFT = {"g2sf": 2.5, "w1": 1.0, "rgb": 0.8, "pcd": 0.5, "sum": 1.2, "max": 1.5, "concat": 1.0}


@pytest.fixture
def records(config):
    for category in CATEGORIES:
        place = dataclasses.replace(config, category=category)
        packages = dict.fromkeys(PACKAGES, "1.0")
        result = record(category, LIFT)
        scored = {"result": result, "packages": packages}
        scored["config_hash"] = place.stage_hash("scores")
        write_json(done_file(place, "scores"), scored)
    return read_records(config, CATEGORIES)


def test_a_category_scored_with_other_settings_is_named(config, records):
    other = dataclasses.replace(
        config, scoring=dataclasses.replace(config.scoring, aggregate="mean")
    )
    with pytest.raises(ValueError, match=r"foam.scores\.json: scored with other settings"):
        read_records(other, CATEGORIES)


def test_a_category_without_scores_is_named(config, records):
    with pytest.raises(FileNotFoundError, match="04_anomaly_scoring with category gland"):
        read_records(config, [*CATEGORIES, "gland"])


def test_the_table_has_a_row_for_each_method_seed_and_rule(records):
    table = metrics_table(records)
    assert len(table) == 2 * 2 * 9 and set(table["category"]) == set(CATEGORIES)


def exact(records, method, category, column, silhouette="exclude"):
    """The mean over seeds, read off the record without pandas."""
    rows = [
        row[column]
        for row in records[category]["metrics"]
        if row["method"] == method and row["silhouette"] == silhouette
    ]
    return sum(rows) / len(rows)


def test_means_are_over_seeds_then_categories(config, records):
    summary = summarise(config, CATEGORIES)
    assert [row["method"] for row in summary["methods"]] == list(METHODS)
    for row in summary["methods"]:
        for column in ("i_auroc", "p_auroc", "aupro_30", "aupro_1", "i_auroc_cut"):
            expected = np.mean([exact(records, row["method"], c, column) for c in CATEGORIES])
            assert row[column] == pytest.approx(expected, abs=6e-5), (row["method"], column)
    for row in summary["per_category"]:
        expected = exact(records, row["method"], row["category"], "i_auroc")
        assert row["i_auroc"] == pytest.approx(expected, abs=6e-5)
        assert 0 < row["se"] < 0.2
    assert len(summary["per_category"]) == 2 * len(METHODS)


def test_the_seed_deviation_by_hand(config, records):
    summary = summarise(config, CATEGORIES)
    rows = {row["method"]: row for row in summary["methods"]}
    means = [
        np.mean(
            [
                next(
                    row["i_auroc"]
                    for row in records[category]["metrics"]
                    if (row["method"], row["seed"], row["silhouette"]) == ("g2sf", seed, "exclude")
                )
                for category in CATEGORIES
            ]
        )
        for seed in (0, 1)
    ]
    expected = abs(means[0] - means[1]) / 2**0.5
    assert rows["g2sf"]["i_auroc_seed_std"] == pytest.approx(expected, abs=6e-5)
    assert rows["max"]["i_auroc_seed_std"] == 0  # it has no seed


def test_defects_and_silhouettes(config, records):
    summary = summarise(config, CATEGORIES)
    assert {row["defect"] for row in summary["defects"]} == {"cut", "stain"}
    for row in summary["defects"]:
        values = [exact(records, row["method"], c, f"i_auroc_{row['defect']}") for c in CATEGORIES]
        assert row["i_auroc"] == pytest.approx(np.mean(values), abs=6e-5)
        assert row["se"] == pytest.approx(np.std(values, ddof=1) / 2**0.5, abs=6e-5)
    for row in summary["silhouettes"]:
        for rule in ("exclude", "count"):
            values = [exact(records, row["method"], c, "i_auroc", rule) for c in CATEGORIES]
            assert row[rule] == pytest.approx(np.mean(values), abs=6e-5)


def test_differences_are_paired(config, records):
    summary = summarise(config, CATEGORIES)
    means = {row["method"]: row["i_auroc"] for row in summary["methods"]}
    found = {(d["category"], d["method"]): d for d in summary["differences"]}
    assert len(found) == 3 * (len(METHODS) - 1)
    for method in METHODS[1:]:
        gap = found["mean", method]
        assert gap["difference"] == pytest.approx(means["g2sf"] - means[method], abs=2e-4)
        each = [found[c, method]["difference"] for c in CATEGORIES]
        assert gap["difference"] == pytest.approx(np.mean(each), abs=2e-4)
        assert 0 < gap["se"] < 0.15


def test_a_method_does_not_differ_from_itself(config, records):
    """Same scores, same resamples: the paired standard error is exactly zero."""
    for category in CATEGORIES:
        path = done_file(dataclasses.replace(config, category=category), "scores")
        content = json.loads(path.read_text())
        rows = content["result"]["image_scores"]
        ours = {(r["seed"], r["silhouette"]): r["scores"] for r in rows if r["method"] == "g2sf"}
        for row in rows:
            if row["method"] == "w1":
                row["scores"] = ours[row["seed"], row["silhouette"]]
        write_json(path, content)
    gaps = [d["se"] for d in summarise(config, CATEGORIES)["differences"] if d["method"] == "w1"]
    assert gaps == [0.0, 0.0, 0.0]


def test_the_summary_is_written_where_it_belongs(config, records):
    summary = write_summary(config, CATEGORIES)
    assert summary_file(config) == Path("data/results/smoke.json")
    assert json.loads(summary_file(config).read_text()) == summary
    assert summary["seeds"] == [0, 1] and summary["packages"] == dict.fromkeys(PACKAGES, "1.0")
    real = make_config("paper", dataset="mvtec3d", data_root="/data")
    assert summary_file(real) == Path("data/results/mvtec3d_paper.json")


def test_every_method_and_metric_has_a_name(config, records):
    assert METHOD_NAMES.keys() == set(METHODS)
    table = headline_table(summarise(config, CATEGORIES))
    assert list(table.index) == [METHOD_NAMES[method] for method in METHODS]
    assert list(table.columns) == list(METRIC_NAMES.values())
    assert all(" ± " in cell for cell in table["I-AUROC"])


def summary_with(gap, se, w1_gap=0.2, best=0.9):
    methods = [{"method": m, "i_auroc": 0.6, "i_auroc_se": 0.02} for m in METHODS]
    for row in methods:
        row |= {"p_auroc": 0.97123, "aupro_30": 0.8, "aupro_1": 0.3}
        if row["method"] == "max":
            row["i_auroc"] = best
    differences = [
        {"category": c, "method": m, "difference": gap if m == "max" else w1_gap, "se": se}
        for m in METHODS[1:]
        for c in ("foam", "mean")
    ]
    return {"methods": methods, "differences": differences}


@pytest.mark.parametrize(
    ("gap", "word"),
    [
        (0.05, "G²SF is better than calibrated maximum, by more than two"),
        (-0.05, "G²SF is worse than calibrated maximum, by more than two"),
        (0.03, "G²SF and calibrated maximum differ by less than two"),
        (-0.03, "G²SF and calibrated maximum differ by less than two"),
    ],
)
def test_the_verdict_follows_the_numbers(gap, word):
    text = verdict(summary_with(gap, 0.02))
    first, second = text.split(". ")
    assert first.startswith(word)
    assert f"{gap:+.3f} ± 0.020" in first
    assert second.startswith("G²SF is better than G²SF with w = 1")


def test_the_verdict_names_the_best_of_the_others():
    summary = summary_with(0.1, 0.01)
    summary["methods"][METHODS.index("concat")]["i_auroc"] = 0.95
    assert "concatenated bank" in verdict(summary)
    # w = 1 is a form of ours: it is compared with, but it is not "the best of the others"
    summary["methods"][METHODS.index("w1")]["i_auroc"] = 0.99
    assert "concatenated bank" in verdict(summary)


def test_by_kind_compares_with_the_start_and_the_best():
    areas = {"g2sf": 0.7, "w1": 0.99, "rgb": 0.9, "pcd": 0.5, "sum": 0.6, "max": 0.8, "concat": 0.7}
    rows = [{"defect": "stain", "method": m, "i_auroc": a, "se": 0.0} for m, a in areas.items()]
    text = by_kind({"defects": rows})
    assert text == "- stain: 0.700; +0.100 to the normalised sum, -0.200 to the best, RGB alone"


def test_markdown_is_a_table_of_seven_methods():
    lines = markdown(summary_with(0.1, 0.01)).splitlines()
    assert lines[0].startswith("| method | I-AUROC |") and lines[1] == "|---|---|---|---|---|"
    assert lines[2] == "| G²SF | 0.600 ± 0.020 | 0.971 | 0.800 | 0.300 |"
    assert len(lines) == 2 + 7 + 2 and lines[9] == ""


def test_fill_readme_changes_only_what_is_between_its_marks():
    text = f"# Title\n\nbefore\n\n{BEGIN}\nold | table\n{END}\n\nafter\n"
    filled = fill_readme(text, summary_with(0.1, 0.01))
    assert filled.startswith(f"# Title\n\nbefore\n\n{BEGIN}\n| method |")
    assert filled.endswith(f"\n{END}\n\nafter\n") and "old" not in filled
    assert fill_readme(filled, summary_with(0.1, 0.01)) == filled
    assert fill_readme(filled, summary_with(-0.1, 0.01)) != filled


def test_the_command_prints_and_writes(config, records, capsys):
    write_summary(config, CATEGORIES)
    results.main(["headline", "--profile", "smoke"])
    printed = capsys.readouterr().out
    assert "calibrated maximum" in printed and "I-AUROC" in printed and "G²SF is" in printed
    Path("README.md").write_text(f"x\n{BEGIN}\n{END}\ny\n")
    results.main(["readme", "--profile", "smoke"])
    summary = json.loads(summary_file(config).read_text())
    assert markdown(summary) in Path("README.md").read_text()


def test_the_readme_shows_the_committed_results():
    summary = json.loads((ROOT / "data" / "results" / "demo.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert fill_readme(readme, summary) == readme
    for row in summary["methods"]:
        assert f"| {METHOD_NAMES[row['method']]} | {row['i_auroc']:.3f} ± " in readme


# ------------------------------------------------ tables of one category, as chapters show them


def made_table():
    rows = []
    for method in METHODS:
        for seed in (0, 1) if method in ("g2sf", "w1") else (0,):
            for rule, area in (("exclude", 0.9), ("count", 0.7)):
                row = {"category": "foam", "method": method, "seed": seed, "silhouette": rule}
                row |= {"i_auroc": area - 0.1 * seed, "i_auroc_se": 0.04}
                pixel = {"p_auroc": 0.95, "aupro_1_published": 0.2}
                pixel |= {f"aupro_{at}": at / 100 for at in (30, 10, 5, 1)}
                rows.append(row | (pixel if rule == "exclude" else dict.fromkeys(pixel)))
    return pd.DataFrame(rows)


def test_the_category_table_is_a_mean_over_seeds_of_one_rule():
    table = results.category_table(made_table(), "exclude")
    assert list(table.index) == list(METHOD_NAMES.values())
    assert table.loc["G²SF", "I-AUROC ± SE"] == "0.850 ± 0.040"
    assert table.loc["RGB alone", "I-AUROC ± SE"] == "0.900 ± 0.040"
    assert table.loc["RGB alone", "AUPRO@1 %"] == "0.010"
    assert table.loc["RGB alone", "AUPRO@1 %, published protocol"] == "0.200"


def test_the_silhouette_table_shows_both_rules():
    table = results.silhouette_table(made_table())
    assert list(table.index) == list(METHOD_NAMES.values())
    assert table.loc["G²SF"].to_dict() == {
        "I-AUROC, silhouette cells: count": 0.65, "I-AUROC, silhouette cells: exclude": 0.85,
    }  # fmt: skip


def test_the_defect_table_takes_every_kind_against_all_good_scans():
    labels = ["good"] * 4 + ["cut"] * 2 + ["stain"] * 2
    image = {}
    for method in METHODS:
        for rule in ("exclude", "count"):
            image[method, 0, rule] = np.array([0.0, 1, 2, 3, 9, 9, 1.5, -1])
    image["g2sf", 1, "exclude"] = np.array([0.0, 1, 2, 3, -9, 9, 1.5, -1])
    scores = Scores([""] * 8, labels, np.zeros((8, 1, 1), bool), {}, image)
    table = results.defect_table(scores, "exclude").set_index(["method", "defect"])
    assert len(table) == 2 * len(METHODS)
    assert table.loc[("RGB alone", "cut"), "I-AUROC"] == 1
    assert table.loc[("RGB alone", "cut"), "SE"] == 0
    assert table.loc[("RGB alone", "stain"), "I-AUROC"] == pytest.approx((0.5 + 0) / 2)
    assert table.loc[("G²SF", "cut"), "I-AUROC"] == pytest.approx((1 + 0.5) / 2)
    assert table.loc[("G²SF", "cut"), "SE"] > 0.05


def test_summary_tables_and_scope_say_what_the_summary_holds(config, records):
    summary = summarise(config, CATEGORIES)
    by_category, by_defect = results.summary_tables(summary)
    assert len(by_category) == 2 * len(METHODS) and set(by_defect["defect"]) == {"cut", "stain"}
    row = summary["per_category"][0]
    mine = by_category[by_category["category"] == row["category"]].set_index("method")
    assert mine.loc[METHOD_NAMES[row["method"]], ["I-AUROC", "SE"]].tolist() == [
        row["i_auroc"], row["se"],
    ]  # fmt: skip
    assert "2 categories (foam, rope), 2 training seeds" in results.scope(summary)
    gaps = results.difference_table(summary)
    assert list(gaps.columns) == ["foam", "rope", "mean"] and len(gaps) == len(METHODS) - 1
    gap = next(d for d in summary["differences"] if (d["category"], d["method"]) == ("mean", "rgb"))
    assert gaps.loc["RGB alone", "mean"] == f"{gap['difference']:+.3f} ± {gap['se']:.3f}"


def test_no_difference_at_all_is_neither_better_nor_worse():
    assert "differ by less" in verdict(summary_with(0.0, 0.0)).split(". ")[0]
