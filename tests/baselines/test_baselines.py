"""Every peer behind one `fit` and `predict`: what is normal scores low, what is planted high."""

import dataclasses

import numpy as np
import pytest
import torch

from g2sf_lib.baselines import BANKS, METHODS, Baseline, find_nearest
from g2sf_lib.config import MODALITIES
from g2sf_lib.detector import counted_cells, to_prediction
from g2sf_lib.features import foreground_features, pack
from g2sf_lib.memory import MemoryBank
from g2sf_lib.storage import StoredFileError

pytestmark = pytest.mark.usefixtures("one_thread")

GRID, OUTLIER = 8, 27  # row 3, column 3 of 8 x 8: inside the object
RULES = ("sum", "product", "max")
SEEDED = ("m3dm", "cfm", "ast")
# method -> where a planted outlier is seen: features of one modality, of both, or depth
SEES = {method: ("rgb", "pcd", "both") for method in METHODS} | {
    "rgb": ("rgb", "both"),
    "pcd": ("pcd", "both"),
    "ast": ("rgb", "depth", "both"),
}
BLIND = {"rgb": "pcd", "pcd": "rgb", "ast": "pcd"}
each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def config(small_config):
    """Networks are trained for a moment; four depth samples a cell, as `depth` makes them."""
    return dataclasses.replace(
        small_config, ast=dataclasses.replace(small_config.ast, ast_depth_px=2)
    )


@pytest.fixture
def trained(config):
    """Networks are trained until they know what is normal in six scans."""
    cfm = dataclasses.replace(config.cfm, cfm_epochs=30, cfm_batch_size=64, cfm_learning_rate=5e-3)
    ast = dataclasses.replace(config.ast, ast_epochs=15, ast_learning_rate=3e-3)
    return dataclasses.replace(config, cfm=cfm, ast=ast)


def depth(seed):
    """Return the depth of a made-up scan as AST reads it: waves of a millimetre, and noise."""
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(*2 * [torch.arange(GRID) / 2.0], indexing="ij")
    wave = (row + torch.rand(1, generator=generator)).sin() * column.cos()
    return wave + 0.1 * torch.randn(4, GRID, GRID, generator=generator)


@pytest.fixture
def scan(make_patches):
    """Return a function seed -> patches and depth of a normal scan."""
    return lambda seed: (make_patches(seed)[0], depth(seed))


def with_outlier(patches, depths, where):
    """The same scan with one cell far from every normal surface."""
    feat = {mod: value.clone() for mod, value in patches.feat.items()}
    for mod in MODALITIES if where == "both" else {where} & set(MODALITIES):
        feat[mod][OUTLIER] += 25.0
    depths = depths.clone()
    if where in ("depth", "both"):
        depths[:, OUTLIER // GRID, OUTLIER % GRID] += 8.0
    return dataclasses.replace(patches, feat=feat), depths


@pytest.fixture
def fit(config, scan):
    """Return a function (method, config) -> a baseline fitted to six scans."""

    def make(method, config=config):
        train, held_out = [scan(n) for n in range(6)], [scan(50 + n)[0] for n in range(3)]
        patches, depths = zip(*train, strict=True)
        return Baseline(method, config).fit_patches(patches, held_out, depths)

    return make


def place(score_map):
    """Return row and column of the cell whose pixels score highest, of 4 x 4 px a cell."""
    row, column = np.unravel_index(score_map.argmax(), score_map.shape)
    return row // 4, column // 4


@each_method
def test_normal_scores_low_and_a_planted_outlier_high(fit, scan, trained, method):
    baseline = fit(method, trained)
    normal = [baseline.predict_patches(*scan(n)).image_score for n in range(6)]
    normal += [baseline.predict_patches(*scan(n)).image_score for n in (8, 9)]
    for where in SEES[method]:
        found = baseline.predict_patches(*with_outlier(*scan(8), where))
        assert place(found.score_map) == (3, 3), where
        assert found.image_score > 2 * max(normal), where
        assert found.score_map.min() >= 0 and found.score_map.dtype == np.float32


@pytest.mark.parametrize(("method", "other"), BLIND.items())
def test_what_a_method_does_not_read_changes_nothing(fit, scan, method, other):
    baseline = fit(method)
    found = baseline.predict_patches(*with_outlier(*scan(8), other))
    assert found.score_map.tobytes() == baseline.predict_patches(*scan(8)).score_map.tobytes()


@each_method
def test_only_ast_reads_depth(fit, scan, method):
    baseline, (patches, depths) = fit(method), scan(8)
    found = baseline.predict_patches(*with_outlier(patches, depths, "depth")).score_map
    same = found.tobytes() == baseline.predict_patches(patches, depths).score_map.tobytes()
    assert same == (method != "ast")


@each_method
def test_saved_then_loaded_gives_the_same_prediction(fit, scan, tmp_path, method):
    baseline = fit(method)
    baseline.save(tmp_path / method)
    files = sorted(path.name for path in (tmp_path / method).iterdir())
    assert files == ["baseline.json", "baseline.safetensors"]
    loaded = Baseline.load(tmp_path / method, "cpu")
    assert loaded.config == baseline.config and loaded.method == method
    assert loaded.banks.keys() == baseline.banks.keys() == set(BANKS[method])
    for one in (scan(8), with_outlier(*scan(9), "both")):
        ours, theirs = baseline.predict_patches(*one), loaded.predict_patches(*one)
        assert ours.score_map.tobytes() == theirs.score_map.tobytes()
        assert ours.image_score == theirs.image_score


@pytest.mark.parametrize("name", ["baseline.json", "baseline.safetensors"])
def test_a_damaged_file_is_named(fit, tmp_path, name):
    fit("rgb").save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoredFileError, match=rf"{name}: truncated or changed"):
        Baseline.load(tmp_path)
    path.unlink()
    with pytest.raises(StoredFileError, match=rf"{name}: not there"):
        Baseline.load(tmp_path)


