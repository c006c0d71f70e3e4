"""G2SF as one detector: fit on normal scans, predict a score map and an image score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.config import (
    MODALITIES,
    BankConfig,
    CellsConfig,
    Config,
    ConfigError,
    ScoringConfig,
    leaf_fields,
    make_config,
)
from g2sf_lib.datasets import Sample, check_normal, check_points
from g2sf_lib.features import (
    FeatureExtractor,
    PackedPatches,
    Patches,
    cell_labels,
    foreground_features,
    pack,
)
from g2sf_lib.fusion import LSPN, GlobalScale, aggregate
from g2sf_lib.memory import MemoryBank, Rows, Standardiser, bank_size
from g2sf_lib.storage import read_described, write_described
from g2sf_lib.synthesis import CHANGED, synthesise_set
from g2sf_lib.training import Cells, Metric, train_metric


@dataclass(frozen=True)
class Prediction:
    """What a detector says of one scan.

    Attributes:
        score_map: (map_size, map_size) float32, not negative; larger is more anomalous;
            0 on background.
        image_score: the largest cell score.
    """

    score_map: np.ndarray
    image_score: float


@dataclass(frozen=True)
class CellScores:
    """What G2SF computes of n cells, from distances to scores.

    Attributes:
        s: (n, k + 1, M) distances divided by the normal mean.
        w: (n, k + 1, M) scale factors.
        ell: (n, k + 1) metrics.
        cell_score: (n,) aggregated over neighbourhoods.
    """

    s: Tensor
    w: Tensor
    ell: Tensor
    cell_score: Tensor


def pick_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" means here.

    Raises:
        ValueError: for "cuda" where torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device is 'cuda', but torch sees no CUDA device; expected 'auto' or 'cpu'"
        )
    use_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def counted_cells(patches: Patches | PackedPatches, silhouette: str) -> Tensor:
    """Return the cells whose scores count, by one rule for every method.

    Args:
        patches: one scan.
        silhouette: "exclude" leaves out foreground cells with a background cell among
            their eight neighbours, or at the edge of the image: there the support of
            a point feature is cut. "count" leaves none out.

    Returns:
        (cells,) bool, all foreground where nothing would be left.
    """
    if silhouette == "count":
        return patches.foreground
    inner = binary_erosion(patches.foreground.cpu().numpy().reshape(patches.grid), np.ones((3, 3)))
    inner = torch.from_numpy(inner.reshape(-1)).to(patches.foreground.device)
    return inner if inner.any() else patches.foreground


def to_prediction(
    cell_score: Tensor, patches: Patches | PackedPatches, scoring: ScoringConfig
) -> Prediction:
    """Return map and image score from the scores of one scan's foreground cells.

    The map is upsampled bilinearly and smoothed with a Gaussian; the image score is the
    largest cell score before smoothing (Section 3.6).

    Args:
        cell_score: (n,) scores of ``patches.foreground``, in row-major order.
        patches: the scan's cells.
        scoring: silhouette rule, map size, blur, quantisation.
    """
    cells = torch.zeros(len(patches.foreground))
    cells[patches.foreground.cpu()] = cell_score.detach().float().cpu()
    cells[~counted_cells(patches, scoring.silhouette).cpu()] = 0.0
    size = (scoring.map_size, scoring.map_size)
    score_map = torch.nn.functional.interpolate(
        cells.view(1, 1, *patches.grid), size, mode="bilinear", align_corners=False
    )[0, 0].numpy()
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
    return {
        mod: MemoryBank.fit(
            feat[mod],
            bank.bank_fraction,
            bank.coreset,
            bank.projection_eps,
            progress=progress,
            device=device,
        )
        for mod in MODALITIES
    }


def query_banks(
    banks: dict[str, MemoryBank],
    feat: dict[str, Tensor | Rows],
    num: int,
    device: torch.device | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return mod -> (N, num) prototype rows, and distances (N, num, M), nearest first.

    They lie where the features do; `device` says where the search runs, if elsewhere.
    """
    found = {mod: banks[mod].query(feat[mod], num, device) for mod in MODALITIES}
    return {mod: found[mod][0] for mod in MODALITIES}, torch.stack(
        [found[mod][1] for mod in MODALITIES], dim=-1
    )


def pasted_patches(
    sample: Sample, extract: FeatureExtractor, config: Config, whole: bool = False
) -> tuple[PackedPatches, Tensor]:
    """Return features and labels of a synthetic scan.

    Args:
        sample: of `synthesise`.
        extract: holds the networks.
        config: how cells are labelled, and where normal cells come from.
        whole: whether all cells are described; else only those that are trained on.

    Returns:
        patches; (cells, M) bool, which cells a paste changed, and in which modality.
    """
    synthesis = config.synthesis
    pasted = cell_labels(sample.mask, config.features.grid_size, synthesis.label_rule)
    labels = pasted[:, None] & torch.tensor(CHANGED[sample.label])
    needs_all = whole or synthesis.normal_cells == "pasted"
    return pack(extract(sample, None if needs_all else pasted)), labels


