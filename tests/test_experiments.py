"""The stages of a run: what they read and write, how they go on, and what they must not see."""

import itertools
import json
import shutil
import threading
import warnings

import numpy as np
import pytest
import torch
from filelock import FileLock
from scipy.ndimage import binary_dilation

from g2sf_lib import experiments, synthesis, training
from g2sf_lib.cells import counted_cells
from g2sf_lib.config import MODALITIES, flat_settings, make_config
from g2sf_lib.datasets.preprocess import list_prepared, load_prepared
from g2sf_lib.experiments import (
    at_epoch,
    best_epoch,
    built_banks,
    counted_features,
    epoch_file,
    fitted,
    kept_epochs,
    load_banks,
    load_features,
    patch_file,
    point_sources,
    run_bank,
    run_data,
    run_features,
    run_lspn,
    synthetic_scans,
    training_cells,
)
from g2sf_lib.features import foreground_features, save_patches
from g2sf_lib.memory import MemoryBank
from g2sf_lib.stages import STAGES, done_file, recorded, scans_dir, stage_dir
from g2sf_lib.store import StoredFileError, read_tensors

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]


@pytest.fixture
def run(small_config, made_run):
    """A config whose features are there."""
    return made_run(small_config)


def contents(folder):
    """Return name -> bytes of everything below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def features_of(config):
    """Return name -> bytes of the features of all scans, synthetic ones included."""
    return contents(stage_dir(config, "features")) | contents(stage_dir(config, "pastes"))


def changed(config, **settings):
    return make_config(**(flat_settings(config) | settings))


def forget(config, *stages):
    for stage in stages:
        shutil.rmtree(stage_dir(config, stage))


def test_nothing_of_the_test_split_reaches_bank_and_training(run, made_run, synthetic):
    def fit():
        run_bank(run)
        run_lspn(run)
        return contents(stage_dir(run, "bank")) | contents(stage_dir(run, "lspn"))

    original = fit()
    assert {"banks.safetensors", "detector.safetensors"} <= original.keys()
    forget(run, "bank", "lspn")
    made_run(run, test_seed=900)  # other test scans
    assert fit() == original
    forget(run, "bank", "lspn")
    shutil.rmtree(scans_dir(run) / run.category / "test")  # and none at all
    shutil.rmtree(stage_dir(run, "features") / "test")
    assert fit() == original
    forget(run, "lspn")
    for number in range(6):  # the counterpart: labels do take part
        path = patch_file(run, "synthetic", f"{number:04d}")
        save_patches(path, synthetic[0][number], synthetic[1][number - 1])
    assert fit()["detector.safetensors"] != original["detector.safetensors"]


@pytest.fixture
def scans(small_config, make_sample, write_prepared):
    """A config whose prepared scans are there, of two categories, for real features."""
    features = small_config.features.replace(rgb_size=128, fpfh_grid=48)
    synthesis = small_config.synthesis.replace(
        num_synthetic=4, num_synthetic_validation=2, sources_per_category=2
    )
    config = small_config.replace(features=features, synthesis=synthesis)
    for category in ("foam", "rope"):
        place = config.replace(category=category)
        for split, num in (("train", 3), ("validation", 2), ("test", 2)):
            for number in range(num):
                write_prepared(place, split, make_sample(10 * num + number), number)
    return config


def test_nothing_of_the_test_split_reaches_the_features_of_training(
    scans, make_sample, write_prepared
):
    counts = run_features(scans, ["foam", "rope"])
    assert counts == {
        "train": 3, "validation": 2, "test": 2, "synthetic": 4, "synthetic_validation": 2,
        "pastes_without_cell": 2,  # a quarter of a cell of so coarse a grid is more than they cover
    }  # fmt: skip
    original = features_of(scans)
    assert len(original) == 13
    forget(scans, "features", "pastes")
    for category in ("foam", "rope"):
        place = scans.replace(category=category)
        write_prepared(place, "test", make_sample(77, "combined"), 0)
        write_prepared(place, "test", make_sample(78), 0)
    run_features(scans, ["foam", "rope"])
    changed = features_of(scans)
    kept = {name for name in original if not name.startswith("test/")}
    assert {name: changed[name] for name in kept} == {name: original[name] for name in kept}
    assert changed["test/good_000.safetensors"] != original["test/good_000.safetensors"]


def test_interrupted_feature_extraction_goes_on(scans, monkeypatch):
    run_features(scans, ["foam"])
    original = features_of(scans)
    kept = patch_file(scans, "train", "train/good/001")
    before = kept.stat().st_mtime_ns
    for split, name in (("train", "good/000"), ("synthetic", "0001"), ("test", "test/good/001")):
        patch_file(scans, split, name).unlink()
    made, real = [], synthesis.synthesise
    monkeypatch.setattr(synthesis, "synthesise", lambda *a: made.append(a) or real(*a))
    run_features(scans, ["foam"])
    assert features_of(scans) == original and len(made) == 1
    assert kept.stat().st_mtime_ns == before  # what was there is left alone


def test_synthetic_scans_are_the_same_on_every_call_and_stand_on_their_split(scans, monkeypatch):
    read = []
    real = synthesis.load_prepared
    monkeypatch.setattr(synthesis, "load_prepared", lambda path: read.append(path) or real(path))
    for split, num in (("train", 4), ("validation", 2)):
        read.clear()
        one, other = (list(synthetic_scans(scans, split, ["foam", "rope"])) for _ in range(2))
        assert len(one) == num and all(scan.label in synthesis.CHANGED for scan in one)
        for a, b in zip(one, other, strict=True):
            assert a.rgb.tobytes() == b.rgb.tobytes() and a.xyz.tobytes() == b.xyz.tobytes()
            assert a.mask.any() and np.array_equal(a.mask, b.mask)
        splits = {path.parts[-3] for path in read}
        assert splits == {"train", split}  # pasted points come from training scans


def test_point_sources_are_training_scans_of_every_category(scans):
    sources = point_sources(scans, ["foam", "rope"])
    assert sources == point_sources(scans, ["foam", "rope"]) and len(set(sources)) == 4
    places = [path.parts[-4:-2] for path in sources]
    assert places == [("foam", "train")] * 2 + [("rope", "train")] * 2
    alone = point_sources(changed(scans, pasted_from='["rope"]'), ["foam", "rope"])
    assert alone and {path.parts[-4] for path in alone} == {"rope"}


def test_neighbours_are_looked_up_once_and_the_search_goes_on(run, monkeypatch):
    run_bank(run)
    folder = stage_dir(run, "cells") / "5-nearest"
    original = contents(folder)
    num = len(load_features(run, "train")[0])
    assert len(original) == num + 6
    for name in ("00001", f"{num + 4:05d}"):  # a normal scan, and one with pastes
        (folder / f"{name}.safetensors").unlink()
    searched = []
    real = MemoryBank.query_without
    monkeypatch.setattr(
        MemoryBank, "query_without", lambda self, *a, **k: searched.append(1) or real(self, *a, **k)
    )
    run_lspn(run)  # what is missing is searched, and what is there is not
    assert len(searched) == 2 * 2 and contents(folder) == original


def test_a_cell_never_meets_a_prototype_of_its_own_scan(run):
    """Neighbours are those of a bank without the scan's prototypes, unless they may be kept."""
    banks, cells = run_bank(run), training_cells(run)
    patches = load_features(run, "train")[0]
    for m, mod in enumerate(MODALITIES):
        bank = banks.banks[mod]
        ends = torch.tensor([len(p.cells[mod]) for p in patches]).cumsum(0)
        scan = torch.searchsorted(ends, bank.rows, right=True)
        assert not (scan[cells.index[mod].long()] == cells.target[:, None]).any()
        for target in (0, len(patches) - 1):
            mine = cells.target == target
            others = bank.prototypes[scan != target]
            alone = MemoryBank(others, torch.arange(len(others))).query(cells.feat[mod][mine], 5)
            torch.testing.assert_close(cells.s[mine, :, m], alone[1])
            found = bank.prototypes[cells.index[mod][mine].long()]
            torch.testing.assert_close(found, others[alone[0]])
    kept = changed(run, own_prototypes="keep")
    own = training_cells(kept)
    assert (own.s <= cells.s).all() and (own.s < cells.s).any()
    assert stage_dir(kept, "bank") == stage_dir(run, "bank")


