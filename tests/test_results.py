"""The summary is what the scores say: by hand, against slow loops, and for odd selections."""

import dataclasses
import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from g2sf_lib import results
from g2sf_lib.benchmark import (
    NUM_RESAMPLES,
    RESAMPLED,
    SEEDED,
    SILHOUETTES,
    Comparison,
    Scores,
    measure,
    runs_of,
)
from g2sf_lib.config import make_config
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.results import GROUPS, METHOD_NAMES, headline, origin, summarise, write_summary
from g2sf_lib.stages import results_file
from g2sf_lib.stats import LEVEL

CATEGORIES = ("foam", "rope")
LABELS = ["good"] * 8 + ["cut"] * 3 + ["stain"] * 3 + ["combined"] * 2
LIFT = {"g2sf": 2.0, "w1": 1.0, "rgb": 0.8, "pcd": 0.5, "m3dm": 1.2}


def configured(**settings):
    return make_config("smoke", category="foam", device="cpu", map_size=16, **settings)


def scored(config, methods, seeds, labels=LABELS, generator=0):
    """Made-up scores of one category, measured as real ones are."""
    draw = np.random.default_rng(generator)
    is_bad = np.array([label != "good" for label in labels])
    masks = np.zeros((len(labels), 8, 8), bool)
    masks[is_bad, 2:4, 2:5] = True
    image, resampled, rows = {}, {}, []
    for method, seed in runs_of(methods, seeds):
        lift = LIFT.get(method, 1.0)
        both = {
            rule: draw.normal(size=len(labels)) + is_bad * (lift - 0.3 * (rule == "count"))
            for rule in SILHOUETTES
        }
        maps = draw.normal(size=masks.shape) + lift * masks
        found, resampled[method, seed] = measure(config, ([], labels, masks), maps, both)
        image |= {(method, seed, rule): scores for rule, scores in both.items()}
        rows += [{"category": None, "method": method, "seed": seed} | row for row in found]
    names = [f"test/{label}/{n:03d}" for n, label in enumerate(labels)]
    return Scores(names, list(labels), masks, {}, image, {}, resampled), rows


def compared(methods=tuple(LIFT), seeds=(0, 1, 2), categories=CATEGORIES, config=None, labels=None):
    """A comparison of made-up scores; `labels`: category -> those of its scans."""
    config = config or configured()
    scores, rows = {}, []
    for number, category in enumerate(categories):
        of_category = (labels or {}).get(category, LABELS)
        scores[category], found = scored(config, methods, seeds, of_category, number)
        rows += [row | {"category": category} for row in found]
    return Comparison(config, tuple(categories), methods, seeds, scores, pd.DataFrame(rows))


@pytest.fixture(scope="module")
def comparison():
    return compared()


@pytest.fixture(scope="module")
def summary(comparison):
    return summarise(comparison)


def mean_of(comparison, method, category, column, rule="exclude"):
    """The mean over seeds, without pandas' groups."""
    wanted = {"method": method, "category": category, "silhouette": rule}.items()
    rows = [row for row in comparison.table.to_dict("records") if wanted <= row.items()]
    return sum(row[column] for row in rows) / len(rows)


# ---------------------------------------------------------------- means and spreads


def test_means_are_over_seeds_then_categories(comparison, summary):
    assert [row["method"] for row in summary["methods"]] == list(LIFT)
    for row, column in itertools.product(
        summary["methods"], ("i_auroc", "p_auroc", "aupro_1_published", "i_auroc_cut")
    ):
        each = [mean_of(comparison, row["method"], c, column) for c in CATEGORIES]
        assert row[column] == pytest.approx(np.mean(each), abs=6e-5), (row["method"], column)
    assert len(summary["per_category"]) == len(CATEGORIES) * len(LIFT)
    for row in summary["per_category"]:
        expected = mean_of(comparison, row["method"], row["category"], "aupro_5")
        assert row["aupro_5"] == pytest.approx(expected, abs=6e-5)
    for row, rule in itertools.product(summary["silhouettes"], SILHOUETTES):
        each = [mean_of(comparison, row["method"], c, "i_auroc", rule) for c in CATEGORIES]
        assert row[rule] == pytest.approx(np.mean(each), abs=6e-5)


def test_the_deviation_over_seeds_is_that_of_means_over_categories(comparison, summary):
    table = comparison.table[comparison.table["silhouette"] == "exclude"]
    found = {row["method"]: row["aupro_30_seed_std"] for row in summary["methods"]}
    means = table[table["method"] == "g2sf"].groupby("seed")["aupro_30"].mean()
    assert found["g2sf"] == pytest.approx(np.std(means, ddof=1), abs=6e-5)
    assert found["rgb"] == 0  # it has no seed
    once = summarise(compared(seeds=(4,)))
    for row in (*once["methods"], *once["per_category"]):
        assert row["i_auroc_seed_std"] == (None if row["method"] in SEEDED else 0.0)


