"""The stages of a run: what they read and write, how they go on, and what they must not see."""

import dataclasses
import json
import shutil
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from filelock import FileLock

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
    scan_labels,
    some_scans,
    synthetic_scans,
    training_cells,
)
from g2sf_lib.features import foreground_features
from g2sf_lib.memory import MemoryBank
from g2sf_lib.stages import STAGES, dataset_dir, done_file, recorded, scans_dir, stage_dir
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
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def features_of(config):
    """Return name -> bytes of the features of all scans, synthetic ones included."""
    return contents(stage_dir(config, "features")) | contents(stage_dir(config, "pastes"))


def forget(config, *stages):
    for stage in stages:
        shutil.rmtree(stage_dir(config, stage))


def test_nothing_of_the_test_split_reaches_bank_and_training(run, made_run):
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


def test_training_labels_do_matter(run, synthetic):
    """The counterpart of the tests above: what does take part changes the bytes."""
    run_bank(run)
    run_lspn(run)
    before = (stage_dir(run, "lspn") / "detector.safetensors").read_bytes()
    forget(run, "lspn")
    patches, labels = synthetic
    for number in range(6):  # held-out scans included: they alone would only choose the epoch
        path = patch_file(run, "synthetic", f"{number:04d}")
        experiments.save_patches(path, patches[number], labels[number - 1])
    run_lspn(run)
    assert (stage_dir(run, "lspn") / "detector.safetensors").read_bytes() != before


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
        place = dataclasses.replace(scans, category=category)
        write_prepared(place, "test", make_sample(77, "combined"), 0)
        write_prepared(place, "test", make_sample(78), 0)
    run_features(scans, ["foam", "rope"])
    changed = features_of(scans)
    kept = {name for name in original if not name.startswith("test/")}
    assert {name: changed[name] for name in kept} == {name: original[name] for name in kept}
    assert changed["test/good_000.safetensors"] != original["test/good_000.safetensors"]


def test_interrupted_feature_extraction_goes_on(scans):
    run_features(scans, ["foam"])
    original = features_of(scans)
    kept = patch_file(scans, "train", "train/good/001")
    before = kept.stat().st_mtime_ns
    for split, name in (("train", "good/000"), ("synthetic", "0001"), ("test", "test/good/001")):
        patch_file(scans, split, name).unlink()
    run_features(scans, ["foam"])
    assert features_of(scans) == original
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


def test_the_file_of_a_scan_may_be_named_by_a_kind_of_defect_of_any_length():
    """A name has 255 bytes at most, and those of a folder and a scan are joined."""
    config = make_config()
    names = [f"test/{'d' * 250}/{number:03d}" for number in range(2)]
    files = [patch_file(config, "test", name) for name in names]
    assert files[0] != files[1] and all(len(file.name) < 100 for file in files)
    assert patch_file(config, "test", "test/dent/003").name == "dent_003.safetensors"


def test_point_sources_are_training_scans_of_every_category(scans):
    sources = point_sources(scans, ["foam", "rope"])
    assert sources == point_sources(scans, ["foam", "rope"]) and len(set(sources)) == 4
    chosen = dataclasses.replace(scans.synthesis, pasted_from='["rope"]')
    alone = point_sources(dataclasses.replace(scans, synthesis=chosen), ["foam", "rope"])
    assert alone and {path.parts[-4] for path in alone} == {"rope"}
    assert [path.parts[-4:-2] for path in sources] == [("foam", "train")] * 2 + [
        ("rope", "train")
    ] * 2


def test_finished_synthetic_scans_are_not_made_again(scans, monkeypatch):
    run_features(scans, ["foam"])
    folder = stage_dir(scans, "pastes") / "synthetic"
    (folder / "0002.safetensors").unlink()
    made = []
    real = synthesis.synthesise
    monkeypatch.setattr(synthesis, "synthesise", lambda *a: made.append(a) or real(*a))
    run_features(scans, ["foam"])
    assert len(made) == 1 and (folder / "0002.safetensors").exists()


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
    """Neighbours are those of a bank without the scan's prototypes, and no others."""
    banks, cells = run_bank(run), training_cells(run)
    patches = load_features(run, "train")[0]
    for mod in MODALITIES:
        bank = banks.banks[mod]
        ends = torch.tensor([len(p.cells[mod]) for p in patches]).cumsum(0)
        scan = torch.searchsorted(ends, bank.rows, right=True)
        assert not (scan[cells.index[mod].long()] == cells.target[:, None]).any()
        m = MODALITIES.index(mod)
        for target in (0, len(patches) - 1):
            mine = cells.target == target
            others = bank.prototypes[scan != target]
            alone = MemoryBank(others, torch.arange(len(others))).query(cells.feat[mod][mine], 5)
            torch.testing.assert_close(cells.s[mine, :, m], alone[1])
            found = bank.prototypes[cells.index[mod][mine].long()]
            torch.testing.assert_close(found, others[alone[0]])


