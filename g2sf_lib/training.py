"""One loop that trains LSPN and sigma on labelled cells (Eq. 10), with its history."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.cells import Cells
from g2sf_lib.checkpoint import read_checkpoint, write_checkpoint
from g2sf_lib.config import MODALITIES, LossConfig, ModelConfig, TrainingConfig
from g2sf_lib.fusion import CELLS_AT_ONCE, Metric, aggregate, encode, local_metric
from g2sf_lib.losses import (
    loss_cma,
    loss_cns,
    loss_mar,
    loss_sc,
    loss_sep,
    negative_pairs,
    proximal_bound,
    total_loss,
)

TERMS = ("sep", "mar", "cns", "sc", "cma")
JITTER = 0.1  # of the mean distance, facts.md, section 5
MOST_JUDGED = 2048  # held-out cells of a class whose losses are taken after each epoch
NEAR_AN_END = 0.9  # of |log w|, whose range ends at 1
COLLAPSED = 0.01  # a standard deviation of w below this says nothing about direction


class CollapseWarning(UserWarning):
    """The scale factors are the same for every cell: LSPN has learned nothing."""


def heldout_images(image: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Return (N,) bool: cells of the images that are held out, one at least, and one kept.

    By image, since neighbouring cells share pixels, which would be trained on and judged.
    """
    images = torch.unique(image.cpu())
    if len(images) < 2:
        raise ValueError(f"heldout_images: {len(images)} image; expected at least 2 images")
    num = min(max(round(fraction * len(images)), 1), len(images) - 1)
    held = images[torch.randperm(len(images), generator=generator)[:num]]
    return torch.isin(image, held.to(image.device))


def _form(loss: LossConfig, of: str) -> str:
    """Return which form a switch of the losses stands for."""
    return getattr(loss, f"{of}_form") or loss.form