def test_the_error_over_images_is_that_of_the_mean_over_seeds(comparison, summary):
    for row, metric in itertools.product(summary["per_category"], RESAMPLED):
        found = comparison.scores[row["category"]].resampled
        areas = [x[metric] for (method, _), x in found.items() if method == row["method"]]
        assert row[f"{metric}_se"] == pytest.approx(np.mean(areas, axis=0).std(), abs=6e-5)


def test_categories_are_independent_though_they_were_resampled_alike(comparison):
    """Two categories with the very same resamples: the error of their mean falls by root two."""
    foam = comparison.scores["foam"]
    twins = dataclasses.replace(comparison, scores=dict.fromkeys(CATEGORIES, foam))
    of_rgb = foam.resampled["rgb", 0]["i_auroc"].std()
    row = next(row for row in summarise(twins)["methods"] if row["method"] == "rgb")
    assert row["i_auroc_se"] == pytest.approx(of_rgb / 2**0.5, rel=0.06)


# ---------------------------------------------------------------- differences


def paired(values, resampled, metric="i_auroc", seeds=(0, 1, 2)):
    """A summary of one category with these values: method -> one a seed, and its resamples."""
    rows, kept = [], {}
    for method, of_seed in values.items():
        runs = seeds if method in SEEDED else (0,)
        for seed, value in zip(runs, of_seed, strict=True):
            row = {"category": "foam", "method": method, "seed": seed}
            for rule in SILHOUETTES:
                others = dict.fromkeys((*RESAMPLED, "p_auroc", "i_auroc_cut"), 0.5)
                others |= {metric: value, "i_auroc_se": 0.1}
                rows.append(row | {"silhouette": rule} | others)
            kept[method, seed] = dict.fromkeys(RESAMPLED, np.full(NUM_RESAMPLES, 0.5))
            kept[method, seed] |= {metric: resampled[method]}
    image = {(m, s, rule): np.arange(16.0) for m, s in kept for rule in SILHOUETTES}
    scores = Scores([""] * 16, LABELS, np.zeros((16, 1, 1), bool), {}, image, {}, kept)
    config = configured()
    return summarise(
        Comparison(config, ("foam",), tuple(values), seeds, {"foam": scores}, pd.DataFrame(rows))
    )


def difference(summary, method, metric="i_auroc", category="mean"):
    wanted = {"method": method, "metric": metric, "category": category}.items()
    (row,) = [row for row in summary["differences"] if wanted <= row.items()]
    return row


@pytest.fixture
def draws():
    rng = np.random.default_rng(3)
    return {m: 0.8 + 0.02 * rng.normal(size=NUM_RESAMPLES) for m in ("g2sf", "cfm", "rgb", "sum")}


@pytest.mark.parametrize("metric", RESAMPLED)
def test_images_and_seeds_are_added_as_squares_by_hand(draws, metric):
    """Three seeds of G2SF, 0.05 apart, against a method without any."""
    summary = paired({"g2sf": (0.90, 0.80, 0.85), "rgb": (0.70,)}, draws, metric)
    row = difference(summary, "rgb", metric)
    images, seeds = (draws["g2sf"] - draws["rgb"]).std(), 0.05 / 3**0.5
    error = (images**2 + seeds**2) ** 0.5
    assert row["difference"] == pytest.approx(0.15) and row["se"] == round(error, 4)
    freedom = (images**2 + seeds**2) ** 2 / (seeds**4 / 2)  # Satterthwaite; of images infinite
    p = 2 * student.sf(0.15 / error, freedom)
    assert row["p"] == pytest.approx(p, abs=6e-5) and row["is_real"] == (p < LEVEL)


def test_one_seed_whatever_its_number_leaves_the_error_of_images(draws):
    """A method without randomness is kept under seed 0, and compared with seed 3 all the same."""
    summary = paired({"g2sf": (0.9,), "rgb": (0.7,), "sum": (0.7,)}, draws, seeds=(3,))
    row = difference(summary, "rgb")
    assert row["difference"] == pytest.approx(0.2)
    assert row["se"] == round((draws["g2sf"] - draws["rgb"]).std(), 4) and row["is_real"]
    (pair,) = [p for p in summary["pairs"] if (p["first"], p["second"]) == ("rgb", "sum")]
    assert pair["difference"] == 0 and pair["se"] == round((draws["rgb"] - draws["sum"]).std(), 4)
    assert pair["p"] == 1


