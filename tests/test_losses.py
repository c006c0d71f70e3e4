"""Eq. 4-9 by hand on three or four points, in "sum" form to the letter; negatives of Eq. 8."""

import math

import pytest
import torch

from g2sf_lib.losses import (
    loss_cma,
    loss_cns,
    loss_mar,
    loss_sc,
    loss_sep,
    negative_pairs,
    proximal_bound,
)


def test_loss_sep_by_hand():
    ell0 = torch.tensor([0.5, 2.0, 0.25])
    y = torch.tensor([False, True, True])
    # 0.5 + (1/2 - 1/4) + (4 - 1/4) = 4.5
    assert loss_sep(ell0, y, 4.0, "sum").item() == pytest.approx(4.5)
    assert loss_sep(ell0, y, 4.0).item() == pytest.approx(1.5)


def test_loss_sep_leaves_an_anomalous_cell_beyond_m0_alone():
    ell0 = torch.tensor([8.0, 3.0], requires_grad=True)
    loss = loss_sep(ell0, torch.tensor([True, False]), 4.0, "sum")
    loss.backward()
    assert loss.item() == pytest.approx(3.0)
    assert ell0.grad.tolist() == [0.0, 1.0]


def test_loss_sep_is_finite_on_a_prototype():
    ell0 = torch.tensor([0.0, 0.0], requires_grad=True)
    loss = loss_sep(ell0, torch.tensor([True, False]), 4.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(ell0.grad).all()


def test_loss_sep_official_by_hand():
    ell0 = torch.tensor([0.5, 2.0, 0.25])
    y = torch.tensor([False, True, True])
    # p = l^2 = 1/4, 4, 1/16; bound 16; weights clamp(p^2) = 0.33, clamp(1 / p^2) = 0.33, 3
    # 0.33 * 0.25 + 0.33 * (0.25 - 0.0625) + 3 * (16 - 0.0625) = 0.0825 + 0.061875 + 47.8125
    assert loss_sep(ell0, y, 16.0, "sum", "official").item() == pytest.approx(47.956875, rel=5e-4)
    # 0.25 + 0.1875 + 15.9375
    plain = loss_sep(ell0, y, 16.0, "sum", "official", weighted=False)
    assert plain.item() == pytest.approx(16.375, rel=5e-4)


def official_losses(ell0, is_anomalous, bound):
    """L_sep and L_mar of facts.md, section 5, cell by cell in double precision."""
    normal = [x**2 for x, y in zip(ell0, is_anomalous, strict=True) if not y]
    anomalous = [x**2 for x, y in zip(ell0, is_anomalous, strict=True) if y]
    sep = sum(p * min(max(p**2, 0.33), 3) for p in normal)
    for p in anomalous:
        inverse = 1 / (p + 1e-5)
        sep += max(inverse - 1 / bound, 0) * min(max(inverse**2, 0.33), 3)
    m_l, m_u = min(anomalous), max(normal)
    mar = sum(max(p - m_l, 0) for p in normal) + sum(max(m_u - p, 0) for p in anomalous)
    return sep / len(ell0), mar / m_u / len(ell0)


@pytest.mark.parametrize("seed", range(5))
def test_official_losses_are_those_of_the_formulas(seed):
    draw = torch.Generator().manual_seed(seed)
    ell0 = 3 * torch.rand(64, generator=draw, dtype=torch.float64) + 1e-3
    y = torch.rand(64, generator=draw) < 0.4
    sep, mar = official_losses(ell0.tolist(), y.tolist(), 7.0)
    assert loss_sep(ell0, y, 7.0, form="official").item() == pytest.approx(sep, rel=1e-9)
    assert loss_mar(ell0, y, form="official").item() == pytest.approx(mar, rel=1e-9)
    single = ell0.float()
    assert loss_sep(single, y, 7.0, form="official").item() == pytest.approx(sep, rel=1e-5)
    assert loss_mar(single, y, form="official").item() == pytest.approx(mar, rel=1e-5)


@pytest.mark.parametrize("loss", [loss_sep, loss_mar])
def test_official_gradients_are_those_of_the_formulas(loss):
    """Through weights and through the bounds m_l and m_u too: finite differences know."""
    ell0 = torch.tensor([0.9, 1.4, 1.2, 0.95, 2.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([False, False, True, True, True])
    arguments = (7.0,) if loss is loss_sep else ()
    assert torch.autograd.gradcheck(lambda x: loss(x, y, *arguments, form="official"), ell0)
    if loss is loss_mar:  # the paper's form knows bounds only: moving m_u alone changes nothing
        loss_mar(ell0, y).backward()
        assert ell0.grad[1].item() == pytest.approx(1 / 1.4 / 5)


def test_loss_mar_by_hand():
    ell0 = torch.tensor([1.0, 3.0, 2.0, 5.0], requires_grad=True)
    y = torch.tensor([False, False, True, True])
    # m_l = 2, m_u = 3: normal (1-2)_+ + (3-2)_+ = 1, anomalous (3-2)_+ + (3-5)_+ = 1; over m_u
    loss = loss_mar(ell0, y, "sum")
    assert loss.item() == pytest.approx(2 / 3)
    assert loss_mar(ell0, y).item() == pytest.approx(2 / 12)
    loss.backward()
    # m_l and m_u are bounds, not targets
    assert ell0.grad.tolist() == pytest.approx([0.0, 1 / 3, -1 / 3, 0.0])


def test_loss_mar_official_by_hand():
    ell0 = torch.tensor([1.0, 3.0, 2.0, 5.0])
    y = torch.tensor([False, False, True, True])
    # on squares 1, 9, 4, 25: m_l = 4, m_u = 9: normal 0 + 5, anomalous 5 + 0; over m_u
    assert loss_mar(ell0, y, "sum", form="official").item() == pytest.approx(10 / 9)


@pytest.mark.parametrize("y", [[False, False, False], [True, True, True]])
def test_loss_mar_of_one_class_is_zero_with_a_gradient(y):
    ell0 = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = loss_mar(ell0, torch.tensor(y), "sum")
    loss.backward()
    assert loss.item() == 0 and ell0.grad.tolist() == [0.0, 0.0, 0.0]


def test_loss_mar_of_separate_classes_is_zero():
    loss = loss_mar(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([False, False, True, True]))
    assert loss.item() == 0


def test_proximal_bound_by_hand():
    s = torch.tensor([[[1.0, 3.0], [2.0, 4.0], [5.0, 1.0], [9.0, 9.0], [9.0, 9.0]]])
    # means 2, 3, 3: eta = 1.2 * 3 / 2 twice; the distal ones take no part
    torch.testing.assert_close(proximal_bound(s, 2, 1.2), torch.tensor([[1.8, 1.8]]))


def test_proximal_bound_is_finite_on_a_prototype_and_at_least_eta_0():
    s = torch.rand(50, 5, 2, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    s[0, 0] = 0
    eta = proximal_bound(s, 2, 1.2)
    assert torch.isfinite(eta).all() and (eta >= 1.2 - 1e-6).all()


def test_loss_cns_by_hand():
    ell = torch.tensor([[1.0, 2.0, 0.5], [2.0, 2.0, 3.0], [1.0, 1.9, 1.0]])
    eta = torch.tensor([[1.5], [1.2], [1.8]])
    # (2 - 1.5) + (1 - 0.5) = 1; (2 - 2.4)_+ + (2 - 3)_+ = 0; (1.9 - 1.8) + 0 = 0.1
    assert loss_cns(ell, eta, "sum").item() == pytest.approx(1.1)
    assert loss_cns(ell, eta).item() == pytest.approx(1.1 / 3)


def test_loss_cns_divides_by_k():
    ell = torch.tensor([[1.0, 2.0, 3.0, 0.5, 2.0]])
    # k = 2: ((2 - 1.5) + (3 - 2) + (1 - 0.5) + 0) / 2
    assert loss_cns(ell, torch.tensor([[1.5, 2.0]]), "sum").item() == pytest.approx(1.0)


def test_loss_cns_refuses_another_number_of_neighbourhoods():
    with pytest.raises(ValueError, match="4 neighbourhoods; expected 2k \\+ 1 = 5"):
        loss_cns(torch.ones(1, 4), torch.ones(1, 2))


def test_loss_cns_of_the_euclidean_start_is_zero():
    """With w = 1 and sorted neighbours neither bound is broken: training starts inside both."""
    s = torch.rand(40, 5, 2, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    assert loss_cns(s.sum(-1), proximal_bound(s, 2, 1.2)).item() == 0


def test_loss_sc_by_hand():
    w0 = torch.tensor([[1.5, 0.5], [2.0, 1.0], [0.4, 1.0]])
    y = torch.tensor([False, True, False])
    # (0.5 + 0) + (e - 2) + (e - 1) + 0 = 2e - 2.5
    assert loss_sc(w0, y, "sum").item() == pytest.approx(2.9365636569180902)
    assert loss_sc(w0, y).item() == pytest.approx(2.9365636569180902 / 3)


def test_loss_sc_with_a_label_a_modality():
    w0 = torch.tensor([[1.5, 0.5], [2.0, 1.5]])
    y = torch.tensor([[False, False], [True, False]])
    # (0.5 + 0) + (e - 2) + 0.5
    assert loss_sc(w0, y, "sum").item() == pytest.approx(math.e - 1)


def test_loss_cma_by_hand():
    w_neg = torch.tensor([[1.0, 2.0], [math.e, 0.5], [2.0, 2.0]])
    # 6e - (3 + e + 0.5 + 4) = 5e - 7.5
    assert loss_cma(w_neg, "sum").item() == pytest.approx(6.091409142295225)
    assert loss_cma(w_neg).item() == pytest.approx(6.091409142295225 / 3)
    assert loss_cma(w_neg, form="official").item() == pytest.approx(6.091409142295225 / 6)


@pytest.mark.parametrize("reduction", ["none", "SUM"])
def test_an_unknown_reduction_is_refused(reduction):
    with pytest.raises(ValueError, match="expected 'mean' or 'sum'"):
        loss_cma(torch.ones(1, 2), reduction)


def test_negative_pairs_of_the_paper_take_feature_and_prototype_of_one_modality():
    num = 4000
    cell = torch.arange(num)
    feature_of, prototype_of = negative_pairs(num, torch.Generator().manual_seed(3))
    moved = {mod: feature_of[mod] != cell for mod in ("pcd", "rgb")}
    for mod in moved:
        assert torch.equal(feature_of[mod], prototype_of[mod])
        assert 0.46 < moved[mod].float().mean() < 0.54
    assert not (moved["pcd"] & moved["rgb"]).any()
    assert (moved["pcd"] | moved["rgb"]).float().mean() > 0.99
    # One permutation serves both kinds: no other cell is named twice.
    other = torch.where(moved["rgb"], feature_of["rgb"], feature_of["pcd"])
    assert other.unique().numel() == num


def test_negative_pairs_of_the_authors_move_features_in_one_half_and_prototypes_in_the_other():
    num = 4001
    cell = torch.arange(num)
    found = negative_pairs(num, torch.Generator().manual_seed(3), "official")
    moved = [torch.stack([of[mod] != cell for mod in ("pcd", "rgb")]) for of in found]
    assert not (moved[0].any(0) & moved[1].any(0)).any()
    for of, some in zip(found, moved, strict=True):
        assert (some[0] & some[1]).sum() > 0.99 * (num // 2)  # both modalities at once
        assert some.any(0).sum() <= num // 2 + 1
        assert (of["pcd"] != of["rgb"]).float().mean() > 0.49  # by permutations of their own
        for mod in ("pcd", "rgb"):
            assert torch.equal(of[mod].sort().values, cell)  # a permutation
            half = torch.nonzero(some.any(0))[:, 0]
            assert torch.isin(of[mod][half], half).all()  # within its half
    assert 0.4 < (moved[0].any(0)[: num // 2]).float().mean() < 0.6  # halves drawn, not in order


def test_negative_pairs_follow_the_generator():
    draws = [negative_pairs(20, torch.Generator().manual_seed(s))[0]["rgb"] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
