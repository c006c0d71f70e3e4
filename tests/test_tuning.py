"""Settings are chosen on pasted validation scans, with one budget for all, and no test scan."""

import json
import shutil

import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from g2sf_lib import baselines, benchmark, experiments, synthesis, tuning
from g2sf_lib.baselines import Baseline
from g2sf_lib.benchmark import TRAINED, Split, fitted_peer
from g2sf_lib.config import MODALITIES, leaf_fields, make_config, scans_dir, stage_dir
from g2sf_lib.detector import G2SF, counted_cells, flat_settings
from g2sf_lib.experiments import (
    done_file,
    load_banks,
    load_features,
    run_bank,
    synthetic_cells,
    synthetic_scans,
)
from g2sf_lib.features import foreground_features
from g2sf_lib.tuning import (
    PEER_CANDIDATES,
    WEIGHT_CANDIDATES,
    select_loss_weights,
    select_peer_settings,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]


@pytest.fixture
def run(small_config, made_run, monkeypatch):
    """A config whose banks are there; two candidates a method."""
    monkeypatch.setattr(tuning, "WEIGHT_CANDIDATES", WEIGHT_CANDIDATES[3:5])
    few = {
        "cfm": ({"cfm_learning_rate": 3e-3, "cfm_epochs": 1},
                {"cfm_learning_rate": 3e-3, "cfm_epochs": 3}),
        "ast": ({"ast_learning_rate": 1e-3, "ast_epochs": 1},
                {"ast_learning_rate": 3e-3, "ast_epochs": 2}),
    }  # fmt: skip
    monkeypatch.setattr(tuning, "PEER_CANDIDATES", few)
    config = made_run(small_config)
    run_bank(config)
    return config


def pairs():
    return [(m, candidate) for m in TRAINED for candidate in tuning.PEER_CANDIDATES[m]]


def changed(config, **settings):
    return make_config(**(flat_settings(config) | settings))


# ------------------------------------------------------------------ the candidates


def test_all_three_trained_methods_have_six_candidates():
    every = {"g2sf": WEIGHT_CANDIDATES} | PEER_CANDIDATES
    assert every.keys() == {"g2sf", *TRAINED}
    for method, candidates in every.items():
        assert len(candidates) == 6, method
        assert len({tuple(sorted(c.items())) for c in candidates}) == 6, f"{method}: one is twice"
        assert len({tuple(c) for c in candidates}) == 1, f"{method}: other names"


def test_candidates_are_settings_of_the_methods_own_section():
    leaves = leaf_fields()
    for method, candidates in ({"loss": WEIGHT_CANDIDATES} | PEER_CANDIDATES).items():
        for candidate in candidates:
            assert {leaves[name][0] for name in candidate} == {method}
            make_config(**candidate)


def test_what_the_demo_uses_is_among_the_candidates():
    demo = flat_settings(make_config("demo"))
    for candidates in (WEIGHT_CANDIDATES, *PEER_CANDIDATES.values()):
        assert {name: demo[name] for name in candidates[0]} in candidates


def test_every_loss_weight_is_among_the_candidates_with_the_authors():
    names = {"alpha", "beta", "gamma", "mu"}
    assert all(candidate.keys() == names for candidate in WEIGHT_CANDIDATES)
    assert {"alpha": 10.0, "beta": 40.0, "gamma": 3.0, "mu": 20.0} in WEIGHT_CANDIDATES


# ------------------------------------------------------------------ the loss weights


def test_weights_are_judged_candidate_by_candidate(run):
    table = select_loss_weights(run, [run.category])
    assert len(table) == 2 and set(table["category"]) == {"foam"}
    for (_, row), weights in zip(table.iterrows(), tuning.WEIGHT_CANDIDATES, strict=True):
        assert {name: row[name] for name in weights} == weights
        for judged in ("image_auroc", "cell_ap", "cell_auroc", "w_ends"):
            assert 0 <= row[judged] <= 1
        assert row["w_std"] >= 0 and 0 <= row["best_epoch"] <= run.training.epochs
    record = json.loads(done_file(run, "loss_weights").read_text())
    assert record["result"]["rows"] == table.to_dict("records")
    assert record["config_hash"] == run.stage_hash("lspn")
    assert not done_file(run, "lspn").exists()  # the trials leave no detector behind
    assert not stage_dir(run, "lspn").exists()


def test_weights_are_judged_on_pasted_validation_cells_that_count(run):
    table = select_loss_weights(run, [run.category])
    trial = changed(run, **tuning.WEIGHT_CANDIDATES[1])
    detector, banks = G2SF(trial), load_banks(run)
    detector.standardiser = banks.standardiser
    detector.banks = {mod: banks.banks[mod] for mod in MODALITIES}
    detector.fit_cells(synthetic_cells(trial))
    patches, labels = load_features(run, "synthetic_validation")
    assert len(patches) == 3
    scores = detector.score_cells(foreground_features(patches)).cell_score
    check_judged(table.iloc[1], scores, patches, labels)
    best = detector.history[int(table.iloc[1]["best_epoch"])]
    assert best["heldout"] == min(row["heldout"] for row in detector.history)
    untouched = load_features(run, "validation")[0]
    largest = [detector.predict_patches(p).image_score for p in (*untouched, *patches)]
    truth = [False] * len(untouched) + [True] * len(patches)
    assert table.iloc[1]["image_auroc"] == pytest.approx(roc_auc_score(truth, largest))
    assert table.iloc[1]["w_std"] == min(best["w_std_pcd"], best["w_std_rgb"])


