"""Trainings of a toy by the loop of every chapter, remembered, and what they come to."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from dataclasses import dataclass, field

import numpy as np

from g2sf_lib.config import MODALITIES, LossConfig, ModelConfig, TrainingConfig
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.fusion import Metric, aggregate
from g2sf_lib.playground.balls import ell_of, plain_ell, shape_of_balls, toy_aurocs, unit_balls
from g2sf_lib.playground.boundaries import ScoreMap, score_map
from g2sf_lib.playground.toy import SWITCHES, Toy, ToySettings, make_toy
from g2sf_lib.training import CollapseWarning, best_row, train_metric

# All terms weigh enough to be seen at work in a toy.
TOY_WEIGHTS = LossConfig(alpha=1.0, beta=1.0, gamma=0.3, mu=0.1)


@dataclass(frozen=True)
class ToyState:
    """The metric at the end of one epoch.

    Attributes:
        epoch: 0 is the untrained metric.
        metric: a copy of it.
        balls: of `unit_balls`.
        numbers: `sigma pcd`, `sigma rgb`, those of `shape_of_balls`, and `AUROC` of test
            anomalies of the kind that is trained on.
    """

    epoch: int
    metric: Metric
    balls: dict[str, np.ndarray]
    numbers: dict[str, float]


@dataclass(frozen=True)
class ToyTraining:
    """One training of the toy.

    Attributes:
        losses: the terms beside L_sep that were on.
        metric: of the epoch that was kept.
        kept: the number of that epoch.
        has_collapsed: whether w became a constant, so that direction does not matter.
        states: one an epoch where they were asked for.
    """

    losses: tuple[str, ...]
    metric: Metric
    kept: int
    has_collapsed: bool
    states: list[ToyState] = field(default_factory=list)


def switched(weights: LossConfig, losses: tuple[str, ...]) -> LossConfig:
    """Return the weights of Eq. 10 with those of the terms that are off at zero."""
    off = {weight: 0.0 for term, weight in SWITCHES.items() if term not in losses}
    return dataclasses.replace(weights, **off)


def train_toy(
    toy: Toy,
    losses: tuple[str, ...] | None = None,
    weights: LossConfig | None = None,
    keep_states: bool = False,
) -> ToyTraining:
    """Train the metric of a toy by `train_metric`, the loop of every chapter.

    Args:
        toy: its cells, and by its settings the seed and the number of epochs.
        losses: terms beside L_sep; None: those of the settings.
        weights: of Eq. 10; None: the defaults of the demo profile.
        keep_states: whether the state after every epoch is drawn and judged.

    Raises:
        ConfigError: where the weights make the loss infinite.
    """
    chosen = toy.settings.losses if losses is None else losses
    states: list[ToyState] = []

    def watch(epoch: int, metric: Metric) -> None:
        sigma = metric.sigma().detach()
        numbers = {f"sigma {mod}": float(sigma[m]) for m, mod in enumerate(MODALITIES)}
        numbers |= shape_of_balls(metric, toy)
        numbers["AUROC"] = toy_aurocs(metric, toy)[toy.settings.anomalies_in]
        states.append(ToyState(epoch, copy.deepcopy(metric), unit_balls(metric, toy), numbers))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CollapseWarning)
        metric, history = train_metric(
            toy.cells,
            toy.bank,
            # Four inputs a branch need few units; less dropout than for hundreds of inputs.
            ModelConfig(hidden=32, embed=16, dropout=0.1, k=toy.settings.k),
            switched(weights or TOY_WEIGHTS, chosen),
            # As Section 3 has it: the levers of chapter 13 are about scans, which a toy has not.
            TrainingConfig(
                epochs=toy.settings.epochs,
                batch_size=240,
                learning_rate=1e-2,
                sigma_learning_rate=5e-3,
                criterion="losses",
                normaliser="mean",
            ),
            toy.settings.seed,
            progress=False,
            after_epoch=watch if keep_states else None,
        )
    best = best_row(history)
    has_collapsed = any(issubclass(one.category, CollapseWarning) for one in told)
    return ToyTraining(chosen, metric, int(best["epoch"]), has_collapsed, states)


class Trainings:
    """Toys and trainings that were asked for once, so that they need not be made again.

    Args:
        settings: of the toys; seed and kind of anomaly can be asked for otherwise.
        weights: of Eq. 10.
    """

    def __init__(self, settings: ToySettings, weights: LossConfig | None = None):
        self.settings, self.weights = settings, weights
        self._toys: dict[tuple[int, str], Toy] = {}
        self._trained: dict[tuple, ToyTraining] = {}

    def toy(self, anomalies_in: str | None = None, seed: int | None = None) -> Toy:
        """Return the toy with other anomalies, or of another seed."""
        settings = dataclasses.replace(
            self.settings,
            anomalies_in=anomalies_in or self.settings.anomalies_in,
            seed=self.settings.seed if seed is None else seed,
        )
        key = (settings.seed, settings.anomalies_in)
        if key not in self._toys:
            self._toys[key] = make_toy(settings)
        return self._toys[key]

    def training(
        self,
        losses: tuple[str, ...] | None = None,
        anomalies_in: str | None = None,
        seed: int | None = None,
        keep_states: bool = False,
    ) -> ToyTraining:
        """Return the training of a toy with some of the losses; None: as in the settings."""
        toy = self.toy(anomalies_in, seed)
        chosen = self.settings.losses if losses is None else losses
        chosen = tuple(term for term in SWITCHES if term in chosen)
        key = (toy.settings.seed, toy.settings.anomalies_in, chosen)
        if key not in self._trained or (keep_states and not self._trained[key].states):
            self._trained[key] = train_toy(toy, chosen, self.weights, keep_states)
        return self._trained[key]

    def maps(self, metric: Metric, anomalies_in: str | None = None) -> dict[str, ScoreMap]:
        """Return mod -> the scores of both planes by a metric of a toy's training."""
        toy = self.toy(anomalies_in)
        return {mod: score_map(metric, toy, mod, num=45) for mod in MODALITIES}


