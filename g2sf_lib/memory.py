"""Memory bank: a greedy k-centre coreset of normal features and exact nearest neighbours.

Features of a data set do not fit into memory as float32 (3.5 GB of 1152 numbers a cell in 244
scans), so nothing here asks for more than a block of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.config import MODALITIES

_ROWS_AT_ONCE = 4096  # bounds the (rows, k, D) differences that exact distances need
_BLOCK_ROWS = 16384  # read at once; 75 MB of float32 at 1152 numbers a row
_POOL = 4096  # candidates of a round of the greedy choice: small enough for the CPU's cache
_AT_ONCE = 2**22  # distances computed at once, 16 MB
_GROUPS = 8  # of the approximate choice


class Rows:
    """Features of many cells, kept as they are stored and read as float32.

    `parts` are (n, D) tensors, one after another, perhaps of half precision or memory-mapped;
    `place` (N,) says which of their rows each cell has, None: cell i has row i; `scale` are mean
    and standard deviation by which rows are standardised when they are read.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        place: Tensor | None = None,
        scale: tuple[float, float] | None = None,
    ):
        self.parts, self.place, self.scale = list(parts), place, scale
        self._ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        num = int(self._ends[-1]) if place is None else len(place)
        self.shape = (num, self.parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the rows are, and where those that are read will be."""
        return self.parts[0].device

    @property
    def stored(self) -> Rows:
        """The rows that are stored, each once."""
        return Rows(self.parts, None, self.scale)

    def scaled(self, mean: float, std: float) -> Rows:
        """Return (rows - mean) / std, computed when they are read."""
        return Rows(self.parts, self.place, (mean, std))

    def to(self, device: torch.device | str) -> Rows:
        """Return the rows on a device, there as one tensor; on their own device, themselves."""
        if self.device == torch.device(device):
            return self
        place = None if self.place is None else self.place.to(device)
        return Rows([torch.cat([part.to(device) for part in self.parts])], place, self.scale)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Return (n, D) float32 features of a slice of the cells, of numbers, or of a mask."""
        if isinstance(which, slice) and self.place is None:
            start, stop, _ = which.indices(len(self))
            ends = zip(self.parts, self._ends.tolist(), strict=True)
            befores = [(part, end - len(part)) for part, end in ends]
            pieces = [p[max(start - before, 0) : max(stop - before, 0)] for p, before in befores]
            found = torch.cat(pieces).float()
        else:
            which = which.to(self.device) if isinstance(which, Tensor) else which
            found = self._gather(self.at(which).place.long())
        return found if self.scale is None else found.sub_(self.scale[0]).div_(self.scale[1])

    def _gather(self, rows: Tensor) -> Tensor:
        """Return the stored rows of the given numbers as a new float32 tensor."""
        if len(self.parts) == 1:
            return self.parts[0][rows].float()
        rows, order = rows.sort()  # neighbours in a file are read together
        bounds = torch.searchsorted(rows, self._ends).tolist()
        found = torch.empty(len(rows), self.shape[1], dtype=self.parts[0].dtype)
        start, before = 0, 0
        for part, stop in zip(self.parts, bounds, strict=True):
            if stop > start:
                found[order[start:stop]] = part[rows[start:stop] - before]
            start, before = stop, before + len(part)
        return found.float()

    def at(self, which: slice | Tensor) -> Rows:
        """Return some of the cells, by number or by mask; nothing is copied."""
        if self.place is not None:
            return Rows(self.parts, self.place[which], self.scale)
        place = torch.nonzero(which)[:, 0] if which.dtype == torch.bool else which
        return Rows(self.parts, place, self.scale)

    def blocks(self, size: int = _BLOCK_ROWS) -> Iterator[Tensor]:
        """Yield all cells' features in order, at most `size` of them at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @classmethod
    def joined(cls, several: Sequence[Rows]) -> Rows:
        """Return the cells of several `Rows`, one after another; nothing is copied."""
        parts = [part for rows in several for part in rows.parts]
        if all(rows.place is None for rows in several):
            return cls(parts)
        places, before = [], 0
        for rows in several:
            own = torch.arange(len(rows)) if rows.place is None else rows.place
            places.append(own.long() + before)
            before += len(rows.stored)
        return cls(parts, torch.cat(places))


def as_rows(features: Tensor | Rows) -> Rows:
    """Return a tensor as `Rows`; `Rows` as they are."""
    return Rows([features]) if isinstance(features, Tensor) else features


@dataclass(frozen=True)
class Standardiser:
    """One scalar mean and one scalar standard deviation a modality, as in M3DM."""

    mean: dict[str, float]
    std: dict[str, float]

    @classmethod
    def fit(cls, feat: Mapping[str, Tensor], which: Literal["both", "rgb"]) -> Standardiser:
        """Return the statistics of features mod -> (N, D_mod) of normal cells.

        With "rgb", as in the published preprocessing, "pcd" keeps 0 and 1. Features that do not
        vary are refused with a ValueError: they tell no cell from another.
        """
        means, stds = dict.fromkeys(MODALITIES, 0.0), dict.fromkeys(MODALITIES, 1.0)
        for mod in MODALITIES if which == "both" else ("rgb",):
            rows = as_rows(feat[mod])
            num = rows.shape[0] * rows.shape[1]
            means[mod] = mean = sum(float(b.sum(dtype=torch.float64)) for b in rows.blocks()) / num
            squares = sum(float((b.double() - mean).square().sum()) for b in rows.blocks(4096))
            stds[mod] = (squares / max(num - 1, 1)) ** 0.5
            if not stds[mod] > 0:
                raise ValueError(
                    f"{mod} features of all {len(feat[mod])} normal cells are {means[mod]:g};"
                    " expected features that vary"
                )
        return cls(means, stds)

    def __call__(self, feat: Mapping[str, Tensor | Rows]) -> dict[str, Tensor | Rows]:
        """Return (feat - mean) / std for every modality."""
        scaled = {}
        for mod in MODALITIES:
            mean, std, part = self.mean[mod], self.std[mod], feat[mod]
            scaled[mod] = part.scaled(mean, std) if isinstance(part, Rows) else (part - mean) / std
        return scaled


def bank_size(num: int, fraction: float) -> int:
    """Return how many prototypes a bank of a fraction of `num` cells has, shared ones aside."""
    return max(1, round(fraction * num))


def greedy_coreset(
    features: Tensor | Rows, num: int, start: int = 0, progress: bool = False
) -> Tensor:
    """Return rows (num,) of an exact greedy k-centre coreset: each the farthest from those before.

    The first n of them, from `start` on, are the coreset of size n; their coverage radius is at
    most twice the smallest possible. A plain loop reads all rows once a choice. Here a round takes
    the pool of rows farthest from those chosen so far, and chooses among them until what is left
    there is no farther than the rows outside may be, for distances only fall; then one product
    updates all rows' distances to all choices of the round.

    Source: PatchCore's selection, as in Section 3.2.
    """
    rows = as_rows(features)
    # Seen from the row in the middle norms are small, so little cancels below; a row rather
    # than the mean itself, because differences of rows on a lattice are exact, ties included.
    mean = sum(block.sum(0, dtype=torch.float64) for block in rows.blocks()).div(len(rows)).float()
    far = torch.cat([torch.linalg.vector_norm(block - mean, dim=1) for block in rows.blocks()])
    middle = rows[far.argmin()[None]]
    norm2 = torch.cat([(block - middle).square().sum(1) for block in rows.blocks()])
    distance2 = torch.full_like(norm2, torch.inf)
    chosen, done = torch.empty(num, dtype=torch.long), 0
    with tqdm(total=num, desc="coreset", disable=not progress, mininterval=1.0) as bar:
        while done < num:
            first = start if done == 0 else int(distance2.argmax())
            most = min(_POOL if done else 1, len(rows))
            top = distance2.topk(most)
            pool = torch.unique(torch.cat([top.indices, top.indices.new_tensor([first])]))
            outside = float(top.values[-1]) if most < len(rows) else -torch.inf
            near = rows[pool] - middle
            near2, left2 = norm2[pool], distance2[pool]
            at = int(torch.searchsorted(pool, first))
            began = done
            while True:
                chosen[done] = pool[at]
                # ||x - c||^2 = ||x||^2 + ||c||^2 - 2 x c: norms are computed once.
                to_chosen = torch.addmv(near2 + near2[at], near, near[at], alpha=-2.0)
                torch.minimum(left2, to_chosen, out=left2)
                left2[at] = -torch.inf  # never twice, even among duplicates
                at = int(left2.argmax())
                done += 1
                if done == num or not left2[at] > outside:
                    break
            _update(distance2, rows, norm2, middle, chosen[began:done].to(norm2.device))
            bar.update(done - began)
    return chosen


def _update(distance2: Tensor, rows: Rows, norm2: Tensor, middle: Tensor, chosen: Tensor) -> None:
    """Lower the squared distances (N,) of all rows to those to the chosen rows, in place."""
    centres, start = rows[chosen] - middle, 0
    for block in rows.blocks(_BLOCK_ROWS):
        for part in block.sub_(middle).split(max(_AT_ONCE // len(chosen), 256)):
            span = slice(start, start + len(part))
            products = torch.addmm(norm2[chosen], part, centres.T, alpha=-2.0).amin(1)
            torch.minimum(distance2[span], products.add_(norm2[span]), out=distance2[span])
            start += len(part)
    distance2[chosen] = -torch.inf


def _grouped(rows: Rows, num: int, progress: bool) -> Tensor:
    """Return rows (num,) chosen greedily in random groups, which take turns."""
    num_groups, picks = min(_GROUPS, num), []
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    order = torch.cat([order.new_tensor([0]), order[order != 0]])
    for group in range(num_groups):
        members = order[group::num_groups].to(rows.device)
        share = -(-(num - group) // num_groups)
        chosen = greedy_coreset(rows[members], share, progress=progress)
        picks.append(members.cpu()[chosen])
    turn = torch.cat([torch.arange(len(picked)) for picked in picks])
    return torch.cat(picks)[turn.argsort(stable=True)]


@dataclass(frozen=True)
class MemoryBank:
    """Prototypes (B, D) float32 of one modality, and which training rows (B,) they are."""

    prototypes: Tensor
    rows: Tensor

    @classmethod
    def fit(
        cls,
        features: Tensor | Rows,
        fraction: float = 0.1,
        coreset: Literal["greedy", "approximate", "random"] = "greedy",
        projection_eps: float | None = None,
        seed: int = 0,
        progress: bool = False,
        device: torch.device | None = None,
    ) -> MemoryBank:
        """Return the bank of a fraction of the (N, D) rows of normal cells, shared ones once.

        "approximate" is greedy in each of eight random groups of the rows, an eighth of the work
        for a radius about a tenth larger. `projection_eps` is the distortion of the sparse random
        projection in which rows are chosen (0.9 as published), None: in the features themselves;
        `seed` is that of the projection and of random rows. Rows are chosen on `device`, None:
        where the features are.
        """
        stored = as_rows(features).stored if len(features.shape) == 2 and len(features) else None
        if stored is None or not all(bool(torch.isfinite(b).all()) for b in stored.blocks()):
            raise ValueError(
                f"MemoryBank.fit: features of shape {tuple(features.shape)}; "
                "expected (N, D) with N >= 1 and finite values"
            )
        num = min(bank_size(len(features), fraction), len(stored))
        if num == len(stored):  # nothing to choose
            return cls(stored[:], torch.arange(num))
        if coreset == "random":
            order = torch.randperm(len(stored), generator=torch.Generator().manual_seed(seed))
            return cls(stored[order[:num]], order[:num])
        space, device = stored, device or stored.device
        if projection_eps is not None:
            space = as_rows(_project(stored, projection_eps, seed, device))
        choose = _grouped if coreset == "approximate" else greedy_coreset
        rows = choose(space.to(device), num, progress=progress)
        return cls(stored[rows], rows)

    @cached_property
    def _index(self):
        import faiss

        index = faiss.IndexFlatL2(self.prototypes.shape[1])
        index.add(self.prototypes.float().cpu().numpy())
        return index

    @cached_property
    def _on_gpu(self):
        """The prototypes on the GPU, and their faiss index there; None where faiss has none."""
        import faiss

        index = None
        if hasattr(faiss, "StandardGpuResources"):
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self._index)
        return self.prototypes.cuda(), index

    def query_without(
        self, feat: Tensor | Rows, k: int, own: Tensor, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what `query` does, where prototypes of numbers `own` come after all others."""
        num, size = k, len(self.prototypes)
        while True:  # most cells have few of their own scan's prototypes near
            index, distance = self.query(feat, max(min(num, size), k), device)
            is_own = torch.isin(index, own.to(index))
            most_own = int(is_own.sum(1).max()) if len(index) else 0
            if most_own + k <= index.shape[1] or index.shape[1] == size:
                break
            num *= 2
        order = is_own.int().argsort(dim=1, stable=True)[:, :k]
        return index.gather(1, order), distance.gather(1, order)

    def query(
        self, feat: Tensor | Rows, k: int, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the k nearest prototypes of (N, D) features, nearest first, exactly.

        Their rows (N, k) and Euclidean distances (N, k), ascending, are on the device of the
        features. faiss finds them by brute force (on a GPU that it was not built for, torch does),
        on `device` or where the features are; the distances are recomputed from the differences,
        because both expand the square and give a prototype a distance to itself that is not zero.
        """
        if k > len(self.prototypes):
            raise ValueError(
                f"MemoryBank.query: k is {k}, but the bank has {len(self.prototypes)} prototypes"
            )
        rows = as_rows(feat)
        blocks = rows.stored.blocks() if len(rows) else [rows[:]]
        found = [self._query_block(block, k, device or block.device) for block in blocks]
        index, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
        place = slice(None) if rows.place is None else rows.place
        return index[place], distance[place]

    def _query_block(self, block: Tensor, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
        feat = block.detach().to(device)
        is_here = not feat.is_cuda
        prototypes, search = (self.prototypes.to(feat), self._index) if is_here else self._on_gpu
        if search is None:
            index = nearest(feat, prototypes, k)
        else:
            index = torch.from_numpy(search.search(feat.cpu().contiguous().numpy(), k)[1])
            index = index.to(feat.device)
        pairs = zip(feat.split(_ROWS_AT_ONCE), index.split(_ROWS_AT_ONCE), strict=True)
        norms = [torch.linalg.vector_norm(f[:, None] - prototypes[i], dim=-1) for f, i in pairs]
        distance, order = torch.cat(norms).sort(dim=1, stable=True)
        return index.gather(1, order).to(block.device), distance.to(block.device)


def nearest(feat: Tensor, prototypes: Tensor, k: int) -> Tensor:
    """Return (N, k) rows of the k nearest prototypes by brute force in torch, nearest first."""
    middle = prototypes.mean(0)  # seen from there norms are small, so little cancels
    centred = prototypes - middle
    norm2 = centred.square().sum(1)
    size = max(2**26 // len(prototypes), 1)
    found = [
        torch.addmm(norm2, part - middle, centred.T, alpha=-2.0).topk(k, largest=False).indices
        for part in feat.split(size)
    ]
    return torch.cat(found)


def _project(rows: Rows, eps: float, seed: int, device: torch.device) -> Tensor | Rows:
    """Return a sparse random projection whose distances differ by at most about eps."""
    from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

    num, length = rows.shape
    components = int(johnson_lindenstrauss_min_dim(num, eps=eps))
    if components >= length:
        return rows
    fitted = SparseRandomProjection(components, random_state=seed).fit(np.zeros((1, length)))
    matrix = torch.from_numpy(fitted.components_.toarray()).to(device, torch.float32)
    return torch.cat([block.to(device) @ matrix.T for block in rows.blocks()])
