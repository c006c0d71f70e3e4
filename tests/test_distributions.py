"""Distributions of pixel scores and alarm rates: by hand, against oracles, and on a made-up run."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from g2sf_lib import chapters, plots
from g2sf_lib.benchmark import run_methods
from g2sf_lib.chapters import distributions
from g2sf_lib.chapters.distributions import (
    SCALES,
    SHARES,
    WIDTHS,
    Distributions,
    Pixels,
    area,
    bin_edges,
    compare,
    counted_pixels,
    density,
    false_positive_rate,
    measure_pixels,
    overlap,
    recall_threshold,
    scales_of,
)
from g2sf_lib.config import ConfigError, make_config
from g2sf_lib.detector import counted_cells
from g2sf_lib.experiments import load_features, run_bank, run_lspn

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
SEEDS = (0, 1)


def pixels(normal, anomalous):
    return Pixels(np.sort(np.array(normal, float)), np.sort(np.array(anomalous, float)))


@pytest.fixture
def drawn():
    """Ties included: scores are rounded."""
    rng = np.random.default_rng(0)
    return pixels(rng.gamma(4, 1, 3000).round(2), rng.gamma(9, 1, 400).round(2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where the folder of the made-up run is, so that it is made once."""
    return tmp_path_factory.mktemp("distributions")


@pytest.fixture
def ready(run, small_config, made_run):
    """A config whose detectors are there for both seeds."""
    config = dataclasses.replace(small_config, runs_root=str(run))
    if not any(run.iterdir()):
        made_run(config)
        run_bank(config)
        for seed in SEEDS:
            run_lspn(dataclasses.replace(config, seed=seed))
    return config


@pytest.fixture
def one_category(monkeypatch):
    """The made-up run has the category foam only."""
    monkeypatch.setattr(distributions, "checked_categories", lambda config, asked: ("foam",))


# ---------------------------------------------------------------- pixels


def test_pixels_are_parted_by_mask_and_place():
    maps = np.array([[[3.0, 1.0], [2.0, 9.0]]])
    masks = np.array([[[True, False], [False, True]]])
    where = np.array([[[True, True], [True, False]]])
    every, some = Pixels.of(maps, masks), Pixels.of(maps, masks, where)
    assert list(every.normal) == list(some.normal) == [1, 2]
    assert list(every.anomalous) == [3, 9] and list(some.anomalous) == [3]


def test_pixels_that_cannot_be_compared_are_refused():
    maps, masks = np.ones((1, 2, 2)), np.eye(2, dtype=bool)[None]
    with pytest.raises(ValueError, match=r"\(1, 2, 2\).*\(1, 2, 3\)"):
        Pixels.of(maps, np.ones((1, 2, 3), bool))
    with pytest.raises(ValueError, match="4 normal and 0 anomalous"):
        Pixels.of(maps, masks & False)
    for bad in (np.nan, np.inf, -np.inf):
        for place in ((0, 0, 0), (0, 0, 1)):
            broken = maps.copy()
            broken[place] = bad
            with pytest.raises(ValueError, match="not finite"):
                Pixels.of(broken, masks)


def test_counted_pixels_are_the_counted_cells_enlarged(ready):
    patches, _ = load_features(ready, "test")
    where = counted_pixels(patches, ready.scoring)
    assert where.shape == (8, 32, 32)
    cells = counted_cells(patches[3], "exclude").numpy().reshape(8, 8)
    assert (where[3] == np.kron(cells, np.ones((4, 4), bool))).all()


# ---------------------------------------------------------------- measures


def test_a_density_integrates_to_the_share_inside_its_bins():
    edges = np.array([0.0, 0.5, 1.0])
    # 0.5 belongs to the upper bin, 1.0 to the last; 4 and 5 are counted and in none
    found = density(np.array([0.1, 0.5, 0.7, 1.0, 4.0, 5.0, 6.0, 7.0]), edges)
    assert list(found) == [1 / 8 / 0.5, 3 / 8 / 0.5]
    scores = np.sort(np.random.default_rng(0).random(999))
    expected, _ = np.histogram(scores, bin_edges("highest"), density=True)
    assert density(scores, bin_edges("highest")) == pytest.approx(expected)