def test_own_prototypes_may_be_kept(run):
    kept = changed(run, own_prototypes="keep")
    run_bank(run)
    cells, own = training_cells(run), training_cells(kept)
    assert torch.equal(cells.image, own.image)
    assert (own.s <= cells.s).all() and (own.s < cells.s).any()
    assert stage_dir(kept, "bank") == stage_dir(run, "bank")


def test_cells_trained_on_are_normal_ones_of_the_scans_and_what_pastes_changed(run):
    """Counted cells only; near a paste, a cell of a synthetic scan is neither."""
    run_bank(run)
    normal, (pasted, labels) = load_features(run, "train")[0], load_features(run, "synthetic")
    cells = training_cells(run)
    for number, patches in enumerate(normal):
        mine = cells.image == number
        counted = counted_cells(patches, "exclude")
        assert int(mine.sum()) == int(counted.sum()) and not cells.is_anomalous[mine].any()
        assert (cells.target[mine] == number).all()
    for number, (patches, label) in enumerate(zip(pasted, labels, strict=True)):
        mine = cells.image == len(normal) + number
        counted = counted_cells(normal[number % len(normal)], "exclude") & patches.foreground
        assert int(cells.is_anomalous[mine].sum()) == int((counted & label).sum()) > 0
        row, column = torch.nonzero(label.view(8, 8), as_tuple=True)
        far = torch.ones(8, 8, dtype=torch.bool)
        for y, x in zip(row.tolist(), column.tolist(), strict=True):
            far[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = False
        assert int((~cells.is_anomalous[mine]).sum()) == int((counted & far.view(-1)).sum())
    everything = training_cells(changed(run, outline_cells="count", reach_cells=0))
    assert len(everything) == sum(int(p.foreground.sum()) for p in [*normal, *pasted])


def test_a_label_says_which_modality_a_paste_changed(run, make_patches):
    run_bank(run)
    for number in range(6):
        patches, label = make_patches(100 + number, (27, 28, 35, 36))
        changed_in = torch.tensor([number % 3 != 1, number % 3 != 2])
        path = patch_file(run, "synthetic", f"{number:04d}")
        experiments.save_patches(path, patches, label[:, None] & changed_in)
    cells = training_cells(run)
    num = len(load_features(run, "train")[0])
    assert torch.equal(cells.is_anomalous, cells.changed.any(1))
    for number in range(6):
        mine = (cells.image == num + number) & cells.is_anomalous
        assert mine.any()
        expected = torch.tensor([number % 3 != 1, number % 3 != 2])
        assert torch.equal(cells.changed[mine], expected.expand(int(mine.sum()), 2))


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


def test_a_damaged_file_of_neighbours_is_named(run):
    run_bank(run)
    path = stage_dir(run, "cells") / "5-nearest" / "00003.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StoredFileError, match=r"0003\.safetensors: cannot be read"):
        run_lspn(run)


@pytest.mark.parametrize(("dataset", "num"), [("eyecandies", 24), ("mvtec3d", 8)])
def test_the_published_number_of_point_sources_is_the_default(tmp_path, monkeypatch, dataset, num):
    config = make_config("paper", dataset=dataset, data_root=str(tmp_path),
                         category="Lollipop" if dataset == "eyecandies" else "foam")  # fmt: skip
    paths = [tmp_path / f"{n}.safetensors" for n in range(60)]
    monkeypatch.setattr(experiments, "list_prepared", lambda *place: paths)
    assert len(point_sources(config, ["a", "b"])) == 2 * num
    fewer = config.replace(synthesis=config.synthesis.replace(sources_per_category=3))
    assert len(point_sources(fewer, ["a"])) == 3


def test_an_interrupted_training_goes_on_to_the_same_detector(run, monkeypatch):
    run_bank(run)
    run_lspn(run)
    folder = stage_dir(run, "lspn")
    original = contents(folder)
    forget(run, "lspn")
    done_file(run, "lspn").unlink()
    calls = []
    real = training.loss_cma

    def interrupted(w_neg, **form):
        calls.append(w_neg)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return real(w_neg, **form)

    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_cma", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_lspn(run)
    names = {path.name for path in folder.iterdir() if not path.name.startswith("epoch-")}
    assert names == {".lock", "checkpoint.safetensors"}
    assert not done_file(run, "lspn").exists()
    header = read_tensors(folder / "checkpoint.safetensors")["header"]
    done = len(json.loads(bytes(header.tolist()))["history"]) - 1
    assert 1 <= done < run.training.epochs
    run_lspn(run)
    assert contents(folder) == original


def test_a_stored_result_is_not_computed_again(run, monkeypatch):
    first = run_bank(run), run_lspn(run)
    monkeypatch.setattr(experiments, "fit_concat_bank", None)
    monkeypatch.setattr(training, "loss_cma", None)
    again = run_bank(run), run_lspn(run)
    for name, bank in first[0].banks.items():
        assert torch.equal(bank.prototypes, again[0].banks[name].prototypes)
    assert again[1].history == first[1].history


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


def test_a_damaged_bank_is_refused_by_name(run):
    run_bank(run)
    path = stage_dir(run, "bank") / "banks.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoredFileError, match=r"banks\.safetensors: truncated or changed"):
        load_banks(run)


@pytest.mark.parametrize("split", ["train", "synthetic"])
def test_missing_features_are_told_with_the_stage_that_makes_them(run, split):
    files = sorted(patch_file(run, split, "any").parent.glob("*.safetensors"))
    files[-1].unlink()  # one is enough: half a set is not a set
    with pytest.raises(FileNotFoundError, match=rf"{split}: features are missing") as caught:
        load_features(run, split)
    assert "01_feature_extraction" in str(caught.value) and "category foam" in str(caught.value)


def test_a_bank_that_was_not_built_is_named(run):
    with pytest.raises(FileNotFoundError, match="banks.json: not there.*02_memory_bank"):
        run_lspn(run)


def test_a_record_says_how_a_result_came_about(small_config):
    with recorded(small_config, "bank") as result:
        result["answer"] = 42
    record = json.loads(done_file(small_config, "bank").read_text())
    assert record["stage"] == "bank" and record["result"] == {"answer": 42}
    assert record["config_hash"] == STAGES["bank"].hash(small_config)
    assert record["config"]["category"] == "foam" and record["config"]["k"] == 2
    assert record["seed"] == 0 and record["device"] == "cpu"
    assert record["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["wall_s"] >= 0 and record["peak_memory_mb"] > 50
    assert {"git_commit", "python"} <= record.keys()


def test_a_record_may_have_another_name_than_its_stage(small_config):
    with recorded(small_config, "benchmark", STAGES["scores"]):
        pass
    record = json.loads(done_file(small_config, "benchmark").read_text())
    assert record["stage"] == "benchmark"
    assert record["config_hash"] == STAGES["scores"].hash(small_config)


def test_a_failed_stage_leaves_no_record(small_config):
    with pytest.raises(RuntimeError), recorded(small_config, "bank"):
        raise RuntimeError
    assert not done_file(small_config, "bank").exists()


def test_done_files_lie_where_the_workflow_waits(small_config):
    root = dataset_dir(small_config)
    assert done_file(small_config, "data") == root / "scans" / "data.json"
    for stage in ("loss_weights", "peer_settings"):
        assert done_file(small_config, stage) == root / f"{stage}.json"
    for stage in ("features", "bank", "scores", "benchmark"):
        assert done_file(small_config, stage) == root / "foam" / f"{stage}.json"
    third = small_config.replace(seed=3)
    assert done_file(third, "lspn") == root / "foam" / "seed3" / "lspn.json"


def test_best_epoch_by_hand():
    class Fitted:
        history = [{"epoch": e, "heldout": v} for e, v in enumerate([0.1, 3.0, 2.0, 2.0, 4.0])]

    assert best_epoch(Fitted()) == 0  # the state before training is a candidate
    Fitted.history[0]["heldout"] = 5.0
    assert best_epoch(Fitted()) == 2  # the first of two equals


def test_data_are_rendered_and_prepared(small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = small_config.data.replace(
        num_train=2, num_validation=2, num_good=2, num_defective=5, scan_size=96
    )
    config = small_config.replace(data=data)
    assert run_data(config, ["cookie"]) == {"cookie": 11}
    record = json.loads(done_file(config, "data").read_text())
    assert record["result"] == {"cookie": 11}
    place = config.replace(category="cookie")
    scans = [load_prepared(path) for path in list_prepared(scans_dir(place), "cookie", "test")]
    assert len(scans) == 7 and [s.label for s in scans[:2]] == ["good", "good"]
    assert all(s.foreground.any() for s in scans) and all(s.mask.any() for s in scans[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_data(config, ["cookie"]) == {"cookie": 11}  # nothing left to do


def test_the_categories_of_a_data_set_and_profile():
    assert experiments.categories_of(make_config("smoke")) == ("cookie", "gland")
    assert len(experiments.categories_of(make_config("demo"))) == 5
    real = make_config("smoke", dataset="mvtec3d", data_root="/data")
    assert len(experiments.categories_of(real)) == 10


# ------------------------------------------------------------------ trainings and their variants


def changed(config, **settings):
    return make_config(**(flat_settings(config) | settings))


@pytest.fixture
def trained(monkeypatch):
    """A list of configs that grows by every training."""
    configs, real = [], experiments._train

    def train(config, *rest):
        configs.append(config)
        return real(config, *rest)

    monkeypatch.setattr(experiments, "_train", train)
    return configs


def test_whoever_asks_for_the_same_training_gets_the_same_one(run, trained):
    detector = fitted(run)  # the banks are built on the way
    run_bank(run)
    again = run_lspn(run)
    assert trained == [run] and again.history == detector.history
    record = json.loads(done_file(run, "lspn").read_text())["result"]
    assert record == {"detector": str(stage_dir(run, "lspn")), "best_epoch": best_epoch(detector)}
    # Scoring, the device and where the run lies change nothing of it; a weight does.
    fitted(changed(run, aggregate="max", silhouette="count"))
    assert len(trained) == 1
    fitted(changed(run, alpha=3.0))
    fitted(changed(run, seed=1))
    assert [(config.loss.alpha, config.seed) for config in trained[1:]] == [
        (3.0, 0), (run.loss.alpha, 1),
    ]  # fmt: skip


def test_two_that_want_the_same_training_at_once_train_it_once(run, monkeypatch):
    calls, real, found, errors = [], experiments._train, [], []

    def slow(config, *rest):
        calls.append(config)
        time.sleep(0.3)
        return real(config, *rest)

    def ask():
        try:
            found.append(fitted(run))
        except Exception as error:  # a thread would swallow it
            errors.append(error)

    run_bank(run)
    monkeypatch.setattr(experiments, "_train", slow)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and len(calls) == 1 and len(found) == 3
    assert all(detector.history == found[0].history for detector in found)


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


def test_a_failed_training_leaves_the_lock_open_and_no_detector(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_cma", None)
        with pytest.raises(TypeError):
            fitted(run)
    assert not (stage_dir(run, "lspn") / "detector.json").exists()
    assert fitted(run).history


def test_features_that_are_missing_are_named_before_anything_is_trained(run, trained):
    built_banks(run)
    shutil.rmtree(stage_dir(run, "features") / "train")
    with pytest.raises(FileNotFoundError, match="train: features are missing"):
        fitted(run)
    assert not (stage_dir(run, "lspn") / "detector.json").exists()


@pytest.mark.parametrize(
    ("num", "expected"),
    [
        (1, (0, 1)),
        (2, (0, 1, 2)),
        (5, (0, 1, 2, 3, 4, 5)),
        (10, (0, 1, 2, 3, 4, 6, 8, 10)),
        (20, (0, 1, 2, 3, 4, 6, 8, 11, 15, 20)),
        (25, (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25)),
    ],
)
def test_kept_epochs_by_hand(num, expected):
    assert kept_epochs(num) == expected


@pytest.mark.parametrize("num", [7, 80, 100, 1000])
def test_kept_epochs_are_few_and_ever_farther_apart(num):
    epochs = kept_epochs(num)
    gaps = np.diff(epochs)
    assert epochs[0] == 0 and epochs[-1] == num and (gaps > 0).all() and len(epochs) < 30
    assert (np.diff(gaps[:-1]) >= -1).all()  # the last gap is cut by the end; the rest is rounded
    assert set(kept_epochs(num + 50)) >= set(epochs[:-1])  # a longer training shares them


def test_epochs_are_kept_as_they_were(run):
    detector = fitted(run)
    files = sorted(path.name for path in stage_dir(run, "lspn").glob("epoch-*"))
    assert files == [f"epoch-{n:04d}.safetensors" for n in kept_epochs(5)]
    feat = foreground_features(load_features(run, "test")[0])
    before = detector.metric.state_dict()
    first = at_epoch(run, detector, 0)
    assert (first.score_cells(feat).w == 1).all()
    assert first.metric.sigma().tolist() == [0.5, 0.5]
    best = at_epoch(run, detector, best_epoch(detector))
    assert torch.equal(best.score_cells(feat).cell_score, detector.score_cells(feat).cell_score)
    for row in detector.history:
        sigma = at_epoch(run, detector, row["epoch"]).metric.sigma()[0].item()
        assert sigma == pytest.approx(row["sigma_pcd"])
    # The detector itself is left alone, and banks are shared.
    for name, value in detector.metric.state_dict().items():
        assert torch.equal(value, before[name])
    assert first.metric is not detector.metric and first.banks is detector.banks


def test_an_epoch_is_the_same_however_long_the_training_goes_on(run):
    once = changed(run, epochs=1)
    longer, shorter = fitted(run), fitted(once)
    same = at_epoch(run, longer, 1)  # randomness depends on the seed and the number of the epoch
    last = at_epoch(once, shorter, 1)
    for name, value in last.metric.state_dict().items():
        assert torch.equal(same.metric.state_dict()[name], value)


def test_an_epoch_that_is_not_there_is_named(run):
    detector = fitted(run)
    with pytest.raises(StoredFileError, match=r"epoch-0099\.safetensors"):
        at_epoch(run, detector, 99)
    epoch_file(run, 2).write_bytes(epoch_file(run, 2).read_bytes()[:30])
    with pytest.raises(StoredFileError, match=r"epoch-0002\.safetensors"):
        at_epoch(run, detector, 2)


def test_the_concatenated_bank_is_built_for_who_wants_it(run, monkeypatch):
    folder = stage_dir(run, "bank")
    assert built_banks(run).banks.keys() == {"pcd", "rgb"}
    before = contents(folder)
    assert "concat.safetensors" not in before
    with monkeypatch.context() as patch:
        patch.setattr(experiments.G2SF, "fit_bank", None)  # the others are there
        added = built_banks(run, with_concat=True)
    assert added.banks.keys() == {"pcd", "rgb", "concat"}
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    whole = made_at_once(run)
    for name, bank in added.banks.items():
        assert torch.equal(bank.prototypes, whole.banks[name].prototypes)
    monkeypatch.setattr(experiments, "fit_concat_bank", None)
    assert built_banks(run).banks.keys() == {"pcd", "rgb", "concat"}  # it is there: it is read


def made_at_once(run):
    forget(run, "bank")
    return built_banks(run, with_concat=True)


def test_a_variant_with_another_bank_leaves_the_runs_record_alone(run):
    run_bank(run)
    record = done_file(run, "bank")
    before, banks = record.read_bytes(), contents(stage_dir(run, "bank"))
    variant = changed(run, bank_fraction=0.15)
    detector = fitted(variant)
    assert record.read_bytes() == before and contents(stage_dir(run, "bank")) == banks
    assert stage_dir(variant, "bank") != stage_dir(run, "bank")
    assert not done_file(run, "lspn").exists()  # a record is written by a stage alone
    num = {mod: len(detector.banks[mod].prototypes) for mod in MODALITIES}
    assert num == {m: len(load_banks(variant).banks[m].prototypes) for m in MODALITIES}
    assert all(n < len(load_banks(run).banks[mod].prototypes) for mod, n in num.items())


def test_scans_are_found_by_number(run):
    assert scan_labels(run, "test") == ["good"] * 4 + ["dent"] * 2 + ["stain"] * 2
    names = [scan.name for scan in some_scans(run, "test", [4, 0])]
    assert names == ["test/dent/000", "test/good/000"]


@pytest.mark.parametrize("split", ["test", "synthetic"])
def test_counted_features_are_those_of_a_loop(run, split):
    feat, is_anomalous = counted_features(run, split)
    pairs = zip(*load_features(run, split), strict=True)
    counted = [(p, counted_cells(p, "exclude"), lab) for p, lab in pairs]
    for mod in MODALITIES:
        assert torch.equal(feat[mod][:], torch.cat([p.feat[mod][c] for p, c, _ in counted]))
    expected = [lab if lab.ndim == 1 else lab.any(1) for _, _, lab in counted]
    expected = torch.cat([lab[c] for lab, (_, c, _) in zip(expected, counted, strict=True)])
    assert torch.equal(is_anomalous, expected) and is_anomalous.any()
