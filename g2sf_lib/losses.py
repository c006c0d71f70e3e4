"""The loss terms of Eq. 4-9, one pure function each.

``reduction="sum"`` is the paper's formula to the letter; ``"mean"`` divides it by the
number of cells N, so that the weights of Eq. 10 do not depend on the batch size.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]
Form = Literal["paper", "official"]
SMALLEST = 1e-6  # keeps 1 / l finite where an anomalous cell lies on its prototype


def _reduce(per_cell: Tensor, reduction: Reduction) -> Tensor:
    """Return sum or mean over cells of (N,) terms."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'sum'")
    return per_cell.mean() if reduction == "mean" else per_cell.sum()


def loss_sep(
    ell0: Tensor,
    is_anomalous: Tensor,
    m0: float | Tensor,
    reduction: Reduction = "mean",
    form: Form = "paper",
) -> Tensor:
    """Return the separation loss (Eq. 4).

    sum over i of (1 - y_i) l_i0 + y_i (1 / l_i0 - 1 / m_0)_+

    Args:
        ell0: (N,) metric in the nearest neighbourhood.
        is_anomalous: (N,) bool.
        m0: beyond this an anomalous cell is far enough.
        reduction: "mean" or "sum".
        form: "official" puts l squared for l and weights each term by l squared, clamped
            to [0.33, 3] and without gradient.

    Source: Section 3.5.1; the official form is that of the authors' code.
    """
    y = is_anomalous.to(ell0)
    if form == "official":
        power, bound = ell0.square(), m0**2
        weight = power.detach().clamp(0.33, 3.0)
    else:
        power, bound, weight = ell0, m0, 1.0
    far = torch.relu(1.0 / power.clamp_min(SMALLEST) - 1.0 / bound)
    return _reduce(weight * ((1 - y) * power + y * far), reduction)


def loss_mar(
    ell0: Tensor, is_anomalous: Tensor, reduction: Reduction = "mean", form: Form = "paper"
) -> Tensor:
    """Return the margin loss, which punishes the overlap of the two classes (Eq. 5).

    1 / m_u times sum over i of (1 - y_i) (l_i0 - m_l)_+ + y_i (m_u - l_i0)_+, with m_l the
    smallest l_i0 of anomalous and m_u the largest of normal cells of the batch. Both are
    bounds, not targets: no gradient flows through them. Zero when the classes do not
    overlap, or when one of them is absent.

    Args:
        ell0: (N,) metric in the nearest neighbourhood.
        is_anomalous: (N,) bool.
        reduction: "mean" or "sum".
        form: "official" divides m_l and m_u by the largest normal score and leaves l as it
            is.

    Source: Section 3.5.1; the official form is that of the authors' code.
    """
    if not is_anomalous.any() or is_anomalous.all():
        return (0.0 * ell0).sum()
    y = is_anomalous.to(ell0)
    m_l = ell0[is_anomalous].min().detach()
    m_u = ell0[~is_anomalous].max().detach().clamp_min(SMALLEST)
    if form == "official":
        m_l, m_u = m_l / m_u, torch.ones_like(m_u)
    overlap = (1 - y) * torch.relu(ell0 - m_l) + y * torch.relu(m_u - ell0)
    return _reduce(overlap / m_u, reduction)


def proximal_bound(s: Tensor, k: int, eta_0: float) -> Tensor:
    """Return eta_ij, how much l may grow from neighbourhood 0 to neighbourhood j (Eq. 6).

    eta_ij = eta_0 (mean over m of s_ij^m) / (mean over m of s_i0^m), j = 1 ... k.

    Args:
        s: (N, K, M) normalised distances, K > k.
        k: number of proximal neighbourhoods.
        eta_0: 1.2 in the paper.

    Returns:
        eta: (N, k), at least eta_0 where neighbours are sorted.

    Source: the authors' code; the paper only asks for eta_ij > 1.
    """
    mean = s.mean(-1)
    return eta_0 * mean[:, 1 : k + 1] / mean[:, :1].clamp_min(SMALLEST)