@dataclass(frozen=True)
class LabelledScan:
    """A scan whose cells are trained on: a normal one, or a synthetic anomaly.

    Attributes:
        patches: its features; of a synthetic one only where they are needed.
        labels: (cells, M) bool, which cells were changed by a paste, and in which modality.
        target: number of the normal training scan that it is, or that its pastes stand on.
        outline: the patches that say which cells are at the outline of the object.
    """

    patches: Patches | PackedPatches
    labels: Tensor
    target: int
    outline: Patches | PackedPatches


def labelled_scans(
    normal: Sequence[Patches | PackedPatches],
    pasted: Sequence[Patches | PackedPatches],
    labels: Sequence[Tensor],
    is_untouched: bool,
) -> list[LabelledScan]:
    """Return the scans whose cells are trained on.

    Args:
        normal: of the training scans.
        pasted: of the synthetic anomalies; number i stands on normal scan i modulo their number.
        labels: of the synthetic anomalies, (cells, M) bool each; (cells,) where pastes change both
            modalities.
        is_untouched: whether normal cells are those of the training scans, and not what pastes
            leave of them.
    """
    none = torch.zeros(normal[0].grid[0] * normal[0].grid[1], len(MODALITIES), dtype=torch.bool)
    found = [LabelledScan(p, none, t, p) for t, p in enumerate(normal)] if is_untouched else []
    for number, (patches, label) in enumerate(zip(pasted, labels, strict=True)):
        target = number % len(normal)
        outline = normal[target] if is_untouched else patches
        label = label if label.ndim == 2 else label[:, None].expand(-1, len(MODALITIES))
        found.append(LabelledScan(patches, label, target, outline))
    return found


def kept_cells(scan: LabelledScan, cells: CellsConfig, outline: str) -> Tensor:
    """Return (n,) bool: which of a scan's foreground cells are trained on, or judged.

    Left out are cells at the outline, and cells within reach of a paste that are not labelled
    themselves: their features are neither those of a sound part nor of a defect.

    Args:
        scan: whose cells.
        cells: how far a paste reaches.
        outline: "exclude" or "count", as in `counted_cells`; background of `scan.outline` where
            a paste stands is never left out by "count".
    """
    grid, pasted = scan.patches.grid, scan.labels.any(1)
    among = counted_cells(scan.outline, outline).cpu()
    if outline == "count":
        among = among | pasted
    side = 2 * cells.reach_cells + 1
    near = binary_dilation(pasted.numpy().reshape(grid), np.ones((side, side)))
    kept = among & (pasted | ~torch.from_numpy(near.reshape(-1)))
    return kept[scan.patches.foreground.cpu()]


def own_prototypes(
    banks: dict[str, MemoryBank], normal: Sequence[Patches | PackedPatches]
) -> list[dict[str, Tensor]]:
    """Return mod -> numbers of the prototypes that come from it, for each training scan."""
    found: list[dict[str, Tensor]] = [{} for _ in normal]
    for mod in MODALITIES:
        ends = torch.tensor([len(p.cells[mod].stored) for p in normal]).cumsum(0)
        scan = torch.searchsorted(ends, banks[mod].rows.cpu(), right=True)
        for number, own in enumerate(found):
            own[mod] = torch.nonzero(scan == number)[:, 0]
    return found


