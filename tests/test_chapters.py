"""What the chapters show is what it says: by hand on small numbers, and on a made-up run."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from g2sf_lib import chapters
from g2sf_lib.benchmark import Scores
from g2sf_lib.config import MODALITIES, LossConfig, make_config, scans_dir, stage_dir
from g2sf_lib.datasets.preprocess import list_prepared
from g2sf_lib.detector import counted_cells
from g2sf_lib.experiments import load_features, run_bank, run_lspn
from g2sf_lib.features import Patches

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


# ---------------------------------------------------------------- scans


def test_scans_are_counted_and_found(run):
    counts = chapters.scan_counts(run, ["foam"]).loc["foam"]
    assert dict(counts) == {
        "train/good": 6, "validation/good": 3, "test/good": 4, "test/dent": 2, "test/stain": 2,
    }  # fmt: skip
    assert chapters.defect_labels(run, "foam") == ["dent", "stain"]
    assert chapters.prepared_scan(run, "test", "stain", 1).name == "test/stain/001"
    assert [s.name for s in chapters.some_scans(run, "test", [4, 0])] == [
        "test/dent/000", "test/good/000",
    ]  # fmt: skip


def test_a_raw_scan_by_label_and_number(tmp_path):
    config = make_config(dataset="mvtec3d", data_root=str(tmp_path), category="bagel")
    for number in range(2):
        for kind, suffix in (("rgb", "png"), ("xyz", "tiff")):
            path = tmp_path / "bagel/train/good" / kind / f"{number:03d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "rgb":
                Image.fromarray(np.full((4, 5, 3), 7 + number, np.uint8)).save(path)
            else:
                rows, columns = np.indices((4, 5)) * 1e-3
                xyz = np.stack([columns, rows, rows * 0 + 0.5], axis=-1).astype(np.float32)
                tifffile.imwrite(path, xyz, photometric="rgb")
    scan = chapters.raw_scan(config, "bagel", number=1)
    assert scan.name == "train/good/001" and (scan.rgb == 8).all()
    with pytest.raises(ValueError, match="bagel/train/good: 2 scans.*number 2"):
        chapters.raw_scan(config, "bagel", number=2)


def test_a_stain_changes_no_depth_and_a_dent_hardly_any_albedo():
    scans, changes = chapters.defect_changes("gland", 3, ["dent", "stain"], size=96)
    moved, tinted = changes["depth changed (mm)"], changes["albedo changed"]
    assert all(scan.rgb.shape[:2] == scan.mask.shape == (24, 24) for scan in scans)
    assert moved[0][scans[0].mask].mean() > 0.25
    assert (moved[1] == 0).all()
    assert (tinted[1][scans[1].mask] > 0.03).mean() > 0.9
    assert (tinted[0] > 0.03).mean() < 0.1


# ---------------------------------------------------------------- features


def test_cells_are_counted_by_kind(run):
    counts = chapters.cell_counts(run)
    patches, labels = load_features(run, "synthetic")
    assert counts.loc["synthetic", "scans"] == 6
    assert counts.loc["synthetic", "cells on the object"] == sum(
        int(p.foreground.sum()) for p in patches
    )
    assert counts.loc["synthetic", "anomalous cells"] == sum(int(lab.sum()) for lab in labels)
    assert counts.loc["train", "anomalous cells"] == 0
    assert (counts["cells that count"] < counts["cells on the object"]).all()


def test_what_is_planted_touches_one_modality_at_one_place(make_sample):
    scan = make_sample(0)
    blot, bump = chapters.planted(scan)
    assert (blot.mask == bump.mask).all() and 0 < blot.mask.sum() < 0.05 * blot.mask.size
    assert (blot.xyz == scan.xyz).all() and (bump.rgb == scan.rgb).all()
    assert (np.any(blot.rgb != scan.rgb, axis=-1) == blot.mask).all()
    raised = scan.xyz[..., 2] - bump.xyz[..., 2]
    assert raised.max() == pytest.approx(0.0015, rel=0.05) and (raised[~bump.mask] == 0).all()
    rows, columns = np.argwhere(blot.mask).mean(axis=0) - np.array(scan.mask.shape) / 2
    assert abs(rows) > 4 and abs(columns) > 4 and abs(abs(rows) - abs(columns)) > 1


def test_changed_features_are_mapped_where_they_are(run, make_sample, monkeypatch):
    class Means:  # a cell is the mean of its pixels
        def __init__(self, config, device):
            pass

        def __call__(self, sample):
            feat = {}
            for mod, values in (("pcd", sample.xyz), ("rgb", sample.rgb)):
                blocks = values.astype(np.float32).reshape(8, 12, 8, 12, 3).mean(axis=(1, 3))
                feat[mod] = torch.from_numpy(blocks.reshape(64, 3))
            return Patches(feat, (8, 8), (feat["pcd"] != 0).any(dim=1))

    monkeypatch.setattr(chapters.features, "FeatureExtractor", Means)
    scan = make_sample(0)
    copies = chapters.planted(scan)
    moved = chapters.feature_changes(run, scan, copies)
    cell = tuple((np.argwhere(copies[0].mask).mean(axis=0) // 12).astype(int))
    for mod, own, other in (("rgb", 0, 1), ("pcd", 1, 0)):
        assert np.unravel_index(moved[mod][own].argmax(), (8, 8)) == cell
        assert (moved[mod][other] == 0).all()


def test_repeated_scans_are_noticed(run, make_sample, write_prepared):
    assert chapters.repeated_scans(run) == 6 + 3  # the made-up run has one good scan many times
    for number in range(4):
        write_prepared(run, "test", make_sample(70 + number), number)
    assert chapters.repeated_scans(run) == 0


def test_scans_from_outside_training_are_named(run):
    train = list_prepared(scans_dir(run), "foam", "train")
    test = list_prepared(scans_dir(run), "foam", "test")
    assert chapters.scans_outside_training(train) == []
    assert chapters.scans_outside_training([train[0], test[2]]) == [test[2]]


# ---------------------------------------------------------------- bank


def test_radius_curve_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 3, generator=generator)
    prototypes = rows[torch.randperm(50, generator=generator)[:7]]
    expected = [
        max(min(math.dist(row, p) for p in prototypes[:n]) for row in rows) for n in range(1, 8)
    ]
    assert chapters.radius_curve(rows, prototypes) == pytest.approx(expected, abs=1e-5)


def test_coverage_ends_where_the_bank_ends(banked):
    config, banks = banked
    curves = chapters.coverage(config, banks)
    assert list(curves) == [
        "points, greedy bank", "points, random rows", "RGB, greedy bank", "RGB, random rows",
    ]  # fmt: skip
    for mod, name in (("pcd", "points"), ("rgb", "RGB")):
        own = curves[f"{name}, greedy bank"]
        assert own == pytest.approx(banks.banks[mod].radius.numpy(), abs=1e-4)
        assert len(curves[f"{name}, random rows"]) == len(own)


def test_isotropic_distances_are_one_on_normal_cells(banked):
    config, banks = banked
    every = dataclasses.replace(
        config, scoring=dataclasses.replace(config.scoring, silhouette="count")
    )
    s, is_anomalous = chapters.isotropic(every, banks, "validation")
    assert s.mean(axis=0) == pytest.approx([1, 1], rel=1e-5) and not is_anomalous.any()
    counted, _ = chapters.isotropic(config, banks, "validation")
    assert len(counted) < len(s)


def test_isotropic_image_score_is_the_largest_counted_cell(banked):
    config, banks = banked
    maps, image = chapters.isotropic_scores(config, banks)
    assert maps["rgb"].shape == (8, 32, 32) and image["pcd"].shape == (8,)
    patches = load_features(config, "test")[0][5]
    counts = counted_cells(patches, "exclude")
    feat = banks.standardiser({mod: patches.feat[mod][counts] for mod in MODALITIES})
    for m, mod in enumerate(MODALITIES):
        nearest = banks.banks[mod].query(feat[mod], 1)[1].max() / banks.calibration.mean[m]
        assert image[mod][5] == pytest.approx(float(nearest), rel=1e-5)


LABELS = ["good", "good", "good", "good", "dent", "stain", "stain"]


def test_share_of_good_below_counts_ties_half():
    scores = np.array([1.0, 2, 2, 4, 3, 2, 0])
    share = chapters.share_of_good_below(scores, LABELS)
    assert share[4:] == pytest.approx([0.75, 0.5, 0.0])


def test_blind_spots_are_defective_scans_with_the_largest_gap():
    image = {
        "rgb": np.array([1.0, 2, 3, 4, 0.0, 9.0, 2.5]),
        "pcd": np.array([9.0, 2, 3, 4, 8.0, 1.0, 2.5]),  # the first good scan has the largest gap
    }
    assert [number for _, number in chapters.blind_spots(LABELS, image)] == [5, 4]
    same = dict.fromkeys(MODALITIES, image["rgb"])
    assert all(number >= 4 for _, number in chapters.blind_spots(LABELS, same))


def test_maps_against_good_scans_by_hand():
    maps = np.zeros((3, 1, 4))
    maps[0, 0] = [0, 1, 2, 3]  # good: median 2, highest 3
    maps[2, 0] = [0, 2.5, 1, 7]
    (shown,) = chapters.against_good(maps, ["good", "good", "dent"], [2])
    assert shown.ravel() == pytest.approx([0, 0.5, 0, 1])


def test_direction_shares_know_that_normal_cells_move_along_half_of_the_axes(banked):
    shares = chapters.direction_shares(*banked)
    for name, dim in (("points", 6), ("RGB", 8)):
        assert len(shares[name]) == dim and shares[name].sum() == pytest.approx(1, abs=1e-4)
        assert (np.diff(shares[name]) <= 0).all()
        assert shares[name][: dim // 2].sum() > 0.9


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
