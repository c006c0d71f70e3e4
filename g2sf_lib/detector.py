"""G2SF as one detector: fit on normal scans, predict a score map and an image score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import interpolate

from g2sf_lib.cells import Cells, counted_cells, labelled_cells, labelled_scans, pasted_patches
from g2sf_lib.config import (
    MODALITIES,
    BankConfig,
    Config,
    ConfigError,
    ScoringConfig,
    flat_settings,
    make_config,
)
from g2sf_lib.datasets import Sample, check_normal, check_points
from g2sf_lib.features import FeatureExtractor, PackedPatches, Patches, foreground_features, pack
from g2sf_lib.fusion import Metric, aggregate
from g2sf_lib.memory import MemoryBank, Rows, Standardiser, bank_size
from g2sf_lib.store import read_described, write_described
from g2sf_lib.synthesis import synthesise_set
from g2sf_lib.training import train_metric


@dataclass(frozen=True)
class Prediction:
    """What a detector says of one scan: larger is more anomalous, and background is 0."""

    score_map: np.ndarray  # (map_size, map_size) float32, not negative
    image_score: float  # the largest cell score


@dataclass(frozen=True)
class CellScores:
    """What G2SF computes of n cells in K of their nearest neighbourhoods, from s to the score."""

    s: Tensor  # (n, K, M) distances divided by the normal mean
    w: Tensor  # (n, K, M) scale factors
    ell: Tensor  # (n, K) metrics
    cell_score: Tensor  # (n,) aggregated over the k + 1 nearest neighbourhoods (Eq. 11)
    w1_score: Tensor  # (n,) the same with w = 1 and the trained sigma, the control

    def take(self, rows: Tensor) -> CellScores:
        """Return what is known of some cells: their numbers, or a bool per cell."""
        return CellScores(**{name: value[rows] for name, value in vars(self).items()})


def pick_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" means here."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ValueError("device 'cuda', but torch sees no CUDA device; expected 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and has_cuda else "cpu")


def to_prediction(
    cell_score: Tensor, patches: Patches | PackedPatches, scoring: ScoringConfig
) -> Prediction:
    """Return map and image score from the (n,) scores of one scan's foreground cells, row by row.

    The map is upsampled bilinearly and smoothed with a Gaussian; the image score is the largest
    cell score before smoothing (Section 3.6).
    """
    cells = torch.zeros(len(patches.foreground))
    cells[patches.foreground.cpu()] = cell_score.detach().float().cpu()
    cells[~counted_cells(patches, scoring.silhouette).cpu()] = 0.0
    cell_map, size = cells.view(1, 1, *patches.grid), (scoring.map_size, scoring.map_size)
    score_map = interpolate(cell_map, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    if scoring.quantise and score_map.max() > 0:
        top = score_map.max()
        score_map = np.floor(score_map / top * 255).astype(np.float32) / 255 * top
    if scoring.blur_sigma_px:
        score_map = gaussian_filter(score_map, scoring.blur_sigma_px)
    return Prediction(score_map.astype(np.float32), float(cells.max()))


def fit_banks(
    feat: dict[str, Tensor | Rows],
    bank: BankConfig,
    progress: bool = False,
    device: torch.device | None = None,
) -> dict[str, MemoryBank]:
    """Return a bank a modality from standardised features of normal foreground cells."""
    how = (bank.bank_fraction, bank.coreset, bank.projection_eps)
    shown = {"progress": progress, "device": device}
    return {mod: MemoryBank.fit(feat[mod], *how, **shown) for mod in MODALITIES}


def query_banks(
    banks: dict[str, MemoryBank],
    feat: dict[str, Tensor | Rows],
    num: int,
    device: torch.device | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return mod -> (N, num) prototype rows, and distances (N, num, M), nearest first.

    They lie where the features do; `device` says where the search runs, if elsewhere.
    """
    found = [banks[mod].query(feat[mod], num, device) for mod in MODALITIES]
    index, s = zip(*found, strict=True)
    return dict(zip(MODALITIES, index, strict=True)), torch.stack(s, dim=-1)