def check_judged(row, scores, patches, labels):
    """Compare with scikit-learn over the foreground cells that are not silhouette.

    Cells up to two away from a pasted one, corners included, are neither.
    """
    inside = []
    for p, label in zip(patches, labels, strict=True):
        grid = label.view(1, 1, 8, 8).float()
        near = torch.nn.functional.max_pool2d(grid, 5, 1, 2).view(-1) > 0
        inside.append((counted_cells(p, "exclude") & (label | ~near))[p.foreground])
    truth = [label[p.foreground] for label, p in zip(labels, patches, strict=True)]
    chosen = torch.cat(inside)
    truth, scores = torch.cat(truth)[chosen].numpy(), scores[chosen].numpy()
    assert 0 < truth.sum() < len(truth)
    assert row["cell_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-6)
    assert row["cell_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)


# ------------------------------------------------------------------ the peers


def test_peers_are_judged_candidate_by_candidate(run):
    table = select_peer_settings(run, [run.category])
    assert list(zip(table["method"], table["settings"], strict=True)) == pairs()
    assert list(table.columns) == ["category", "method", "settings", "cell_ap", "cell_auroc"]
    assert set(table["category"]) == {"foam"}
    record = json.loads(done_file(run, "peer_settings").read_text())
    assert record["result"]["rows"] == table.to_dict("records")
    assert record["config_hash"] == run.stage_hash("bank")
    assert len(set(table["cell_ap"])) == len(table)  # the candidates did train apart


def test_peers_are_judged_on_pasted_validation_cells_that_count(run):
    table = select_peer_settings(run, [run.category])
    patches, labels = load_features(run, "synthetic_validation")
    scans = list(synthetic_scans(run, "validation", [run.category]))
    for number, (method, candidate) in enumerate(pairs()):
        trial = changed(run, **candidate)
        peer = Baseline(method, trial)
        normal = load_features(run, "train")[0]
        depths = Split(run, "train").depths(peer)
        peer.fit_patches(normal, depths=depths)
        pasted = [peer.depth(scan) for scan in scans]  # the depth of the paste, not of the target
        scores = torch.cat([scan.cells for scan in peer.score_scans(patches, pasted)])
        check_judged(table.iloc[number], scores, patches, labels)


def test_trained_candidates_are_kept_and_serve_the_benchmark(run, monkeypatch):
    table = select_peer_settings(run, [run.category])
    kept = {}
    for method, candidate in pairs():
        folder = stage_dir(changed(run, **candidate), method)
        kept |= {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sum(path.name == "baseline.json" for path in kept) == len(pairs())
    monkeypatch.setattr(baselines, "train_cfm", None)
    monkeypatch.setattr(baselines, "train_ast", None)
    pd.testing.assert_frame_equal(select_peer_settings(run, [run.category]), table)
    for method, candidate in pairs():
        trial = changed(run, **candidate)
        peer = fitted_peer(trial, method, Split(trial, "train"), load_banks(trial))
        assert getattr(peer, method) is not None and peer.config.stage_hash(
            method
        ) == trial.stage_hash(method)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_interrupted_choice_goes_on_with_the_candidate_it_was_at(run, monkeypatch):
    real, trained = baselines.train_ast, []

    def interrupted(*given):
        trained.append(given[2])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(baselines, "train_ast", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select_peer_settings(run, [run.category])
    assert not done_file(run, "peer_settings").exists()
    monkeypatch.setattr(baselines, "train_cfm", None)  # they are done
    table = select_peer_settings(run, [run.category])
    assert len(table) == 4 and [s.ast_epochs for s in trained] == [1, 2, 2]


def test_every_category_has_its_rows_and_its_own_scans(run, made_run):
    run_bank(made_run(run, "rope", test_seed=900))
    tables = select_peer_settings(run, ["foam", "rope"])
    assert list(tables["category"]) == ["foam"] * 4 + ["rope"] * 4
    weights = select_loss_weights(run, ["foam", "rope"])
    assert list(weights["category"]) == ["foam"] * 2 + ["rope"] * 2


# ------------------------------------------------------------------ no test scan


@pytest.fixture
def no_test_split(monkeypatch):
    """Refuse whoever reads the test split, by features or by scans."""

    def refusing(real):
        def read(*given):
            assert "test" not in given, f"{real.__name__} reads the test split"
            return real(*given)

        return read

    for module in (experiments, benchmark, tuning, synthesis):
        for name in ("load_features", "list_prepared"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    with pytest.raises(AssertionError, match="load_features reads the test split"):
        benchmark.load_features(None, "test")


@pytest.mark.parametrize("select", [select_loss_weights, select_peer_settings])
def test_no_test_scan_is_read(run, no_test_split, select):
    table = select(run, [run.category])
    assert len(table) > 0


@pytest.mark.parametrize("select", [select_loss_weights, select_peer_settings])
def test_nothing_of_the_test_split_chooses_a_setting(run, select):
    table = select(run, [run.category])
    shutil.rmtree(scans_dir(run) / run.category / "test")
    shutil.rmtree(stage_dir(run, "features") / "test")
    for method, candidate in pairs():
        shutil.rmtree(stage_dir(changed(run, **candidate), method), ignore_errors=True)
    pd.testing.assert_frame_equal(select(run, [run.category]), table)


def test_pasted_labels_do_matter(run):
    """The counterpart: what does take part in the choice changes it."""
    table = select_peer_settings(run, [run.category])
    for file in experiments.synthetic_files(run, "synthetic_validation"):
        patches, labels = experiments.load_patches(file)
        experiments.save_patches(file, patches, labels.flip(0))
    other = select_peer_settings(run, [run.category])
    assert not table["cell_ap"].equals(other["cell_ap"])
