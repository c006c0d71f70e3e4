"""The metric of a toy as it is drawn and judged: balls, scale factors, AUROC."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from g2sf_lib.config import MODALITIES
from g2sf_lib.detector import query_banks
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.fusion import Metric, aggregate, local_metric
from g2sf_lib.playground.toy import Toy, across, along, other

_ANGLES = 48  # of a drawn ball


def pair_scale_factors(
    metric: Metric, toy: Toy, mod: str, direction: np.ndarray, partner: Tensor | None = None
) -> np.ndarray:
    """Return w (B, A) in the plane of one modality, with the other one on its prototype.

    Args:
        metric: trained or not.
        toy: with the prototypes.
        mod: whose plane.
        direction: (B, A, 2) unit directions from each prototype.
        partner: (B,) prototypes of the other modality; None: those that belong together.
    """
    num, angles = direction.shape[:2]
    row = torch.arange(num).repeat_interleave(angles)
    pair = (toy.partner[mod] if partner is None else partner)[row]
    step = torch.tensor(direction, dtype=torch.float32).reshape(-1, 2)
    feat = {mod: toy.bank[mod].prototypes[row] + step}
    feat[other(mod)] = toy.bank[other(mod)].prototypes[pair]
    index = {mod: row[:, None], other(mod): pair[:, None]}
    s = torch.zeros(len(row), 1, len(MODALITIES))
    s[..., MODALITIES.index(mod)] = 1.0  # and 0 in the other modality: no direction there
    w = metric.scale_factors(feat, toy.bank, index, s)
    return w[:, 0, MODALITIES.index(mod)].reshape(num, angles).numpy()


def unit_balls(metric: Metric, toy: Toy) -> dict[str, np.ndarray]:
    """Return the ball of the metric around every prototype, in both planes.

    The ball around a prototype of one modality is where l = level while the other modality lies
    on its prototype (s = 0 there). In the direction d its radius is level s_mean / (sigma w(d)),
    which is exact, because w does not depend on the distance: a circle for w = 1.

    Returns:
        mod -> (B, 49, 2) points of closed lines.

    Source: Eq. 2, 3.
    """
    angle = np.linspace(0, 2 * np.pi, _ANGLES + 1)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    balls = {}
    for m, mod in enumerate(MODALITIES):
        centre = toy.prototypes[mod][:, None]
        direction = np.repeat(circle[None], len(centre), axis=0)
        w = pair_scale_factors(metric, toy, mod, direction)
        scale = toy.settings.level * float(metric.s_mean[m] / metric.sigma()[m].detach())
        balls[mod] = centre + (scale / w)[..., None] * direction
    return balls


def shape_of_balls(metric: Metric, toy: Toy) -> dict[str, float]:
    """Return mean w of both planes in three cases, which say what the balls look like.

    Returns:
        ``w along`` the curve and ``w across`` it, over prototypes that are not the ends of the
        curve; ``w mismatched`` in all four directions where the prototype of the other modality
        is the farthest on the curve instead of the one that belongs to it.
    """
    found: dict[str, list[float]] = {"w along": [], "w across": [], "w mismatched": []}
    for mod in MODALITIES:
        place = toy.place[mod]
        inner = np.argsort(place)[1:-1]
        sides = [along(mod, place), across(mod, place)]
        direction = np.stack([*sides, *(-side for side in sides)], axis=1)  # (B, 4, 2)
        w = pair_scale_factors(metric, toy, mod, direction)[inner]
        gap = np.abs(place[:, None] - toy.place[other(mod)])
        wrong = torch.from_numpy(gap.argmax(axis=1))
        found["w along"].append(float(w[:, [0, 2]].mean()))
        found["w across"].append(float(w[:, [1, 3]].mean()))
        mismatched = pair_scale_factors(metric, toy, mod, direction, wrong)[inner]
        found["w mismatched"].append(float(mismatched.mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def ell_of(metric: Metric, toy: Toy, feat: dict[str, Tensor]) -> Tensor:
    """Return l (N, k + 1) of any features, mod -> (N, 2), nearest neighbourhood first."""
    index, s = query_banks(toy.bank, feat, toy.settings.k + 1)
    return metric.ell(metric.scale_factors(feat, toy.bank, index, s), s).detach()


def plain_ell(metric: Metric, s: Tensor) -> Tensor:
    """Return l (N, K) of the untrained metric, w = 1 and sigma = 1/2, from distances."""
    half = torch.full((len(MODALITIES),), 0.5)
    return local_metric(torch.ones_like(s), s / metric.s_mean, half)


def toy_aurocs(metric: Metric, toy: Toy, is_plain: bool = False) -> dict[str, float]:
    """Return kind of anomaly -> AUROC over test cells that no training sees.

    Args:
        metric: trained or not.
        toy: with the test cells.
        is_plain: whether w = 1 and sigma = 1/2 are put in the place of what was learned.
    """
    areas = {}
    for kind, cells in toy.tests.items():
        if is_plain:
            ell = plain_ell(metric, cells.s)
        else:
            w = metric.scale_factors(cells.feat, toy.bank, cells.index, cells.s)
            ell = metric.ell(w, cells.s).detach()
        score = aggregate(ell, toy.settings.how).numpy()
        areas[kind] = image_auroc(score, cells.is_anomalous.numpy())
    return areas