def loss_cns(ell: Tensor, eta: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the consistency loss (Eq. 6).

    1 / k times sum over i of: sum over 1 <= j <= k of (l_ij - eta_ij l_i0)_+ (proximal
    consistency) plus sum over k + 1 <= j <= 2k of (l_i0 - l_ij)_+ (distal separation).

    Args:
        ell: (N, 2k + 1) metrics, nearest neighbourhood first.
        eta: (N, k) of `proximal_bound`.
        reduction: "mean" or "sum", over cells.

    Raises:
        ValueError: when the number of neighbourhoods is not 2k + 1.

    Source: Section 3.5.2.
    """
    k = eta.shape[1]
    if ell.shape[1] != 2 * k + 1:
        raise ValueError(f"loss_cns: {ell.shape[1]} neighbourhoods; expected 2k + 1 = {2 * k + 1}")
    ell0 = ell[:, :1]
    proximal = torch.relu(ell[:, 1 : k + 1] - eta * ell0).sum(1)
    distal = torch.relu(ell0 - ell[:, k + 1 :]).sum(1)
    return _reduce((proximal + distal) / k, reduction)


def loss_sc(w0: Tensor, is_anomalous: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the scaling loss (Eq. 7).

    sum over i and m of (1 - y_i) (w_i0^m - 1)_+ + y_i (e - w_i0^m)

    Args:
        w0: (N, M) scale factors in the nearest neighbourhood.
        is_anomalous: (N,) bool.
        reduction: "mean" or "sum", over cells.

    Source: Section 3.5.2.
    """
    y = is_anomalous.to(w0)[:, None]
    return _reduce(((1 - y) * torch.relu(w0 - 1) + y * (math.e - w0)).sum(1), reduction)


def loss_cma(w_neg: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the crossmodal alignment loss (Eq. 9): sum over i and m of (e - w~_i0^m).

    Args:
        w_neg: (N, M) scale factors of the negatives of Eq. 8.
        reduction: "mean" or "sum", over cells.

    Source: Section 3.5.2.
    """
    return _reduce((math.e - w_neg).sum(1), reduction)


def negative_pairs(
    proto_part: dict[str, Tensor],
    direction_part: dict[str, Tensor],
    generator: torch.Generator,
    form: Form = "paper",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return crossmodally mismatched cells (Eq. 8) from the parts of `LSPN.project`.

    A permutation pairs cell i with cell i~. With equal probability a negative takes

    - "paper", as Eq. 8 is printed: the RGB prototype and direction of i~, or the point
      prototype and direction of i~;
    - "official": the RGB direction of i~ with all prototypes in place, or the RGB
      prototype of i~ with all directions in place (which is also how the text below
      Eq. 8 describes its two kinds).

    Args:
        proto_part: mod -> (N, K, hidden), what prototypes add to the first layer.
        direction_part: the same of directions.
        generator: draws the permutation and the kinds.
        form: which negatives.

    Returns:
        The two parts of the negatives, same shapes.
    """
    num = proto_part["rgb"].shape[0]
    device = proto_part["rgb"].device
    other = torch.randperm(num, generator=generator).to(device)
    is_first = (torch.rand(num, generator=generator) < 0.5).to(device)[:, None, None]
    proto, direction = dict(proto_part), dict(direction_part)
    if form == "official":
        direction["rgb"] = torch.where(is_first, direction["rgb"][other], direction["rgb"])
        proto["rgb"] = torch.where(is_first, proto["rgb"], proto["rgb"][other])
        return proto, direction
    for part in (proto, direction):
        part["rgb"] = torch.where(is_first, part["rgb"][other], part["rgb"])
        part["pcd"] = torch.where(is_first, part["pcd"], part["pcd"][other])
    return proto, direction
