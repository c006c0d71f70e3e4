"""Settings are chosen on pasted validation scans, with one budget for all, and no test scan."""

import json
import shutil

import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from g2sf_lib import tuning
from g2sf_lib.benchmark import Split, fitted_method
from g2sf_lib.cells import counted_cells
from g2sf_lib.config import flat_settings, leaf_fields, make_config, with_settings
from g2sf_lib.experiments import fitted, load_features, run_bank
from g2sf_lib.features import foreground_features
from g2sf_lib.stages import done_file, scans_dir, stage_dir
from g2sf_lib.tables import candidate_table
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
EVERY = {"loss": WEIGHT_CANDIDATES} | PEER_CANDIDATES  # section of the config -> candidates
SELECT = pytest.mark.parametrize("select", [select_loss_weights, select_peer_settings])


@pytest.fixture
def run(small_config, made_run, monkeypatch):
    """A config whose banks are there; two candidates a method."""
    monkeypatch.setattr(tuning, "WEIGHT_CANDIDATES", WEIGHT_CANDIDATES[3:5])
    few = {
        "cfm": [{"cfm_learning_rate": 3e-3, "cfm_epochs": epochs} for epochs in (1, 3)],
        "ast": [{"ast_learning_rate": 1e-3 * epochs, "ast_epochs": epochs} for epochs in (1, 2)],
    }
    monkeypatch.setattr(tuning, "PEER_CANDIDATES", few)
    config = made_run(small_config)
    run_bank(config)
    return config


@pytest.mark.parametrize("section", EVERY)
def test_every_trained_method_has_six_candidates_the_demo_s_among_them(section):
    candidates, demo = EVERY[section], flat_settings(make_config("demo"))
    assert len({tuple(candidate.items()) for candidate in candidates}) == 6
    assert {name: demo[name] for name in candidates[0]} in candidates
    for candidate in candidates:
        assert candidate.keys() == candidates[0].keys()
        assert {leaf_fields()[name][0] for name in candidate} == {section}
        make_config(**candidate)


def check_judged(row, scores, patches, labels):
    """Compare with scikit-learn over the foreground cells that are not silhouette.

    Cells up to two away from a pasted one, corners included, are neither.
    """
    inside = []
    for p, label in zip(patches, labels, strict=True):
        near = torch.nn.functional.max_pool2d(label.view(1, 1, 8, 8).float(), 5, 1, 2).view(-1) > 0
        inside.append((counted_cells(p, "exclude") & (label | ~near))[p.foreground])
    truth = torch.cat([label[p.foreground] for label, p in zip(labels, patches, strict=True)])
    chosen = torch.cat(inside)
    truth, scores = truth[chosen].numpy(), scores[chosen].numpy()
    assert 0 < truth.sum() < len(truth)
    assert row["cell_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-6)
    assert row["cell_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)


def test_weights_are_judged_on_pasted_validation_scans(run):
    table = select_loss_weights(run, [run.category])
    pasted, untouched = Split(run, "synthetic_validation"), load_features(run, "validation")[0]
    patches, labels = pasted.patches, pasted.cell_labels
    truth = [False] * len(untouched) + [True] * len(patches)
    for (_, row), weights in zip(table.iterrows(), tuning.WEIGHT_CANDIDATES, strict=True):
        assert row["category"] == "foam" and {name: row[name] for name in weights} == weights
        detector = fitted(with_settings(run, weights))
        scores = detector.score_cells(foreground_features(patches)).cell_score
        check_judged(row, scores, patches, labels)
        largest = [detector.predict_patches(p).image_score for p in (*untouched, *patches)]
        assert row["image_auroc"] == pytest.approx(roc_auc_score(truth, largest))
        best = detector.history[row["best_epoch"]]
        assert best["heldout"] == min(epoch["heldout"] for epoch in detector.history)
        assert row["w_std"] == min(best["w_std_pcd"], best["w_std_rgb"])
    record = json.loads(done_file(run, "loss_weights").read_text())
    assert record["result"]["rows"] == table.to_dict("records")


def test_peers_are_judged_on_pasted_validation_scans(run):
    table = select_peer_settings(run, [run.category])
    pairs = [(m, c) for m, candidates in tuning.PEER_CANDIDATES.items() for c in candidates]
    assert list(zip(table["method"], table["settings"], strict=True)) == pairs
    assert len(set(table["cell_ap"])) == len(table)  # the candidates did train apart
    for (_, row), (method, candidate) in zip(table.iterrows(), pairs, strict=True):
        pasted = Split(run, "synthetic_validation", [run.category])
        scorer = fitted_method(with_settings(run, candidate), method, Split(run, "train"))
        check_judged(row, scorer.score(pasted)[0], pasted.patches, pasted.cell_labels)
    record = json.loads(done_file(run, "peer_settings").read_text())
    assert record["result"]["rows"] == table.to_dict("records")


@SELECT
def test_every_category_has_its_rows_and_what_is_trained_is_kept(run, made_run, select):
    run_bank(made_run(run, "rope", test_seed=900))
    table = select(run, ["foam", "rope"])
    assert table["category"].value_counts().to_dict() == {
        "foam": len(table) / 2,
        "rope": len(table) / 2,
    }
    kept = {p: p.stat().st_mtime_ns for p in run_files(run)}
    pd.testing.assert_frame_equal(select(run, ["foam", "rope"]), table)
    assert {p: p.stat().st_mtime_ns for p in run_files(run)} == kept


@SELECT
def test_nothing_of_the_test_split_chooses_a_setting(run, select):
    table = select(run, [run.category])
    shutil.rmtree(scans_dir(run) / run.category / "test")
    shutil.rmtree(stage_dir(run, "features") / "test")
    for file in run_files(run):
        file.unlink()
    pd.testing.assert_frame_equal(select(run, [run.category]), table)


def run_files(run):
    """Return the files that the trainings of candidates left behind."""
    folder = stage_dir(run, "lspn").parent
    return [p for stage in ("lspn", "cfm", "ast") for p in folder.glob(f"{stage}-*/*.json")]


def test_candidates_stand_best_first_with_paired_errors():
    values = {"a": (0.5, 0.7), "b": (0.6, 0.9), "c": (0.1, 0.2)}
    rows = pd.DataFrame(
        [(category, name, value) for name, two in values.items()
         for category, value in zip(("foam", "rope"), two, strict=True)],
        columns=["category", "candidate", "ap"],
    )  # fmt: skip
    table = candidate_table(rows, "ap", "a")
    assert table.to_dict("index") == {
        "b": {"mean": "0.750 ± 0.150", "minus the best": "0.000 ± 0.000", "of this run": ""},
        "a": {"mean": "0.600 ± 0.100", "minus the best": "−0.150 ± 0.050", "of this run": "yes"},
        "c": {"mean": "0.150 ± 0.050", "minus the best": "−0.600 ± 0.100", "of this run": ""},
    }
    alone = candidate_table(rows[rows["category"] == "foam"], "ap", "none")
    assert alone["minus the best"].tolist() == ["0.000", "−0.100", "−0.500"]
