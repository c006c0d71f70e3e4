"""What simple methods make of distances to banks: rules of fusion, and one bank of both features.

Source: facts.md, section 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from g2sf_lib.config import MODALITIES, BankConfig
from g2sf_lib.memory import MemoryBank, Rows, as_rows

Rule = Literal["sum", "product", "max"]
RULES: tuple[Rule, ...] = ("sum", "product", "max")


@dataclass(frozen=True)
class Calibration:
    """Mean and standard deviation of each modality's distance on held-out normal cells.

    Attributes:
        mean, std: (M,), M in the order ("pcd", "rgb").
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, s0: Tensor) -> Calibration:
        """Return the calibration of (N, M) distances of held-out normal cells."""
        return cls(s0.mean(0), s0.std(0))


def fuse(method: Rule, s0: Tensor, calibration: Calibration) -> Tensor:
    """Return one score a cell from its distances to the nearest prototypes.

    Args:
        method: "sum" of the distances divided by their normal means; "product" of the same;
            "max", the larger z-score (the rule of Shape-Guided), cut at zero.
        s0: (n, M) distances.
        calibration: of held-out normal cells.

    Returns:
        (n,) scores, not negative.

    Raises:
        ValueError: for another method.
    """
    if method == "sum":
        return (s0 / calibration.mean).sum(-1)
    if method == "product":
        return (s0 / calibration.mean).prod(-1)
    if method == "max":
        return ((s0 - calibration.mean) / calibration.std).amax(-1).clamp_min(0)
    raise ValueError(f"fuse: method is {method!r}; expected one of {RULES}")


class SideBySide:
    """Features (N, D_pcd + D_rgb) of both modalities, put side by side when they are read (BTF).

    Each modality is divided by the square root of its length, so that the longer one does
    not outweigh the other. It is read as `Rows` are.

    Args:
        feat: mod -> (N, D_mod) standardised features.
    """

    place = None

    def __init__(self, feat: dict[str, Tensor | Rows]):
        self.feat = {mod: as_rows(feat[mod]) for mod in MODALITIES}
        self.shape = (len(self.feat["rgb"]), sum(rows.shape[1] for rows in self.feat.values()))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        parts = [rows[which] / rows.shape[1] ** 0.5 for rows in self.feat.values()]
        return torch.cat(parts, dim=1)

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.feat["rgb"].device

    def to(self, device: torch.device | str) -> SideBySide:
        """Return the features on a device."""
        return SideBySide({mod: rows.to(device) for mod, rows in self.feat.items()})

    @property
    def stored(self) -> SideBySide:
        """These rows themselves: hardly one pair of features occurs twice."""
        return self

    def blocks(self, size: int = 8192) -> Iterator[Tensor]:
        """Yield all cells' features in order, at most `size` of them at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


def fit_concat_bank(
    feat: dict[str, Tensor | Rows],
    bank: BankConfig,
    progress: bool = False,
    device: torch.device | None = None,
) -> MemoryBank:
    """Return one bank over concatenated standardised features of normal cells."""
    return MemoryBank.fit(
        SideBySide(feat),
        bank.bank_fraction,
        bank.coreset,
        bank.projection_eps,
        progress=progress,
        device=device,
    )


Nearest = dict[str, tuple[Tensor, Tensor]]  # bank -> (n,) prototype rows, (n,) distances


def find_nearest(
    banks: dict[str, MemoryBank],
    feat: dict[str, Tensor | Rows],
    device: torch.device | None = None,
) -> Nearest:
    """Return the nearest prototype of every cell in each bank.

    Args:
        banks: "pcd", "rgb" and "concat", or some of them.
        feat: mod -> (n, D_mod) standardised features.
        device: where the search runs, if not where the features lie.
    """
    found = {}
    for name, bank in banks.items():
        rows = SideBySide(feat) if name == "concat" else feat[name]
        index, distance = bank.query(rows, 1, device)
        found[name] = index[:, 0], distance[:, 0]
    return found


def reweighted(distance: float, feature: Tensor, prototype: int, bank: MemoryBank, num: int):
    """Return PatchCore's image score: the largest distance, more if its prototype is a lone one.

    The score is (1 - exp(s) / sum_b exp(s_b)) s, where s is the distance of the cell to its
    prototype and s_b are those to the `num` prototypes nearest to that prototype, itself
    included.

    Args:
        distance: s, of the cell that scores highest.
        feature: (D,) of that cell, as the bank's rows are.
        prototype: number of its nearest prototype.
        bank: whose prototypes are meant.
        num: neighbours of the prototype; where the bank is smaller, all of it.

    Returns:
        A number between 0 and `distance`.

    Source: PatchCore, Roth et al., CVPR 2022, Eq. 7.
    """
    proto = bank.prototypes.to(feature)
    around = torch.linalg.vector_norm(proto - proto[prototype], dim=1)
    nearest = around.topk(min(num, len(proto)), largest=False).indices
    s_b = torch.linalg.vector_norm(proto[nearest] - feature, dim=1)
    return float((1 - torch.exp(distance - torch.logsumexp(s_b, 0))).clamp_min(0) * distance)