class G2SF:
    """Geometry-guided score fusion behind `fit` and `predict`; samples come in preprocessed."""

    def __init__(self, config: Config | None = None):
        self.config = config if config is not None else make_config()
        self.standardiser: Standardiser | None = None
        self.banks: dict[str, MemoryBank] = {}
        self.metric: Metric | None = None
        self.history: list[dict[str, float]] = []

    @property
    def device(self) -> torch.device:
        """Where features are computed and the metric is trained."""
        return pick_device(self.config.device)

    @cached_property
    def extract(self) -> FeatureExtractor:
        """What turns a sample into patches; its networks are loaded once."""
        return FeatureExtractor(self.config.features, self.device)

    def fit(self, samples: Sequence[Sample], progress: bool = False) -> G2SF:
        """Fit bank and metric to normal scans; return the detector itself.

        Raises:
            ScanError: for fewer than two scans, or one with a defect; see `check_normal`.
            ConfigError: for a bank too small for the neighbours that training looks at.
        """
        check_normal("train", samples, "G2SF.fit")
        config, extract = self.config, self.extract
        normal = [pack(extract(sample)) for sample in samples]
        self.fit_bank(normal, progress)
        how = (config.synthesis.num_synthetic, config.category, config.synthesis, config.seed)
        synthetic = synthesise_set(samples, samples, samples, *how)
        pasted, labels = zip(*(pasted_patches(s, extract, config) for s in synthetic), strict=True)
        return self.fit_metric(normal, pasted, labels, progress)

    def fit_metric(
        self,
        normal: Sequence[Patches | PackedPatches],
        pasted: Sequence[Patches | PackedPatches],
        labels: Sequence[Tensor],
        progress: bool = False,
    ) -> G2SF:
        """Train LSPN and sigma (Sections 3.4 and 3.5) on cells of normal and synthetic scans."""
        is_untouched = self.config.synthesis.normal_cells == "untouched"
        scans = labelled_scans(normal, pasted, labels, is_untouched)
        args = (self.config, self.standardiser, self.banks, scans, normal, self.device)
        return self.fit_cells(labelled_cells(*args, progress=progress), progress=progress)

    def fit_bank(self, patches: Sequence[Patches | PackedPatches], progress: bool = False) -> G2SF:
        """Fit standardiser and banks (Section 3.2) to cells of normal scans.

        Raises:
            ConfigError: for a bank too small for the neighbours that training looks at.
        """
        feat = foreground_features(patches)
        check_bank_size(self.config, len(patches), {mod: len(feat[mod]) for mod in MODALITIES})
        self.standardiser = Standardiser.fit(feat, self.config.features.standardise)
        self.banks = fit_banks(self.standardiser(feat), self.config.bank, progress, self.device)
        return self

    def fit_cells(
        self,
        cells: Cells,
        checkpoint: Path | None = None,
        progress: bool = False,
        after_epoch: Callable[[int, Metric], None] | None = None,
    ) -> G2SF:
        """Train LSPN and sigma on labelled cells whose neighbours are at hand."""
        c, given = self.config, (cells.to(self.device), self.prototypes())
        settings = (c.model, c.loss, c.training, c.seed)
        watched = (checkpoint, progress, after_epoch)
        self.metric, self.history = train_metric(*given, *settings, *watched)
        return self

    def prototypes(self) -> dict[str, Tensor]:
        """Return mod -> (B_mod, D_mod) standardised prototypes, on the detector's device."""
        return {mod: self.banks[mod].prototypes.to(self.device) for mod in MODALITIES}

    def score_cells(self, feat: dict[str, Tensor | Rows]) -> CellScores:
        """Return what G2SF says of cells, mod -> (n, D_mod) features as extracted."""
        if self.metric is None:
            raise ValueError("G2SF: the detector is not fitted; call fit or load first")
        feat = self.standardiser(feat)
        return self.fuse_cells(feat, *self.neighbours(feat))

    def neighbours(self, feat: dict[str, Tensor | Rows]) -> tuple[dict[str, Tensor], Tensor]:
        """Return mod -> (n, k + 1) prototype rows and (n, k + 1, M) distances, nearest first."""
        return query_banks(self.banks, feat, self.config.model.k + 1, self.device)

    def fuse_cells(
        self, feat: dict[str, Tensor | Rows], index: dict[str, Tensor], s: Tensor
    ) -> CellScores:
        """Return what `score_cells` does, for standardised features with their `neighbours`."""
        k, how = self.config.model.k, self.config.scoring.aggregate
        s = s.to(self.device)
        w = self.metric.scale_factors(feat, self.prototypes(), index, s)
        with torch.no_grad():
            ell = self.metric.ell(w, s)
            euclidean = self.metric.ell(torch.ones_like(w), s)
        score, w1_score = (aggregate(x[:, : k + 1], how) for x in (ell, euclidean))
        return CellScores(s / self.metric.s_mean, w, ell, score, w1_score)

    def predict(self, sample: Sample) -> Prediction:
        """Return score map and image score of one preprocessed scan, or raise a ScanError."""
        check_points(sample.xyz, sample.name)
        return self.predict_patches(self.extract(sample))

    def predict_patches(self, patches: Patches | PackedPatches) -> Prediction:
        """Return score map and image score of one scan whose features are at hand."""
        scores = self.score_cells(patches.cells)
        return to_prediction(scores.cell_score, patches, self.config.scoring)

    def save(self, directory: Path | str) -> None:
        """Write a fitted detector: ``detector.safetensors`` and ``detector.json``."""
        if self.metric is None:
            raise ValueError("G2SF.save: the detector is not fitted; call fit first")
        describe = {
            "config": flat_settings(self.config),
            "standardiser": dataclasses.asdict(self.standardiser),
            "direction_form": self.metric.lspn.direction_form,
            "dims": self.metric.lspn.dims,
            "history": self.history,
        }
        tensors = self.metric.state_dict() | bank_tensors(self.banks)
        write_described(Path(directory) / "detector.json", describe, tensors)

    @classmethod
    def load(cls, directory: Path | str, device: str = "auto") -> G2SF:
        """Return a saved detector.

        Raises:
            StoredFileError: naming the file that is missing, damaged or of another version.
        """
        known, tensors = read_described(Path(directory) / "detector.json")
        detector = cls(make_config(**(known["config"] | {"device": device})))
        given = (known["dims"], detector.config.model, tensors["s_mean"], known["direction_form"])
        detector.metric = Metric.untrained(*given)
        learned = {n: t for n, t in tensors.items() if not n.startswith("bank.")}
        detector.metric.load_state_dict(learned)
        detector.metric.to(detector.device).eval()
        detector.banks = banks_from(tensors)
        detector.standardiser = Standardiser(**known["standardiser"])
        detector.history = known["history"]
        return detector


