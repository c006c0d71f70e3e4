"""What people use instead of a learned metric, behind the same `fit` and `predict`.

Every method here sees the same cells, banks, silhouette rule and post-processing as
`detector.G2SF`; only the score of a cell differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from g2sf_lib.config import MODALITIES, BankConfig, Config, make_config
from g2sf_lib.datasets import Sample
from g2sf_lib.detector import (
    Prediction,
    fit_banks,
    pick_device,
    query_banks,
    to_prediction,
)
from g2sf_lib.features import (
    FeatureExtractor,
    PackedPatches,
    Patches,
    foreground_features,
    pack,
)
from g2sf_lib.memory import MemoryBank, Rows, Standardiser, as_rows

Method = Literal["rgb", "pcd", "sum", "max", "concat"]
METHODS: tuple[Method, ...] = ("rgb", "pcd", "sum", "max", "concat")


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


def fuse(method: Method, s0: Tensor, calibration: Calibration) -> Tensor:
    """Return one score a cell from its distances to the nearest prototypes.

    Args:
        method: "rgb" or "pcd", that modality's distance (PatchCore); "sum", the sum of
            distances divided by their normal means; "max", the larger z-score (the rule of
            Shape-Guided), cut at zero.
        s0: (n, M) distances.
        calibration: of held-out normal cells.

    Returns:
        (n,) scores, not negative.

    Raises:
        ValueError: for another method.
    """
    if method in MODALITIES:
        return s0[:, MODALITIES.index(method)]
    if method == "sum":
        return (s0 / calibration.mean).sum(-1)
    if method == "max":
        return ((s0 - calibration.mean) / calibration.std).amax(-1).clamp_min(0)
    raise ValueError(f"fuse: method is {method!r}; expected 'rgb', 'pcd', 'sum' or 'max'")


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


class Baseline:
    """A simple fusion as a detector.

    Args:
        method: see `fuse`; "concat" is the distance in one bank of concatenated features.
        config: settings shared with `G2SF`.
    """

    def __init__(self, method: Method, config: Config | None = None):
        if method not in METHODS:
            raise ValueError(f"Baseline: method is {method!r}; expected one of {METHODS}")
        self.method = method
        self.config = config if config is not None else make_config()

    @cached_property
    def extract(self) -> FeatureExtractor:
        """What turns a sample into patches; its networks are loaded once."""
        return FeatureExtractor(self.config.features, pick_device(self.config.device))

    def fit(self, samples: Sequence[Sample], held_out: Sequence[Sample] = ()) -> Baseline:
        """Fit the banks to normal scans and the calibration to held-out normal scans.

        Args:
            samples: preprocessed scans without defects.
            held_out: others of the same kind; "sum" and "max" cannot do without.

        Raises:
            ValueError: when no scan is given, or held-out scans are needed and missing.
        """
        if not samples:
            raise ValueError("Baseline.fit: no scans; expected at least 1")
        if self.method in ("sum", "max") and not held_out:
            raise ValueError(f"Baseline.fit: method {self.method!r} needs held_out normal scans")
        packed = [[pack(self.extract(s)) for s in some] for some in (samples, held_out)]
        return self.fit_patches(*packed)

    def fit_patches(
        self,
        patches: Iterable[Patches | PackedPatches],
        held_out: Iterable[Patches | PackedPatches],
    ) -> Baseline:
        """Fit to scans whose features are at hand."""
        feat = foreground_features(list(patches))
        self.standardiser = Standardiser.fit(feat, self.config.features.standardise)
        feat = self.standardiser(feat)
        if self.method == "concat":
            self.concat_bank = fit_concat_bank(feat, self.config.bank)
            return self
        self.banks = fit_banks(feat, self.config.bank)
        held_out = list(held_out)
        if held_out:
            normal = self.standardiser(foreground_features(held_out))
        else:
            normal = feat
        self.calibration = Calibration.fit(query_banks(self.banks, normal, 1)[1][:, 0])
        return self

    def predict(self, sample: Sample) -> Prediction:
        """Return score map and image score of one preprocessed scan."""
        return self.predict_patches(self.extract(sample))

    def predict_patches(self, patches: Patches | PackedPatches) -> Prediction:
        """Return score map and image score of one scan whose features are at hand."""
        feat = self.standardiser(foreground_features([patches]))
        if self.method == "concat":
            score = self.concat_bank.query(SideBySide(feat), 1)[1][:, 0]
        else:
            score = fuse(self.method, query_banks(self.banks, feat, 1)[1][:, 0], self.calibration)
        return to_prediction(score, patches, self.config.scoring)
