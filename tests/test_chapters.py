"""What the chapters show is what it says: by hand on small numbers, and on a made-up run."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from g2sf_lib import chapters
from g2sf_lib.benchmark import Comparison, Scores
from g2sf_lib.config import MODALITIES, LossConfig, make_config, stage_dir
from g2sf_lib.detector import counted_cells
from g2sf_lib.experiments import load_features, run_bank, run_lspn, scan_labels

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]


@pytest.fixture
def run(small_config, made_run):
    """A config whose features are there."""
    return made_run(small_config)


@pytest.fixture
def banked(run):
    return run, run_bank(run)


LABELS = ["good", "good", "good", "good", "dent", "stain", "stain"]


# ---------------------------------------------------------------- metric


def test_the_untouched_network_keeps_its_three_promises(banked):
    lspn, statements = chapters.untouched_network(banked[0], num_cells=40)
    errors = statements["largest error"].astype(float)
    assert errors["w of the untrained network = 1"] == 0
    assert 0 < errors.max() < 1e-4
    assert (lspn.head.weight == 0).all()


def test_judged_cells_before_and_after(banked):
    config = banked[0]
    detector = run_lspn(config)
    cells = chapters.judged_cells(config, detector)
    assert cells.plain == pytest.approx(cells.s.mean(axis=1), rel=1e-5)
    sigma = detector.metric.sigma().detach().numpy()
    assert cells.learned == pytest.approx((cells.w * cells.s) @ sigma, rel=1e-4)
    assert 0 < cells.is_anomalous.sum() < len(cells.is_anomalous)
    report = chapters.separation_report(cells)
    assert report.count(",") == 4 and "after training 0." in report


def test_the_training_report_tells_a_collapse(banked):
    detector = run_lspn(banked[0])
    for row in detector.history:
        row["w_std_pcd"], row["w_std_rgb"] = 0.3, 0.2
    assert "Not collapsed" in chapters.training_report(detector)
    for row in detector.history:
        row["w_std_rgb"] = 0.001
    assert "**Collapsed**: w of RGB is a constant" in chapters.training_report(detector)


def test_a_stored_detector_is_found_by_its_seed(banked):
    config = dataclasses.replace(banked[0], seed=3)
    trained = run_lspn(config)
    found = chapters.stored_detector(banked[0], 3)
    assert found.history == trained.history
    assert not stage_dir(dataclasses.replace(config, seed=0), "lspn").exists()


# ---------------------------------------------------------------- scores


@pytest.fixture
def scores():
    image = np.array([1.0, 5, 2, 3, 4, 9, 0.5])
    names = [f"test/{label}/{n:03d}" for n, label in enumerate(LABELS)]
    key = ("g2sf", 0, "exclude")
    return Scores(names, LABELS, np.zeros((7, 2, 2), bool), {}, {key: image})


def test_cases_are_picked_by_score(scores):
    cases = chapters.pick_cases(scores, "g2sf", 0, "exclude")
    assert [number for _, number in cases] == [5, 4, 6, 1]
    report = chapters.case_report(scores, cases, "g2sf", 0, "exclude").splitlines()
    assert "`test/stain/005`; 0 of 4 good scans score higher" in report[0]
    assert "`test/dent/004`; 1 of 4 good scans score higher" in report[1]
    assert "`test/stain/006`; 4 of 4 good scans score higher" in report[2]
    assert "`test/good/001`; 2 of 3 defective scans score lower" in report[3]


def test_metric_maps_take_the_score_apart(banked):
    config = banked[0]
    detector = run_lspn(config)
    patches = load_features(config, "test")[0][4:6]
    maps = chapters.metric_maps(detector, patches, cut=1.5)
    assert len(maps) == 5 and all(len(column) == 2 for column in maps.values())
    background = ~patches[0].foreground.reshape(8, 8).numpy()
    for name, column in maps.items():
        assert (column[0][background] == (1 if name.startswith("$w") else 0)).all(), name
        assert column[0].max() <= (math.e if name.startswith("$w") else 1.5)
    feat = {mod: patches[0].feat[mod][patches[0].foreground] for mod in MODALITIES}
    expected = detector.score_cells(feat).cell_score.clamp_max(1.5).numpy()
    assert maps["$s_i$ (fused)"][0][~background] == pytest.approx(expected)


def test_scores_go_back_to_their_points(make_sample):
    score_map = np.zeros((32, 32))
    score_map[4, 20] = 1.0
    shown = chapters.on_points(score_map, make_sample(0))
    assert np.argwhere(shown).min(axis=0).tolist() == [12, 60]
    assert np.argwhere(shown).max(axis=0).tolist() == [14, 62]


# ---------------------------------------------------------------- loss weights


@pytest.fixture
def judged():
    rows = []
    for mu, precision in ((0.0, (0.5, 0.7)), (0.3, (0.6, 0.9)), (20.0, (0.1, 0.2))):
        for category, value in zip(("foam", "rope"), precision, strict=True):
            spread = 0.001 if (mu, category) == (20.0, "rope") else 0.4
            weights = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, "mu": mu}
            judge = {"cell_ap": value, "cell_auroc": 0.9, "image_auroc": 0.8,
                     "w_std": spread, "w_ends": 0.1, "best_epoch": 2}  # fmt: skip
            rows.append({"category": category} | weights | judge)
    return pd.DataFrame(rows)


def test_the_weight_table_is_sorted_and_counts_collapses(judged):
    table = chapters.weight_table(judged)
    assert table["mu"].tolist() == [0.3, 0.0, 20.0]
    assert table["average precision"].tolist() == pytest.approx([0.75, 0.6, 0.15])
    assert table["standard error"][0] == pytest.approx(0.15)
    assert table["collapsed"].tolist() == [0, 0, 1]
    assert chapters.weight_names(judged)["method"][0] == "α 1, β 1, γ 1, μ 0"


def test_the_weight_verdict_by_hand(judged):
    best = chapters.weight_verdict(judged, LossConfig(alpha=1.0, gamma=1.0, mu=0.3))
    assert "are the best" in best and "0.750, 0.150 more" in best
    worse = chapters.weight_verdict(judged, LossConfig(alpha=1.0, gamma=1.0, mu=0.0))
    # 0.1 and 0.2 less: mean 0.15, standard error 0.05
    assert "number 2 of 3" in worse and "0.600, 0.150 less" in worse and "0.050" in worse
    assert "not among" in chapters.weight_verdict(judged, LossConfig(alpha=7.0))


def test_collapsed_candidates_are_named(judged):
    report = chapters.collapse_report(judged)
    assert report.splitlines()[-1] == "- α 1, β 1, γ 1, μ 20: rope"
    assert "None" in chapters.collapse_report(judged[judged["mu"] < 1])


# ---------------------------------------------------------------- benchmark


def compared(config, labels, image, normal=None, maps=None):
    """A comparison of hand-made image scores: category -> method -> (N,), all of seed 0."""
    scores = {
        category: Scores(
            [f"test/{label}/{n:03d}" for n, label in enumerate(labels)],
            labels,
            np.zeros((len(labels), 1, 1), bool),
            maps,
            {(m, 0, "exclude"): np.array(x, float) for m, x in of_category.items()},
            normal or {},
        )
        for category, of_category in image.items()
    }
    methods = tuple(next(iter(image.values())))
    return Comparison(config, tuple(image), methods, (0,), scores, pd.DataFrame())


def test_complementary_cases_over_all_categories(small_config):
    """Foam's stain: RGB above 3 of 4 good scans, points above none. Rope's dent: 0 and 4 of 4."""
    image = {
        "foam": {"rgb": [1, 2, 3, 4, 2.5, 3.5, 0], "pcd": [1, 2, 3, 4, 2.5, 0, 1.5]},
        "rope": {"rgb": [1, 2, 3, 4, 0, 2.5, 2.5], "pcd": [1, 2, 3, 4, 9, 2.5, 1.5]},
    }
    first, second = chapters.complementary_cases(compared(small_config, LABELS, image))
    assert (first.category, first.number, first.label) == ("foam", 5, "stain")
    assert (second.category, second.number, second.label) == ("rope", 4, "dent")
    assert first.title == "RGB most ahead\nof points\nfoam, stain"


def test_complementary_cases_take_the_first_of_equals_and_never_a_good_scan(small_config):
    alike = {"rgb": [9.0, 2, 3, 4, 5, 5, 5], "pcd": [0.0, 2, 3, 4, 5, 5, 5]}
    comparison = compared(small_config, LABELS, {"rope": alike, "foam": alike})
    for case in chapters.complementary_cases(comparison):
        assert (case.category, case.number) == ("rope", 4)


def test_gallery_rules_by_hand(small_config):
    """Median of three defects; the defect most good scans outscore, the good scan that most do."""
    image = {
        "foam": {"g2sf": [1, 2, 3, 4, 5, 2.5, 9]},  # stain 5 is outscored by 2 of 4
        "rope": {"g2sf": [1, 2, 3, 7, 8, 6, 9]},  # stain 5 by 1 of 4; good 3 outscores it
    }
    comparison = compared(small_config, LABELS, image)
    cases = chapters.gallery_cases(comparison, "g2sf", 0)
    assert [(c.rule, c.category, c.number) for c in cases] == [
        ("median find", "foam", 4),
        ("median find", "rope", 4),
        ("worst miss", "foam", 5),
        ("worst\nfalse alarm", "foam", 3),
    ]
    assert [c.label for c in cases] == ["dent", "dent", "stain", "good"]


@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_gallery_ties_go_by_the_distance_from_good_scans(small_config, shift):
    """Each category has one defect below one good scan of four; in rope it is lower by its scale.

    Foam: good scans 0, 1, 1, 2 (median 1, highest 2), the defect at 1.5 is half-way. Rope: good
    scans 0, 10, 10, 20, the defect at 12 is at a fifth, though its score is the larger one. Scores
    may be of either sign.
    """
    image = {
        "foam": {"rgb": np.array([0, 1, 1, 2, 1.5, 4, 5]) + shift},
        "rope": {"rgb": np.array([0, 10, 10, 20, 12, 40, 50]) + shift},
    }
    *_, miss, alarm = chapters.gallery_cases(compared(small_config, LABELS, image), "rgb", 0)
    assert (miss.rule, miss.category, miss.number) == ("worst miss", "rope", 4)
    # The highest good scan is at 1 in both: the first category's.
    assert (alarm.rule, alarm.category, alarm.number) == ("worst\nfalse alarm", "foam", 3)


def test_what_is_no_failure_is_not_called_one(small_config):
    image = {"foam": {"rgb": [1, 2, 3, 4, 8, 6, 9]}}
    *_, miss, alarm = chapters.gallery_cases(compared(small_config, LABELS, image), "rgb", 0)
    assert (miss.rule, miss.number) == ("hardest find", 5)
    assert (alarm.rule, alarm.number) == ("highest\ngood scan", 3)


def test_the_ruler_and_the_columns_follow_the_methods(small_config):
    def of(*methods, seeds=(2, 3)):
        image = {"foam": dict.fromkeys(methods, [0.0] * len(LABELS))}
        comparison = compared(small_config, LABELS, image)
        return dataclasses.replace(comparison, seeds=seeds)

    every = of("g2sf", "w1", "rgb", "pcd", "m3dm", "cfm")
    assert chapters.ruler(every) == ("g2sf", 2)
    assert chapters.panel_methods(every) == {
        "RGB alone": ("rgb", 0), "points alone": ("pcd", 0), "CFM": ("cfm", 2),
        "M3DM": ("m3dm", 2), "G²SF": ("g2sf", 2),
    }  # fmt: skip
    assert chapters.ruler(of("sum", "rgb")) == ("sum", 0)
    assert chapters.panel_methods(of("sum", "ast")) == {"normalised sum": ("sum", 0)}
    assert chapters.panel_methods(of("ast")) == {"AST": ("ast", 2)}


class FixedMaps:
    """Score maps as `benchmark.CellMaps` gives them: one a scan, when asked."""

    def one(self, key, number):
        scale = {"rgb": 1.0, "g2sf": 10.0}[key[0]]
        return scale * np.array([[1.0, 2.0], [3.0, 2.0 + number]])


def test_case_maps_are_in_units_of_validation_scans(run):
    """0 is their median, 1 their highest pixel, of each method; below the median is cut."""
    labels = ["good"] * 4 + ["dent"] * 2 + ["stain"] * 2
    image = {"foam": {"rgb": np.zeros(8), "g2sf": np.zeros(8)}}
    normal = {("rgb", 0): (2.0, 4.0), ("g2sf", 0): (10.0, 30.0)}
    comparison = compared(run, labels, image, normal, FixedMaps())
    cases = [chapters.Case("a rule", "foam", n, labels[n]) for n in (6, 0)]
    columns = {"RGB alone": ("rgb", 0), "G²SF": ("g2sf", 0)}
    samples, maps = chapters.case_maps(comparison, cases, columns)
    assert [sample.name for sample in samples] == ["test/stain/000", "test/good/000"]
    assert list(maps) == list(columns)
    assert maps["RGB alone"][0].tolist() == [[0, 0], [0.5, 3.0]]
    assert maps["RGB alone"][1].tolist() == [[0, 0], [0.5, 0.0]]
    assert maps["G²SF"][0] == pytest.approx(np.array([[0, 0.5], [1.0, 3.5]]))


def test_standings_are_shares_of_other_good_scans(small_config):
    image = {"foam": {"rgb": [1, 2, 3, 4, 3.5, 0, 9], "pcd": [4, 3, 2, 1, 2.5, 9, 0]}}
    comparison = compared(small_config, LABELS, image)
    cases = [chapters.Case("of\ntwo lines", "foam", n, LABELS[n]) for n in (4, 5, 2)]
    table = chapters.standing_report(comparison, cases, {"R": ("rgb", 0), "P": ("pcd", 0)})
    assert list(table.index[:2]) == ["of two lines foam, dent", "of two lines foam, stain"]
    assert table["R"].tolist() == ["0.75", "0.00", "0.67"]  # the good scan: 2 of the 3 others
    assert table["P"].tolist() == ["0.50", "1.00", "0.33"]


def test_tails_say_how_far_normal_pixels_reach_and_which_defects_reach_farther(small_config):
    labels = ["good", "dent", "dent", "stain"]
    plain = np.array([1.0, 3, 5, 2])[:, None, None] * np.ones((4, 2, 2))
    maps = {("w1", 0): plain, ("g2sf", 0): 2 * plain, ("rgb", 0): plain}
    normal = {("w1", 0): (1.0, 4.0), ("g2sf", 0): (1.0, 12.0), ("rgb", 0): (1.0, 1.0)}
    scores = Scores([""] * 4, labels, np.zeros((4, 2, 2), bool), maps, {}, normal)
    config = dataclasses.replace(small_config, category="foam")
    comparison = Comparison(config, ("foam",), ("g2sf", "w1", "rgb"), (0,), {"foam": scores}, None)
    rows = chapters.tails(comparison)
    assert len(rows) == 2 * 2 and "rgb" not in set(rows["method"])  # dents and stains, no "both"
    found = rows.set_index(["method", "group"])
    assert found.loc[("w1", "geometry only"), "found"] == 0.5  # 5 is above 4, 3 is not
    assert found.loc[("g2sf", "geometry only"), "found"] == 0  # 10 is not above 12
    table = chapters.tail_table(rows)
    assert table["highest / median normal pixel"].to_dict() == {
        "G²SF": "12.00",
        "G²SF with w = 1": "4.00",
    }
    assert table.loc["G²SF with w = 1", "above it: geometry only"] == "0.50"
    report = chapters.tail_report(rows)
    assert "3.0 (foam) up to 3.0 times" in report and "changes by -0.25" in report
    assert chapters.tail_report(rows[rows.method == "w1"]).startswith("Needs")
    elsewhere = dataclasses.replace(
        comparison, config=dataclasses.replace(config, dataset="mvtec3d", data_root="x")
    )
    assert set(chapters.tails(elsewhere)["group"]) == {"defects"}


def test_cell_shifts_are_aurocs_of_cells_by_group(banked):
    """Dents are geometry, stains appearance; each against cells of good scans alone."""
    config = banked[0]
    detector = run_lspn(config)
    shifts = chapters.cell_shifts(config, ["foam"], [0])
    assert list(shifts["group"].unique()) == ["pastes", "geometry only", "appearance only"]
    found = shifts.set_index(["group", "quantity"])
    assert len(found) == 3 * 4 and set(shifts["seed"]) == {0}
    patches, labels = load_features(config, "test")
    names = scan_labels(config, "test")
    kept = {"bad": [], "normal": []}
    for name, one, is_anomalous in zip(names, patches, labels, strict=True):
        counts = counted_cells(one, "exclude")
        if name == "good":
            kept["normal"].append((one, counts))
        elif name == "dent":
            kept["bad"].append((one, counts & is_anomalous))
    scored = {}
    for side, scans in kept.items():
        feat = [{m: one.feat[m][cells] for m in MODALITIES} for one, cells in scans]
        joined = {m: torch.cat([f[m] for f in feat]) for m in MODALITIES}
        scored[side] = detector.score_cells(joined)
    bad, normal = scored["bad"], scored["normal"]
    row = found.loc[("geometry only", "trained")]
    a, b = bad.ell[:, 0, None], normal.ell[None, :, 0]
    expected = float(((a > b).float() + 0.5 * (a == b).float()).mean())
    assert row["auroc"] == pytest.approx(expected, abs=1e-6)
    for m, mod in enumerate(MODALITIES):
        ratio = bad.w[:, 0, m].mean() / normal.w[:, 0, m].mean()
        assert row[f"w_{mod}"] == pytest.approx(float(ratio), rel=1e-4)
    s = [side.s[:, 0, 0] for side in (bad, normal)]
    expected = float((s[0][:, None] > s[1]).float().mean())
    alone = found.loc[("geometry only", "points alone"), "auroc"]
    assert alone == pytest.approx(expected, abs=1e-6)


def test_kinds_of_other_data_sets_are_one_group(small_config, made_run, tmp_path):
    """A dent of another data set may change its colour too: nobody says."""
    elsewhere = {"dataset": "mvtec3d", "category": "bagel", "data_root": str(tmp_path)}
    config = made_run(dataclasses.replace(small_config, **elsewhere), "bagel")
    run_bank(config)
    run_lspn(config)
    shifts = chapters.cell_shifts(config, ["bagel"], [0])
    assert list(shifts["group"].unique()) == ["pastes", "defects"]


@pytest.fixture
def shifts():
    """Two categories, two seeds: pastes gain 0.1 and 0.2 (mean over seeds), dents lose 0.1."""
    rows, gains = [], {("foam", 0): 0.0, ("foam", 1): 0.2, ("rope", 0): 0.1, ("rope", 1): 0.3}
    for (category, seed), gain in gains.items():
        for group, before, change in (("pastes", 0.6, gain), ("geometry only", 0.7, -0.1)):
            place = {"category": category, "seed": seed, "group": group}
            place |= {"w_pcd": 1.0 + seed, "w_rgb": 0.5}
            for quantity, value in (("w = 1", before), ("trained", before + change)):
                rows.append(place | {"quantity": quantity, "auroc": value})
    return pd.DataFrame(rows)


def test_shift_rows_are_means_over_seeds_then_categories(shifts):
    rows = chapters.shift_rows(shifts).set_index(["group", "quantity"])
    trained = rows.loc[("pastes", "trained")]
    assert trained["value"] == pytest.approx(0.75) and trained["error"] == pytest.approx(0.05)
    assert rows.loc[("pastes", "w = 1"), "error"] == pytest.approx(0, abs=1e-12)
    one = chapters.shift_rows(shifts[shifts["category"] == "foam"])
    assert (one["error"] == 0).all()  # one category has no spread


def test_the_shift_report_by_hand(shifts):
    lines = chapters.shift_report(shifts).splitlines()
    assert lines == [
        "- pastes: AUROC of cells 0.600 before and 0.750 after training (+0.150 ± 0.050 over "
        "categories); w is 1.50 (points) and 0.50 (RGB) times that of normal cells",
        "- geometry only: AUROC of cells 0.700 before and 0.600 after training (-0.100 ± 0.000 "
        "over categories); w is 1.50 (points) and 0.50 (RGB) times that of normal cells",
    ]
    one = chapters.shift_report(shifts[shifts["category"] == "foam"]).splitlines()[0]
    assert "0.700 after training (+0.100); w is" in one


# ---------------------------------------------------------------- settings of peers


def judged_peers(values):
    """Rows of `tuning.select_peer_settings`: (method, rate, epochs) -> a value a category."""
    return pd.DataFrame(
        [
            {"category": category, "method": method, "cell_ap": value, "cell_auroc": 0.9,
             "settings": {f"{method}_learning_rate": rate, f"{method}_epochs": epochs}}
            for (method, rate, epochs), of_category in values.items()
            for category, value in zip(("foam", "rope"), of_category, strict=True)
        ]
    )  # fmt: skip


@pytest.fixture
def peers():
    return judged_peers(
        {
            ("cfm", 0.001, 25): (0.5, 0.6),
            ("cfm", 0.003, 50): (0.6, 0.8),
            ("ast", 0.001, 6): (0.4, 0.4),
        }
    )


def test_candidates_in_words_and_which_is_the_run_s(peers):
    config = make_config("smoke", category="foam", cfm_learning_rate=0.003, cfm_epochs=50)
    rows = chapters.candidate_rows(peers, config)
    assert rows.iloc[0].to_dict() == {
        "method": "CFM", "candidate": "learning rate 0.001, epochs 25", "category": "foam",
        "value": 0.5, "is_chosen": False,
    }  # fmt: skip
    assert rows["is_chosen"].tolist() == [False, False, True, True, False, False]
    half = make_config("smoke", category="foam", cfm_learning_rate=0.003, cfm_epochs=25)
    assert not chapters.candidate_rows(peers, half)["is_chosen"].any()
    table = chapters.candidate_table(rows).set_index("candidate")
    chosen = table.loc["learning rate 0.003, epochs 50"]
    assert chosen.tolist() == ["CFM", "0.700", "0.100", "yes"]
    assert table["setting of this run"].tolist() == ["", "yes", ""]
    alone = chapters.candidate_table(rows[rows["category"] == "foam"])
    assert (alone["standard error"] == "0.000").all()


@pytest.mark.parametrize(
    ("rate", "epochs", "words"),
    [
        (0.003, 50, "- CFM: learning rate 0.003, epochs 50, the best of 2 candidates"),
        (0.001, 25, "- CFM: learning rate 0.001, epochs 25; the best of 2 candidates is learning "
                    "rate 0.003, epochs 50, by 0.150 ± 0.050 (standard error over categories)"),
        (0.001, 50, "- CFM: the settings of this run are not among the candidates"),
    ],
)  # fmt: skip
def test_the_candidate_verdict_in_all_its_branches(peers, rate, epochs, words):
    settings = {"cfm_learning_rate": rate, "cfm_epochs": epochs}
    settings |= {"ast_learning_rate": 0.001, "ast_epochs": 6}
    config = make_config("smoke", category="foam", **settings)
    lines = chapters.candidate_verdict(chapters.candidate_rows(peers, config)).splitlines()
    assert lines == [words, "- AST: learning rate 0.001, epochs 6, the best of 1 candidates"]


def test_ends_of_ranges_are_told_with_what_the_last_step_brought():
    tried = [(1e-3, 10, 0.6), (1e-3, 20, 0.7), (1e-3, 40, 0.65), (3e-3, 20, 0.58)]
    rows = pd.DataFrame(
        {"method": "cfm", "cell_ap": ap,
         "settings": {"cfm_learning_rate": rate, "cfm_epochs": epochs}, "category": category}
        for rate, epochs, ap in tried for category in ("foam", "rope")
    )  # fmt: skip
    assert chapters.edge_report(rows) == (
        "- CFM: learning rate 0.001 is the smallest tried (+0.120 over 0.003)"
    )
    inside = rows[[s["cfm_learning_rate"] == 1e-3 for s in rows["settings"]]]
    assert chapters.edge_report(inside) == (
        "- CFM: no setting of the best candidate is at an end of its range"
    )
    rising = inside[[s["cfm_epochs"] < 40 for s in inside["settings"]]]
    assert chapters.edge_report(rising) == "- CFM: epochs 20 is the largest tried (+0.100 over 10)"


def test_candidates_of_one_category_have_no_error(peers):
    config = make_config("smoke", category="foam", cfm_learning_rate=0.001, cfm_epochs=25)
    rows = chapters.candidate_rows(peers[peers["category"] == "foam"], config)
    assert chapters.candidate_verdict(rows).splitlines()[0].endswith("epochs 50, by 0.100")
