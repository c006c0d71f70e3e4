"""Memory bank: a greedy k-centre coreset of normal features and exact nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.config import MODALITIES

_ROWS_AT_ONCE = 4096  # bounds the (rows, k, D) differences that exact distances need


@dataclass(frozen=True)
class Standardiser:
    """One scalar mean and one scalar standard deviation a modality (facts of M3DM)."""

    mean: dict[str, float]
    std: dict[str, float]

    @classmethod
    def fit(cls, feat: Mapping[str, Tensor], which: Literal["both", "rgb"]) -> Standardiser:
        """Return the statistics of training features; a modality left out keeps 0 and 1.

        Args:
            feat: mod -> (N, D_mod) features of normal foreground cells.
            which: "both", or "rgb" as in the published preprocessing.
        """
        chosen = MODALITIES if which == "both" else ("rgb",)
        mean = {mod: float(feat[mod].mean()) if mod in chosen else 0.0 for mod in MODALITIES}
        std = {mod: float(feat[mod].std()) if mod in chosen else 1.0 for mod in MODALITIES}
        return cls(mean, std)

    def __call__(self, feat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return (feat - mean) / std for every modality."""
        return {mod: (feat[mod] - self.mean[mod]) / self.std[mod] for mod in MODALITIES}


def _greedy(features: Tensor, num: int, start: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Return chosen rows (num,) and the coverage radius after each choice (num,)."""
    if not 1 <= num <= len(features):
        raise ValueError(f"greedy_coreset: num is {num}; expected 1 to {len(features)}")
    # Seen from the row in the middle norms are small, so little cancels below; a row rather
    # than the mean itself, because differences of rows on a lattice are exact, ties included.
    middle = torch.linalg.vector_norm(features - features.mean(0), dim=1).argmin()
    centred = features - features[middle]
    norm2 = centred.square().sum(1)
    distance2 = torch.full_like(norm2, torch.inf)
    chosen = torch.empty(num, dtype=torch.long)
    radius = torch.empty(num)
    row = start
    for step in tqdm(range(num), desc="greedy coreset", disable=not progress, mininterval=1.0):
        chosen[step] = row
        # ||x - c||^2 = ||x||^2 + ||c||^2 - 2 x c: the norms are computed once, not a step.
        to_row = torch.addmv(norm2 + norm2[row], centred, centred[row], alpha=-2.0)
        torch.minimum(distance2, to_row, out=distance2)
        distance2[row] = -torch.inf  # never twice, even among duplicates
        row = int(distance2.argmax())
        radius[step] = distance2[row].clamp_min(0).sqrt()
    return chosen, radius


def greedy_coreset(features: Tensor, num: int, start: int = 0, progress: bool = False) -> Tensor:
    """Return rows of an exact greedy k-centre coreset: each the farthest from those before.

    Args:
        features: (N, D).
        num: how many rows, 1 to N.
        start: the first row.
        progress: whether a progress bar is shown.

    Returns:
        (num,) distinct rows in the order of choice; the first n of them are the coreset of
        size n. Their coverage radius is at most twice the smallest possible.

    Raises:
        ValueError: when `num` is out of range.

    Source: PatchCore's selection, as in Section 3.2.
    """
    return _greedy(features, num, start, progress)[0]


@dataclass(frozen=True)
class MemoryBank:
    """Prototypes of one modality.

    Attributes:
        prototypes: (B, D) float32.
        rows: (B,) which training rows they are.
        radius: (B,) distance of the farthest training row after each choice, in the space
            the choice was made in; empty for a random bank.
    """

    prototypes: Tensor
    rows: Tensor
    radius: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def fit(
        cls,
        features: Tensor,
        fraction: float = 0.1,
        coreset: Literal["greedy", "random"] = "greedy",
        projection_eps: float | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> MemoryBank:
        """Return the bank of a fraction of the rows.

        Args:
            features: (N, D) normal features.
            fraction: share of rows kept, in (0, 1].
            coreset: "greedy" k-centre, or "random" rows.
            projection_eps: choose in a sparse random projection with this distortion
                (0.9 as published); None: in the features themselves.
            seed: of the projection and of random rows.
            progress: whether a progress bar is shown.

        Raises:
            ValueError: for empty or non-finite features.
        """
        if features.ndim != 2 or not len(features) or not torch.isfinite(features).all():
            raise ValueError(
                f"MemoryBank.fit: features of shape {tuple(features.shape)}; "
                "expected (N, D) with N >= 1 and finite values"
            )
        num = max(1, round(fraction * len(features)))
        if coreset == "random":
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randperm(len(features), generator=generator)[:num]
            return cls(features[rows].clone(), rows)
        space = features
        if projection_eps is not None:
            space = _project(features, projection_eps, seed)
        rows, radius = _greedy(space, num, 0, progress)
        return cls(features[rows].clone(), rows, radius)

    @cached_property
    def _index(self):
        """The faiss index over the prototypes, on the GPU where faiss and they are there."""
        import faiss

        index = faiss.IndexFlatL2(self.prototypes.shape[1])
        if self.prototypes.is_cuda and hasattr(faiss, "StandardGpuResources"):
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
        index.add(self.prototypes.float().cpu().numpy())
        return index

    def query(self, feat: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k nearest prototypes of each feature, nearest first, exactly.

        faiss finds them by brute force; the distances are then recomputed from the
        differences, because faiss expands the square and gives a prototype a distance to
        itself that is not zero.

        Args:
            feat: (N, D).
            k: how many, at most the size of the bank.

        Returns:
            index: (N, k) rows of `prototypes`.
            distance: (N, k) Euclidean, ascending; 0 for a prototype itself.

        Raises:
            ValueError: when the bank has fewer than k prototypes.
        """
        if k > len(self.prototypes):
            raise ValueError(
                f"MemoryBank.query: k is {k}, but the bank has {len(self.prototypes)} prototypes"
            )
        _, found = self._index.search(feat.detach().float().cpu().contiguous().numpy(), k)
        index = torch.from_numpy(found).to(feat.device)
        prototypes = self.prototypes.to(feat)
        distance = torch.cat(
            [
                torch.linalg.vector_norm(part[:, None] - prototypes[rows], dim=-1)
                for part, rows in zip(
                    feat.split(_ROWS_AT_ONCE), index.split(_ROWS_AT_ONCE), strict=True
                )
            ]
        )
        distance, order = distance.sort(dim=1, stable=True)
        return index.gather(1, order), distance


def _project(features: Tensor, eps: float, seed: int) -> Tensor:
    """Return a sparse random projection whose distances differ by at most about eps."""
    from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

    if johnson_lindenstrauss_min_dim(len(features), eps=eps) >= features.shape[1]:
        return features
    projection = SparseRandomProjection(eps=eps, random_state=seed)
    return torch.from_numpy(projection.fit_transform(features.cpu().numpy())).to(features)