def test_cells_trained_on_are_normal_ones_of_the_scans_and_what_pastes_changed(run):
    """Counted cells only; near a paste, a cell of a synthetic scan is neither."""
    run_bank(run)
    normal, (pasted, labels) = load_features(run, "train")[0], load_features(run, "synthetic")
    cells = training_cells(run)
    for number, patches in enumerate(normal):
        mine, counted = cells.image == number, counted_cells(patches, "exclude")
        assert int(mine.sum()) == int(counted.sum()) and not cells.is_anomalous[mine].any()
        assert (cells.target[mine] == number).all()
    for number, (patches, label) in enumerate(zip(pasted, labels, strict=True)):
        bad = cells.is_anomalous[cells.image == len(normal) + number]
        counted = counted_cells(normal[number % len(normal)], "exclude") & patches.foreground
        assert int(bad.sum()) == int((counted & label.any(1)).sum()) > 0
        near = binary_dilation(label.any(1).view(8, 8).numpy(), np.ones((5, 5)))
        assert int((~bad).sum()) == int((counted & ~torch.from_numpy(near).view(-1)).sum())
    everything = training_cells(changed(run, outline_cells="count", reach_cells=0))
    assert len(everything) == sum(int(p.foreground.sum()) for p in [*normal, *pasted])