def check_bank_size(config: Config, num_scans: int, cells: dict[str, int]) -> None:
    """Refuse training scans whose banks would hold fewer prototypes than are looked for."""
    need, share = 2 * config.model.k + 1, config.bank.bank_fraction
    for mod, num in cells.items():
        if (size := bank_size(num, share)) < need:
            raise ConfigError(
                f"{config.category}: the {mod} bank would hold {size} prototypes, bank_fraction"
                f" {share:g} of {num} cells of {num_scans} training scans; expected at least"
                f" {need}, for training looks at 2 k + 1 neighbours, k = {config.model.k}: take"
                " more scans, a larger bank_fraction or a smaller k"
            )


def bank_tensors(banks: dict[str, MemoryBank]) -> dict[str, Tensor]:
    """Return the tensors of several banks under their names."""
    return {
        f"bank.{name}.{field.name}": getattr(bank, field.name)
        for name, bank in banks.items()
        for field in dataclasses.fields(bank)
    }


def banks_from(tensors: dict[str, Tensor]) -> dict[str, MemoryBank]:
    """Return the banks that `bank_tensors` took apart."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("bank."):
            _, bank, attribute = name.split(".")
            parts.setdefault(bank, {})[attribute] = value
    return {name: MemoryBank(**attributes) for name, attributes in parts.items()}
