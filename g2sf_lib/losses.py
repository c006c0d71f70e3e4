"""The loss terms of Eq. 4-9, one pure function each, and their sum (Eq. 10).

``reduction="sum"`` is the paper's formula to the letter; ``"mean"`` divides it by the number of
cells N, so that the weights of Eq. 10 do not depend on the batch size. ``form="official"`` is that
of the authors' code (facts.md, section 5). `ell0` is (N,), the metric in the nearest neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from g2sf_lib.config import MODALITIES, Form

Reduction = Literal["mean", "sum"]
SMALLEST = 1e-6  # keeps 1 / l finite where an anomalous cell lies on its prototype
OFFICIAL_EPS = 1e-5  # what the authors' code adds to l squared for that


def _reduce(per_cell: Tensor, reduction: Reduction) -> Tensor:
    """Return sum or mean over cells of (N,) terms."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'sum'")
    return per_cell.mean() if reduction == "mean" else per_cell.sum()


def loss_sep(
    ell0: Tensor,
    is_anomalous: Tensor,
    bound: float | Tensor,
    reduction: Reduction = "mean",
    form: Form = "paper",
    weighted: bool = True,
) -> Tensor:
    """Return the separation loss (Eq. 4).

    sum over i of (1 - y_i) l_i0 + y_i (1 / l_i0 - 1 / m_0)_+

    Args:
        ell0: (N,) metrics.
        is_anomalous: (N,) bool.
        bound: m_0: beyond it an anomalous cell is far enough.
        reduction: over cells.
        form: "official" puts p = l squared for l, and weights normal terms by p squared and
            anomalous ones by 1 / p squared, clamped to [0.33, 3]; gradients flow through the
            weights. The bound is not squared with l.
        weighted: False leaves these weights out, as the authors' held-out criterion does.

    Source: Section 3.5.1.
    """
    y = is_anomalous.to(ell0)
    if form == "official":
        near = ell0.square()
        inverse = 1.0 / (near + OFFICIAL_EPS)
        weights = (near.square().clamp(0.33, 3.0), inverse.square().clamp(0.33, 3.0))
    else:
        near, inverse, weights = ell0, 1.0 / ell0.clamp_min(SMALLEST), (1.0, 1.0)
    normal, far = near, torch.relu(inverse - 1.0 / bound)
    if weighted:
        normal, far = normal * weights[0], far * weights[1]
    return _reduce((1 - y) * normal + y * far, reduction)


def loss_mar(
    ell0: Tensor, is_anomalous: Tensor, reduction: Reduction = "mean", form: Form = "paper"
) -> Tensor:
    """Return the margin loss, which punishes the overlap of the two classes (Eq. 5).

    1 / m_u times sum over i of (1 - y_i) (l_i0 - m_l)_+ + y_i (m_u - l_i0)_+, with m_l the
    smallest l_i0 of anomalous and m_u the largest of normal cells of the batch. Both are
    bounds, not targets: no gradient flows through them. Zero when the classes do not
    overlap, or when one of them is absent. The official form puts l squared for l, and lets
    gradients flow through m_l and m_u.

    Source: Section 3.5.1.
    """
    if not is_anomalous.any() or is_anomalous.all():
        return (0.0 * ell0).sum()
    y = is_anomalous.to(ell0)
    ell0 = ell0.square() if form == "official" else ell0
    m_l, m_u = ell0[is_anomalous].min(), ell0[~is_anomalous].max().clamp_min(SMALLEST)
    if form != "official":
        m_l, m_u = m_l.detach(), m_u.detach()
    overlap = (1 - y) * torch.relu(ell0 - m_l) + y * torch.relu(m_u - ell0)
    return _reduce(overlap / m_u, reduction)


def proximal_bound(s: Tensor, k: int, eta_0: float) -> Tensor:
    """Return eta_ij, how much l may grow from neighbourhood 0 to neighbourhood j (Eq. 6).

    eta_ij = eta_0 (mean over m of s_ij^m) / (mean over m of s_i0^m), j = 1 ... k.

    `s` (N, K, M) are normalised distances, K > k; no eta (N, k) is below eta_0 where they are
    sorted.

    Source: the authors' code; the paper only asks for eta_ij > 1.
    """
    mean = s.mean(-1)
    return eta_0 * mean[:, 1 : k + 1] / mean[:, :1].clamp_min(SMALLEST)


def loss_cns(ell: Tensor, eta: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the consistency loss (Eq. 6).

    1 / k times sum over i of: sum over 1 <= j <= k of (l_ij - eta_ij l_i0)_+ (proximal
    consistency) plus sum over k + 1 <= j <= 2k of (l_i0 - l_ij)_+ (distal separation).

    `ell` (N, 2k + 1) are metrics, nearest neighbourhood first, and `eta` (N, k) is of
    `proximal_bound`.

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

    `w0` (N, M) are scale factors in the nearest neighbourhood; `is_anomalous` is (N,), one label
    for both modalities as in the paper, or (N, M), a label for each.

    Source: Section 3.5.2.
    """
    y = is_anomalous.to(w0) if is_anomalous.ndim == 2 else is_anomalous.to(w0)[:, None]
    return _reduce(((1 - y) * torch.relu(w0 - 1) + y * (math.e - w0)).sum(1), reduction)


def loss_cma(w_neg: Tensor, reduction: Reduction = "mean", form: Form = "paper") -> Tensor:
    """Return the crossmodal alignment loss (Eq. 9): sum over i and m of (e - w~_i0^m).

    w_neg (N, M) are scale factors of the negatives of Eq. 8. The official form takes the mean over
    modalities instead of the sum.

    Source: Section 3.5.2.
    """
    away = math.e - w_neg
    return _reduce(away.mean(1) if form == "official" else away.sum(1), reduction)


def total_loss(
    terms: Mapping[str, Tensor], alpha: float, beta: float, gamma: float, mu: float
) -> Tensor:
    """Return L_sep + alpha L_mar + beta L_cns + gamma L_sc + mu L_cma (Eq. 10).

    `terms` is "sep", "mar", "cns", "sc", "cma" -> scalar; one that weighs 0 is left out, so that no
    gradient is computed of it.
    """
    weights = {"sep": 1.0, "mar": alpha, "cns": beta, "sc": gamma, "cma": mu}
    return sum(weight * terms[name] for name, weight in weights.items() if weight)


def negative_pairs(
    num: int, generator: torch.Generator, form: Form = "paper"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return whose feature and whose prototypes each mismatched cell has (Eq. 8).

    - "paper", as Eq. 8 is printed: a permutation pairs cell i with cell i~; with equal
      probability the negative takes RGB feature and prototype of i~, or those of the points.
    - "official": in a random half of the batch the feature of each modality is that of another
      cell, in the other half its prototype is; each modality has a permutation of its own, and
      the direction is that from the prototype to the feature that met.

    Returns:
        feature_of, prototype_of: mod -> (N,) numbers of cells of the batch.

    Source: Section 3.5.2; facts.md, section 5.
    """
    own = torch.arange(num)
    if form == "official":
        halves = torch.randperm(num, generator=generator).tensor_split([num // 2])
        found = tuple({mod: own.clone() for mod in MODALITIES} for _ in halves)
        for of, half in zip(found, halves, strict=True):
            for mod in MODALITIES:
                of[mod][half] = half[torch.randperm(len(half), generator=generator)]
        return found
    other = torch.randperm(num, generator=generator)
    is_rgb = torch.rand(num, generator=generator) < 0.5
    of = {"pcd": torch.where(is_rgb, own, other), "rgb": torch.where(is_rgb, other, own)}
    return of, of
