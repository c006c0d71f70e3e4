"""One loop that trains LSPN and sigma on labelled cells (Eq. 10), with its history."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.config import MODALITIES, LossConfig, ModelConfig, TrainingConfig
from g2sf_lib.fusion import LSPN, GlobalScale, aggregate, local_metric
from g2sf_lib.losses import (
    loss_cma,
    loss_cns,
    loss_mar,
    loss_sc,
    loss_sep,
    negative_pairs,
    proximal_bound,
)
from g2sf_lib.memory import Rows
from g2sf_lib.storage import StoredFileError

TERMS = ("sep", "mar", "cns", "sc", "cma")
JITTER = 0.1  # of the mean distance, facts.md, section 5
_CELLS_AT_ONCE = 8192  # without gradients: bounds the (cells, 2k + 1, hidden) of LSPN
NUM_RANDOM = 1024  # directions that the ablation "random" draws from, a modality
MOST_JUDGED = 2048  # held-out cells of a class whose losses are taken after each epoch
NEAR_AN_END = 0.9  # of |log w|, whose range ends at 1
COLLAPSED = 0.01  # a standard deviation of w below this says nothing about direction


class CollapseWarning(UserWarning):
    """The scale factors are the same for every cell: LSPN has learned nothing."""


@dataclass
class Cells:
    """Labelled cells and their neighbourhoods, as the loop reads them.

    Attributes:
        feat: mod -> (N, D_mod) standardised features; as `Rows` they are read batch by batch.
        index: mod -> (N, 2k + 1) nearest prototypes of each modality.
        s: (N, 2k + 1, M) distances in the units of `feat`.
        is_anomalous: (N,) bool.
        image: (N,) number of the image a cell comes from.
        changed: (N, M) bool, which modalities a paste changed; None: both, on anomalous cells.
        target: (N,) number of the normal scan that the image is, or stands on; None: the image.
    """

    feat: dict[str, Tensor | Rows]
    index: dict[str, Tensor]
    s: Tensor
    is_anomalous: Tensor
    image: Tensor
    changed: Tensor | None = None
    target: Tensor | None = None

    def __post_init__(self):
        if self.changed is None:
            self.changed = self.is_anomalous[:, None].expand(-1, len(MODALITIES))
        if self.target is None:
            self.target = self.image

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: Tensor) -> Cells:
        """Return the cells of the given rows, or of a bool per cell."""
        return Cells(
            {mod: self.feat[mod][rows] for mod in MODALITIES},
            {mod: self.index[mod][rows] for mod in MODALITIES},
            self.s[rows],
            self.is_anomalous[rows],
            self.image[rows],
            self.changed[rows],
            self.target[rows],
        )

    def without_features(self, rows: Tensor) -> Cells:
        """Return what is known of some cells beside their features and prototypes."""
        known = self.s[rows], self.is_anomalous[rows], self.image[rows]
        return Cells({}, {}, *known, self.changed[rows], self.target[rows])

    def to(self, device: torch.device) -> Cells:
        """Return the cells on a device."""
        return Cells(
            {mod: self.feat[mod].to(device) for mod in MODALITIES},
            {mod: self.index[mod].to(device) for mod in MODALITIES},
            self.s.to(device),
            self.is_anomalous.to(device),
            self.image.to(device),
            self.changed.to(device),
            self.target.to(device),
        )


@dataclass
class Metric:
    """What training learns: LSPN, sigma, and the unit of each modality's distance.

    Attributes:
        lspn: the network of Eq. 2.
        sigma: the global scale of Eq. 3.
        s_mean: (M,) mean distance of normal training cells to their nearest prototype; or its
            standard deviation, as `TrainingConfig.normaliser` says.
        direction_form: "paper" or "official", which directions `lspn` was trained on.
        prototype_input, direction_input: what `lspn` sees of them, as in `ModelConfig`.
    """

    lspn: LSPN
    sigma: GlobalScale
    s_mean: Tensor
    direction_form: str = "paper"
    prototype_input: str = "given"
    direction_input: str = "given"

    def project(
        self,
        feat: dict[str, Tensor | Rows],
        bank: dict,
        index: dict[str, Tensor],
        s: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return `LSPN.project` of what the network is allowed to see.

        Args:
            feat: as there.
            bank: as there.
            index: as there.
            s: as there.
            generator: draws random directions, where they take the place of the true ones; None:
                the same ones on every call.
        """
        proto, direction = self.lspn.project(feat, bank, index, s, self.direction_form)
        if self.prototype_input == "zeros":
            proto = {mod: torch.zeros_like(part) for mod, part in proto.items()}
        if self.direction_input == "zeros":
            direction = {mod: torch.zeros_like(part) for mod, part in direction.items()}
        elif self.direction_input == "random":
            draw = generator or torch.Generator().manual_seed(0)
            direction = {mod: self._random(part, mod, draw) for mod, part in direction.items()}
        return proto, direction

    def _random(self, part: Tensor, mod: str, generator: torch.Generator) -> Tensor:
        """Return (N, K, hidden), what random unit directions add to the first layer."""
        start = 0 if mod == MODALITIES[0] else self.lspn.dims[MODALITIES[0]]
        weight = self.lspn.direction_in.weight[:, start : start + self.lspn.dims[mod]]
        drawn = torch.randn(NUM_RANDOM, self.lspn.dims[mod], generator=generator).to(weight)
        unit = drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)
        which = torch.randint(NUM_RANDOM, part.shape[:2], generator=generator).to(part.device)
        return torch.nn.functional.embedding(which, unit @ weight.T)

    @torch.no_grad()
    def scale_factors(
        self, feat: dict[str, Tensor | Rows], bank: dict, index: dict[str, Tensor], s: Tensor
    ) -> Tensor:
        """Return w (N, K, M) in evaluation mode, a few thousand cells at a time."""
        self.lspn.eval()
        device = self.s_mean.device
        parts = [
            self.lspn.scale(
                *self.project(
                    {mod: feat[mod][rows].to(device) for mod in MODALITIES},
                    bank,
                    {mod: index[mod][rows].to(device) for mod in MODALITIES},
                    s[rows].to(device),
                )
            )
            for rows in torch.arange(len(s)).split(_CELLS_AT_ONCE)
        ]
        return torch.cat(parts) if parts else s.new_ones(s.shape)

    def ell(self, w: Tensor, s: Tensor) -> Tensor:
        """Return l (N, K) for scale factors and distances in the units of the features."""
        return local_metric(w, s / self.s_mean, self.sigma())


