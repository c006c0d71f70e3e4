"""Rules of fusion, one bank of both features, and PatchCore's image score: by hand, and cdist."""

import math
from types import SimpleNamespace

import pytest
import torch

from g2sf_lib.baselines.banks import Calibration, SideBySide, fit_concat_bank
from g2sf_lib.baselines.simple import Maximum, Product, Sum, reweighted
from g2sf_lib.config import MODALITIES, BankConfig, make_config
from g2sf_lib.memory import MemoryBank

pytestmark = pytest.mark.usefixtures("one_thread")

S0 = torch.tensor([[1.0, 6.0], [4.0, 2.0], [0.5, 0.5]])
CALIBRATION = Calibration(mean=torch.tensor([2.0, 4.0]), std=torch.tensor([0.5, 4.0]))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Sum, [2.0, 2.5, 0.375]),  # 1/2 + 6/4; 4/2 + 2/4; 1/4 + 1/8
        (Product, [0.75, 1.0, 0.03125]),  # 1/2 * 6/4; 4/2 * 2/4; 1/4 * 1/8
        (Maximum, [0.5, 4.0, 0.0]),  # max(-2, 1/2); max(4, -1/2); both below zero
    ],
)
def test_rules_by_hand_whatever_the_units(rule, expected):
    def fuse(s0, calibration=CALIBRATION):
        stored = SimpleNamespace(calibration=calibration)
        scans = SimpleNamespace(distances=lambda banks: s0, stored=stored)
        return rule(make_config("smoke")).score_cells(scans)

    assert fuse(S0).tolist() == pytest.approx(expected)
    farther = S0 + torch.tensor([[0.5, 0.0], [0.0, 3.0], [2.0, 2.0]])
    assert (fuse(farther) >= fuse(S0)).all()
    unit = torch.tensor([1000.0, 0.1])
    other = Calibration(CALIBRATION.mean * unit, CALIBRATION.std * unit)
    assert fuse(S0 * unit, other).tolist() == pytest.approx(expected)


def test_calibration_by_hand():
    calibration = Calibration.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 8.0]]))
    assert calibration.mean.tolist() == [3.0, 6.0]
    assert calibration.std.tolist() == pytest.approx([2.0, 3**0.5])


def random_features(num, seed=0, dims=(4, 9)):
    generator = torch.Generator().manual_seed(seed)
    return {
        m: torch.randn(num, d, generator=generator) for m, d in zip(MODALITIES, dims, strict=True)
    }


def test_side_by_side_gives_both_modalities_the_same_weight():
    feat = {"pcd": torch.ones(1, 4), "rgb": torch.full((1, 9), 2.0)}
    assert SideBySide(feat)[:].tolist()[0] == pytest.approx([0.5] * 4 + [2 / 3] * 9)
    # so a squared distance is the mean squared difference of one plus that of the other
    a, b = random_features(5, 0, (4, 90)), random_features(5, 1, (4, 90))
    squared = (SideBySide(a)[:] - SideBySide(b)[:]).square().sum(1)
    each = sum((a[m] - b[m]).square().mean(1) for m in MODALITIES)
    torch.testing.assert_close(squared, each)


def test_side_by_side_reads_what_is_asked_for():
    both, which = SideBySide(random_features(20)), torch.tensor([7, 2, 7])
    assert both.shape == (20, 13) and len(both) == 20 and both.device.type == "cpu"
    assert torch.equal(both[which], both[:][which]) and torch.equal(both[3:9], both[:][3:9])
    assert torch.equal(torch.cat(list(both.blocks(7))), both[:])
    assert both.stored is both and torch.equal(both.to("cpu")[:], both[:])


def test_the_concatenated_bank_is_one_coreset_of_both():
    feat = random_features(50, dims=(3, 5))
    bank = fit_concat_bank(feat, BankConfig(bank_fraction=0.2), False, None)
    assert bank.prototypes.shape == (10, 8)
    assert torch.equal(bank.prototypes, SideBySide(feat)[:][bank.rows])


def line(*at):
    """A bank of points on a line."""
    return MemoryBank(torch.tensor(at)[:, None], torch.arange(len(at)))


def test_reweighted_by_hand_on_three_points():
    """The cell at 5 is 2 from its prototype at 3, whose neighbours lie 3 and 5 from the cell."""
    bank, cell = line(0.0, 2.0, 3.0), torch.tensor([5.0])
    e2, e3, e5 = math.exp(2), math.exp(3), math.exp(5)
    expected = {1: 0.0, 2: (1 - e2 / (e2 + e3)) * 2, 3: (1 - e2 / (e2 + e3 + e5)) * 2}
    for num, score in expected.items():
        found = reweighted(2.0, cell, 2, bank, num)
        assert isinstance(found, float) and found == pytest.approx(score, rel=1e-5, abs=1e-6)
    assert reweighted(2.0, cell, 2, bank, 9) == pytest.approx(expected[3])  # a bank of three


@pytest.mark.parametrize("scale", [1e2, 1e3, 1e4])
def test_reweighted_stays_finite_where_exponentials_do_not(scale):
    """As far from a hundred prototypes as from its own: one part in a hundred is taken off."""
    bank = MemoryBank(scale * torch.eye(100), torch.arange(100))
    found = reweighted(scale, torch.zeros(100), 0, bank, 100)
    assert math.isfinite(found) and found == pytest.approx(0.99 * scale, rel=1e-4)
    far = line(0.0, scale)  # and of two, the other too far to be counted
    assert reweighted(0.1 * scale, torch.tensor([0.9 * scale]), 1, far, 2) == pytest.approx(
        0.1 * scale, rel=1e-3
    )


def test_reweighted_never_exceeds_the_distance():
    feat = random_features(40, seed=5, dims=(3, 3))
    bank = MemoryBank(feat["pcd"], torch.arange(40))
    index, distance = bank.query(feat["rgb"], 1)
    for cell, i, s in zip(feat["rgb"], index[:, 0], distance[:, 0], strict=True):
        for num in (1, 3, 9, 40):
            assert 0 <= reweighted(float(s), cell, int(i), bank, num) <= float(s)