@each_method
def test_the_same_seed_gives_the_same_bytes_and_another_where_there_is_chance(
    fit, scan, config, method
):
    first, again = fit(method), fit(method)
    other = fit(method, dataclasses.replace(config, seed=5))
    maps = [b.predict_patches(*scan(8)).score_map.tobytes() for b in (first, again, other)]
    assert maps[0] == maps[1]
    assert (maps[0] == maps[2]) == (method not in SEEDED)


@each_method
def test_a_prediction_is_the_score_of_the_cells_and_the_shared_post_processing(fit, scan, method):
    baseline, (patches, depths) = fit(method), with_outlier(*scan(8), "both")
    (score,) = baseline.score_scans([patches], [depths])
    assert score.cells.shape == (int(patches.foreground.sum()),) and (score.cells >= 0).all()
    made = to_prediction(score.cells, patches, baseline.config.scoring)
    found = baseline.predict_patches(patches, depths)
    assert found.score_map.tobytes() == made.score_map.tobytes()
    assert found.image_score == score.image["exclude"]
    if method != "m3dm":  # which has a machine of its own for images
        assert found.image_score == pytest.approx(made.image_score)


@each_method
def test_scans_scored_together_score_as_each_alone(fit, scan, method):
    baseline = fit(method)
    scans = [scan(8), with_outlier(*scan(9), "both"), scan(10)]
    together = baseline.score_scans(*zip(*scans, strict=True), silhouettes=("exclude", "count"))
    assert len(together) == 3
    for one, (patches, depths) in zip(together, scans, strict=True):
        alone = baseline.score_scans([patches], [depths], silhouettes=("count", "exclude"))[0]
        torch.testing.assert_close(one.cells, alone.cells)
        assert one.image == pytest.approx(alone.image)
        assert one.image["exclude"] <= one.image["count"] * (1 + 1e-6)


@each_method
def test_the_silhouette_rule_says_which_cells_an_image_score_may_come_from(
    fit, scan, trained, method
):
    """An outlier on the rim of the disc: counted, or not."""
    baseline, (patches, depths) = fit(method, trained), scan(8)
    rim = int(patches.foreground.nonzero()[0])
    for value in patches.feat.values():
        value[rim] += 25.0
    score = baseline.score_scans([patches], [depths], silhouettes=("exclude", "count"))[0]
    counted = counted_cells(patches, "exclude")[patches.foreground]
    assert not counted[0]
    if method != "m3dm":
        assert score.image["exclude"] == pytest.approx(float(score.cells[counted].max()))
        assert score.image["count"] == pytest.approx(float(score.cells.max()))
    assert score.image["count"] > 1.5 * score.image["exclude"]


@pytest.mark.parametrize("method", [m for m in METHODS if BANKS[m]])
def test_known_neighbours_give_the_same_scores_without_a_search(fit, scan, monkeypatch, method):
    baseline, patches = fit(method), [scan(8)[0], with_outlier(*scan(9), "both")[0]]
    expected = baseline.score_scans(patches)
    feat = baseline.standardiser(foreground_features(patches))
    nearest = find_nearest(baseline.banks, feat)
    assert tuple(nearest) == BANKS[method]
    monkeypatch.setattr(MemoryBank, "query", None)
    for one, other in zip(baseline.score_scans(patches, nearest=nearest), expected, strict=True):
        assert torch.equal(one.cells, other.cells) and one.image == other.image


