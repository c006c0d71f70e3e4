"""From cell scores to maps by hand; fit, predict, save and load; a planted outlier is found."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from g2sf_lib.cells import (
    counted_cells,
    kept_cells,
    labelled_cells,
    labelled_scans,
    scan_neighbours,
)
from g2sf_lib.config import MODALITIES, ConfigError, ScoringConfig, flat_settings, make_config
from g2sf_lib.datasets import ScanError
from g2sf_lib.detector import G2SF, bank_tensors, banks_from, pick_device, to_prediction
from g2sf_lib.features import Patches, foreground_features
from g2sf_lib.memory import MemoryBank
from g2sf_lib.store import StoredFileError, write_json
from g2sf_lib.training import CollapseWarning

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = ScoringConfig(map_size=8, blur_sigma_px=0.0, silhouette="count")
OUTLIER = 27  # row 3, column 3 of 8 x 8: inside the object


@pytest.fixture
def fitted(small_config, make_patches, synthetic):
    """A detector fitted to six made-up scans and their synthetic anomalies."""
    normal = [make_patches(n)[0] for n in range(6)]
    detector = G2SF(small_config).fit_bank(normal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return detector.fit_metric(normal, *synthetic)


def with_outlier(patches, cell=OUTLIER, mods=MODALITIES):
    """The same scan with one cell far from every normal surface."""
    feat = {mod: value.clone() for mod, value in patches.feat.items()}
    for mod in mods:
        feat[mod][cell] += 25.0
    return dataclasses.replace(patches, feat=feat)


def empty_patches(foreground, side):
    return Patches(
        {mod: torch.zeros(side * side, 1) for mod in MODALITIES}, (side, side), foreground
    )


def test_counted_cells_by_hand():
    text = ("......", ".####.", ".####.", ".####.", ".##...", "......")
    foreground = torch.tensor([character == "#" for row in text for character in row])
    patches = empty_patches(foreground, 6)
    inner = torch.zeros(36, dtype=torch.bool)
    # (3, 2) and (3, 3) see (4, 3), which is background; the others see the rim
    inner[[2 * 6 + 2, 2 * 6 + 3]] = True
    assert torch.equal(counted_cells(patches, "exclude"), inner)
    assert torch.equal(counted_cells(patches, "count"), foreground)


def test_the_edge_of_the_image_is_silhouette_too():
    patches = empty_patches(torch.ones(16, dtype=torch.bool), 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1:3, 1:3] = True
    assert torch.equal(counted_cells(patches, "exclude").view(4, 4), expected)


def test_a_thin_object_counts_as_a_whole():
    foreground = torch.zeros(16, dtype=torch.bool)
    foreground[4:8] = True
    assert torch.equal(counted_cells(empty_patches(foreground, 4), "exclude"), foreground)


def test_a_map_of_the_grids_size_is_the_cells(make_patches):
    patches, _ = make_patches(0)
    scores = torch.rand(int(patches.foreground.sum()), generator=torch.Generator().manual_seed(0))
    prediction = to_prediction(scores, patches, PLAIN)
    expected = torch.zeros(64)
    expected[patches.foreground] = scores
    np.testing.assert_array_equal(prediction.score_map.reshape(-1), expected.numpy())
    assert prediction.score_map.dtype == np.float32
    assert prediction.image_score == scores.max().item()


def test_excluded_cells_count_neither_for_the_image_nor_in_the_map(make_patches):
    patches, _ = make_patches(0)
    counted = counted_cells(patches, "exclude")[patches.foreground]
    scores = torch.where(counted, 1.0, 9.0)
    prediction = to_prediction(scores, patches, dataclasses.replace(PLAIN, silhouette="exclude"))
    assert prediction.image_score == 1.0 and prediction.score_map.max() == 1.0
    assert prediction.score_map.sum() == counted.sum()


def test_upsampling_is_bilinear_by_hand():
    patches = empty_patches(torch.ones(4, dtype=torch.bool), 2)
    scoring = dataclasses.replace(PLAIN, map_size=4)
    found = to_prediction(torch.tensor([0.0, 4.0, 0.0, 4.0]), patches, scoring).score_map
    # pixel centres lie at -1/4, 1/4, 3/4, 5/4 between the two cell centres; held at the ends
    np.testing.assert_allclose(found, np.tile([0.0, 1.0, 3.0, 4.0], (4, 1)))


def test_the_image_score_is_taken_before_smoothing(make_patches):
    patches, _ = make_patches(0)
    scores = torch.zeros(int(patches.foreground.sum()))
    scores[int(patches.foreground[:OUTLIER].sum())] = 5.0
    plain = to_prediction(scores, patches, dataclasses.replace(PLAIN, map_size=64))
    smooth = to_prediction(
        scores, patches, dataclasses.replace(PLAIN, map_size=64, blur_sigma_px=3)
    )
    assert smooth.image_score == plain.image_score == 5.0
    assert smooth.score_map.max() < 0.95 * plain.score_map.max()
    np.testing.assert_allclose(smooth.score_map, gaussian_filter(plain.score_map, 3), atol=1e-6)


def test_quantised_maps_have_256_levels(make_patches):
    patches, _ = make_patches(0)
    scores = torch.rand(int(patches.foreground.sum()), generator=torch.Generator().manual_seed(0))
    fine = to_prediction(scores, patches, dataclasses.replace(PLAIN, map_size=64))
    coarse = to_prediction(scores, patches, dataclasses.replace(PLAIN, map_size=64, quantise=True))
    levels = coarse.score_map / fine.score_map.max() * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    assert np.abs(coarse.score_map - fine.score_map).max() <= fine.score_map.max() / 255 * 1.001
    assert coarse.image_score == fine.image_score


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA device; expected 'auto' or 'cpu'"):
            pick_device("cuda")


@pytest.fixture
def labelled(small_config, synthetic, make_patches):
    """A detector with banks; the scans it is trained on, their features, and the cells kept."""
    normal = [make_patches(n)[0] for n in range(6)]
    detector = G2SF(small_config).fit_bank(normal)
    scans = labelled_scans(normal, *synthetic, is_untouched=True)
    feat = [detector.standardiser(scan.patches.cells) for scan in scans]
    found = [scan_neighbours(detector.banks, one, 5, None, detector.device) for one in feat]
    cells = labelled_cells(scans, found, small_config.cells, detector.standardiser)
    return detector, scans, feat, cells


def test_labelled_cells_say_which_image_and_which_cell(small_config, labelled):
    """Counted cells of the normal scans, then of the pasted ones, with their own features."""
    detector, scans, feat, cells = labelled
    kept = [kept_cells(scan, small_config.cells, "exclude") for scan in scans]
    sizes = torch.tensor([int(one.sum()) for one in kept])
    assert torch.equal(cells.image, torch.arange(12).repeat_interleave(sizes))
    assert torch.equal(cells.target, torch.arange(6).repeat(2).repeat_interleave(sizes))
    for number in (2, 8):
        mine, rows = cells.take(cells.image == number), torch.nonzero(kept[number])[:, 0]
        assert mine.is_anomalous.any() == (number == 8)
        for m, mod in enumerate(MODALITIES):
            standard = feat[number][mod][rows]
            torch.testing.assert_close(mine.feat[mod][:], standard, atol=1e-6, rtol=0)
            exact = torch.cdist(standard.double(), detector.banks[mod].prototypes.double())
            expected = exact.topk(5, largest=False).values
            torch.testing.assert_close(mine.s[..., m].double(), expected, atol=1e-5, rtol=1e-5)


def test_bank_points_score_zero(fitted, make_patches):
    patches, _ = make_patches(0)
    rows = {mod: fitted.banks[mod].rows for mod in MODALITIES}
    normal = foreground_features([make_patches(n)[0] for n in range(6)])
    both = torch.tensor(sorted(set(rows["pcd"].tolist()) & set(rows["rgb"].tolist())))
    assert len(both) > 5
    scores = fitted.score_cells({mod: normal[mod][both] for mod in MODALITIES})
    assert (scores.cell_score == 0).all() and (scores.ell[:, 0] == 0).all()
    assert (scores.ell[:, 1:] > 0).all()


def test_scores_follow_the_equations(fitted, make_patches):
    scores = fitted.score_cells(foreground_features([make_patches(7)[0]]))
    assert scores.w.shape == scores.s.shape == (len(scores.ell), 3, 2)
    assert (scores.w >= np.exp(-1) - 1e-6).all() and (scores.w <= np.e + 1e-6).all()
    ell = (scores.w * scores.s * fitted.metric.sigma().detach()).sum(-1)
    torch.testing.assert_close(scores.ell, ell)
    assert torch.equal(scores.cell_score, scores.ell.min(dim=1).values)


def test_search_and_fusion_one_after_the_other_are_the_scores(fitted, make_patches):
    raw = foreground_features([make_patches(7)[0]])
    feat = fitted.standardiser(raw)
    index, s = fitted.neighbours(feat)
    for m, mod in enumerate(MODALITIES):
        nearest = torch.cdist(feat[mod][:], fitted.banks[mod].prototypes).topk(3, largest=False)
        assert torch.equal(index[mod].long(), nearest.indices)
        torch.testing.assert_close(s[..., m], nearest.values, rtol=1e-4, atol=1e-5)
    fused, scores = fitted.fuse_cells(feat, index, s), fitted.score_cells(raw)
    for name in ("s", "w", "ell", "cell_score"):
        assert torch.equal(getattr(fused, name), getattr(scores, name)), name


@pytest.mark.parametrize("mods", [MODALITIES, ("pcd",), ("rgb",)], ids=["both", "pcd", "rgb"])
def test_a_planted_outlier_scores_highest(fitted, make_patches, mods):
    patches = with_outlier(make_patches(8)[0], mods=mods)
    scores = torch.zeros(64)
    found = fitted.score_cells(foreground_features([patches]))
    scores[patches.foreground] = found.cell_score
    assert scores.argmax() == OUTLIER
    prediction = fitted.predict_patches(patches)
    row, column = np.unravel_index(prediction.score_map.argmax(), prediction.score_map.shape)
    assert (row // 4, column // 4) == (3, 3)  # 32 px map, 4 px a cell: in its place, not its mirror
    normal = fitted.predict_patches(make_patches(8)[0])
    assert prediction.image_score > 2 * normal.image_score


def test_same_seed_same_map(small_config, make_patches, synthetic, fitted):
    normal = [make_patches(n)[0] for n in range(6)]
    again = G2SF(small_config).fit_bank(normal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        again.fit_metric(normal, *synthetic)
    patches = make_patches(9)[0]
    one, other = fitted.predict_patches(patches), again.predict_patches(patches)
    assert one.score_map.tobytes() == other.score_map.tobytes()


def test_saved_then_loaded_gives_the_same_prediction(fitted, make_patches, tmp_path):
    fitted.save(tmp_path / "detector")
    names = sorted(path.name for path in (tmp_path / "detector").iterdir())
    assert names == ["detector.json", "detector.safetensors"]
    loaded = G2SF.load(tmp_path / "detector", device="cpu")
    patches = make_patches(9)[0]
    one, other = fitted.predict_patches(patches), loaded.predict_patches(patches)
    assert one.score_map.tobytes() == other.score_map.tobytes()
    assert one.image_score == other.image_score
    assert loaded.config == fitted.config and loaded.history == fitted.history
    loaded.save(tmp_path / "again")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "detector" / name
        ).read_bytes()


def test_the_official_directions_survive_saving(small_config, make_patches, synthetic, tmp_path):
    loss = small_config.loss.replace(form="official")
    detector = G2SF(small_config.replace(loss=loss))
    normal = [make_patches(n)[0] for n in range(6)]
    detector.fit_bank(normal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        detector.fit_metric(normal, *synthetic)
    detector.save(tmp_path)
    patches = make_patches(9)[0]
    one, other = detector.predict_patches(patches), G2SF.load(tmp_path).predict_patches(patches)
    assert one.score_map.tobytes() == other.score_map.tobytes()
    paper = G2SF.load(tmp_path)
    paper.metric.direction_form = "paper"
    assert paper.predict_patches(patches).image_score != one.image_score


def truncated(folder):
    path = folder / "detector.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flipped(folder):
    path = folder / "detector.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def edited(folder):
    path = folder / "detector.json"
    content = json.loads(path.read_text())
    content["standardiser"]["mean"]["rgb"] += 0.5
    write_json(path, content)


def versioned(folder):
    path = folder / "detector.json"
    write_json(path, json.loads(path.read_text()) | {"format_version": 99})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, r"detector\.safetensors: truncated or changed"),
        (flipped, r"detector\.safetensors: truncated or changed"),
        (edited, r"detector\.json: changed"),
        (versioned, r"detector\.json: format version 99; expected 1"),
        (
            lambda folder: (folder / "detector.safetensors").unlink(),
            r"detector\.safetensors: not there",
        ),
        (lambda folder: (folder / "detector.json").unlink(), r"detector\.json: not there"),
        (lambda folder: (folder / "detector.json").write_text("{"), r"detector\.json: truncated"),
    ],
    ids=["truncated", "one bit", "edited", "version", "no tensors", "no json", "half json"],
)
def test_damaged_files_are_refused_by_name(fitted, tmp_path, damage, message):
    fitted.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(StoredFileError, match=message):
        G2SF.load(tmp_path, device="cpu")


def test_an_unfitted_detector_says_so(small_config, make_patches, tmp_path):
    detector = G2SF(small_config)
    with pytest.raises(ValueError, match="not fitted; call fit first"):
        detector.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="not fitted; call fit or load first"):
        detector.predict_patches(make_patches(0)[0])


def test_synthetic_cells_of_one_class_are_refused(small_config, make_patches, synthetic):
    normal = [make_patches(n)[0] for n in range(6)]
    detector = G2SF(small_config).fit_bank(normal)
    patches, labels = synthetic
    with pytest.raises(ValueError, match="cells of one class only"):
        detector.fit_metric(normal, patches, [torch.zeros_like(label) for label in labels])


def test_fit_refuses_too_few_scans_and_defective_ones(small_config, make_sample):
    good, defective = make_sample(0), make_sample(1, "dent")
    with pytest.raises(ScanError, match="1 good and 0 defective train scans; expected at least 2"):
        G2SF(small_config).fit([good])
    with pytest.raises(ScanError, match="train/dent/001 is 'dent'; expected 'good'"):
        G2SF(small_config).fit([good, good, defective])
    unlabelled = dataclasses.replace(good, mask=defective.mask)
    with pytest.raises(ScanError, match="144 anomalous pixels; expected none"):
        G2SF(small_config).fit([good, unlabelled])


def test_fit_and_predict_refuse_what_no_reader_returns(small_config, make_sample):
    good = make_sample(0)
    double = dataclasses.replace(good, xyz=good.xyz.astype(np.float64))
    with pytest.raises(ScanError, match="xyz is float64 .*expected float32"):
        G2SF(small_config).fit([good, double])
    millimetres = dataclasses.replace(good, xyz=good.xyz * 1000)
    for call in (lambda s: G2SF(small_config).fit([good, s]), G2SF(small_config).predict):
        with pytest.raises(ScanError, match=f"{good.name}: .*expected .*metres"):
            call(millimetres)


def test_a_bank_too_small_is_told_in_settings_before_it_is_built(small_config, make_patches):
    bank = small_config.bank.replace(bank_fraction=0.02)
    config = small_config.replace(bank=bank)
    patches = [make_patches(n)[0] for n in range(3)]
    cells = sum(int(p.foreground.sum()) for p in patches)
    size = round(0.02 * cells)
    assert 1 <= size < 5  # 2 k + 1 with k = 2
    with pytest.raises(ConfigError) as caught:
        G2SF(config).fit_bank(patches)
    for words in (f"{size} prototypes", f"{cells} cells of 3 training", "bank_fraction", "k = 2"):
        assert words in str(caught.value)


def test_features_that_do_not_vary_are_told(small_config, make_patches):
    patches = make_patches(0)[0]
    feat = patches.feat | {"pcd": torch.ones_like(patches.feat["pcd"])}
    flat = dataclasses.replace(patches, feat=feat)
    with pytest.raises(ValueError, match="pcd features of all .* are 1; expected features that"):
        G2SF(small_config).fit_bank([flat, flat])


def test_banks_go_through_their_tensors():
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    banks = {
        "pcd": MemoryBank.fit(features, 0.3),
        "concat": MemoryBank.fit(features, 0.2, "random"),
    }
    again = banks_from(bank_tensors(banks))
    assert again.keys() == banks.keys()
    for name, bank in banks.items():
        for part in dataclasses.fields(bank):
            assert torch.equal(getattr(again[name], part.name), getattr(bank, part.name))


def test_flat_settings_name_every_leaf(small_config):
    assert make_config(**flat_settings(small_config)) == small_config


def test_fit_predict_save_load_on_scans(make_sample, tmp_path):
    """The whole contract on real features: scans in, score maps out, the same after loading."""
    config = make_config(
        "smoke", category="foam", device="cpu", grid_size=12, rgb_size=192, fpfh_grid=64,
        num_synthetic=6, epochs=4, batch_size=64, k=2, map_size=96,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        detector = G2SF(config).fit([make_sample(n) for n in range(4)])
    good, bad = make_sample(20), make_sample(21, "combined")
    detector.save(tmp_path)
    found = G2SF.load(tmp_path, device="cpu").predict(bad)
    expected = detector.predict(bad)
    assert found.score_map.tobytes() == expected.score_map.tobytes()
    assert found.score_map.shape == (96, 96) and np.isfinite(found.score_map).all()
    assert found.score_map.min() >= 0
    assert found.image_score > 1.5 * detector.predict(good).image_score
    row, column = np.unravel_index(found.score_map.argmax(), (96, 96))
    assert abs(row - 46) < 12 and abs(column - 50) < 12


@pytest.mark.parametrize(
    "inputs", [{"direction_input": "zeros"}, {"direction_input": "random", "sigma_rule": "fixed"},
               {"prototype_input": "zeros"}],
    ids=["no direction", "random direction", "no prototype"],
)  # fmt: skip
def test_what_the_network_does_not_see_survives_saving(
    small_config, make_patches, synthetic, tmp_path, inputs
):
    model = small_config.model.replace(**inputs)
    detector = G2SF(small_config.replace(model=model))
    normal = [make_patches(n)[0] for n in range(6)]
    detector.fit_bank(normal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        detector.fit_metric(normal, *synthetic)
    detector.save(tmp_path)
    loaded = G2SF.load(tmp_path, device="cpu")
    patches = make_patches(9)[0]
    one, other = detector.predict_patches(patches), loaded.predict_patches(patches)
    assert one.score_map.tobytes() == other.score_map.tobytes()
    for name, value in inputs.items():
        if name != "sigma_rule":
            assert getattr(loaded.metric, name) == value
    if "sigma_rule" in inputs:
        assert loaded.metric.sigma().tolist() == [0.5, 0.5]
    seeing = G2SF.load(tmp_path, device="cpu")
    seeing.metric.prototype_input = seeing.metric.direction_input = "given"
    with torch.no_grad():  # a short training hardly moves w; any network will do
        for some in (loaded, seeing):
            draw = torch.Generator().manual_seed(0)
            some.metric.lspn.head.weight.normal_(generator=draw)
    w = [some.score_cells(foreground_features([patches])).w for some in (loaded, seeing)]
    assert (w[0] - w[1]).abs().max() > 1e-3


def test_a_training_may_be_watched(labelled):
    detector, _, _, cells = labelled
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        detector.fit_cells(cells, after_epoch=lambda epoch, metric: seen.append(epoch))
    assert seen == [0, 1, 2, 3, 4, 5]
