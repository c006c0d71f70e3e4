"""Chapter 11: rows beside the run by hand, against oracles, and on a made-up run."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from g2sf_lib import ablations, plots
from g2sf_lib.ablations import RUN, Variant
from g2sf_lib.chapters import analyses
from g2sf_lib.chapters.analyses import (
    APART,
    Study,
    checked_analyses,
    effect_table,
    effect_texts,
    run_studies,
    scale_curve_rows,
    scope_report,
    study_effects,
    study_panels,
    study_report,
    study_tables,
    value_table,
)
from g2sf_lib.chapters.leak import leak_report, leak_rows, leak_table
from g2sf_lib.config import MODALITIES, ConfigError, make_config
from g2sf_lib.experiments import built_banks, fitted, foreground_features, load_features
from g2sf_lib.stats import METRIC_NAMES

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
CATEGORIES, SEEDS = ("cookie", "foam", "rope"), (0, 1)
LEVELS = {"cookie": 0.5, "foam": 0.6, "rope": 0.7}  # categories differ by more than any change
SURE = {"cookie": 0.09, "foam": 0.10, "rope": 0.11}
OPEN = {"cookie": 0.1, "foam": -0.1, "rope": 0.03}


def made_rows(shifts, categories=CATEGORIES, seeds=SEEDS, w_std=None):
    """Rows as `run_variants` gives them: variant -> what it adds in each category."""
    lines = []
    for variant, shift in ({RUN.name: dict.fromkeys(categories, 0.0)} | shifts).items():
        for category in categories:
            for seed in seeds:
                value = LEVELS[category] + 0.02 * seed + shift[category]
                line = {"variant": variant, "category": category, "seed": seed}
                line |= dict.fromkeys(METRIC_NAMES, value) | {"best_epoch": 3}
                line |= {"sigma_pcd": 0.5 + 0.1 * seed, "w_std": (w_std or {}).get(variant, 0.3)}
                lines.append(line)
    return pd.DataFrame(lines)


def made_study(name, shifts, **kwargs):
    labels = {RUN.name: RUN.label} | {variant: f"row {variant}" for variant in shifts}
    return Study(name, labels, {}, made_rows(shifts, **kwargs))


# ---------------------------------------------------------------- what is run


def test_all_analyses_or_some_in_the_chapters_order():
    everything = checked_analyses(None)
    assert list(everything) == [*ablations.studies(), *APART]
    assert everything["sigma"] == ablations.studies()["sigma"] and everything["epochs"] == ()
    assert list(checked_analyses("['epochs', 'k']")) == ["k", "epochs"]
    assert checked_analyses([]) == {}


@pytest.mark.parametrize("asked", ["['epoch']", ["k", "sigmas"], "k", 3])
def test_an_unknown_study_is_refused_and_the_known_ones_are_named(asked):
    with pytest.raises(ConfigError, match="expected a list of some of bank_fraction.*calibration"):
        checked_analyses(asked)


@pytest.fixture
def measured(monkeypatch):
    """Return the names of the variants that `run_studies` has measured."""
    names = []

    def fake(config, variants, categories, seeds, progress=True):
        names.extend(variant.name for variant in variants)
        shifts = {v.name: dict.fromkeys(CATEGORIES, 0.01) for v in variants if v != RUN}
        return made_rows(shifts)

    monkeypatch.setattr(analyses, "run_variants", fake)
    return names


def test_what_is_the_run_under_another_name_is_not_measured(measured):
    config = make_config("demo")  # k 5, a bank of a tenth, sigma learned
    chosen = checked_analyses(["bank_fraction", "k", "sigma"])
    rows, found = run_studies(config, chosen, {"k": 5})
    assert measured[0] == RUN.name and len(set(measured)) == len(measured) == 8
    assert not {"k=5", "bank_fraction=0.1", "own"} & set(measured)
    assert list(found) == ["bank_fraction", "k", "sigma"]
    assert set(rows["variant"]) == set(measured)
    assert set(found["sigma"].rows["variant"]) == {RUN.name, "sigma_rule"}


def test_numbers_rise_and_the_run_stands_where_its_own_number_is(measured):
    config = make_config("demo", bank_fraction=0.2)
    study = run_studies(config, checked_analyses(["bank_fraction"]))[1]["bank_fraction"]
    assert list(study.numbers.values()) == [0.01, 0.05, 0.1, 0.2, 0.25, 1.0]
    assert list(study.labels.values())[3] == "0.2, this run"
    arguments = scale_curve_rows(study)
    assert arguments["marked"] == 0.2 and arguments["is_log"] and arguments["is_relative"]
    assert set(arguments["table"]["bank_fraction"]) == set(study.numbers.values())
    assert isinstance(plots.curve_with_bands(**arguments, label="share"), Figure)


def test_a_study_in_which_nothing_differs_is_left_out(measured):
    config = make_config("demo", sigma_rule="fixed")
    assert run_studies(config, checked_analyses(["sigma"]))[1] == {}
    assert measured == [RUN.name]


@pytest.mark.parametrize(
    ("own", "words"),
    [("{'epocs': 3}", "epocs"), ("{'k': 0}", "k is 0"), ("{'seed': 3}", "seed"), ("k=3", "own is")],
)
def test_a_wrong_row_of_ones_own_is_refused_before_anything_runs(measured, own, words):
    with pytest.raises(ConfigError, match=words):
        run_studies(make_config("smoke"), checked_analyses(None), own)
    assert measured == []


def test_scope_says_what_errors_are_over():
    config = make_config("smoke")
    text = scope_report(made_rows({"a": SURE}), config, ["sigma"])
    assert "2 rows" in text and "studies: sigma" in text and "over the 3 categories" in text
    one = made_rows({"a": SURE}, categories=("foam",))
    assert "nothing beyond it" in scope_report(one, config, [])
    single = made_rows({"a": SURE}, categories=("foam",), seeds=(0,))
    assert "no error either" in scope_report(single, config, [])


# ---------------------------------------------------------------- tables


def test_effects_are_students_over_categories_and_corrected_within_the_study():
    study = made_study("forms", {"a": SURE, "b": OPEN})
    table = study_effects(study).set_index(["metric", "variant"])
    a, b = table.loc[("aupro_1", "a")], table.loc[("aupro_1", "b")]
    assert a["difference"] == pytest.approx(0.1)
    assert a["se"] == pytest.approx(0.01 / math.sqrt(3))
    raw = [ttest_1samp(list(shift.values()), 0).pvalue for shift in (SURE, OPEN)]
    assert a["p"] == pytest.approx(2 * raw[0]) and b["p"] == pytest.approx(raw[1])
    assert (a["effect"], b["effect"]) == ("above", "open")
    assert (a["wins"], a["num"], b["wins"]) == (6, 6, 4)
    down = study_effects(made_study("forms", {"a": {c: -x for c, x in SURE.items()}}))
    assert set(down["effect"]) == {"below"}


def test_values_are_means_and_spreads_over_seeds_as_text():
    study = made_study("forms", {"a": SURE}, w_std={"a": 0.001})
    table = value_table(study)
    # 0.6 over categories, 0.02 from seed to seed
    assert table.loc["this run", "I-AUROC"] == "0.610 ± 0.014"
    assert table.loc["row a", "AUPRO@1 %"] == "0.710 ± 0.014"
    assert table.loc["row a", "σ of points"] == "0.55"
    assert list(table["w constant"]) == ["0 of 6", "6 of 6"]


def test_differences_are_text_with_a_true_minus_and_no_zero_with_a_sign():
    shifts = {"a": {c: -x for c, x in SURE.items()}, "b": dict.fromkeys(CATEGORIES, -1e-5)}
    table = effect_table(made_study("forms", shifts), ("p_auroc",))["P-AUROC"]
    assert table.loc["row a", "− run ± error"] == "−0.100 ± 0.006"
    assert table.loc["row b", "− run ± error"] == "0.000 ± 0.000"
    assert list(table["pairs above"]) == ["0 of 6", "0 of 6"]


@pytest.mark.parametrize("seeds", [(0, 1), (0,)])
def test_one_category_and_one_seed_show_dashes_and_never_nan(seeds):
    one = {"categories": ("foam",), "seeds": seeds}
    for name, shifts in (
        ("forms", {"a": SURE}),
        ("bank_fraction", {"a": SURE}),
        ("sigma", {"sigma_rule": OPEN}),
        ("inputs", {"d_zeros": OPEN, "d_random": SURE}),
    ):
        study = made_study(name, shifts, **one)
        tables = study_tables(study)
        shown = " ".join(t.to_string() for t in tables) + study_report(study)
        assert "nan" not in shown.lower()
        assert ("± –" in tables[1].to_string()) == (len(seeds) == 1)
        assert ("“Not told”" in study_report(study)) == (len(seeds) == 2)


def test_all_metrics_are_in_the_tables_of_a_study():
    _, first, second = study_tables(made_study("forms", {"a": SURE}))
    assert {*first.columns.get_level_values(0), *second.columns.get_level_values(0)} == set(
        METRIC_NAMES.values()
    )


def test_a_study_can_be_drawn():
    study = made_study("forms", {"a": SURE, "b": OPEN})
    panels = study_panels(study)
    assert len(panels["points"]) == 2 * 6 * len(METRIC_NAMES)
    mean = panels["points"].groupby(["variant", "metric"])["difference"].mean()
    effects = panels["effects"].set_index(["variant", "metric"])["difference"]
    pd.testing.assert_series_equal(mean.sort_index(), effects.sort_index())
    assert isinstance(plots.effect_dots(**panels), Figure)


# ---------------------------------------------------------------- sentences


def negative(shift):
    return {category: -value for category, value in shift.items()}


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (negative(SURE), "holds here"),  # fixed is worse, so learning is needed
        (SURE, "is reversed here"),
        (OPEN, "stays open here"),
    ],
)
def test_sigma_has_to_be_learned_or_not(shift, words):
    text = study_report(made_study("sigma", {"sigma_rule": shift}))
    assert text.count(f"**{words}**") == 2  # in both metrics
    assert "σ of points is 0.550, from 0.500 to 0.600" in text


@pytest.mark.parametrize(
    ("zeros", "random", "words"),
    [
        (negative(SURE), negative(SURE), "holds here"),
        (SURE, SURE, "is reversed here"),
        (OPEN, OPEN, "stays open here"),
        (SURE, negative(SURE), "is not settled here"),
        (OPEN, negative(SURE), "is not settled here"),
    ],
)
def test_directions_matter_or_not(zeros, random, words):
    shifts = {"d_zeros": zeros, "d_random": random, "m_zeros": SURE, "scalar": SURE}
    text = study_report(made_study("inputs", shifts))
    assert text.count(f"**{words}**") == 2


def test_stability_is_contradicted_by_one_sure_row():
    text = study_report(made_study("bank_fraction", {"a": OPEN, "b": OPEN}))
    assert "is not contradicted here" in text and "from 0.610 (at this run)" in text
    text = study_report(made_study("bank_fraction", {"a": OPEN, "b": negative(SURE)}))
    assert "does not hold here for I-AUROC and AUPRO@30 %" in text


def test_sure_rows_are_named_and_the_others_counted():
    shifts = {"a": SURE, "b": negative(SURE), "c": OPEN, "d": OPEN}
    line = study_report(made_study("forms", shifts)).splitlines()[0]
    assert line == (
        "- I-AUROC: surely above the run: row a (+0.100); surely below the run: row b (−0.100); "
        "not told from the run: 2 of 4 (+0.010 to +0.010)."
    )


def test_a_difference_of_the_size_that_is_told_is_just_seen():
    """Half of the interval of 95 %: a mean of that size has p = 0.05."""
    study = made_study("forms", {"a": OPEN})
    size = float(study_report(study).split("about ")[1].split(" in")[0])
    values = np.array(list(OPEN.values()))
    assert ttest_1samp(values - values.mean() + size, 0).pvalue == pytest.approx(0.05, abs=1e-3)


def test_collapse_is_told_but_for_the_row_that_is_one_number():
    shifts = {"scalar": SURE, "a": SURE}
    flat = {"scalar": 0.0}
    text = study_report(made_study("inputs", shifts | {"d_zeros": OPEN}, w_std=flat))
    assert "In no training w collapsed to a constant, but for the row" in text
    text = study_report(made_study("forms", shifts, w_std=flat | {"a": 0.001}))
    assert "**w collapsed** to a constant in at least one modality: row a (6 of 6)." in text
    assert "The run is among them" not in text
    text = study_report(made_study("forms", shifts, w_std={RUN.name: 0.001}))
    assert "this run (6 of 6)" in text and "The run is among them" in text


# ---------------------------------------------------------------- effects as text


def summary_of(shifts, **kwargs):
    return ablations.summary(make_config("smoke"), made_rows(shifts, **kwargs), RUN.name)


def test_effects_in_words_have_the_p_of_the_tables():
    shifts = {"sep_form": SURE, "mar_form": negative(SURE), "l1": OPEN}
    texts = effect_texts(summary_of(shifts, w_std={"mar_form": 0.001}))
    forms = made_study("forms", {name: shifts[name] for name in ("sep_form", "mar_form")})
    p = study_effects(forms).set_index(["metric", "variant"]).loc[("i_auroc", "sep_form"), "p"]
    assert texts["sep_form"] == (
        f"I-AUROC +0.100 ± 0.006 (p = {p:.2g}), AUPRO@30 % +0.100 ± 0.006 (p = {p:.2g})"
    )
    assert texts["mar_form"].startswith("I-AUROC −0.100 ± 0.006")
    assert texts["mar_form"].endswith("; w collapsed")
    # by itself in its study, so not corrected
    raw = ttest_1samp(list(OPEN.values()), 0).pvalue
    assert f"I-AUROC +0.010 ± 0.059 (p = {raw:.2g})" in texts["l1"]
    assert set(texts) == set(shifts) and not any("|" in text for text in texts.values())


def test_effects_in_words_without_an_error_and_without_rows():
    texts = effect_texts(summary_of({"scalar": SURE}, categories=("foam",), seeds=(0,)))
    assert texts == {"scalar": "I-AUROC +0.100, AUPRO@30 % +0.100"}
    assert effect_texts(summary_of({})) == {}


def test_the_summary_keeps_the_smallest_spread_of_w():
    rows = made_rows({"a": SURE})
    rows.loc[rows.index[-1], "w_std"] = 0.002
    kept = ablations.summary(make_config("smoke"), rows, RUN.name)["rows"]
    assert {row["variant"]: row["w_std"] for row in kept} == {RUN.name: 0.3, "a": 0.002}


# ---------------------------------------------------------------- on a made-up run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the folder of the made-up run is, so that it is made once."""
    return tmp_path_factory.mktemp("analyses")


