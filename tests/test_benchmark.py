"""Scores of all methods: kept file by file, equal to the detectors' own, measured as told."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from g2sf_lib import benchmark, evaluation
from g2sf_lib.baselines import METHODS
from g2sf_lib.baselines.ours import with_other_pastes
from g2sf_lib.baselines.scans import SILHOUETTES
from g2sf_lib.benchmark import (
    NUM_RESAMPLES,
    RESAMPLED,
    SEEDED,
    SIMPLE,
    Split,
    checked_categories,
    checked_methods,
    checked_seeds,
    fitted_method,
    run_benchmark,
    run_methods,
    run_scores,
    runs_of,
    score_file,
)
from g2sf_lib.cells import counted_cells
from g2sf_lib.config import ConfigError, make_config, with_settings
from g2sf_lib.detector import G2SF
from g2sf_lib.experiments import load_banks, load_features, patch_file, run_bank, run_lspn
from g2sf_lib.features import save_patches
from g2sf_lib.stages import SCORES, done_file, scans_dir, stage_dir
from g2sf_lib.store import StoredFileError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
SEEDS = (0, 1)
OURS = {name for name, row in METHODS.items() if row.is_ours}
PEERS = [name for name in METHODS if name not in OURS]


@pytest.fixture(scope="module")
def kept():
    """What the first test made, for the others to copy: whether it is scored -> folder."""
    return {}


@pytest.fixture
def run_of(kept, small_config, made_run, make_patches, tmp_path, tmp_path_factory):
    """Return a function that gives a test its own copy of a run of both categories.

    All stages before the scores have run; for one category LSPN, with both seeds, and, if it is
    asked for, the scores.
    """

    def make(config, is_scored):
        run_bank(made_run(config, "gland", test_seed=700))
        config = made_run(config, "cookie")
        for number in range(6):  # features of the other pastes: there is nothing to extract
            place = patch_file(with_other_pastes(config), "synthetic", f"{number:04d}")
            place.parent.mkdir(parents=True, exist_ok=True)
            patches, labels = make_patches(200 + number, (18, 19, 27, 28, 35, 44))
            save_patches(place, patches, labels[:, None].expand(-1, 2))
        run_bank(config)
        for seed in SEEDS:
            run_lspn(config.replace(seed=seed))
        if is_scored:
            run_methods(config, METHODS, SEEDS, progress=False)

    def copy(is_scored):
        if is_scored not in kept:
            kept[is_scored] = tmp_path_factory.mktemp("made") / "runs"
            make(small_config.replace(runs_root=str(kept[is_scored])), is_scored)
        runs = shutil.copytree(kept[is_scored], tmp_path / "runs")
        return small_config.replace(category="cookie", runs_root=str(runs))

    return copy


@pytest.fixture
def ready(run_of):
    """A config whose banks and detectors are there, and nothing is scored."""
    return run_of(False)


@pytest.fixture
def scored(run_of):
    """A config whose scores are there, the scores, and the table."""
    config = run_of(True)
    return config, *run_methods(config, METHODS, SEEDS, progress=False)


def files_of(config, methods=METHODS, seeds=SEEDS):
    return {key: score_file(config, *key) for key in runs_of(methods, seeds)}


def read(paths):
    """Return path -> bytes of a description and its tensors."""
    parts = [part for path in paths for part in (path, path.with_suffix(".safetensors"))]
    return {path: path.read_bytes() for path in parts}


@pytest.fixture
def computed(monkeypatch):
    """A list of (method, seed) that grows by whatever is computed, not read."""
    calls, real = [], benchmark._score

    def count(path, config, method, *rest):
        calls.append((method, config.seed))
        real(path, config, method, *rest)

    monkeypatch.setattr(benchmark, "_score", count)
    return calls


# ------------------------------------------------------------------ what is asked for


CHECKS = {
    "methods": checked_methods,
    "seeds": lambda config, asked: checked_seeds(asked),
    "categories": checked_categories,
}


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("methods", ["cfm", "g2sf"], ("g2sf", "cfm")),  # in the order of the tables
        ("methods", ("rgb", "rgb"), ("rgb",)),
        ("methods", "['g2sf','cfm']", ("g2sf", "cfm")),
        ("methods", None, tuple(METHODS)),
        ("seeds", "[2, 0, 2]", (2, 0)),
        ("seeds", (5,), (5,)),
        ("categories", None, ("cookie", "gland")),
        ("categories", "['gland', 'cookie']", ("cookie", "gland")),
    ],
)
def test_what_is_asked_for_comes_in_order_and_once(small_config, name, asked, expected):
    assert CHECKS[name](small_config, asked) == expected


@pytest.mark.parametrize(
    ("name", "expected", "bad"),
    [
        ("methods", "some of g2sf, w1, ", [["g3sf"], [], "[]", "g2sf", "['g2sf", 3, [["rgb"]]]),
        ("seeds", "whole numbers >= 0", [[-1], [0.0], [True], ["0"], [], "0", "[0, x]", 0, None]),
        ("categories", "some of cookie, gland", [["rope"], [], "cookie", 1, "['cookie'", [["a"]]]),
    ],
)
def test_what_is_none_is_refused_with_what_there_is(small_config, name, expected, bad):
    for asked in bad:
        with pytest.raises(ConfigError, match=f"{name} is .*; expected a list of {expected}"):
            CHECKS[name](small_config, asked)


def test_profile_paper_trains_the_variant_only_when_asked():
    config = make_config("paper")
    assert checked_methods(config, None) == tuple(m for m in METHODS if m != "other_pastes")
    assert checked_methods(config, ["other_pastes", "g2sf"]) == ("g2sf", "other_pastes")


def test_only_what_has_chance_in_it_runs_once_a_seed():
    assert runs_of(("g2sf", "rgb", "ast"), (3, 7)) == [
        ("g2sf", 3), ("g2sf", 7), ("rgb", 0), ("ast", 3), ("ast", 7),
    ]  # fmt: skip


# ------------------------------------------------------------------ what is kept


def test_every_score_has_a_file_and_a_second_call_computes_nothing(scored, computed, monkeypatch):
    config, scores, table = scored
    files = files_of(config)
    assert len(set(files.values())) == len(files) == 2 * len(SEEDED) + len(METHODS) - len(SEEDED)
    before = read(files.values())
    monkeypatch.setattr(benchmark, "measure", None)
    again, same = run_methods(config, METHODS, SEEDS, progress=False)
    assert computed == [] and read(files.values()) == before
    pd.testing.assert_frame_equal(same, table)
    for key, maps in scores.maps.items():
        assert again.maps[key].tobytes() == maps.tobytes()
    part, rows = run_methods(config, ("m3dm", "w1"), (1,), progress=False)
    assert set(part.maps) == {("m3dm", 1), ("w1", 1)} and len(rows) == 2 * len(SILHOUETTES)


@pytest.mark.parametrize(
    "key", [("cfm", 1), ("m3dm", 0), ("rgb", 0), ("g2sf", 1), ("other_pastes", 0)]
)
def test_a_missing_score_alone_is_computed_again(scored, computed, monkeypatch, key):
    config, _, table = scored
    files = files_of(config)
    before = read(files.values())
    files[key].unlink()
    monkeypatch.setattr(G2SF, "fit_cells", None)  # what was trained is there still
    if METHODS[key[0]].stage:
        monkeypatch.setattr(METHODS[key[0]].scorer, "fit", None)
    _, again = run_methods(config, METHODS, SEEDS, progress=False)
    assert computed == [key] and read(files.values()) == before
    pd.testing.assert_frame_equal(again, table)


def test_what_was_done_before_an_interruption_is_kept(ready, computed, monkeypatch):
    methods = ("g2sf", "rgb", "m3dm", "cfm", "ast")
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["cfm"].scorer, "fit", None)
        with pytest.raises(TypeError):
            run_methods(ready, methods, (0,), progress=False)
    there = {method for method in METHODS if score_file(ready, method, 0).exists()}
    assert there == {"g2sf", "rgb", "m3dm"}
    computed.clear()
    run_methods(ready, methods, (0,), progress=False)
    assert computed == [("cfm", 0), ("ast", 0)]


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        ({"alpha": 7.0}, OURS),
        ({"epochs": 4}, OURS),
        ({"cfm_epochs": 9}, {"cfm"}),
        ({"ast_learning_rate": 0.002}, {"ast"}),
        ({"svm_nu": 0.4}, set(PEERS) - {"cfm", "ast"}),
        ({"reweight_neighbours": 9}, set(PEERS) - {"cfm", "ast"}),
        ({"blur_sigma_px": 2.0}, set(METHODS)),
        ({"bank_fraction": 0.2}, set(METHODS)),
        ({"seed": 5, "device": "auto"}, set()),  # the seed of a file is that asked for
    ],
)
def test_a_changed_setting_moves_the_files_of_the_methods_that_read_it(
    small_config, settings, moved
):
    before, after = files_of(small_config), files_of(with_settings(small_config, settings))
    assert {method for (method, _), path in before.items() if path not in after.values()} == moved


# ------------------------------------------------------------------ scores


def test_every_method_scores_every_test_scan(scored):
    _, scores, table = scored
    assert scores.names[0] == "test/good/000" and len(scores.names) == 8
    assert scores.labels == ["good"] * 4 + ["dent"] * 2 + ["stain"] * 2
    keys = set(runs_of(METHODS, SEEDS))
    assert set(scores.maps) == set(scores.normal) == set(scores.resampled) == keys
    assert scores.image.keys() == {(*key, rule) for key in keys for rule in SILHOUETTES}
    for score_map in scores.maps.values():
        assert score_map.shape == (8, 32, 32) and np.isfinite(score_map).all()
        assert score_map.dtype == np.float32 and score_map.min() >= 0
    assert scores.masks.shape == (8, 32, 32)
    assert scores.masks[:4].sum() == 0 and scores.masks[4:].any(axis=(1, 2)).all()
    rows = table[["category", "method", "seed", "silhouette"]].itertuples(index=False)
    assert {tuple(row) for row in rows} == {("cookie", *key) for key in scores.image}
    assert len(table) == len(scores.image)


@pytest.mark.parametrize("method", PEERS)
def test_scores_of_a_peer_are_those_of_it_fitted_alone(scored, method):
    config, scores, _ = scored
    seed, row = int(METHODS[method].is_seeded), METHODS[method]
    peer = row.scorer(config.replace(seed=seed), row.banks)
    cells, image = peer.fit(Split(config, "train")).score(Split(config, "test"))
    np.testing.assert_allclose(scores.maps.cells[method, seed], cells, rtol=1e-3, atol=1e-4)
    for rule in SILHOUETTES:
        np.testing.assert_allclose(scores.image[method, seed, rule], image[rule], rtol=1e-3)
        assert (image["exclude"] <= image["count"]).all()


def test_scores_of_g2sf_are_those_of_the_stored_detector(scored):
    config, scores, _ = scored
    for seed in SEEDS:
        detector = run_lspn(config.replace(seed=seed))
        for number, patches in enumerate(load_features(config, "test")[0]):
            expected = detector.predict_patches(patches)
            kept = scores.maps["g2sf", seed][number]
            np.testing.assert_allclose(kept, expected.score_map, rtol=1e-5, atol=1e-6)
            image = scores.image["g2sf", seed, "exclude"][number]
            assert image == pytest.approx(expected.image_score, rel=1e-5)


def test_the_variant_is_g2sf_trained_on_the_other_pastes_with_the_same_banks(scored):
    config, scores, _ = scored
    other = with_other_pastes(config.replace(seed=1))
    assert other.synthesis.paste_in == "both" and config.synthesis.paste_in == "either"
    detector, banks = G2SF(other), load_banks(config)
    detector.standardiser = banks.standardiser
    detector.banks = {mod: banks.banks[mod] for mod in ("pcd", "rgb")}
    detector.fit_metric(load_features(other, "train")[0], *load_features(other, "synthetic"))
    for number, patches in enumerate(load_features(config, "test")[0]):
        expected = detector.predict_patches(patches)
        kept = scores.maps["other_pastes", 1][number]
        np.testing.assert_allclose(kept, expected.score_map, rtol=1e-3, atol=1e-4)
    assert not np.allclose(scores.maps["other_pastes", 1], scores.maps["g2sf", 1], rtol=1e-2)
    assert stage_dir(other, "bank") == stage_dir(config, "bank")  # pastes leave the banks alone


def test_normal_level_is_that_of_the_maps_of_validation_scans(scored):
    config, scores, _ = scored
    detector = run_lspn(config)
    patches = load_features(config, "validation")[0]
    maps = [detector.predict_patches(p).score_map for p in patches]
    place = np.arange(32) // 4  # the cell that a pixel lies in
    counted = [counted_cells(p, "exclude").numpy().reshape(p.grid) for p in patches]
    inside = [m[c[np.ix_(place, place)]] for m, c in zip(maps, counted, strict=True)]
    expected = (np.median(np.concatenate(inside)), max(m.max() for m in maps))
    assert scores.normal["g2sf", 0] == pytest.approx(expected, rel=1e-4)


def test_maps_are_made_when_they_are_asked_for(scored):
    maps = scored[1].maps
    assert np.array_equal(maps.one(("sum", 0), 5), maps["sum", 0][5])
    assert ("sum", 7) not in maps and maps.get(("sum", 7)) is None


def test_nothing_of_the_test_split_reaches_a_peer(ready):
    """Fitted and trained without a test scan on the disk: the same cell scores."""
    normal = Split(ready, "validation")
    first = {m: fitted_method(ready, m, Split(ready, "train")).score(normal)[0] for m in PEERS}
    for method in ("cfm", "ast"):
        shutil.rmtree(stage_dir(ready, METHODS[method].stage))
    shutil.rmtree(scans_dir(ready) / ready.category / "test")
    shutil.rmtree(stage_dir(ready, "features") / "test")
    for method in PEERS:
        again = fitted_method(ready, method, Split(ready, "train")).score(normal)[0]
        assert torch.equal(again, first[method]), method


# ------------------------------------------------------------------ metrics


def test_metrics_are_those_of_scikit_learn(scored):
    _, scores, table = scored
    labels = np.array([label != "good" for label in scores.labels])
    rows = table.set_index(["method", "seed", "silhouette"])
    for key, image in scores.image.items():
        assert rows.loc[key, "i_auroc"] == pytest.approx(roc_auc_score(labels, image))
        for kind in ("dent", "stain"):
            chosen = np.array([label in ("good", kind) for label in scores.labels])
            expected = roc_auc_score(labels[chosen], image[chosen])
            assert rows.loc[key, f"i_auroc_{kind}"] == pytest.approx(expected)


def test_pixel_metrics_are_those_of_both_protocols_and_of_the_configured_rule_alone(scored):
    _, scores, table = scored
    rows = table.set_index(["method", "seed", "silhouette"])
    for (method, seed), maps in scores.maps.items():
        found, other = (rows.loc[(method, seed, rule)] for rule in SILHOUETTES)
        expected = {"p_auroc": roc_auc_score(scores.masks.ravel(), maps.ravel())}
        for suffix, num in (("", None), ("_published", 100)):
            areas = evaluation.aupro(maps, scores.masks, num_thresholds=num)
            expected |= {f"aupro_{round(100 * at)}{suffix}": area for at, area in areas.items()}
        assert len(expected) == 9 and other[list(expected)].isna().all()
        assert found[list(expected)].to_dict() == pytest.approx(expected)


def test_resamples_are_the_same_images_for_every_method(scored):
    """All methods in one call, one generator: the resamples that were kept one by one."""
    _, scores, table = scored
    labels = np.array([label != "good" for label in scores.labels])
    keys = list(scores.maps)
    images, draw = [scores.image[(*key, "exclude")] for key in keys], np.random.default_rng([0, 8])
    together = evaluation.bootstrap_auroc(np.stack(images), labels, NUM_RESAMPLES, draw)
    rows = table.set_index(["method", "seed", "silhouette"])
    for key, expected in zip(keys, together, strict=True):
        kept = scores.resampled[key]
        assert kept.keys() == set(RESAMPLED)
        assert all(values.shape == (NUM_RESAMPLES,) for values in kept.values())
        np.testing.assert_allclose(kept["i_auroc"], expected, atol=1e-12)
        found = rows.loc[(*key, "exclude"), "i_auroc_se"]
        assert found == pytest.approx(expected.std(), abs=1e-12)
        maps, draw = scores.maps[key], np.random.default_rng([0, 8])
        areas = evaluation.bootstrap_aupro(maps, scores.masks, (0.3, 0.01), NUM_RESAMPLES, draw)
        np.testing.assert_allclose(kept["aupro_30"], areas[0.3])
        np.testing.assert_allclose(kept["aupro_1"], areas[0.01])


# ------------------------------------------------------------------ stages


def test_chapter_four_has_the_simple_methods_and_a_record(ready):
    scores, table = run_scores(ready, SEEDS)
    assert {method for method, _ in scores.maps} == set(SIMPLE) == set(table["method"])
    record = json.loads(done_file(ready, "scores").read_text())
    assert record["result"] == {"seeds": [0, 1]}
    assert record["config_hash"] == SCORES.hash(ready)


def test_the_benchmark_takes_all_categories_and_leaves_a_record_in_each(ready):
    found = run_benchmark(ready, methods="['sum','rgb','m3dm']", seeds="[0, 4]")
    assert found.categories == ("cookie", "gland") and found.seeds == (0, 4)
    assert found.methods == ("rgb", "sum", "m3dm")
    for category in found.categories:
        of_category = ready.replace(category=category)
        alone, rows = run_methods(of_category, found.methods, found.seeds, progress=False)
        table = found.table[found.table["category"] == category].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, rows)
        for key, maps in alone.maps.items():
            assert found.scores[category].maps[key].tobytes() == maps.tobytes()
        record = json.loads(done_file(of_category, "benchmark").read_text())
        assert record["result"] == {"methods": ["rgb", "sum", "m3dm"], "seeds": [0, 4]}
        assert record["config"]["category"] == category
    assert list(found.table.index) == list(range(2 * 2 * 4))
    one = run_benchmark(ready, ["gland"], ["rgb"])
    assert one.categories == ("gland",) and one.seeds == (0,) and set(one.scores) == {"gland"}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [("features", "expected them from 01_feature_extraction"), ("bank", r"banks\.json: not there")],
)
def test_a_stage_that_has_not_run_is_told(ready, stage, expected):
    shutil.rmtree(stage_dir(ready, stage))
    with pytest.raises((StoredFileError, FileNotFoundError), match=expected):
        run_benchmark(ready, ["cookie"], ["rgb"])
