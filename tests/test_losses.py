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
    ell0 = torch.tensor([0.5, 2.0, 0.25], requires_grad=True)
    y = torch.tensor([False, True, True])
    # l^2 = 1/4, 4, 1/16; weights 0.33, 3, 0.33; m_0^2 = 16
    # 0.33 * 0.25 + 3 * (0.25 - 0.0625) + 0.33 * (16 - 0.0625) = 0.0825 + 0.5625 + 5.259375
    loss = loss_sep(ell0, y, 4.0, "sum", form="official")
    assert loss.item() == pytest.approx(5.904375)
    loss.backward()
    # the weight carries no gradient: 0.33 * 2 l, and 3 * (-2 / l^3), 0.33 * (-2 / l^3)
    assert ell0.grad.tolist() == pytest.approx([0.33, -0.75, -42.24])


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
    # m_l = 2/3, m_u = 1: normal 1/3 + 7/3, anomalous 0 + 0
    assert loss_mar(ell0, y, "sum", form="official").item() == pytest.approx(8 / 3)


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


def test_loss_cma_by_hand():
    w_neg = torch.tensor([[1.0, 2.0], [math.e, 0.5], [2.0, 2.0]])
    # 6e - (3 + e + 0.5 + 4) = 5e - 7.5
    assert loss_cma(w_neg, "sum").item() == pytest.approx(6.091409142295225)
    assert loss_cma(w_neg).item() == pytest.approx(6.091409142295225 / 3)


@pytest.mark.parametrize("reduction", ["none", "SUM"])
def test_an_unknown_reduction_is_refused(reduction):
    with pytest.raises(ValueError, match="expected 'mean' or 'sum'"):
        loss_cma(torch.ones(1, 2), reduction)


def marked_parts(num):
    """Parts whose every entry says which cell it came from."""
    cells = torch.arange(num, dtype=torch.float32)[:, None, None].expand(num, 1, 3)
    return {m: cells.clone() for m in ("pcd", "rgb")}, {m: cells + 0.5 for m in ("pcd", "rgb")}


@pytest.mark.parametrize("form", ["paper", "official"])
def test_negative_pairs_take_both_kinds_with_equal_probability(form):
    num = 4000
    proto, direction = marked_parts(num)
    new_proto, new_direction = negative_pairs(
        proto, direction, torch.Generator().manual_seed(3), form
    )
    cell = torch.arange(num)
    source = {
        name: part[mod][:, 0, 0].floor().long()
        for name, part, mod in (
            ("proto_pcd", new_proto, "pcd"),
            ("proto_rgb", new_proto, "rgb"),
            ("direction_pcd", new_direction, "pcd"),
            ("direction_rgb", new_direction, "rgb"),
        )
    }
    moved = {name: where != cell for name, where in source.items()}
    if form == "paper":
        # As Eq. 8 is printed: prototype and direction of a modality move together, to one cell.
        assert torch.equal(source["proto_rgb"], source["direction_rgb"])
        assert torch.equal(source["proto_pcd"], source["direction_pcd"])
        first, second = "proto_rgb", "proto_pcd"
    else:
        assert not moved["proto_pcd"].any() and not moved["direction_pcd"].any()
        first, second = "direction_rgb", "proto_rgb"
    assert not (moved[first] & moved[second]).any()  # never both at once
    assert (moved[first] | moved[second]).float().mean() > 0.99
    assert 0.46 < moved[first].float().mean() < 0.54
    assert 0.46 < moved[second].float().mean() < 0.54
    # One permutation serves both kinds: no other cell is named twice.
    other = torch.where(moved[first], source[first], source[second])
    assert other.unique().numel() == num


def test_negative_pairs_leave_their_input_alone_and_follow_the_generator():
    proto, direction = marked_parts(20)
    before = [part[mod].clone() for part in (proto, direction) for mod in part]
    draws = [
        negative_pairs(proto, direction, torch.Generator().manual_seed(s))[0]["rgb"]
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    after = [part[mod] for part in (proto, direction) for mod in part]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