def test_overlap_of_the_same_of_parted_and_of_shifted_scores():
    assert overlap(pixels([1, 2, 3], [1, 2, 3])) == pytest.approx(1)
    assert overlap(pixels([1, 2, 3], [4, 5])) == 0
    # bins [1, 2), [2, 3), [3, ...): half and half of each class, one bin shared
    assert overlap(pixels([1, 2], [2, 3])) == pytest.approx(0.5)


def test_overlap_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    found = overlap(pixels(rng.normal(0, 1, 200_000), rng.normal(2, 1, 50_000)))
    assert found == pytest.approx(math.erfc(1 / math.sqrt(2)), abs=0.01)  # 2 Phi(-1)


def test_what_no_axis_changes(drawn):
    """Any rising function leaves shares as they are, and can make normals narrow at will."""
    bent = pixels(np.expm1(drawn.normal), np.expm1(drawn.anomalous))
    before, after = measure_pixels(drawn), measure_pixels(bent)
    for name in ("overlap", "fpr", "p_auroc"):
        assert after[name] == pytest.approx(before[name], abs=1e-9)
    assert after["iqr_highest"] < 0.01 * before["iqr_highest"]


def test_a_unit_changes_nothing(drawn):
    scaled = pixels(70 * drawn.normal, 70 * drawn.anomalous)
    assert measure_pixels(scaled) == pytest.approx(measure_pixels(drawn))


def test_measures_by_hand():
    found = measure_pixels(pixels([1, 2, 3, 4, 5], [4, 6, 10]))
    assert found["iqr_highest"] == pytest.approx(2 / 10)
    assert found["iqr_range"] == pytest.approx(2 / 9)
    assert found["iqr_anomalous"] == pytest.approx(2 / 6)
    assert found["std_anomalous"] == pytest.approx(math.sqrt(2) / 6)
    assert found["reach"] == pytest.approx(4.96 / 6)
    assert found["fpr"] == pytest.approx(2 / 5)  # 4 and 5 reach 4, which all anomalous ones do
    assert found["p_auroc"] == pytest.approx((3.5 + 5 + 5) / 15)


def test_one_pixel_sets_the_axis_of_the_figure_and_no_other(drawn):
    far = pixels(
        drawn.normal, [*drawn.anomalous[:-1], 10 * max(drawn.normal[-1], drawn.anomalous[-1])]
    )
    before, after = measure_pixels(drawn), measure_pixels(far)
    assert after["iqr_highest"] == pytest.approx(before["iqr_highest"] / 10)
    assert after["lone"] == pytest.approx(10 * before["lone"], rel=0.01)
    for name in ("iqr_quantile", "iqr_anomalous", "overlap", "fpr"):
        assert after[name] == pytest.approx(before[name], rel=0.02)


def test_scales():
    found = scales_of(pixels(np.arange(1000), [500.0, 600.0, 2000.0]))
    assert found["highest"] == 2000 and found["anomalous"] == 600
    assert found["quantile"] == np.quantile([*range(1000), 500, 600, 2000], 0.999)
    assert min(scales_of(pixels([0, 0], [0])).values()) > 0  # can be divided by


@pytest.mark.parametrize(
    ("recall", "expected"), [(1.0, 1), (0.9, 2), (0.85, 2), (0.8, 3), (0.1, 10)]
)
def test_the_highest_threshold_that_finds_enough(recall, expected):
    assert recall_threshold(np.arange(1.0, 11.0), recall) == expected


def test_rates_and_areas_are_those_of_scikit_learn(drawn):
    scores = np.concatenate([drawn.normal, drawn.anomalous])
    truth = np.repeat([0, 1], [len(drawn.normal), len(drawn.anomalous)])
    assert area(drawn) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for recall in (0.5, 0.9, 1.0):
        assert false_positive_rate(drawn, recall) == pytest.approx(fpr[tpr >= recall].min())


