"""The core of G2SF: encode, predict scale factors, measure, aggregate (Eq. 1, 2, 3, 11).

Seen from each of its nearest prototypes a cell i is a direction and a distance (Eq. 1); LSPN reads
prototypes and directions and says how far is far in that direction (Eq. 2); the metric adds the
scaled distances (Eq. 3); the score is the least metric over the neighbourhoods (Eq. 11).

Shapes: N cells, K neighbourhoods a cell, M = 2 modalities in the order ("pcd", "rgb").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from g2sf_lib.config import MODALITIES, Form, ModelConfig

Aggregation = Literal["min", "max", "mean", "nearest"]
JOINT_DIRECTION_GAIN = 5.0  # the authors' code multiplies its joint direction by this
SMALLEST_JOINT = 1e-3  # and divides by the joint distance, or by this where that is smaller
CELLS_AT_ONCE = 8192  # without gradients: bounds the (cells, K, hidden) of LSPN
NUM_RANDOM = 1024  # directions that the ablation "random" draws from, a modality


def encode(feat: Tensor, proto: Tensor) -> tuple[Tensor, Tensor]:
    """Return direction and distance of features seen from their prototypes (Eq. 1).

    d_ij = (f_i - m_ij) / s_ij with s_ij = ||f_i - m_ij||, so that nothing is lost:
    ``proto + s[..., None] * d`` is the feature again.

    Args:
        feat: (N, D) features of one modality.
        proto: (N, K, D) their nearest prototypes, nearest first.

    Returns:
        d: (N, K, D), unit norm; zero where s is zero, since no direction is defined there.
        s: (N, K), the distance in the units of the features.

    Source: Section 3.3.
    """
    difference = feat[:, None, :] - proto
    s = torch.linalg.vector_norm(difference, dim=-1)
    return difference / torch.where(s > 0, s, 1.0)[..., None], s


def _of(values: Mapping[str, Tensor] | Tensor, mod: str) -> Tensor:
    """Return a modality's part of a dict over modalities or of a stack in the last axis."""
    return values[mod] if isinstance(values, Mapping) else values[..., MODALITIES.index(mod)]


