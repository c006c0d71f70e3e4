"""The simple fusions: by hand, against cdist, and on a planted outlier."""

import dataclasses

import numpy as np
import pytest
import torch

from g2sf_lib.baselines import METHODS, Baseline, Calibration, SideBySide, fit_concat_bank, fuse
from g2sf_lib.config import MODALITIES, BankConfig
from g2sf_lib.detector import counted_cells
from g2sf_lib.features import foreground_features

pytestmark = pytest.mark.usefixtures("one_thread")

OUTLIER = 27  # row 3, column 3 of 8 x 8

S0 = torch.tensor([[1.0, 6.0], [4.0, 2.0], [0.5, 0.5]])
CALIBRATION = Calibration(mean=torch.tensor([2.0, 4.0]), std=torch.tensor([0.5, 4.0]))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("pcd", [1.0, 4.0, 0.5]),
        ("rgb", [6.0, 2.0, 0.5]),
        ("sum", [2.0, 2.5, 0.375]),  # 1/2 + 6/4; 4/2 + 2/4; 1/4 + 1/8
        ("max", [0.5, 4.0, 0.0]),  # max(-2, 1/2); max(4, -1/2); both below zero
    ],
)
def test_fuse_by_hand(method, expected):
    assert fuse(method, S0, CALIBRATION).tolist() == pytest.approx(expected)


def test_fuse_refuses_another_method():
    with pytest.raises(ValueError, match="'concat'; expected 'rgb', 'pcd', 'sum' or 'max'"):
        fuse("concat", S0, CALIBRATION)


def test_calibration_by_hand():
    calibration = Calibration.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 8.0]]))
    assert calibration.mean.tolist() == [3.0, 6.0]
    assert calibration.std.tolist() == pytest.approx([2.0, 3**0.5])


def test_side_by_side_gives_both_modalities_the_same_weight():
    feat = {"pcd": torch.ones(1, 4), "rgb": torch.full((1, 9), 2.0)}
    assert SideBySide(feat)[:].tolist()[0] == pytest.approx([0.5] * 4 + [2 / 3] * 9)
    # so a squared distance is the mean squared difference of one plus that of the other
    a = {m: torch.randn(5, d) for m, d in (("pcd", 4), ("rgb", 90))}
    b = {m: torch.randn(5, d) for m, d in (("pcd", 4), ("rgb", 90))}
    squared = (SideBySide(a)[:] - SideBySide(b)[:]).square().sum(1)
    each = sum((a[m] - b[m]).square().mean(1) for m in MODALITIES)
    torch.testing.assert_close(squared, each)


@pytest.fixture
def fitted(small_config, make_patches):
    train = [make_patches(n)[0] for n in range(6)]
    held_out = [make_patches(50 + n)[0] for n in range(3)]

    def fit(method):
        return Baseline(method, small_config).fit_patches(train, held_out)

    return fit