def test_a_label_says_which_modality_a_paste_changed(run, make_patches):
    run_bank(run)
    both = torch.tensor([[number % 3 != 1, number % 3 != 2] for number in range(6)])
    for number, changed_in in enumerate(both):
        patches, label = make_patches(100 + number, (27, 28, 35, 36))
        path = patch_file(run, "synthetic", f"{number:04d}")
        save_patches(path, patches, label[:, None] & changed_in)
    cells = training_cells(run)
    num = len(load_features(run, "train")[0])
    assert torch.equal(cells.is_anomalous, cells.changed.any(1))
    bad = cells.is_anomalous
    assert set(cells.image[bad].tolist()) == set(range(num, num + 6))
    assert torch.equal(cells.changed[bad], both[cells.image[bad] - num])


def test_pastes_of_a_variant_are_made_when_they_are_wanted(scans):
    run_features(scans, ["foam", "rope"])
    small = changed(scans, bank_fraction=0.9, label_rule="centre", pasted_from='["foam", "rope"]')
    run_features(small, ["foam", "rope"])
    other = changed(small, paste_in="both", normal_cells="pasted")
    assert not stage_dir(other, "pastes").exists()
    cells = training_cells(other, built_banks(other))
    assert len(load_features(other, "synthetic")[0]) == 4
    assert stage_dir(other, "features") == stage_dir(small, "features")
    assert cells.changed[cells.is_anomalous].all() and (~cells.is_anomalous).any()
    assert set(cells.image.tolist()) <= {0, 1, 2, 3}  # scans with pastes, and no others


def test_an_interrupted_training_goes_on_to_the_same_detector(run, monkeypatch):
    run_bank(run)
    run_lspn(run)
    folder = stage_dir(run, "lspn")
    original = contents(folder)
    forget(run, "lspn")
    done_file(run, "lspn").unlink()
    real, calls = training.loss_cma, itertools.count()

    def interrupted(w_neg, **form):
        if next(calls) >= 9:
            raise KeyboardInterrupt
        return real(w_neg, **form)

    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_cma", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_lspn(run)
    names = {path.name for path in folder.iterdir() if not path.name.startswith("epoch-")}
    assert names == {".lock", "checkpoint.safetensors"} and not done_file(run, "lspn").exists()
    header = read_tensors(folder / "checkpoint.safetensors")["header"]
    assert 1 < len(json.loads(bytes(header.tolist()))["history"]) <= run.training.epochs
    run_lspn(run)
    assert contents(folder) == original