def test_differences_of_categories_and_of_the_mean(summary):
    methods = {row["method"]: row for row in summary["methods"]}
    others = [m for m in LIFT if m != "g2sf"]
    assert len(summary["differences"]) == len(RESAMPLED) * (len(CATEGORIES) + 1) * len(others)
    for method, metric in itertools.product(others, RESAMPLED):
        mean = difference(summary, method, metric)
        each = [difference(summary, method, metric, c) for c in CATEGORIES]
        expected = methods["g2sf"][metric] - methods[method][metric]
        assert mean["difference"] == pytest.approx(expected, abs=2e-4)
        assert np.mean([d["difference"] for d in each]) == pytest.approx(expected, abs=2e-4)
        assert 0 < mean["se"] < max(d["se"] for d in each)


def test_the_corrections_are_for_methods_and_for_pairs(draws):
    """Of two methods G2SF is compared with, the smaller p counts twice; of three pairs thrice."""
    values = {"g2sf": (0.83,) * 3, "rgb": (0.75,), "sum": (0.82,)}
    summary, raw = paired(values, draws), {}
    for a, b in itertools.combinations(values, 2):
        raw[a, b] = 2 * norm.sf(abs(values[a][0] - values[b][0]) / (draws[a] - draws[b]).std())
    assert difference(summary, "rgb")["p"] == pytest.approx(2 * raw["g2sf", "rgb"], abs=6e-5)
    assert difference(summary, "sum")["p"] == pytest.approx(raw["g2sf", "sum"], abs=6e-5)
    found = {(p["first"], p["second"]): p["p"] for p in summary["pairs"]}
    assert found["g2sf", "rgb"] == pytest.approx(3 * raw["g2sf", "rgb"], abs=6e-5)
    assert found["rgb", "sum"] == pytest.approx(2 * raw["rgb", "sum"], abs=6e-5)


# ---------------------------------------------------------------- defects and groups


def test_kinds_of_defect_are_means_over_the_categories_that_have_them():
    labels = {"rope": ["good"] * 5 + ["cut"] * 4}
    comparison = compared(labels=labels)
    found = {(row["defect"], row["method"]): row for row in summarise(comparison)["defects"]}
    assert {kind for kind, _ in found} == {"cut", "stain", "combined"}
    for method in LIFT:
        both = [mean_of(comparison, method, c, "i_auroc_cut") for c in CATEGORIES]
        row = found["cut", method]
        assert row["i_auroc"] == pytest.approx(np.mean(both), abs=6e-5)
        assert row["se"] == pytest.approx(abs(both[0] - both[1]) / 2, abs=6e-5)
        only = found["stain", method]
        expected = mean_of(comparison, method, "foam", "i_auroc_stain")
        assert (only["i_auroc"], only["se"]) == (pytest.approx(expected, abs=6e-5), 0)


def test_a_group_takes_all_its_kinds_and_only_categories_that_have_some(summary, tmp_path):
    assert len(summary["groups"]) == len(GROUPS) * len(LIFT)
    labels = {"foam": ["good"] * 4 + ["cut"] * 2 + ["dent"] * 2, "rope": ["good"] * 4 + ["stain"]}
    comparison = compared(methods=("rgb",), labels=labels)
    found = {row["group"]: row["i_auroc"] for row in summarise(comparison)["groups"]}
    assert found.keys() == {"geometry only", "appearance only"}
    image = comparison.scores["foam"].image["rgb", 0, "exclude"]
    expected = image_auroc(image, [False] * 4 + [True] * 4)
    assert found["geometry only"] == pytest.approx(expected, abs=6e-5)
    other = configured().replace(dataset="mvtec3d", category="bagel", data_root=str(tmp_path))
    assert summarise(dataclasses.replace(comparison, config=other))["groups"] == []


# ---------------------------------------------------------------- selections, and the file


@pytest.mark.parametrize("methods", [("g2sf",), ("rgb", "pcd")])
def test_one_category_and_no_method_to_compare_g2sf_with(methods):
    summary = summarise(compared(methods=methods, seeds=(1,), categories=("rope",)))
    assert summary["differences"] == [] and len(summary["pairs"]) == len(methods) - 1
    assert [row["method"] for row in summary["methods"]] == list(methods)
    assert all(row["se"] == 0 for row in summary["defects"])  # one category has no spread


def test_the_file_is_json_without_nan_and_gives_the_summary_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    comparison = compared(seeds=(0,), labels={"rope": ["good"] * 5 + ["cut"] * 4})
    rates = pd.DataFrame({"method": ["g2sf"], "step": ["fusion"], "ms": [0.26], "fps": [np.nan]})
    summary = summarise(comparison, rates)
    written = write_summary(summary, comparison.config)
    assert written == results_file(comparison.config) == Path("data/results/smoke.json")
    assert json.loads(written.read_text(), parse_constant=pytest.fail) == summary
    (rate,) = summary["frame_rates"]
    assert (rate["ms"], rate["fps"]) == (0.26, None)
    assert summary["machine"]["threads"] >= 1 and summary["packages"]["torch"]