@pytest.fixture
def ready(home, small_config, made_run, monkeypatch):
    """A config whose features are there; the made-up run has the category foam only."""
    config = small_config.replace(runs_root=str(home))
    if not any(home.iterdir()):
        made_run(config)
    monkeypatch.setattr(ablations, "checked_categories", lambda config, asked: ("foam",))
    return config


def test_studies_run_on_a_run_and_their_rows_are_those_of_run_variants(ready):
    rows, found = run_studies(
        ready, checked_analyses(["sigma"]), "{'hidden': 8}", seeds="[0, 1]", progress=False
    )
    assert list(found) == ["sigma", "own"] and len(rows) == 3 * 2
    again = ablations.run_variants(
        ready, [RUN, Variant("own", "", {"hidden": 8})], seeds=(0, 1), progress=False
    )
    pd.testing.assert_frame_equal(
        found["own"].rows.reset_index(drop=True), again.reset_index(drop=True)
    )
    fixed = found["sigma"].rows.query("variant == 'sigma_rule'")
    assert (fixed["sigma_pcd"] == 0.5).all()


def test_the_leak_is_the_ratio_of_mean_distances(ready):
    labels = {RUN.name: "run", "all": "all"}
    study = Study("bank_fraction", labels, {RUN.name: 0.3, "all": 1.0}, made_rows({}, ("foam",)))
    found = leak_rows(ready, study).set_index("variant")
    config = dataclasses.replace(ready, bank=dataclasses.replace(ready.bank, bank_fraction=1.0))
    banks = built_banks(config)
    train = foreground_features(load_features(ready, "train")[0])
    assert found.loc["all", "num_pcd"] == len(train["pcd"])
    patches, marks = load_features(config, "synthetic_validation")
    feat = banks.standardiser(foreground_features(patches))
    normal = ~torch.cat([m[p.foreground] for m, p in zip(marks, patches, strict=True)])
    detector = fitted(config)
    for place, mod in enumerate(MODALITIES):
        nearest = torch.cdist(feat[mod][:], banks.banks[mod].prototypes).min(dim=1).values
        ratio = float(detector.metric.s_mean[place] / nearest[normal].mean())
        assert found.loc["all", f"ratio_{mod}"] == pytest.approx(ratio, rel=1e-4)
    table = leak_table(found.reset_index(), study)
    assert list(table.index) == ["run", "all"]
    own = found.loc[RUN.name, "ratio_pcd"]
    assert f"points {own:.0%}" in leak_report(found.reset_index(), study)