@pytest.mark.parametrize("method", ["rgb", "pcd"])
def test_one_modality_is_the_distance_to_the_nearest_prototype(fit, scan, method):
    baseline, (patches, _) = fit(method), scan(8)
    feat = baseline.standardiser(foreground_features([patches]))[method][:]
    nearest = torch.cdist(feat, baseline.banks[method].prototypes).amin(1)
    counted = counted_cells(patches, "exclude")[patches.foreground]
    found = baseline.predict_patches(patches).image_score
    assert found == pytest.approx(nearest[counted].max().item(), rel=1e-5)


@each_method
def test_reweighting_changes_the_image_score_of_one_modality_and_no_map(fit, scan, config, method):
    rules = dataclasses.replace(config.rules, reweight_neighbours=4)
    plain, other = fit(method), fit(method, dataclasses.replace(config, rules=rules))
    for one in (scan(8), with_outlier(*scan(9), "both")):
        ours, theirs = plain.predict_patches(*one), other.predict_patches(*one)
        assert ours.score_map.tobytes() == theirs.score_map.tobytes()
        if method not in MODALITIES:
            assert ours.image_score == theirs.image_score
            continue
        assert 0 < theirs.image_score < ours.image_score
        # PatchCore's formula, written out for the cell that scores highest
        bank = other.banks[method].prototypes
        feat = other.standardiser(foreground_features(one[:1]))[method][:]
        distance = torch.cdist(feat, bank)
        counted = counted_cells(one[0], "exclude")[one[0].foreground]
        cell = torch.where(counted, distance.amin(1), -1.0).argmax()
        s, proto = distance[cell].min(dim=0)
        around = torch.cdist(bank[proto : proto + 1], bank)[0].argsort()[:4]
        share = torch.softmax(torch.cdist(feat[cell : cell + 1], bank[around])[0], dim=0)
        weight = 1 - share[(around == proto).nonzero()[0, 0]]
        assert theirs.image_score == pytest.approx(float(weight * s), rel=1e-3)


def test_m3dm_scores_an_image_by_its_own_machine(fit, scan):
    baseline, (patches, _) = fit("m3dm"), scan(8)
    feat = baseline.standardiser(foreground_features([patches]))
    nearest = find_nearest(baseline.banks, feat)
    counted = counted_cells(patches, "exclude")[patches.foreground]
    s = torch.stack([nearest[name][1] for name in ("pcd", "rgb", "concat")], dim=-1)
    decision = baseline.decision
    largest = s[counted].amax(0) / decision.scale
    found = baseline.predict_patches(patches).image_score
    assert found == pytest.approx(float(largest @ decision.image_weight), rel=1e-5)


def test_calibration_comes_from_the_held_out_scans(config, scan):
    held_out = [scan(50 + n)[0] for n in range(3)]
    for method in RULES:
        baseline = Baseline(method, config).fit_patches([scan(n)[0] for n in range(6)], held_out)
        feat = baseline.standardiser(foreground_features(held_out))
        for m, mod in enumerate(MODALITIES):
            s0 = torch.cdist(feat[mod][:], baseline.banks[mod].prototypes).amin(1)
            assert baseline.calibration.mean[m].item() == pytest.approx(s0.mean().item(), rel=1e-4)
            assert baseline.calibration.std[m].item() == pytest.approx(s0.std().item(), rel=1e-4)


def test_bank_points_score_zero(config, scan):
    bank = dataclasses.replace(config.bank, bank_fraction=1.0)
    config = dataclasses.replace(config, bank=bank)
    patches, held_out = scan(0)[0], [scan(50)[0]]
    for method in ("rgb", "pcd", "concat", "sum", "product"):
        baseline = Baseline(method, config).fit_patches([patches], held_out)
        assert baseline.predict_patches(patches).image_score == 0
    with pytest.raises(ValueError, match="distances to a bank are all zero"):
        Baseline("m3dm", config).fit_patches([patches])


@pytest.mark.parametrize("method", ["cfm", "ast"])
def test_a_finished_training_is_not_begun_again(config, scan, tmp_path, monkeypatch, method):
    patches, depths = zip(*[scan(n) for n in range(6)], strict=True)
    checkpoint = tmp_path / "kept"

    def train():
        baseline = Baseline(method, config)
        return baseline.fit_patches(patches, depths=depths, checkpoint=checkpoint)

    first = train().predict_patches(*scan(8))
    assert checkpoint.exists()
    monkeypatch.setattr(torch.optim.Adam, "step", None)
    assert train().predict_patches(*scan(8)).score_map.tobytes() == first.score_map.tobytes()


# ------------------------------------------------------------------ scans, not patches


@pytest.fixture
def behind(scan, make_sample):
    """Return a function that puts made-up features behind a baseline's own extractor."""

    def put(baseline):
        baseline.__dict__["extract"] = lambda sample: scan(int(sample.name.split("/")[-1]))[0]
        return baseline

    return put


