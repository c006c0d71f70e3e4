"""What the chapters show is what it says: by hand on small numbers, and on a made-up run."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from g2sf_lib import chapters
from g2sf_lib.benchmark import Comparison, Scores
from g2sf_lib.config import MODALITIES
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