class LSPN(nn.Module):
    """Local Scale Prediction Network: prototypes and directions -> scale factors (Eq. 2).

    Two branches encode the concatenated prototypes and the concatenated directions; their
    codes are concatenated and give one scale factor a modality, exp(tanh(.)), which lies
    in [1/e, e] around the Euclidean 1. The last layer starts at zero, so a new network
    returns exactly 1 and the metric starts as a plain sum of distances (Section 3.4);
    `start` "official" leaves torch's initial weights there, and w starts near 1.

    Args:
        dims: {"pcd": D_pcd, "rgb": D_rgb}, the lengths of the features.
        hidden: units of each branch's first layer.
        embed: length of each branch's code.
        dropout: probability of dropping a unit in training.
        start: of the last layer.
        direction_form: "official": normalised over both modalities together, and times 5.
        prototype_input, direction_input: what `from_bank` shows the network, as in `ModelConfig`.

    Source: Eq. 2 and Figure 4; layer sizes and the official forms from the authors' code.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        hidden: int = 512,
        embed: int = 128,
        dropout: float = 0.5,
        start: Form = "paper",
        direction_form: Form = "paper",
        prototype_input: str = "given",
        direction_input: str = "given",
    ):
        super().__init__()
        self.dims = {mod: int(dims[mod]) for mod in MODALITIES}
        self.direction_form = direction_form
        self.inputs = (prototype_input, direction_input)
        total = sum(self.dims.values())
        self.proto_in, self.proto_out = nn.Linear(total, hidden), nn.Linear(hidden, embed)
        self.direction_in, self.direction_out = nn.Linear(total, hidden), nn.Linear(hidden, embed)
        self.mix, self.head = nn.Linear(2 * embed, 2 * embed), nn.Linear(2 * embed, 2)
        self.dropout = ByteDropout(dropout)
        if start == "paper":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, proto: Mapping[str, Tensor], d: Mapping[str, Tensor]) -> Tensor:
        """Return w (N, K, M) for prototypes and directions, mod -> (N, K, D_mod) each."""
        proto, d = (torch.cat([part[mod] for mod in MODALITIES], dim=-1) for part in (proto, d))
        return self._decode(self.proto_in(proto), self.direction_in(d))

    def from_bank(
        self,
        feat: Mapping[str, Tensor],
        bank: Mapping[str, Tensor],
        index: Mapping[str, Tensor] | Tensor,
        s: Mapping[str, Tensor] | Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the w of `forward` without ever building (N, K, D).

        The first layers are linear, so W d = (W f - W m) / s: W f is computed once a cell
        and W m once a prototype.

        Args:
            feat: mod -> (N, D_mod) features.
            bank: mod -> (B_mod, D_mod) prototypes, or objects that hold them as `prototypes`.
            index: mod -> (N, K) rows of the bank, or a stack (N, K, M).
            s: mod -> (N, K) distances in the units of the features, or a stack (N, K, M).
            generator: draws random directions; None: the same ones on every call.
        """
        draw = generator or torch.Generator().manual_seed(0)
        parts, start = [], 0
        for mod in MODALITIES:
            columns = slice(start, start + self.dims[mod])
            start += self.dims[mod]
            prototypes = getattr(bank[mod], "prototypes", bank[mod])
            used, place = torch.unique(_of(index, mod), return_inverse=True)
            used = prototypes[used.to(prototypes.device)].to(feat[mod])
            # Unlike indexing, `embedding` adds gradients up in the same order on every run.
            proto_part = embedding(place, used @ self.proto_in.weight[:, columns].T)
            weight = self.direction_in.weight[:, columns]
            difference = (feat[mod] @ weight.T)[:, None] - embedding(place, used @ weight.T)
            # In place: the largest tensors of training, and nobody else holds them.
            direction_part = difference.mul_(self._inverse(s, mod)[..., None])
            if self.inputs[0] == "zeros":
                proto_part = torch.zeros_like(proto_part)
            if self.inputs[1] == "zeros":
                direction_part = torch.zeros_like(direction_part)
            elif self.inputs[1] == "random":
                direction_part = _random_directions(weight, direction_part.shape[:2], draw)
            parts.append((proto_part, direction_part))
        proto, d = (pcd.add_(rgb) for pcd, rgb in zip(*parts, strict=True))
        return self._decode(proto.add_(self.proto_in.bias), d.add_(self.direction_in.bias))

    def _inverse(self, s: Mapping[str, Tensor] | Tensor, mod: str) -> Tensor:
        """Return (N, K), by what a difference is multiplied to be a direction."""
        if self.direction_form == "official":
            joint = torch.stack([_of(s, each) for each in MODALITIES]).square().sum(0).sqrt()
            return JOINT_DIRECTION_GAIN / joint.clamp_min(SMALLEST_JOINT)
        return torch.where(_of(s, mod) > 0, 1.0 / _of(s, mod), 0.0)

    def _decode(self, proto_hidden: Tensor, direction_hidden: Tensor) -> Tensor:
        """Return w (N, K, M) from the first layers' outputs, which are overwritten."""
        proto_code = self.proto_out(self.dropout(proto_hidden.relu_()))
        direction_code = self.direction_out(self.dropout(direction_hidden.relu_()))
        mixed = self.mix(torch.cat([proto_code, direction_code], dim=-1))
        return torch.exp(torch.tanh(self.head(self.dropout(torch.relu(mixed)))))


class GlobalScale(nn.Module):
    """The trainable influence sigma of each modality (Eq. 3).

    sigma^m = (tanh(sigma_raw^m) + 1) / 2, divided by the sum over modalities; 1/2 at first.

    Source: Section 3.4; the parameterisation is that of the authors' code.
    """

    def __init__(self):
        super().__init__()
        self.sigma_raw = nn.Parameter(torch.zeros(len(MODALITIES)))

    def forward(self) -> Tensor:
        """Return sigma (M,), positive, with sum one."""
        positive = (torch.tanh(self.sigma_raw) + 1) / 2
        return positive / positive.sum()


