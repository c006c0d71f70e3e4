"""From cell scores to maps by hand; fit, predict, save and load; a planted outlier is found."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from g2sf_lib.cells import counted_cells, kept_cells, labelled_cells, labelled_scans
from g2sf_lib.config import MODALITIES, ConfigError, ScoringConfig, make_config, with_settings
from g2sf_lib.datasets import ScanError
from g2sf_lib.detector import G2SF, pick_device, to_prediction
from g2sf_lib.features import Patches, foreground_features
from g2sf_lib.store import StoredFileError, write_json

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]

PLAIN = ScoringConfig(map_size=8, blur_sigma_px=0.0, silhouette="count")
OUTLIER = 27  # row 3, column 3 of 8 x 8: inside the object


@pytest.fixture
def normal(make_patches):
    return [make_patches(n)[0] for n in range(6)]


@pytest.fixture
def fitted(small_config, normal, synthetic):
    """A detector fitted to six made-up scans and their synthetic anomalies."""
    return G2SF(small_config).fit_bank(normal).fit_metric(normal, *synthetic)


@pytest.fixture
def scored(make_patches):
    """A scan, and a made-up score of each of its foreground cells."""
    patches, _ = make_patches(0)
    num = int(patches.foreground.sum())
    return patches, torch.rand(num, generator=torch.Generator().manual_seed(0))


def same_maps(one, other, patches):
    first, second = (detector.predict_patches(patches) for detector in (one, other))
    same = first.score_map.tobytes() == second.score_map.tobytes()
    return same and first.image_score == second.image_score


def empty_patches(foreground, side):
    feat = {mod: torch.zeros(side * side, 1) for mod in MODALITIES}
    return Patches(feat, (side, side), foreground)


def test_counted_cells_by_hand():
    text = ("......", ".####.", ".####.", ".####.", ".##...", "......")
    foreground = torch.tensor([character == "#" for row in text for character in row])
    patches = empty_patches(foreground, 6)
    inner = torch.zeros(36, dtype=torch.bool)
    # (3, 2) and (3, 3) see (4, 3), which is background; the others see the rim
    inner[[2 * 6 + 2, 2 * 6 + 3]] = True
    assert torch.equal(counted_cells(patches, "exclude"), inner)
    assert torch.equal(counted_cells(patches, "count"), foreground)


def test_the_edge_of_the_image_is_silhouette_too_and_a_thin_object_counts_as_a_whole():
    inner = counted_cells(empty_patches(torch.ones(16, dtype=torch.bool), 4), "exclude")
    assert torch.nonzero(inner)[:, 0].tolist() == [5, 6, 9, 10]
    row = torch.arange(16) // 4 == 1
    assert torch.equal(counted_cells(empty_patches(row, 4), "exclude"), row)


def test_a_map_of_the_grids_size_is_the_cells(scored):
    patches, scores = scored
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
    prediction = to_prediction(scores, patches, PLAIN.replace(silhouette="exclude"))
    assert prediction.image_score == 1.0 and prediction.score_map.max() == 1.0
    assert prediction.score_map.sum() == counted.sum()


def test_upsampling_is_bilinear_by_hand():
    patches = empty_patches(torch.ones(4, dtype=torch.bool), 2)
    scores = torch.tensor([0.0, 4.0, 0.0, 4.0])
    found = to_prediction(scores, patches, PLAIN).score_map
    # pixel centres lie at -3/8, -1/8, 1/8 ... 11/8 between the two cell centres; held at the ends
    np.testing.assert_allclose(found, np.tile([0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.0], (8, 1)))


def test_the_image_score_is_taken_before_smoothing(scored):
    patches, scores = scored
    scores = torch.zeros_like(scores)
    scores[int(patches.foreground[:OUTLIER].sum())] = 5.0
    large = PLAIN.replace(map_size=64)
    plain = to_prediction(scores, patches, large)
    smooth = to_prediction(scores, patches, large.replace(blur_sigma_px=3.0))
    assert smooth.image_score == plain.image_score == 5.0
    assert smooth.score_map.max() < 0.95 * plain.score_map.max()
    np.testing.assert_allclose(smooth.score_map, gaussian_filter(plain.score_map, 3), atol=1e-6)


def test_quantised_maps_have_256_levels(scored):
    fine = to_prediction(*reversed(scored), PLAIN)
    coarse = to_prediction(*reversed(scored), PLAIN.replace(quantise=True))
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


def test_labelled_cells_and_their_neighbours(small_config, normal, synthetic):
    """Counted cells of the normal scans, then of the pasted ones, without prototypes of their own.

    Neighbours are those of an exhaustive search.
    """
    detector = G2SF(small_config).fit_bank(normal)
    scans = labelled_scans(normal, *synthetic, is_untouched=True)
    given = (small_config, detector.standardiser, detector.banks, scans, normal, detector.device)
    cells = labelled_cells(*given)
    kept = [kept_cells(scan, small_config.cells, "exclude") for scan in scans]
    sizes = torch.tensor([int(one.sum()) for one in kept])
    assert torch.equal(cells.image, torch.arange(12).repeat_interleave(sizes))
    assert torch.equal(cells.target, torch.arange(6).repeat(2).repeat_interleave(sizes))
    for number in (2, 8):
        mine, rows = cells.take(cells.image == number), torch.nonzero(kept[number])[:, 0]
        assert mine.is_anomalous.any() == (number == 8)
        feat = detector.standardiser(scans[number].patches.cells)
        for m, mod in enumerate(MODALITIES):
            torch.testing.assert_close(mine.feat[mod][:], feat[mod][rows], atol=1e-6, rtol=0)
            bank = detector.banks[mod]
            exact = torch.cdist(feat[mod][rows].double(), bank.prototypes.double())
            exact[:, bank.rows // len(kept[2]) == 2] = torch.inf  # of the scan below the paste
            expected = exact.topk(5, largest=False).values
            torch.testing.assert_close(mine.s[..., m].double(), expected, atol=1e-5, rtol=1e-5)


def test_bank_points_score_zero(fitted, normal):
    rows = [set(fitted.banks[mod].rows.tolist()) for mod in MODALITIES]
    both = torch.tensor(sorted(set.intersection(*rows)))
    assert len(both) > 5
    feat = foreground_features(normal)
    scores = fitted.score_cells({mod: feat[mod][both] for mod in MODALITIES})
    assert (scores.cell_score == 0).all() and (scores.ell[:, 0] == 0).all()
    assert (scores.ell[:, 1:] > 0).all()


def test_scores_follow_search_and_equations(fitted, make_patches):
    raw = foreground_features([make_patches(7)[0]])
    scores, feat = fitted.score_cells(raw), fitted.standardiser(raw)
    sigma, s_mean = fitted.metric.sigma().detach(), fitted.metric.s_mean
    for m, mod in enumerate(MODALITIES):
        exact = torch.cdist(feat[mod][:].double(), fitted.banks[mod].prototypes.double())
        nearest = exact.topk(3, largest=False).values / s_mean[m]
        torch.testing.assert_close(scores.s[..., m].double(), nearest, atol=1e-5, rtol=1e-5)
    assert scores.w.shape == scores.s.shape == (len(scores.ell), 3, 2)
    assert (scores.w >= np.exp(-1) - 1e-6).all() and (scores.w <= np.e + 1e-6).all()
    torch.testing.assert_close(scores.ell, (scores.w * scores.s * sigma).sum(-1))
    assert torch.equal(scores.cell_score, scores.ell.amin(1))
    torch.testing.assert_close(scores.w1_score, (scores.s * sigma).sum(-1).amin(1))


@pytest.mark.parametrize("mods", [MODALITIES, ("pcd",), ("rgb",)], ids=["both", "pcd", "rgb"])
def test_a_planted_outlier_scores_highest(fitted, make_patches, mods):
    patches, _ = make_patches(8)
    untouched = fitted.predict_patches(patches).image_score
    for mod in mods:
        patches.feat[mod][OUTLIER] += 25.0
    scores = torch.zeros(64)
    scores[patches.foreground] = fitted.score_cells(patches.cells).cell_score
    assert scores.argmax() == OUTLIER
    prediction = fitted.predict_patches(patches)
    row, column = np.unravel_index(prediction.score_map.argmax(), prediction.score_map.shape)
    assert (row // 4, column // 4) == (3, 3)  # 32 px map, 4 px a cell: in its place, not its mirror
    assert prediction.image_score > 2 * untouched


def test_same_seed_same_map(small_config, make_patches, synthetic, fitted, normal):
    again = G2SF(small_config).fit_bank(normal).fit_metric(normal, *synthetic)
    assert same_maps(fitted, again, make_patches(9)[0])


def test_saved_then_loaded_gives_the_same_prediction(fitted, make_patches, tmp_path):
    fitted.save(tmp_path / "detector")
    loaded = G2SF.load(tmp_path / "detector", device="cpu")
    assert same_maps(fitted, loaded, make_patches(9)[0])
    assert loaded.config == fitted.config and loaded.history == fitted.history
    loaded.save(tmp_path / "again")
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("detector", "again")
    ]
    assert written[0] == written[1]
    assert written[0].keys() == {"detector.json", "detector.safetensors"}


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "official"},
        {"direction_input": "zeros"},
        {"direction_input": "random", "sigma_rule": "fixed"},
        {"prototype_input": "zeros"},
    ],
    ids=["official directions", "no direction", "random direction", "no prototype"],
)
def test_what_the_network_sees_survives_saving(
    small_config, make_patches, synthetic, normal, tmp_path, settings
):
    detector = G2SF(with_settings(small_config, settings)).fit_bank(normal)
    detector.fit_metric(normal, *synthetic).save(tmp_path)
    loaded = G2SF.load(tmp_path, device="cpu")
    assert same_maps(detector, loaded, make_patches(9)[0])
    lspn, given = loaded.metric.lspn, {"prototype_input": "given", "direction_input": "given"}
    assert lspn.direction_form == settings.get("form", "paper")
    assert lspn.inputs == tuple(settings.get(name, value) for name, value in given.items())
    is_fixed = loaded.metric.sigma().tolist() == [0.5, 0.5]
    assert is_fixed == (settings.get("sigma_rule") == "fixed")


def changed(path, **values):
    content = json.loads(path.read_text())
    write_json(path, content | {name: value(content[name]) for name, value in values.items()})


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("safetensors", lambda p: p.write_bytes(p.read_bytes()[:-100]), "truncated or changed"),
        (
            "safetensors",
            lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"),
            "truncated or changed",
        ),
        ("safetensors", lambda p: p.unlink(), "not there"),
        ("json", lambda p: changed(p, history=lambda rows: rows[:-1]), "changed"),
        (
            "json",
            lambda p: changed(p, format_version=lambda _: 99),
            "format version 99; expected 1",
        ),
        ("json", lambda p: p.unlink(), "not there"),
        ("json", lambda p: p.write_text("{"), "truncated"),
    ],
    ids=["truncated", "a byte", "no tensors", "edited", "version", "no json", "half json"],
)
def test_damaged_files_are_refused_by_name(fitted, tmp_path, name, damage, message):
    fitted.save(tmp_path)
    damage(tmp_path / f"detector.{name}")
    with pytest.raises(StoredFileError, match=rf"detector\.{name}: {message}"):
        G2SF.load(tmp_path, device="cpu")


def test_an_unfitted_detector_says_so(small_config, make_patches, tmp_path):
    detector = G2SF(small_config)
    with pytest.raises(ValueError, match="not fitted; call fit first"):
        detector.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="not fitted; call fit or load first"):
        detector.predict_patches(make_patches(0)[0])


def test_fit_and_predict_refuse_scans_that_do_not_fit(small_config, make_sample):
    good, defective = make_sample(0), make_sample(1, "dent")
    unlabelled = dataclasses.replace(good, mask=defective.mask)
    double = dataclasses.replace(good, xyz=good.xyz.astype(np.float64))
    millimetres = dataclasses.replace(good, xyz=good.xyz * 1000)
    for scans, message in (
        ([good], "1 good and 0 defective train scans; expected at least 2"),
        ([good, good, defective], "train/dent/001 is 'dent'; expected 'good'"),
        ([good, unlabelled], "144 anomalous pixels; expected none"),
        ([good, double], "xyz is float64 .*expected float32"),
        ([good, millimetres], f"{good.name}: .*expected .*metres"),
    ):
        with pytest.raises(ScanError, match=message):
            G2SF(small_config).fit(scans)
    with pytest.raises(ScanError, match=f"{good.name}: .*expected .*metres"):
        G2SF(small_config).predict(millimetres)


def test_a_bank_too_small_is_told_in_settings_before_it_is_built(small_config, normal):
    num = sum(int(patches.foreground.sum()) for patches in normal)
    config = with_settings(small_config, {"bank_fraction": 4 / num})  # 2 k + 1 is 5
    with pytest.raises(ConfigError) as caught:
        G2SF(config).fit_bank(normal)
    for words in ("4 prototypes", f"{num} cells of 6 training", "bank_fraction", "k = 2"):
        assert words in str(caught.value)


def test_features_that_do_not_vary_are_told(small_config, normal):
    for patches in normal:
        patches.feat["pcd"].fill_(1.0)
    with pytest.raises(ValueError, match="pcd features of all .* are 1; expected features that"):
        G2SF(small_config).fit_bank(normal)


def test_fit_predict_save_load_on_scans(make_sample, tmp_path):
    """The whole contract on real features: scans in, score maps out, the same after loading."""
    config = make_config(
        "smoke", category="foam", device="cpu", grid_size=12, rgb_size=192, fpfh_grid=64,
        num_synthetic=6, epochs=4, batch_size=64, k=2, map_size=96,
    )  # fmt: skip
    detector = G2SF(config).fit([make_sample(n) for n in range(4)])
    good, bad = make_sample(20), make_sample(21, "combined")
    detector.save(tmp_path)
    found = G2SF.load(tmp_path, device="cpu").predict(bad)
    assert found.score_map.tobytes() == detector.predict(bad).score_map.tobytes()
    assert found.score_map.shape == (96, 96) and np.isfinite(found.score_map).all()
    assert found.score_map.min() >= 0
    assert found.image_score > 1.5 * detector.predict(good).image_score
    row, column = np.unravel_index(found.score_map.argmax(), (96, 96))
    assert abs(row - 46) < 12 and abs(column - 50) < 12