# ---------------------------------------------------------------- comparisons


def made_up(widths, fpr, methods=("cfm", "w1", "g2sf"), seeds=(0, 1)):
    """Distributions with (method, scale) -> width of each category, and method -> its rate."""
    rows = []
    categories = ("cookie", "foam", "rope")
    for method, seed, (number, category) in itertools.product(
        methods, seeds, enumerate(categories)
    ):
        row = {"category": category, "method": method, "seed": seed}
        row |= dict.fromkeys([*WIDTHS, *SHARES, "lone"], 1.0)
        row |= {f"iqr_{scale}": widths[method, scale][number] for scale in SCALES}
        row |= {"fpr": fpr[method][number] + 0.001 * seed, "num_normal": 90, "num_anomalous": 10,
                "left_out": 0.25}  # fmt: skip
        rows.append(row)
    return Distributions(categories, methods, pd.DataFrame(rows), {}, {})


def same_widths(**by_method):
    return {(m, scale): widths for m, widths in by_method.items() for scale in SCALES}


NARROW = {"cfm": (0.2, 0.2, 0.2), "w1": (0.15, 0.16, 0.15), "g2sf": (0.1, 0.11, 0.1)}
BETTER = {"cfm": (0.5, 0.5, 0.5), "w1": (0.4, 0.4, 0.4), "g2sf": (0.3, 0.31, 0.3)}
SWAPPED = {"cfm": "g2sf", "w1": "w1", "g2sf": "cfm"}


def test_widths_are_compared_as_ratios_and_shares_as_differences():
    widths = same_widths(**NARROW) | {("g2sf", "highest"): (0.1, 0.2, 0.4)}
    found = compare(made_up(widths, BETTER), "g2sf", "cfm")
    assert found["iqr_highest"]["value"] == pytest.approx(1)  # halves, equals, doubles
    assert found["iqr_highest"]["num"] == 6
    assert found["fpr"]["value"] == pytest.approx(-0.19667, abs=1e-4)
    assert found["fpr"]["agree"] == 6
    gaps = np.array([-0.2, -0.19, -0.2])
    assert found["fpr"]["se"] == pytest.approx(gaps.std(ddof=1) / 3**0.5)


def test_a_method_without_randomness_is_paired_with_every_seed():
    found = made_up(same_widths(**NARROW, rgb=NARROW["cfm"]), BETTER | {"rgb": BETTER["cfm"]},
                    ("rgb", "cfm", "w1", "g2sf"))  # fmt: skip
    rows = found.measures
    once = dataclasses.replace(
        found, measures=rows[(rows["method"] != "rgb") | (rows["seed"] == 0)]
    )
    against = compare(once, "g2sf", "rgb")["fpr"]
    assert against["num"] == 6
    assert against["difference"] == pytest.approx(-0.19667 + 0.0005, abs=1e-4)  # seed 1 adds 0.001


@pytest.mark.parametrize(
    ("widths", "fpr", "expected"),
    [
        (NARROW, BETTER, "holds here, both halves surely"),
        (NARROW, BETTER | {"g2sf": (0.1, 0.5, 0.85)}, "holds here**, the first half surely"),
        (NARROW | {"g2sf": (0.01, 0.21, 0.19)}, BETTER, "on average, but not surely"),
        (
            NARROW | {"g2sf": (0.3, 0.31, 0.3)},
            BETTER,
            "does not hold here**: normal pixels are wider",
        ),
        (NARROW, BETTER | {"g2sf": (0.7, 0.71, 0.7)}, "fewer anomalous pixels are told"),
        (NARROW, BETTER | {"g2sf": (0.1, 0.6, 0.95)}, "told less well on average), but"),
        (NARROW | {"g2sf": (0.1, 0.4, 0.5)}, BETTER, "normal pixels are wider), but"),
    ],
)
def test_the_verdict_on_the_claim(widths, fpr, expected):
    assert expected in chapters.claim_report(made_up(same_widths(**widths), fpr))