def local_metric(w: Tensor, s: Tensor, sigma: Tensor) -> Tensor:
    """Return the anisotropic local distance l_ij = sum over m of w_ij^m s_ij^m sigma^m (Eq. 3).

    Args:
        w: (N, K, M) scale factors; all ones give the weighted sum of distances.
        s: (N, K, M) distances, divided by their mean over normal cells.
        sigma: (M,) influence of each modality.
    """
    return (w * s * sigma).sum(-1)


def aggregate(ell: Tensor, how: Aggregation = "min") -> Tensor:
    """Return one score a cell from its metrics in K neighbourhoods (Eq. 11).

    Args:
        ell: (N, K), nearest neighbourhood first.
        how: "min" is Eq. 11; "max", "mean" and "nearest" (l_i0) are Table 5's alternatives.

    Returns:
        cell_score: (N,); min <= mean <= max.
    """
    if how == "nearest":
        return ell[..., 0]
    ways = {"min": ell.amin, "max": ell.amax, "mean": ell.mean}
    if how not in ways:
        raise ValueError(f"aggregate: how is {how!r}; expected 'min', 'max', 'mean' or 'nearest'")
    return ways[how](-1)


class Metric(nn.Module):
    """What is learned, in production: LSPN, sigma, and the unit of each modality's distance.

    `s_mean` (M,) is the mean distance of normal training cells to their nearest prototype, or its
    standard deviation, as `TrainingConfig.normaliser` says.
    """

    def __init__(self, lspn: LSPN, sigma: GlobalScale, s_mean: Tensor):
        super().__init__()
        self.lspn, self.sigma = lspn, sigma
        self.register_buffer("s_mean", s_mean)

    @classmethod
    def untrained(
        cls, dims: dict, model: ModelConfig, s_mean: Tensor, directions: Form, start: Form = "paper"
    ) -> Metric:
        """Return a metric of that size and those inputs."""
        sizes, inputs = (model.hidden, model.embed), (model.prototype_input, model.direction_input)
        lspn = LSPN(dims, *sizes, model.dropout, start, directions, *inputs)
        return cls(lspn, GlobalScale(), s_mean)

    @torch.no_grad()
    def scale_factors(
        self, feat: Mapping[str, Tensor], bank: Mapping, index: Mapping[str, Tensor], s: Tensor
    ) -> Tensor:
        """Return w (N, K, M) in evaluation mode, a few thousand cells at a time."""
        self.eval()
        device, parts = self.s_mean.device, []
        for rows in torch.arange(len(s)).split(CELLS_AT_ONCE):
            some, near = (
                {mod: of[mod][rows].to(device) for mod in MODALITIES} for of in (feat, index)
            )
            parts.append(self.lspn.from_bank(some, bank, near, s[rows].to(device)))
        return torch.cat(parts) if parts else s.new_ones(s.shape)

    def ell(self, w: Tensor, s: Tensor) -> Tensor:
        """Return l (N, K) for scale factors and distances in the units of the features."""
        return local_metric(w, s / self.s_mean, self.sigma())


class ByteDropout(nn.Module):
    """Dropout that draws one random byte a unit, with a probability rounded to 1/256.

    Otherwise as `nn.Dropout`, whose draws take a large part of a training step on a CPU;
    ``benchmarks/bench_fusion.py`` times both.
    """

    def __init__(self, p: float):
        super().__init__()
        self.threshold = min(round(256 * p), 255)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, in training with units dropped and the others raised in turn."""
        if not self.training or self.threshold == 0:
            return x
        num_words = -(-x.numel() // 8)
        words = torch.empty(num_words, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        is_kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return x * is_kept.to(x.dtype).mul_(256 / (256 - self.threshold))


def _random_directions(weight: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return (N, K, hidden), what unit vectors drawn for every cell add to the first layer."""
    drawn = torch.randn(NUM_RANDOM, weight.shape[1], generator=generator).to(weight)
    unit = drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)
    which = torch.randint(NUM_RANDOM, shape, generator=generator).to(weight.device)
    return embedding(which, unit @ weight.T)