def with_outlier(patches, mods):
    feat = {mod: value.clone() for mod, value in patches.feat.items()}
    for mod in mods:
        feat[mod][OUTLIER] += 25.0
    return dataclasses.replace(patches, feat=feat)


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_outlier_scores_highest(fitted, make_patches, method):
    baseline = fitted(method)
    seen_by = {"rgb": ("rgb",), "pcd": ("pcd",)}.get(method, MODALITIES)
    for mods in {seen_by, MODALITIES}:
        found = baseline.predict_patches(with_outlier(make_patches(8)[0], mods))
        row, column = np.unravel_index(found.score_map.argmax(), found.score_map.shape)
        assert (row // 4, column // 4) == (3, 3)
        assert found.image_score > 2 * baseline.predict_patches(make_patches(8)[0]).image_score


@pytest.mark.parametrize("method", ["sum", "max", "concat"])
@pytest.mark.parametrize("mod", MODALITIES)
def test_a_fusion_sees_an_outlier_in_either_modality(fitted, make_patches, method, mod):
    found = fitted(method).predict_patches(with_outlier(make_patches(8)[0], (mod,)))
    row, column = np.unravel_index(found.score_map.argmax(), found.score_map.shape)
    assert (row // 4, column // 4) == (3, 3)


@pytest.mark.parametrize(("method", "other"), [("rgb", "pcd"), ("pcd", "rgb")])
def test_one_modality_is_blind_to_the_other(fitted, make_patches, method, other):
    baseline, patches = fitted(method), make_patches(8)[0]
    found = baseline.predict_patches(with_outlier(patches, (other,)))
    assert found.score_map.tobytes() == baseline.predict_patches(patches).score_map.tobytes()


@pytest.mark.parametrize("method", ["rgb", "pcd"])
def test_one_modality_is_the_distance_to_the_nearest_prototype(fitted, make_patches, method):
    baseline, patches = fitted(method), make_patches(8)[0]
    feat = baseline.standardiser(foreground_features([patches]))[method][:]
    nearest = torch.cdist(feat, baseline.banks[method].prototypes).amin(1)
    counted = counted_cells(patches, "exclude")[patches.foreground]
    found = baseline.predict_patches(patches).image_score
    assert found == pytest.approx(nearest[counted].max().item(), rel=1e-5)


def test_calibration_comes_from_the_held_out_scans(small_config, make_patches):
    train = [make_patches(n)[0] for n in range(6)]
    held_out = [make_patches(50 + n)[0] for n in range(3)]
    baseline = Baseline("max", small_config).fit_patches(train, held_out)
    feat = baseline.standardiser(foreground_features(held_out))
    for m, mod in enumerate(MODALITIES):
        s0 = torch.cdist(feat[mod][:], baseline.banks[mod].prototypes).amin(1)
        assert baseline.calibration.mean[m].item() == pytest.approx(s0.mean().item(), rel=1e-4)
        assert baseline.calibration.std[m].item() == pytest.approx(s0.std().item(), rel=1e-4)


def test_bank_points_score_zero(small_config, make_patches):
    everything = dataclasses.replace(
        small_config, bank=dataclasses.replace(small_config.bank, bank_fraction=1.0)
    )
    patches = make_patches(0)[0]
    for method in ("rgb", "pcd", "concat", "sum"):
        held_out = [make_patches(50)[0]]
        baseline = Baseline(method, everything).fit_patches([patches], held_out)
        assert baseline.predict_patches(patches).image_score == 0


def test_side_by_side_reads_what_is_asked_for():
    feat = {mod: torch.randn(20, dim) for mod, dim in (("pcd", 4), ("rgb", 9))}
    both, which = SideBySide(feat), torch.tensor([7, 2, 7])
    assert both.shape == (20, 13) and len(both) == 20
    assert torch.equal(both[which], both[:][which]) and torch.equal(both[3:9], both[:][3:9])
    assert torch.equal(torch.cat(list(both.blocks(7))), both[:])


def test_the_concatenated_bank_is_one_coreset_of_both():
    generator = torch.Generator().manual_seed(0)
    feat = {m: torch.randn(50, d, generator=generator) for m, d in (("pcd", 3), ("rgb", 5))}
    bank = fit_concat_bank(feat, BankConfig(bank_fraction=0.2))
    assert bank.prototypes.shape == (10, 8)
    assert torch.equal(bank.prototypes, SideBySide(feat)[:][bank.rows])


def test_what_cannot_be_fitted_is_refused(small_config, make_sample):
    with pytest.raises(ValueError, match="'mean'; expected one of"):
        Baseline("mean", small_config)
    with pytest.raises(ValueError, match="no scans; expected at least 1"):
        Baseline("rgb", small_config).fit([])
    for method in ("sum", "max"):
        with pytest.raises(ValueError, match=f"'{method}' needs held_out normal scans"):
            Baseline(method, small_config).fit([make_sample(0)])


def test_fit_and_predict_on_scans(make_sample, small_config):
    features = dataclasses.replace(small_config.features, grid_size=12, rgb_size=192, fpfh_grid=64)
    scoring = dataclasses.replace(small_config.scoring, map_size=96)
    config = dataclasses.replace(small_config, features=features, scoring=scoring)
    baseline = Baseline("sum", config).fit([make_sample(0), make_sample(1)], [make_sample(2)])
    found = baseline.predict(make_sample(21, "combined"))
    row, column = np.unravel_index(found.score_map.argmax(), (96, 96))
    assert abs(row - 46) < 12 and abs(column - 50) < 12
    assert found.image_score > baseline.predict(make_sample(20)).image_score