def scan_neighbours(
    banks: dict[str, MemoryBank],
    feat: dict[str, Rows],
    num: int,
    own: dict[str, Tensor] | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return ``MOD.index`` and ``MOD.s``, (n, num) each, of the stored features of one scan.

    Args:
        banks: of both modalities.
        feat: mod -> standardised features of its cells; those that cells share are searched once.
        num: how many neighbours.
        own: prototypes of the scan itself, which are left out; None: none are.
        device: where the search runs.
    """
    found = {}
    for mod in MODALITIES:
        ask = (feat[mod].stored, num) if own is None else (feat[mod].stored, num, own[mod])
        query = banks[mod].query if own is None else banks[mod].query_without
        index, s = query(*ask, device=device)
        found |= {f"{mod}.index": index.int(), f"{mod}.s": s}
    return found


def labelled_cells(
    scans: Sequence[LabelledScan],
    found: Sequence[dict[str, Tensor]],
    cells: CellsConfig,
    standardiser: Standardiser,
) -> Cells:
    """Return the cells of scans that are trained on, with their neighbourhoods.

    Args:
        scans: of `labelled_scans`.
        found: `scan_neighbours` of each.
        cells: which are kept.
        standardiser: from normal training cells.
    """
    parts: dict[str, list[Tensor]] = {}
    for number, (scan, neighbours) in enumerate(zip(scans, found, strict=True)):
        kept = torch.nonzero(kept_cells(scan, cells, cells.outline_cells))[:, 0]
        known = {"image": number, "target": scan.target}
        row = {name: torch.full((len(kept),), value) for name, value in known.items()}
        row["changed"] = scan.labels[scan.patches.foreground.cpu()][kept]
        for mod in MODALITIES:
            rows = scan.patches.cells[mod]
            place = kept if rows.place is None else rows.place.cpu().long()[kept]
            row[mod] = torch.cat(rows.parts)[place]  # as stored: half the memory
            row |= {f"{mod}.{name}": neighbours[f"{mod}.{name}"][place] for name in ("index", "s")}
        for name, value in row.items():
            parts.setdefault(name, []).append(value)
    whole = {name: torch.cat(values) for name, values in parts.items()}
    return Cells(
        standardiser({mod: Rows([whole[mod]]) for mod in MODALITIES}),
        {mod: whole[f"{mod}.index"] for mod in MODALITIES},
        torch.stack([whole[f"{mod}.s"] for mod in MODALITIES], dim=-1),
        whole["changed"].any(1),
        whole["image"],
        whole["changed"],
        whole["target"],
    )


class G2SF:
    """Geometry-guided score fusion behind `fit` and `predict`.

    Args:
        config: settings; the sections data and preprocess are not read here, because
            samples come in preprocessed.
    """

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

        Synthetic anomalies are made from the same scans (Section 3.7); their points come
        from the same scans too, since a detector sees no other category.

        Args:
            samples: preprocessed scans without defects, at least two.
            progress: whether progress bars are shown.

        Raises:
            ScanError: for fewer than two scans, or one with a defect; see `check_normal`.
            ConfigError: for a bank too small for the neighbours that training looks at.
        """
        check_normal("train", samples, "G2SF.fit")
        config, extract = self.config, self.extract
        normal = [pack(extract(sample)) for sample in samples]
        self.fit_bank(normal, progress)
        synthetic = synthesise_set(
            samples,
            samples,
            samples,
            config.synthesis.num_synthetic,
            config.category,
            config.synthesis,
            config.seed,
        )
        pasted, labels = zip(*(pasted_patches(s, extract, config) for s in synthetic), strict=True)
        return self.fit_metric(normal, pasted, labels, progress)

    def fit_metric(
        self,
        normal: Sequence[Patches | PackedPatches],
        pasted: Sequence[Patches | PackedPatches],
        labels: Sequence[Tensor],
        progress: bool = False,
    ) -> G2SF:
        """Train LSPN and sigma (Sections 3.4 and 3.5) on cells of normal and synthetic scans.

        Args:
            normal: the scans that `fit_bank` was given.
            pasted: one entry a synthetic scan, see `labelled_scans`.
            labels: of them.
            progress: whether progress bars are shown.
        """
        config = self.config
        is_untouched = config.synthesis.normal_cells == "untouched"
        scans = labelled_scans(normal, pasted, labels, is_untouched)
        own = own_prototypes(self.banks, normal)
        found = []
        for scan in tqdm(scans, desc="neighbours", disable=not progress):
            feat = self.standardiser(scan.patches.cells)
            others = own[scan.target] if config.cells.own_prototypes == "leave_out" else None
            num = 2 * config.model.k + 1
            found.append(scan_neighbours(self.banks, feat, num, others, self.device))
        cells = labelled_cells(scans, found, config.cells, self.standardiser)
        return self.fit_cells(cells, progress=progress)

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
        """Train LSPN and sigma on labelled cells whose neighbours are at hand.

        Args:
            cells: labelled, with their neighbourhoods.
            checkpoint: where an interrupted training goes on from.
            progress: whether a progress bar is shown.
            after_epoch: see `train_metric`.
        """
        config = self.config
        self.metric, self.history = train_metric(
            cells.to(self.device),
            self.prototypes(),
            config.model,
            config.loss,
            config.training,
            config.seed,
            checkpoint,
            progress,
            after_epoch,
        )
        return self

    def prototypes(self) -> dict[str, Tensor]:
        """Return mod -> (B_mod, D_mod) standardised prototypes, on the detector's device."""
        return {mod: self.banks[mod].prototypes.to(self.device) for mod in MODALITIES}

    def score_cells(self, feat: dict[str, Tensor | Rows]) -> CellScores:
        """Return distances, scale factors, metrics and scores of cells, on the device.

        Args:
            feat: mod -> (n, D_mod), features as extracted, not standardised.
        """
        if self.metric is None:
            raise ValueError("G2SF: the detector is not fitted; call fit or load first")
        feat = self.standardiser(feat)
        return self.fuse_cells(feat, *self.neighbours(feat))

    def neighbours(self, feat: dict[str, Tensor | Rows]) -> tuple[dict[str, Tensor], Tensor]:
        """Return mod -> (n, k + 1) prototype rows and (n, k + 1, M) distances, nearest first.

        Args:
            feat: mod -> (n, D_mod) standardised features.
        """
        return query_banks(self.banks, feat, self.config.model.k + 1, self.device)

    def fuse_cells(
        self, feat: dict[str, Tensor | Rows], index: dict[str, Tensor], s: Tensor
    ) -> CellScores:
        """Return what `score_cells` does, for standardised features with their `neighbours`."""
        s = s.to(self.device)
        w = self.metric.scale_factors(feat, self.prototypes(), index, s)
        with torch.no_grad():
            ell = self.metric.ell(w, s)
        scores = aggregate(ell, self.config.scoring.aggregate)
        return CellScores(s / self.metric.s_mean, w, ell, scores)

    def predict(self, sample: Sample) -> Prediction:
        """Return score map and image score of one preprocessed scan.

        Raises:
            ScanError: for points that are none; see `check_points`.
        """
        check_points(sample.xyz, sample.name)
        return self.predict_patches(self.extract(sample))

    def predict_patches(self, patches: Patches | PackedPatches) -> Prediction:
        """Return score map and image score of one scan whose features are at hand."""
        scores = self.score_cells(patches.cells)
        return to_prediction(scores.cell_score, patches, self.config.scoring)

    def save(self, directory: Path | str) -> None:
        """Write a fitted detector: ``detector.safetensors`` and ``detector.json``.

        Raises:
            ValueError: when the detector is not fitted.
        """
        if self.metric is None:
            raise ValueError("G2SF.save: the detector is not fitted; call fit first")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {f"lspn.{n}": p for n, p in self.metric.lspn.state_dict().items()}
        tensors |= {f"sigma.{n}": p for n, p in self.metric.sigma.state_dict().items()}
        tensors["s_mean"] = self.metric.s_mean
        tensors |= bank_tensors(self.banks)
        describe = {
            "config": flat_settings(self.config),
            "standardiser": dataclasses.asdict(self.standardiser),
            "direction_form": self.metric.direction_form,
            "dims": self.metric.lspn.dims,
            "history": self.history,
        }
        write_described(directory / "detector.json", describe, tensors)

    @classmethod
    def load(cls, directory: Path | str, device: str = "auto") -> G2SF:
        """Return a saved detector.

        Args:
            directory: what `save` wrote.
            device: "auto", "cpu" or "cuda"; need not be where it was trained.

        Raises:
            StoredFileError: naming the file that is missing, truncated or changed, or
                whose format version is another.
        """
        directory = Path(directory)
        known, tensors = read_described(directory / "detector.json")
        detector = cls(make_config(**(known["config"] | {"device": device})))
        model = detector.config.model
        lspn = LSPN(known["dims"], model.hidden, model.embed, model.dropout)
        lspn.load_state_dict(_under(tensors, "lspn."))
        sigma = GlobalScale()
        sigma.load_state_dict(_under(tensors, "sigma."))
        where = detector.device
        detector.metric = Metric(
            lspn.to(where).eval(),
            sigma.to(where),
            tensors["s_mean"].to(where),
            known["direction_form"],
            model.prototype_input,
            model.direction_input,
        )
        detector.banks = banks_from(tensors)
        detector.standardiser = Standardiser(**known["standardiser"])
        detector.history = known["history"]
        return detector


def check_bank_size(config: Config, num_scans: int, cells: dict[str, int]) -> None:
    """Refuse training scans whose banks would hold fewer prototypes than are looked for.

    Args:
        config: of the run.
        num_scans: of the training.
        cells: mod -> number of normal foreground cells.

    Raises:
        ConfigError: naming scans, cells and settings.
    """
    need, share = 2 * config.model.k + 1, config.bank.bank_fraction
    for mod, num in cells.items():
        if (size := bank_size(num, share)) < need:
            raise ConfigError(
                f"{config.category}: the {mod} bank would hold {size} prototypes, bank_fraction"
                f" {share:g} of {num} cells of {num_scans} training scans; expected at least"
                f" {need}, for training looks at 2 k + 1 neighbours, k = {config.model.k}: take"
                " more scans, a larger bank_fraction or a smaller k"
            )


def flat_settings(config: Config) -> dict:
    """Return leaf name -> value, which `make_config` turns into the same config again."""
    return {
        name: getattr(config if section is None else getattr(config, section), name)
        for name, (section, _, _) in leaf_fields().items()
    }


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
    for name, value in _under(tensors, "bank.").items():
        bank, attribute = name.split(".")
        parts.setdefault(bank, {})[attribute] = value
    return {name: MemoryBank(**attributes) for name, attributes in parts.items()}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
