"""One loop that trains LSPN and sigma on labelled cells (Eq. 10), with its history."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.cells import Cells
from g2sf_lib.checkpoint import read_checkpoint, write_checkpoint
from g2sf_lib.config import MODALITIES, LossConfig, ModelConfig, TrainingConfig
from g2sf_lib.fusion import (
    CELLS_AT_ONCE,
    LSPN,
    GlobalScale,
    Metric,
    aggregate,
    encode,
    local_metric,
)
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

    By image, since neighbouring cells share pixels: a split by cell would judge the network on
    what it was trained on.

    Raises:
        ValueError: when there are fewer than two images.
    """
    images = torch.unique(image.cpu())
    if len(images) < 2:
        raise ValueError(
            f"heldout_images: {len(images)} image; expected at least 2 to hold one out"
        )
    num = min(max(round(fraction * len(images)), 1), len(images) - 1)
    held = images[torch.randperm(len(images), generator=generator)[:num]]
    return torch.isin(image, held.to(image.device))


def _form(loss: LossConfig, name: str) -> str:
    """Return which form a switch of the losses stands for."""
    return getattr(loss, name) or loss.form


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
        bank: mod -> prototypes.
        m0: bound of L_sep.
        k: number of proximal neighbourhoods.
        loss: forms and eta_0.
        generator: draws the negatives of Eq. 8.
        is_training: False: without jitter, without the official weights of L_sep, in parts.
    """
    if is_training and _form(loss, "jitter_form") == "official":
        cells, bank = _jittered(metric, cells, bank, generator)
    rows = torch.arange(len(cells), device=cells.s.device)
    parts = [rows] if is_training else rows.split(CELLS_AT_ONCE)
    found = [_scale_factors(metric, cells, part, bank, loss, generator) for part in parts]
    w, w_neg = (torch.cat(some) for some in zip(*found, strict=True))
    s = cells.s / metric.s_mean
    ell = local_metric(w, s, metric.sigma())
    is_anomalous = cells.is_anomalous
    sep_form, mar_form = _form(loss, "sep_form"), _form(loss, "mar_form")
    label = cells.changed if loss.label_of == "modality" else is_anomalous
    return {
        "sep": loss_sep(ell[:, 0], is_anomalous, m0, form=sep_form, weighted=is_training),
        "mar": loss_mar(ell[:, 0], is_anomalous, form=mar_form),
        "cns": loss_cns(ell, proximal_bound(s, k, loss.eta_0)),
        "sc": loss_sc(w[:, 0], label),
        "cma": loss_cma(w_neg, form=_form(loss, "cma_form")),
    }, w


def _scale_factors(
    metric: Metric, cells: Cells, rows: Tensor, bank: dict, loss: LossConfig, generator
) -> tuple[Tensor, Tensor]:
    """Return w (n, 2k + 1, M) of some cells, and w (n, M) of mismatched pairs of them (Eq. 8)."""
    if len(rows) < len(cells):
        cells = cells.take(rows)
    w = metric.lspn.from_bank(cells.feat, bank, cells.index, cells.s, generator)
    pairs = negative_pairs(len(cells), generator, _form(loss, "cma_form"))
    feat, index, distances = {}, {}, []
    for mod, feature_of, prototype_of in ((m, pairs[0][m], pairs[1][m]) for m in MODALITIES):
        feat[mod] = cells.feat[mod][feature_of.to(cells.s.device)]
        index[mod] = cells.index[mod][prototype_of.to(cells.s.device), :1]
        prototypes = getattr(bank[mod], "prototypes", bank[mod])
        nearest = prototypes[index[mod].to(prototypes.device)].to(feat[mod])
        distances.append(encode(feat[mod], nearest)[1])
    s = torch.stack(distances, dim=-1)
    return w, metric.lspn.from_bank(feat, bank, index, s, generator)[:, 0]


def _jittered(metric: Metric, cells: Cells, bank: dict, generator) -> tuple[Cells, dict]:
    """Return cells and a bank of their own, moved by up to 0.1 of the mean distance.

    As in the authors' code every component of a step is positive.
    """

    def moved(x: Tensor, reach: Tensor) -> Tensor:
        step = torch.rand(x.shape, generator=generator).to(x)
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


@dataclass(frozen=True)
class _Split:
    """Which cells are trained on and which judge, as numbers.

    Attributes:
        fit: normal and anomalous ones to train on; only a batch is ever read.
        judged: held-out ones whose losses are taken, as many normal as anomalous.
        heldout: all held-out ones, whose scans are told apart.
    """

    fit: tuple[Tensor, Tensor]
    judged: Tensor
    heldout: Tensor


def _split(cells: Cells, training: TrainingConfig, seed: int) -> _Split:
    """Draw what is held out.

    Raises:
        ValueError: when one of the classes is absent, of all cells or of a side.
    """
    if not cells.is_anomalous.any() or cells.is_anomalous.all():
        raise ValueError(
            "train_metric: cells of one class only; expected normal and anomalous cells"
        )
    draw = torch.Generator().manual_seed(seed)
    # Held out by cell, each cell counts as an image of its own.
    units = {"cell": torch.arange(len(cells)), "image": cells.image, "target": cells.target}
    is_heldout = heldout_images(units[training.heldout_by], training.heldout_fraction, draw)
    is_heldout = is_heldout.to(cells.s.device)
    judged = _balanced(cells.is_anomalous, is_heldout, draw)
    fit = tuple(
        torch.nonzero(~is_heldout & (cells.is_anomalous == side))[:, 0] for side in (False, True)
    )
    if not len(fit[1]) or not len(judged):
        raise ValueError("train_metric: a side of the held-out split has no anomalous cell")
    return _Split(fit, judged, torch.nonzero(is_heldout)[:, 0])


def _untrained(
    cells: Cells,
    fit: tuple[Tensor, Tensor],
    model: ModelConfig,
    loss: LossConfig,
    training: TrainingConfig,
    seed: int,
) -> tuple[Metric, float]:
    """Return the metric before training, and m_0, twice the largest distance of a paste."""
    nearest = cells.s[fit[0], 0]
    s_mean = nearest.mean(0)
    if training.normaliser == "std":
        # Modalities in proportion to their spread, and normal cells at 1 on average as before.
        s_mean = nearest.std(0) * (s_mean / nearest.std(0)).mean()
    device = cells.s.device
    with _seeded(seed, device):
        lspn = LSPN(
            {mod: cells.feat[mod].shape[1] for mod in MODALITIES},
            model.hidden,
            model.embed,
            model.dropout,
            _form(loss, "start_form"),
            _form(loss, "direction_form"),
            model.prototype_input,
            model.direction_input,
        ).to(device)
    metric = Metric(lspn, GlobalScale().to(device), s_mean)
    metric.sigma.requires_grad_(model.sigma_rule == "learned")
    return metric, 2.0 * float((cells.s[fit[1], 0] / s_mean).max())


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

    Batches hold both classes in equal shares, drawn with replacement. After each epoch the
    held-out cells are scored, and the epoch with the lowest criterion on them is kept; the
    untrained metric, epoch 0, is a candidate. The randomness of an epoch depends on `seed` and its
    number only, so a run that was interrupted and goes on from `checkpoint` ends with the same
    bytes as one that was not.

    Args:
        cells: labelled training cells; their device is where the training runs.
        bank: mod -> `MemoryBank` or (B, D_mod) prototypes.
        model: sizes of LSPN, and k.
        loss: weights of Eq. 10, and forms.
        training: optimiser, epochs, batches, held-out fraction.
        seed: of the split, weights, dropout, batches and negatives.
        checkpoint: written after every epoch, and read at the start; None: nothing is written.
        progress: whether a progress bar is shown.
        after_epoch: called with 0 and the untrained metric, then with each epoch and the metric at
            its end; not for epochs that `checkpoint` already has.

    Returns:
        metric: in evaluation mode, on the device of the cells.
        history: a dict an epoch, from 0 (before training): mean training value of every term
            (``sep`` ... ``cma``), and what `_observe` sees on held-out cells.

    Raises:
        ValueError: when one of the classes is absent.
        FloatingPointError: when the held-out loss is no longer finite.
        StoredFileError: when the checkpoint is damaged.

    Warns:
        CollapseWarning: when w hardly differs between held-out cells.

    Source: Section 3.5; optimiser and selection from the authors' code, except that scans, not
    cells, are held out, that false alarms are looked at, and that held-out losses are balanced.
    """
    split = _split(cells, training, seed)
    metric, m0 = _untrained(cells, split.fit, model, loss, training, seed)
    groups = ((metric.lspn, training.learning_rate), (metric.sigma, training.sigma_learning_rate))
    optimiser = torch.optim.Adam(
        [{"params": part.parameters(), "lr": rate} for part, rate in groups],
        weight_decay=training.weight_decay,
    )
    judge = (cells, split, bank, m0, model.k, loss, training, seed)
    run = _fingerprint(cells, model, loss, training, seed)
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}

    def end_epoch(row: dict[str, float]) -> None:
        nonlocal best
        row |= {"epoch": len(history)} | _observe(metric, *judge)
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

    known = None if checkpoint is None else read_checkpoint(checkpoint, run, metric, optimiser)
    if known is None:
        end_epoch({})
    else:
        history, best = known[0]["history"], known[1]
    epochs = range(len(history), training.epochs + 1)
    bar = tqdm(epochs, total=training.epochs, initial=len(history) - 1, desc="training",
               disable=not progress)  # fmt: skip
    for epoch in bar:
        with _seeded(_epoch_seed(seed, epoch), cells.s.device):
            draw = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
            end_epoch(_train_epoch(metric, optimiser, cells, split, bank, m0, model.k, loss,
                                   training, draw))  # fmt: skip
        bar.set_postfix(heldout=f"{history[-1]['heldout']:.4f}")
    metric.load_state_dict(best)
    metric.eval()
    _warn_if_collapsed(best_row(history), history[-1], loss)
    return metric, history