def loss_terms(
    metric: Metric,
    cells: Cells,
    bank: dict,
    m0: float,
    k: int,
    loss: LossConfig,
    generator: torch.Generator,
    is_training: bool = True,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each unweighted term of Eq. 10 on some cells, and w (N, 2k + 1, M).

    Args:
        metric: its mode (dropout) is left as it is.
        cells: a batch; where nothing is trained, as many as there are.
        bank: mod -> `MemoryBank` or (B, D_mod) prototypes.
        m0: bound of L_sep.
        k: number of proximal neighbourhoods.
        loss: forms and eta_0.
        generator: draws the negatives of Eq. 8, and the jitter.
        is_training: False: without jitter, without the official weights of L_sep, in parts.
    """
    if is_training and _form(loss, "jitter") == "official":
        cells, bank = _jittered(metric, cells, bank, generator)
    rows = torch.arange(len(cells), device=cells.s.device)
    parts = [rows] if is_training else rows.split(CELLS_AT_ONCE)
    found = [_scale_factors(metric, cells, part, bank, loss, generator) for part in parts]
    w, w_neg = (torch.cat(some) for some in zip(*found, strict=True))
    s = cells.s / metric.s_mean
    ell, y = local_metric(w, s, metric.sigma()), cells.is_anomalous
    return {
        "sep": loss_sep(ell[:, 0], y, m0, form=_form(loss, "sep"), weighted=is_training),
        "mar": loss_mar(ell[:, 0], y, form=_form(loss, "mar")),
        "cns": loss_cns(ell, proximal_bound(s, k, loss.eta_0)),
        "sc": loss_sc(w[:, 0], cells.changed if loss.label_of == "modality" else y),
        "cma": loss_cma(w_neg, form=_form(loss, "cma")),
    }, w


def _scale_factors(
    metric: Metric, cells: Cells, rows: Tensor, bank: dict, loss: LossConfig, generator
) -> tuple[Tensor, Tensor]:
    """Return w (n, 2k + 1, M) of some cells, and w (n, M) of mismatched pairs of them (Eq. 8)."""
    if len(rows) < len(cells):
        cells = cells.take(rows)
    w = metric.lspn.from_bank(cells.feat, bank, cells.index, cells.s, generator)
    feature_of, prototype_of = negative_pairs(len(cells), generator, _form(loss, "cma"))
    feat, index, distances = {}, {}, []
    for mod in MODALITIES:
        feat[mod] = cells.feat[mod][feature_of[mod].to(cells.s.device)]
        index[mod] = cells.index[mod][prototype_of[mod].to(cells.s.device), :1]
        prototypes = getattr(bank[mod], "prototypes", bank[mod])
        nearest = prototypes[index[mod].to(prototypes.device)].to(feat[mod])
        distances.append(encode(feat[mod], nearest)[1])
    s = torch.stack(distances, dim=-1)
    return w, metric.lspn.from_bank(feat, bank, index, s, generator)[:, 0]


def _jittered(metric: Metric, cells: Cells, bank: dict, generator) -> tuple[Cells, dict]:
    """Return cells and a bank of their own, moved by up to 0.1 of the mean distance."""

    def moved(x: Tensor, reach: Tensor) -> Tensor:
        step = torch.rand(x.shape, generator=generator).to(x)  # positive, as in the authors' code
        length = JITTER * reach * torch.rand(len(x), 1, generator=generator).to(x)
        return x + step / torch.linalg.vector_norm(step, dim=-1, keepdim=True) * length

    feat, own_bank, index, distances = {}, {}, {}, []
    for m, mod in enumerate(MODALITIES):
        proto = getattr(bank[mod], "prototypes", bank[mod]).to(cells.feat[mod])[cells.index[mod]]
        feat[mod] = moved(cells.feat[mod], metric.s_mean[m])
        proto[:, 0] = moved(proto[:, 0], metric.s_mean[m])
        distances.append(encode(feat[mod], proto)[1])
        index[mod] = torch.arange(proto[..., 0].numel(), device=proto.device).view(proto.shape[:2])
        own_bank[mod] = proto.flatten(0, 1)  # (N * K, D)
    s = torch.stack(distances, dim=-1)
    return dataclasses.replace(cells, feat=feat, index=index, s=s), own_bank


class _Split(NamedTuple):
    """Numbers of the cells that are trained on, and of those that are held out."""

    fit: list[Tensor]  # normal and anomalous ones
    judged: Tensor  # held-out ones whose losses are taken, as many normal as anomalous
    heldout: Tensor


def _split(cells: Cells, training: TrainingConfig, seed: int) -> _Split:
    """Draw what is held out."""
    y = cells.is_anomalous
    if not y.any() or y.all():
        raise ValueError("train_metric: cells of one class only; expected normal and anomalous")
    draw = torch.Generator().manual_seed(seed)
    # Held out by cell, each cell counts as an image of its own.
    units = {"cell": torch.arange(len(cells)), "image": cells.image, "target": cells.target}
    is_heldout = heldout_images(units[training.heldout_by], training.heldout_fraction, draw)
    is_heldout = is_heldout.to(y.device)
    fit, heldout = (
        [torch.nonzero(among & (y == side))[:, 0] for side in (False, True)]
        for among in (~is_heldout, is_heldout)
    )
    num = min(*map(len, heldout), MOST_JUDGED)
    if not len(fit[1]) or not num:
        raise ValueError("train_metric: a side of the held-out split has no anomalous cell")
    judged = [x[torch.randperm(len(x), generator=draw)[:num].to(x.device)] for x in heldout]
    return _Split(fit, torch.cat(judged), torch.nonzero(is_heldout)[:, 0])


@contextmanager
def _seeded(seed: int, device: torch.device):
    """Seed torch's global generator, which dropout and initial weights read, for a while."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Loop:
    """One training: its cells, what they are compared with, and the metric that it changes."""

    def __init__(self, cells: Cells, bank: dict, model: ModelConfig, loss: LossConfig,
                 training: TrainingConfig, seed: int):  # fmt: skip
        self.cells, self.bank, self.k, self.seed = cells, bank, model.k, seed
        self.loss, self.training = loss, training
        self.split = _split(cells, training, seed)
        normal, pasted = (cells.s[rows, 0] for rows in self.split.fit)
        s_mean = normal.mean(0)
        if training.normaliser == "std":
            # Modalities in proportion to their spread, and normal cells at 1 on average as before.
            s_mean = normal.std(0) * (s_mean / normal.std(0)).mean()
        dims = {mod: cells.feat[mod].shape[1] for mod in MODALITIES}
        forms = _form(loss, "direction"), _form(loss, "start")
        with _seeded(seed, s_mean.device):
            self.metric = Metric.untrained(dims, model, s_mean, *forms).to(s_mean.device)
        self.metric.sigma.requires_grad_(model.sigma_rule == "learned")
        self.m0 = 2.0 * float((pasted / s_mean).max())  # twice the largest distance of a paste
        rates = {"lspn": training.learning_rate, "sigma": training.sigma_learning_rate}
        self.optimiser = torch.optim.Adam(
            [{"params": getattr(self.metric, n).parameters(), "lr": r} for n, r in rates.items()],
            weight_decay=training.weight_decay,
        )

    def terms(self, rows: Tensor, draw: torch.Generator, is_training: bool) -> tuple:
        """Return what `loss_terms` says of some cells."""
        cells, given = self.cells.take(rows), (self.bank, self.m0, self.k, self.loss, draw)
        return loss_terms(self.metric, cells, *given, is_training=is_training)

    def train_epoch(self, draw: torch.Generator) -> dict[str, float]:
        """Train one epoch; return the mean of every term."""
        loss, training, fit = self.loss, self.training, self.split.fit
        num_fit = sum(map(len, fit))
        batch_size = min(training.batch_size, max(int(training.max_batch_share * num_fit), 2))
        num_steps, totals = num_fit // batch_size, dict.fromkeys(TERMS, 0.0)
        self.metric.train()
        for _ in range(num_steps):
            half = [s[torch.randint(len(s), (batch_size // 2,), generator=draw)] for s in fit]
            terms, _ = self.terms(torch.cat(half), draw, is_training=True)
            total = total_loss(terms, loss.alpha, loss.beta, loss.gamma, loss.mu)
            if training.l1:
                weights = (w for n, w in self.metric.lspn.named_parameters() if "weight" in n)
                total = total + training.l1 * sum(w.abs().sum() for w in weights)
            self.optimiser.zero_grad()
            total.backward()
            self.optimiser.step()
            for name in TERMS:
                totals[name] += float(terms[name].detach()) / num_steps
        return totals


def train_metric(
    cells: Cells,
    bank: dict,
    model: ModelConfig,
    loss: LossConfig,
    training: TrainingConfig,
    seed: int,
    checkpoint: Path | None = None,
    progress: bool = True,
    after_epoch: Callable[[int, Metric], None] | None = None,
) -> tuple[Metric, list[dict[str, float]]]:
    """Train LSPN and sigma; return the best epoch's metric and one row of history an epoch.

    Batches hold both classes in equal shares, drawn with replacement. The epoch with the lowest
    criterion on held-out cells is kept; the untrained metric, epoch 0, is a candidate. The
    randomness of an epoch depends on `seed` and its number only, so a run that goes on from
    `checkpoint` ends with the same bytes as one that was not interrupted.

    Args:
        cells: labelled training cells; their device is where the training runs.
        bank: mod -> `MemoryBank` or (B, D_mod) prototypes.
        model: sizes of LSPN, and k.
        loss: weights of Eq. 10, and forms.
        training: optimiser, epochs, batches, what is held out.
        seed: of the split, weights, dropout, batches and negatives.
        checkpoint: written after every epoch, and read at the start; None: nothing is written.
        progress: whether a bar is shown.
        after_epoch: called with 0 and the untrained metric, then with each epoch and the metric at
            its end; not for epochs that `checkpoint` already has.

    Returns:
        metric: in evaluation mode, on the device of the cells.
        history: a dict an epoch, from 0 (before training): mean training value of every term
            (``sep`` ... ``cma``), and what `_observe` sees on held-out cells.

    Raises:
        FloatingPointError: when the held-out loss is no longer finite.

    Source: Section 3.5; optimiser and selection from the authors' code, except that scans, not
    cells, are held out, that false alarms are looked at, and that held-out losses are balanced.
    """
    loop = _Loop(cells, bank, model, loss, training, seed)
    metric, optimiser = loop.metric, loop.optimiser
    run = _fingerprint(cells, model, loss, training, seed)
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}

    def end_epoch(row: dict[str, float]) -> None:
        nonlocal best
        row |= {"epoch": len(history)} | _observe(loop)
        if after_epoch is not None:
            after_epoch(len(history), metric)
        history.append(row)
        if not math.isfinite(row["heldout"]):
            raise FloatingPointError(
                f"train_metric: the held-out loss of epoch {row['epoch']} is {row['heldout']}; "
                "expected a finite number: lower learning_rate, or look at the features"
            )
        if best_row(history) is row:
            best = {name: value.clone() for name, value in metric.state_dict().items()}
        if checkpoint is not None and row["epoch"]:
            write_checkpoint(checkpoint, run, {"history": history}, metric, optimiser, best)

    if known := checkpoint and read_checkpoint(checkpoint, run, metric, optimiser):
        history, best = known[0]["history"], known[1]
    else:
        end_epoch({})
    first, last = len(history), training.epochs
    bar = tqdm(range(first, last + 1), "training", last, initial=first - 1, disable=not progress)
    for epoch in bar:
        own_seed = 1_000_003 * (seed + 1) + epoch  # differs between epochs and between runs
        with _seeded(own_seed, cells.s.device):
            end_epoch(loop.train_epoch(torch.Generator().manual_seed(own_seed)))
        bar.set_postfix(heldout=f"{history[-1]['heldout']:.4f}")
    metric.load_state_dict(best)
    metric.eval()
    _warn_if_collapsed(best_row(history), history[-1], loss)
    return metric, history


def heldout_auroc(score: Tensor, cells: Cells) -> float:
    """Return how well image scores tell pasted scans from the same scans untouched (AUROC).

    A scan scores as its largest normal cell; with a paste on it, as the larger of that and of the
    paste's largest cell, so that false alarms are seen. NaN where either kind is absent.
    """

    def largest(of: Tensor, among: Tensor, num: int) -> Tensor:
        start = score.new_full((num,), -torch.inf)
        return start.scatter_reduce_(0, of[among], score[among], "amax")

    is_bad, target = cells.is_anomalous, cells.target.long()
    image = torch.unique(cells.image, return_inverse=True)[1]
    untouched = largest(target, ~is_bad, int(target.max()) + 1)
    pasted = largest(image, is_bad, int(image.max()) + 1)
    stands_on = torch.zeros(len(pasted), dtype=torch.long, device=score.device)
    stands_on[image] = target
    pasted = torch.maximum(pasted, untouched[stands_on])[torch.isfinite(pasted)]
    untouched, pasted = (x[torch.isfinite(x)].cpu() for x in (untouched, pasted))
    if not len(untouched) or not len(pasted):
        return float("nan")
    truth = [0] * len(untouched) + [1] * len(pasted)
    return float(roc_auc_score(truth, torch.cat([untouched, pasted])))


@torch.no_grad()
def _observe(loop: _Loop) -> dict[str, float]:
    """Return the held-out part of a row of history.

    ``w_ends`` is the share of normal held-out cells whose w is beyond `NEAR_AN_END` of its range
    in both modalities; ``w_correlation`` that of both modalities' log w over all of them.
    """
    metric, cells, heldout = loop.metric.eval(), loop.cells, loop.split.heldout
    draw = torch.Generator().manual_seed(loop.seed)
    terms, w = loop.terms(loop.split.judged, draw, is_training=False)
    row = {f"heldout_{name}": float(terms[name]) for name in TERMS}
    near, score = slice(0, loop.k + 1), []
    for rows in heldout.split(CELLS_AT_ONCE):
        index = {mod: cells.index[mod][rows][:, near] for mod in MODALITIES}
        s = cells.s[rows][:, near]
        feat = {mod: cells.feat[mod][rows] for mod in MODALITIES}
        score.append(aggregate(metric.ell(metric.scale_factors(feat, loop.bank, index, s), s)))
    row["heldout_auroc"] = heldout_auroc(torch.cat(score), cells.without_features(heldout))
    row["heldout"] = row["heldout_sep"] + loop.loss.alpha * row["heldout_mar"]
    if loop.training.criterion == "images":
        row["heldout"] = 1.0 - row["heldout_auroc"]
    log_w, y = w[:, 0].log(), cells.is_anomalous[loop.split.judged]
    for m, mod in enumerate(MODALITIES):
        row[f"sigma_{mod}"] = float(metric.sigma()[m])
        for side, rows in (("normal", ~y), ("synthetic", y)):
            row[f"w_{side}_{mod}"] = float(w[rows, 0, m].mean())
            row[f"w_std_{side}_{mod}"] = float(w[rows, 0, m].std())
        row[f"w_std_{mod}"] = float(w[:, 0, m].std())
    row["w_ends"] = float((log_w[~y].abs() > NEAR_AN_END).all(1).float().mean())
    spread = log_w.std(0)
    joint = ((log_w - log_w.mean(0)).prod(1).mean() / spread.prod().clamp_min(1e-12)).item()
    row["w_correlation"] = joint if float(spread.min()) > 1e-6 else 0.0
    return row


def best_row(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the row of history whose epoch is kept: the first with the lowest criterion."""
    return min(history, key=lambda row: row["heldout"])


def _warn_if_collapsed(best: dict[str, float], last: dict[str, float], loss: LossConfig) -> None:
    """Warn when w is a constant by the last epoch (an early one is kept then), or in that kept."""
    for row in (last, best):
        if flat := [mod for mod in MODALITIES if row[f"w_std_{mod}"] < COLLAPSED]:
            break
    else:
        return
    if max(row[f"w_normal_{mod}"] + row[f"w_synthetic_{mod}"] for mod in flat) > 4:
        cause = (
            f"every w is near e: L_cma (mu = {loss.mu:g}) and L_sc (gamma = {loss.gamma:g}) "
            "outweigh the discrimination loss; lower mu"
        )
    else:
        cause = "too few epochs, too small a learning rate, or an l1 that outweighs the losses"
    warnings.warn(
        f"LSPN has collapsed: in epoch {row['epoch']} w_{' and w_'.join(flat)} hardly differ "
        f"between held-out cells (standard deviation below {COLLAPSED:g}), so direction does not "
        f"matter; epoch {best['epoch']} is kept. Likely cause: {cause}.",
        CollapseWarning,
        stacklevel=3,
    )


def _fingerprint(cells: Cells, *settings) -> str:
    """Return what a checkpoint must agree with to be gone on from."""
    known = [s if isinstance(s, int) else s.model_dump() for s in settings]
    sums = [float(cells.s.double().sum()), float(cells.is_anomalous.sum()), len(cells)]
    return json.dumps([known, sums], sort_keys=True)