def training_report(toy: Toy, training: ToyTraining) -> str:
    """Return, in Markdown, what a training with kept states has made of the metric."""
    first, kept = (
        next(state.numbers for state in training.states if state.epoch == epoch)
        for epoch in (0, training.kept)
    )
    longer = kept["w across"] / kept["w along"]
    shape = (
        f"so the balls reach about {longer:.1f} times as far along the curve as across it"
        if longer > 1.05
        else "so the balls do not follow the curve"
    )
    flat = " **w has collapsed to a constant.**" if training.has_collapsed else ""
    return (
        f"Epoch {training.kept} of {toy.settings.epochs} is kept. Mean w along the curve is "
        f"{kept['w along']:.2f} and across it {kept['w across']:.2f}, {shape}. "
        f"AUROC of test anomalies: {first['AUROC']:.3f} before training, {kept['AUROC']:.3f} "
        f"after it. σ is {kept['sigma pcd']:.2f} for points and {kept['sigma rgb']:.2f} for "
        f"RGB.{flat}"
    )


def constant_scale_report(toy: Toy, training: ToyTraining) -> str:
    """Return, in Markdown, what aggregation and AUROC come to where w is one constant.

    For any constant w the distances of both modalities are sorted, so l_i0 is the least of
    l_ij: `min` is `nearest`; and one factor for all cells changes no rank.
    """
    cells = toy.tests[toy.settings.anomalies_in]
    ell = plain_ell(training.metric, cells.s)
    gap = float((aggregate(ell, "min") - aggregate(ell, "nearest")).abs().max())
    truth = cells.is_anomalous.numpy()
    areas = [image_auroc(factor * ell[:, 0].numpy(), truth) for factor in (1.0, float(np.e))]
    learned = ell_of(training.metric, toy, cells.feat)
    differs = float((learned.amin(-1) < learned[:, 0]).float().mean())
    return (
        f"With w = 1 on {len(cells)} test cells: the largest difference of `min` and `nearest` is "
        f"{gap:.1g}; AUROC is {areas[0]:.3f}, and with w = e everywhere {areas[1]:.3f}. With the "
        f"learned w, `min` takes another neighbourhood than the nearest in {100 * differs:.0f} % "
        "of the cells."
    )