@each_method
def test_fit_and_predict_on_samples_are_those_on_their_patches(
    behind, config, scan, make_sample, method
):
    samples = [make_sample(n, name=f"train/good/{n:03d}") for n in range(3)]
    held_out = [make_sample(n, name=f"validation/good/{n:03d}") for n in (50, 51)]
    sample = make_sample(8, "dent", "test/dent/008")
    baseline = behind(Baseline(method, config)).fit(samples, held_out)
    found = baseline.predict(sample)

    other = Baseline(method, config)
    depths = [other.depth(s) for s in samples]
    kept = [[pack(scan(n)[0]) for n in numbers] for numbers in (range(3), (50, 51))]
    other.fit_patches(*kept, depths)
    expected = other.predict_patches(scan(8)[0], other.depth(sample))
    assert found.score_map.tobytes() == expected.score_map.tobytes()
    assert found.image_score == expected.image_score


def test_depth_is_read_where_the_configuration_says(config, make_sample):
    baseline = Baseline("ast", config)
    assert baseline.depth(make_sample(0)).shape == (4, GRID, GRID)
    finer = dataclasses.replace(config, ast=dataclasses.replace(config.ast, ast_depth_px=3))
    assert Baseline("ast", finer).depth(make_sample(0)).shape == (9, GRID, GRID)


@pytest.mark.parametrize("method", ["sum", "ast"])
def test_fit_and_predict_with_real_features(make_sample, trained, method):
    features = dataclasses.replace(trained.features, grid_size=12, rgb_size=192, fpfh_grid=64)
    scoring = dataclasses.replace(trained.scoring, map_size=96)
    config = dataclasses.replace(trained, features=features, scoring=scoring)
    baseline = Baseline(method, config).fit([make_sample(0), make_sample(1)], [make_sample(2)])
    found = baseline.predict(make_sample(21, "combined"))
    row, column = np.unravel_index(found.score_map.argmax(), (96, 96))
    assert abs(row - 46) < 12 and abs(column - 50) < 12
    assert found.image_score > baseline.predict(make_sample(20)).image_score


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("method", ["mean", "g2sf", "", None])
def test_an_unknown_method_is_refused(config, method):
    with pytest.raises(ValueError, match=rf"method is {method!r}; expected one of .*'ast'"):
        Baseline(method, config)


@each_method
def test_no_scans_are_refused(config, method, scan):
    for fit in (Baseline(method, config).fit, Baseline(method, config).fit_patches):
        with pytest.raises(ValueError, match=r"Baseline\.fit\w*: no scans; expected at least 1"):
            fit([], [scan(50)[0]])


@pytest.mark.parametrize("method", RULES)
def test_missing_held_out_scans_are_told(config, make_sample, scan, method):
    with pytest.raises(ValueError, match=rf"fit: method '{method}' needs held_out normal scans"):
        Baseline(method, config).fit([make_sample(0)])
    with pytest.raises(ValueError, match=rf"fit_patches: method '{method}' needs held_out"):
        Baseline(method, config).fit_patches([scan(0)[0]])


@each_method
@pytest.mark.parametrize("where", ["samples", "held_out"])
def test_a_defective_scan_is_refused_by_name_before_anything_is_computed(
    config, make_sample, method, where
):
    baseline = Baseline(method, config)
    baseline.__dict__["extract"] = None
    scans = {"samples": [make_sample(0), make_sample(4)], "held_out": [make_sample(1)]}
    scans[where].append(make_sample(2, "dent"))
    with pytest.raises(ValueError, match="train/dent/002 is 'dent'; expected 'good'"):
        baseline.fit(**scans)
    marked = dataclasses.replace(make_sample(3), mask=np.ones((96, 96), dtype=bool))
    scans[where][-1] = marked  # called good, but something is marked
    with pytest.raises(ValueError, match="train/good/003: 9216 anomalous pixels"):
        baseline.fit(**scans)


@each_method
def test_a_baseline_that_is_not_fitted_says_so(config, scan, tmp_path, method):
    baseline = Baseline(method, config)
    with pytest.raises(ValueError, match="not fitted; call fit or load first"):
        baseline.predict_patches(*scan(0))
    with pytest.raises(ValueError, match=r"Baseline\.save: the detector is not fitted"):
        baseline.save(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_missing_depths_are_told(fit, config, scan):
    patches = [scan(0)[0]]
    with pytest.raises(ValueError, match="fit_patches: method 'ast' needs the depths"):
        Baseline("ast", config).fit_patches(patches)
    with pytest.raises(ValueError, match="score_scans: method 'ast' needs the depths"):
        fit("ast").score_scans(patches)