def test_an_axis_that_decides_is_told():
    widths = same_widths(**NARROW) | {("g2sf", "anomalous"): (0.5, 0.4, 0.5)}
    text = chapters.claim_report(made_up(widths, BETTER))
    assert "narrower by one divisor and wider by another" in text
    assert "0.52 with scores divided by the highest pixel (p = 0.0023; 6 of 6 pairs agree)" in text
    assert "depends on the divisor" in text


def test_learning_is_judged_by_the_control():
    text = chapters.learning_report(made_up(same_widths(**NARROW), BETTER))
    learned, unlearned = text.splitlines()
    assert "0.67 with scores divided by the highest pixel" in learned  # geometric mean of ratios
    assert "0.77 with scores divided by the highest pixel" in unlearned
    assert "−0.097" in learned
    alone = made_up(same_widths(**NARROW), BETTER, ("g2sf",))
    assert chapters.learning_report(alone) == "Needs G²SF and its control, w = 1."
    assert chapters.claim_report(alone) == "Needs G²SF and CFM among the methods."
    assert chapters.comparison_table(alone).empty and chapters.ratio_rows(alone).empty


def test_one_category_is_not_called_sure_of_others():
    found = made_up(same_widths(**NARROW), BETTER, seeds=(0,))
    rows = found.measures[found.measures["category"] == "foam"]
    text = chapters.claim_report(Distributions(("foam",), found.methods, rows, {}, {}))
    assert "a single draw, no p" in text and "not surely" in text
    assert "holds here on average, but not surely" in text
    assert "p is over the seeds of a single category" in text


def test_tables_say_mean_and_deviation_over_seeds():
    found = made_up(same_widths(**NARROW), BETTER)
    table = chapters.measure_table(found)
    assert list(table) == ["CFM", "G²SF with w = 1", "G²SF"]
    # means over categories are 0.3033 and 0.3043: apart by 0.001, deviation 0.0007
    assert table.loc[SHARES["fpr"], "G²SF"] == "0.304 ± 0.001"
    rows = chapters.category_table(found)
    assert rows.loc[("foam", "G²SF"), WIDTHS["iqr_highest"]] == "0.110 ± 0.000"
    assert list(rows.index[:3]) == [("cookie", name) for name in table]
    beside = chapters.comparison_table(found)
    assert beside.loc[WIDTHS["iqr_highest"], "G²SF against CFM"].startswith("0.52 × (p = 0.0023; 6")
    changes = chapters.ratio_rows(found)
    foam = changes.query("category == 'foam' and against == 'CFM'").set_index("measure")["value"]
    assert foam[WIDTHS["iqr_highest"]] == pytest.approx(0.55)
    assert foam[SHARES["fpr"]] == pytest.approx(-0.19)
    assert SHARES["p_auroc"] not in foam  # more of it is better


def test_reports_on_pixels_and_axis():
    found = made_up(same_widths(**NARROW), BETTER)
    text = chapters.pixel_report(found)
    assert "270 normal and 30 anomalous pixels of 3 categories (10.0% anomalous); 25.0%" in text
    assert "G²SF 0.304 and 1.000" in text
    found.measures.loc[found.measures["method"] == "cfm", "lone"] = [1, 4, 2, 1, 4, 2]
    assert "CFM 2.00, G²SF with w = 1 1.00" in chapters.axis_report(found)


# ---------------------------------------------------------------- a made-up run