def test_banks_hold_what_the_paper_says(run):
    banks = run_bank(run)
    assert banks.banks.keys() == {"pcd", "rgb", "concat"}
    train = banks.standardiser(foreground_features(load_features(run, "train")[0]))
    train = {mod: rows[:] for mod, rows in train.items()}
    num = round(0.3 * len(train["pcd"]))
    for mod in MODALITIES:
        bank = banks.banks[mod]
        assert bank.prototypes.shape == (num, train[mod].shape[1])
        assert torch.equal(bank.prototypes, train[mod][bank.rows])
        assert train[mod].mean().item() == pytest.approx(0, abs=1e-5)
        assert train[mod].std().item() == pytest.approx(1, abs=1e-5)
    held_out = banks.standardiser(foreground_features(load_features(run, "validation")[0]))
    nearest = torch.cdist(held_out["rgb"][:], banks.banks["rgb"].prototypes).amin(1)
    assert banks.calibration.mean[1].item() == pytest.approx(nearest.mean().item(), rel=1e-4)


def test_what_is_missing_or_damaged_is_named(run):
    with pytest.raises(FileNotFoundError, match="banks.json: not there.*02_memory_bank"):
        run_lspn(run)
    detector, banks = fitted(run), stage_dir(run, "bank") / "banks.safetensors"
    with pytest.raises(StoredFileError, match=r"epoch-0099\.safetensors"):
        at_epoch(run, detector, 99)
    epoch_file(run, 2).write_bytes(epoch_file(run, 2).read_bytes()[:30])
    with pytest.raises(StoredFileError, match=r"epoch-0002\.safetensors"):
        at_epoch(run, detector, 2)
    banks.write_bytes(banks.read_bytes()[:-4])
    with pytest.raises(StoredFileError, match=r"banks\.safetensors: truncated or changed"):
        load_banks(run)
    for split, name in (("train", "good/005"), ("synthetic", "0005")):
        patch_file(run, split, name).unlink()  # one is enough: half a set is not a set
        with pytest.raises(FileNotFoundError, match=f"{split}: features are missing") as caught:
            load_features(run, split)
        assert "01_feature_extraction" in str(caught.value) and "category foam" in str(caught.value)


