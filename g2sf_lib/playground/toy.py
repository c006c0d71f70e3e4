"""The two planes: settings, curves, points, banks, and labelled cells."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2sf_lib.cells import Cells
from g2sf_lib.config import MODALITIES, Config, ConfigError, listed
from g2sf_lib.detector import query_banks
from g2sf_lib.memory import MemoryBank, greedy_coreset
from g2sf_lib.training import TERMS

SWITCHES = {"mar": "alpha", "cns": "beta", "sc": "gamma", "cma": "mu"}  # term -> its weight
KINDS = ("both", "pcd", "rgb", "either")  # what an anomaly leaves: both curves, or one of them
AGGREGATIONS = ("nearest", "min", "mean", "max")
SUBSETS = tuple(
    subset for num in range(len(SWITCHES) + 1) for subset in itertools.combinations(SWITCHES, num)
)
_NOISE = 0.05  # standard deviation across the curve
_OFF = (0.12, 0.45)  # how far anomalies stand off: less than half the way between prototypes
_NUM_NORMAL = 600  # normal points that the banks are chosen from
_IMAGES, _TEST_IMAGES, _CELLS, _ANOMALOUS = 24, 40, 40, 12  # made-up images and their cells
_EPOCHS = {"smoke": 6, "demo": 40, "paper": 40}


@dataclass(frozen=True)
class ToySettings:
    """What a reader can change.

    Attributes:
        seed: of the points, and of the training.
        num_prototypes: of each modality, at least 2k + 1.
        anomalies_in: which curves anomalies leave, one of `KINDS`; "either": a third of them
            both, a third one, a third the other.
        k: 2k + 1 neighbourhoods in training, k + 1 in scoring.
        epochs: of a training.
        losses: terms of Eq. 10 that are on beside L_sep, in the order of `SWITCHES`.
        how: aggregation of Eq. 11 behind every AUROC.
        level: a ball is drawn where the metric has this value.
        num_seeds: trainings behind a mean with a spread: `seed`, `seed` + 1, ...
        widgets: whether controls are made for JupyterLab.
    """

    seed: int = 0
    num_prototypes: int = 8
    anomalies_in: str = "both"
    k: int = 2
    epochs: int = 40
    losses: tuple[str, ...] = tuple(SWITCHES)
    how: str = "min"
    level: float = 0.6
    num_seeds: int = 3
    widgets: bool = True


def toy_settings(
    config: Config,
    num_prototypes: int = 8,
    anomalies_in: str = "both",
    toy_k: int = 2,
    toy_epochs: int | None = None,
    losses: Any = tuple(SWITCHES),
    how: str = "min",
    level: float = 0.6,
    num_seeds: int = 3,
    widgets: bool = True,
) -> ToySettings:
    """Return the settings that a notebook's parameters describe; the seed is the config's.

    Args:
        config: its seed, and its profile: `toy_epochs` None means 40, in profile "smoke" 6.
        num_prototypes: 2 toy_k + 1 to 60.
        anomalies_in: one of `KINDS`.
        toy_k: 1 to 10.
        toy_epochs: 1 to 200.
        losses: a list of terms, or a text that holds one; "sep" is always on.
        how: one of `AGGREGATIONS`.
        level: above 0, up to 5.
        num_seeds: 2 to 10.
        widgets: True or False.

    Raises:
        ConfigError: for a value that is not allowed; the message lists what is.
    """
    losses = listed(losses)
    epochs = _EPOCHS[config.profile] if toy_epochs is None else toy_epochs
    _require_number("toy_k", toy_k, 1, 10)
    _require_number("num_prototypes", num_prototypes, 2 * toy_k + 1, 60)
    _require_number("toy_epochs", epochs, 1, 200)
    _require_number("num_seeds", num_seeds, 2, 10)
    is_number = isinstance(level, int | float) and not isinstance(level, bool)
    if not (is_number and 0 < level <= 5):
        raise ConfigError(f"level is {level!r}; expected a number above 0, up to 5")
    if not isinstance(widgets, bool):
        raise ConfigError(f"widgets is {widgets!r}; expected True or False")
    _require_choice("anomalies_in", anomalies_in, KINDS)
    _require_choice("how", how, AGGREGATIONS)
    if not isinstance(losses, list | tuple) or not set(map(str, losses)) <= set(TERMS):
        allowed = ", ".join(map(repr, TERMS))
        raise ConfigError(f"losses is {losses!r}; expected a list of some of {allowed}")
    chosen = tuple(name for name in SWITCHES if name in losses)
    return ToySettings(
        config.seed, num_prototypes, anomalies_in, toy_k, epochs, chosen, how, float(level),
        num_seeds, widgets,
    )  # fmt: skip


def _require_number(name: str, value: Any, low: int, high: int) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not (is_whole and low <= value <= high):
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {low} to {high}")


def _require_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def curve(mod: str, t: Any) -> np.ndarray:
    """Return where normal cells lie: half a circle for points, a wave for RGB.

    Args:
        mod: the modality.
        t: (N,) places on the curve, 0 to 1; a cell has the same one in both modalities.

    Returns:
        (N, 2).
    """
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
    forward = along(mod, t)
    return np.stack([-forward[..., 1], forward[..., 0]], axis=-1)


def nearest_place(mod: str, xy: np.ndarray) -> np.ndarray:
    """Return the place (N,) on the curve that is nearest to points (N, 2) of a plane."""
    places = np.linspace(0, 1, 401)
    gaps = np.linalg.norm(np.asarray(xy)[:, None] - curve(mod, places), axis=-1)
    return places[gaps.argmin(axis=1)]


def _points(
    rng: np.random.Generator, images: int, anomalies_in: str, num_anomalous: int = _ANOMALOUS
) -> tuple[np.ndarray, dict[str, Tensor], Tensor, Tensor]:
    """Return place, mod -> (N, 2) features, is_anomalous and image of made-up images."""
    num = images * _CELLS
    place = rng.uniform(0, 1, num)
    is_anomalous = np.arange(num) % _CELLS < num_anomalous
    kind = rng.integers(3, size=num)
    if anomalies_in != "either":
        kind = np.full(num, KINDS.index(anomalies_in))
    feat = {}
    for mod in MODALITIES:
        is_off = is_anomalous & ((kind == 0) | (kind == KINDS.index(mod)))
        off = rng.choice([-1.0, 1.0], num) * rng.uniform(*_OFF, num)
        reach = rng.normal(0, _NOISE, num) + np.where(is_off, off, 0.0)
        where = curve(mod, place) + reach[:, None] * across(mod, place)
        feat[mod] = torch.tensor(where, dtype=torch.float32)
    image = torch.arange(num) // _CELLS
    return place, feat, torch.tensor(is_anomalous), image


@dataclass(frozen=True)
class Toy:
    """Points of both planes, the banks, and the cells that are trained and judged on.

    Attributes:
        settings: that it was made with.
        bank: mod -> `MemoryBank` of `num_prototypes` normal points.
        place: mod -> (B,) place on the curve of each prototype.
        partner: mod -> (B,) prototype of the other modality that belongs to each.
        cells: labelled training cells with 2k + 1 neighbourhoods, in made-up images.
        tests: kind of anomaly -> cells with k + 1 neighbourhoods that no training sees.
    """

    settings: ToySettings
    bank: dict[str, MemoryBank]
    place: dict[str, np.ndarray]
    partner: dict[str, Tensor]
    cells: Cells
    tests: dict[str, Cells]

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


def other(mod: str) -> str:
    """Return the other one of the two modalities."""
    return MODALITIES[1 - MODALITIES.index(mod)]


def make_toy(settings: ToySettings) -> Toy:
    """Return the toy of some settings; the same settings give the same toy."""
    rng = np.random.default_rng(settings.seed)
    place, normal, _, _ = _points(rng, _NUM_NORMAL // _CELLS, "both", num_anomalous=0)
    rows = {mod: greedy_coreset(normal[mod], settings.num_prototypes) for mod in MODALITIES}
    bank = {mod: MemoryBank(normal[mod][rows[mod]], rows[mod]) for mod in MODALITIES}
    # A prototype is a normal point, and that point has a feature in the other plane too.
    partner = {
        mod: bank[other(mod)].query(normal[other(mod)][rows[mod]], 1)[0][:, 0] for mod in MODALITIES
    }

    def cells(images: int, kind: str, num: int) -> Cells:
        _, feat, is_anomalous, image = _points(rng, images, kind)
        return Cells(feat, *query_banks(bank, feat, num), is_anomalous, image)

    return Toy(
        settings,
        bank,
        {mod: place[rows[mod].numpy()] for mod in MODALITIES},
        partner,
        cells(_IMAGES, settings.anomalies_in, 2 * settings.k + 1),
        {kind: cells(_TEST_IMAGES, kind, settings.k + 1) for kind in KINDS},
    )
