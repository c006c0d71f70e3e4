"""What people use instead of a learned metric, behind the same `fit` and `predict`.

Every method here sees the same cells, banks, silhouette rule and post-processing as
`detector.G2SF`; only the score of a cell differs. Sources: facts.md, section 7.

========  ==================================================================================
rgb, pcd  PatchCore on one modality; its re-weighted image score is `reweight_neighbours`
sum       distances divided by their normal means, added
product   the same, multiplied
max       the larger z-score (Shape-Guided's rule)
concat    one bank of both features side by side (BTF)
m3dm      one-class SVMs over the distances to three banks (`m3dm`)
cfm       each modality predicted from the other (`cfm`)
ast       a student that imitates a normalising flow (`student_teacher`)
========  ==================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from g2sf_lib.baselines.banks import (
    RULES,
    Calibration,
    Nearest,
    SideBySide,
    find_nearest,
    fit_concat_bank,
    fuse,
    reweighted,
)
from g2sf_lib.baselines.cfm import CFM, train_cfm
from g2sf_lib.baselines.m3dm import DecisionFusion
from g2sf_lib.baselines.student_teacher import AST, ast_input, depth_map, train_ast
from g2sf_lib.config import MODALITIES, Config, make_config
from g2sf_lib.datasets import Sample, check_normal
from g2sf_lib.detector import (
    Prediction,
    bank_tensors,
    banks_from,
    counted_cells,
    fit_banks,
    flat_settings,
    pick_device,
    to_prediction,
)
from g2sf_lib.features import (
    FeatureExtractor,
    PackedPatches,
    Patches,
    foreground_features,
    pack,
)
from g2sf_lib.memory import MemoryBank, Standardiser
from g2sf_lib.storage import read_described, write_described

__all__ = [
    "AST",
    "CFM",
    "METHODS",
    "Baseline",
    "Calibration",
    "DecisionFusion",
    "ScanScore",
    "SideBySide",
    "fit_concat_bank",
    "fuse",
]

Method = Literal["rgb", "pcd", "sum", "product", "max", "concat", "m3dm", "cfm", "ast"]
ONE_BANK = ("rgb", "pcd", "concat")
METHODS: tuple[Method, ...] = ("rgb", "pcd", *RULES, "concat", "m3dm", "cfm", "ast")
BANKS = {method: (method,) for method in ONE_BANK} | {rule: MODALITIES for rule in RULES}
BANKS |= {
    "m3dm": ("pcd", "rgb", "concat"),
    "cfm": (),
    "ast": (),
}


@dataclass(frozen=True)
class ScanScore:
    """What a method says of one scan before post-processing.

    Attributes:
        cells: (n,) scores of the foreground cells, row-major, not negative.
        image: silhouette rule -> image score.
    """

    cells: Tensor
    image: dict[str, float]


class Baseline:
    """A peer of G2SF as a detector.

    Args:
        method: one of `METHODS`.
        config: settings shared with `G2SF`, and those of the method.

    Attributes:
        standardiser, banks, calibration, decision, cfm, ast: what `fit` made of the scans;
            a method that does not need one leaves it None (or empty).
    """

    def __init__(self, method: Method, config: Config | None = None):
        if method not in METHODS:
            raise ValueError(f"Baseline: method is {method!r}; expected one of {METHODS}")
        self.method = method
        self.config = config if config is not None else make_config()
        self.standardiser: Standardiser | None = None
        self.banks: dict[str, MemoryBank] = {}
        self.calibration: Calibration | None = None
        self.decision: DecisionFusion | None = None
        self.cfm: CFM | None = None
        self.ast: AST | None = None

    @property
    def device(self) -> torch.device:
        """Where features are computed, banks searched and networks trained."""
        return pick_device(self.config.device)

    @cached_property
    def extract(self) -> FeatureExtractor:
        """What turns a sample into patches; its networks are loaded once."""
        return FeatureExtractor(self.config.features, self.device)

    def fit(
        self, samples: Sequence[Sample], held_out: Sequence[Sample] = (), progress: bool = False
    ) -> Baseline:
        """Fit to normal scans, and the calibration to held-out normal scans.

        Args:
            samples: preprocessed scans without defects.
            held_out: others of the same kind; "sum", "product" and "max" need them.
            progress: whether progress bars are shown.

        Raises:
            ScanError: for fewer than two scans, or one with a defect; see `check_normal`.
            ValueError: when held-out scans are missing.
        """
        self._check_given("fit", samples, held_out)
        check_normal("train", samples, "Baseline.fit")
        if held_out:
            check_normal("validation", held_out, "Baseline.fit")
        packed = [[pack(self.extract(s)) for s in some] for some in (samples, held_out)]
        depths = [self.depth(s) for s in samples] if self.method == "ast" else None
        return self.fit_patches(*packed, depths, progress=progress)

    def fit_patches(
        self,
        patches: Sequence[Patches | PackedPatches],
        held_out: Sequence[Patches | PackedPatches] = (),
        depths: Sequence[Tensor] | None = None,
        checkpoint: Path | None = None,
        progress: bool = False,
    ) -> Baseline:
        """Fit to scans whose features are at hand.

        Args:
            patches: of normal scans.
            held_out: of normal scans that calibrate "sum", "product" and "max".
            depths: of the normal scans (see `depth`); "ast" needs them.
            checkpoint: what an interrupted training goes on from: a file ("cfm"), or a folder
                ("ast", whose two networks keep one each).
            progress: whether progress bars are shown.

        Raises:
            ValueError: when no scan is given, or held-out scans or depths are missing.
        """
        self._check_given("fit_patches", patches, held_out)
        self._check_depths("fit_patches", depths)
        feat = foreground_features(patches)
        self.standardiser = Standardiser.fit(feat, self.config.features.standardise)
        feat = self.standardiser(feat)
        needed = BANKS[self.method]
        if set(needed) & set(MODALITIES):
            both = fit_banks(feat, self.config.bank, progress, self.device)
            self.banks = {name: both[name] for name in needed if name in both}
        if "concat" in needed:
            self.banks["concat"] = fit_concat_bank(feat, self.config.bank, progress, self.device)
        if self.method in RULES:
            normal = self.standardiser(foreground_features(held_out))
            found = find_nearest(self.banks, normal, self.device)
            self.calibration = Calibration.fit(
                torch.stack([found[mod][1] for mod in MODALITIES], dim=-1)
            )
        if self.method == "m3dm":
            self.fit_decision(patches, find_nearest(self.banks, feat, self.device))
        if self.method == "cfm":
            self.fit_cfm(patches, checkpoint, progress)
        if self.method == "ast":
            self.fit_ast(patches, depths, checkpoint, progress)
        return self

    def fit_decision(
        self, patches: Sequence[Patches | PackedPatches], nearest: Nearest
    ) -> Baseline:
        """Fit M3DM's SVMs to normal scans whose neighbours are at hand."""
        cells = _side_by_side(nearest)
        images = _largest(cells, patches, self.config.scoring.silhouette)
        rules = self.config.rules
        self.decision = DecisionFusion.fit(cells, images, rules.svm_nu, self.config.seed)
        return self

    def fit_cfm(
        self,
        patches: Sequence[Patches | PackedPatches],
        checkpoint: Path | None = None,
        progress: bool = False,
    ) -> Baseline:
        """Train CFM on cells of normal scans; the standardiser is there."""
        feat = self.standardiser(foreground_features(patches))
        settings, seed = self.config.cfm, self.config.seed
        self.cfm = train_cfm(feat, settings, seed, self.device, checkpoint, progress)
        return self

    def fit_ast(
        self,
        patches: Sequence[Patches | PackedPatches],
        depths: Sequence[Tensor],
        checkpoint: Path | None = None,
        progress: bool = False,
    ) -> Baseline:
        """Train AST's teacher and student on normal scans; the standardiser is there."""
        maps = [self._map(p, depth) for p, depth in zip(patches, depths, strict=True)]
        inside = [p.foreground for p in patches]
        settings, seed = self.config.ast, self.config.seed
        self.ast = train_ast(maps, inside, settings, seed, self.device, checkpoint, progress)
        return self

    def depth(self, sample: Sample) -> Tensor:
        """Return the depth of a scan's cells as AST reads it, (px * px, rows, columns)."""
        return depth_map(sample.xyz, self.config.features.grid_size, self.config.ast.ast_depth_px)

    def _check_given(self, function: str, scans: Sequence, held_out: Sequence) -> None:
        if not scans:
            raise ValueError(f"Baseline.{function}: no scans; expected at least 1")
        if self.method in RULES and not held_out:
            raise ValueError(
                f"Baseline.{function}: method {self.method!r} needs held_out normal scans"
            )

    def _check_depths(self, function: str, depths: Sequence[Tensor] | None) -> None:
        if self.method == "ast" and depths is None:
            raise ValueError(
                f"Baseline.{function}: method 'ast' needs the depths of the scans; see depth"
            )

    def _map(self, patches: Patches | PackedPatches, depth: Tensor) -> Tensor:
        colour = self.standardiser(patches.cells)["rgb"]
        return ast_input(colour, patches.foreground, patches.grid, depth)

    def score_scans(
        self,
        patches: Sequence[Patches | PackedPatches],
        depths: Sequence[Tensor] | None = None,
        nearest: Nearest | None = None,
        silhouettes: Sequence[str] | None = None,
    ) -> list[ScanScore]:
        """Return what the method says of scans whose features are at hand.

        Args:
            patches: of the scans.
            depths: of the scans; "ast" needs them.
            nearest: of all their cells, one scan after another, where it is known already.
            silhouettes: rules that image scores are wanted for; None: the configured one.

        Raises:
            ValueError: when the detector is not fitted, or depths are missing.
        """
        if self.standardiser is None:
            raise ValueError("Baseline: the detector is not fitted; call fit or load first")
        self._check_depths("score_scans", depths)
        rules = (self.config.scoring.silhouette,) if silhouettes is None else silhouettes
        feat = self.standardiser(foreground_features(patches))
        if BANKS[self.method] and nearest is None:
            nearest = find_nearest(self.banks, feat, self.device)
        cells = self._cells(patches, feat, depths, nearest)
        images = {rule: self._images(cells, patches, feat, nearest, rule) for rule in rules}
        parts = cells.split(_sizes(patches))
        return [
            ScanScore(part, {rule: float(images[rule][i]) for rule in rules})
            for i, part in enumerate(parts)
        ]

    def _cells(self, patches, feat, depths, nearest) -> Tensor:
        """Return (n,) scores of all cells."""
        if self.method in ONE_BANK:
            return nearest[self.method][1]
        if self.method in RULES:
            s0 = torch.stack([nearest[mod][1] for mod in MODALITIES], dim=-1)
            return fuse(self.method, s0, self.calibration)
        if self.method == "m3dm":
            return self.decision.score_cells(_side_by_side(nearest))
        if self.method == "cfm":
            return self.cfm.score(feat)
        parts = []
        for p, depth in zip(patches, depths, strict=True):
            parts += self.ast.score(self._map(p, depth)[None], p.foreground[None])
        return torch.cat(parts)

    def _images(self, cells, patches, feat, nearest, silhouette: str) -> Tensor:
        """Return (I,) image scores: the largest cell score, where the method says nothing else."""
        if self.method == "m3dm":
            largest = _largest(_side_by_side(nearest), patches, silhouette)
            return self.decision.score_images(largest)
        num = self.config.rules.reweight_neighbours
        if self.method in MODALITIES and num is not None:
            index, distance = nearest[self.method]
            top = _top_cells(distance, patches, silhouette)
            bank, rows = self.banks[self.method], feat[self.method]
            return torch.tensor(
                [
                    reweighted(float(distance[i]), rows[i : i + 1][0], int(index[i]), bank, num)
                    for i in top
                ]
            )
        return _largest(cells[:, None], patches, silhouette)[:, 0]

    def predict(self, sample: Sample) -> Prediction:
        """Return score map and image score of one preprocessed scan."""
        depth = self.depth(sample) if self.method == "ast" else None
        return self.predict_patches(self.extract(sample), depth)

    def predict_patches(
        self, patches: Patches | PackedPatches, depth: Tensor | None = None
    ) -> Prediction:
        """Return score map and image score of one scan whose features are at hand."""
        (score,) = self.score_scans([patches], None if depth is None else [depth])
        made = to_prediction(score.cells, patches, self.config.scoring)
        return dataclasses.replace(made, image_score=score.image[self.config.scoring.silhouette])

    def save(self, directory: Path | str) -> None:
        """Write a fitted detector: ``baseline.safetensors`` and ``baseline.json``.

        Raises:
            ValueError: when the detector is not fitted.
        """
        if self.standardiser is None:
            raise ValueError("Baseline.save: the detector is not fitted; call fit first")
        tensors = bank_tensors(self.banks)
        for name in ("calibration", "decision"):
            part = getattr(self, name)
            if part is not None:
                fields = dataclasses.fields(part)
                tensors |= {f"{name}.{f.name}": getattr(part, f.name) for f in fields}
        for name in ("cfm", "ast"):
            part = getattr(self, name)
            if part is not None:
                tensors |= {f"{name}.{key}": value for key, value in part.tensors().items()}
        describe = {
            "method": self.method,
            "config": flat_settings(self.config),
            "standardiser": dataclasses.asdict(self.standardiser),
        }
        write_described(Path(directory) / "baseline.json", describe, tensors)

    @classmethod
    def load(cls, directory: Path | str, device: str = "auto") -> Baseline:
        """Return a saved detector.

        Args:
            directory: what `save` wrote.
            device: "auto", "cpu" or "cuda"; need not be where it was trained.

        Raises:
            StoredFileError: naming the file that is missing, truncated or changed.
        """
        known, tensors = read_described(Path(directory) / "baseline.json")
        detector = cls(known["method"], make_config(**(known["config"] | {"device": device})))
        detector.standardiser = Standardiser(**known["standardiser"])
        detector.banks = banks_from(tensors)
        for name, kind in (("calibration", Calibration), ("decision", DecisionFusion)):
            part = _under(tensors, name)
            setattr(detector, name, kind(**part) if part else None)
        if detector.method == "cfm":
            detector.cfm = CFM.from_tensors(_under(tensors, "cfm")).to(detector.device)
        if detector.method == "ast":
            part = _under(tensors, "ast")
            detector.ast = AST.from_tensors(part, detector.config.ast).to(detector.device)
        return detector