def test_all_of_a_run(ready, one_category):
    found = chapters.pixel_distributions(ready, None, ["rgb", "g2sf", "w1"], SEEDS, progress=False)
    assert found.methods == ("rgb", "w1", "g2sf")
    assert len(found.measures) == 5 and found.categories == ("foam",)
    scores, table = run_methods(ready, ("g2sf", "w1", "rgb"), SEEDS, progress=False)
    measured = table.dropna(subset=["p_auroc"]).set_index(["method", "seed"])["p_auroc"]
    rows = found.measures.set_index(["method", "seed"])
    assert rows["p_auroc_all"].to_dict() == pytest.approx(measured.to_dict())
    where = counted_pixels(scores.maps.patches, ready.scoring)
    for (method, seed), row in rows.iterrows():
        maps = scores.maps[method, seed]
        normal, anomalous = maps[where & ~scores.masks], maps[where & scores.masks]
        assert (row["num_normal"], row["num_anomalous"]) == (len(normal), len(anomalous))
        assert row["left_out"] == pytest.approx(1 - len(anomalous) / scores.masks.sum())
        wide = np.quantile(normal, 0.75) - np.quantile(normal, 0.25)
        top = max(normal.max(), anomalous.max())
        assert row["iqr_highest"] == pytest.approx(wide / top, rel=1e-5)
        one = found.densities["foam", method, seed]["highest"]
        for kind, values in (("normal", normal), ("anomalous", anomalous)):
            bins = np.histogram(values / top, 100, (0, 1), density=True)[0]
            assert np.abs(one[kind] - bins).max() <= 2.5 / len(values) * 100  # a score on an edge
            assert one[kind].sum() / 100 == pytest.approx(1)
        mark = found.thresholds["foam", method, seed]["highest"]
        assert (anomalous / top >= mark - 1e-6).mean() >= 0.9

    drawn = chapters.density_panels(found, "anomalous")
    assert list(drawn["panels"]) == ["RGB alone", "G²SF with w = 1", "G²SF"]
    assert drawn["panels"]["G²SF"]["foam"]["normal"].shape == (2, 100)
    assert drawn["panels"]["RGB alone"]["foam"]["normal"].shape == (1, 100)
    assert drawn["edges"][-1] == 3 and "median anomalous" in drawn["label"]
    plots.score_densities(**drawn)
    with pytest.raises(ValueError, match="scale is 'widest'.*highest, quantile, anomalous"):
        chapters.density_panels(found, "widest")


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"categories": ["plum"]}, "categories"),
        ({"methods": ["btf"]}, "methods"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": "0"}, "seeds"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(small_config, monkeypatch, bad, match):
    monkeypatch.setattr(distributions, "run_methods", None)
    with pytest.raises(ConfigError, match=match):
        chapters.pixel_distributions(small_config, **bad)


def test_a_missing_stage_is_named(small_config, made_run, one_category):
    made_run(small_config)
    with pytest.raises(FileNotFoundError, match="02_memory_bank|03_lspn_training"):
        chapters.pixel_distributions(small_config, None, ["w1"], progress=False)


# ---------------------------------------------------------------- figures


def shown(fig):
    return [ax for ax in fig.axes if ax.get_visible()]


def flat_panels(categories=("cookie", "foam"), bins=4):
    each = {"normal": np.ones((2, bins)), "anomalous": 3 * np.ones((1, bins))}
    return {m: {c: each for c in categories} for m in ("CFM", "G²SF")}


def test_densities_have_a_row_a_method_and_a_column_a_category():
    edges = np.linspace(0, 1, 5)
    of_g2sf = {"cookie": 0.3, "foam": 0.7}
    fig = plots.score_densities(edges, flat_panels(), {"CFM": of_g2sf, "G²SF": of_g2sf}, "score")
    assert [ax.get_title() for ax in shown(fig)] == ["cookie", "foam", "", ""]
    assert [ax.get_ylabel() for ax in shown(fig)][::2] == ["CFM\ndensity", "G²SF\ndensity"]
    assert fig.get_supxlabel() == "score"
    assert shown(fig)[3].lines[0].get_xdata() == [0.7, 0.7]
    assert shown(fig)[0].get_ylim() == shown(fig)[2].get_ylim()


def test_more_categories_go_on_below():
    names = [f"part {n}" for n in range(7)]
    fig = plots.score_densities(np.linspace(0, 1, 5), flat_panels(names))
    assert len(shown(fig)) == 14
    assert [ax.get_title() for ax in shown(fig) if ax.get_title()] == names


def test_densities_that_do_not_fit_are_refused():
    edges = np.linspace(0, 1, 5)
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.score_densities(edges, {})
    with pytest.raises(ValueError, match="has 4 bins; expected 7"):
        plots.score_densities(np.linspace(0, 1, 8), flat_panels())
    panels = flat_panels() | {"G²SF": flat_panels(["foam"])["G²SF"]}
    with pytest.raises(ValueError, match=r"G²SF has the categories \['foam'\]"):
        plots.score_densities(edges, panels)


def change_rows():
    made = (("width", "ratio", (0.5, 2.0)), ("rate", "difference", (-0.1, 0.3)))
    rows = [
        (measure, kind, other, category, value)
        for measure, kind, values in made
        for other in ("CFM", "w = 1")
        for category, value in zip(("cookie", "foam"), values, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["measure", "kind", "against", "category", "value"])


def test_changes_show_geometric_and_plain_means():
    ratios, differences = shown(plots.spread_changes(change_rows()))
    means = [[line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
             for ax in (ratios, differences)]  # fmt: skip
    assert means[0] == pytest.approx([1, 1]) and means[1] == pytest.approx([0.1, 0.1])
    assert ratios.get_xscale() == "log" and differences.get_xscale() == "linear"
    assert len([t for t in ratios.get_xticks() if 0.4 < t < 2.5]) >= 3
    with pytest.raises(ValueError, match="lacks the columns"):
        plots.spread_changes(change_rows().drop(columns="against"))
    with pytest.raises(ValueError, match="kinds are"):
        plots.spread_changes(change_rows().assign(kind="quotient"))


def test_alarm_rates_lie_where_they_were_seen():
    rows = [(level, method, promised, 2 * promised, promised, 3 * promised)
            for level, rates in (("pixel", (0.001, 0.1)), ("image", (0.1, 0.3)))
            for method in ("G²SF", "CFM") for promised in rates]  # fmt: skip
    table = pd.DataFrame(rows, columns=["level", "method", "promised", "observed", "low", "high"])
    pixel, image = shown(plots.alarm_rates(table))
    assert (pixel.get_xscale(), image.get_xscale()) == ("log", "linear")
    for ax, rates in ((pixel, [0.001, 0.1]), (image, [0.1, 0.3])):
        for bar in ax.containers:
            assert list(bar.lines[0].get_ydata()) == pytest.approx([2 * rate for rate in rates])
            assert bar.lines[0].get_xdata() == pytest.approx(rates, rel=0.07)  # beside each other
        assert list(ax.get_xticks()) == pytest.approx(rates)
    pixel.figure.draw_without_rendering()
    assert [label.get_text() for label in pixel.get_xticklabels()] == ["0.1 %", "10 %"]
    assert "10 %" in [label.get_text() for label in pixel.get_yticklabels()]
    with pytest.raises(ValueError, match="levels are"):
        plots.alarm_rates(table.assign(level="cell"))


def test_the_summary_keeps_means_spreads_and_what_differs_from_the_first_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"category": category, "method": method, "seed": seed}
        | dict.fromkeys((*WIDTHS, *SHARES), value + seed)
        for category in ("cookie", "foam")
        for method, value in (("cfm", 1.0), ("g2sf", 0.5))
        for seed in SEEDS
    ]
    found = Distributions(("cookie", "foam"), ("cfm", "g2sf"), pd.DataFrame(rows), {}, {})
    kept = distributions.distribution_summary(make_config("smoke"), found)
    assert kept["reference"] == "cfm" and kept["seeds"] == list(SEEDS)
    means = {row["method"]: row for row in kept["rows"]}
    assert means["g2sf"]["overlap"] == pytest.approx(1.0)
    assert means["g2sf"]["overlap_seed_std"] == pytest.approx(0.5**0.5, abs=1e-4)
    assert {row["difference"] for row in kept["effects"]} == {-0.5}
    assert {row["metric"] for row in kept["effects"]} == {*WIDTHS, *SHARES}