def test_a_record_says_how_a_result_came_about(small_config):
    with recorded(small_config, "benchmark", STAGES["scores"]) as result:
        result["answer"] = 42
    record = json.loads(done_file(small_config, "benchmark").read_text())
    assert record["stage"] == "benchmark" and record["result"] == {"answer": 42}
    assert record["config_hash"] == STAGES["scores"].hash(small_config)
    assert record["config"]["category"] == "foam" and record["config"]["k"] == 2
    assert record["seed"] == 0 and record["device"] == "cpu"
    assert record["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["wall_s"] >= 0 and record["peak_memory_mb"] > 50
    assert {"git_commit", "python"} <= record.keys()
    with pytest.raises(RuntimeError), recorded(small_config, "bank"):
        raise RuntimeError
    assert not done_file(small_config, "bank").exists()  # a failed stage leaves none


def test_data_are_rendered_and_prepared(small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = changed(
        small_config, num_train=2, num_validation=2, num_good=2, num_defective=5, scan_size=96
    )
    config = config.replace(category="cookie")
    assert run_data(config, ["cookie"]) == {"cookie": 11}
    assert json.loads(done_file(config, "data").read_text())["result"] == {"cookie": 11}
    scans = [load_prepared(path) for path in list_prepared(scans_dir(config), "cookie", "test")]
    assert len(scans) == 7 and [s.label for s in scans[:2]] == ["good", "good"]
    assert all(s.foreground.any() for s in scans) and all(s.mask.any() for s in scans[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_data(config, ["cookie"]) == {"cookie": 11}  # nothing left to do


# ------------------------------------------------------------------ trainings and their variants


@pytest.fixture
def trained(monkeypatch):
    """A list of configs that grows by every training."""
    configs, real = [], experiments._train
    monkeypatch.setattr(experiments, "_train", lambda c, *a: configs.append(c) or real(c, *a))
    return configs


def test_whoever_asks_for_the_same_training_gets_the_same_one(run, trained, monkeypatch):
    detector = fitted(run)  # the banks are built on the way
    run_bank(run)
    monkeypatch.setattr(experiments, "fit_concat_bank", None)
    again = run_bank(run), run_lspn(run)
    assert trained == [run] and again[1].history == detector.history
    record = json.loads(done_file(run, "lspn").read_text())["result"]
    assert record == {"detector": str(stage_dir(run, "lspn")), "best_epoch": best_epoch(detector)}
    # Scoring, the device and where the run lies change nothing of it; a weight does.
    fitted(changed(run, aggregate="max", silhouette="count"))
    assert len(trained) == 1
    fitted(changed(run, alpha=3.0))
    fitted(changed(run, seed=1))
    told = [(config.loss.alpha, config.seed) for config in trained[1:]]
    assert told == [(3.0, 0), (run.loss.alpha, 1)]


@pytest.mark.parametrize("stage", ["bank", "lspn"])
def test_while_another_process_is_at_it_one_waits(run, trained, monkeypatch, stage):
    """The lock of another process is a lock of the operating system on the same file."""
    if stage == "lspn":
        run_bank(run)
    folder = stage_dir(run, stage)
    folder.mkdir(parents=True, exist_ok=True)
    built = []
    real = experiments.G2SF.fit_bank
    monkeypatch.setattr(
        experiments.G2SF, "fit_bank", lambda self, *a: built.append(1) or real(self, *a)
    )
    thread = threading.Thread(target=built_banks if stage == "bank" else fitted, args=(run,))
    with FileLock(folder / ".lock"):
        thread.start()
        thread.join(0.4)
        assert thread.is_alive() and not built and not trained
    thread.join(60)
    assert not thread.is_alive()
    assert (len(built), len(trained)) == ((1, 0) if stage == "bank" else (0, 1))


def test_kept_epochs_by_hand():
    assert kept_epochs(1) == (0, 1) and kept_epochs(5) == (0, 1, 2, 3, 4, 5)
    assert kept_epochs(25) == (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25)
    assert set(kept_epochs(150)) >= set(kept_epochs(100)[:-1])  # a longer training shares them


def test_epochs_are_kept_as_they_were(run):
    detector = fitted(run)
    files = sorted(path.name for path in stage_dir(run, "lspn").glob("epoch-*"))
    assert files == [f"epoch-{n:04d}.safetensors" for n in kept_epochs(5)]
    feat = foreground_features(load_features(run, "test")[0])
    score = detector.score_cells(feat).cell_score
    first = at_epoch(run, detector, 0)
    assert (first.score_cells(feat).w == 1).all()
    assert first.metric.sigma().tolist() == [0.5, 0.5]
    best = at_epoch(run, detector, best_epoch(detector))
    assert torch.equal(best.score_cells(feat).cell_score, score)
    for row in detector.history:
        sigma = at_epoch(run, detector, row["epoch"]).metric.sigma()[0].item()
        assert sigma == pytest.approx(row["sigma_pcd"])
    # The detector itself is left alone, and banks are shared.
    assert torch.equal(detector.score_cells(feat).cell_score, score)
    assert first.metric is not detector.metric and first.banks is detector.banks


def test_the_concatenated_bank_is_built_for_who_wants_it(run, monkeypatch):
    folder = stage_dir(run, "bank")
    assert built_banks(run).banks.keys() == {"pcd", "rgb"}
    before = contents(folder)
    assert "concat.safetensors" not in before
    with monkeypatch.context() as patch:
        patch.setattr(experiments.G2SF, "fit_bank", None)  # the others are there
        assert built_banks(run, with_concat=True).banks.keys() == {"pcd", "rgb", "concat"}
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    forget(run, "bank")
    built_banks(run, with_concat=True)
    assert contents(folder) == after
    monkeypatch.setattr(experiments, "fit_concat_bank", None)
    assert built_banks(run).banks.keys() == {"pcd", "rgb", "concat"}  # it is there: it is read


@pytest.mark.parametrize("split", ["test", "synthetic"])
def test_counted_features_are_those_of_a_loop(run, split):
    feat, is_anomalous = counted_features(run, split)
    pairs = zip(*load_features(run, split), strict=True)
    counted = [(p, counted_cells(p, "exclude"), lab.view(64, -1).any(1)) for p, lab in pairs]
    for mod in MODALITIES:
        assert torch.equal(feat[mod][:], torch.cat([p.feat[mod][c] for p, c, _ in counted]))
    assert torch.equal(is_anomalous, torch.cat([lab[c] for _, c, lab in counted]))
    assert is_anomalous.any()