def _sizes(patches: Sequence[Patches | PackedPatches]) -> list[int]:
    return [int(p.foreground.sum()) for p in patches]


def _side_by_side(nearest: Nearest) -> Tensor:
    """Return (n, 3) distances in the order of M3DM's banks."""
    return torch.stack([nearest[name][1] for name in BANKS["m3dm"]], dim=-1)


def _counted(patches: Sequence[Patches | PackedPatches], silhouette: str) -> list[Tensor]:
    """Return which foreground cells of each scan count, (n_scan,) bool each."""
    return [counted_cells(p, silhouette)[p.foreground].cpu() for p in patches]


def _largest(values: Tensor, patches: Sequence, silhouette: str) -> Tensor:
    """Return (I, B): the largest of (n, B) values of the counted cells of each scan."""
    parts = zip(values.split(_sizes(patches)), _counted(patches, silhouette), strict=True)
    return torch.stack([part[counts].amax(0) for part, counts in parts])


def _top_cells(score: Tensor, patches: Sequence, silhouette: str) -> list[int]:
    """Return the number, among all cells, of each scan's counted cell with the largest score."""
    top, start = [], 0
    for part, counts in zip(
        score.split(_sizes(patches)), _counted(patches, silhouette), strict=True
    ):
        top.append(start + int(torch.where(counts, part, -torch.inf).argmax()))
        start += len(part)
    return top


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