def _train_epoch(
    metric: Metric,
    optimiser: torch.optim.Optimizer,
    cells: Cells,
    split: _Split,
    bank: dict,
    m0: float,
    k: int,
    loss: LossConfig,
    training: TrainingConfig,
    draw: torch.Generator,
) -> dict[str, float]:
    """Train one epoch; return the mean of every term."""
    num_fit = sum(map(len, split.fit))
    batch_size = min(training.batch_size, max(int(training.max_batch_share * num_fit), 2))
    num_steps, totals = num_fit // batch_size, dict.fromkeys(TERMS, 0.0)
    metric.train()
    for _ in range(num_steps):
        half = [s[torch.randint(len(s), (batch_size // 2,), generator=draw)] for s in split.fit]
        terms, _ = loss_terms(metric, cells.take(torch.cat(half)), bank, m0, k, loss, draw)
        total = total_loss(terms, loss.alpha, loss.beta, loss.gamma, loss.mu)
        if training.l1:
            total = total + training.l1 * _l1(metric.lspn)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        for name in TERMS:
            totals[name] += float(terms[name].detach()) / num_steps
    return totals


def _epoch_seed(seed: int, epoch: int) -> int:
    """Return a seed that differs between epochs and between runs."""
    return 1_000_003 * (seed + 1) + epoch


@contextmanager
def _seeded(seed: int, device: torch.device):
    """Seed torch's global generator, which dropout and initial weights read, for a while."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _l1(lspn: LSPN) -> Tensor:
    """Return the sum of absolute weights of the linear layers, biases left out."""
    return sum(weight.abs().sum() for name, weight in lspn.named_parameters() if "weight" in name)


def _balanced(is_anomalous: Tensor, among: Tensor, generator: torch.Generator) -> Tensor:
    """Return the numbers of as many anomalous cells as normal ones, `MOST_JUDGED` at most."""
    sides = [torch.nonzero(among & (is_anomalous == side))[:, 0] for side in (False, True)]
    num = min(*map(len, sides), MOST_JUDGED)
    drawn = [torch.randperm(len(side), generator=generator)[:num] for side in sides]
    return torch.cat([side[rows.to(side.device)] for side, rows in zip(sides, drawn, strict=True)])


def heldout_auroc(score: Tensor, cells: Cells) -> float:
    """Return how well image scores tell pasted scans from the same scans untouched (AUROC).

    A scan scores as its largest normal cell; with a paste on it, as the larger of that and of
    the paste's largest cell. So a metric that calls a good cell anomalous is seen to do so. NaN
    where there are no normal cells, or no pasted ones.
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
    truth = torch.cat([torch.zeros(len(untouched)), torch.ones(len(pasted))])
    return float(roc_auc_score(truth, torch.cat([untouched, pasted])))


@torch.no_grad()
def _observe(
    metric: Metric,
    cells: Cells,
    split: _Split,
    bank: dict,
    m0: float,
    k: int,
    loss: LossConfig,
    training: TrainingConfig,
    seed: int,
) -> dict[str, float]:
    """Return the held-out part of a row of history; the cells are judged without jitter.

    ``w_ends`` is the share of normal held-out cells whose w is beyond `NEAR_AN_END` of its range
    in both modalities; ``w_correlation`` that of both modalities' log w over all of them.
    """
    metric.eval()
    draw = torch.Generator().manual_seed(seed)
    judged = cells.take(split.judged)
    terms, w = loss_terms(metric, judged, bank, m0, k, loss, draw, is_training=False)
    row = {f"heldout_{name}": float(terms[name]) for name in TERMS}
    near, score = slice(0, k + 1), []
    for rows in split.heldout.split(CELLS_AT_ONCE):
        index = {mod: cells.index[mod][rows][:, near] for mod in MODALITIES}
        s = cells.s[rows][:, near]
        feat = {mod: cells.feat[mod][rows] for mod in MODALITIES}
        score.append(aggregate(metric.ell(metric.scale_factors(feat, bank, index, s), s)))
    row["heldout_auroc"] = heldout_auroc(torch.cat(score), cells.without_features(split.heldout))
    row["heldout"] = row["heldout_sep"] + loss.alpha * row["heldout_mar"]
    if training.criterion == "images":
        row["heldout"] = 1.0 - row["heldout_auroc"]
    log_w, is_anomalous = w[:, 0].log(), judged.is_anomalous
    for m, mod in enumerate(MODALITIES):
        row[f"sigma_{mod}"] = float(metric.sigma()[m])
        for side, rows in (("normal", ~is_anomalous), ("synthetic", is_anomalous)):
            row[f"w_{side}_{mod}"] = float(w[rows, 0, m].mean())
            row[f"w_std_{side}_{mod}"] = float(w[rows, 0, m].std())
        row[f"w_std_{mod}"] = float(w[:, 0, m].std())
    row["w_ends"] = float((log_w[~is_anomalous].abs() > NEAR_AN_END).all(1).float().mean())
    spread = log_w.std(0)
    joint = ((log_w - log_w.mean(0)).prod(1).mean() / spread.prod().clamp_min(1e-12)).item()
    row["w_correlation"] = joint if float(spread.min()) > 1e-6 else 0.0
    return row


def best_row(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the row of history whose epoch is kept: the first with the lowest criterion."""
    return min(history, key=lambda row: row["heldout"])


def _warn_if_collapsed(best: dict[str, float], last: dict[str, float], loss: LossConfig) -> None:
    """Warn when w is a constant in the epoch that was kept or by the last, with the likely cause.

    The last one counts too: where w ends as a constant, an early epoch is kept, which is
    hardly trained.
    """
    for row in (last, best):
        flat = [mod for mod in MODALITIES if row[f"w_std_{mod}"] < COLLAPSED]
        if flat:
            break
    else:
        return
    level = {mod: (row[f"w_normal_{mod}"] + row[f"w_synthetic_{mod}"]) / 2 for mod in flat}
    if max(level.values()) > 2:
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
