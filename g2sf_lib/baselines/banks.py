"""One bank of both features (BTF), and how far normal cells lie from each bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from g2sf_lib.config import MODALITIES, BankConfig
from g2sf_lib.memory import MemoryBank, Rows, as_rows


@dataclass(frozen=True)
class Calibration:
    """Mean and standard deviation (M,) of each modality's distance on held-out normal cells."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, s0: Tensor) -> Calibration:
        """Return the calibration of (N, M) distances of held-out normal cells."""
        return cls(s0.mean(0), s0.std(0))


class SideBySide:
    """Features (N, D_pcd + D_rgb) of both modalities, put side by side when read as `Rows` (BTF).

    Each modality is divided by the square root of its length, so that none outweighs the other.
    """

    place = None

    def __init__(self, feat: dict[str, Tensor | Rows]):
        self.feat = {mod: as_rows(feat[mod]) for mod in MODALITIES}
        self.shape = (len(self.feat["rgb"]), sum(rows.shape[1] for rows in self.feat.values()))
        self.device = self.feat["rgb"].device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        parts = [rows[which] / rows.shape[1] ** 0.5 for rows in self.feat.values()]
        return torch.cat(parts, dim=1)

    @property
    def stored(self) -> SideBySide:
        """These rows themselves: hardly one pair of features occurs twice."""
        return self

    def to(self, device: torch.device | str) -> SideBySide:
        """Return the features on a device."""
        return SideBySide({mod: rows.to(device) for mod, rows in self.feat.items()})

    def blocks(self, size: int = 8192) -> Iterator[Tensor]:
        """Yield all cells' features in order, at most `size` of them at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))


def fit_concat_bank(
    feat: dict[str, Tensor | Rows], bank: BankConfig, progress: bool, device: torch.device | None
) -> MemoryBank:
    """Return one bank over concatenated standardised features of normal cells."""
    settings = (bank.bank_fraction, bank.coreset, bank.projection_eps)
    return MemoryBank.fit(SideBySide(feat), *settings, progress=progress, device=device)
