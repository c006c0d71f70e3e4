"""Chapter 12: a toy with two numbers a modality, in which the learned metric can be drawn.

A normal cell has a place on a curve, the same in both planes; an anomaly stands off the curve.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor

from g2sf_lib.cells import Cells
from g2sf_lib.config import MODALITIES, LossConfig, ModelConfig, TrainingConfig, listed
from g2sf_lib.detector import query_banks
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.fusion import Metric, aggregate
from g2sf_lib.memory import MemoryBank, greedy_coreset
from g2sf_lib.training import CollapseWarning, best_row, train_metric

SWITCHES = {"mar": "alpha", "cns": "beta", "sc": "gamma", "cma": "mu"}  # term -> its weight
SUBSETS = tuple(one for num in range(5) for one in itertools.combinations(SWITCHES, num))
KINDS = ("both", "pcd", "rgb", "either")  # what an anomaly leaves: both curves, or one of them
AGGREGATIONS = ("nearest", "min", "mean", "max")
_NOISE = 0.05  # standard deviation across the curve
_OFF = (0.12, 0.45)  # how far anomalies stand off: less than half the way between prototypes
_NUM_NORMAL = 600  # normal points that the banks are chosen from
_IMAGES, _TEST_IMAGES, _CELLS, _ANOMALOUS = 24, 40, 40, 12  # made-up images and their cells
_ANGLES = 48  # of a drawn ball


class ToySettings(BaseModel, frozen=True, extra="forbid", strict=True):
    """What a reader can change."""

    seed: int = Field(0, ge=0, description="of the points, and of the training")
    num_prototypes: int = Field(8, le=60, description="of each modality, at least 2k + 1")
    anomalies_in: Literal[KINDS] = Field("both", description="which curves anomalies leave")
    k: int = Field(2, ge=1, le=10, description="2k + 1 neighbourhoods in training, k + 1 in scores")
    epochs: int = Field(40, ge=1, le=200, description="of a training")
    losses: tuple[str, ...] = Field(tuple(SWITCHES), description="terms that are on beside L_sep")
    how: Literal[AGGREGATIONS] = Field("min", description="aggregation behind every AUROC")
    level: float = Field(0.6, gt=0, le=5, description="a ball is where the metric has this value")
    num_seeds: int = Field(3, ge=2, le=10, description="trainings behind a mean with a spread")

    @field_validator("losses", mode="before")
    @classmethod
    def _in_one_order(cls, losses: Any) -> tuple[str, ...]:
        asked = listed(losses)
        if not isinstance(asked, list | tuple) or not set(asked) <= {"sep", *SWITCHES}:
            raise ValueError(f"expected a list of some of {', '.join(SWITCHES)}")
        return tuple(term for term in SWITCHES if term in asked)

    @model_validator(mode="after")
    def _enough_prototypes(self) -> ToySettings:
        if self.num_prototypes < 2 * self.k + 1:
            raise ValueError(f"num_prototypes is {self.num_prototypes}; expected 2k + 1 or more")
        return self


def curve(mod: str, t: Any) -> np.ndarray:
    """Return where (N, 2) normal cells of places `t` (N,) in [0, 1] lie: a half circle, a wave."""
    t = np.asarray(t, dtype=float)
    if mod == "pcd":
        angle = np.pi * (1 - t)
        return np.stack([2 * np.cos(angle), 2 * np.sin(angle) - 1], axis=-1)
    return np.stack([4 * t - 2, 0.9 * np.sin(2 * np.pi * t)], axis=-1)


def along(mod: str, t: Any) -> np.ndarray:
    """Return the unit direction (N, 2) of the curve at the places `t` (N,)."""
    step = curve(mod, np.asarray(t) + 1e-4) - curve(mod, np.asarray(t) - 1e-4)
    return step / np.linalg.norm(step, axis=-1, keepdims=True)


def across(mod: str, t: Any) -> np.ndarray:
    """Return the unit direction (N, 2) off the curve, `along` turned by a right angle."""
    return along(mod, t)[..., ::-1] * [-1, 1]


def other(mod: str) -> str:
    """Return the other one of the two modalities."""
    return MODALITIES[1 - MODALITIES.index(mod)]


@dataclass(frozen=True)
class Toy:
    """Points of both planes, the banks, and the cells that are trained and judged on."""

    settings: ToySettings
    bank: dict[str, MemoryBank]  # of normal points
    place: dict[str, np.ndarray]  # mod -> (B,) place on the curve of each prototype
    partner: dict[str, Tensor]  # mod -> (B,) prototype of the other modality that belongs to each
    cells: Cells  # for training, with 2k + 1 neighbourhoods, in made-up images
    tests: dict[str, Cells]  # kind of anomaly -> unseen cells with k + 1 neighbourhoods

    @property
    def points(self) -> dict[str, np.ndarray]:
        """The training cells, mod -> (N, 2)."""
        return {mod: self.cells.feat[mod].numpy() for mod in MODALITIES}

    @property
    def is_anomalous(self) -> np.ndarray:
        """Which of the training cells are synthetic anomalies, (N,) bool."""
        return self.cells.is_anomalous.numpy()

    @property
    def prototypes(self) -> dict[str, np.ndarray]:
        """The prototypes, mod -> (B, 2)."""
        return {mod: self.bank[mod].prototypes.numpy() for mod in MODALITIES}


def _points(rng: np.random.Generator, images: int, anomalies_in: str, anomalous: int = _ANOMALOUS):
    """Return place, mod -> (N, 2) features, is_anomalous and image of made-up images."""
    num = images * _CELLS
    place = rng.uniform(0, 1, num)
    is_anomalous = np.arange(num) % _CELLS < anomalous
    kind = np.array(KINDS)[rng.integers(3, size=num)]
    kind = kind if anomalies_in == "either" else np.full(num, anomalies_in)
    feat = {}
    for mod in MODALITIES:
        is_off = is_anomalous & np.isin(kind, ["both", mod])
        off = rng.choice([-1.0, 1.0], num) * rng.uniform(*_OFF, num)
        reach = rng.normal(0, _NOISE, num) + np.where(is_off, off, 0.0)
        where = curve(mod, place) + reach[:, None] * across(mod, place)
        feat[mod] = torch.tensor(where, dtype=torch.float32)
    return place, feat, torch.tensor(is_anomalous), torch.arange(num) // _CELLS


def make_toy(settings: ToySettings) -> Toy:
    """Return the toy of some settings; the same settings give the same toy."""
    rng = np.random.default_rng(settings.seed)
    place, normal, _, _ = _points(rng, _NUM_NORMAL // _CELLS, "both", anomalous=0)
    rows = {mod: greedy_coreset(normal[mod], settings.num_prototypes) for mod in MODALITIES}
    bank = {mod: MemoryBank(normal[mod][rows[mod]], rows[mod]) for mod in MODALITIES}
    # A prototype is a normal point, and that point has a feature in the other plane too.
    mates = {mod: (bank[other(mod)], normal[other(mod)][rows[mod]]) for mod in MODALITIES}
    partner = {mod: mate.query(points, 1)[0][:, 0] for mod, (mate, points) in mates.items()}

    def cells(images: int, kind: str, num: int) -> Cells:
        _, feat, is_anomalous, image = _points(rng, images, kind)
        return Cells(feat, *query_banks(bank, feat, num), is_anomalous, image)

    places = {mod: place[rows[mod].numpy()] for mod in MODALITIES}
    training = cells(_IMAGES, settings.anomalies_in, 2 * settings.k + 1)
    tests = {kind: cells(_TEST_IMAGES, kind, settings.k + 1) for kind in KINDS}
    return Toy(settings, bank, places, partner, training, tests)


def pair_scale_factors(
    metric: Metric, toy: Toy, mod: str, direction: np.ndarray, partner: Tensor
) -> np.ndarray:
    """Return w (B, A) of unit directions (B, A, 2), the other modality on prototypes (B,)."""
    num, angles = direction.shape[:2]
    index = {mod: torch.arange(num).repeat_interleave(angles)}
    index[other(mod)] = partner[index[mod]]
    feat = {name: toy.bank[name].prototypes[rows] for name, rows in index.items()}
    feat[mod] = feat[mod] + torch.tensor(direction, dtype=torch.float32).reshape(-1, 2)
    m = MODALITIES.index(mod)
    s = torch.zeros(num * angles, 1, len(MODALITIES))
    s[..., m] = 1.0  # and 0 in the other modality: no direction there
    index = {name: rows[:, None] for name, rows in index.items()}
    w = metric.scale_factors(feat, toy.bank, index, s)
    return w[:, 0, m].reshape(num, angles).numpy()


def unit_balls(metric: Metric, toy: Toy) -> dict[str, np.ndarray]:
    """Return mod -> (B, 49, 2), closed lines: the ball of the metric around every prototype.

    It is where l = level while the other modality lies on its prototype (s = 0 there): its radius
    is level s_mean / (sigma w(d)), by Eq. 2 and 3. A circle for w = 1.
    """
    angle = np.linspace(0, 2 * np.pi, _ANGLES + 1)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    balls = {}
    for m, mod in enumerate(MODALITIES):
        centre = toy.prototypes[mod][:, None]
        direction = np.repeat(circle[None], len(centre), axis=0)
        w = pair_scale_factors(metric, toy, mod, direction, toy.partner[mod])
        scale = toy.settings.level * float(metric.s_mean[m] / metric.sigma()[m].detach())
        balls[mod] = centre + (scale / w)[..., None] * direction
    return balls


def shape_of_balls(metric: Metric, toy: Toy) -> dict[str, float]:
    """Return mean w of prototypes not at an end, ``along`` the curve, ``across``, ``mismatched``.

    The last one is in all four directions, with the prototype of the other modality that is the
    farthest on the curve instead of the one that belongs to it.
    """
    found = []
    for mod in MODALITIES:
        place = toy.place[mod]
        sides = [along(mod, place), across(mod, place)]
        direction = np.stack([*sides, *(-side for side in sides)], axis=1)  # (B, 4, 2)
        wrong = torch.from_numpy(np.abs(place[:, None] - toy.place[other(mod)]).argmax(axis=1))
        inner = np.argsort(place)[1:-1]
        w, mismatched = (
            pair_scale_factors(metric, toy, mod, direction, partner)[inner]
            for partner in (toy.partner[mod], wrong)
        )
        found.append((w[:, [0, 2]].mean(), w[:, [1, 3]].mean(), mismatched.mean()))
    names = ("w along", "w across", "w mismatched")
    return dict(zip(names, np.mean(found, axis=0, dtype=float).tolist(), strict=True))


def toy_aurocs(metric: Metric, toy: Toy, is_plain: bool = False) -> dict[str, float]:
    """Return kind of anomaly -> AUROC over test cells; `is_plain`: of w = 1 and sigma = 1/2."""
    areas = {}
    for kind, cells in toy.tests.items():
        ell = (cells.s / metric.s_mean).sum(-1) / 2 if is_plain else ell_of(metric, toy, cells)
        score = aggregate(ell, toy.settings.how).numpy()
        areas[kind] = image_auroc(score, cells.is_anomalous.numpy())
    return areas


def ell_of(metric: Metric, toy: Toy, cells: Cells) -> Tensor:
    """Return l (N, K) of cells in their neighbourhoods, the nearest first."""
    w = metric.scale_factors(cells.feat, toy.bank, cells.index, cells.s)
    return metric.ell(w, cells.s).detach()


def scores_at(metric: Metric, toy: Toy, where: dict[str, np.ndarray]):
    """Return aggregation -> (N,) scores of places mod -> (N, 2), and their neighbours (N, K, M)."""
    feat = {mod: torch.tensor(where[mod], dtype=torch.float32) for mod in MODALITIES}
    index, s = query_banks(toy.bank, feat, toy.settings.k + 1)
    ell = metric.ell(metric.scale_factors(feat, toy.bank, index, s), s).detach()
    neighbours = torch.stack([index[mod] for mod in MODALITIES], dim=-1).numpy()
    return {how: aggregate(ell, how).numpy() for how in AGGREGATIONS}, neighbours


class ToyState(NamedTuple):
    """The metric at the end of an epoch (0: untrained), its balls, and what they come to."""

    epoch: int
    metric: Metric
    balls: dict[str, np.ndarray]
    numbers: dict[str, float]  # sigma, `shape_of_balls`, AUROC of the anomalies trained on


class ToyTraining(NamedTuple):
    """One training: the metric and number of the epoch that was kept, and all states."""

    metric: Metric
    kept: int
    has_collapsed: bool  # whether w became a constant, so that direction does not matter
    states: list[ToyState]


def train_toy(
    toy: Toy, losses: tuple[str, ...], weights: LossConfig, keep_states: bool = False
) -> ToyTraining:
    """Train the metric of a toy by `train_metric`, with L_sep and the terms `losses` of Eq. 10.

    `keep_states` draws and judges the metric every epoch.
    """
    states: list[ToyState] = []

    def watch(epoch: int, metric: Metric) -> None:
        sigma = metric.sigma().detach()
        numbers = {f"sigma {mod}": float(sigma[m]) for m, mod in enumerate(MODALITIES)}
        numbers |= shape_of_balls(metric, toy)
        numbers["AUROC"] = toy_aurocs(metric, toy)[toy.settings.anomalies_in]
        states.append(ToyState(epoch, copy.deepcopy(metric), unit_balls(metric, toy), numbers))

    # Four inputs a branch need few units; less dropout than for hundreds of inputs.
    model = ModelConfig(hidden=32, embed=16, dropout=0.1, k=toy.settings.k)
    how = {"epochs": toy.settings.epochs, "batch_size": 240}
    how |= {"learning_rate": 1e-2, "sigma_learning_rate": 5e-3}
    # As Section 3 has it: the levers of chapter 13 are about scans, which a toy has not.
    training = TrainingConfig(**how, criterion="losses", normaliser="mean")
    weights = weights.replace(**{w: 0.0 for term, w in SWITCHES.items() if term not in losses})
    seen = watch if keep_states else None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CollapseWarning)
        metric, history = train_metric(
            toy.cells, toy.bank, model, weights, training, toy.settings.seed,
            progress=False, after_epoch=seen,
        )  # fmt: skip
    has_collapsed = any(issubclass(one.category, CollapseWarning) for one in told)
    return ToyTraining(metric, int(best_row(history)["epoch"]), has_collapsed, states)
