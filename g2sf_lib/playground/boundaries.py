"""What aggregations do where two neighbourhoods meet: maps, a walk, a line."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from g2sf_lib.config import MODALITIES
from g2sf_lib.detector import query_banks
from g2sf_lib.fusion import Metric, aggregate
from g2sf_lib.playground.balls import ell_of
from g2sf_lib.playground.toy import AGGREGATIONS, Toy, curve, nearest_place, other

_NEAR = 1e-4  # to either side of a boundary


@dataclass(frozen=True)
class ScoreMap:
    """The score of every place of one plane.

    Attributes:
        mod: whose plane.
        x: (W,) and
        y: (H,) the places.
        scores: aggregation -> (H, W).
    """

    mod: str
    x: np.ndarray
    y: np.ndarray
    scores: dict[str, np.ndarray]


@dataclass(frozen=True)
class Profile:
    """Scores along a line that crosses a boundary between two neighbourhoods.

    Attributes:
        mod: in whose plane the line lies.
        line: (N, 2) its places.
        position: (N,) distance from its start.
        scores: aggregation -> (N,).
        rank: (N,) number of the stretch between two changes of ranks or prototypes; the score
            may jump where it grows, and is continuous elsewhere.
        boundary: position where the nearest prototype changes.
        jumps: aggregation -> how far the score jumps there.
    """

    mod: str
    line: np.ndarray
    position: np.ndarray
    scores: dict[str, np.ndarray]
    rank: np.ndarray
    boundary: float
    jumps: dict[str, float]


def _all_scores(metric: Metric, toy: Toy, feat: dict[str, Tensor]) -> dict[str, np.ndarray]:
    ell = ell_of(metric, toy, feat)
    return {how: aggregate(ell, how).numpy() for how in AGGREGATIONS}


def _features(mod: str, xy: np.ndarray, place: np.ndarray) -> dict[str, Tensor]:
    """Return features at `xy` in one plane and on the curve in the other."""
    both = {mod: xy, other(mod): curve(other(mod), place)}
    return {name: torch.tensor(both[name], dtype=torch.float32) for name in MODALITIES}


def score_map(metric: Metric, toy: Toy, mod: str, num: int = 110) -> ScoreMap:
    """Return the score of every place of a plane, for each aggregation.

    The other modality is where it belongs: on its curve, at the place that is nearest in this
    plane. So what is high here is high because of this modality.

    Args:
        metric: trained or not.
        toy: with the prototypes.
        mod: whose plane.
        num: places in x; as many to the length in y.
    """
    low, high = toy.points[mod].min(axis=0) - 0.2, toy.points[mod].max(axis=0) + 0.2
    x = np.linspace(low[0], high[0], num)
    y = np.linspace(low[1], high[1], max(2, round(num * (high[1] - low[1]) / (high[0] - low[0]))))
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    scores = _all_scores(metric, toy, _features(mod, xy, nearest_place(mod, xy)))
    return ScoreMap(mod, x, y, {how: s.reshape(len(y), len(x)) for how, s in scores.items()})


def curve_jumps(metric: Metric, toy: Toy, num: int = 20001) -> pd.DataFrame:
    """Return how far each aggregation jumps wherever ranks change, on a walk along the curves.

    Both modalities walk together, so the walk crosses boundaries of both planes as normal cells
    would. Between two changes the score is continuous (but on a prototype itself, where the
    direction turns round; the walk meets none).

    Args:
        metric: trained or not.
        toy: with the prototypes.
        num: steps; the score between two neighbouring ones moves by its slope as well.

    Returns:
        A row a change: ``place`` on the curves, ``is_nearest`` (whether the nearest prototype of
        a modality changes, or only farther ones), and a column an aggregation.
    """
    places = np.linspace(0, 1, num)
    feat = {mod: torch.tensor(curve(mod, places), dtype=torch.float32) for mod in MODALITIES}
    index, _ = query_banks(toy.bank, feat, toy.settings.k + 1)
    both = torch.stack([index[mod] for mod in MODALITIES], dim=-1)  # (num, k + 1, M)
    changes = (both[1:] != both[:-1]).any(dim=-1).numpy()
    at = np.flatnonzero(changes.any(axis=1))
    scores = _all_scores(metric, toy, feat)
    table = {how: np.abs(np.diff(scores[how]))[at] for how in AGGREGATIONS}
    return pd.DataFrame({"place": places[at], "is_nearest": changes[at, 0]} | table)


def boundary_profile(metric: Metric, toy: Toy, num: int = 401) -> Profile:
    """Return the scores on a line through two prototypes that follow each other on a curve.

    Halfway between them the nearest prototype changes. Of all such pairs, in both planes, the
    one is taken where `nearest` jumps most. The other modality stays where it belongs to the
    middle of the line.

    Args:
        metric: trained or not.
        toy: with the prototypes.
        num: places on the line, which goes on beyond both prototypes.
    """
    pairs = []
    for mod in MODALITIES:
        order = np.argsort(toy.place[mod])
        for pair in itertools.pairwise(order.tolist()):
            a, b = toy.prototypes[mod][list(pair)].astype(float)
            step = _NEAR * (b - a) / np.linalg.norm(b - a)
            sides = np.stack([(a + b) / 2 - step, (a + b) / 2 + step])
            feat = _features(mod, sides, np.full(2, toy.place[mod][list(pair)].mean()))
            scores = _all_scores(metric, toy, feat)
            jumps = {how: float(abs(np.diff(s)[0])) for how, s in scores.items()}
            # A third prototype can be nearer where prototypes lie close together.
            found = toy.bank[mod].query(feat[mod], 1)[0][:, 0].tolist()
            pairs.append((found == list(pair), jumps["nearest"], mod, list(pair), jumps))
    _, _, mod, pair, jumps = max(pairs, key=lambda entry: entry[:2])
    a, b = toy.prototypes[mod][pair].astype(float)
    share = np.linspace(-0.4, 1.4, num)  # of the way from one to the other
    line = a + share[:, None] * (b - a)
    feat = _features(mod, line, np.full(num, toy.place[mod][pair].mean()))
    index, _ = query_banks(toy.bank, feat, toy.settings.k + 1)
    changes = (index[mod][1:] != index[mod][:-1]).any(dim=1).numpy()
    # On a prototype the direction turns round, and the w of the other modality with it.
    for prototype in (0.0, 1.0):
        changes |= (share[:-1] < prototype) & (share[1:] >= prototype)
    return Profile(
        mod,
        line,
        np.linalg.norm(line - line[0], axis=1),
        _all_scores(metric, toy, feat),
        np.concatenate([[0], np.cumsum(changes)]),
        float(np.linalg.norm((a + b) / 2 - line[0])),
        jumps,
    )


def jump_table(jumps: pd.DataFrame) -> pd.DataFrame:
    """Return, as text, the mean and the largest jump of each aggregation by what changes.

    Args:
        jumps: of `curve_jumps`.
    """
    names = {True: "the nearest prototype changes", False: "only farther ones change"}
    columns = {}
    for is_nearest, name in names.items():
        of = jumps.loc[jumps["is_nearest"] == is_nearest, list(AGGREGATIONS)]
        texts = [f"{of[how].mean():.3f} (up to {of[how].max():.3f})" for how in AGGREGATIONS]
        columns[f"{name} ({len(of)} times)"] = texts if len(of) else ["–"] * len(AGGREGATIONS)
    return pd.DataFrame(columns, index=pd.Index(AGGREGATIONS, name="mean jump"))


def jump_report(jumps: pd.DataFrame, plain: pd.DataFrame) -> str:
    """Return, in Markdown, which aggregation is the smoothest, and what jumps without learning.

    Args:
        jumps: of `curve_jumps` with a trained metric.
        plain: the same with the untrained one.
    """
    total = jumps[list(AGGREGATIONS)].sum().sort_values()
    told = ", ".join(f"`{how}` {value:.2f}" for how, value in total.items())
    share = total["min"] / total["nearest"] if total["nearest"] else float("nan")
    return (
        f"All jumps of the walk added up: {told}. So the smoothest is `{total.index[0]}`, and "
        f"`min` jumps {share:.2f} times as far as `nearest`. Before training the largest jump of "
        f"any aggregation is {plain[list(AGGREGATIONS)].to_numpy().max():.4f}, which is the step "
        "of the walk itself."
    )