def test_a_summary_says_where_it_comes_from(comparison, summary, tmp_path):
    """What `origin` says is true of both kinds of summary; its command makes the same config."""
    root = tmp_path / "we ird$'s"
    given = {"dataset": "mvtec3d", "data_root": f"{root}/", "category": "bagel", "device": "cpu"}
    config = make_config("paper", **given, alpha=2.5, pasted_from='["bagel"]', seed=1)
    found = origin(config, ["bagel"])
    place = {"dataset": "mvtec3d", "data_root": str(root)}
    assert found["data"] == place | {"categories": ["bagel"]}
    assert make_config("paper", **given | {"seed": 1}, **found["settings"]) == config
    assert not found["settings"].keys() & {"category", "seed", "device", "data_root"}
    make, target, *words = shlex.split(found["command"])
    assert (make, target) == ("make", "book")
    assert dict(word.split("=", 1) for word in words) == {
        "PROFILE": "paper",
        "DATASET": "mvtec3d",
        "DATA_ROOT": str(root),
        "CATEGORIES": '["bagel"]',
        "SETTINGS": '{"alpha": 2.5}',
    }
    usual = origin(make_config("smoke"), [])
    assert usual["command"] == "make book PROFILE=smoke DATASET=procedural"
    # A checkout has a commit; a copy without git has none to name.
    assert found["git_commit"] is None or re.match("[0-9a-f]{40}", found["git_commit"])
    assert origin(comparison.config, comparison.categories).items() <= summary.items()


ROOT = Path(__file__).parent.parent


def committed(name):
    return json.loads((ROOT / f"data/results/{name}.json").read_text(encoding="utf-8"))


def test_committed_results_name_where_they_come_from():
    summary = committed("mvtec3d_demo")
    assert summary["data"]["categories"] == ["cable_gland"] and len(summary["seeds"]) == 3
    assert summary["command"].startswith("make book PROFILE=demo DATASET=mvtec3d DATA_ROOT=")
    assert summary["git_commit"] and summary["settings"]["epochs"]


# ---------------------------------------------------------------- the README


def test_a_headline_has_errors_of_images_and_of_seeds_and_differences(summary):
    table = headline(summary)
    assert list(table.index) == [METHOD_NAMES[method] for method in LIFT]
    row = next(row for row in summary["methods"] if row["method"] == "w1")
    line, gap = table.loc["G²SF with w = 1"], difference(summary, "w1")
    assert line["I-AUROC"] == f"{row['i_auroc']:.3f} ± {row['i_auroc_se']:.3f}"
    assert line["over seeds"] == f"{row['i_auroc_seed_std']:.3f}"
    assert line["AUPRO@1 %"] == f"{row['aupro_1']:.3f}"
    assert line["I-AUROC of G²SF − it"] == f"{gap['difference']:+.3f} ± {gap['se']:.3f}"
    assert table.loc["RGB alone", "over seeds"] == table.loc["G²SF", "p"] == "–"
    assert (headline(summarise(compared(seeds=(0,))))["over seeds"] == "–").all()


def test_on_real_data_the_papers_numbers_stand_beside_ours():
    """Of the same categories, here one; our AUPRO@30 % is by the paper's protocol."""
    summary = committed("mvtec3d_demo")
    table = headline(summary)
    row = next(row for row in summary["methods"] if row["method"] == "g2sf")
    assert table.loc["G²SF", "AUPRO@30 %"] == f"{row['aupro_30_published']:.3f}"
    assert table.loc["G²SF", "paper: I-AUROC"] == "0.923"
    assert table.loc["concatenated bank", "paper: AUPRO@30 %"] == "0.969"  # BTF
    assert table.loc["RGB alone", "paper: I-AUROC"] == "–"


@pytest.mark.parametrize("name", ["demo", "mvtec3d_demo"])
def test_the_readme_has_the_committed_results(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.fill_readme(readme, committed(name)) == readme


def test_a_finished_run_is_printed_and_written_into_the_readme(
    summary, tmp_path, monkeypatch, capsys
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "paper").symlink_to(ROOT / "data" / "paper")
    monkeypatch.chdir(tmp_path)
    write_summary(summary, configured())
    results.main(["headline", "--profile", "smoke"])
    assert "points alone" in capsys.readouterr().out
    begin, end = results.MARKS["procedural"], results.END
    Path("README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    results.main(["readme", "--profile", "smoke"])
    text = Path("README.md").read_text(encoding="utf-8")
    assert text == f"before\n{begin}\n{results.readme_block(summary)}\n{end}\nafter\n"