def heldout_images(image: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Return (N,) bool: cells of the images that are held out.

    The split is by image: neighbouring cells of one image share pixels, so a split by cell
    would judge the network on what it was trained on.

    Args:
        image: (N,) image numbers.
        fraction: share of the images held out; at least one is held out and one kept.
        generator: draws the images.

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


def loss_terms(
    metric: Metric, cells: Cells, bank: dict, m0: float, k: int, loss: LossConfig, generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each unweighted term of Eq. 10 on a batch, and w (N, 2k + 1, M).

    Args:
        metric: what is being trained; its mode (dropout) is left as it is.
        cells: the batch.
        bank: mod -> prototypes.
        m0: bound of L_sep.
        k: number of proximal neighbourhoods.
        loss: forms and eta_0.
        generator: draws the negatives of Eq. 8.
    """
    if _form(loss, "jitter_form") == "official":
        cells, bank = _jittered(metric, cells, bank, generator)
    w, w_neg = _scale_factors(metric, cells, bank, loss, generator)
    return _terms(metric, w, w_neg, cells, m0, k, loss), w


def _form(loss: LossConfig, name: str) -> str:
    """Return which form a switch of the losses stands for."""
    return getattr(loss, name) or loss.form


def _scale_factors(
    metric: Metric, cells: Cells, bank: dict, loss: LossConfig, generator
) -> tuple[Tensor, Tensor]:
    """Return w (N, 2k + 1, M) of the cells, and w (N, M) of mismatched pairs (Eq. 8)."""
    parts = metric.project(cells.feat, bank, cells.index, cells.s, generator)
    hidden = metric.lspn.hidden(*parts)
    del parts  # 740 MB at the paper's size, four times as much as is still needed
    w = metric.lspn.decode(*hidden)
    pairs = negative_pairs(len(cells), generator, _form(loss, "cma_form"))
    feat, index, distances = {}, {}, []
    for mod, feature_of, prototype_of in ((m, pairs[0][m], pairs[1][m]) for m in MODALITIES):
        feat[mod] = cells.feat[mod][feature_of.to(cells.s.device)]
        index[mod] = cells.index[mod][prototype_of.to(cells.s.device), :1]
        prototypes = getattr(bank[mod], "prototypes", bank[mod])
        nearest = prototypes[index[mod][:, 0].to(prototypes.device)].to(feat[mod])
        distances.append(torch.linalg.vector_norm(feat[mod] - nearest, dim=-1, keepdim=True))
    negatives = metric.project(feat, bank, index, torch.stack(distances, dim=-1), generator)
    return w, metric.lspn.scale(*negatives)[:, 0]


def _terms(
    metric: Metric,
    w: Tensor,
    w_neg: Tensor,
    cells: Cells,
    m0: float,
    k: int,
    loss: LossConfig,
    weighted: bool = True,
) -> dict[str, Tensor]:
    """Return each unweighted term of Eq. 10 from scale factors of cells, and of negatives."""
    s = cells.s / metric.s_mean
    ell = local_metric(w, s, metric.sigma())
    is_anomalous = cells.is_anomalous
    sep_form, mar_form = _form(loss, "sep_form"), _form(loss, "mar_form")
    label = cells.changed if loss.label_of == "modality" else is_anomalous
    return {
        "sep": loss_sep(ell[:, 0], is_anomalous, m0, form=sep_form, weighted=weighted),
        "mar": loss_mar(ell[:, 0], is_anomalous, form=mar_form),
        "cns": loss_cns(ell, proximal_bound(s, k, loss.eta_0)),
        "sc": loss_sc(w[:, 0], label),
        "cma": loss_cma(w_neg, form=_form(loss, "cma_form")),
    }


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
        distances.append(torch.linalg.vector_norm(feat[mod][:, None] - proto, dim=-1))
        index[mod] = torch.arange(proto[..., 0].numel(), device=proto.device).view(proto.shape[:2])
        own_bank[mod] = proto.flatten(0, 1)  # (N * K, D)
    s = torch.stack(distances, dim=-1)
    return dataclasses.replace(cells, feat=feat, index=index, s=s), own_bank


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
    """Train LSPN and sigma; return the best epoch's and one row of history an epoch.

    Batches hold both classes in equal shares, drawn with replacement. After each epoch the
    held-out cells are scored, and the epoch with the lowest criterion on them is kept; the
    untrained metric, epoch 0, is one of the candidates. The randomness of an epoch depends on
    `seed` and its number only, so a run that was interrupted and goes on from `checkpoint` ends
    with the same bytes as one that was not.

    Args:
        cells: labelled training cells; their device is where the training runs.
        bank: mod -> `MemoryBank` or (B, D_mod) prototypes.
        model: sizes of LSPN, and k.
        loss: weights of Eq. 10, and forms.
        training: optimiser, epochs, batches, held-out fraction.
        seed: of the split, weights, dropout, batches and negatives.
        checkpoint: a file written after every epoch and read at the start when it is
            there; None: nothing is written.
        progress: whether a progress bar is shown.
        after_epoch: called with 0 and the untrained metric, then with the number of each epoch
            and the metric as it is at its end, in evaluation mode; not for epochs that
            `checkpoint` already has. It must not change the metric.

    Returns:
        metric: in evaluation mode, on the device of the cells.
        history: a dict an epoch with `epoch`, mean training value of every term
            (``sep`` ... ``cma``), the same on held-out cells (``heldout_sep`` ...),
            ``heldout_auroc`` (of held-out images, `heldout_auroc`), ``heldout`` (the
            criterion), ``sigma_pcd``, ``sigma_rgb``, mean and standard deviation of w_i0 by
            class and modality (``w_normal_pcd`` ...), and what tells the collapse of w to two
            ends: ``w_ends`` and ``w_correlation``, see `_observe`. Row 0 is the state before
            training.

    Raises:
        ValueError: when one of the classes is absent.
        FloatingPointError: when the held-out loss is no longer finite.
        StoredFileError: when the checkpoint is damaged.

    Warns:
        CollapseWarning: when w hardly differs between held-out cells.

    Source: Section 3.5; optimiser and selection from the authors' code, except that scans,
    not cells, are held out, that false alarms are looked at, and that held-out losses are
    balanced by drawing as many normal cells as there are anomalous.
    """
    if not cells.is_anomalous.any() or cells.is_anomalous.all():
        raise ValueError(
            "train_metric: cells of one class only; expected normal and anomalous cells"
        )
    device = cells.s.device
    split = torch.Generator().manual_seed(seed)
    # Held out by cell, each cell counts as an image of its own.
    units = {"cell": torch.arange(len(cells)), "image": cells.image, "target": cells.target}
    is_heldout = heldout_images(units[training.heldout_by], training.heldout_fraction, split)
    is_heldout = is_heldout.to(device)
    heldout = _balanced(cells.is_anomalous, is_heldout, split)
    # Numbers of the cells trained on, normal and anomalous; only a batch is ever read.
    fit = [
        torch.nonzero(~is_heldout & (cells.is_anomalous == side))[:, 0] for side in (False, True)
    ]
    if not len(fit[1]) or not len(heldout):
        raise ValueError("train_metric: a side of the held-out split has no anomalous cell")
    nearest = cells.s[fit[0], 0]
    s_mean = nearest.mean(0)
    if training.normaliser == "std":
        # Modalities in proportion to their spread, and normal cells at 1 on average as before.
        s_mean = nearest.std(0) * (s_mean / nearest.std(0)).mean()
    m0 = 2.0 * float((cells.s[fit[1], 0] / s_mean).max())
    heldout = (heldout, torch.nonzero(is_heldout)[:, 0])
    with _seeded(seed, device):
        dims = {mod: cells.feat[mod].shape[1] for mod in MODALITIES}
        start = _form(loss, "start_form")
        lspn = LSPN(dims, model.hidden, model.embed, model.dropout, start).to(device)
    direction_form = _form(loss, "direction_form")
    blind = (model.prototype_input, model.direction_input)
    metric = Metric(lspn, GlobalScale().to(device), s_mean, direction_form, *blind)
    metric.sigma.requires_grad_(model.sigma_rule == "learned")
    optimiser = torch.optim.Adam(
        [
            {"params": lspn.parameters(), "lr": training.learning_rate},
            {"params": metric.sigma.parameters(), "lr": training.sigma_learning_rate},
        ],
        weight_decay=training.weight_decay,
    )
    state = _State(metric, optimiser, _fingerprint(cells, model, loss, training, seed))
    if checkpoint is None or not state.read(checkpoint):
        observed = _observe(metric, cells, heldout, bank, m0, model.k, loss, training, seed)
        state.end_epoch(observed | {"epoch": 0}, None)
        if after_epoch is not None:
            after_epoch(0, metric)
    weights = dict(zip(TERMS, (1.0, loss.alpha, loss.beta, loss.gamma, loss.mu), strict=True))
    num_fit = len(fit[0]) + len(fit[1])
    batch_size = min(training.batch_size, max(int(training.max_batch_share * num_fit), 2))
    num_steps = num_fit // batch_size
    bar = tqdm(total=training.epochs, initial=state.epoch, desc="training", disable=not progress)
    for epoch in range(state.epoch + 1, training.epochs + 1):
        draw = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
        totals = dict.fromkeys(TERMS, 0.0)
        lspn.train()
        with _seeded(_epoch_seed(seed, epoch), device):
            for _ in range(num_steps):
                half = batch_size // 2
                batch = cells.take(
                    torch.cat(
                        [side[torch.randint(len(side), (half,), generator=draw)] for side in fit]
                    )
                )
                terms, _ = loss_terms(metric, batch, bank, m0, model.k, loss, draw)
                total = sum(weights[name] * terms[name] for name in TERMS if weights[name])
                if training.l1:
                    total = total + training.l1 * _l1(lspn)
                optimiser.zero_grad()
                total.backward()
                optimiser.step()
                for name in TERMS:
                    totals[name] += float(terms[name].detach()) / num_steps
        row = totals | _observe(metric, cells, heldout, bank, m0, model.k, loss, training, seed)
        if after_epoch is not None:
            after_epoch(epoch, metric)
        state.end_epoch(row | {"epoch": epoch}, checkpoint)
        bar.update()
        bar.set_postfix(heldout=f"{row['heldout']:.4f}")
    bar.close()
    state.load_best()
    _warn_if_collapsed(best_row(state.history), state.history[-1], loss)
    return metric, state.history


def _epoch_seed(seed: int, epoch: int) -> int:
    """Return a seed that differs between epochs and between runs."""
    return 1_000_003 * (seed + 1) + epoch


class _seeded:
    """Seed torch's global generator, which dropout and initial weights read, for a while."""

    def __init__(self, seed: int, device: torch.device):
        self.seed = seed
        devices = [device] if device.type == "cuda" else []
        self.fork = torch.random.fork_rng(devices=devices)

    def __enter__(self):
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception):
        self.fork.__exit__(*exception)


def _l1(lspn: LSPN) -> Tensor:
    """Return the sum of absolute weights of the linear layers, biases left out."""
    return sum(weight.abs().sum() for name, weight in lspn.named_parameters() if "weight" in name)


def _balanced(is_anomalous: Tensor, among: Tensor, generator: torch.Generator) -> Tensor:
    """Return the numbers of as many anomalous cells as normal ones, `MOST_JUDGED` at most, drawn.

    Args:
        is_anomalous: (N,) bool.
        among: (N,) bool, the cells to draw from; each at most once.
        generator: draws them.
    """
    sides = [torch.nonzero(among & (is_anomalous == side))[:, 0] for side in (False, True)]
    num = min(*map(len, sides), MOST_JUDGED)
    drawn = [torch.randperm(len(side), generator=generator)[:num] for side in sides]
    return torch.cat([side[rows.to(side.device)] for side, rows in zip(sides, drawn, strict=True)])


def heldout_auroc(score: Tensor, cells: Cells) -> float:
    """Return how well image scores tell pasted scans from the same scans untouched.

    A scan scores as its largest normal cell; with a paste on it, as the larger of that and of
    the paste's largest cell. So a metric that calls a good cell anomalous is seen to do so.

    Args:
        score: (N,) of cells.
        cells: they; at least one of each class.

    Returns:
        The area under the ROC curve, over the scans that have normal cells here and over the
        pasted images on them; NaN where there are none.
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
    heldout: tuple[Tensor, Tensor],
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

    Args:
        metric: as it is now.
        cells: of the training.
        heldout: numbers of as many normal cells as anomalous ones, whose losses are taken; and of
            all held-out cells, whose scans are told apart.
        bank: mod -> prototypes.
        m0: bound of L_sep.
        k: number of proximal neighbourhoods.
        loss: forms and weights.
        training: the criterion.
        seed: of the negatives.
    """
    metric.lspn.eval()
    draw = torch.Generator().manual_seed(seed)
    judged, every = heldout
    parts = [
        _scale_factors(metric, cells.take(rows), bank, loss, draw)
        for rows in judged.split(_CELLS_AT_ONCE)
    ]
    w, w_neg = (torch.cat(some) for some in zip(*parts, strict=True))
    taken = cells.without_features(judged)
    is_anomalous = taken.is_anomalous
    terms = _terms(metric, w, w_neg, taken, m0, k, loss, weighted=False)
    row = {f"heldout_{name}": float(terms[name]) for name in TERMS}
    near, score = slice(0, k + 1), []
    for rows in every.split(_CELLS_AT_ONCE):
        index = {mod: cells.index[mod][rows][:, near] for mod in MODALITIES}
        s = cells.s[rows][:, near]
        feat = {mod: cells.feat[mod][rows] for mod in MODALITIES}
        score.append(aggregate(metric.ell(metric.scale_factors(feat, bank, index, s), s)))
    row["heldout_auroc"] = heldout_auroc(torch.cat(score), cells.without_features(every))
    row["heldout"] = row["heldout_sep"] + loss.alpha * row["heldout_mar"]
    if training.criterion == "images":
        row["heldout"] = 1.0 - row["heldout_auroc"]
    log_w = w[:, 0].log()
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
    known = [s if isinstance(s, int) else dataclasses.asdict(s) for s in settings]
    sums = [float(cells.s.double().sum()), float(cells.is_anomalous.sum()), len(cells)]
    return json.dumps([known, sums], sort_keys=True)


def parameters_of(metric: Metric) -> dict[str, Tensor]:
    """Return every trained parameter of LSPN and sigma by a name of its own."""
    modules = {"lspn": metric.lspn, "sigma": metric.sigma}
    return {
        f"{prefix}.{name}": value.detach()
        for prefix, module in modules.items()
        for name, value in module.named_parameters()
    }


@torch.no_grad()
def load_parameters(metric: Metric, values: dict[str, Tensor]) -> None:
    """Put parameters back that `parameters_of` has named; the metric is in evaluation mode then."""
    for name, parameter in parameters_of(metric).items():
        parameter.copy_(values[name])
    metric.lspn.eval()


class _State:
    """What an interrupted run needs to go on: parameters, Adam, best epoch, history."""

    def __init__(self, metric: Metric, optimiser: torch.optim.Adam, fingerprint: str):
        self.metric, self.optimiser, self.fingerprint = metric, optimiser, fingerprint
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        return len(self.history) - 1

    def end_epoch(self, row: dict[str, float], checkpoint: Path | None) -> None:
        self.history.append(row)
        if not math.isfinite(row["heldout"]):
            raise FloatingPointError(
                f"train_metric: the held-out loss of epoch {row['epoch']} is {row['heldout']}; "
                "expected a finite number: lower learning_rate, or look at the features"
            )
        if row["heldout"] < min((past["heldout"] for past in self.history[:-1]), default=math.inf):
            self.best = {name: p.detach().clone() for name, p in parameters_of(self.metric).items()}
        if checkpoint is not None:
            self.write(checkpoint)

    def load_best(self) -> None:
        load_parameters(self.metric, self.best)

    def write(self, path: Path) -> None:
        tensors = {f"now.{name}": p.detach() for name, p in parameters_of(self.metric).items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{slot}": value for slot, value in slots.items()}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        # One entry: safetensors writes several in random order, and bytes should not be random.
        header = json.dumps({"fingerprint": self.fingerprint, "history": self.history})
        save_file(tensors, temporary, metadata={"run": header})
        os.replace(temporary, path)

    @torch.no_grad()
    def read(self, path: Path) -> bool:
        """Go on from a checkpoint; return False where there is none for this very run."""
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                header = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoredFileError(
                f"{path}: truncated or changed ({error}); delete it to train from the start"
            ) from error
        if header["fingerprint"] != self.fingerprint:
            return False
        self.history = header["history"]
        device = self.metric.s_mean.device
        for name, parameter in parameters_of(self.metric).items():
            parameter.copy_(tensors[f"now.{name}"])
        self.best = {
            name.removeprefix("best."): value.to(device) for name, value in _under(tensors, "best.")
        }
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "adam."):
            _, number, slot = name.split(".")
            slots.setdefault(int(number), {})[slot] = value
        state = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": slots, "param_groups": state["param_groups"]})
        return True


def _under(tensors: dict[str, Tensor], prefix: str) -> Iterable[tuple[str, Tensor]]:
    return ((name, value) for name, value in tensors.items() if name.startswith(prefix))
